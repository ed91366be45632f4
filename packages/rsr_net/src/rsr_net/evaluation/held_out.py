"""One trained summarizer on held-out articles: every step beside its baselines, the extraction, the confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from latentlab_shared.errors import UserError
from latentlab_shared.metrics.classification import brier_score, expected_calibration_error, reliability_table, roc_auc
from latentlab_shared.metrics.ranking import retrieval_metrics_of_vectors
from latentlab_shared.metrics.statistics import paired_bootstrap
from latentlab_shared.metrics.summarization import RougeScorer, greedy_oracle
from rsr_net.data.types import ArticleVectors, Batch, Example, Floats
from rsr_net.inference.summarizer import Summarizer
from rsr_net.model.selection import SentenceSelector

OVER = 3  # the state is followed to this many times the trained depth
_GROUP = 32


@dataclass(frozen=True)
class HeldOut:
    """What was measured; every row is ready for a table.

    Attributes:
        articles: how many.
        embedding: mean, identity, lead embedding, the ridge start and the refined state against the true embedding.
        steps: the same figures after each step, to ``OVER`` times the trained depth, with the mean residual.
        extraction: ROUGE F1 of LEAD-3, of the picks by document, refined and true embedding, and of the greedy oracle.
        differences: paired bootstrap intervals of ROUGE-Lsum differences.
        confidence: ECE, AUC and Brier score of "nearer than the typical prediction", and the reliability table.
        stopping: steps used and R² with adaptive stopping, beside all steps.
        signature: how ROUGE was computed.
    """

    articles: int
    embedding: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    extraction: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    confidence: dict[str, Any]
    stopping: dict[str, float]
    signature: str


def embedding_metrics(y: Floats, target: Floats, center: Floats) -> dict[str, float]:
    """MSE, R² over the mean ``center`` (D,), cosine, and retrieval of the true summary among the N.

    Args:
        y: predictions, (N, D).
        target: true embeddings, (N, D).
        center: mean of the training targets, (D,): subtracted from both sides for the centred retrieval.
    """
    found = y.astype(np.float64)
    wanted = target.astype(np.float64)
    error = ((found - wanted) ** 2).sum()
    norms = np.maximum(np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1), 1e-12)
    plain = retrieval_metrics_of_vectors(found, wanted)
    centred = retrieval_metrics_of_vectors(found - center, wanted - center)
    return {
        "mse": float(error / found.size),
        "r2": float(1 - error / max(((wanted - center) ** 2).sum(), 1e-12)),
        "cosine": float(((found * wanted).sum(1) / norms).mean()),
        "r_at_1": float(plain.means()["r@1"]),
        "centred_r_at_1": float(centred.means()["r@1"]),
        "centred_r_at_10": float(centred.means()["r@10"]),
        "centred_mrr": float(centred.means()["mrr"]),
    }


def evaluate(summarizer: Summarizer, examples: Sequence[Example], articles: Sequence[ArticleVectors]) -> HeldOut:
    """Measure a summarizer on articles with human summaries.

    Args:
        summarizer: the trained model.
        examples: N articles with highlights.
        articles: their embeddings.

    Raises:
        UserError: if there are fewer than two articles, or one has no summary.
    """
    if len(examples) < 2 or any(article.target is None for article in articles):
        raise UserError("evaluation needs at least two articles, all with summaries", "data")
    refiner = summarizer.refiner.cpu().eval()
    depth = refiner.config.steps
    center: Floats = refiner.center.numpy()
    target = np.stack([article.target for article in articles if article.target is not None])  # (N, D)
    states: list[Floats] = []
    residuals: list[Floats] = []
    picks: dict[str, list[tuple[int, ...]]] = {"document": [], "refined": [], "true": []}
    quality: list[float] = []
    untrained = SentenceSelector()  # picks the set whose sum is nearest to the vector it is given
    with torch.no_grad():
        for at in range(0, len(articles), _GROUP):
            batch = Batch.collate(articles[at : at + _GROUP])
            over = refiner(batch, steps=OVER * depth)
            states.append(over.trajectory.numpy())
            residuals.append(over.residuals.numpy())
            trained = refiner(batch)
            quality += trained.quality.tolist()
            words = _words(examples[at : at + _GROUP], batch)
            start, read = trained.trajectory[0], trained.attention[-1]
            assert batch.target is not None
            picks["refined"] += refiner.selector.choose(batch, trained.y, start, read, words)
            picks["document"] += untrained.choose(batch, batch.doc, start, read, words)
            picks["true"] += untrained.choose(batch, batch.target, start, read, words)
    path = np.concatenate(states, axis=1)  # (OVER * K + 1, N, D)
    moved = np.concatenate(residuals, axis=1).mean(1)  # (OVER * K,)
    steps = [
        {"step": k, **embedding_metrics(path[k], target, center), "residual": float(moved[k - 1]) if k else None}
        for k in range(len(path))
    ]
    named = {
        "mean of the training summaries": np.broadcast_to(center, target.shape),
        "the document's embedding": np.stack([a.doc for a in articles]),
        "the lead's embedding": np.stack([a.lead for a in articles]),
        "ridge (step 0)": path[0],
        f"refined (step {depth})": path[depth],
    }
    embedding = [{"prediction": name, **embedding_metrics(y, target, center)} for name, y in named.items()]
    extraction, differences, signature = _extraction(examples, picks)
    refined = embedding_metrics(path[depth], target, center)
    return HeldOut(
        articles=len(examples),
        embedding=embedding,
        steps=steps,
        extraction=extraction,
        differences=differences,
        confidence=_confidence(np.array(quality), path[depth], target),
        stopping=_stopping(summarizer, articles, target, center, refined["r2"]),
        signature=signature,
    )


def _words(examples: Sequence[Example], batch: Batch) -> torch.Tensor:
    """Words of each sentence, (B, S)."""
    words = torch.zeros(batch.mask.shape)
    for row, example in enumerate(examples):
        words[row, : len(example.sentences)] = torch.tensor([float(len(s.split())) for s in example.sentences])
    return words


def _extraction(
    examples: Sequence[Example], picks: dict[str, list[tuple[int, ...]]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """ROUGE of each way to pick sentences, and the differences that matter."""
    scorer = RougeScorer(("rouge1", "rouge2", "rougeLsum"), split=str.splitlines)
    references = ["\n".join(e.highlights) for e in examples]
    chosen = {
        "LEAD-3": [tuple(range(min(3, len(e.sentences)))) for e in examples],
        "by the document's embedding": picks["document"],
        "by the refined embedding": picks["refined"],
        "by the true embedding": picks["true"],
        "greedy oracle": [
            tuple(greedy_oracle(e.sentences, r, 3, scorer=scorer)) for e, r in zip(examples, references, strict=True)
        ],
    }
    found = {}
    for name, each in chosen.items():
        texts = ["\n".join(e.sentences[i] for i in sorted(pick)) for e, pick in zip(examples, each, strict=True)]
        found[name] = scorer.f1(texts, references)
    rows = [
        {
            "sentences": name,
            **{metric: 100 * float(values.mean()) for metric, values in scores.items()},
            "picked": float(np.mean([len(pick) for pick in chosen[name]])),
        }
        for name, scores in found.items()
    ]
    ours = found["by the refined embedding"]["rougeLsum"]
    differences = []
    for other in ("LEAD-3", "by the document's embedding"):
        interval = paired_bootstrap(100 * ours, 100 * found[other]["rougeLsum"], resamples=2000)
        row = {"rougeLsum": f"refined - {other}", "difference": interval.estimate}
        differences.append({**row, "low": interval.low, "high": interval.high})
    return rows, differences, scorer.signature


def _confidence(quality: Floats, y: Floats, target: Floats) -> dict[str, Any]:
    """Whether the confidence means what it says: the event is a cosine above the median."""
    near = (y * target).sum(1) / np.maximum(np.linalg.norm(y, axis=1) * np.linalg.norm(target, axis=1), 1e-12)
    good = (near > np.median(near)).astype(int)
    return {
        "event": "cosine with the true embedding above the median",
        "ece": expected_calibration_error(quality, good, bins=10),
        "auc": roc_auc(good, quality),
        "brier": brier_score(quality, good),
        "reliability": reliability_table(quality, good, bins=10),
    }


def _stopping(
    summarizer: Summarizer, articles: Sequence[ArticleVectors], target: Floats, center: Floats, r2: float
) -> dict[str, float]:
    """What halting each article by itself saves, as ``Summarizer`` does it, and what it costs."""
    refined = [summarizer.refine(articles[at : at + _GROUP]) for at in range(0, len(articles), _GROUP)]
    y = np.concatenate([r.y.numpy() for r in refined])
    used = float(np.concatenate([r.steps_used.numpy() for r in refined]).mean())
    depth = summarizer.refiner.config.steps
    halted = embedding_metrics(y, target, center)["r2"]
    return {"steps_used": used, "steps": float(depth), "saved": 1 - used / depth, "r2": halted, "r2_lost": r2 - halted}
