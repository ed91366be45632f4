"""The work behind the verbs: data to a trained run, a run to figures and files."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlab_shared.config import from_dict, load_config
from latentlab_shared.errors import RunFailed, UserError, shell_word
from latentlab_shared.files import atomic_path, plain, read_json, write_json
from latentlab_shared.provenance import environment, write_table
from latentlab_shared.runs import RunFolder, model_card
from seq2seq_keras.config import PRESETS, DecodeConfig, Settings
from seq2seq_keras.data import Account, Columns, Example, read_parts
from seq2seq_keras.data.encode import build_vocabulary, encode_pairs, with_labels
from seq2seq_keras.data.readers import digest
from seq2seq_keras.sample import sample_parts
from seq2seq_keras.workers import join

if TYPE_CHECKING:
    from seq2seq_keras.inference.summarizer import Summarizer

RUNS = Path("runs/seq2seq_keras")

Log = Callable[[str], None]


@dataclass(frozen=True)
class RunSettings:
    """What a run was asked for; ``config.json`` of a run folder.

    Attributes:
        data: "sample", a file or a folder.
        split: "auto", "files", "date" or "hash".
        text_column: of tables; empty for the usual names.
        summary_column: of tables; empty for the usual names.
        limit: training examples at most; a tenth as many held out.
        skip_bad: leave malformed rows out.
        settings: data, model, training, decoding.
    """

    data: str = "sample"
    split: str = "auto"
    text_column: str = ""
    summary_column: str = ""
    limit: int | None = None
    skip_bad: bool = False
    settings: Settings = Settings()


def read_source(
    source: str,
    *,
    split: str = "auto",
    columns: Columns | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    account: Account | None = None,
    seed: int = 0,
) -> dict[str, list[Example]]:
    """The parts of the built-in ``sample``, which ``seed`` draws, or of anything that ``read_parts`` reads."""
    if source == "sample":
        return sample_parts(limit, seed)
    return read_parts(source, split=split, columns=columns, limit=limit, skip_bad=skip_bad, account=account)


def read_run_parts(asked: RunSettings, account: Account | None = None) -> dict[str, list[Example]]:
    """The labelled parts that a run was or will be trained on."""
    parts = read_source(
        asked.data,
        split=asked.split,
        columns=Columns(asked.text_column, asked.summary_column),
        limit=asked.limit,
        skip_bad=asked.skip_bad,
        account=account,
        seed=asked.settings.train.seed,
    )
    if account is not None:
        account.made = sum(not example.summary for example in parts["train"])
    return {part: with_labels(examples, asked.settings.data) for part, examples in parts.items()}


def is_finished(run: Path) -> bool:
    """Whether the training of a run folder has ended by itself."""
    file = run / "results.json"
    return file.is_file() and "training" in read_json(file)


def settings_of(run: Path) -> RunSettings:
    """What a run folder was asked for."""
    if (run / "vocabulary.txt").is_file():
        raise UserError("this is a saved model, not the run it came from", run, f"Give the run: {run.parent}")
    return from_dict(RunSettings, RunFolder.read(run).config, run / "config.json")


def is_same(run: Path, asked: RunSettings) -> bool:
    """Whether a run folder holds a finished run of exactly these data and settings."""
    return (run / "config.json").is_file() and is_finished(run) and settings_of(run) == asked


def _longer(run: Path, overrides: Iterable[str]) -> RunSettings:
    """The settings of a run that goes on, for more epochs if so told.

    Raises:
        UserError: for any other change, and for fewer epochs than it has behind it.
    """
    asked, done = settings_of(run), len(RunFolder.read(run).metrics())
    settings = load_config(Settings, None, overrides, asked.settings)
    epochs = settings.train.epochs
    if epochs < min(done, asked.settings.train.epochs):
        raise UserError(f"the run has {done} epochs behind it already", "train.epochs", "Give a larger number")
    if settings != replace(asked.settings, train=replace(asked.settings.train, epochs=epochs)):
        raise UserError("a run that goes on keeps its settings", "--resume", "Change train.epochs alone")
    return replace(asked, settings=settings)


def decode_settings(own: Settings, overrides: Iterable[str]) -> DecodeConfig:
    """How a trained model searches, ``decode.key=value`` over its own settings.

    Raises:
        UserError: for a change of anything else.
    """
    settings = load_config(Settings, None, overrides, own)
    if settings != replace(own, decode=settings.decode):
        raise UserError("a trained model keeps its settings", "--set", "Change decode.* alone")
    return settings.decode


def preset_settings(
    preset: str, config_file: Path | None = None, overrides: Iterable[str] = (), seed: int = 0
) -> Settings:
    """A preset with a file's keys over it, and ``key=value`` over those."""
    if preset not in PRESETS:
        raise UserError(f"{preset!r} is not a preset", "--preset", f"Use one of: {', '.join(PRESETS)}")
    base = PRESETS[preset]
    return load_config(Settings, config_file, overrides, replace(base, train=replace(base.train, seed=seed)))


