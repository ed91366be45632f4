"""From a vector to words: the set of the article's sentences that stands best for the refined state."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsr_net.data.types import Batch

CANDIDATES = 8  # sentences that may enter a set: their subsets are tried one and all
SENTENCE_SIGNS = 17
SET_SIGNS = 12
_SAME = 1e-5  # squared distance of two directions: above rounding, below any change of a word


class SentenceSelector(nn.Module):
    """Scores sentences, then every small set of the best ones; the best set wins.

    Both scores are small networks of a few numbers, all of them measured against the refined state y or the refiner's
    last read: how near a sentence, or the sum of a set, is to y; how much it was read; where it stands; how long it is;
    how much of it is said twice. They are fitted to ROUGE on training articles (``training.selector``). Before that the
    set whose sum is nearest to y wins.

    Args:
        hidden_dim: width of both networks.
    """

    sentence_mean: Tensor
    sentence_std: Tensor
    set_mean: Tensor
    set_std: Tensor
    fitted: Tensor

    def __init__(self, hidden_dim: int = 24) -> None:
        super().__init__()
        self.register_buffer("sentence_mean", torch.zeros(SENTENCE_SIGNS))
        self.register_buffer("sentence_std", torch.ones(SENTENCE_SIGNS))
        self.register_buffer("set_mean", torch.zeros(SET_SIGNS))
        self.register_buffer("set_std", torch.ones(SET_SIGNS))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self.sentence = nn.Sequential(nn.Linear(SENTENCE_SIGNS, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, 1))
        self.set = nn.Sequential(nn.Linear(SET_SIGNS + 2, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, 1))

    def score_sentences(self, signs: Tensor, mask: Tensor) -> Tensor:
        """A score of each sentence, (B, S), from its signs (B, S, SENTENCE_SIGNS); -inf where there is none."""
        scores: Tensor = self.sentence((signs - self.sentence_mean) / self.sentence_std).squeeze(-1)
        return scores.masked_fill(~mask, float("-inf"))

    def score_sets(self, signs: Tensor, sentence_scores: Tensor, members: Tensor) -> Tensor:
        """A score of each set, (B, C).

        Args:
            signs: of the sets, (B, C, SET_SIGNS).
            sentence_scores: of the candidate sentences, (B, M).
            members: which candidates are in a set, (C, M) bool.
        """
        inside = members.to(signs.dtype)
        total = sentence_scores @ inside.T  # (B, C)
        pooled = torch.stack([total, total / inside.sum(-1)], dim=-1)
        found: Tensor = self.set(torch.cat([(signs - self.set_mean) / self.set_std, pooled], dim=-1)).squeeze(-1)
        return found

    @torch.no_grad()
    def choose(
        self, batch: Batch, y: Tensor, y0: Tensor, read: Tensor, words: Tensor, max_sentences: int = 3
    ) -> list[tuple[int, ...]]:
        """The sentences that stand for each article, in the article's order.

        Args:
            batch: B articles.
            y: refined states, (B, D).
            y0: where their refinement started, (B, D).
            read: weights of each article's last read, (B, S).
            words: words of each sentence, (B, S).
            max_sentences: at most so many, from 1 to 8.

        Raises:
            ValueError: if ``max_sentences`` is out of range.
        """
        if not 1 <= max_sentences <= CANDIDATES:
            raise ValueError(f"max_sentences={max_sentences} is not between 1 and {CANDIDATES}")
        signs = sentence_signs(batch, y, y0, read, words)
        allowed = batch.mask & ~repeats(batch)
        fitted = bool(self.fitted)
        scores = self.score_sentences(signs, allowed) if fitted else signs[..., 0].masked_fill(~allowed, float("-inf"))
        best = best_sentences(scores)  # (B, M)
        sets = candidate_sets(best.shape[1], max_sentences).to(y.device)  # (C, M)
        about = set_signs(batch, y, words, best, sets)
        values = self.score_sets(about, finite(scores.gather(1, best)), sets) if fitted else about[..., 0]
        real = allowed.gather(1, best)  # (B, M): short articles have fewer candidates
        impossible = (sets[None] & ~real[:, None]).any(-1)  # (B, C)
        winner = values.masked_fill(impossible, float("-inf")).argmax(-1)  # (B,)
        return [tuple(sorted(best[row][sets[k]].tolist())) for row, k in enumerate(winner.tolist())]


def finite(scores: Tensor) -> Tensor:
    """Scores with zero for the sentences that are not there."""
    return scores.masked_fill(scores == float("-inf"), 0.0)


def best_sentences(scores: Tensor) -> Tensor:
    """The candidates of each article, (B, M), in the article's order; M is at most ``CANDIDATES``."""
    return scores.topk(min(CANDIDATES, scores.shape[1]), dim=-1).indices.sort(-1).values


