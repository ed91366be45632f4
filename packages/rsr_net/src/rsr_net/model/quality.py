"""How sure the refiner is: a logistic model of a few numbers that describe a refinement."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsr_net.data.types import Batch

SIGNS = 8


class QualityHead(nn.Module):
    """The probability that a prediction is nearer to the true summary than the typical one is.

    The weights are buffers, not parameters: they are fitted after training, on articles that the training has not
    seen (``training.calibration``). Before that every probability is one half.
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

    def forward(self, batch: Batch, y: Tensor, y0: Tensor, attention: Tensor) -> Tensor:
        """The probability of each article, (B,).

        Args:
            batch: B articles.
            y: their predictions, (B, D).
            y0: where their refinement started, (B, D).
            attention: reading weights of each step, (K, B, S).
        """
        signs = (quality_signs(batch, y, y0, attention) - self.mean) / self.std
        return torch.sigmoid(signs @ self.weight + self.bias)


def quality_signs(batch: Batch, y: Tensor, y0: Tensor, attention: Tensor) -> Tensor:
    """What the confidence is read from, (B, SIGNS).

    Length of the prediction; its cosines with the document, the lead and the start; its best and second-best cosine
    with a sentence; how spread the last read is (1: evenly over all sentences); the number of sentences.
    """
    count = batch.mask.sum(1).to(y.dtype)  # (B,)
    near = (batch.sentences @ F.normalize(y, dim=-1)[..., None]).squeeze(-1)  # (B, S)
    near = F.pad(near.masked_fill(~batch.mask, -1.0), (0, 1), value=-1.0)  # an article may have one sentence only
    best = near.topk(2, dim=-1).values  # (B, 2)
    if len(attention):
        # The last step a row took part in: halted rows have zero weights afterwards.
        last = attention.gather(
            0, (attention.sum(-1) > 0).sum(0).sub(1).clamp_min(0)[None, :, None].expand(1, *attention.shape[1:])
        )[0]
        spread = torch.special.entr(last).sum(-1) / torch.log(count + 1)
    else:
        spread = torch.ones_like(count)
    return torch.stack(
        [
            y.norm(dim=-1),
            F.cosine_similarity(y, batch.doc, dim=-1),
            F.cosine_similarity(y, batch.lead, dim=-1),
            F.cosine_similarity(y, y0, dim=-1),
            best[:, 0],
            best[:, 1].clamp_min(0),
            spread,
            torch.log(count),
        ],
        dim=-1,
    )
