"""The command ``rsr-net``: verbs that parse, call one function and print."""

from __future__ import annotations

import sys
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
    Sets,
    new_app,
    run,
    table,
    verb,
)
from latentlab_shared.errors import CONTROLS, UserError, shell_word
from latentlab_shared.serving import check_address

if TYPE_CHECKING:
    from rsr_net.data import Example
    from rsr_net.inference import Summary

app = new_app("rsr-net", "latentlab-rsr-net", "Summaries by refining an embedding until it stands still.")

SAMPLE_RUN = Path("runs/rsr_net/sample")
FOLDS = 5
MAX_SEED = 2**32 - 1  # `config.MAX_SEED`, whose module is not imported for --help
Data = Annotated[str, typer.Option("--data", help="sample, hub:NAME, a file or a folder.", envvar="RSR_NET_DATA")]
Model = Annotated[Path, typer.Option("--model", "-m", help="A run folder, or a saved model.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Count malformed rows and go on.")]
CacheDir = Annotated[Path, typer.Option("--cache-dir", help="Where embeddings are kept.")]
Split = Annotated[str, typer.Option("--split", help="train, valid or test.")]


@verb(app)
def prepare(
    out: Output,
    source: Annotated[
        str, typer.Option("--source", help="stories (downloads CNN/DailyMail), hub:NAME, a .tgz, a file or a folder.")
    ] = "stories",
    output_dir: OutputDir = None,
    split: Annotated[str, typer.Option("--split", help="published (needs the url lists), or hash.")] = "published",
    url_lists: Annotated[
        Path | None, typer.Option("--url-lists", help="Folder with all_train.txt, all_val.txt, all_test.txt.")
    ] = None,
    url: Annotated[
        list[str] | None, typer.Option("--url", help="Another address of the archives; may be given many times.")
    ] = None,
    limit: Limit = None,
    skip_bad: SkipBad = False,
) -> None:
    """Download or convert data to JSONL shards; resumable, checksummed."""
    from rsr_net.data.prepare import STORY_URLS, prepare
    from rsr_net.data.readers import BadRows

    folder = output_dir or Path("data/cnndm")
    lists = url_lists.parent if url_lists and url_lists.name == "url_lists" else url_lists
    with out.progress("downloading") as advance:
        account = prepare(
            source,
            folder,
            urls=tuple(url) if url else STORY_URLS,
            url_lists=lists,
            split=split,
            limit=limit,
            bad=BadRows(skip=skip_bad),
            log=out.log,
            advance=advance,
        )
    articles = account["articles"]
    assert isinstance(articles, dict)
    counted = ", ".join(f"{count} {part}" for part, count in articles.items())
    left = f"; left out: {account['without_article']} without article, {account['skipped']} malformed"
    out.result({"folder": str(folder), **account}, f"{folder}: {counted}{left}")


