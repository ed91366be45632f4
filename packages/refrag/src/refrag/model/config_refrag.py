"""What a model is made of. The first four fields and their defaults are the seed's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from latentlab_shared.errors import UserError


@dataclass(frozen=True)
class RefragConfig:
    """One model.

    Attributes:
        encoder_name_or_path: reads documents; a hub name or a folder.
        decoder_name_or_path: reads the prompt and writes the answer; any causal language model.
        compression: k, encoder tokens per vector.
        training_model: what learns: p(rojector), e(ncoder), d(ecoder).
        projector: from the encoder's width to the decoder's: "linear", or "mlp" with one hidden layer as wide as the
            decoder (the paper's).
        pooling: from a row's states to one vector: the first state ("cls"), their mean, or the encoder's "pooler".
        row_format: "cls" for rows with the encoder's marks, cut where both tokenizers cut; "seed" for bare rows.
        conditioning: how the question decides what is expanded: "late" compares it with cached vectors, "joint" lets
            the encoder read it with every row, "none" leaves it out.
        gate_dim: width in which the gate compares.

    Raises:
        UserError: for a value out of its range.
    """

    encoder_name_or_path: str = "roberta-base"
    decoder_name_or_path: str = "sshleifer/tiny-gpt2"
    compression: int = 4
    training_model: str = "ped"
    projector: Literal["linear", "mlp"] = "linear"
    pooling: Literal["cls", "mean", "pooler"] = "cls"
    row_format: Literal["cls", "seed"] = "cls"
    conditioning: Literal["none", "late", "joint"] = "late"
    gate_dim: int = 64

    def __post_init__(self) -> None:
        if self.compression < 1:
            raise UserError(f"must be at least 1, not {self.compression}", "compression")
        if self.gate_dim < 1:
            raise UserError(f"must be at least 1, not {self.gate_dim}", "gate_dim")
        if set(self.training_model) - set("ped") or len(set(self.training_model)) != len(self.training_model):
            raise UserError(
                f"{self.training_model!r} is not made of p, e and d", "training_model", "For example: training_model=pe"
            )