def train_run(
    output: Path,
    asked: RunSettings,
    *,
    preset: str = "small",
    config_file: Path | None = None,
    overrides: Iterable[str] = (),
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    track: Iterable[str] = (),
    cache_dir: Path | None = None,
    log: Log = lambda _: None,
) -> dict[str, Any]:
    """Train a summarizer into a run folder.

    Args:
        output: the run folder.
        asked: data to train on; with ``resume`` the run's own is taken.
        preset: "small" or "full".
        config_file: keys over the preset's.
        overrides: ``key=value`` over the file; with ``resume`` only ``train.epochs=N``, to train on for longer.
        seed: of everything.
        resume: go on with the run in ``output``.
        overwrite: throw away an earlier run in ``output``.
        track: "tensorboard".
        cache_dir: where encoded pairs are kept; None for memory only.
        log: told what happens, a line at a time.

    Returns:
        Where the model is, its size and its losses.

    Raises:
        UserError: for data or settings that cannot be used; nothing is written then.
    """
    if resume:
        asked = _longer(output, overrides)
    else:
        asked = replace(asked, settings=preset_settings(preset, config_file, overrides, seed))
    settings, account = asked.settings, Account()
    parts = read_run_parts(asked, account)
    if not parts["valid"]:
        raise UserError("there is nothing to validate on", asked.data, "Give a val file beside the train file")
    vocabulary = build_vocabulary(parts["train"], settings.data)
    train = encode_pairs(parts["train"], vocabulary, settings.data, cache_dir)
    valid = encode_pairs(parts["valid"], vocabulary, settings.data, cache_dir)
    hashes = {f"{asked.data} ({part})": digest(examples) for part, examples in parts.items()}
    if resume and (began := _data_of(output)) != hashes:
        changed = ", ".join(name for name in hashes if began.get(name) != hashes[name]) or "its parts"
        raise UserError(f"the data is not what the run began with: {changed}", output, "Start a new run")
    workers = join()
    strategy, shard = (workers.strategy, (workers.index, workers.count)) if workers else (None, (0, 1))
    if shard[0]:  # worker 0 writes; this one has its share in every step
        run = RunFolder.read(output) if resume else None
    elif resume:
        run = RunFolder.resume(output, track=track)
        write_json(output / "config.json", plain(asked))  # it may be told to train for longer
    else:
        run = RunFolder.create(output, asked, seed=settings.train.seed, data=hashes, overwrite=overwrite, track=track)
    with run or nullcontext():
        # From here on nothing is wrong with the input: until now there was one line at most, the error's.
        left_out = f"{account.duplicates} duplicates, {account.empty} empty, {account.malformed} malformed"
        log(f"{len(parts['train'])} texts to train on, {len(parts['valid'])} for validation; left out: {left_out}")
        if account.made:
            log(f"{account.made} of the {len(parts['train'])} texts have no summary: their labels are made")

        import keras

        from seq2seq_keras.inference.summarizer import Summarizer
        from seq2seq_keras.model.seq2seq import Seq2Seq
        from seq2seq_keras.training import fit

        keras.utils.set_random_seed(settings.train.seed)
        with strategy.scope() if strategy else nullcontext():
            model = Seq2Seq(len(vocabulary), settings.model)
        log(f"{model.count_params():,} parameters, a vocabulary of {len(vocabulary):,}")
        try:
            fit(model, train, valid, settings.train, run=run, resume=resume, log=log, strategy=strategy, shard=shard)
        except KeyboardInterrupt:
            if run and not shard[0] and run.metrics():  # the best epoch's weights can be used meanwhile
                Summarizer(model, vocabulary, settings).save(output / "model")
            raise KeyboardInterrupt(f"go on with seq2seq-keras train --resume {shell_word(output)}") from None
        if run is None or shard[0]:
            return {}
        summarizer = Summarizer(model, vocabulary, settings)
        summarizer.save(output / "model")
        rows = run.metrics()
        if not rows:
            raise RunFailed("the figures of its epochs are gone", output / "metrics.jsonl")
        held = read_json(output / "results.json").get("training", {}) if is_finished(output) else {}
        if held.get("epochs") == len(rows):  # nothing was left to train: what was measured of it stays
            return {"run": str(output), **held}
        results = {
            "parameters": model.count_params(),
            "vocabulary": len(vocabulary),
            "examples": len(train),
            "epochs": len(rows),
            "valid_loss": min(row["valid_loss"] for row in rows),
            "seconds": sum(row["seconds"] for row in rows),
            "examples_per_second": max(row["examples_per_second"] for row in rows),
        }
        run.write_results({"training": results})
        forget_evaluation(output)
        run.write_card(_card(asked, summarizer, results, run))
    return {"run": str(output), **results}