@verb(app)
def train(
    out: Output,
    profile: Annotated[
        str, typer.Option("--profile", help="sample, or full: CNN/DailyMail with BART-base.")
    ] = "sample",
    data: Annotated[
        str | None, typer.Option("--data", help="sample, hub:NAME, a file or a folder; else the profile's.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", help="tiny, lsa, minilm, a hub name or a folder; the profile's by default."),
    ] = None,
    decoder: Annotated[bool, typer.Option("--decoder", help="Also train a decoder, for --mode generate.")] = False,
    cache_dir: Annotated[Path, typer.Option("--cache-dir", help="Where embeddings are kept.")] = Path(
        "runs/embeddings"
    ),
    config: ConfigFile = None,
    sets: Sets = None,
    output_dir: OutputDir = None,
    resume: Resume = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Throw an earlier run in the folder away.")] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=MAX_SEED, help="Of every random choice; 0 by default.")
    ] = None,
    device: Device = DeviceName.auto,
    limit: Limit = None,
    skip_bad: SkipBad = False,
) -> None:
    """Train a summarizer into a run folder; with no options on the built-in articles, in seconds."""
    from dataclasses import replace

    from rsr_net.pipeline import PROFILES, RUNS, train_run

    if profile not in PROFILES:
        raise UserError(f"{profile!r} is not a profile", "--profile", f"Use one of: {', '.join(PROFILES)}")
    for name, value in (("--data", data), ("--encoder", encoder)):
        if value == "":
            raise UserError("is empty", name, "Leave the option out for the profile's own")
    given = (config, sets, data, encoder, limit, output_dir, seed)
    if resume and (overwrite or skip_bad or any(option is not None for option in given)):
        raise UserError("the run keeps its own data and settings", "--resume", "Leave the other options out")
    base = PROFILES[profile]
    settings = replace(
        base,
        data=data or base.data,
        encoder=encoder or base.encoder,
        limit=limit,
        skip_bad=skip_bad,
        decoder=decoder,
        seed=seed or 0,
    )
    # The quickstart is run again and again: its own folder, and nothing else, is replaced without asking.
    folder = resume or output_dir or RUNS / profile
    quick = profile == "sample" and data in (None, "sample")
    replaced = out.replaces(folder, quick and folder == SAMPLE_RUN and not resume)
    results = train_run(
        folder,
        settings,
        config_file=config,
        overrides=sets or (),
        resume=resume is not None,
        overwrite=overwrite or replaced,
        device=device.value,
        cache_dir=cache_dir,
        log=out.log,
        detail=out.debug,
        progress=out.progress,
    )
    scores = results["validation"]
    rows = [{"state": name, "R²": s["r2"], "cosine": s["cosine"]} for name, s in scores.items()]
    out.log(f"the model is in {folder}; try: rsr-net summarize --demo --model {shell_word(folder)}")
    out.result(results, table(rows, title=f"{folder}: {results['articles']} validation articles"))


