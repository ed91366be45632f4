"""Fitting the sentence selector to ROUGE on training articles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rsr_net.data.types import ArticleVectors, Batch, Example
from rsr_net.model.refiner import Refiner
from rsr_net.model.selection import (
    SentenceSelector,
    best_sentences,
    candidate_sets,
    finite,
    repeats,
    sentence_signs,
    set_signs,
)

if TYPE_CHECKING:
    from latentlab_shared.metrics.summarization import RougeScorer

ROUGE = ("rouge1", "rouge2", "rougeLsum")
_SCALE = 100.0  # ROUGE differs by hundredths; Adam does not care, its epsilon does


@dataclass(frozen=True)
class _Articles:
    """Articles of about one length, refined.

    Attributes:
        batch: B articles.
        y: refined states, (B, D).
        words: of each sentence, (B, S).
        signs: of each sentence, (B, S, SENTENCE_SIGNS).
        value: ROUGE of each sentence alone, (B, S).
        examples: their texts.
    """

    batch: Batch
    y: Tensor
    words: Tensor
    signs: Tensor
    value: Tensor
    examples: list[Example]


@dataclass(frozen=True)
class _Sets:
    """The candidate sets of some articles.

    Attributes:
        scores: of the candidate sentences, (B, M).
        signs: of each set, (B, C, SET_SIGNS).
        value: ROUGE of each set, (B, C).
        possible: whether it holds real sentences only, (B, C).
        members: which candidates are in a set, (C, M).
    """

    scores: Tensor
    signs: Tensor
    value: Tensor
    possible: Tensor
    members: Tensor


def fit_selector(
    model: Refiner,
    articles: Sequence[ArticleVectors],
    examples: Sequence[Example],
    *,
    starts: Tensor | None = None,
    max_sentences: int = 3,
    limit: int = 2000,
    epochs: int = 40,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> None:
    """Fit ``model.selector`` in place, by least squares.

    A sentence's score is fitted to the ROUGE it has alone; a set's score to how much better its ROUGE is than the mean
    of its article's sets.

    Args:
        model: a trained refiner, on the CPU.
        articles: N training articles.
        examples: their texts, with highlights, in the same order.
        starts: starts that have not seen the articles' targets (``ridge.CrossFit``), (N, D); None takes the model's.
        max_sentences: the largest set.
        limit: articles used, those with the most sentences: in short ones there is little to choose.
        epochs: of each of the two scores.
        batch_size: articles per update.
        learning_rate: AdamW's, falling to zero.
        seed: of the weights and the order.

    Raises:
        ValueError: if articles and examples differ in number.
    """
    from latentlab_shared.metrics.summarization import RougeScorer

    if len(articles) != len(examples):
        raise ValueError(f"{len(articles)} articles and {len(examples)} examples")
    scorer = RougeScorer(ROUGE, split=str.splitlines)
    order = np.argsort([len(example.sentences) for example in examples], kind="stable")[-limit:]
    groups = []
    for at in range(0, len(order), batch_size):
        rows = order[at : at + batch_size]
        own = None if starts is None else starts[torch.from_numpy(rows)]
        groups.append(_refine(model, [articles[i] for i in rows], [examples[i] for i in rows], own, scorer))
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        selector = SentenceSelector()
        selector.sentence_mean, selector.sentence_std = _scale(torch.cat([g.signs[g.batch.mask] for g in groups]))
        optimiser = torch.optim.AdamW(selector.sentence.parameters(), lr=learning_rate, weight_decay=0.1)
        for rate, i in _schedule(epochs, len(groups), learning_rate, rng):
            _update(optimiser, rate, _sentence_loss(selector, groups[i]))
        sets = [_sets(selector, group, max_sentences, scorer) for group in groups]
        selector.set_mean, selector.set_std = _scale(torch.cat([one.signs[one.possible] for one in sets]))
        optimiser = torch.optim.AdamW(selector.set.parameters(), lr=learning_rate, weight_decay=0.1)
        for rate, i in _schedule(epochs, len(sets), learning_rate, rng):
            _update(optimiser, rate, _set_loss(selector, sets[i]))
    selector.fitted.fill_(True)
    model.selector.load_state_dict(selector.state_dict())


def _scale(signs: Tensor) -> tuple[Tensor, Tensor]:
    return signs.mean(0), signs.std(0, unbiased=False).clamp_min(1e-3)


def _schedule(epochs: int, count: int, rate: float, rng: np.random.Generator) -> Iterator[tuple[float, int]]:
    """The learning rate and the group of each update."""
    for epoch in range(epochs):
        for i in rng.permutation(count):
            yield rate * (1 - epoch / epochs), int(i)


def _rouge(scorer: RougeScorer, example: Example, chosen: Sequence[int]) -> float:
    """The mean of ROUGE-1, -2 and -Lsum (F1) of some sentences."""
    scores = scorer.score("\n".join(example.sentences[i] for i in chosen), "\n".join(example.highlights))
    return sum(score.f1 for score in scores.values()) / len(scores)


def word_counts(examples: Sequence[Example], longest: int) -> Tensor:
    """Words of each sentence, (B, S), zero where there is none."""
    counts = torch.zeros(len(examples), longest)
    for row, example in enumerate(examples):
        counts[row, : len(example.sentences)] = torch.tensor([float(len(s.split())) for s in example.sentences])
    return counts


@torch.no_grad()
def _refine(
    model: Refiner, articles: list[ArticleVectors], examples: list[Example], y0: Tensor | None, scorer: RougeScorer
) -> _Articles:
    batch = Batch.collate(articles)
    found = model(batch, start=y0)
    words = word_counts(examples, batch.mask.shape[1])
    signs = sentence_signs(batch, found.y, found.trajectory[0], found.attention[-1], words)
    value = torch.zeros(batch.mask.shape)
    for row, example in enumerate(examples):
        for i in range(len(example.sentences)):
            value[row, i] = _rouge(scorer, example, [i])
    return _Articles(batch, found.y, words, signs, value, examples)


@torch.no_grad()
def _sets(selector: SentenceSelector, group: _Articles, max_sentences: int, scorer: RougeScorer) -> _Sets:
    allowed = group.batch.mask & ~repeats(group.batch)  # (B, S)
    scores = selector.score_sentences(group.signs, allowed)
    best = best_sentences(scores)  # (B, M)
    members = candidate_sets(best.shape[1], max_sentences)  # (C, M)
    possible = ~(members[None] & ~allowed.gather(1, best)[:, None]).any(-1)  # (B, C)
    value = torch.zeros(possible.shape)
    for row, k in possible.nonzero().tolist():
        value[row, k] = _rouge(scorer, group.examples[row], best[row][members[k]].tolist())
    signs = set_signs(group.batch, group.y, group.words, best, members)
    return _Sets(finite(scores.gather(1, best)), signs, value, possible, members)


def _sentence_loss(selector: SentenceSelector, group: _Articles) -> Tensor:
    mask = group.batch.mask
    scores = finite(selector.score_sentences(group.signs, mask))
    return _SCALE * ((scores - group.value)[mask] ** 2).mean()


def _set_loss(selector: SentenceSelector, sets: _Sets) -> Tensor:
    """Squared error of the differences within each article: only they decide which set wins."""
    scores = selector.score_sets(sets.signs, sets.scores, sets.members)
    possible = sets.possible.to(scores.dtype)  # (B, C)
    off = (scores - sets.value) * possible
    off = (off - off.sum(1, keepdim=True) / possible.sum(1, keepdim=True)) * possible
    return _SCALE * (off**2).sum() / possible.sum()


def _update(optimiser: torch.optim.Optimizer, rate: float, loss: Tensor) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    optimiser.step()
