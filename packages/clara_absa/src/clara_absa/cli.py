"""The command ``clara-absa``: verbs that parse, call one function and print."""

from __future__ import annotations

import os
import re
from itertools import islice
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
    input_text,
    new_app,
    run,
    table,
    verb,
)
from latentlab_shared.errors import UserError, shell_word
from latentlab_shared.serving import check_address

if TYPE_CHECKING:
    from clara_absa.configs.schema import AspectSentimentResult

app = new_app("clara-absa", "latentlab-clara-absa", "Aspect sentiment from a handful of memory tokens.")

SAMPLE_RUN = Path("runs/clara_absa/sample")

Data = Annotated[
    str | None,
    typer.Option("--data", help="sample, a file or a folder; else what was trained on.", envvar="CLARA_DATA"),
]
TaskOption = Annotated[str, typer.Option("--task", help="atsa (terms), acsa (categories) or joint.")]
Model = Annotated[Path, typer.Option("--model", "-m", help="A run folder, or a saved model.")]
Profile = Annotated[str, typer.Option("--profile", help="sample, scratch, light or phi.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Throw an earlier run in the folder away.")]
Aspects = Annotated[
    list[str] | None, typer.Option("--aspect", "-a", help="A term, or start:end characters; may be given many times.")
]
Size = Annotated[int | None, typer.Option("--size", min=1, help="Use only the first memory vectors.")]
Abstain = Annotated[float, typer.Option("--abstain", min=0, max=1, help="No answer below this probability.")]


@verb(app)
def prepare(
    out: Output,
    source: Annotated[
        str, typer.Option("--source", help="mams (downloads it), a folder, or an .xml, .csv, .jsonl or .txt file.")
    ] = "mams",
    output_dir: OutputDir = None,
    task: TaskOption = "atsa",
    limit: Limit = None,
) -> None:
    """Download MAMS (checksummed), or convert data to JSON lines; every malformed row is named."""
    from clara_absa.data_utils.prepare import prepare_data

    if source != "mams" and output_dir is None:
        raise UserError("converted files need a folder of their own", "--output-dir", "Name it; data/raw is for MAMS")
    folder = output_dir or Path("data/raw")
    with out.progress("downloading") as advance:
        account = prepare_data(source, folder, task, limit=limit, advance=advance)
    counted = ", ".join(f"{part} {held['sentences']} sentences" for part, held in account.items())
    out.result({"folder": str(folder), "parts": account}, f"{folder}: {counted}")


def _ensure_alone(context: typer.Context) -> None:
    """Refuse every option beside --resume that a run keeps itself."""
    free = {"resume", "device", "quantise", "json", "quiet", "verbose"}
    for option in context.command.params:
        source = context.get_parameter_source(str(option.name))
        if option.name not in free and source is not None and source.name == "COMMANDLINE":
            flag = max(option.opts, key=len)
            raise UserError("the run keeps its own data and settings", "--resume", f"Leave {flag} out")


@verb(app)
def train(
    out: Output,
    context: typer.Context,
    profile: Profile = "sample",
    data: Data = None,
    task: TaskOption = "atsa",
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="tiny, a hub id or a folder; the profile's by default.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="A run that reads the text; for loss.distill.")
    ] = None,
    quantise: Annotated[bool, typer.Option("--quantise", help="Load the backbone in 4 bits (QLoRA, a GPU).")] = False,
    config: ConfigFile = None,
    sets: Sets = None,
    output_dir: OutputDir = None,
    resume: Resume = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    device: Device = DeviceName.auto,
    limit: Limit = None,
) -> None:
    """Train a model into a run folder; with no options on generated sentences, in minutes."""
    from dataclasses import replace

    from clara_absa.configs.base_config import ClaraConfig
    from clara_absa.pipeline import RUNS, train_run
    from clara_absa.training.settings import RunSettings

    if resume:
        _ensure_alone(context)
    clara = ClaraConfig.default(profile)
    clara = replace(clara, backbone=backbone) if backbone else clara
    if profile != "sample" and not data and not resume:
        raise UserError("this profile needs data", "--data", "Give a folder with train.xml and val.xml")
    settings = RunSettings(data or "sample", task, limit, seed, teacher, clara)  # type: ignore[arg-type]  # checked there
    # The quickstart is run again and again: its own folder, and nothing else, is replaced without asking.
    folder = resume or output_dir or RUNS / profile
    replaced = out.replaces(folder, folder == SAMPLE_RUN and profile == settings.data == "sample" and not resume)
    results = train_run(
        folder,
        settings,
        config_file=config,
        overrides=sets or (),
        resume=resume is not None,
        overwrite=overwrite or replaced,
        device=device.value,
        quantise=quantise,
        log=out.log,
        detail=out.debug,
        progress=out.progress,
    )
    if "validation" not in results:  # a helping process of a launcher
        return
    out.log(f"the model is in {folder}; try: clara-absa predict --demo --model {shell_word(folder)}")
    rows = [{"figure": name, "validation": value} for name, value in results["validation"].items()]
    out.result(results, table(rows, title=f"{folder}: {results['sentences']} training sentences"))