def _predict(
    out: Output,
    source: Annotated[
        str | None,
        typer.Argument(help="A text file, a folder of .txt or .story files, or - for stdin.", show_default=False),
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Use the built-in article.")] = False,
    model: Model = SAMPLE_RUN,
    mode: Annotated[str, typer.Option("--mode", help="extract, retrieve or generate.")] = "extract",
    max_sentences: Annotated[int, typer.Option("--max-sentences", "-n", min=1, max=8, help="At most so many.")] = 3,
    explain: Annotated[bool, typer.Option("--explain", help="Show what each step read and how far it went.")] = False,
    device: Device = DeviceName.auto,
    limit: Limit = None,
    skip_bad: SkipBad = False,
) -> None:
    """Summarize a file, a folder (one line per article) or stdin."""
    from rsr_net.inference import Summarizer

    examples, folder = _articles(source, demo, limit, skip_bad, out)
    summarizer = Summarizer.from_pretrained(model, device=device.value)
    summaries = summarizer.summarize_examples(examples, mode, max_sentences)  # type: ignore[arg-type]  # checked there
    if summarizer.trained_on == "sample" and not demo:
        out.warn(f"{model} has seen only the built-in articles; for real text: rsr-net train --data YOUR_ARTICLES")
    for summary in {s.warning: s for s in summaries if s.warning}.values():
        out.warn(summary.warning)
    if folder:
        named = list(zip(examples, summaries, strict=True))
        records = [{"id": e.id, **_record(s, explain)} for e, s in named]
        if out.json:
            out.result({"summaries": records})
        else:
            out.result({}, "\n".join(f"{_shown(e.id)}\t{_shown(s.text)}" for e, s in named))
    elif out.json or not explain:
        out.result(_record(summaries[0], explain), _shown(summaries[0].text))
    else:
        out.result({}, _explanation(summaries[0]))


verb(app, "summarize")(_predict)
verb(app, "predict")(_predict)


def _articles(
    source: str | None, demo: bool, limit: int | None, skip_bad: bool, out: Output
) -> tuple[list[Example], bool]:
    """The articles to summarize, and whether they came from a folder or a file of many."""
    from rsr_net.data import BadRows, read_examples
    from rsr_net.data.readers import read_stream
    from rsr_net.data.stories import make_example

    if demo and source is not None:
        raise UserError("--demo has an article of its own", source, "Give a file or --demo, not both")
    if demo:
        from rsr_net.sample import demo as built_in

        return [built_in()], False
    if source is None:
        raise UserError("nothing to summarize", "rsr-net summarize", "Give a file, a folder, - for stdin, or --demo")
    if source == "-":
        return [make_example("stdin", read_stream(sys.stdin.buffer, "stdin"), [], "stdin")], False
    bad = BadRows(skip=skip_bad)
    examples = list(read_examples(source, None, limit=limit, bad=bad))
    if bad.count or bad.without_article:
        out.warn(f"left out: {bad.count} malformed, {bad.without_article} without article text")
    if not examples:
        raise UserError("there is no article here", source)
    return examples, Path(source).is_dir() or source.endswith((".jsonl", ".jsonl.gz"))


def _record(summary: Summary, explain: bool) -> dict[str, Any]:
    """What ``--json`` prints; the trace only when it is asked for."""
    record = summary.to_dict()
    if not explain:
        del record["steps"], record["sentences"]
    return record


def _explanation(summary: Summary) -> Any:
    """The summary, then a table of the steps: on a terminal with colour, else plain."""
    from rich.console import Group
    from rich.text import Text

    longest = max((step.residual for step in summary.steps), default=1.0) or 1.0
    rows = [
        {
            "step": step.number,
            "moved": f"{step.residual:.4f}",
            "": "█" * round(12 * step.residual / longest),
            "read": "  ".join(f"[{read.index}] {read.weight:.0%}" for read in step.reads),
        }
        for step in summary.steps
    ]
    named = {read.index: read.sentence for step in summary.steps for read in step.reads}
    key = Text("\n").join(
        [
            Text("sentences read, counted from 0:"),
            *(Text(f"[{i}] {_short(_shown(named[i]))}", style="dim") for i in sorted(named)),
        ]
    )
    picked = Text("\n").join(Text(f"[{i}] {_shown(summary.sentences[i])}", style="bold") for i in summary.indices)
    facts = Text(f"{len(summary.steps)} steps, {len(summary.sentences)} sentences")
    if summary.confidence is not None:
        facts.append(f", confidence {summary.confidence:.2f} (the chance to be nearer to the truth than is typical)")
    if summary.faithfulness is not None:
        facts.append(f", faithfulness {summary.faithfulness:.2f}")
    shown = picked if summary.indices else Text(_shown(summary.text), style="bold")
    return Group(shown, Text(), facts, table(rows) if rows else Text("no step was taken"), key)


def _shown(text: str) -> str:
    """A text as it may be printed: on one line, and nothing for a terminal to obey."""
    return text.translate(CONTROLS)


def _short(sentence: str, width: int = 100) -> str:
    return sentence if len(sentence) <= width else sentence[: width - 1].rstrip() + "…"


@verb(app)
def serve(
    out: Output,
    model: Model = SAMPLE_RUN,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    device: Device = DeviceName.auto,
) -> None:
    """Serve the API and its page until Ctrl-C."""
    check_address(host, port)
    from latentlab_shared.serving import serve_app
    from rsr_net.inference import Summarizer
    from rsr_net.serving.app import create_app

    serve_app(create_app(Summarizer.from_pretrained(model, device=device.value)), host, port, out.log)


@verb(app)
def export(
    out: Output,
    model: Model = SAMPLE_RUN,
    output_dir: OutputDir = None,
    format: Annotated[
        list[str] | None, typer.Option("--format", help="onnx, torch or safetensors; may be given many times.")
    ] = None,
) -> None:
    """Write the refiner in portable forms, each compared with the original."""
    from rsr_net.pipeline import export_model

    formats = tuple(format) if format else ("onnx", "safetensors")
    written = export_model(model, output_dir or Path("exports/rsr_net"), formats, out.log)
    out.result({"files": written}, table(written))


@verb(app)
def evaluate(
    out: Output,
    model: Model = SAMPLE_RUN,
    data: Annotated[
        str | None, typer.Option("--data", help="sample, hub:NAME, a file or a folder; else what the run trained on.")
    ] = None,
    split: Split = "test",
    cache_dir: CacheDir = Path("runs/embeddings"),
    output_dir: OutputDir = None,
    device: Device = DeviceName.auto,
    limit: Limit = None,
    skip_bad: SkipBad = False,
) -> None:
    """Measure a model on held-out articles, baselines beside it; writes results.json, plots and report.html."""
    from rsr_net.pipeline import evaluate_run

    results = evaluate_run(
        model,
        data=data,
        split=split,
        output=output_dir,
        cache_dir=cache_dir,
        device=device.value,
        limit=limit,
        skip_bad=skip_bad,
        log=out.log,
    )
    columns = ("prediction", "r2", "cosine", "centred_r_at_1", "centred_mrr")
    out.result(
        results,
        [
            table(results["embedding"], columns, title=f"the embedding of {results['articles']} summaries"),
            table(results["extraction"], title=f"the picked sentences, {results['signature']}"),
            f"report: {results['report']}",
        ],
    )


@verb(app)
def bench(
    out: Output,
    data: Annotated[str, typer.Option("--data", help="sample, or a file or folder of articles.")] = "sample",
    articles: Annotated[int, typer.Option("--articles", min=16, help="How many to measure on.")] = 64,
    encoder: Annotated[str, typer.Option("--encoder", help="What the seed's way calls every epoch.")] = "minilm",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Interleaved rounds; medians are given.")] = 3,
    output_dir: OutputDir = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="Of every random choice.")] = 0,
) -> None:
    """Measure training with cached vectors beside encoding in every epoch, and what depth costs."""
    from rsr_net.bench import run_bench

    results = run_bench(
        articles=articles, encoder=encoder, repeats=repeats, seed=seed, output=output_dir, data=data, log=out.log
    )
    out.result({"results": results}, table(results))