def _data_of(run: Path) -> dict[str, Any]:
    """Hashes of the data that a run began with."""
    held = read_json(run / "environment.json")
    found = held.get("data") if isinstance(held, dict) else None
    if not isinstance(found, dict):
        raise UserError("this does not say what data the run began with", run / "environment.json", "Start a new run")
    return found


def forget_evaluation(run: Path) -> None:
    """Take away the pages and plots of an earlier evaluation: the model has been trained on."""
    (run / "report.html").unlink(missing_ok=True)
    shutil.rmtree(run / "plots", ignore_errors=True)


def evaluate_run(
    model: Path,
    *,
    data: str | None = None,
    columns: Columns | None = None,
    part: str = "test",
    protocol: str = "repaired",
    beam: int | None = None,
    overrides: Iterable[str] = (),
    limit: int | None = None,
    output: Path | None = None,
    table: Path | None = None,
    name: str = "model",
    log: Log = lambda _: None,
) -> dict[str, Any]:
    """Evaluate a run and write ``results.json``, ``plots/`` and ``report.html``.

    Args:
        model: a run folder.
        data: another source than the run's own.
        columns: of that source, if it is a table.
        part: "test" or "valid".
        protocol: "repaired", or "seed": the references that the seed scored against.
        beam: width, instead of the run's own.
        overrides: ``decode.key=value``, over the run's own.
        limit: texts at most.
        output: where to write; the run folder by default.
        table: a results table to write besides; rows of the same name in it are replaced, other rows kept.
        name: of the model's row in the table.
        log: told what happens.

    Raises:
        UserError: for a part that is not there, a protocol that is not known, or a change of more than decoding.
    """
    _check_part(part, protocol)
    asked = settings_of(model)
    told = list(overrides)
    if table is not None:
        _rows_of(table)
    decode = decode_settings(asked.settings, told)
    decode = replace(decode, beam=beam or decode.beam, n_best=1)
    if data is not None:
        named = columns or Columns(asked.text_column, asked.summary_column)
        asked = replace(asked, data=data, text_column=named.text, summary_column=named.summary)
    parts = read_run_parts(asked)
    examples = parts[part][:limit]
    if not examples:
        raise UserError(f"the {part} part is empty", asked.data)

    from seq2seq_keras.evaluation import evaluate
    from seq2seq_keras.evaluation.report import write_report
    from seq2seq_keras.inference.summarizer import Summarizer

    summarizer = Summarizer.load(model)
    examples, references = _references(parts["train"], examples, protocol, summarizer.settings)
    for folder in (output or model, *([table.parent] if table is not None else [])):
        check_writable(folder)
    seed_exact = protocol == "seed"
    found = evaluate(summarizer, examples, references, config=decode, seed_exact=seed_exact, log=log)
    folder = output or model
    report = write_report(folder, found, f"seq2seq-keras: {model.name}")
    results = {
        "data": shown(asked.data),
        "part": part,
        "protocol": protocol,
        "beam": decode.beam,
        "texts": found.texts,
        "limit": limit,
        "signature": found.signature,
        "rows": found.rows,
        "gains": found.gains,
        "behaviour": found.behaviour,
    }
    hashes = {f"{asked.data} ({part})": digest(examples)}
    file = folder / "results.json"
    held = read_json(file) if output is None and file.is_file() else {}
    trained = {key: held[key] for key in ("training",) if key in held}  # what `train` wrote there stays
    write_json(file, {**trained, **results, "environment": environment(asked.settings.train.seed, hashes)})
    if table is not None:
        _add_to_table(table, results, name, asked, [model.name, *told])
    return {**results, "report": str(report)}


