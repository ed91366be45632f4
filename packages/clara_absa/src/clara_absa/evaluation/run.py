"""A model on held-out sentences: baselines, probes, groups and intervals side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clara_absa.configs.schema import POLARITIES, AspectSentimentResult, Example
from clara_absa.evaluation.generation import measure_writing
from clara_absa.evaluation.metrics import (
    Question,
    TermPrior,
    compression,
    evaluate_metrics_pure_python,
    groups_of,
    questions_of,
)
from clara_absa.inference.sentiment import AspectSentiment
from clara_absa.model.folder import find_model
from clara_absa.training.settings import RunSettings, examples_of, is_lone_file, settings_in
from latentlab_shared.errors import UserError
from latentlab_shared.files import write_json
from latentlab_shared.metrics.classification import brier_score, expected_calibration_error
from latentlab_shared.metrics.statistics import bootstrap_interval, paired_bootstrap
from latentlab_shared.provenance import environment
from latentlab_shared.runs import RunFolder

BINS = 15
Log = Callable[[str], None]


def settings_of(model: Path) -> RunSettings | None:
    """What a run was trained on; None for a saved model without its run."""
    if not (model / "environment.json").is_file():
        return None
    return settings_in(RunFolder.read(model))


@dataclass(frozen=True)
class Parts:
    """What a model is measured with.

    Attributes:
        examples: sentences to measure on.
        train: the model's training sentences, for the look-up baselines; None if they are not known.
        source: where the examples are from.
        name: of the part: "val part", or "whole file".
    """

    examples: list[Example]
    train: list[Example] | None
    source: str
    name: str


def parts_of(model: Path, data: str | None, task: str, split: str, limit: int | None, log: Log) -> Parts:
    """Find the sentences; a file that was not trained on is measured whole, the run's own is split as for training."""
    find_model(model)
    settings = settings_of(model)
    if settings is None and data is None:
        raise UserError("this is a model without its run", model, "Give --data")
    source = data or (settings.data if settings else "sample")
    seed = settings.seed if settings else 0
    own = settings is not None and (data is None or _same(data, settings.data))
    chosen: Any = settings.task if settings and data is None else task  # checked below
    part: Any = split
    whole = not own and is_lone_file(source)
    examples = examples_of(source, part, chosen, limit=limit, seed=seed, whole=whole)
    train = None
    try:
        if settings is not None:
            train = examples_of(settings.data, "train", settings.task, limit=settings.limit, seed=seed)
        elif not whole:
            train = examples_of(source, "train", chosen, seed=seed)
    except UserError as error:
        log(f"no training sentences: {error}")
    if train is None:
        log("without training sentences there are no look-up baselines")
    return Parts(examples, train, source, "whole file" if whole else f"{split} part")


