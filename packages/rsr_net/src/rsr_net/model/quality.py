"""How sure the refiner is: a logistic model of a few numbers that describe a refinement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsr_net.data.types import Batch

SIGNS = 8
_NEAREST = 6  # sentences
_SHARPNESS = 8.0  # of the kernel exp(8 cos); 4 to 64 were compared on validation articles


class QualityHead(nn.Module):
    """The probability that a prediction is nearer to the true summary than the typical one is.

    It looks at the signs of ``quality_signs``, and at how near to their summaries the predictions of M known articles
    came, those that resemble this prediction counting most.

    The weights are buffers, not parameters: they are fitted after training and scaled on articles that the training has
    not seen (``training.calibration``). Before that every probability is one half.

    Args:
        width: D, of the predictions.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    known: Tensor
    known_cosine: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(SIGNS + 1))
        self.register_buffer("std", torch.ones(SIGNS + 1))
        self.register_buffer("weight", torch.zeros(SIGNS + 1))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("known", torch.zeros(0, width))  # unit predictions, (M, D)
        self.register_buffer("known_cosine", torch.zeros(0))  # with their summaries, (M,)

    def forward(self, batch: Batch, y: Tensor, center: Tensor, attention: Tensor) -> Tensor:
        """The probability of each article, (B,).

        Args:
            batch: B articles.
            y: their predictions, (B, D).
            center: mean of the training targets, (D,).
            attention: reading weights of each step, (K, B, S).
        """
        signs = torch.cat([quality_signs(batch, y, center, attention), self.expected_cosine(y)[:, None]], -1)
        return torch.sigmoid((signs - self.mean) / self.std @ self.weight + self.bias)

    def expected_cosine(self, y: Tensor, own: Tensor | None = None) -> Tensor:
        """The cosine to expect between predictions (B, D) and their summaries, (B,): a kernel regression.

        Nadaraya and Watson (1964), with the kernel exp(8 cos). Zero while no article is known.

        Args:
            y: predictions.
            own: their own places among the known, (B,), which do not count.
        """
        if not len(self.known):
            return y.new_zeros(len(y))
        near = _SHARPNESS * F.normalize(y, dim=-1) @ self.known.T  # (B, M)
        if own is not None:
            near = near.scatter(1, own[:, None], float("-inf"))
        return near.softmax(-1) @ self.known_cosine

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments: Any) -> None:
        """Make room for as many known articles as the file holds."""
        for name in ("known", "known_cosine"):
            if (given := state_dict.get(prefix + name)) is not None:
                old: Tensor = getattr(self, name)
                setattr(self, name, old.new_zeros(len(given), *old.shape[1:]))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def quality_signs(batch: Batch, y: Tensor, center: Tensor, attention: Tensor) -> Tensor:
    """What the confidence is read from, (B, SIGNS).

    Length of the prediction, and its distance from the typical summary: a regression in doubt stays near the mean.
    Its cosines with the lead, with the nearest, the second and the mean of the six nearest sentences, and with what the
    last step read; the cosine of document and lead.
    """
    near = (F.normalize(batch.sentences, dim=-1) @ F.normalize(y, dim=-1)[..., None]).squeeze(-1)  # (B, S)
    near = near.masked_fill(~batch.mask, 0.0).clamp_min(0.0)
    nearest = F.pad(near, (0, _NEAREST)).topk(_NEAREST, dim=-1).values  # (B, 6); absent sentences count as 0
    if len(attention):
        # The last step a row took part in: halted rows have zero weights afterwards.
        last = (attention.sum(-1) > 0).sum(0).sub(1).clamp_min(0)  # (B,)
        weights = attention.gather(0, last[None, :, None].expand(1, *attention.shape[1:]))[0]  # (B, S)
        read = (weights[:, None] @ batch.sentences).squeeze(1)  # (B, D)
    else:
        read = batch.doc
    return torch.stack(
        [
            y.norm(dim=-1),
            (y - center).norm(dim=-1),
            F.cosine_similarity(y, batch.lead, dim=-1),
            nearest[:, 0],
            nearest[:, 1],
            nearest.mean(-1),
            F.cosine_similarity(y, read, dim=-1),
            F.cosine_similarity(batch.doc, batch.lead, dim=-1),
        ],
        dim=-1,
    )