@verb(app)
def pretrain(
    out: Output,
    context: typer.Context,
    data: Annotated[str, typer.Option("--data", help="sample, a file or a folder.", envvar="CLARA_DATA")] = "sample",
    task: TaskOption = "atsa",
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="A plain text file to learn from too; may be given many times.")
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the texts.")] = 5,
    width: Annotated[int, typer.Option("--width", min=16, help="Width of the backbone.")] = 128,
    layers: Annotated[int, typer.Option("--layers", min=1, help="Layers of the backbone.")] = 2,
    dropout: Annotated[
        float, typer.Option("--dropout", min=0, max=0.9, help="Dropout, kept for later training.")
    ] = 0.3,
    output_dir: OutputDir = None,
    resume: Resume = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    device: Device = DeviceName.auto,
    limit: Limit = None,
) -> None:
    """Train a small backbone as a language model; then: train --backbone DIR/backbone."""
    from clara_absa.pretraining import PretrainSettings, pretrain_run

    if resume:
        _ensure_alone(context)
    folder = resume or output_dir or Path("runs/clara_absa/backbone")
    settings = PretrainSettings(
        data,
        task,  # type: ignore[arg-type]  # checked there
        tuple(map(str, text or ())),
        epochs,
        width,
        layers,
        dropout,
        seed,
        limit,
    )
    results = pretrain_run(
        folder,
        settings,
        resume=resume is not None,
        overwrite=overwrite,
        device=device.value,
        log=out.log,
        detail=out.debug,
        progress=out.progress,
    )
    out.result(results, f"{results['backbone']}: perplexity {results['perplexity']:.2f} on held-out text")


@verb(app)
def evaluate(
    out: Output,
    model: Model = SAMPLE_RUN,
    data: Data = None,
    task: TaskOption = "atsa",
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "val",
    against: Annotated[
        Path | None, typer.Option("--against", help="Another model, such as one that reads the text.")
    ] = None,
    generate: Annotated[bool, typer.Option("--generate", help="Also measure extraction and reconstruction.")] = False,
    output_dir: OutputDir = None,
    device: Device = DeviceName.auto,
    limit: Limit = None,
) -> None:
    """Measure a model on held-out sentences, baselines and probes beside it; results.json, plots, report.html."""
    from clara_absa.evaluation.run import evaluate_run

    results = evaluate_run(
        model,
        data=data,
        task=task,
        split=split,
        against=against,
        generate=generate,
        output=output_dir,
        device=device.value,
        limit=limit,
        log=out.log,
    )
    if results["cut"]:
        out.warn(f"{results['cut']} of {results['sentences']} texts are longer than the model reads: they were cut")
    title = f"{results['questions']} aspects of {results['sentences']} sentences"
    out.result(
        results,
        [table(results["answers"], title=title), table(results["groups"]), f"report: {results['report']}"],
    )


@verb(app)
def compare(
    out: Output,
    runs: Annotated[list[Path], typer.Argument(help="Run folders; those of one kind are seeds of one row.")],
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "val",
    output_dir: OutputDir = None,
    device: Device = DeviceName.auto,
) -> None:
    """Measure several runs beside baselines and probes, averaged over seeds: the figures of the README."""
    from clara_absa.evaluation.tables import compare_runs

    found = compare_runs(runs, split=split, device=device.value, output=output_dir, log=out.log)
    probes = [table(found["probes"], title="with memories that should be worth nothing")] if found["probes"] else []
    out.result(found, [table(found["rows"]), *probes])


