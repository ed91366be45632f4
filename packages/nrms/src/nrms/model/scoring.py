"""Scores of a whole log: every article encoded once, every distinct history once, then dot products."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nrms.data.log import ClickLog, Ragged
from nrms.data.types import TokenTable
from nrms.model.nrms import NRMS

_PAIRS = 2**15  # user and candidate vectors multiplied at a time


@torch.inference_mode()
def encode_catalogue(
    model: NRMS, titles: TokenTable, rows: NDArray[np.int64] | None = None, batch_size: int = 512
) -> Tensor:
    """News vectors of a catalogue, (N + 1, D) float32; row 0 is zeros.

    Args:
        model: in evaluation mode.
        titles: the catalogue.
        rows: which to encode; the others stay zeros. None for all.
        batch_size: articles at a time.
    """
    rows = np.arange(1, len(titles.tokens)) if rows is None else rows[rows > 0]
    vectors = torch.zeros(len(titles.tokens), model.config.dim, device=model.device)
    counts = titles.lengths.reshape(len(titles.lengths), -1).sum(1)
    order = rows[np.argsort(counts[rows], kind="stable")]  # equal lengths together: large dense blocks
    for at in range(0, len(order), batch_size):
        part = order[at : at + batch_size]
        tokens, lengths = _tokens_of(titles, part)
        vectors[part] = model.encode_news(tokens.to(model.device), lengths.to(model.device)).float()
    return vectors


def _tokens_of(titles: TokenTable, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    tokens, lengths = titles.tokens[rows], titles.lengths[rows]
    if lengths.ndim == 1 and len(rows):
        tokens = tokens[:, : max(1, int(lengths.max()))]
    return torch.from_numpy(np.ascontiguousarray(tokens)), torch.from_numpy(np.ascontiguousarray(lengths))


@torch.inference_mode()
def encode_histories(model: NRMS, vectors: Tensor, histories: Ragged, batch_size: int = 256) -> Tensor:
    """User vectors of histories, (U, D) float32, from news vectors (N + 1, D)."""
    users = torch.zeros(len(histories), model.config.dim, device=vectors.device)
    lengths = histories.lengths
    order = np.argsort(lengths, kind="stable")
    for at in range(0, len(order), batch_size):
        part = order[at : at + batch_size]
        mask = np.arange(max(1, lengths[part[-1]])) < lengths[part, None]
        rows = np.zeros(mask.shape, np.int64)
        rows[mask] = histories.take(part).values
        read = vectors[torch.from_numpy(rows).to(vectors.device)]
        users[part] = model.encode_user(read, torch.from_numpy(mask).to(vectors.device)).float()
    return users


@torch.inference_mode()
def score_log(model: NRMS, log: ClickLog) -> NDArray[np.float32]:
    """The score of every candidate of a log, impression after impression, (M,); 0 for unknown articles."""
    was_training = model.training
    model.eval()
    try:
        used, histories = np.unique(log.history_of, return_inverse=True)
        read = log.histories.take(used.astype(np.int64))
        rows = np.unique(np.concatenate([read.values, log.candidates.values])).astype(np.int64)
        vectors = encode_catalogue(model, log.titles, rows)
        users = encode_histories(model, vectors, read)
        return dot_products(users, vectors, histories, log.candidates)
    finally:
        model.train(was_training)


def dot_products(users: Tensor, vectors: Tensor, user_of: NDArray[np.int64], candidates: Ragged) -> NDArray[np.float32]:
    """Scores (M,) of ragged candidates, rows of ``vectors`` (N + 1, D), for the user of each row, (U, D)."""
    scores = np.empty(len(candidates.values), np.float32)
    owner = np.repeat(user_of, candidates.lengths)
    for at in range(0, len(scores), _PAIRS):
        part = slice(at, at + _PAIRS)
        user, row = (torch.from_numpy(a[part].astype(np.int64)).to(vectors.device) for a in (owner, candidates.values))
        scores[part] = torch.einsum("nd,nd->n", users[user], vectors[row]).cpu().numpy()
    return scores
