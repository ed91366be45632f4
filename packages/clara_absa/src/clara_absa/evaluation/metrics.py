"""Figures of answers: the seed's metrics without libraries, groups of aspects, extraction, compression ratios."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from clara_absa.configs.schema import POLARITIES, Example


def evaluate_metrics_pure_python(labels: Sequence[str], predicted: Sequence[str | None]) -> dict[str, float]:
    """Accuracy and macro-F1 over the three polarities, without libraries, as the seed's notebook has it.

    Args:
        labels: the right polarities.
        predicted: the answers; None, for no answer, is wrong.

    Returns:
        ``accuracy``, ``macro_f1``, and ``f1_positive`` …; macro-F1 is the mean over the three, found or not.

    Raises:
        ValueError: if the two differ in length, or there are none.
    """
    if len(labels) != len(predicted) or not labels:
        raise ValueError(f"labels and answers must be lists of one length, not {len(labels)} and {len(predicted)}")
    right = sum(label == found for label, found in zip(labels, predicted, strict=True))
    result = {"accuracy": right / len(labels)}
    for polarity in POLARITIES:
        hits = sum(label == found == polarity for label, found in zip(labels, predicted, strict=True))
        total = sum(label == polarity for label in labels) + sum(found == polarity for found in predicted)
        result[f"f1_{polarity}"] = 2 * hits / total if total else 0.0
    result["macro_f1"] = sum(result[f"f1_{polarity}"] for polarity in POLARITIES) / len(POLARITIES)
    return result


@dataclass(frozen=True)
class Question:
    """One aspect of one sentence, as an item of an evaluation.

    Attributes:
        sentence: index of its sentence.
        term: the aspect.
        label: the right polarity.
    """

    sentence: int
    term: str
    label: str


def questions_of(examples: Sequence[Example]) -> list[Question]:
    """All aspects with a polarity, sentence by sentence."""
    return [Question(i, a.term, str(a.polarity)) for i, e in enumerate(examples) for a in e.aspects if a.polarity]


def groups_of(examples: Sequence[Example], train: Sequence[Example] | None) -> dict[str, list[int]]:
    """Questions (by index) in the groups of the report; a group may be empty.

    Groups are by how often the term stands in the training sentences, by the number of aspects of the sentence, and
    sentences that speak both well and ill.

    Args:
        examples: the sentences.
        train: the training sentences; None, where they are not known, leaves their groups out.
    """
    seen = Counter(aspect.term.lower() for example in train or () for aspect in example.aspects)
    bands = {
        "unseen term": (0, 0),
        "term seen 1-9": (1, 9),
        "term seen 10-99": (10, 99),
        "term seen 100+": (100, 10**9),
    }
    bands = bands if train is not None else {}
    sizes = {"2 aspects": (2, 2), "3 aspects": (3, 3), "4+ aspects": (4, 10**9)}
    groups: dict[str, list[int]] = {name: [] for name in ("pos and neg", *bands, *sizes)}
    for index, question in enumerate(questions_of(examples)):
        aspects = examples[question.sentence].aspects
        if {"positive", "negative"} <= {aspect.polarity for aspect in aspects}:
            groups["pos and neg"].append(index)
        for table, value in ((bands, seen[question.term.lower()]), (sizes, len(aspects))):
            for name, (low, high) in table.items():
                if low <= value <= high:
                    groups[name].append(index)
    return groups


def extraction_f1(
    found: Sequence[Iterable[tuple[int | None, int | None, str]]], examples: Sequence[Example]
) -> dict[str, float]:
    """Precision, recall and F1 of ``(start, end, polarity)`` over all sentences; spans must be exact.

    Args:
        found: of each sentence; what has no place in the text is never right.
        examples: the sentences.
    """
    hits = total_found = total = 0
    for answers, example in zip(found, examples, strict=True):
        given = {answer for answer in answers if answer[0] is not None}
        right = {(a.start, a.end, str(a.polarity)) for a in example.aspects}
        hits += len(given & right)
        total_found += len(list(answers)) if isinstance(answers, Sequence) else len(given)
        total += len(right)
    precision, recall = hits / max(1, total_found), hits / max(1, total)
    return {"precision": precision, "recall": recall, "f1": 2 * hits / max(1, total_found + total)}


def compression(tokens: Sequence[int], memory: Sequence[int], width: int, key_value_bytes: int) -> dict[str, float]:
    """What a memory saves, by several definitions, each sentence counted once.

    Args:
        tokens: text tokens of each sentence.
        memory: memory vectors of each sentence.
        width: d.
        key_value_bytes: bytes of the backbone's key-value cache for one token.

    Returns:
        ``ratio`` (all text tokens by all memory vectors), the smallest and the median sentence's ratio, the share of
        sentences that grow, and memory bytes in bfloat16 beside those of a key-value cache of the texts.
    """
    each = sorted(n / k for n, k in zip(tokens, memory, strict=True))
    return {
        "ratio": sum(tokens) / sum(memory),
        "ratio_min": each[0],
        "ratio_median": each[len(each) // 2],
        "share_below_1": sum(value < 1 for value in each) / len(each),
        "memory_bytes": 2 * width * sum(memory) / len(memory),
        "kv_cache_bytes": key_value_bytes * sum(tokens) / len(tokens),
    }


def term_recall(restored: Sequence[str], wanted: Sequence[Iterable[str]]) -> float:
    """Share of the wanted words or terms that stand in the restored texts, whatever their case."""
    hits = total = 0
    for text, terms in zip(restored, wanted, strict=True):
        low = text.lower()
        for term in terms:
            hits += term.lower() in low
            total += 1
    return hits / max(1, total)


class TermPrior:
    """The aspect prior: each term's most frequent polarity in training, the most frequent of all for a new term."""

    def __init__(self, train: Sequence[Example]) -> None:
        counts: dict[str, Counter[str]] = {}
        for example in train:
            for aspect in example.aspects:
                counts.setdefault(aspect.term.lower(), Counter())[str(aspect.polarity)] += 1
        self.majority = sum(counts.values(), Counter()).most_common(1)[0][0]
        self._best: Mapping[str, str] = {term: found.most_common(1)[0][0] for term, found in counts.items()}

    def predict(self, term: str) -> str:
        """The polarity of a term."""
        return self._best.get(term.lower(), self.majority)
