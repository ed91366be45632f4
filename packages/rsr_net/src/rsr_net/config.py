"""Every number the system can be given, in three frozen dataclasses. Their defaults are the seed's.

A number out of its range is refused when the object is made, by its key: ``model.heads: must be at least 1, not 0``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from latentlab_shared.config import from_dict
from latentlab_shared.errors import UserError

MAX_SEED = 2**32 - 1
Rule = tuple[str, Callable[[float], bool]]  # what a number has to be, in words and as a test
_COUNT: Rule = ("at least 1", lambda v: v >= 1)
_WIDTH: Rule = ("from 1 to 65536", lambda v: 1 <= v <= 65536)
_DEPTH: Rule = ("from 1 to 1024", lambda v: 1 <= v <= 1024)
_SEED: Rule = ("from 0 to 4294967295", lambda v: 0 <= v <= MAX_SEED)  # what every random generator takes
_NOT_NEGATIVE: Rule = ("at least 0", lambda v: v >= 0)
_POSITIVE: Rule = ("above 0", lambda v: v > 0)
_SHARE: Rule = ("in [0, 1]", lambda v: 0 <= v <= 1)
_LESS_THAN_ALL: Rule = ("in [0, 1)", lambda v: 0 <= v < 1)
_MORE_THAN_NONE: Rule = ("in (0, 1]", lambda v: 0 < v <= 1)
_MODEL_RULES = {
    **dict.fromkeys(("input_dim", "hidden_dim", "latent_dim"), _WIDTH),
    **dict.fromkeys(("n", "T", "heads", "steps"), _DEPTH),
    "step_size": _MORE_THAN_NONE,
    "dropout": _LESS_THAN_ALL,
    "latent_dropout": _LESS_THAN_ALL,
}
_TRAIN_RULES = {
    **dict.fromkeys(("batch_size", "patience"), _COUNT),
    **dict.fromkeys(("n_supervision", "gradient_steps", "cross_fits"), _DEPTH),
    "seed": _SEED,
    **dict.fromkeys(("epochs", "aux_weight", "stop_confidence", "weight_decay", "contrastive_weight"), _NOT_NEGATIVE),
    **dict.fromkeys(("learning_rate", "clip", "ridge"), _POSITIVE),
    "ema_decay": _SHARE,
    "sentence_dropout": _LESS_THAN_ALL,
}


def _check(config: object, group: str, rules: Mapping[str, Rule]) -> None:
    """Refuse numbers out of range, NaN and infinity too; an empty list is as wrong as a wrong number in it."""
    for name, (wanted, holds) in rules.items():
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or not all(math.isfinite(number) and holds(number) for number in numbers):
            default = getattr(type(config), name)
            example = list(default) if isinstance(default, tuple) else default
            shown = list(value) if isinstance(value, tuple) else value
            raise UserError(
                f"must be {wanted}, not {shown}", f"{group}.{name}", f"For example: --set '{group}.{name}={example}'"
            )


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and depth.

    Attributes:
        input_dim: D, the width of the document and summary embeddings (BART-base: 768).
        hidden_dim: width of the hidden layers; in the refiner, of the network that scores sentences.
        latent_dim: L, the width of the latent memory z.
        n: inner loop, network applications per segment (seed recipe).
        T: outer loop, segments; only the last carries gradient (seed recipe).
        norm: of the seed's network; "batch" is its notebook's, "layer" keeps the articles of a batch apart.
        confidence: of the seed's network; "max" is its notebook's sigmoid(max(y)), "aux" reads y_aux.
        heads: reads of the article per step (rsr recipe, as all that follow).
        steps: refinement steps.
        step_size: a in y ← y + a (g(x, y) - y), in (0, 1].
        dropout: in the network that scores sentences, in [0, 1).
        latent_dropout: of what the latent memory is computed from, in [0, 1).
    """

    input_dim: int = 768
    hidden_dim: int = 128
    latent_dim: int = 64
    n: int = 4
    T: int = 3
    norm: Literal["batch", "layer"] = "batch"
    confidence: Literal["max", "aux"] = "max"
    heads: int = 4
    steps: int = 8
    step_size: float = 0.7
    dropout: float = 0.1
    latent_dropout: float = 0.5

    def __post_init__(self) -> None:
        _check(self, "model", _MODEL_RULES)


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: passes over the training articles, at most.
        batch_size: articles per update.
        learning_rate: Adam's (seed) or AdamW's (rsr).
        aux_weight: weight of the confidence loss (seed recipe; the rsr recipe fits its confidence after training).
        n_supervision: deep-supervision segments per batch, each with its own update (seed recipe).
        stop_confidence: the seed ends a batch's segments early above this mean confidence.
        clip: largest gradient norm.
        seed: of every random number.
        gradient_steps: the last steps of an update's recursion, which carry gradient and are each supervised; before
            them stand 0 to ``steps - gradient_steps`` without, drawn anew for each batch (rsr recipe, as all that
            follow).
        weight_decay: AdamW's, for the parameters that grow with D.
        ema_decay: of the averaged weights, which are the ones kept.
        sentence_dropout: share of the sentences hidden from a training step.
        contrastive_weight: weight of the in-batch retrieval loss: more of it finds more true summaries, at some R².
        patience: epochs without a better validation score before training ends.
        ridge: penalties tried for the closed-form start, relative to the mean square of its inputs.
        cross_fits: parts of the training set for starts that have not seen their own target.
    """

    epochs: int = 2
    batch_size: int = 32
    learning_rate: float = 1e-3
    aux_weight: float = 0.1
    n_supervision: int = 3
    stop_confidence: float = 0.95
    clip: float = 1.0
    seed: int = 0
    gradient_steps: int = 2
    weight_decay: float = 0.05
    ema_decay: float = 0.99
    sentence_dropout: float = 0.1
    contrastive_weight: float = 0.0
    patience: int = 5
    ridge: tuple[float, ...] = (0.03, 0.1, 0.2, 0.4, 0.8, 2.0)
    cross_fits: int = 8

    def __post_init__(self) -> None:
        _check(self, "train", _TRAIN_RULES)


@dataclass(frozen=True)
class RsrConfig:
    """One run.

    Attributes:
        recipe: "rsr" re-reads the article's sentences at each step; "seed" is the seed's network and loss, unchanged.
        model: sizes and depth.
        train: how to train.
    """

    recipe: Literal["rsr", "seed"] = "rsr"
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def default(cls, recipe: Literal["rsr", "seed"] = "rsr", input_dim: int = 768) -> RsrConfig:
        """The settings of a recipe for embeddings of ``input_dim`` numbers: the seed's own, or those measured best."""
        if recipe == "seed":
            return cls("seed", ModelConfig(input_dim=input_dim), TrainConfig())
        model = ModelConfig(input_dim=input_dim, hidden_dim=32, latent_dim=16)
        return cls("rsr", model, TrainConfig(epochs=40, batch_size=64, contrastive_weight=1.0))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RsrConfig:
        """Read what ``to_dict`` wrote, or any part of it.

        Raises:
            UserError: for a key that is not known, naming the nearest one, and for a value of another type or range.
        """
        return from_dict(cls, values)