def baselines_run(
    asked: RunSettings,
    *,
    overrides: Iterable[str] = (),
    part: str = "test",
    protocol: str = "repaired",
    limit: int | None = None,
    table: Path | None = None,
) -> dict[str, Any]:
    """Score what needs no training on a held-out part: the bars that a model has to clear.

    Args:
        asked: the source.
        overrides: ``data.*`` settings, which the labels depend on.
        part: "test" or "valid".
        protocol: "repaired" or "seed".
        limit: texts at most.
        table: a results table to write.
    """
    _check_part(part, protocol)
    asked = replace(asked, settings=load_config(Settings, None, overrides, Settings()))
    parts = read_run_parts(asked)

    from seq2seq_keras.evaluation import score_baselines

    examples, references = _references(parts["train"], parts[part][:limit], protocol, asked.settings)
    rows, signature = score_baselines(examples, references, asked.settings.data, seed_exact=protocol == "seed")
    results = {
        "data": shown(asked.data),
        "part": part,
        "protocol": protocol,
        "texts": len(examples),
        "limit": limit,
        "signature": signature,
        "rows": rows,
    }
    if table is not None:
        told = "".join(f" --set {item}" for item in overrides)
        _write_table(table, results, rows, asked, f"seq2seq-keras baselines --data {shown(asked.data)}{told}")
    return results


def _check_part(part: str, protocol: str) -> None:
    if protocol not in ("repaired", "seed"):
        raise UserError(f"{protocol!r} is not a protocol", "--protocol", "Use repaired or seed")
    if part not in ("test", "valid"):
        raise UserError(f"{part!r} is not a held-out part", "--part", "Use test or valid")


def _references(
    train: list[Example], examples: list[Example], protocol: str, settings: Settings
) -> tuple[list[Example], list[str]]:
    """The texts that have a reference, and their references."""
    from seq2seq_keras.evaluation import references_of, seed_protocol

    seed = protocol == "seed"
    found = seed_protocol(train, examples, settings.data) if seed else references_of(examples, settings.data)
    kept = [(e, r) for e, r in zip(examples, found, strict=True) if r]
    if not kept:
        raise UserError("no text of this part has a reference", "evaluate", "Give other data, or another --part")
    return [e for e, _ in kept], [r for _, r in kept]


def shown(data: str) -> str:
    """A source's name without the folders of this machine."""
    return data if data == "sample" else Path(data).name


