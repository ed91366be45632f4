"""The command ``seq2seq-keras``: verbs that parse, call one function and print."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentlab_shared.cli import (
    ConfigFile,
    Device,
    DeviceName,
    Host,
    Limit,
    Output,
    OutputDir,
    Port,
    Resume,
    Seed,
    Sets,
    new_app,
    run,
    table,
    verb,
)
from latentlab_shared.errors import UserError, shell_word
from latentlab_shared.serving import check_address

if TYPE_CHECKING:
    from seq2seq_keras.inference import Summary

app = new_app("seq2seq-keras", "latentlab-seq2seq-keras", "One-sentence summaries from scratch, in Keras 3.")

DEFAULT_RUN = Path("runs/seq2seq_keras/small")
EXPORTS = Path("exports/seq2seq_keras")

Data = Annotated[str, typer.Option("--data", help="sample, a file or a folder.", envvar="SEQ2SEQ_KERAS_DATA")]
Model = Annotated[Path, typer.Option("--model", "-m", help="A run folder, or a saved model.")]
Split = Annotated[str, typer.Option("--split", help="auto, files, date or hash.")]
TextColumn = Annotated[str, typer.Option("--text-column", help="Column of a table; else the usual names.")]
SummaryColumn = Annotated[str, typer.Option("--summary-column", help="Column of a table; else the usual names.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Count malformed rows and go on.")]
DecodeSets = Annotated[
    list[str] | None, typer.Option("--set", metavar="K=V", help="decode.key=value; may be given many times.")
]
Beam = Annotated[int | None, typer.Option("--beam", min=1, max=64, help="Width, 1 is greedy; else the run's own.")]
Demo = Annotated[bool, typer.Option("--demo", help="Use the built-in item.")]
Source = Annotated[
    str | None,
    typer.Argument(help="A text file, a folder or table of texts, or - for stdin.", show_default=False),
]


@contextmanager
def _tensorflow(device: DeviceName = DeviceName.auto) -> Iterator[None]:
    """Import TensorFlow without the lines that its libraries write to stderr while they load; choose the device."""
    import os

    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import seq2seq_keras.model.seq2seq  # noqa: F401
        from seq2seq_keras.model.device import use_device
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
    use_device(device.value)
    yield


@verb(app)
def prepare(
    out: Output,
    source: Annotated[str, typer.Option("--source", help="sample, a file or a folder.")] = "sample",
    output_dir: OutputDir = None,
    split: Split = "auto",
    text_column: TextColumn = "",
    summary_column: SummaryColumn = "",
    labels: Annotated[str, typer.Option("--labels", help="repaired or seed_exact pseudo-summaries.")] = "repaired",
    limit: Limit = None,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
) -> None:
    """Convert texts to JSONL shards with summaries: cleaned, each once, split so that nothing leaks."""
    from seq2seq_keras.data import Columns
    from seq2seq_keras.pipeline import prepare

    found = prepare(
        source,
        output_dir or Path("data/seq2seq_keras"),
        split=split,
        columns=Columns(text_column, summary_column),
        labels=labels,
        limit=limit,
        skip_bad=skip_bad,
        seed=seed,
    )
    counted = ", ".join(f"{count} {part}" for part, count in found["examples"].items())
    left = f"left out: {found['duplicates']} duplicates, {found['empty']} empty, {found['malformed']} malformed"
    splitter = f"sentence splitter: {found['splitter']} hard cases right"
    out.result(found, f"{found['folder']}: {counted}\n{left}\n{splitter}")


@verb(app)
def train(
    out: Output,
    preset: Annotated[str, typer.Option("--preset", help="small (CPU minutes), or full (the seed's sizes).")] = "small",
    data: Data = "sample",
    split: Split = "auto",
    text_column: TextColumn = "",
    summary_column: SummaryColumn = "",
    config: ConfigFile = None,
    sets: Sets = None,
    output_dir: OutputDir = None,
    resume: Resume = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Throw an earlier run in the folder away.")] = False,
    track: Annotated[list[str] | None, typer.Option("--track", help="tensorboard.")] = None,
    cache_dir: Annotated[Path | None, typer.Option("--cache-dir", help="Keep encoded texts in this folder.")] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, max=64, help="Processes that train together; on machines: TF_CONFIG.")
    ] = 1,
    device: Device = DeviceName.auto,
    seed: Seed = 0,
    limit: Limit = None,
    skip_bad: SkipBad = False,
) -> None:
    """Train a summarizer into a run folder; with no options on built-in items, in a few minutes."""
    import os
    from dataclasses import replace

    from seq2seq_keras.pipeline import RUNS, RunSettings, is_same, preset_settings, train_run

    if workers > 1 and "TF_CONFIG" not in os.environ:
        from seq2seq_keras.workers import launch

        raise typer.Exit(launch(workers, [sys.executable, "-m", "seq2seq_keras.cli", *sys.argv[1:]]))

    source_given = data not in ("sample", os.environ.get("SEQ2SEQ_KERAS_DATA"))
    columns_given = text_column or summary_column or split != "auto" or skip_bad
    settings_given = config or preset != "small" or seed or limit or output_dir or overwrite
    if resume and (source_given or columns_given or settings_given):
        raise UserError("the run keeps its own data and settings", "--resume", "Leave the other options out")
    folder = resume or output_dir or RUNS / preset
    asked = RunSettings(data, split, text_column, summary_column, limit, skip_bad)
    # The quickstart is run again and again: its own folder is replaced without asking by a run that is the same.
    again = folder == DEFAULT_RUN and not resume
    again = again and is_same(folder, replace(asked, settings=preset_settings(preset, config, sets or (), seed)))
    again = out.replaces(folder, again)
    with _tensorflow(device):
        found = train_run(
            folder,
            asked,
            preset=preset,
            config_file=config,
            overrides=sets or (),
            seed=seed,
            resume=resume is not None,
            overwrite=overwrite or again,
            track=track or (),
            cache_dir=cache_dir,
            log=out.log,
        )
    if found:  # empty for all workers but the first
        out.log(f"the model is in {folder}; try: seq2seq-keras summarize --demo --model {shell_word(folder)}")
        out.result(found, table([found]))


@verb(app)
def evaluate(
    out: Output,
    model: Model = DEFAULT_RUN,
    data: Annotated[str | None, typer.Option("--data", help="Another source than the run's own.")] = None,
    text_column: TextColumn = "",
    summary_column: SummaryColumn = "",
    part: Annotated[str, typer.Option("--part", help="test or valid.")] = "test",
    protocol: Annotated[str, typer.Option("--protocol", help="repaired, or the seed's references.")] = "repaired",
    beam: Beam = None,
    sets: Sets = None,
    output_dir: OutputDir = None,
    table_file: Annotated[
        Path | None, typer.Option("--table", help="Results table to write or to add this model to.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Of the model in the table.")] = "model",
    device: Device = DeviceName.auto,
    limit: Limit = None,
) -> None:
    """Measure a model on held-out texts, baselines beside it; writes results.json, plots and report.html."""
    from seq2seq_keras.data import Columns
    from seq2seq_keras.pipeline import evaluate_run

    if (text_column or summary_column) and data is None:
        raise UserError("the run knows its own columns", "--text-column, --summary-column", "Give --data, too")
    with _tensorflow(device):
        found = evaluate_run(
            model,
            data=data,
            columns=Columns(text_column, summary_column) if text_column or summary_column else None,
            part=part,
            protocol=protocol,
            beam=beam,
            overrides=sets or (),
            limit=limit,
            output=output_dir,
            table=table_file,
            name=name,
            log=out.log,
        )
    scores = [{"name": row["name"], **row["metrics"]} for row in found["rows"]]
    gains = [
        {"name": row["name"], **{m: f"{v:+.3f} [{row['interval'][m][0]:+.3f}, {row['interval'][m][1]:+.3f}]"}}
        for row in found["gains"]
        for m, v in row["metrics"].items()
        if m == "f1"
    ]
    title = f"{found['texts']} texts of {found['data']} ({found['part']}), references: {found['protocol']}"
    out.result(
        found,
        [
            table(scores, title=title),
            table(gains, title="token F1, model minus baseline, 95 % intervals"),
            table(found["behaviour"], title="behaviour"),
            found["signature"],
            f"report: {found['report']}",
        ],
    )


@verb(app)
def ablate(
    out: Output,
    data: Data = "sample",
    split: Split = "auto",
    text_column: TextColumn = "",
    summary_column: SummaryColumn = "",
    variant: Annotated[
        list[str] | None, typer.Option("--variant", help="seed, masked, pointer, ...; may be given many times.")
    ] = None,
    sets: Sets = None,
    output_dir: OutputDir = None,
    texts: Annotated[int | None, typer.Option("--texts", min=1, help="Held-out texts to score.")] = None,
    table_file: Annotated[Path | None, typer.Option("--table", help="Results table to write.")] = None,
    device: Device = DeviceName.auto,
    seed: Seed = 0,
    limit: Limit = None,
) -> None:
    """Train and evaluate variants, one change at a time; finished ones are kept, interrupted ones go on."""
    from seq2seq_keras.pipeline import RUNS, RunSettings

    asked = RunSettings(data, split, text_column, summary_column, limit)
    with _tensorflow(device):
        from seq2seq_keras.ablation import VARIANTS
        from seq2seq_keras.ablation import ablate as train_variants

        folder = output_dir or RUNS / f"ablation_{Path(data).stem}"
        names = variant or tuple(VARIANTS)
        try:
            rows = train_variants(
                folder, asked, names, overrides=sets or (), seed=seed, texts=texts, table=table_file, log=out.log
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt("finished variants are kept; the same command goes on") from None
    columns = ("name", "f1", "rouge1", "rouge2", "rougeL", "distinct", "repeated_bigrams", "parameters", "epochs")
    out.result({"results": rows}, table([{"name": row["name"], **row["metrics"]} for row in rows], columns))


@verb(app)
def baselines(
    out: Output,
    data: Data = "sample",
    split: Split = "auto",
    text_column: TextColumn = "",
    summary_column: SummaryColumn = "",
    part: Annotated[str, typer.Option("--part", help="test or valid.")] = "test",
    protocol: Annotated[str, typer.Option("--protocol", help="repaired, or the seed's references.")] = "repaired",
    sets: Sets = None,
    table_file: Annotated[Path | None, typer.Option("--table", help="Results table to write.")] = None,
    limit: Limit = None,
) -> None:
    """Score what needs no training: leads, copying, the longest sentence, the label function, the best span."""
    from seq2seq_keras.pipeline import RunSettings, baselines_run

    asked = RunSettings(data, split, text_column, summary_column)
    found = baselines_run(asked, overrides=sets or (), part=part, protocol=protocol, limit=limit, table=table_file)
    scores = [{"name": row["name"], **row["metrics"]} for row in found["rows"]]
    title = f"{found['texts']} texts of {found['data']} ({found['part']}), references: {found['protocol']}"
    out.result(found, [table(scores, title=title), found["signature"]])


def _predict(
    out: Output,
    source: Source = None,
    demo: Demo = False,
    model: Model = DEFAULT_RUN,
    beam: Beam = None,
    n_best: Annotated[int, typer.Option("--n-best", min=1, max=64, help="Summaries of each text.")] = 1,
    min_length: Annotated[int | None, typer.Option("--min-length", min=0, help="Words at least.")] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", min=0, help="Words at most; 0: as trained.")] = None,
    sets: DecodeSets = None,
    text_column: TextColumn = "",
    device: Device = DeviceName.auto,
    limit: Limit = None,
    skip_bad: SkipBad = False,
) -> None:
    """Summarize a file, a folder or table of texts (one line each), or stdin."""
    texts, many = _texts(source, demo, limit, skip_bad, out, text_column)
    given = {"beam": beam, "n_best": n_best, "min_length": min_length, "max_length": max_length}
    summaries = _summarize(model, [text for _, text in texts], device, given, sets or ())
    if not demo:
        out.warn_of_sample(model, "seq2seq-keras train --data YOUR_TEXTS")
    if many and out.json:
        named = zip(texts, summaries, strict=True)
        out.result({"summaries": [{"id": name, **s.to_dict()} for (name, _), s in named]})
    elif many:
        named = zip(texts, summaries, strict=True)
        lines = [f"{name}\t{text}" for (name, _), s in named for text in (s.text, *s.alternatives)]
        out.result({}, "\n".join(lines))
    else:
        out.result(summaries[0].to_dict(), "\n".join((summaries[0].text, *summaries[0].alternatives)))


verb(app, "summarize")(_predict)
verb(app, "predict")(_predict)


def _summarize(
    model: Path, texts: list[str], device: DeviceName, given: dict[str, int | None], sets: Sequence[str] = ()
) -> list[Summary]:
    """Summaries by the model's own settings, with those that are given on the command line over them."""
    from dataclasses import replace

    from seq2seq_keras.pipeline import decode_settings

    with _tensorflow(device):
        from seq2seq_keras.inference import Summarizer

        summarizer = Summarizer.load(model)
        own = replace(decode_settings(summarizer.settings, sets), n_best=1)
        changes = {key: value for key, value in given.items() if value is not None}
        changes["beam"] = max(changes.get("beam", own.beam), changes.get("n_best", 1))
        try:
            config = replace(own, **changes)
        except ValueError as error:
            raise UserError(str(error), "seq2seq-keras summarize") from None
        return summarizer.summarize(texts, config)


