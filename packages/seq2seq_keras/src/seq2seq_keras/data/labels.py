"""Pseudo-summaries and the seed's F1: as the seed prints them, and repaired."""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal

from seq2seq_keras.data.text import Splitter, make_splitter, word_set, words

_MIN_WORDS = 4  # of a sentence that may be a summary, where another sentence has as many

# Words that say little about what a text is about.
STOP_WORDS = word_set(
    """a about above after again all also am an and any are as at be because been before being below between both but by
    can could did do does doing down during each few for from further get go going got had has have having he her here
    hers him his how i i'm if in into is isn't it it's its just like me more most my no nor not now of off on once only
    or other our out over own re said same say says she should so some such than that that's the their them then there
    there's these they they're this those through to too under until up us very was we we're well were what when where
    which while who whom why will with would you you're your"""
)


def create_pseudo_summary(
    text: str,
    n_sentences: int = 1,
    *,
    seed_exact: bool = False,
    scoring: Literal["mean", "sum"] = "mean",
    split: Splitter | None = None,
) -> str:
    """The ``n_sentences`` of a text whose words are its most frequent ones.

    Repaired form (default): one tokenizer counts and scores, stop words do not count, the score is a mean, sentences
    of fewer than four words stand back, equal sentences stay apart, document order is kept. ``scoring="sum"`` keeps
    the seed's sum over all words and repairs the rest.

    Args:
        text: cleaned text.
        n_sentences: how many; a text of no more sentences is returned as it is.
        seed_exact: the seed's function unchanged, its flaws too: it scores "tax." as 0 where it counted "tax", prefers
            long sentences, joins equal ones, and returns several in order of score.
        scoring: of the repaired form.
        split: the sentence splitter; by default punkt where it is installed, else the rules. The seed's is punkt.

    Source: the seed's "Pseudo-Label Generation".
    """
    if scoring not in ("mean", "sum"):
        raise ValueError(f"scoring is {scoring!r}; it must be mean or sum")
    sentences = (split or make_splitter())(text)
    if len(sentences) <= n_sentences:
        return text
    if seed_exact:
        return _seed_exact(text, sentences, n_sentences)
    tokens = [words(sentence) for sentence in sentences]
    counts = Counter(word for found in tokens for word in found)
    scores = [_score(found, counts, scoring) for found in tokens]
    long_enough = [len(found) >= _MIN_WORDS for found in tokens]
    # Longer than the minimum first, then by score, then the earlier one.
    ranked = sorted(range(len(sentences)), key=lambda i: (not long_enough[i], -scores[i], i))
    return " ".join(sentences[i] for i in sorted(ranked[:n_sentences]))


def _score(found: list[str], counts: Counter[str], scoring: str) -> float:
    if scoring == "sum":
        return float(sum(counts[word] for word in found))
    content = [word for word in found if word not in STOP_WORDS]
    return sum(counts[word] for word in content) / len(content) if content else 0.0


def _seed_exact(text: str, sentences: list[str], n_sentences: int) -> str:
    freq = Counter(re.findall(r"\w+", text.lower()))
    scores = {sent: sum(freq[w] for w in sent.lower().split()) for sent in sentences}
    ranked = sorted(scores, key=scores.__getitem__, reverse=True)
    return " ".join(ranked[:n_sentences])


def calculate_text_f1(reference_text: str, predicted_text: str, *, seed_exact: bool = False) -> float:
    """Word-overlap F1 of two texts.

    Args:
        reference_text: what should have been said.
        predicted_text: what was said.
        seed_exact: the seed's formula: it divides by the number of *different* words, so that "tax tax tax" against
            itself scores 3.0. Where it divides by zero, 0 is returned here.

    Returns:
        The token F1, from 0 to 1; 0 if either text is empty or nothing is shared.

    Source: the seed's "F1-Score Metric"; SQuAD's F1 for the repaired form.
    """
    if seed_exact:
        ref_counter, pred_counter = Counter(reference_text.split()), Counter(predicted_text.split())
        sizes = len(pred_counter), len(ref_counter)
    else:
        ref_counter, pred_counter = Counter(words(reference_text)), Counter(words(predicted_text))
        sizes = pred_counter.total(), ref_counter.total()
    overlap = (pred_counter & ref_counter).total()
    if not overlap:
        return 0.0
    precision, recall = overlap / sizes[0], overlap / sizes[1]
    return 2 * (precision * recall) / (precision + recall)
