"""Every number the system can be given, in frozen dataclasses whose defaults are the seed's; and the two presets."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_type_hints

_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}


def _check(name: str, value: float, low: float, high: float = float("inf")) -> None:
    if not low <= value <= high:
        shown, least, most = (f"{x:.0f}" if x == int(x) else f"{x:g}" for x in (value, low, min(high, 1e300)))
        bound = f"at least {least}" if high == float("inf") else f"from {least} to {most}"
        raise ValueError(f"{name} is {shown}; it must be {bound}")


def _check_kinds(config: Any) -> None:
    """Numbers are numbers, and choices are among those there are: Python's annotations alone decide nothing."""
    hints = get_type_hints(type(config))
    for name in (one.name for one in fields(config)):
        value, choices = getattr(config, name), get_args(hints[name])
        if choices and value not in choices:
            raise ValueError(f"{name} is {value!r}; it must be one of: {', '.join(choices)}")
        kind = None if choices else getattr(hints[name], "__name__", "")
        if kind in _KINDS and (not isinstance(value, _KINDS[kind]) or isinstance(value, bool) != (kind == "bool")):
            raise ValueError(f"{name} is {value!r}, which is no {kind}")


@dataclass(frozen=True)
class DataConfig:
    """How text becomes ids.

    Attributes:
        vocabulary_size: ids in all, the five special ones among them.
        min_count: a word of the vocabulary comes at least so often.
        max_source: tokens of a text that are read; a sentence end is one token.
        max_target: tokens of a summary, its ``sostok`` and ``eostok`` among them.
        labels: where texts have no summary: "repaired" or "seed_exact" pseudo-summaries, see ``create_pseudo_summary``.
        label_scoring: "mean" of the content words' frequencies, or the seed's "sum" over all words (repaired only).
        splitter: of sentences: "rules", "punkt" (NLTK's data must be installed), or "auto": punkt where it is.
    """

    vocabulary_size: int = 10_000
    min_count: int = 1
    max_source: int = 50
    max_target: int = 20
    labels: Literal["repaired", "seed_exact"] = "repaired"
    label_scoring: Literal["mean", "sum"] = "mean"
    splitter: Literal["auto", "punkt", "rules"] = "auto"

    def __post_init__(self) -> None:
        _check_kinds(self)
        _check("vocabulary_size", self.vocabulary_size, 6, 1_000_000)
        _check("min_count", self.min_count, 1)
        _check("max_source", self.max_source, 2, 2_000)
        _check("max_target", self.max_target, 3, 500)


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
        embedding_dim: E.
        units: U, the width of the encoder's outputs and of the decoder's state; even if ``bidirectional``.
        encoder_layers: LSTMs on top of each other.
        dropout: of the inputs of every LSTM, in [0, 1).
        attention: "bahdanau" (W1, W2 and v) or "keras_additive" (``keras.layers.AdditiveAttention``: v alone).
        mask: padding takes no attention and moves no state; the seed had none.
        bidirectional: each encoder layer reads both ways, with U / 2 units each.
        share_embeddings: one embedding for source and target.
        tied_output: logits = tanh(2U → E) · embeddingᵀ instead of the 2U × V projection.
        pointer: words can be copied from the source, unknown ones too.
        coverage: the attention sees what it has read so far; trained in a second short phase.
    """

    embedding_dim: int = 100
    units: int = 256
    encoder_layers: int = 3
    dropout: float = 0.4
    attention: Literal["bahdanau", "keras_additive"] = "bahdanau"
    mask: bool = True
    bidirectional: bool = False
    share_embeddings: bool = False
    tied_output: bool = False
    pointer: bool = False
    coverage: bool = False

    def __post_init__(self) -> None:
        _check_kinds(self)
        _check("embedding_dim", self.embedding_dim, 1)
        _check("units", self.units, 1)
        _check("encoder_layers", self.encoder_layers, 1, 16)
        _check("dropout", self.dropout, 0, 0.99)
        if self.bidirectional and self.units % 2:
            raise ValueError(f"units is {self.units}; a bidirectional encoder needs an even number")
        if self.coverage and self.attention != "bahdanau":
            raise ValueError("coverage needs attention=bahdanau")


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        batch_size: examples per update.
        epochs: at most.
        patience: epochs without a better validation loss before training ends; the best weights are kept.
        optimizer: "rmsprop" or "adam".
        learning_rate: at the start.
        decay: the learning rate is divided by 1 + decay · finished epochs.
        clip: largest gradient norm; 0 for none.
        mask_loss: padding does not count; the seed counted it.
        coverage_epochs: of the second phase, which begins at the best weights.
        coverage_weight: of the coverage loss in it.
        checkpoint_minutes: at most this long between checkpoints.
        seed: of weights, order and dropout.
    """

    batch_size: int = 60
    epochs: int = 40
    patience: int = 2
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    learning_rate: float = 1e-3
    decay: float = 0.0
    clip: float = 0.0
    mask_loss: bool = True
    coverage_epochs: int = 1
    coverage_weight: float = 1.0
    checkpoint_minutes: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_kinds(self)
        _check("batch_size", self.batch_size, 1)
        _check("epochs", self.epochs, 1)
        _check("patience", self.patience, 1)
        _check("learning_rate", self.learning_rate, 1e-9, 10)
        _check("decay", self.decay, 0)
        _check("clip", self.clip, 0)
        _check("coverage_epochs", self.coverage_epochs, 0)
        _check("coverage_weight", self.coverage_weight, 0)
        _check("checkpoint_minutes", self.checkpoint_minutes, 0)
        _check("seed", self.seed, 0, 2**32 - 1)


@dataclass(frozen=True)
class DecodeConfig:
    """How a summary is searched for.

    Attributes:
        beam: hypotheses kept; 1 is greedy.
        length_penalty: alpha of ((5 + length) / 6) ** alpha, by which log-probabilities are divided.
        no_repeat_ngram: no run of so many words comes twice in a summary; 0 for no rule.
        min_length: words before the end is allowed.
        max_length: words at most; 0 for what the model was trained with.
        n_best: summaries returned, different from one another; at most ``beam``.
    """

    beam: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram: int = 2
    min_length: int = 1
    max_length: int = 0
    n_best: int = 1

    def __post_init__(self) -> None:
        _check_kinds(self)
        _check("beam", self.beam, 1, 64)
        _check("length_penalty", self.length_penalty, 0, 5)
        _check("no_repeat_ngram", self.no_repeat_ngram, 0, 10)
        _check("min_length", self.min_length, 0, 500)
        _check("max_length", self.max_length, 0, 500)
        _check("n_best", self.n_best, 1, self.beam)
        if self.max_length and self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is above max_length {self.max_length}")


@dataclass(frozen=True)
class Settings:
    """One run: data, model, training, and how its summaries are searched for by default."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)


_COPYING = replace(
    ModelConfig(),
    encoder_layers=1,
    dropout=0.3,
    bidirectional=True,
    share_embeddings=True,
    tied_output=True,
    pointer=True,
)

PRESETS = {
    # The seed's sizes, with its padding masked.
    "full": Settings(),
    # One bidirectional layer, tied shared embeddings and a pointer: a fifth of the size, minutes on a CPU.
    "small": Settings(
        # Rare words are left to the pointer.
        data=replace(DataConfig(), min_count=5),
        model=_COPYING,
        train=replace(TrainConfig(), optimizer="adam", learning_rate=2e-3, decay=0.3, clip=2.0, epochs=5),
    ),
}
