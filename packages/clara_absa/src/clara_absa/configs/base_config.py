"""Every number of a run, in frozen dataclasses. Defaults are the seed's; ``ClaraConfig.default`` has the profiles.

A number out of its range is refused when the object is made, by its key: ``memory.tokens: must be at least 1, not 0``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from latentlab_shared.config import from_dict
from latentlab_shared.errors import UserError

PHI = "microsoft/Phi-3.5-mini-instruct"

Rule = tuple[str, Callable[[float], bool]]  # what a number has to be, in words and as a test
_COUNT: Rule = ("at least 1", lambda v: v >= 1)
_NOT_NEGATIVE: Rule = ("at least 0", lambda v: v >= 0)
_POSITIVE: Rule = ("above 0", lambda v: v > 0)
_SHARE: Rule = ("in [0, 1]", lambda v: 0 <= v <= 1)
_LESS_THAN_ALL: Rule = ("in [0, 1)", lambda v: 0 <= v < 1)


def _check(config: object, group: str, rules: Mapping[str, Rule]) -> None:
    """Refuse numbers out of range, NaN and infinity too."""
    for name, (wanted, holds) in rules.items():
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(math.isfinite(number) and holds(number) for number in numbers):
            shown = list(value) if isinstance(value, tuple) else value
            default = getattr(type(config), name)
            example = list(default) if isinstance(default, tuple) else 4 if default is None else default
            raise UserError(
                f"must be {wanted}, not {shown}", f"{group}.{name}", f"For example: --set '{group}.{name}={example}'"
            )


@dataclass(frozen=True)
class MemoryConfig:
    """What the decoder reads instead of the text.

    Attributes:
        tokens: k, memory vectors per text; with ``sizes`` or ``ratio`` the most there can be.
        sizes: nested memories: each training step draws one of these k, so that one model serves them all.
        ratio: text tokens per memory vector: k = ceil(tokens of the text / ratio), at most ``tokens``; None for a
            fixed k.
        reader: who compresses: "decoder" is the backbone itself (the seed's way), "encoder" a light pretrained
            encoder, "none" nobody: the decoder reads the text (the baseline without compression).
        encoder: of ``reader=encoder``: "minilm", a hub id or a folder.
        depth: of ``reader=encoder``: layers with which the memory queries read the encoder.
        start: what a memory position begins with: "tokens", a trainable vector (the seed); "pooled", that and the mean
            embedding of its stretch of the text: from scratch, pooled memories are learned far sooner; or "matched",
            where the words of its stretch also stand in the finished vector, with the opposite sign, and the first
            layer of a backbone without an adapter begins with keys that are its negated queries, so that a question's
            words find the vector that holds them. What a light encoder pools is always matched.
        window: tokens of text on either side of itself (of a memory vector: of its stretch) that a place of the text
            sees while it is compressed, in every layer; None for all. A backbone from scratch learns whole sentences
            by heart where it sees them whole. After PIC (arXiv 2602.13980); a light encoder sees all.
        attention: whether text tokens see later ones while they are compressed: "causal", or "both" ways.
        max_text_tokens: longer texts are cut; the seed's padded length.
    """

    tokens: int = 8
    sizes: tuple[int, ...] = ()
    ratio: float | None = None
    reader: Literal["decoder", "encoder", "none"] = "decoder"
    encoder: str = "minilm"
    depth: int = 2
    start: Literal["tokens", "pooled", "matched"] = "tokens"
    window: int | None = None
    attention: Literal["causal", "both"] = "causal"
    max_text_tokens: int = 246

    def __post_init__(self) -> None:
        _check(
            self,
            "memory",
            {"tokens": _COUNT, "sizes": _COUNT, "depth": _COUNT, "max_text_tokens": ("at least 8", lambda v: v >= 8)},
        )
        if self.ratio is not None:
            _check(self, "memory", {"ratio": ("at least 1", lambda v: v >= 1)})
        if self.window is not None:
            _check(self, "memory", {"window": _COUNT})
            if self.reader == "encoder" or (self.reader == "decoder" and self.start == "tokens"):
                fix = "Use --set memory.reader=decoder --set memory.start=matched"
                raise UserError("a window needs a backbone that compresses stretches of text", "memory.window", fix)
        if self.sizes and max(self.sizes) != self.tokens:
            raise UserError(
                f"the largest must be memory.tokens={self.tokens}, not {max(self.sizes)}",
                "memory.sizes",
                f"For example: --set memory.tokens={max(self.sizes)}",
            )
        if list(self.sizes) != sorted(set(self.sizes)):
            sizes = sorted(set(self.sizes))
            raise UserError("sizes rise, each once", "memory.sizes", f"For example: --set 'memory.sizes={sizes}'")
        if self.reader == "none" and (self.sizes or self.ratio is not None):
            key = "memory.sizes" if self.sizes else "memory.ratio"
            raise UserError("there is no memory where reader=none", key, "Leave it out")
        if self.sizes and self.ratio is not None:
            raise UserError("nested sizes and a ratio exclude each other", "memory.sizes", "Leave one of them out")

    @property
    def matched(self) -> bool:
        """Whether the words of a vector's stretch stand in it."""
        return self.start == "matched" or (self.start == "pooled" and self.reader == "encoder")


@dataclass(frozen=True)
class LoraSettings:
    """The adapter on the backbone.

    Attributes:
        rank: r; 0 trains the backbone's own weights, without an adapter.
        alpha: scale, as in LoRA's alpha / r.
        dropout: in [0, 1).
        targets: names of the linear modules to adapt; empty for all linear modules of the layers that really exist.
            A name that matches nothing is an error: Phi-3 has no ``q_proj``, and an adapter of the seed's names
            adapted ``o_proj`` alone.
        roles: "shared", one adapter for compressing and answering (the seed's), or "split", one for each.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    targets: tuple[str, ...] = ()
    roles: Literal["shared", "split"] = "shared"

    def __post_init__(self) -> None:
        _check(self, "lora", {"rank": _NOT_NEGATIVE, "alpha": _POSITIVE, "dropout": _LESS_THAN_ALL})


@dataclass(frozen=True)
class LossConfig:
    """``alpha * reconstruction + beta * (extraction + classification) + gamma * alignment``.

    Attributes:
        schedule: how alpha and beta move from their first to their second value while training.
        alpha: of the reconstruction, at the start and at the end.
        beta: of extraction and classification, at the start and at the end.
        gamma: of the alignment.
        staged_at: share of training before a "staged" schedule changes from the first values to the second.
        alignment: what the mean memory vector is drawn to: "hidden", the mean last state of the text (CLaRa), or
            "embedding", the mean of its input embeddings (the seed).
        rec_share: chance that a sentence is also reconstructed in an epoch.
        ext_share: chance that its aspects are also listed.
        distill: weight of the KL divergence from a teacher that reads the text; needs ``--teacher``.
        label_smoothing: of the polarity answers, spread over all tokens.
        mark: weight of the polarity as it is read off the memory vector whose stretch of the text holds an aspect:
            the vector is drawn to the polarity's own embedding, so that a new decoder has less to find out. Needs
            ``memory.start`` pooled or matched; aspects without a place in the text are left out.
    """

    schedule: Literal["constant", "linear", "cosine", "staged", "uncertainty"] = "linear"
    alpha: tuple[float, float] = (1.0, 0.2)
    beta: tuple[float, float] = (0.1, 1.0)
    gamma: float = 0.1
    staged_at: float = 0.3
    alignment: Literal["hidden", "embedding"] = "hidden"
    rec_share: float = 1.0
    ext_share: float = 1.0
    distill: float = 0.0
    label_smoothing: float = 0.0
    mark: float = 0.0

    def __post_init__(self) -> None:
        _check(
            self,
            "loss",
            {
                **dict.fromkeys(("alpha", "beta", "gamma", "distill", "mark"), _NOT_NEGATIVE),
                **dict.fromkeys(("staged_at", "rec_share", "ext_share"), _SHARE),
                "label_smoothing": _LESS_THAN_ALL,
            },
        )
        if not any((*self.alpha, *self.beta, self.gamma, self.distill, self.mark)):
            raise UserError("every loss has weight 0: nothing would be learned", "loss", "For example: loss.beta=[1,1]")


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: passes over the sentences.
        batch_size: sentences per update, over all processes and accumulated parts.
        accumulate: parts a batch is computed in; more parts need less memory and change no result beyond rounding.
        learning_rate: AdamW's, at its highest.
        encoder_learning_rate: of a pretrained light encoder.
        warmup: share of the updates in which the learning rate rises; it falls along a cosine after that.
        weight_decay: AdamW's.
        clip: largest gradient norm.
        word_dropout: share of a text's tokens that are hidden from whoever compresses it, drawn anew for each update.
        row_tokens: length of a packed row; texts are laid side by side in rows of at most so many tokens.
        precision: "fp32", or "bf16" for autocast.
        checkpointing: recompute activations in the backward pass.
        parallel: what several processes do with the model: "copy", each holds it (DDP), or "shard", each holds a part
            of every layer (FSDP2); validation then waits for the end.
        checkpoint_every: updates between checkpoints; one is also written after each epoch.
        seed: of every random number.
    """

    epochs: int = 5
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 1e-4
    encoder_learning_rate: float = 1e-4
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    word_dropout: float = 0.0
    row_tokens: int = 256
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpointing: bool = False
    parallel: Literal["copy", "shard"] = "copy"
    checkpoint_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_size", "accumulate", "row_tokens", "checkpoint_every")
        _check(
            self,
            "train",
            {
                **dict.fromkeys(counts, _COUNT),
                **dict.fromkeys(("learning_rate", "encoder_learning_rate", "clip"), _POSITIVE),
                "weight_decay": _NOT_NEGATIVE,
                "warmup": _SHARE,
                "word_dropout": _LESS_THAN_ALL,
                "seed": _NOT_NEGATIVE,
            },
        )
        if self.accumulate > self.batch_size:
            raise UserError(
                f"{self.batch_size} sentences cannot be parted in {self.accumulate}",
                "train.accumulate",
                "Make train.batch_size larger",
            )


@dataclass(frozen=True)
class TinyConfig:
    """The backbone that is made here, of Phi-3's architecture.

    Attributes:
        width: d; behind a light encoder it is the encoder's.
        layers: of the backbone.
        heads: of its attention; behind a light encoder they are the encoder's.
        vocabulary: tokens at most; behind a light encoder it is the encoder's.
        dropout: of what each layer adds, in [0, 1).
    """

    width: int = 128
    layers: int = 4
    heads: int = 4
    vocabulary: int = 4000
    dropout: float = 0.0

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("width", "layers", "heads"), _COUNT)
        _check(self, "tiny", {**counts, "vocabulary": ("at least 300", lambda v: v >= 300), "dropout": _LESS_THAN_ALL})
        if self.width % (2 * self.heads):
            raise UserError(f"must be a multiple of {2 * self.heads}, twice the heads", "tiny.width")


