"""The seed's alignment training: the projected encoder tokens of a text should be to the decoder what its own are.

``DE`` are the decoder's embeddings of its tokens (B, N, D), ``RE`` the projected states of the encoder's (B, M, D).
Between two neighbouring anchors both cover the same text: their means should agree (MSE). At an anchor both have
covered the same prefix: what the decoder expects next should agree (KL). Two decoder forwards give that at all anchors.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentlab_shared.errors import UserError
from refrag.model.modeling_refrag import RefragModel
from refrag.model.tokenization_refrag import RefragTokenizer
from refrag.model.tokenizer.alignment import align
from refrag.training.settings import AlignmentWeights


@dataclass(frozen=True)
class AlignedExample:
    """A text for alignment training.

    Attributes:
        encoder_ids: M tokens, without marks.
        decoder_ids: N tokens.
        pairs: its anchors (i, j), from (0, 0).
    """

    encoder_ids: tuple[int, ...]
    decoder_ids: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class AlignmentBatch:
    """B texts side by side, padded on the right, and their C chunks between neighbouring anchors.

    Attributes:
        encoder_ids: with the encoder's marks, (B, M').
        encoder_mask: 1 for a token, (B, M').
        lead: marks before the first token of each row.
        decoder_ids: (B, N).
        decoder_mask: (B, N).
        row: text of each chunk, (C,).
        spans: i0, i1, j0, j1 of each chunk, (C, 4); i1 and j1 are anchors.
    """

    encoder_ids: Tensor
    encoder_mask: Tensor
    lead: int
    decoder_ids: Tensor
    decoder_mask: Tensor
    row: Tensor
    spans: Tensor


def make_example(text: str, tokenizer: RefragTokenizer, max_tokens: int) -> AlignedExample | None:
    """Align a text for training; None if no anchor is left behind its start.

    Args:
        text: any.
        tokenizer: both sides of it.
        max_tokens: a text is cut at the last anchor that leaves neither side with more.
    """
    found = align(text, tokenizer.encoder_tokenizer, tokenizer.decoder_tokenizer)
    pairs = tuple((i, j) for i, j in found.pairs if i <= max_tokens and j <= max_tokens)
    if len(pairs) < 2:
        return None
    i, j = pairs[-1]
    return AlignedExample(tuple(found.encoder.ids[:i]), tuple(found.decoder.ids[:j]), pairs)


def collate(examples: Sequence[AlignedExample], tokenizer: RefragTokenizer) -> AlignmentBatch:
    """A batch of examples."""
    rows, masks = tokenizer.pack([tokenizer.row(example.encoder_ids) for example in examples])
    longest = max(len(example.decoder_ids) for example in examples)
    ids = [[*e.decoder_ids, *[0] * (longest - len(e.decoder_ids))] for e in examples]
    present = [[1] * len(e.decoder_ids) + [0] * (longest - len(e.decoder_ids)) for e in examples]
    chunks = [
        (row, i0, i1, j0, j1)
        for row, example in enumerate(examples)
        for (i0, j0), (i1, j1) in zip(example.pairs, example.pairs[1:], strict=False)
    ]
    places = torch.tensor(chunks)
    lead = int(tokenizer.encoder_tokenizer.cls_token_id is not None)
    return AlignmentBatch(
        torch.tensor(rows),
        torch.tensor(masks),
        lead,
        torch.tensor(ids),
        torch.tensor(present),
        places[:, 0],
        places[:, 1:],
    )


class AlignmentBatches:
    """Texts aligned once; each step draws its own examples.

    Args:
        texts: of the corpus.
        tokenizer: both sides of it.
        batch_size: examples per step, over all processes.
        max_tokens: of an example, on either side.
        seed: of the draws.

    Raises:
        UserError: if no text has an anchor: the loss would be nothing, for ever.
    """

    def __init__(
        self, texts: Sequence[str], tokenizer: RefragTokenizer, batch_size: int, max_tokens: int, seed: int
    ) -> None:
        made = (make_example(text, tokenizer, max_tokens) for text in texts)
        self.examples = [example for example in made if example is not None]
        if not self.examples:
            raise UserError(f"none of {len(texts)} texts has an anchor", "data", "Give longer texts")
        self.tokenizer, self.batch_size, self.seed = tokenizer, batch_size, seed

    def batch(self, step: int, rank: int, world: int) -> AlignmentBatch:
        """Every ``world``-th example of a step, from ``rank`` on."""
        draw = random.Random(f"{self.seed} {step}")
        chosen = [self.examples[draw.randrange(len(self.examples))] for _ in range(self.batch_size)]
        return collate(chosen[rank::world], self.tokenizer)


class AlignmentObjective(nn.Module):
    """Losses of a batch, each the mean over texts of the mean over a text's chunks.

    Args:
        model: whose parts learn as its ``training_model`` says.
        weights: of the losses.

    Source: the seed, "Loss Computation".
    """

    def __init__(self, model: RefragModel, weights: AlignmentWeights = AlignmentWeights()) -> None:  # noqa: B008
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, batch: AlignmentBatch) -> dict[str, Tensor]:
        """``loss``, ``mse``, ``kld``, ``argmax`` and the number of ``anchors``."""
        model, device = self.model, self.model.device
        decoder_mask, row = batch.decoder_mask.to(device), batch.row.to(device)
        i0, i1, j0, j1 = batch.spans.to(device).unbind(1)
        states = model.encoder(
            input_ids=batch.encoder_ids.to(device), attention_mask=batch.encoder_mask.to(device)
        ).last_hidden_state
        re = model.project(states[:, batch.lead :])  # (B, M' - lead, D): marks at the end are never in a span
        de = model.decoder.get_input_embeddings()(batch.decoder_ids.to(device))  # (B, N, D)
        per_text = 1 / torch.bincount(row, minlength=len(de))[row].to(de.dtype)  # (C,)
        share = per_text / len(de)  # of each chunk in the mean over texts

        mse = ((_span_means(re, row, i0, i1) - _span_means(de, row, j0, j1)) ** 2).mean(-1)
        covered = (torch.arange(re.shape[1], device=device) < _ends(row, i1, len(de))[:, None]).long()
        with torch.no_grad():
            wanted = model.decoder(inputs_embeds=de, attention_mask=decoder_mask).logits[row, j1 - 1]  # (C, V)
            wanted = F.log_softmax(wanted.float(), dim=-1)
        given = model.decoder(inputs_embeds=re, attention_mask=covered).logits[row, i1 - 1]  # (C, V)
        given = F.log_softmax(given.float(), dim=-1)
        kld = (wanted.exp() * (wanted - given)).sum(-1)
        argmax = -given.gather(1, wanted.argmax(-1, keepdim=True)).squeeze(1)

        means = {"mse": (mse * share).sum(), "kld": (kld * share).sum(), "argmax": (argmax * share).sum()}
        weights = self.weights
        loss = weights.mse * means["mse"] + weights.kld * means["kld"] + weights.argmax * means["argmax"]
        return {"loss": loss, **means, "anchors": torch.tensor(float(len(row)))}


def _span_means(values: Tensor, row: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Mean of values (B, T, D) over each span of a row, (C, D)."""
    width = int((end - start).max())
    offsets = torch.arange(width, device=values.device)
    places = start[:, None] + offsets  # (C, W)
    inside = (places < end[:, None]).to(values.dtype)
    found = values[row[:, None], places.clamp_max(values.shape[1] - 1)]  # (C, W, D)
    return (found * inside[..., None]).sum(1) / inside.sum(1, keepdim=True)


def _ends(row: Tensor, end: Tensor, rows: int) -> Tensor:
    """The last anchor of each text, (B,)."""
    return torch.zeros(rows, dtype=end.dtype, device=end.device).scatter_reduce(0, row, end, "amax")