def _same(one: str, other: str) -> bool:
    return one == other or Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def probabilities(results: Sequence[Sequence[AspectSentimentResult]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Probabilities of all answers, (N, 3)."""
    return np.array([[r.probabilities[p] for p in POLARITIES] for each in results for r in each])


def measure(
    name: str, questions: Sequence[Question], answers: Sequence[str], hard: Sequence[int], seed: int = 0
) -> dict[str, Any]:
    """A row of the table of answers: figures, and the accuracy's interval over sentences.

    Args:
        name: of the row.
        questions: the items.
        answers: to them.
        hard: indices of the pos-and-neg subset.
        seed: of the bootstrap.
    """
    labels = [q.label for q in questions]
    right = np.array([a == b for a, b in zip(labels, answers, strict=True)], float)
    interval = bootstrap_interval(right, clusters=[q.sentence for q in questions], resamples=2000, seed=seed)
    row: dict[str, Any] = {"answers": name, **evaluate_metrics_pure_python(labels, answers)}
    row["low"], row["high"] = interval.low, interval.high
    row["pos and neg"] = float(right[list(hard)].mean()) if hard else None
    return row


def probes(answerer: AspectSentiment, examples: Sequence[Example], seed: int = 0) -> dict[str, list[Tensor]]:
    """Memories that should be worth nothing: of another sentence, mixed from all sentences, and zero."""
    vectors = [memory.vectors for memory in answerer.compress_batch([example.text for example in examples])]
    rng = np.random.default_rng(seed)
    turned = [vectors[(i + 1) % len(vectors)] for i in range(len(vectors))]
    table = torch.cat(vectors)
    mixed = torch.split(table[torch.from_numpy(rng.permutation(len(table)))], [len(v) for v in vectors])
    return {
        "another sentence's memory": turned,
        "shuffled memory": list(mixed),
        "zero memory": [torch.zeros_like(v) for v in vectors],
    }


def probed(answerer: AspectSentiment, examples: Sequence[Example]) -> dict[str, list[str]]:
    """What the model answers from memories that should be worth nothing; nothing for one that reads the text."""
    if answerer.config.memory.reader == "none":
        return {}
    asked = [example.aspects for example in examples]
    given = {}
    for name, vectors in probes(answerer, examples).items():
        found = answerer._answer(vectors, asked, None, 0.0, "score")
        given[name] = [str(r.polarity) for each in found for r in each]
    return given


def evaluate_run(
    model: Path,
    *,
    data: str | None = None,
    task: str = "atsa",
    split: str = "val",
    against: Path | None = None,
    generate: bool = False,
    output: Path | None = None,
    device: str = "auto",
    limit: int | None = None,
    log: Log = lambda _: None,
) -> dict[str, Any]:
    """Evaluate a model and write ``results.json``, ``plots/`` and ``report.html``.

    Args:
        model: a run folder, or a saved model.
        data: the source of the sentences; None takes the run's own. A lone file that is not the run's own is measured
            whole. The look-up baselines are always of the run's own training sentences.
        task: with ``data``: "atsa", "acsa" or "joint".
        split: the part.
        against: another model for a paired comparison, such as one that reads the text.
        generate: also measure extraction and reconstruction.
        output: where to write; None takes the run folder.
        device: "auto", "cpu", "cuda" or "mps".
        limit: sentences at most.
        log: told what happens.
    """
    from clara_absa.evaluation.report import write_report

    parts = parts_of(model, data, task, split, limit, log)
    examples, train, source = parts.examples, parts.train, parts.source
    folder = output or model
    log(f"{len(examples)} sentences of {source}, {parts.name}")
    answerer = AspectSentiment.from_pretrained(model, device=device)
    if generate and answerer.config.memory.reader != "none":
        answerer.ensure_lists()
    questions = questions_of(examples)
    groups = groups_of(examples, train)
    hard = groups["pos and neg"]
    asked = [(example.text, example.aspects) for example in examples]
    found = answerer.predict_batch(asked)
    given = {"model": [str(r.polarity) for each in found for r in each]}
    if train is not None:
        prior = TermPrior(train)
        given["aspect prior"] = [prior.predict(q.term) for q in questions]
        given["most frequent"] = [prior.majority] * len(questions)
    given |= probed(answerer, examples)
    if against is not None:
        log(f"asking {against}")
        other = AspectSentiment.from_pretrained(against, device=device)
        given[str(against.name)] = [str(r.polarity) for each in other.predict_batch(asked) for r in each]
    rows = [measure(name, questions, answers, hard) for name, answers in given.items()]
    names: list[str] = list(POLARITIES)
    labels = np.array([names.index(q.label) for q in questions])
    p = probabilities(found)
    right = p.argmax(1) == labels
    ours = np.array([a == q.label for a, q in zip(given["model"], questions, strict=True)], float)
    differences = []
    for name, answers in given.items():
        if name != "model":
            theirs = np.array([a == q.label for a, q in zip(answers, questions, strict=True)], float)
            clusters = [q.sentence for q in questions]
            gap = paired_bootstrap(ours, theirs, clusters=clusters, resamples=2000)
            differences.append(
                {"model minus": name, "points": 100 * gap.estimate, "low": 100 * gap.low, "high": 100 * gap.high}
            )
    results: dict[str, Any] = {
        "data": source,
        "split": split,
        "part": parts.name,
        "sentences": len(examples),
        "cut": sum(answerer.is_cut(example.text) for example in examples),
        "questions": len(questions),
        "answers": rows,
        "differences": differences,
        "groups": [
            {"group": name, "aspects": len(some), "accuracy": float(ours[some].mean()) if some else None}
            for name, some in groups.items()
        ],
        "calibration": {
            "ece": expected_calibration_error(p.max(1), right.astype(int), BINS),
            "brier": brier_score(p, labels),
            "bins": BINS,
        },
    }
    if answerer.config.memory.reader != "none":
        results["compression"] = _compression(answerer, examples)
        if generate:
            log("writing texts and lists of aspects")
            results["writing"] = measure_writing(answerer, examples)
    results["report"] = str(write_report(folder, results, examples, found, model))
    write_json(folder / "results.json", {**results, "environment": environment(0, {source: str(len(examples))})})
    return results


def _compression(answerer: AspectSentiment, examples: Sequence[Example]) -> dict[str, float]:
    texts = [answerer.batcher.prompter.text(example.text) for example in examples]
    slots = [answerer.batcher.slots(answerer.batcher.read(example.text)) for example in examples]
    config: Any = answerer.model._causal.config
    heads = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    return compression([len(t) for t in texts], slots, answerer.model.width, 2 * 2 * config.num_hidden_layers * heads)
