"""The command ``nrms``: verbs that parse, call one function and print."""

from __future__ import annotations

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
    from nrms.data.rows import BadRows
    from nrms.inference import Answer, Recommender

app = new_app("nrms", "latentlab-nrms", "What to read next: news recommendation from titles and clicks.")

RUNS = Path("runs/nrms")
SAMPLE_RUN = RUNS / "sample"
DATABASE = "sqlite:///runs/nrms/nrms.db"

Data = Annotated[str, typer.Option("--data", help="sample, or a folder that `prepare` wrote.", envvar="NRMS_DATA")]
Model = Annotated[Path, typer.Option("--model", "-m", help="A run folder, or a saved model.")]
Store = Annotated[
    str,
    typer.Option(
        "--database", help="sqlite:///FILE, postgresql://USER@HOST/NAME or pgserver:FOLDER.", envvar="NRMS_DATABASE"
    ),
]
DataOfRun = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="sample, or a folder that `prepare` wrote; by default what the run was trained on.",
        envvar="NRMS_DATA",
        show_default=False,
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Count malformed rows and go on.")]
MinCoverage = Annotated[
    float, typer.Option("--min-coverage", min=0, max=1, help="Share of the live articles that must be embedded.")
]


@verb(app)
def prepare(
    out: Output,
    source: Annotated[
        str,
        typer.Option(
            "--source",
            help="sample, MINDdemo, MINDsmall, MINDlarge (downloaded), dkn:FILE, or a folder with a click log.",
        ),
    ] = "sample",
    output_dir: OutputDir = None,
    seed: Seed = 0,
    limit: Limit = None,
    skip_bad: SkipBad = False,
) -> None:
    """Download MIND or convert a click log to its form; resumable, checksummed."""
    from dataclasses import replace

    from nrms.data.prepare import prepare
    from nrms.sample.generator import SampleConfig, write_sample

    if source == "sample":
        folder = output_dir or RUNS / "sample-data"
        whole = SampleConfig(seed=seed)
        most = limit or whole.train
        account = write_sample(folder, replace(whole, train=min(most, whole.train), dev=min(most, whole.dev)))
    else:
        folder = output_dir or Path("data") / Path(source.removeprefix("dkn:")).resolve().name.lower()
        account = prepare(source, folder, bad=_bad_rows(skip_bad), limit=limit, seed=seed, log=out.log)
    counts = ", ".join(f"{count} {part}" for part, count in account["impressions"].items())
    skipped = f", {account['first_skipped']} and others skipped" if account.get("first_skipped") else ""
    out.result(
        {"folder": str(folder), **account},
        f"{folder}: {counts} impressions{skipped}; try: nrms train --data {shell_word(folder)}",
    )