@verb(app)
def folds(
    out: Output,
    data: Annotated[
        Path, typer.Option("--data", help="Folder with train, val and short_train .jsonl.gz.", envvar="RSR_NET_FOLDS")
    ],
    encoder: Annotated[str, typer.Option("--encoder", help="lsa, or what `train` takes.")] = "lsa",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many, from 0.")] = 3,
    count: Annotated[int, typer.Option("--folds", min=2, help="How many folds.")] = FOLDS,
    work_dir: Annotated[Path, typer.Option("--work-dir", help="Embeddings and finished folds; kept.")] = Path(
        "runs/rsr_net/folds"
    ),
    ablate: Annotated[
        int, typer.Option("--ablate", min=0, help="Instead: the recipe with one thing changed, on so many folds.")
    ] = 0,
    output_dir: OutputDir = None,
    limit: Limit = None,
) -> None:
    """Measure the recipe and its baselines by cross-validation: the figures of the README. Resumable."""
    from rsr_net.evaluation.ablation import run_ablation, write_ablation
    from rsr_net.evaluation.folds import run_folds
    from rsr_net.evaluation.tables import write_tables

    if not data.is_dir():
        raise UserError("there is no such folder", data, "Give --data the folder of the articles")
    chosen = tuple(range(seeds))
    # As a reader would type it, on a checkout of their own.
    command = f"rsr-net folds --data DATA/{data.resolve().name} --encoder {encoder} --seeds {seeds}"
    command += f" --folds {count}" if count != FOLDS else ""
    command += f" --limit {limit}" if limit else ""
    try:
        if ablate:
            rows = run_ablation(
                data, work_dir, encoder=encoder, seeds=chosen, folds=count, few=ablate, limit=limit, log=out.log
            )
        else:
            found = run_folds(data, work_dir, encoder=encoder, seeds=chosen, folds=count, limit=limit, log=out.log)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("finished folds are kept; the same command goes on") from None
    if ablate:
        if output_dir is not None:
            about = f"CNN/DailyMail, full-length articles, {min(ablate, count)} of {count} folds, encoder {encoder}"
            path = write_ablation(output_dir, rows, command=f"{command} --ablate {ablate}", data=about, seeds=chosen)
            out.log(f"wrote {path}")
        out.result({"ablation": rows}, table([{"name": row["name"], **row["metrics"]} for row in rows]))
        return
    if output_dir is not None:
        for path in write_tables(output_dir, found, encoder, chosen, command):
            out.log(f"wrote {path}")
    shown = [
        table([{"name": row["name"], **row["metrics"]} for row in rows], title=part)
        for part, rows in found.items()
        if part != "about"
    ]
    out.result(found, shown)


def main() -> None:
    """Run the command."""
    run(app, "rsr-net")


if __name__ == "__main__":
    main()
