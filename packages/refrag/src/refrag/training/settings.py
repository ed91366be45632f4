"""What a run of training is told: its stage, its parts and how it steps. Nothing here needs torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from latentlab_shared.errors import UserError
from refrag.model.config_refrag import check_compression

Stage = Literal["alignment", "reconstruction", "pretraining", "questions"]
Lengths = Literal["curriculum", "mixed", "longest"]


@dataclass(frozen=True)
class LoopSettings:
    """How to step.

    Attributes:
        steps: updates in all.
        batch_size: examples per update, over all processes.
        learning_rate: AdamW's highest.
        warmup: share of the steps in which the rate rises; a cosine to zero follows (the paper's 4 %).
        weight_decay: of matrices.
        clip: largest gradient norm.
        seed: of every random choice.
        checkpoint_every: updates between two checkpoints.
        engine: what several processes do: "ddp" has every process hold the whole model, "fsdp2" a share of it.
        beta2: AdamW's memory of squared gradients; short runs want less than the usual 0.999.
        bf16: multiply in bfloat16, where the processor can.
    """

    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 2e-4
    warmup: float = 0.04
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    checkpoint_every: int = 100
    engine: Literal["ddp", "fsdp2"] = "ddp"
    beta2: float = 0.999
    bf16: bool = False

    def __post_init__(self) -> None:
        counts = {"steps": self.steps, "batch_size": self.batch_size, "checkpoint_every": self.checkpoint_every}
        for name, count in counts.items():
            if count < 1:
                raise UserError(f"must be at least 1, not {count}", name)
        for name in ("learning_rate", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UserError(f"must be above 0, not {getattr(self, name)}", name)
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(f"must be 0 or more, not {self.weight_decay}", "weight_decay")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"must be from 0 to 2³² - 1, not {self.seed}", "seed")
        if not 0 < self.beta2 < 1:
            raise UserError(f"must be in (0, 1), not {self.beta2}", "beta2")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"must be in [0, 1], not {self.warmup}", "warmup")


@dataclass(frozen=True)
class AlignmentWeights:
    """Weights of the three losses; the defaults are the seed's.

    Attributes:
        mse: of the means of aligned spans.
        kld: of the next-token distributions at anchors, KL(from DE ‖ from RE).
        argmax: of the token that DE makes likeliest, under RE.
    """

    mse: float = 1.0
    kld: float = 1.0
    argmax: float = 0.2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"must be 0 or more, not {value}", f"weights.{name}")


@dataclass(frozen=True)
class RunSettings:
    """What a run was asked for; ``config.json`` of a run folder.

    Attributes:
        stage: "alignment" (encoder and decoder over the same text), "reconstruction" (a text from its vectors),
            "pretraining" (what follows a context of vectors), or "questions" (answers with citations, then the gate).
        data: "sample", a .txt or .jsonl file of texts, or for the last stage a .jsonl file of questions.
        model: "" for a new one, or the folder of a saved model to go on from.
        encoder: of a new model: "tiny" (made here), "twin" (made here, from the decoder's embeddings), "minilm" (from
            its package), a folder or a hub name.
        decoder: of a new model: "tiny" (made here), a folder or a hub name.
        compression: k of a new model.
        training_model: what learns: p(rojector), e(ncoder), d(ecoder).
        decoder_training: "full", "lora" (adapters, merged at the end), or "auto": full for a decoder made here, which
            knows nothing yet, and for that of a saved model; lora for any other.
        lora_rank: of the adapters.
        limit: texts or questions to train on, at most; of the sample, sets of documents.
        examples: of the sample: sets of documents.
        questions: of each of them.
        gate_examples: questions from which the gate learns.
        gate_margin: nats per answer token from which a chunk is worth its tokens.
        max_tokens: of an example of the alignment stage, on either side.
        longest: stretches of the reconstruction stage are 1, 2, 4 … 2 ** (longest - 1) chunks.
        lengths: reconstruction goes from short stretches to long ones ("curriculum"), or has them "mixed", or always
            the "longest".
        rates: k of the reconstruction and pretraining stages, by turns; the model's own if there are none.
        context: chunks before the target of the pretraining stage, at the model's own k.
        target: chunks to write there.
        expanded: share of the context's chunks left as tokens there.
        whole: share of the steps whose contexts are left as tokens from end to end.
        weights: of the alignment losses.
        loop: how to step.
    """

    stage: Stage = "questions"
    data: str = "sample"
    model: str = ""
    encoder: str = "tiny"
    decoder: str = "tiny"
    compression: int = 8
    training_model: str = "ped"
    decoder_training: Literal["auto", "lora", "full"] = "auto"
    lora_rank: int = 16
    limit: int | None = None
    examples: int = 1000
    questions: int = 3
    gate_examples: int = 64
    gate_margin: float = 0.05
    max_tokens: int = 128
    longest: int = 4
    lengths: Lengths = "curriculum"
    rates: tuple[int, ...] = ()
    context: int = 16
    target: int = 4
    expanded: float = 0.1
    whole: float = 0.0
    weights: AlignmentWeights = field(default_factory=AlignmentWeights)
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        counts = ("lora_rank", "examples", "questions", "gate_examples", "max_tokens", "longest", "context", "target")
        for name in counts:
            if getattr(self, name) < 1:
                raise UserError(f"must be at least 1, not {getattr(self, name)}", name)
        if self.limit is not None and self.limit < 1:
            raise UserError(f"must be at least 1, not {self.limit}", "limit")
        for name in ("expanded", "whole"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"must be in [0, 1], not {getattr(self, name)}", name)
        if not math.isfinite(self.gate_margin):
            raise UserError(f"must be a number, not {self.gate_margin}", "gate_margin")
        if not self.training_model or set(self.training_model) - set("ped"):
            raise UserError(f"{self.training_model!r} names no parts", "training_model", "Use letters of p, e and d")
        check_compression(self.compression)
        for k in self.rates:
            check_compression(k, "rates")

    @property
    def lora(self) -> bool:
        """Whether adapters learn in the decoder's place."""
        if "d" not in self.training_model or self.decoder_training == "full":
            return False
        return self.decoder_training == "lora" or (not self.model and self.decoder != "tiny")


QUICK = LoopSettings(steps=600, learning_rate=4e-3, beta2=0.98)
"""Of the built-in sample, from nothing to answers in under two minutes."""