@verb(app)
def train(
    out: Output,
    data: DataOfRun = None,
    profile: Annotated[
        str | None,
        typer.Option("--profile", help="sample, or full: the paper's sizes (default with a folder)."),
    ] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    output_dir: OutputDir = None,
    resume: Resume = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Throw an earlier run in the folder away.")] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of every random choice.")
    ] = None,
    device: Device = DeviceName.auto,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    cache_dir: Annotated[
        Path | None, typer.Option("--cache-dir", help="Keep the data as arrays here; later runs start at once.")
    ] = None,
    track: Annotated[
        list[str] | None, typer.Option("--track", help="tensorboard or wandb; may be given many times.")
    ] = None,
) -> None:
    """Train a model into a run folder, and embed its articles; with no options on the built-in sample."""
    import os
    from dataclasses import asdict

    from latentlab_shared.config import load_config
    from latentlab_shared.runs import RunFolder
    from nrms.config import NrmsConfig
    from nrms.sample.generator import sample_config
    from nrms.server.corpus import save_catalogue
    from nrms.training.trainer import train

    if data == "":
        raise UserError("is empty", "--data", "Leave the option out for the built-in sample")
    data = data or (str(_data_of(resume)) if resume else "sample")
    profile = profile or ("sample" if data == "sample" else "full")
    if profile not in ("sample", "full"):
        raise UserError(f"{profile!r} is not a profile", "--profile", "Use sample or full")
    folder = resume or output_dir or (SAMPLE_RUN if data == "sample" else RUNS / Path(data).name)
    base = sample_config() if profile == "sample" else NrmsConfig()
    overrides = [*(sets or ()), *([] if seed is None else [f"train.seed={seed}"])]
    # When resuming, the run's own configuration is used, and one that differs is refused.
    settings = None if resume and not config and not overrides else load_config(NrmsConfig, config, overrides, base)
    # The quickstart is run again and again: its own folder, and nothing else, is replaced without asking.
    replaced = out.replaces(folder, data == "sample" and folder == SAMPLE_RUN and not resume)
    if not resume:
        RunFolder.ensure_free(folder, overwrite=overwrite or replaced)  # nothing is written before a refusal
    home = _sample_data() if data == "sample" else Path(data)
    result = train(
        home,
        folder,
        settings,
        resume=resume is not None,
        overwrite=overwrite or replaced,
        device=device.value,
        limit=limit,
        skip_bad=skip_bad,
        cache=cache_dir,
        track=track or (),
        log=out.log,
    )
    if int(os.environ.get("RANK", "0")):
        return  # under torchrun the first process writes and prints
    count = save_catalogue(folder, home if data != "sample" else Path(data), _bad_rows(skip_bad), device.value)
    out.log(
        f"the model is in {folder}, with {count} embedded articles; try: nrms recommend --model {shell_word(folder)}"
    )
    best = "no dev part" if result.best is None else f"best {result.best:.4f} in epoch {result.best_epoch}"
    out.result({**asdict(result), "articles": count}, f"{folder}: {best}, {result.updates} updates")


def _sample_data() -> Path:
    """The built-in log as files, written when they are not there yet."""
    from nrms.sample.generator import write_sample

    home = RUNS / "sample-data"
    if not (home / "prepared.json").is_file():
        write_sample(home)
    return home


def _data_of(run: Path) -> Path:
    """The data that a run was trained on.

    Raises:
        UserError: if the run does not say, or they are gone.
    """
    from latentlab_shared.files import read_json

    account = run / "config.json"
    held = read_json(account).get("data") if account.is_file() else None
    if not isinstance(held, dict) or not isinstance(held.get("folder"), str):
        if not run.is_dir():
            raise UserError("there is no such model folder", run, "Train one with: nrms train")
        raise UserError("this model does not say what it was trained on", run, "Name the data with --data")
    folder = Path(held["folder"])
    if folder == (RUNS / "sample-data").resolve():
        return _sample_data()
    if not folder.is_dir():
        raise UserError("the data that it was trained on are gone", folder, "Name the data with --data")
    return folder


def _bad_rows(skip: bool) -> BadRows:
    from nrms.data.rows import BadRows

    return BadRows(skip=skip)


