"""What a model is made of. The first four fields and their defaults are the seed's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from latentlab_shared.errors import UserError

MAX_COMPRESSION = 1024  # tokens of a row: more than any encoder reads


def check_compression(k: object, where: str = "compression", most: int | None = MAX_COMPRESSION) -> None:
    """Refuse a k that no model can have.

    Args:
        k: tokens of a row.
        where: it was given.
        most: it can be; None for any, as where one vector is to stand for a long stretch in a measurement.

    Raises:
        UserError: for anything but a whole number from 1 to ``most``.
    """
    if not isinstance(k, int) or k < 1 or (most is not None and k > most):
        told = f"from 1 to {most}" if most is not None else "of 1 or more"
        raise UserError(f"must be a whole number {told}, not {k}", where)


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
        check_compression(self.compression)
        for name, kind in get_type_hints(RefragConfig).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise UserError(f"{getattr(self, name)!r} is not one of {', '.join(get_args(kind))}", name)
        if self.gate_dim < 1:
            raise UserError(f"must be at least 1, not {self.gate_dim}", "gate_dim")
        if set(self.training_model) - set("ped") or len(set(self.training_model)) != len(self.training_model):
            raise UserError(
                f"{self.training_model!r} is not made of p, e and d", "training_model", "For example: training_model=pe"
            )