def _texts(
    source: str | None, demo: bool, limit: int | None, skip_bad: bool, out: Output, text_column: str = ""
) -> tuple[list[tuple[str, str]], bool]:
    """Names and texts to summarize, and whether they may be many; a text that comes twice is summarized twice."""
    from seq2seq_keras.data import Account, Columns, read_examples

    if demo and source is not None:
        raise UserError("--demo has a text of its own", source, "Leave one of them out")
    if demo:
        from seq2seq_keras.sample import demo as built_in

        return [("demo", built_in().text)], False
    if source is None:
        raise UserError("nothing to summarize", "seq2seq-keras", "Give a file, a folder, - for stdin, or --demo")
    if source == "-":
        text = sys.stdin.buffer.read().decode("utf-8", errors="replace")
        if not any(c.isalnum() for c in text):
            raise UserError("there are no words to summarize", "stdin", "Give a text of at least one word")
        return [("stdin", text)], False
    account, columns = Account(), Columns(text_column)
    found = read_examples(source, columns=columns, limit=limit, skip_bad=skip_bad, account=account, unique=False)
    if account.malformed or account.empty:
        out.warn(f"left out: {account.malformed} malformed, {account.empty} empty")
    return [(e.id, e.text) for e in found], not source.endswith((".txt", ".txt.gz"))