def check_writable(folder: Path) -> None:
    """Make a folder that can be written to, before the work whose results it will hold.

    Raises:
        UserError: if that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"this folder cannot be made ({error.strerror})", folder, "Choose another") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError("no permission to write here", folder, "Choose another folder")


def _rows_of(table: Path) -> list[dict[str, Any]]:
    """The rows of a results table; none if there is no file."""
    held = read_json(table) if table.is_file() else {"rows": []}
    rows = held.get("rows") if isinstance(held, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "name" in row for row in rows):
        raise UserError("this is no results table", table, "Give another file")
    return rows


def _add_to_table(path: Path, results: dict[str, Any], name: str, asked: RunSettings, told: list[str]) -> None:
    """Write or extend a results table: baselines once, and a row for each model that was evaluated."""
    ours, *rows = results["rows"]
    more = {k: v for k, v in results["behaviour"][0].items() if k != "name"}
    rows = [{**ours, "name": name, "metrics": {**ours["metrics"], **more}}, *rows]
    if path.is_file():
        old = [row for row in _rows_of(path) if row["name"] not in {r["name"] for r in rows}]
        rows = [*old, *rows]
    run, *sets = told
    command = f"seq2seq-keras evaluate --model {shell_word(run)} --data {results['data']} --beam {results['beam']}"
    command += "".join(f" --set {item}" for item in sets)
    _write_table(path, results, rows, asked, command)


def _write_table(
    path: Path, results: dict[str, Any], rows: list[dict[str, Any]], asked: RunSettings, command: str
) -> None:
    told = f"{results['data']}, {results['texts']} texts of the {results['part']} part"
    command += f" --part {results['part']} --protocol {results['protocol']}"
    command += f" --limit {results['limit']}" if results["limit"] else ""
    seeds = [asked.settings.train.seed]
    write_table(path, rows, command=command, data=told, seeds=seeds, rouge=results["signature"])


def prepare(
    source: str,
    output: Path,
    *,
    split: str = "auto",
    columns: Columns | None = None,
    labels: str = "repaired",
    limit: int | None = None,
    skip_bad: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Convert any source to ``train``, ``valid`` and ``test`` JSONL shards with summaries.

    Args:
        source: "sample", a file or a folder.
        output: the folder; it must not hold shards yet.
        split: see ``read_parts``.
        columns: of tables.
        labels: "repaired" or "seed_exact", for texts without a summary.
        limit: training examples at most.
        skip_bad: leave malformed rows out.
        seed: of the sample.

    Returns:
        The examples of each part, what was left out, and how well the sentence splitter does on hard cases.
    """
    from seq2seq_keras.data.hard_cases import splitter_accuracy

    shards = {part: output / f"{part}.jsonl.gz" for part in ("train", "valid", "test")}
    if any(path.exists() for path in shards.values()):
        raise UserError("the folder holds prepared data already", output, "Choose another --output-dir")
    if labels not in ("repaired", "seed_exact"):
        raise UserError(f"{labels!r} is not a kind of label", "--labels", "Use repaired or seed_exact")
    account = Account()
    parts = read_source(
        source, split=split, columns=columns, limit=limit, skip_bad=skip_bad, account=account, seed=seed
    )
    config = replace(Settings().data, labels="seed_exact" if labels == "seed_exact" else "repaired")
    hashes = {}
    for part, path in shards.items():
        examples = with_labels(parts[part], config)
        hashes[part] = digest(examples)
        with atomic_path(path) as temporary, gzip.open(temporary, "wt", encoding="utf-8") as file:
            for e in examples:
                row = {"id": e.id, "text": e.text, "summary": e.summary, "group": e.group, "date": e.date}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    counts = {part: len(examples) for part, examples in parts.items()}
    one_sentence = sum(e.summary == e.text for e in with_labels(parts["train"], config))
    found = {
        "examples": counts,
        "duplicates": account.duplicates,
        "empty": account.empty,
        "malformed": account.malformed,
        "summary_is_text": one_sentence,
        "splitter": splitter_accuracy(config.splitter),
        "sha256": hashes,
    }
    write_json(output / "prepared.json", found)
    return {"folder": str(output), **found}


def _card(asked: RunSettings, summarizer: Summarizer, results: dict[str, Any], run: RunFolder) -> str:
    labels = asked.settings.data.labels
    return model_card(
        "LSTM summarizer",
        f"One-sentence summaries: encoder-decoder with attention, {results['parameters']:,} parameters.",
        {
            "Use": f"`seq2seq-keras summarize article.txt --model {shell_word(run.path)}`",
            "Training data": f"`{asked.data}`, {results['examples']} texts; {labels} labels where it has no summaries",
            "Validation": f"- loss per word {results['valid_loss']:.4f} after {results['epochs']} epochs",
            "Limits": "It knows the kind of text it was trained on. Names and numbers can be wrong: check them.",
        },
        run,
    )
