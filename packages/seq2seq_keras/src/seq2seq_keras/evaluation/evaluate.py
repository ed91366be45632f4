"""A model on held-out texts, with baselines beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlab_shared.metrics.statistics import paired_bootstrap
from latentlab_shared.metrics.summarization import RougeScorer
from seq2seq_keras.config import DataConfig, DecodeConfig
from seq2seq_keras.data.encode import target_tokens
from seq2seq_keras.data.labels import create_pseudo_summary
from seq2seq_keras.data.seed_exact import seed_references
from seq2seq_keras.data.text import make_splitter, words
from seq2seq_keras.data.types import Example
from seq2seq_keras.evaluation.baselines import baselines
from seq2seq_keras.evaluation.scores import Scores, behaviour, score, table_row

if TYPE_CHECKING:
    from seq2seq_keras.inference.summarizer import Summarizer, Summary

MODEL = "model"


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found.

    Attributes:
        rows: model, baselines and oracles: scores with intervals.
        gains: the model minus each baseline, per text, with intervals.
        behaviour: shares that need no reference, of the model and of the references.
        samples: texts with reference and summary.
        signature: of the ROUGE scores.
        texts: how many.
    """

    rows: list[dict[str, Any]]
    gains: list[dict[str, Any]]
    behaviour: list[dict[str, Any]]
    samples: list[tuple[Example, str, Summary]]
    signature: str
    texts: int


def references_of(examples: Sequence[Example], data: DataConfig) -> list[str]:
    """The words to be found: a human's summary whole, a pseudo-summary as far as a model could write it."""
    return [" ".join(target_tokens(e.summary, data) if e.pseudo else words(e.summary)) for e in examples]


def seed_protocol(train: Sequence[Example], examples: Sequence[Example], data: DataConfig) -> list[str]:
    """The seed's references: its labels through its tokenizer and padding, fitted on the training texts as it did."""
    split = make_splitter(data.splitter)
    known, held = (
        [create_pseudo_summary(e.text, seed_exact=True, split=split) for e in part] for part in (train, examples)
    )
    return seed_references(known, held)


def evaluate(
    summarizer: Summarizer,
    examples: Sequence[Example],
    references: Sequence[str],
    *,
    config: DecodeConfig | None = None,
    seed_exact: bool = False,
    seed: int = 0,
    log: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Summarize texts and compare.

    Args:
        summarizer: the model.
        examples: held-out texts.
        references: their words, one string each.
        config: how to search; the model's own by default.
        seed_exact: the references are the seed's, and so are the baselines' cuts.
        seed: of the bootstrap.
        log: told what happens.
    """
    config = replace(config or summarizer.settings.decode, n_best=1)
    log(f"summarizing {len(examples)} texts, beam {config.beam}")
    summaries = summarizer.summarize([e.text for e in examples], config)
    said = baseline_summaries(examples, references, summarizer.settings.data, seed_exact)
    systems = {MODEL: [s.text for s in summaries], **said}
    log("scoring")
    scorer = _scorer()
    scored = {name: score(found, references, scorer) for name, found in systems.items()}
    clusters = _clusters(examples)
    texts = [e.text for e in examples]
    return Evaluation(
        rows=[table_row(name, found, clusters, seed) for name, found in scored.items()],
        gains=[
            _gain(name, scored[MODEL], found, clusters, seed)
            for name, found in scored.items()
            if name != MODEL and "oracle" not in name
        ],
        behaviour=[
            {"name": MODEL, **behaviour(systems[MODEL], texts)},
            {"name": "references", **behaviour(references, texts)},
        ],
        samples=[(e, r, s) for e, r, s in zip(examples, references, summaries, strict=True)][:40],
        signature=scorer.signature,
        texts=len(examples),
    )


def baseline_summaries(
    examples: Sequence[Example], references: Sequence[str], data: DataConfig, seed_exact: bool = False
) -> dict[str, list[str]]:
    """What each baseline says of each text, by name; one lead has the references' mean length."""
    typical = round(float(np.mean([len(r.split()) for r in references])))
    leads = sorted({typical, 8, 13, data.max_target - 2})
    return {
        name: [" ".join(make(e, r.split())) for e, r in zip(examples, references, strict=True)]
        for name, make in baselines(data, leads, seed_exact).items()
    }


def score_baselines(
    examples: Sequence[Example], references: Sequence[str], data: DataConfig, *, seed_exact: bool = False, seed: int = 0
) -> tuple[list[dict[str, Any]], str]:
    """Table rows of the baselines alone, and the signature of the ROUGE scores: what needs no model."""
    scorer, clusters = _scorer(), _clusters(examples)
    found = baseline_summaries(examples, references, data, seed_exact)
    rows = [table_row(name, score(said, references, scorer), clusters, seed) for name, said in found.items()]
    return rows, scorer.signature


def _scorer() -> RougeScorer:
    return RougeScorer(("rouge1", "rouge2", "rougeL", "rougeLsum"))


def _clusters(examples: Sequence[Example]) -> list[str] | None:
    return [e.group for e in examples] if all(e.group for e in examples) else None


def _gain(name: str, ours: Scores, theirs: Scores, clusters: list[str] | None, seed: int) -> dict[str, Any]:
    found = {
        metric: paired_bootstrap(ours[metric], theirs[metric], clusters=clusters, resamples=2_000, seed=seed)
        for metric in ("f1", "rouge1", "rouge2", "rougeL")
    }
    return {
        "name": f"model - {name}",
        "metrics": {metric: interval.estimate for metric, interval in found.items()},
        "interval": {metric: [interval.low, interval.high] for metric, interval in found.items()},
    }
