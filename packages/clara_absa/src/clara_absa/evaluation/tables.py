"""Several runs on the same held-out sentences: one row for each kind of model, averaged over its seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clara_absa.configs.base_config import ClaraConfig
from clara_absa.evaluation.metrics import TermPrior, groups_of, questions_of
from clara_absa.evaluation.run import measure, settings_of
from clara_absa.inference.sentiment import AspectSentiment
from clara_absa.training.settings import examples_of
from latentlab_shared.errors import UserError
from latentlab_shared.metrics.statistics import bootstrap_interval
from latentlab_shared.provenance import write_table

_FIGURES = ("accuracy", "macro_f1", "pos and neg")


def name_of(config: ClaraConfig) -> str:
    """What a row is called: who reads, and into how many vectors."""
    memory, place = config.memory, Path(config.backbone)
    kind = f"{place.parent.name}/backbone" if place.name == "backbone" else place.name  # as `pretrain` names it
    if memory.reader == "none":
        return f"{kind}, reads the text"
    who = f"{memory.encoder} before {kind}" if memory.reader == "encoder" else kind
    recipe = ", recipe seed" if config.recipe == "seed" else ""
    return f"{who}, k={memory.tokens}{', nested' if memory.sizes else ''}{recipe}"


def compare_runs(
    runs: Sequence[Path],
    *,
    split: str = "val",
    device: str = "auto",
    output: Path | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Measure runs that were trained on one data set.

    Args:
        runs: run folders; those of one kind are seeds of one row.
        split: the part to measure on.
        device: "auto", "cpu", "cuda" or "mps".
        output: also write ``answers.json``, from which a README's table is filled.
        log: told what is measured.

    Returns:
        Rows with accuracy (its interval over sentences, the seeds' answers pooled), macro-F1, accuracy where a sentence
        speaks both well and ill, and for each row its seeds and trained parameters; baselines first.

    Raises:
        UserError: for no runs, a folder without a run, or runs on different data.
    """
    found = [(run, settings_of(run)) for run in runs]
    absent = [run for run, settings in found if settings is None]
    if absent or not found:
        raise UserError(
            "there is no run here", absent[0] if absent else "compare", "Give folders of `clara-absa train`"
        )
    sources = {(s.data, s.task) for _, s in found if s}
    if len(sources) > 1:
        raise UserError("the runs were trained on different data", "compare", "Compare runs on one data set")
    first = found[0][1]
    assert first is not None
    train = examples_of(first.data, "train", first.task, seed=first.seed)
    examples = examples_of(first.data, split, first.task, seed=first.seed)  # type: ignore[arg-type]  # checked there
    questions, hard = questions_of(examples), groups_of(examples, train)["pos and neg"]
    prior = TermPrior(train)
    rows = [
        measure("most frequent polarity", questions, [prior.majority] * len(questions), hard),
        measure("aspect prior (term look-up)", questions, [prior.predict(q.term) for q in questions], hard),
    ]
    labels = np.array([q.label for q in questions])
    kinds: dict[str, list[tuple[int, list[str], int]]] = {}
    for run, settings in found:
        assert settings is not None
        log(f"measuring {run}")
        answerer = AspectSentiment.from_pretrained(run, device=device)
        answers = answerer.predict_batch([(e.text, e.aspects) for e in examples])
        size = sum(p.numel() for p in answerer.model.parameters())
        given = [str(r.polarity) for each in answers for r in each]
        kinds.setdefault(name_of(settings.clara), []).append((settings.seed, given, size))
    for name, seeds in kinds.items():
        each = [measure(name, questions, given, hard) for _, given, _ in seeds]
        right = np.mean([np.array(given) == labels for _, given, _ in seeds], axis=0)
        interval = bootstrap_interval(right, clusters=[q.sentence for q in questions], resamples=2000)
        row = {"answers": name, **{figure: float(np.mean([r[figure] for r in each])) for figure in _FIGURES}}
        row |= {"low": interval.low, "high": interval.high, "parameters": seeds[0][2]}
        row |= {"seeds": ", ".join(str(seed) for seed, _, _ in seeds)}
        rows.append(row)
    if output is not None:
        command = "clara-absa compare " + " ".join(run.name for run in runs)
        command += f" --split {split}" if split != "val" else ""
        data = f"{Path(first.data).name} {first.task} {split}, {len(questions)} aspects of {len(examples)} sentences"
        shaped = [
            {
                "name": row["answers"],
                "metrics": {k: row.get(k) for k in (*_FIGURES, "parameters", "seeds")},
                "interval": {"accuracy": [row["low"], row["high"]]},
            }
            for row in rows
        ]
        all_seeds = sorted({seed for seeds in kinds.values() for seed, _, _ in seeds})
        write_table(output / "answers.json", shaped, command=command, data=data, seeds=all_seeds)
    return [{k: row.get(k) for k in ("answers", *_FIGURES, "low", "high", "parameters", "seeds")} for row in rows]
