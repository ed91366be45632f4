"""How sure the refiner is: a logistic model of a few numbers that describe a refinement."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsr_net.data.types import Batch

SIGNS = 8
_NEAREST = 6  # sentences


class QualityHead(nn.Module):
    """The probability that a prediction is nearer to the true summary than the typical one is.

    The weights are buffers, not parameters: they are fitted after training and scaled on articles that the training has
    not seen (``training.calibration``). Before that every probability is one half.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(SIGNS))
        self.register_buffer("std", torch.ones(SIGNS))
        self.register_buffer("weight", torch.zeros(SIGNS))
        self.register_buffer("bias", torch.zeros(()))

    def forward(self, batch: Batch, y: Tensor, center: Tensor, attention: Tensor) -> Tensor:
        """The probability of each article, (B,).

        Args:
            batch: B articles.
            y: their predictions, (B, D).
            center: mean of the training targets, (D,).
            attention: reading weights of each step, (K, B, S).
        """
        signs = (quality_signs(batch, y, center, attention) - self.mean) / self.std
        return torch.sigmoid(signs @ self.weight + self.bias)


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