@dataclass(frozen=True)
class ClaraConfig:
    """One model and how it is trained.

    Attributes:
        recipe: "clara" packs and encodes each sentence once; "seed" pads, and encodes once per task, as the seed does.
        backbone: "tiny" (made here, with its own vocabulary), a hub id, or a folder with a causal model.
        tiny: the backbone "tiny".
        memory: what the decoder reads.
        lora: the adapter.
        loss: the losses and their schedule.
        train: how to train.
    """

    recipe: Literal["clara", "seed"] = "clara"
    backbone: str = PHI
    tiny: TinyConfig = field(default_factory=TinyConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.lora.rank == 0 and self.lora.roles == "split":
            raise UserError("without an adapter there is none for each role", "lora.roles", "Set lora.rank above 0")
        memory = self.memory
        plain = (memory.reader, memory.start, memory.attention) == ("decoder", "tokens", "causal")
        if self.recipe == "seed" and self.train.word_dropout:
            raise UserError("the seed's recipe hides no words", "train.word_dropout", "Leave it at 0")
        if self.recipe == "seed" and (not plain or memory.sizes or memory.ratio is not None):
            fix = "Use memory.reader=decoder memory.start=tokens memory.attention=causal, without sizes and ratio"
            plainly = {"reader": "decoder", "start": "tokens", "attention": "causal", "sizes": (), "ratio": None}
            key = next(name for name, value in plainly.items() if getattr(memory, name) != value)
            raise UserError("the seed's recipe knows plain memory tokens only", f"recipe=seed, memory.{key}", fix)

    @property
    def described(self) -> str:
        """What reads and what answers, for a line: "backbone tiny", "minilm before tiny"."""
        light = self.memory.reader == "encoder"
        return f"{self.memory.encoder} before {self.backbone}" if light else f"backbone {self.backbone}"

    @classmethod
    def default(cls, profile: str = "phi") -> ClaraConfig:
        """The settings of a profile.

        Args:
            profile: "phi" is the seed's numbers on Phi-3.5; "sample" trains the embedded backbone on generated text;
                "scratch" a small backbone on real text; "light" puts a pretrained encoder before a small decoder.

        Raises:
            UserError: for another name.
        """
        if profile not in PROFILES:
            raise UserError(f"{profile!r} is not a profile", "--profile", f"Use one of: {', '.join(PROFILES)}")
        return PROFILES[profile]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClaraConfig:
        """Read what ``to_dict`` wrote, or any part of it.

        Raises:
            UserError: for a key that is not known, naming the nearest one, and for a value of another type or range.
        """
        return from_dict(cls, values)


_FULL = LoraSettings(rank=0)
# The answers alone: with few updates, writing takes the gradient that which opinion is whose would need.
_ANSWERS = LossConfig(schedule="constant", alpha=(0.0, 0.0), beta=(1.0, 1.0), gamma=0.0, rec_share=0.0, ext_share=0.0)
PROFILES = {
    "phi": ClaraConfig(train=TrainConfig(precision="bf16", checkpointing=True, row_tokens=2048)),
    "sample": ClaraConfig(
        backbone="tiny",
        tiny=TinyConfig(width=64, layers=2),
        memory=MemoryConfig(tokens=8, start="pooled", attention="both"),
        lora=_FULL,
        loss=_ANSWERS,
        train=TrainConfig(epochs=12, batch_size=16, learning_rate=2e-3),
    ),
    "scratch": ClaraConfig(
        backbone="tiny",
        tiny=TinyConfig(layers=2, dropout=0.3),
        memory=MemoryConfig(tokens=8, start="matched", window=3, attention="both"),
        lora=_FULL,
        loss=dataclasses.replace(_ANSWERS, mark=0.5),
        train=TrainConfig(epochs=8, batch_size=16, learning_rate=1e-3, word_dropout=0.2, row_tokens=128),
    ),
    "light": ClaraConfig(
        backbone="tiny",
        tiny=TinyConfig(layers=2, dropout=0.1),
        memory=MemoryConfig(tokens=8, start="pooled", reader="encoder"),
        lora=_FULL,
        loss=dataclasses.replace(_ANSWERS, mark=0.5),
        train=TrainConfig(epochs=5, batch_size=16, learning_rate=1e-3, encoder_learning_rate=2e-4, row_tokens=128),
    ),
}