@verb(app)
def evaluate(
    out: Output,
    model: Model = SAMPLE_RUN,
    data: DataOfRun = None,
    part: Annotated[str, typer.Option("--part", help="dev, test or train.")] = "dev",
    submission: Annotated[
        Path | None, typer.Option("--submission", help="Write the ranks as a leaderboard's .zip; needs no labels.")
    ] = None,
    folds: Annotated[
        Path | None,
        typer.Option("--folds", help="Instead: train and test on folds by user of this DKN log (raw_train.txt)."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds of --folds, from 0.")] = 3,
    output_dir: OutputDir = None,
    cache_dir: Annotated[Path | None, typer.Option("--cache-dir", help="Keep the data as arrays here.")] = None,
    seed: Seed = 0,
    device: Device = DeviceName.auto,
    limit: Limit = None,
    skip_bad: SkipBad = False,
) -> None:
    """AUC, MRR, nDCG@5, nDCG@10 with intervals, baselines beside them; or a submission file; or folds."""
    from latentlab_shared.provenance import command_line, write_table
    from nrms.evaluation.evaluate import evaluate
    from nrms.evaluation.protocol import run_folds
    from nrms.evaluation.report import write_report

    if folds is not None:
        folder = output_dir or RUNS / "folds"
        rows = run_folds(folds, folder, range(seeds), log=out.log)
        write_table(
            folder / "folds.json",
            rows,
            command=command_line(),
            data="Bing log of DKN, 5 folds by user",
            seeds=range(seeds),
        )
        out.result({"rows": rows}, table(_flat_rows(rows), title=f"{folder}: folds by user"))
        return
    home = _sample_data() if data == "sample" else Path(data) if data else _data_of(model)
    if submission is not None:
        count = _submit(model, home / part, submission, limit, skip_bad, cache_dir, device.value)
        out.result({"file": str(submission), "impressions": count}, f"{submission}: {count} impressions")
        return
    found = evaluate(
        model, home, part, limit=limit, skip_bad=skip_bad, cache=cache_dir, seed=seed, device=device.value, log=out.log
    )
    folder = output_dir or model
    about = f"{data or home.name}, {part}, {found.impressions} impressions"
    slices = {"slices": found.slices, "skipped": found.skipped, "notes": found.notes, "model_id": found.model_id}
    write_table(folder / "results.json", found.rows, command=command_line(), data=about, seeds=[seed], **slices)
    page = write_report(folder, found, f"NRMS on {data or home.name}, {part}", model)
    out.log(f"the report: {page}")
    result = {"rows": found.rows, **slices, "seconds": found.seconds, "report": str(page)}
    out.result(result, table(_flat_rows(found.rows), title=about))


def _submit(
    model: Path, part: Path, file: Path, limit: int | None, skip_bad: bool, cache: Path | None, device: str
) -> int:
    """Score a part, which needs no labels, and write the ranks; how many impressions."""
    from nrms.data.log import open_log
    from nrms.evaluation.submission import write_submission
    from nrms.model.folder import load_model_dir
    from nrms.model.scoring import score_log

    held = load_model_dir(model, device)
    log = open_log(part, held.vocabulary, held.config, cache=cache, bad=_bad_rows(skip_bad), limit=limit)
    write_submission(file, log, score_log(held.model, log))
    return len(log)


def _flat_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"name": row["name"], **row["metrics"]} for row in rows]


@verb(app)
def embed(
    out: Output,
    model: Model = SAMPLE_RUN,
    database: Store = DATABASE,
    data: Annotated[
        str | None, typer.Option("--data", help="Add these articles first: sample, a news.tsv or a folder.")
    ] = None,
    events: Annotated[
        Path | None, typer.Option("--events", help="Add the clicks of this behaviors.tsv or folder, too.")
    ] = None,
    vectors: Annotated[
        Path | None, typer.Option("--vectors", help="Take vectors from this cache of nrms.server.precompute.")
    ] = None,
    activate: Annotated[bool, typer.Option("--activate", help="Make the model the one that answers.")] = False,
    min_coverage: MinCoverage = 1.0,
    every: Annotated[
        float, typer.Option("--every", min=0, help="Go on, once per so many seconds.", metavar="SECONDS")
    ] = 0.0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Articles per transaction.")] = 2048,
    device: Device = DeviceName.auto,
    skip_bad: SkipBad = False,
) -> None:
    """Embed the articles that are new or that another model embedded; safe to kill, to repeat, to run many times."""
    from nrms.server.article_recommender.calculate_embeddings import EmbedOptions, run_embed

    options = EmbedOptions(model, database, data, events, vectors, activate, min_coverage, every, batch_size, skip_bad)

    def report(done: dict[str, Any]) -> None:
        rate = done["done"] / max(done["cpu_seconds"], 1e-9)
        state = ", active" if done["active"] else ""
        text = (
            f"model {done['model_id'][:12]}: {done['done']} embedded ({rate:.0f} per CPU-s), {done['left']} left{state}"
        )
        out.result(done, text)
        if not done["done"] and not done["left"] and not every and data is None:
            out.log("nothing was new; articles are added with --data")

    with out.progress("embedding") as advance:
        run_embed(options, device.value, report, advance, out.log)


