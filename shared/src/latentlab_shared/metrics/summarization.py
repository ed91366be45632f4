"""ROUGE equal to the rouge-score package, several times faster, and the greedy extractive oracle.

Tokens and stems are computed once per text; the longest common subsequences are bit-parallel. What the figures mean
depends on stemming and sentence splitting, so print `RougeScorer.signature` beside every figure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentlab_shared.errors import NeedsExtra
from latentlab_shared.text import split_sentences

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_SEPARATORS = re.compile(r"[^a-z0-9]+")
_Tokens = tuple[str, ...]


class Rouge(NamedTuple):
    """One ROUGE score, each part from 0 to 1."""

    precision: float
    recall: float
    f1: float


class RougeScorer:
    """ROUGE-N, ROUGE-L and ROUGE-Lsum with the numbers of rouge-score 0.1.2.

    Args:
        metrics: any of rouge1 to rouge9, rougeL (the text as one sequence) and rougeLsum (union of the sentences').
        stem: Porter-stem words of more than three letters, as published summarisation results do.
        split: how to cut texts into sentences for rougeLsum; ``str.splitlines`` where lines are sentences already.

    Raises:
        ValueError: an unknown metric.
        NeedsExtra: ``stem`` without the ``rouge`` extra.

    Source: Lin 2004; the tokens, the clipping of the union and the choice among equally long subsequences are those of
    google-research's rouge-score, with its sentences joined by newlines.
    """

    _CACHED_TEXTS = 20_000

    def __init__(
        self,
        metrics: Sequence[str] = METRICS,
        *,
        stem: bool = True,
        split: Callable[[str], list[str]] = split_sentences,
    ) -> None:
        for metric in metrics:
            if not re.fullmatch("rouge([1-9]|L|Lsum)", metric):
                raise ValueError(f"{metric!r} is not one of rouge1 to rouge9, rougeL, rougeLsum")
        self.metrics, self.stem, self._split = tuple(metrics), stem, split
        self._stem: Callable[[str], str] = lru_cache(maxsize=None)(_porter()) if stem else str
        # Per scorer, so that its memory goes with it.
        self._sentences = lru_cache(self._CACHED_TEXTS)(self._cut)
        self._tokens = lru_cache(self._CACHED_TEXTS)(self._tokenise)
        self._ngrams = lru_cache(self._CACHED_TEXTS)(self._count)

    @property
    def signature(self) -> str:
        """What the figures depend on, to be printed beside them."""
        how = "newline" if self._split is str.splitlines else f"{self._split.__module__}.{self._split.__qualname__}"
        return f"{'+'.join(self.metrics)}|F1|porter:{'yes' if self.stem else 'no'}|sentences:{how}|as:rouge-score-0.1.2"

    def score(self, prediction: str, reference: str | Sequence[str]) -> dict[str, Rouge]:
        """Scores of one text; of several references the one with the best F1 counts, for each metric by itself.

        Raises:
            ValueError: an empty list of references.
        """
        if isinstance(reference, str):
            return {metric: self._one(metric, prediction, reference) for metric in self.metrics}
        if not reference:
            raise ValueError("a text needs at least one reference")
        return {
            metric: max((self._one(metric, prediction, r) for r in reference), key=lambda score: score.f1)
            for metric in self.metrics
        }

    def f1(
        self, predictions: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]
    ) -> dict[str, NDArray[np.float64]]:
        """F1 of each pair, (N,) per metric, from 0 to 1: what a bootstrap needs; their mean is the corpus score."""
        scores = [self.score(p, r) for p, r in zip(predictions, references, strict=True)]
        return {metric: np.array([score[metric].f1 for score in scores]) for metric in self.metrics}

    def _one(self, metric: str, prediction: str, reference: str) -> Rouge:
        if metric == "rougeLsum":
            return _summary_rouge(self._sentences(reference), self._sentences(prediction))
        if metric == "rougeL":
            a, b = self._tokens(reference), self._tokens(prediction)
            return _rouge(lcs_length(a, b), len(a), len(b)) if a and b else _rouge(0, 0, 0)
        n = int(metric[5:])
        wanted, found = self._ngrams(reference, n), self._ngrams(prediction, n)
        return _rouge((wanted & found).total(), wanted.total(), found.total())

    def _cut(self, text: str) -> tuple[_Tokens, ...]:
        return tuple(self._tokens(sentence) for sentence in self._split(text) if sentence)

    def _count(self, text: str, n: int) -> Counter[_Tokens]:
        return _count_ngrams(self._tokens(text), n)

    def _tokenise(self, text: str) -> _Tokens:
        tokens = _SEPARATORS.sub(" ", text.lower()).split()
        if not self.stem:
            return tuple(tokens)
        return tuple(filter(None, (self._stem(token) if len(token) > 3 else token for token in tokens)))


def greedy_oracle(sentences: Sequence[str], reference: str, k: int, *, scorer: RougeScorer | None = None) -> list[int]:
    """The extractive oracle: sentences added one by one while the mean of ROUGE-1 and ROUGE-2 F1 grows.

    Bigrams do not reach over sentence ends. Among equals the earlier sentence wins.

    Args:
        sentences: the document's sentences.
        reference: the human summary.
        k: most sentences to take.
        scorer: whose tokens and stems to use; by default a new one with stemming.

    Returns:
        Indices in document order; fewer than ``k`` if no other sentence helps.

    Source: Nallapati, Zhai, Zhou 2017 (SummaRuNNer), section 2.2; the usual labels of extractive summarisers.
    """
    scorer = scorer or RougeScorer(("rouge1", "rouge2"))
    wanted = [_union((scorer._tokens(s) for s in split_sentences(reference)), n) for n in (1, 2)]
    owned = [[_count_ngrams(scorer._tokens(s), n) for n in (1, 2)] for s in sentences]
    chosen: list[int] = []
    taken, best = [Counter[_Tokens](), Counter[_Tokens]()], 0.0
    while len(chosen) < k:
        gains = [
            (sum(_overlap_f1(w, t, o) for w, t, o in zip(wanted, taken, counts, strict=True)), -index)
            for index, counts in enumerate(owned)
            if index not in chosen
        ]
        score, index = max(gains, default=(0.0, 0))
        if score <= best + 1e-12:
            break
        best, chosen = score, [*chosen, -index]
        taken = [t + o for t, o in zip(taken, owned[-index], strict=True)]
    return sorted(chosen)


def _union(sentences: Iterable[_Tokens], n: int) -> Counter[_Tokens]:
    return sum((_count_ngrams(tokens, n) for tokens in sentences), Counter[_Tokens]())


def _overlap_f1(wanted: Counter[_Tokens], taken: Counter[_Tokens], added: Counter[_Tokens]) -> float:
    """F1 of the n-grams ``taken + added`` against ``wanted``."""
    hits = sum(min(count, taken[gram] + added[gram]) for gram, count in wanted.items())
    return _rouge(hits, wanted.total(), taken.total() + added.total()).f1


def _count_ngrams(tokens: _Tokens, n: int) -> Counter[_Tokens]:
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


def _rouge(hits: int, wanted: int, found: int) -> Rouge:
    precision, recall = hits / max(found, 1), hits / max(wanted, 1)
    return Rouge(precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0)


def _summary_rouge(reference: tuple[_Tokens, ...], prediction: tuple[_Tokens, ...]) -> Rouge:
    """ROUGE-Lsum: for each reference sentence the union of its subsequences with all sentences, tokens clipped."""
    left_r = Counter(token for sentence in reference for token in sentence)
    left_p = Counter(token for sentence in prediction for token in sentence)
    wanted, found, hits = left_r.total(), left_p.total(), 0
    masks = [_positions(sentence) for sentence in prediction]
    for sentence in reference:
        union: set[int] = set()
        for candidate, where in zip(prediction, masks, strict=True):
            union.update(_lcs_indices(sentence, candidate, where))
        for index in union:  # which of two equal tokens comes first makes no difference to the count
            token = sentence[index]
            if left_p[token] > 0 and left_r[token] > 0:
                hits += 1
                left_p[token] -= 1
                left_r[token] -= 1
    return _rouge(hits, wanted, found)


def _positions(tokens: _Tokens) -> dict[str, int]:
    """Where each token stands, as the bits of an integer."""
    where: dict[str, int] = {}
    for index, token in enumerate(tokens):
        where[token] = where.get(token, 0) | (1 << index)
    return where


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, 64 cells of the table per machine operation.

    Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    where, full = _positions(tuple(b)), (1 << len(b)) - 1
    row = full
    for token in a:
        matches = row & where.get(token, 0)
        if matches:
            row = ((row + matches) | (row - matches)) & full
    return len(b) - row.bit_count()


def _lcs_indices(a: _Tokens, b: _Tokens, where: dict[str, int]) -> list[int]:
    """Indices into ``a`` of one longest common subsequence, the one that rouge-score walks back to.

    Bit j of row i is 0 where the table grows from column j to j + 1, so the cell (i, j) is the zeros below bit j.
    """
    full = (1 << len(b)) - 1
    rows = [full]
    for token in a:
        row = rows[-1]
        matches = row & where.get(token, 0)
        rows.append(((row + matches) | (row - matches)) & full if matches else row)
    if rows[-1] == full:
        return []
    i, j, indices = len(a), len(b), []
    while i and j:
        if a[i - 1] == b[j - 1]:
            indices.append(i - 1)
            i, j = i - 1, j - 1
        elif rows[i] is rows[i - 1]:
            i -= 1
        else:
            below = (1 << j) - 1
            left = j - 1 - (rows[i] & (below >> 1)).bit_count()
            up = j - (rows[i - 1] & below).bit_count()
            i, j = (i, j - 1) if left > up else (i - 1, j)
    return indices


def _porter() -> Callable[[str], str]:
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError:
        raise NeedsExtra("rouge-score", "rouge") from None
    stemmer: Any = PorterStemmer()

    def stem(word: str) -> str:
        return str(stemmer.stem(word))

    return stem