def candidate_sets(count: int, largest: int) -> Tensor:
    """Every set of 1 to ``largest`` out of ``count`` candidates, (C, count) bool, small sets first."""
    sets = [c for size in range(1, min(largest, count) + 1) for c in combinations(range(count), size)]
    members = torch.zeros(len(sets), count, dtype=torch.bool)
    for row, chosen in enumerate(sets):
        members[row, list(chosen)] = True
    return members


def repeats(batch: Batch) -> Tensor:
    """Sentences that say what an earlier one of their article says, word for word or nearly so, (B, S) bool."""
    unit = F.normalize(batch.sentences, dim=-1)  # (B, S, D); a sentence without known words stays zero
    sizes = (unit**2).sum(-1)  # (B, S)
    apart = sizes[:, :, None] + sizes[:, None] - 2 * (unit @ unit.mT)  # (B, S, S), squared distances
    same: Tensor = (apart < _SAME).tril(-1).any(-1)
    return same


def sentence_signs(batch: Batch, y: Tensor, y0: Tensor, read: Tensor, words: Tensor) -> Tensor:
    """What a sentence's score is made of, (B, S, SENTENCE_SIGNS); see ``SentenceSelector.choose`` for the arguments."""
    sentences, mask = batch.sentences, batch.mask
    count = mask.sum(1, keepdim=True)  # (B, 1)
    mean = (sentences * mask[..., None]).sum(1) / count
    around = torch.stack([y, y0, batch.doc, batch.lead, mean], dim=-1)  # (B, D, 5)
    unit = F.normalize(sentences, dim=-1)
    near = unit @ F.normalize(around, dim=1)  # (B, S, 5)
    to_y = near[..., 0].masked_fill(~mask, -1.0)
    similar = (unit @ unit.mT).masked_fill(~mask[:, None], 0.0)  # (B, S, S)
    similar = similar * (1 - torch.eye(similar.shape[1], device=y.device))
    place = torch.arange(mask.shape[1], device=y.device).expand(mask.shape)  # (B, S)
    rank = to_y.argsort(-1, descending=True).argsort(-1)
    log_words = torch.log1p(words)
    more = [
        to_y.amax(1, keepdim=True) - to_y,
        rank.clamp_max(10),
        torch.log(read * count + 1e-3),
        torch.log1p(place),
        1 / (1 + place),
        place / count,
        place == 0,
        torch.log(count).expand(mask.shape),
        log_words,
        log_words**2,
        similar.amax(-1),
        similar.sum(-1) / count,
    ]
    signs = torch.cat([near, torch.stack([sign.to(y.dtype) for sign in more], dim=-1)], dim=-1)
    return signs * mask[..., None]


def set_signs(batch: Batch, y: Tensor, words: Tensor, best: Tensor, sets: Tensor) -> Tensor:
    """What a set's score is made of, (B, C, SET_SIGNS).

    Args:
        batch: B articles.
        y: refined states, (B, D).
        words: words of each sentence, (B, S).
        best: the candidates' places in their articles, rising, (B, M).
        sets: which candidates are in a set, (C, M) bool.
    """
    inside = sets.to(y.dtype)  # (C, M)
    size = inside.sum(-1)  # (C,)
    vectors = batch.sentences.gather(1, best[..., None].expand(-1, -1, y.shape[-1]))  # (B, M, D)
    length = words.gather(1, best).to(y.dtype)  # (B, M)
    direction = F.normalize(y, dim=-1)
    sums = inside @ vectors  # (B, C, D)
    close = (F.normalize(sums, dim=-1) @ direction[..., None]).squeeze(-1)  # (B, C)
    unit = F.normalize(vectors, dim=-1)
    own = (unit @ direction[..., None]).squeeze(-1)  # (B, M)
    gram = unit @ unit.mT  # (B, M, M)
    pair = inside[:, :, None] * inside[:, None, :] * (1 - torch.eye(inside.shape[1], device=y.device))  # (C, M, M)
    repeated = (gram[:, None] * pair).flatten(2)  # (B, C, M * M)
    place = best.to(y.dtype)  # (B, M)
    first = torch.where(sets, place[:, None], torch.inf).amin(-1)  # (B, C)
    last = torch.where(sets, place[:, None], -torch.inf).amax(-1)
    total = length @ inside.T  # (B, C)
    spread = size.expand_as(total)
    return torch.stack(
        [
            close,
            own @ inside.T / size,
            torch.where(sets, own[:, None], torch.inf).amin(-1),
            spread,
            (spread == 1).to(y.dtype),
            torch.log1p(total),
            total / 50,
            repeated.amax(-1),
            torch.log1p(first),
            torch.log1p(last),
            torch.log1p(place) @ inside.T / size,
            torch.log(batch.mask.sum(1, keepdim=True).to(y.dtype)).expand_as(total),
        ],
        dim=-1,
    )