@verb(app)
def models(out: Output, database: Store = DATABASE) -> None:
    """The models of a database, their state and how much of the catalogue they cover."""
    from dataclasses import asdict

    from nrms.server.store import Store

    store = Store(database, create=False)
    rows = []
    for held in store.models.all():
        coverage = store.models.coverage(held)
        rows.append(asdict(held) | {"embedded": coverage.embedded, "live": coverage.live})
    out.result({"models": rows}, table(rows, ("id", "state", "embedded", "live", "dim", "folder")))


@verb(app)
def activate(
    out: Output,
    model_id: Annotated[str, typer.Argument(help="The model's id, or its beginning.", show_default=False)],
    database: Store = DATABASE,
    min_coverage: MinCoverage = 1.0,
) -> None:
    """Make a model the one that answers; servers exchange model and matrix at once."""
    from dataclasses import asdict

    from nrms.server.store import Store

    chosen = Store(database, create=False).models.activate(model_id, min_coverage)
    out.result(asdict(chosen), f"{chosen.id[:12]} is active")


def _predict(
    out: Output,
    source: Annotated[
        str | None,
        typer.Argument(help="Titles read, one per line, oldest first: a file, or - for stdin.", show_default=False),
    ] = None,
    history: Annotated[
        list[str] | None, typer.Option("--history", help="Id of an article read; may be given many times.")
    ] = None,
    title: Annotated[list[str] | None, typer.Option("--title", help="A title read; may be given many times.")] = None,
    user: Annotated[str, typer.Option("--user", help="A reader whose events are in the database.")] = "",
    k: Annotated[int, typer.Option("-k", min=0, help="How many to recommend.")] = 10,
    category: Annotated[
        list[str] | None, typer.Option("--category", help="Only articles of it; may be given many times.")
    ] = None,
    diversity: Annotated[float, typer.Option("--diversity", min=0, max=1, help="0 the best, 1 the most varied.")] = 0.0,
    model: Model = SAMPLE_RUN,
    database: Annotated[
        str | None,
        typer.Option(
            "--database", help="Answer from its active model instead.", envvar="NRMS_DATABASE", show_default=False
        ),
    ] = None,
    device: Device = DeviceName.auto,
) -> None:
    """Rank the articles for what was read, with reasons."""
    from latentlab_shared.cli import input_text

    titles = list(title or ())
    if source is not None:
        with input_text(source) as lines:
            titles += [line.strip() for line in lines if line.strip()]
    read = list(history or ())
    if user and database is None:
        raise UserError("the reads of a user are in a database", "--user", "Give --database, too")
    recommender, known = _recommender(model, database, user, device.value)
    answer = recommender.recommend(
        [*known, *read], k, history_titles=titles, categories=category or (), diversity=diversity, explain=True
    )
    if answer.missing:
        shown = f"{', '.join(answer.missing[:5])}{' …' if len(answer.missing) > 5 else ''}"
        out.warn(f"not in the catalogue: {shown} (--history takes ids; a title goes in with --title)")
    out.result(answer.to_dict(), _ranking(answer))


verb(app, "recommend")(_predict)
verb(app, "predict")(_predict)


def _recommender(model: Path, database: str | None, user: str, device: str) -> tuple[Recommender, list[str]]:
    """What answers, and what the user is known to have read."""
    from nrms.inference import Recommender

    if database is None:
        found = Recommender.from_pretrained(model, device=device)
        if not len(found):
            fix = f"Go on: nrms train --resume {shell_word(model)}"
            raise UserError("this run has embedded no articles: its training has not ended", model, fix)
        return found, []
    from nrms.server.store import Store
    from nrms.server.sync import Follower

    store = Store(database, create=False)
    if store.models.active() is None:
        fix = "Fill it with: nrms embed --data FOLDER --activate, or: nrms serve"
        raise UserError("no model is active in this database", store.database.name, fix)
    follower = Follower(store, device=device)
    follower.refresh()
    assert follower.recommender is not None
    return follower.recommender, store.events.history(user) if user else []


