"""What a model has to beat: popularity, recency, chance, and the mean of the titles' word vectors.

Each gives the scores of all candidates of a log, impression after impression, (M,).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nrms.data.log import ClickLog
from nrms.data.types import TokenTable
from nrms.model.modules.encoder import NewsEncoder
from nrms.model.nrms import NRMS
from nrms.model.scoring import dot_products
from nrms.model.transformer import TransformerNewsEncoder

Scores = NDArray[np.float64]


def popularity(train: ClickLog, log: ClickLog) -> Scores:
    """Clicks of the training part on the article; 0 for one that is new."""
    rows = train.candidates.values[train.known_labels() == 1]
    clicks = np.bincount(rows, minlength=len(train.articles))
    clicks[0] = 0
    row_of = train.titles.row_of
    by_row = np.array([clicks[row_of.get(name, 0)] for name in log.articles], np.float64)
    return np.asarray(by_row[log.candidates.values])


def recency(train: ClickLog, log: ClickLog) -> Scores:
    """When the article was first shown to anyone, in either part: the newest first. It is never later than now."""
    first: dict[str, int] = {}
    for part in (train, log):
        when = np.full(len(part.articles), np.iinfo(np.int64).max)
        np.minimum.at(when, part.candidates.values, np.repeat(part.times, part.candidates.lengths))
        for name, time in zip(part.articles, when.tolist(), strict=True):
            first[name] = min(time, first.get(name, time))
    by_row = np.array([first[name] for name in log.articles], np.float64)
    return np.asarray(by_row[log.candidates.values])


def chance(log: ClickLog, seed: int = 0) -> Scores:
    """Random scores."""
    return np.random.default_rng(seed).random(len(log.candidates.values))


def mean_of_titles(vectors: Tensor, log: ClickLog) -> Scores:
    """Cosine of the mean title vector of the history and the candidate's; 0 where either has no word.

    Args:
        vectors: of the log's titles, of length one, (N + 1, W), row 0 zeros; see `title_vectors`.
        log: whose candidates to score.
    """
    used, user_of = np.unique(log.history_of, return_inverse=True)
    histories = log.histories.take(used.astype(np.int64))
    sums = torch.zeros(len(histories), vectors.shape[1])
    owner = torch.from_numpy(np.repeat(np.arange(len(histories)), histories.lengths))
    # A block at a time: all histories' vectors together would be gigabytes for MIND-large.
    for at in range(0, len(owner), 2**17):
        rows = torch.from_numpy(histories.values[at : at + 2**17].astype(np.int64))
        sums.index_add_(0, owner[at : at + 2**17], vectors[rows])
    return dot_products(F.normalize(sums, dim=1), vectors, user_of, log.candidates).astype(np.float64)


@torch.inference_mode()
def title_vectors(model: NRMS, titles: TokenTable) -> Tensor:
    """What the news encoder starts from, averaged over each title: word vectors, or a transformer's last layer.

    Returns:
        (N + 1, W) float32 of length one; zeros without a word.
    """
    counts = titles.lengths if titles.lengths.ndim == 1 else titles.lengths[:, 0]
    encoder, parts = model.news_encoder, []
    for at in range(0, len(titles.tokens), 1024):
        length = torch.from_numpy(np.ascontiguousarray(counts[at : at + 1024])).to(model.device)
        width = max(1, min(model.config.title_length, int(length.max())))
        tokens = torch.from_numpy(np.ascontiguousarray(titles.tokens[at : at + 1024, :width])).to(model.device)
        if isinstance(encoder, TransformerNewsEncoder):
            vectors = encoder.features(tokens, length)
        else:
            assert isinstance(encoder, NewsEncoder)
            words = encoder.embedding(tokens)
            vectors = (words * (torch.arange(width, device=model.device) < length[:, None])[..., None]).sum(1)
        parts.append(F.normalize(vectors.float(), dim=1).cpu())
    return torch.cat(parts)
