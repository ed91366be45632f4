"""The command ``seq2seq-keras``: verbs that parse, call one function and print."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentlab_shared.cli import (
    ConfigFile,
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
from latentlab_shared.errors import UserError

if TYPE_CHECKING:
    from seq2seq_keras.config import DecodeConfig
    from seq2seq_keras.inference import Summary

app = new_app("seq2seq-keras", "latentlab-seq2seq-keras", "One-sentence summaries from scratch, in Keras 3.")

DEFAULT_RUN = Path("runs/seq2seq_keras/small")

Data = Annotated[str, typer.Option("--data", help="sample, a file or a folder.", envvar="SEQ2SEQ_KERAS_DATA")]
Model = Annotated[Path, typer.Option("--model", "-m", help="A run folder, or a saved model.")]
Split = Annotated[str, typer.Option("--split", help="auto, files, date or hash.")]
TextColumn = Annotated[str, typer.Option("--text-column", help="Column of a table; else the usual names.")]
SummaryColumn = Annotated[str, typer.Option("--summary-column", help="Column of a table; else the usual names.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Count malformed rows and go on.")]
Demo = Annotated[bool, typer.Option("--demo", help="Use the built-in item.")]
Source = Annotated[
    str | None,
    typer.Argument(help="A text file, a folder or table of texts, or - for stdin.", show_default=False),
]


@contextmanager
def _tensorflow() -> Iterator[None]:
    """Import TensorFlow without the lines that its libraries write to stderr while they load."""
    import os

    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import seq2seq_keras.model.seq2seq  # noqa: F401
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
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
    seed: Seed = 0,
    limit: Limit = None,
    skip_bad: SkipBad = False,
) -> None:
    """Train a summarizer into a run folder; with no options on built-in items, in a few minutes."""
    from seq2seq_keras.pipeline import RUNS, RunSettings, train_run

    given = config or sets or data != "sample" or limit or output_dir or overwrite or text_column or summary_column
    if resume and given:
        raise UserError("the run keeps its own data and settings", "--resume", "Leave the other options out")
    folder = resume or output_dir or RUNS / preset
    with _tensorflow():
        found = train_run(
            folder,
            RunSettings(data, split, text_column, summary_column, limit, skip_bad),
            preset=preset,
            config_file=config,
            overrides=sets or (),
            seed=seed,
            resume=resume is not None,
            # The quickstart is run again and again: its own folder, and nothing else, is replaced without asking.
            overwrite=overwrite or (folder == DEFAULT_RUN and data == "sample"),
            track=track or (),
            cache_dir=cache_dir,
            log=out.log,
        )
    out.log(f"the model is in {folder}; try: seq2seq-keras summarize --demo --model {folder}")
    out.result(found, table([found]))


@verb(app)
def evaluate(
    out: Output,
    model: Model = DEFAULT_RUN,
    data: Annotated[str | None, typer.Option("--data", help="Another source than the run's own.")] = None,
    part: Annotated[str, typer.Option("--part", help="test or valid.")] = "test",
    protocol: Annotated[str, typer.Option("--protocol", help="repaired, or the seed's references.")] = "repaired",
    beam: Annotated[int | None, typer.Option("--beam", min=1, max=64, help="Width; the run's own by default.")] = None,
    output_dir: OutputDir = None,
    table_file: Annotated[
        Path | None, typer.Option("--table", help="Results table to write or to add this model to.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Of the model in the table.")] = "model",
    limit: Limit = None,
) -> None:
    """Measure a model on held-out texts, baselines beside it; writes results.json, plots and report.html."""
    from seq2seq_keras.pipeline import evaluate_run

    with _tensorflow():
        found = evaluate_run(
            model,
            data=data,
            part=part,
            protocol=protocol,
            beam=beam,
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
    beam: Annotated[int, typer.Option("--beam", min=1, max=64, help="1 is greedy.")] = 1,
    n_best: Annotated[int, typer.Option("--n-best", min=1, max=64, help="Summaries of each text.")] = 1,
    min_length: Annotated[int, typer.Option("--min-length", min=0, help="Words at least.")] = 1,
    max_length: Annotated[int, typer.Option("--max-length", min=0, help="Words at most; 0: as trained.")] = 0,
    limit: Limit = None,
    skip_bad: SkipBad = False,
) -> None:
    """Summarize a file, a folder or table of texts (one line each), or stdin."""
    from seq2seq_keras.config import DecodeConfig

    texts, many = _texts(source, demo, limit, skip_bad, out)
    try:
        config = DecodeConfig(beam=max(beam, n_best), n_best=n_best, min_length=min_length, max_length=max_length)
    except ValueError as error:
        raise UserError(str(error), "seq2seq-keras summarize") from None
    summaries = _summarize(model, [text for _, text in texts], config)
    if many and out.json:
        named = zip(texts, summaries, strict=True)
        out.result({"summaries": [{"id": name, **s.to_dict()} for (name, _), s in named]})
    elif many:
        lines = [f"{name}\t{s.text}" for (name, _), s in zip(texts, summaries, strict=True)]
        out.result({}, "\n".join(lines))
    else:
        out.result(summaries[0].to_dict(), "\n".join((summaries[0].text, *summaries[0].alternatives)))


verb(app, "summarize")(_predict)
verb(app, "predict")(_predict)


def _summarize(model: Path, texts: list[str], config: DecodeConfig) -> list[Summary]:
    with _tensorflow():
        from seq2seq_keras.inference import Summarizer

        return Summarizer.load(model).summarize(texts, config)


def _texts(
    source: str | None, demo: bool, limit: int | None, skip_bad: bool, out: Output
) -> tuple[list[tuple[str, str]], bool]:
    """Names and texts to summarize, and whether they may be many."""
    from seq2seq_keras.data import Account, read_examples

    if demo:
        from seq2seq_keras.sample import demo as built_in

        return [("demo", built_in().text)], False
    if source is None:
        raise UserError("nothing to summarize", "seq2seq-keras", "Give a file, a folder, - for stdin, or --demo")
    if source == "-":
        return [("stdin", sys.stdin.buffer.read().decode("utf-8", errors="replace"))], False
    account = Account()
    found = read_examples(source, limit=limit, skip_bad=skip_bad, account=account)
    if account.malformed or account.duplicates:
        out.warn(f"left out: {account.malformed} malformed, {account.duplicates} duplicates")
    return [(e.id, e.text) for e in found], not source.endswith((".txt", ".txt.gz"))


@verb(app)
def attention(
    out: Output,
    source: Source = None,
    demo: Demo = False,
    model: Model = DEFAULT_RUN,
    output_dir: OutputDir = None,
) -> None:
    """Draw what each word of a summary looked at, and how far it was copied, as PNG."""
    from seq2seq_keras.config import DecodeConfig

    texts, _ = _texts(source, demo, 1, False, out)
    summary = _summarize(model, [texts[0][1]], DecodeConfig())[0]
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
            summarizer, output_dir or Path("exports/seq2seq_keras"), tuple(format or FORMATS), compared
        )
    out.result({"files": written}, table(written))


@verb(app)
def bench(
    out: Output,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Rounds in turns; medians are given.")] = 3,
    part: Annotated[
        list[str] | None, typer.Option("--part", help="decode, beam or train; may be given many times.")
    ] = None,
    table_file: Annotated[Path | None, typer.Option("--table", help="Results table to write.")] = None,
    seed: Seed = 0,
) -> None:
    """Measure decoding beside the seed's per-token loop, beam beside greedy, and training speed."""
    known = ("decode", "beam", "train")
    for name in part or ():
        if name not in known:
            raise UserError(f"{name!r} is not a part", "--part", f"Use one of: {', '.join(known)}")
    with _tensorflow():
        from seq2seq_keras.bench import run_bench

        rows = run_bench(repeats=repeats, seed=seed, parts=part or known, log=out.log)
    if table_file is not None:
        from latentlab_shared.provenance import write_table

        command = f"seq2seq-keras bench --repeats {repeats}"
        write_table(table_file, rows, command=command, data="random texts of 50 tokens", seeds=[seed])
    columns = ("name", "ratio", "seconds", "other_seconds", "examples_per_second", "parameters")
    out.result({"results": rows}, table([{"name": r["name"], **r["metrics"]} for r in rows], columns))


@verb(app)
def serve(out: Output, model: Model = DEFAULT_RUN, host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Serve the API and its page until Ctrl-C."""
    with _tensorflow():
        from seq2seq_keras.inference import Summarizer
        from seq2seq_keras.serving.app import serve

        summarizer = Summarizer.load(model)
    serve(summarizer, host, port, log=out.log)


def main() -> None:
    """Run the command."""
    run(app, "seq2seq-keras")


if __name__ == "__main__":
    main()