@verb(app)
def attention(
    out: Output,
    source: Source = None,
    demo: Demo = False,
    model: Model = DEFAULT_RUN,
    output_dir: OutputDir = None,
    device: Device = DeviceName.auto,
) -> None:
    """Draw what each word of a summary looked at, and how far it was copied, as PNG."""
    texts, _ = _texts(source, demo, 1, False, out)
    summary = _summarize(model, [texts[0][1]], device, {})[0]
    from seq2seq_keras.evaluation.report import attention_plot, copy_plot

    folder = output_dir or Path("plots/seq2seq_keras")
    files = [attention_plot(summary, folder / "attention.png")]
    if summary.copied:
        files.append(copy_plot(summary, folder / "copied.png"))
    found: dict[str, Any] = {**summary.to_dict(), "files": [str(f) for f in files]}
    out.result(found, "\n".join([summary.text, *found["files"]]))


@verb(app)
def export(
    out: Output,
    model: Model = DEFAULT_RUN,
    output_dir: OutputDir = None,
    format: Annotated[
        list[str] | None, typer.Option("--format", help="keras, savedmodel, onnx or tflite; may be given many times.")
    ] = None,
    texts: Annotated[int, typer.Option("--texts", min=1, help="Held-out texts to compare the ids on.")] = 50,
) -> None:
    """Write the model with its whole search in portable forms, each compared with Python's ids."""
    from seq2seq_keras.sample import generate

    with _tensorflow():
        from seq2seq_keras.inference import Summarizer
        from seq2seq_keras.inference.export import FORMATS
        from seq2seq_keras.inference.export import export as export_model

        compared = [e.text for e in generate(texts, seed=1_000_005)]
        summarizer = Summarizer.load(model)
        written = export_model(
            summarizer, output_dir or EXPORTS / model.resolve().name, tuple(format or FORMATS), compared
        )
    out.result({"files": written}, table(written))