def _ranking(answer: Answer) -> Any:
    """The ranking as a table."""
    from rich.console import Group
    from rich.text import Text

    rows = [
        {
            "": place,
            "id": item.id,
            "title": item.title,
            "score": item.score,
            "because of": "; ".join(
                f"{_short(r.title)} ({r.contribution:+.2f})" for r in item.reasons[:2] if r.contribution > 0
            ),
        }
        for place, item in enumerate(answer.items, start=1)
    ]
    if answer.fallback:
        return Group(Text(f"Nothing known was read: {answer.fallback} articles."), table(rows, ("", "id", "title")))
    return table(rows, ("", "id", "title", "score", "because of"))


def _short(title: str, width: int = 40) -> str:
    return title if len(title) <= width else title[: width - 1].rsplit(" ", 1)[0] + "…"


@verb(app)
def serve(
    out: Output,
    model: Model = SAMPLE_RUN,
    database: Store = DATABASE,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    search: Annotated[str, typer.Option("--search", help="exact, usearch or database (PostgreSQL).")] = "exact",
    poll: Annotated[float, typer.Option("--poll", min=0.05, help="Seconds between looks at the database.")] = 2.0,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Answers computed at once, per process.")] = 2,
    device: Device = DeviceName.cpu,
) -> None:
    """Serve the API and its page until Ctrl-C; an empty database first gets the model's own articles."""
    check_address(host, port)
    from nrms.server.corpus import open_ready
    from nrms.server.settings import Settings
    from nrms.server.workers import serve

    if search not in ("exact", "usearch", "database"):
        raise UserError(f"{search!r} is no way to search", "--search", "Use exact, usearch or database")
    store = open_ready(database, model, out.log)
    if search == "database" and not store.database.is_postgres:
        raise UserError("search in the database needs PostgreSQL", "--search", "Use exact or usearch with SQLite")
    address = store.database.url
    store.close()
    settings = Settings(address, search, poll, device.value, threads)  # type: ignore[arg-type]  # checked above
    serve(settings, host, port, workers, log=out.log)


@verb(app)
def export(out: Output, model: Model = SAMPLE_RUN, output_dir: OutputDir = None) -> None:
    """Write both encoders as ONNX, each compared with the original, and the model as safetensors."""
    from dataclasses import asdict

    from nrms.inference.export import export_onnx
    from nrms.model.folder import load_model_dir

    written = [asdict(file) for file in export_onnx(load_model_dir(model), output_dir or Path("exports/nrms"))]
    out.result({"files": written}, table(written))


@verb(app)
def bench(
    out: Output,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            help="quality, work, memory, latency, graph, http, pgvector, embed, load; may repeat.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: to see that it runs, not for figures.")] = False,
    size: Annotated[
        list[int] | None, typer.Option("--size", min=100, help="Articles, instead of the suite's own sizes.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=1, max=60, help="Of each phase of the load.")] = 60.0,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of the arithmetic.")] = 1,
    peer: Annotated[str, typer.Option("--peer", help="recommenders: run it beside ours, in its own environment.")] = "",
    output_dir: OutputDir = None,
) -> None:
    """Latency, throughput and load beside their targets; --output-dir keeps them as a results table."""
    from latentlab_shared.provenance import write_table
    from nrms.bench import SUITES, run_bench

    chosen = tuple(suite or SUITES)
    found = run_bench(chosen, quick=quick, sizes=size or (), seconds=seconds, threads=threads, peer=peer, log=out.log)
    if output_dir is not None:
        rows = [
            {"name": row["name"], "metrics": {key: row[key] for key in ("value", "unit", "target", "ok", "against")}}
            for row in found["results"]
        ]
        options = [f"--suite {name}" for name in suite or ()] + [f"--size {count}" for count in size or ()]
        options += [f"--peer {peer}"] if peer else []
        name = f"bench-{'-'.join(chosen) if suite else 'all'}.json"
        command = " ".join(["nrms bench", *options])
        quality = chosen == ("quality",)
        data = "the built-in sample" if quality else "generated, with MIND's sizes and lengths"
        write_table(output_dir / name, rows, command=command, data=data, seeds=(0, 1, 2) if quality else ())
    out.result(found, table(found["results"], ("name", "value", "unit", "target", "ok")))


def main() -> None:
    """Run the command."""
    run(app, "nrms")


if __name__ == "__main__":
    main()
