"""Every number of a run, in frozen dataclasses. Sizes are the paper's (Wu et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

from latentlab_shared.config import from_dict, to_dict

View = Literal["title", "abstract", "category"]
MAX_SEED = 2**32 - 1  # what NumPy, torch and Python all take


@dataclass(frozen=True)
class ModelConfig:
    """What the network is, and what it reads; saved with the weights.

    Attributes:
        heads: attention heads of both encoders.
        head_dim: width of one head; ``heads * head_dim`` is D, the width of a news vector.
        word_dim: width of a word vector; set by the pretrained vectors where there are any.
        query_dim: width of the additive attention's query.
        prior: learn a vector that is added to every user vector: what readers open, whoever they are. Not in the paper.
        dropout: of word vectors (or a transformer's output) and of what self-attention gives, in [0, 1).
        encoder: "words" is the paper's news encoder; "transformer" pools a pretrained network's last layer instead.
        freeze: leave the pretrained word vectors, or the transformer, as they are.
        views: what is read of an article; the paper reads titles only.
        title_length: tokens of a title; longer ones are cut.
        abstract_length: tokens of an abstract, where it is read.
        history_length: articles of a history; the last ones are kept.
    """

    heads: int = 16
    head_dim: int = 16
    word_dim: int = 300
    query_dim: int = 200
    prior: bool = False
    dropout: float = 0.2
    encoder: Literal["words", "transformer"] = "words"
    freeze: bool = False
    views: tuple[View, ...] = ("title",)
    title_length: int = 30
    abstract_length: int = 50
    history_length: int = 50

    def __post_init__(self) -> None:
        for name in ("heads", "head_dim", "word_dim", "query_dim", "title_length", "abstract_length", "history_length"):
            _at_least(1, f"model.{name}", getattr(self, name))
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be in [0, 1), not {self.dropout}")
        if "title" not in self.views or len(set(self.views)) != len(self.views):
            raise ValueError(f"model.views must hold title, and each view once, not [{', '.join(self.views)}]")
        if self.encoder == "transformer" and self.views != ("title",):
            raise ValueError("model.views other than title need model.encoder=words")

    @property
    def dim(self) -> int:
        """D, the width of news and user vectors."""
        return self.heads * self.head_dim

    @property
    def widths(self) -> tuple[int, ...]:
        """Token columns of each view; a category view holds the category and the subcategory."""
        columns = {"title": self.title_length, "abstract": self.abstract_length, "category": 2}
        return tuple(columns[view] for view in self.views)


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        vectors: pretrained vectors: "" for random ones, a GloVe text file, "minilm", or a Hugging Face folder or id;
            with ``encoder=transformer`` the network itself.
        start: "mean" lets both encoders begin near the mean of what they read, "random" is the paper's.
        min_count: rarer words become the unknown word.
        balance: let every reader count alike, instead of every click; for logs in which few readers made most clicks.
        negatives: K, articles shown and not clicked beside each clicked one.
        epochs: passes over the clicks, at most.
        batch_size: clicks per update, over all processes and accumulated parts.
        accumulate: parts a batch is computed in; more parts need less memory and change no result beyond rounding.
        learning_rate: AdamW's, at its highest.
        weight_decay: AdamW's.
        warmup: share of all updates over which the rate rises.
        schedule: what the rate does after the rise.
        clip: largest gradient norm; 0 for none.
        precision: "auto" is bf16 on a GPU that has it and fp32 elsewhere.
        validate: impressions of the dev part scored after each epoch; 0 for all.
        monitor: metric that names the best epoch.
        patience: epochs without a better value of it before training ends; 0 never ends early.
        log_every: updates between two lines of metrics.
        save_every: updates between two checkpoints; 0 for one at each epoch's end.
        workers: processes that prepare batches; worth it beside a GPU.
        seed: of every random number.
    """

    vectors: str = ""
    start: Literal["mean", "random"] = "mean"
    min_count: int = 1
    balance: bool = False
    negatives: int = 4
    epochs: int = 5
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup: float = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    clip: float = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    validate: int = 0
    monitor: Literal["auc", "mrr", "ndcg@5", "ndcg@10"] = "auc"
    patience: int = 2
    log_every: int = 50
    save_every: int = 0
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("min_count", "negatives", "epochs", "batch_size", "accumulate", "log_every"):
            _at_least(1, f"train.{name}", getattr(self, name))
        for name in ("weight_decay", "clip", "validate", "patience", "save_every", "workers", "seed"):
            _at_least(0, f"train.{name}", getattr(self, name))
        if self.seed > MAX_SEED:
            raise ValueError(f"train.seed must be at most {MAX_SEED}, not {self.seed}")
        if not 0 < self.learning_rate < inf:
            raise ValueError(f"train.learning_rate must be positive, not {self.learning_rate}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"train.warmup is a share of the updates, in [0, 1], not {self.warmup}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"train.batch_size must be a multiple of train.accumulate, {self.accumulate}")


def _at_least(least: int, key: str, value: float) -> None:
    """Refuse what is smaller, not finite, or no number."""
    if not least <= value < inf:
        raise ValueError(f"{key} must be at least {least}, not {value}")


@dataclass(frozen=True)
class NrmsConfig:
    """One run.

    Attributes:
        model: what the network is.
        train: how to train it.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: object = "configuration") -> NrmsConfig:
        """Read what ``to_dict`` wrote, or any part of it.

        Raises:
            UserError: for an unknown key or a value of another type.
        """
        return from_dict(cls, values, where)
