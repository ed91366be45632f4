"""Several runs on the same held-out sentences: one row for each kind of model, averaged over its seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clara_absa.configs.base_config import ClaraConfig
from clara_absa.evaluation.linear import NearWords
from clara_absa.evaluation.metrics import Question, TermPrior, groups_of, questions_of
from clara_absa.evaluation.run import measure, parts_of, probed, settings_of
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


def averaged(
    name: str, questions: Sequence[Question], seeds: Sequence[Sequence[str]], hard: Sequence[int]
) -> dict[str, Any]:
    """A row for several seeds of one kind: figures averaged, the accuracy's interval over sentences.

    Args:
        name: of the row.
        questions: the items.
        seeds: each one's answers to them.
        hard: indices of the pos-and-neg subset.
    """
    each = [measure(name, questions, given, hard) for given in seeds]
    labels = np.array([q.label for q in questions])
    right = np.mean([np.array(given) == labels for given in seeds], axis=0)
    interval = bootstrap_interval(right, clusters=[q.sentence for q in questions], resamples=2000)
    figures = {key: None if each[0][key] is None else float(np.mean([r[key] for r in each])) for key in _FIGURES}
    return {"answers": name, **figures, "low": interval.low, "high": interval.high}


def _ensure_different(runs: Sequence[Path], where: str) -> None:
    """Refuse a run that is given twice: it would count as two seeds."""
    places = [run.resolve() for run in runs]
    if twice := [run for run, place in zip(runs, places, strict=True) if places.count(place) > 1]:
        raise UserError("this run is given twice", f"{where} {twice[0]}", "Give each seed's own run once")


def compare_runs(
    runs: Sequence[Path],
    *,
    split: str = "val",
    device: str = "auto",
    output: Path | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> dict[str, list[dict[str, Any]]]:
    """Measure runs that were trained on one data set.

    Args:
        runs: run folders; those of one kind are seeds of one row.
        split: the part to measure on.
        device: "auto", "cpu", "cuda" or "mps".
        output: also write ``answers.json`` and ``probes.json``, from which a README's tables are filled.
        log: told what is measured.

    Returns:
        "rows" with accuracy (its interval over sentences, the seeds' answers pooled), macro-F1, accuracy where a
        sentence speaks both well and ill, and for each row its seeds and trained parameters; baselines first.
        "probes": the same figures of each kind when its memories are another sentence's, shuffled or zero.

    Raises:
        UserError: for no runs, a run that is given twice, a folder without a run, or runs on different data.
    """
    _ensure_different(runs, "compare")
    found = [(run, settings_of(run)) for run in runs]
    absent = [run for run, settings in found if settings is None]
    if absent or not found:
        raise UserError(
            "there is no run here", absent[0] if absent else "compare", "Give folders of `clara-absa train`"
        )
    sources = {(Path(s.data).expanduser().resolve(), s.task) for _, s in found if s}
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
        measure("words around the aspect, linear", questions, NearWords(train).predict(examples), hard),
    ]
    kinds: dict[str, list[tuple[int, list[str], int]]] = {}
    worthless: dict[str, list[list[str]]] = {}
    for run, settings in found:
        assert settings is not None
        log(f"measuring {run}")
        answerer = AspectSentiment.from_pretrained(run, device=device)
        answers = answerer.predict_batch([(e.text, e.aspects) for e in examples])
        size = sum(p.numel() for p in answerer.model.parameters())
        given = [str(r.polarity) for each in answers for r in each]
        kind = name_of(settings.clara)
        kinds.setdefault(kind, []).append((settings.seed, given, size))
        for probe, guessed in probed(answerer, examples).items():
            worthless.setdefault(f"{kind}: {probe}", []).append(guessed)
    for name, seeds in kinds.items():
        row = averaged(name, questions, [given for _, given, _ in seeds], hard)
        row |= {"parameters": seeds[0][2], "seeds": ", ".join(str(seed) for seed, _, _ in seeds)}
        rows.append(row)
    lost = [averaged(name, questions, seeds, hard) for name, seeds in worthless.items()]
    if output is not None:
        command = "clara-absa compare " + " ".join(run.name for run in runs)
        command += f" --split {split}" if split != "val" else ""
        data = f"{Path(first.data).name} {first.task} {split}, {len(questions)} aspects of {len(examples)} sentences"
        all_seeds = sorted({seed for seeds in kinds.values() for seed, _, _ in seeds})
        for file, table in (("answers.json", rows), ("probes.json", lost)):
            if not table:
                continue
            shaped = [
                {
                    "name": row["answers"],
                    "metrics": {k: row[k] for k in (*_FIGURES, "parameters", "seeds") if k in row},
                    "interval": {"accuracy": [row["low"], row["high"]]},
                }
                for row in table
            ]
            write_table(output / file, shaped, command=command, data=data, seeds=all_seeds)
    columns = ("answers", *_FIGURES, "low", "high")
    return {
        "rows": [{k: row.get(k) for k in (*columns, "parameters", "seeds")} for row in rows],
        "probes": [{k: row[k] for k in columns} for row in lost],
    }


def sweep_run(
    models: Sequence[Path],
    sizes: Sequence[int] = (),
    *,
    beside: Sequence[Path] = (),
    data: str | None = None,
    task: str = "atsa",
    split: str = "val",
    device: str = "auto",
    limit: int | None = None,
    output: Path | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Accuracy and macro-F1 with the first k memory vectors, for each k.

    Args:
        models: run folders, or saved models; several are seeds of one kind, and are averaged.
        sizes: k; none for those the models were trained for, or their one.
        beside: models that were trained for one k each; the column ``trained for k`` has the mean of those of a k.
        data: see `evaluate_run`.
        task: see `evaluate_run`.
        split: see `evaluate_run`.
        device: see `evaluate_run`.
        limit: see `evaluate_run`.
        output: also write ``sweep.json`` here, from which a README's table is filled.
        log: told of a k that the models were not trained for.

    Raises:
        UserError: for models of different sizes, or one that is given twice.
    """
    _ensure_different(models, "sweep --also")
    _ensure_different(beside, "sweep --beside")
    parts = parts_of(models[0], data, task, split, limit, lambda _: None)
    examples, source = parts.examples, parts.source
    questions, hard = questions_of(examples), groups_of(examples, parts.train)["pos and neg"]

    def answers(one: AspectSentiment, size: int | None) -> list[str]:
        found = one.predict_batch([(e.text, e.aspects) for e in examples], size=size)
        return [str(r.polarity) for each in found for r in each]

    own: dict[int, list[list[str]]] = {}
    for path in beside:
        other = AspectSentiment.from_pretrained(path, device=device)
        own.setdefault(other.config.memory.tokens, []).append(answers(other, None))
    swept = [AspectSentiment.from_pretrained(path, device=device) for path in models]
    memory = swept[0].config.memory
    if any((m.config.memory.tokens, m.config.memory.sizes) != (memory.tokens, memory.sizes) for m in swept):
        raise UserError("these models are not seeds of one kind", "sweep --also", "Sweep them one by one")
    rows = []
    trained = memory.sizes or (memory.tokens,)
    for size in sizes or trained:
        if size not in trained:
            log(f"k={size}: the model was trained for {', '.join(map(str, trained))}")
        row = averaged(f"k={size}", questions, [answers(one, size) for one in swept], hard)
        kept = {key: row[key] for key in ("accuracy", "low", "high", "macro_f1", "pos and neg")}
        rows.append({"k": size, **kept})
        if beside:
            single = averaged(f"k={size}", questions, own[size], hard)["accuracy"] if size in own else None
            rows[-1]["trained for k"] = single
    if output is not None:
        shaped = [
            {
                "name": f"k={row['k']}",
                "metrics": {key: row[key] for key in row if key not in ("k", "low", "high")},
                "interval": {"accuracy": [row["low"], row["high"]]},
            }
            for row in rows
        ]
        named = [f"--model {models[0].name}", *(f"--also {path.name}" for path in models[1:])]
        named += [f"--beside {path.name}" for path in beside]
        name = parts.name.removesuffix(" part")
        said = f"{Path(source).name} {name}, {len(questions)} aspects of {len(examples)} sentences"
        known = {s.seed for s in map(settings_of, [*models, *beside]) if s is not None}
        command = " ".join(["clara-absa sweep", *named])
        write_table(output / "sweep.json", shaped, command=command, data=said, seeds=sorted(known))
    return rows