@verb(app)
def predict(
    out: Output,
    source: Annotated[
        str | None, typer.Argument(help="A text, a file with one text per line, or - for stdin.", show_default=False)
    ] = None,
    aspects: Aspects = None,
    demo: Annotated[bool, typer.Option("--demo", help="Use the built-in example.")] = False,
    memory: Annotated[Path | None, typer.Option("--memory", help="A file of `compress`, instead of a text.")] = None,
    model: Model = SAMPLE_RUN,
    mode: Annotated[str, typer.Option("--mode", help="score, or generate: let the model write.")] = "score",
    size: Size = None,
    abstain: Abstain = 0.0,
    device: Device = DeviceName.auto,
    limit: Limit = None,
) -> None:
    """The sentiment of aspects; without --aspect the model looks for them. PyABSA's markup names them in the text."""
    from clara_absa.inference import AspectSentiment, Memory
    from clara_absa.inference.ask import ask

    if memory is not None and (source is not None or demo):
        raise UserError("a memory stands for its text", "--memory", "Leave the text out")
    asked = [_aspect(one) for one in aspects or ()]
    texts = _texts("predict", source, demo, limit) if memory is None else {}
    answerer = AspectSentiment.from_pretrained(model, device=device.value)
    if demo and not asked:
        from clara_absa.sample.generator import demo as built_in

        asked = list(built_in().aspects)
    kept = Memory.load(memory) if memory else None
    answers = ask(answerer, texts, asked, kept, mode=mode, size=size, abstain=abstain)
    cut = [kept.cut] if kept else [answerer.is_cut(text) for text, _ in answers]
    _warn_of_cuts(out, cut, answerer.batcher.max_tokens)
    if not demo:
        out.warn_of_sample(model, "clara-absa train --data YOUR_SENTENCES --profile light")
    records = [
        {"text": text, "aspects": [r.to_dict() for r in found], "cut": short}
        for (text, found), short in zip(answers, cut, strict=True)
    ]
    if out.json:
        out.result(records[0] if len(records) == 1 else {"texts": records})
    else:
        out.result({}, "\n".join(_line(text, found, len(answers) > 1) for text, found in answers))


def _warn_of_cuts(out: Output, cut: list[bool], limit: int) -> None:
    if any(cut):
        which = "the text is" if len(cut) == 1 else f"{sum(cut)} of {len(cut)} texts are"
        out.warn(f"{which} longer than {limit} tokens: only the beginning was read")


def _aspect(given: str) -> Any:
    """A term as it stands, or the span of ``start:end``."""
    span = re.fullmatch(r"(-?\d{1,9}):(-?\d{1,9})", given)
    if span is None:
        return given
    if "-" in given:
        raise UserError(f"{given} is no span", "--aspect", "A span is start:end, characters counted from 0")
    return int(span[1]), int(span[2])


def _texts(verb: str, source: str | None, demo: bool, limit: int | None) -> dict[str, str]:
    """Where each text stands, and the text: the built-in one, the argument, or the lines of a file or of stdin."""
    if demo and source is not None:
        raise UserError("the built-in example stands for a text", "--demo", "Leave the text or --demo out")
    if demo:
        from clara_absa.sample.generator import demo as built_in

        return {"--demo": built_in().text}
    if source is None:
        raise UserError("nothing to read", f"clara-absa {verb}", "Give a text, a file, - for stdin, or --demo")
    if source != "-" and not os.path.isfile(source):  # takes any text, as Path.is_file does not a long one
        if "\n" not in source and (source.endswith((".txt", ".csv", ".jsonl")) or source.startswith(("/", "./"))):
            raise UserError("there is no such file", source, "Give a text, a file, or - for stdin")
        return {"text": source}
    with input_text(source) as file:
        lines = ((f"{source}:{number}", line.rstrip("\r\n")) for number, line in enumerate(file, 1))
        texts = dict(islice((pair for pair in lines if pair[1].strip()), limit))
    if not texts:
        raise UserError("there is no text here", source)
    return texts


def _line(text: str, results: list[AspectSentimentResult], with_text: bool) -> str:
    found = [f"{r.aspect.term}\t{r.polarity or 'no answer'}\t{r.confidence:.2f}" for r in results]
    found = found or ["no aspect found"]
    return "\n".join([text, *(f"  {line}" for line in found)] if with_text else found)