@verb(app)
def bench(
    out: Output,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Rounds in turns; medians are given.")] = 3,
    part: Annotated[
        list[str] | None, typer.Option("--part", help="sample, decode, beam or train; may be given many times.")
    ] = None,
    table_file: Annotated[Path | None, typer.Option("--table", help="Results table to write.")] = None,
    device: Device = DeviceName.auto,
    seed: Seed = 0,
) -> None:
    """Measure decoding beside the seed's per-token loop, beam beside greedy, and training speed."""
    known = ("sample", "decode", "beam", "train")  # bench.PARTS, whose module imports TensorFlow
    for name in part or ():
        if name not in known:
            raise UserError(f"{name!r} is not a part", "--part", f"Use one of: {', '.join(known)}")
    with _tensorflow(device):
        from seq2seq_keras.bench import run_bench
        from seq2seq_keras.model.device import one_thread

        one_thread()
        rows = run_bench(repeats=repeats, seed=seed, parts=part or known, log=out.log)
    if table_file is not None:
        from latentlab_shared.provenance import write_table

        command = f"seq2seq-keras bench --repeats {repeats}" + "".join(f" --part {name}" for name in part or ())
        data = "random texts of 50 tokens, one thread, CPU time, medians"
        write_table(table_file, rows, command=command, data=data, seeds=[seed])
    results = [{"name": row["name"], **row["metrics"]} for row in rows]
    out.result({"results": results}, table(results, ("name", "value", "unit", "target", "ok", "wall_ratio", "seconds")))


@verb(app)
def serve(
    out: Output,
    model: Model = DEFAULT_RUN,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    sets: DecodeSets = None,
    device: Device = DeviceName.auto,
) -> None:
    """Serve the API and its page until Ctrl-C."""
    check_address(host, port)
    from dataclasses import replace

    from latentlab_shared.serving import serve_app
    from seq2seq_keras.pipeline import decode_settings

    with _tensorflow(device):
        from seq2seq_keras.inference import Summarizer
        from seq2seq_keras.serving.app import create_app

        summarizer = Summarizer.load(model)
        settings = summarizer.settings
        summarizer.settings = replace(settings, decode=decode_settings(settings, sets or ()))
    serve_app(create_app(summarizer), host, port, out.log)


def main() -> None:
    """Run the command."""
    run(app, "seq2seq-keras")


if __name__ == "__main__":
    main()