@verb(app)
def compress(
    out: Output,
    source: Annotated[
        str | None, typer.Argument(help="A text, a file with one text per line, or - for stdin.", show_default=False)
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Use the built-in example.")] = False,
    model: Model = SAMPLE_RUN,
    output_dir: OutputDir = None,
    cache_dir: Annotated[
        Path | None, typer.Option("--cache-dir", help="Also keep memories in the shared cache here.")
    ] = None,
    device: Device = DeviceName.auto,
    limit: Limit = None,
) -> None:
    """Write the memory of each text as safetensors; `predict --memory FILE` asks it."""
    from clara_absa.inference import AspectSentiment

    folder = output_dir or Path("memories")
    texts = _texts("compress", source, demo, limit)
    answerer = AspectSentiment.from_pretrained(model, device=device.value)
    memories = answerer.compress_batch(list(texts.values()), cache_dir)
    _warn_of_cuts(out, [memory.cut for memory in memories], answerer.batcher.max_tokens)
    rows = []
    for number, memory in enumerate(memories, 1):
        path = folder / f"{number:05d}.safetensors"
        memory.save(path)
        held = {"tokens": memory.tokens, "memory": len(memory.vectors), "ratio": memory.ratio, "cut": memory.cut}
        rows.append({"file": str(path), **held})
    out.result({"memories": rows}, table(rows))


@verb(app)
def sweep(
    out: Output,
    model: Model = SAMPLE_RUN,
    also: Annotated[
        list[Path] | None, typer.Option("--also", help="Another seed of that model, averaged with it; may repeat.")
    ] = None,
    data: Data = None,
    task: TaskOption = "atsa",
    sizes: Annotated[list[int] | None, typer.Option("--size", min=1, help="k; may be given many times.")] = None,
    beside: Annotated[
        list[Path] | None, typer.Option("--beside", help="A run trained for one k; may be given many times.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "val",
    output_dir: OutputDir = None,
    device: Device = DeviceName.auto,
    limit: Limit = None,
) -> None:
    """Accuracy of one model for each number of memory vectors, beside models that were trained for that number."""
    from clara_absa.evaluation.tables import sweep_run

    rows = sweep_run(
        [model, *(also or ())],
        sizes or (),
        beside=beside or (),
        data=data,
        task=task,
        split=split,
        device=device.value,
        limit=limit,
        output=output_dir,
        log=out.warn,
    )
    out.result({"rows": rows}, table(rows))


@verb(app)
def reproduce(
    out: Output,
    backbone: Annotated[
        str, typer.Option("--backbone", help="A hub id or a folder.")
    ] = "microsoft/Phi-3.5-mini-instruct",
    data: Annotated[
        str | None, typer.Option("--data", help="MAMS; downloaded if left out.", envvar="CLARA_DATA")
    ] = None,
    quantise: Annotated[bool, typer.Option("--quantise", help="Load the backbone in 4 bits.")] = False,
    sets: Sets = None,
    output_dir: OutputDir = None,
    seed: Seed = 0,
    device: Device = DeviceName.auto,
    limit: Limit = None,
) -> None:
    """The seed's experiment in one command: MAMS, Phi-3.5, eight memory tokens, evaluation; needs a GPU."""
    from dataclasses import replace

    from clara_absa.configs.base_config import ClaraConfig
    from clara_absa.data_utils.prepare import prepare_data
    from clara_absa.evaluation.run import evaluate_run
    from clara_absa.pipeline import RUNS, train_run
    from clara_absa.training.settings import RunSettings

    folder = output_dir or RUNS / "reproduce"
    if data is None:
        data = "data/raw"
        with out.progress("downloading") as advance:
            prepare_data("mams", Path(data), "atsa", flag="--data", advance=advance)
    clara = replace(ClaraConfig.default("phi"), backbone=backbone)
    settings = RunSettings(data, "atsa", limit, seed, None, clara)
    resuming = (folder / "config.json").is_file()
    train_run(
        folder,
        settings,
        overrides=() if resuming else sets or (),
        resume=resuming,
        device=device.value,
        quantise=quantise,
        log=out.log,
        detail=out.log,
        progress=out.progress,
    )
    results = evaluate_run(folder, device=device.value, generate=True, log=out.log)
    out.result(results, table(results["answers"]))


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
    from clara_absa.inference import AspectSentiment
    from clara_absa.serving.app import create_app
    from latentlab_shared.serving import serve_app

    serve_app(create_app(AspectSentiment.from_pretrained(model, device=device.value)), host, port, out.log)


@verb(app)
def bench(
    out: Output,
    sentences: Annotated[int, typer.Option("--sentences", min=8, help="Sentences to measure on.")] = 32,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Interleaved rounds; medians are given.")] = 3,
    vocabulary: Annotated[int, typer.Option("--vocabulary", min=300, help="Tokens of the backbone.")] = 4000,
    data: Annotated[str, typer.Option("--data", help="sample, a file or a folder.", envvar="CLARA_DATA")] = "sample",
    output_dir: OutputDir = None,
    seed: Seed = 0,
) -> None:
    """Measure training and prediction beside the seed's way, on one model in CPU time."""
    from clara_absa.bench import run_bench

    results = run_bench(
        sentences=sentences,
        repeats=repeats,
        vocabulary=vocabulary,
        data=data,
        seed=seed,
        output=output_dir,
        log=out.log,
    )
    columns = ("name", "value", "unit", "against", "target", "ok", "ours", "other")
    out.result({"results": results}, table(results, columns))


@verb(app)
def export(
    out: Output,
    model: Model = SAMPLE_RUN,
    output_dir: OutputDir = None,
) -> None:
    """Write a model in one plain folder: adapter merged, safetensors; answers are compared with the original's."""
    from clara_absa.inference.export import export_model

    written = export_model(model, output_dir or Path("exports/clara_absa"))
    out.result({"files": written}, table(written))


def main() -> None:
    """Run the command and leave with its exit code."""
    run(app, "clara-absa")


if __name__ == "__main__":
    main()
