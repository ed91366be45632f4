"""The command ``refrag``: verbs that parse, call one function and print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
from latentlab_shared.errors import CONTROLS, RunFailed, UserError
from latentlab_shared.serving import check_address

app = new_app("refrag", "latentlab-refrag", "Answers from retrieved documents that a decoder reads as chunk vectors.")

_UNSHOWN = ("supported", "invalid", "questions", "left_out")  # columns that stand in the file only
MAX_DOCUMENT_BYTES = 16 * 2**20  # a few million tokens: more than any decoder's room
SAMPLE_RUN = Path("runs/refrag/questions")  # what `refrag train` writes when it is told nothing
Model = Annotated[Path, typer.Option("--model", "-m", help="A saved model, or a run folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Throw an earlier run in the folder away.")]
CacheDir = Annotated[Path | None, typer.Option("--cache-dir", help="Keeps chunk vectors.")]
Track = Annotated[
    list[str] | None, typer.Option("--track", help="tensorboard or wandb; may be repeated (default: none).")
]
Encoder = Annotated[str, typer.Option("--encoder", help="Its tokenizer: a folder or a hub name.")]
Decoder = Annotated[str, typer.Option("--decoder", help="Its tokenizer: a folder or a hub name.")]


@verb(app)
def align(
    out: Output,
    encoder: Encoder,
    decoder: Decoder,
    text: Annotated[str | None, typer.Argument(help="A text to align and show.", show_default=False)] = None,
    input: Annotated[Path | None, typer.Option("--input", help="A .txt or .jsonl file of texts, plain or .gz.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Folder for the alignments of --input.")] = None,
    unit: Annotated[str, typer.Option("--unit", help="Positions in char or byte.")] = "char",
    strict: Annotated[bool, typer.Option("--strict", help="Only cuts at exactly the same position.")] = False,
    field: Annotated[str, typer.Option("--field", help="Of the rows of a .jsonl file.")] = "text",
    limit: Limit = None,
) -> None:
    """Align two tokenizers over a text, or over a corpus into parquet parts (resumable, one share per rank)."""
    if (text is None) == (input is None) or (input is None) != (output is None):
        raise UserError("nothing to align", "refrag align", "Give a text, or --input FILE with --output DIR")
    if unit not in ("char", "byte"):
        raise UserError(f"{unit!r} is no unit", "--unit", "Use char or byte")
    from refrag.model.tokenizer.alignment import align
    from refrag.model.tokenizer.loading import load_tokenizer
    from refrag.training.alignments import precompute_alignments

    sides = load_tokenizer(encoder), load_tokenizer(decoder)
    if input is not None and output is not None:
        with out.progress("aligning") as advance:
            done = precompute_alignments(
                input,
                output,
                *sides,
                unit=unit,  # type: ignore[arg-type]  # checked above
                strict=strict,
                field=field,
                limit=limit,
                advance=advance,
            )
        out.result({"folder": str(output), **done}, f"{output}: {done['texts']:,} texts, {done['anchors']:,} anchors")
        return
    assert text is not None
    found = align(text, *sides, unit=unit, strict=strict)  # type: ignore[arg-type]  # checked above
    data = text.encode() if unit == "byte" else text
    shown = [
        {
            "encoder": " ".join(sides[0].convert_ids_to_tokens(found.encoder.ids[c.i0 : c.i1])),
            "decoder": " ".join(sides[1].convert_ids_to_tokens(found.decoder.ids[c.j0 : c.j1])),
            "text": repr(data[c.start : c.end]),
        }
        for c in found.chunks()
    ]
    title = f"{len(found.encoder)} and {len(found.decoder)} tokens, {len(found.anchors)} anchors"
    out.result({"anchors": [anchor._asdict() for anchor in found.anchors]}, table(shown, title=title))


@verb(app)
def prepare(
    out: Output,
    source: Annotated[
        Path | None, typer.Option("--source", help="Folder of raw data.", envvar="LATENTLAB_DATA")
    ] = None,
    output_dir: OutputDir = None,
    distractors: Annotated[int, typer.Option("--distractors", min=0, help="Documents beside the right one.")] = 4,
    written_by: Annotated[
        str | None, typer.Option("--written-by", help="A decoder that writes the corpus itself; no source is read.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Of a text that is written.")] = 256,
    seed: Seed = 0,
    limit: Limit = None,
) -> None:
    """Make a corpus and questions with documents of Natural Questions, Wikipedia passages and WikiText."""
    folder = output_dir or Path("data/refrag")
    if written_by is not None:
        from refrag.data.written import write_corpus

        counts = write_corpus(written_by, folder, limit or 2000, tokens, seed, out.log)
        told = ", ".join(f"{count:,} in {name}" for name, count in counts.items())
        out.result({"folder": str(folder), "counts": counts}, f"{folder}: {told}")
        return
    if source is None:
        raise UserError("no data", "--source", "Give a folder of raw data, or a decoder with --written-by")
    from refrag.data.prepare import prepare_data

    counts = prepare_data(source, folder, distractors=distractors, seed=seed, limit=limit, log=out.log)
    told = ", ".join(f"{count:,} in {name}" for name, count in counts.items())
    out.result({"folder": str(folder), "counts": counts}, f"{folder}: {told}")


@verb(app)
def train(
    out: Output,
    stage: Annotated[
        str, typer.Option("--stage", help="questions, alignment, reconstruction or pretraining.")
    ] = "questions",
    data: Annotated[
        str, typer.Option("--data", help="sample, a .txt or .jsonl file of texts, or one of questions.")
    ] = "sample",
    model: Annotated[str, typer.Option("--model", "-m", help="A saved model to go on from.")] = "",
    encoder: Annotated[
        str, typer.Option("--encoder", help="Of a new model: tiny, minilm, a folder or a hub name.")
    ] = "tiny",
    decoder: Annotated[str, typer.Option("--decoder", help="Of a new model: tiny, a folder or a hub name.")] = "tiny",
    config: ConfigFile = None,
    sets: Sets = None,
    output_dir: OutputDir = None,
    resume: Resume = None,
    overwrite: Overwrite = False,
    track: Track = None,
    seed: Seed = 0,
    device: Device = DeviceName.auto,
    limit: Limit = None,
) -> None:
    """Train one stage of a model into a run folder; with no options on the built-in questions, in two minutes."""
    given = (config, sets, output_dir, overwrite, seed, limit, model, stage != "questions", data != "sample")
    if resume and any((*given, encoder != "tiny", decoder != "tiny")):
        raise UserError("the run keeps its own data and settings", "--resume", "Leave the other options out")
    if stage not in ("questions", "alignment", "reconstruction", "pretraining"):
        raise UserError(f"{stage!r} is no stage", "--stage", "Use questions, alignment, reconstruction or pretraining")
    from dataclasses import replace

    from refrag.pipeline import RUNS, told, train_run
    from refrag.training.settings import QUICK, LoopSettings, RunSettings

    quick = stage == "questions" and data == "sample" and not model and encoder == decoder == "tiny"
    base = RunSettings(
        stage=stage,  # type: ignore[arg-type]  # checked above
        data=data,
        model=model,
        encoder=encoder,
        decoder=decoder,
        limit=limit,
        loop=replace(QUICK if quick else LoopSettings(), seed=seed),
    )
    folder = resume or output_dir or RUNS / stage
    # The quickstart is run again and again: its own folder, and nothing else, is replaced without asking.
    replaced = out.replaces(folder, quick and folder == SAMPLE_RUN and not resume)
    with out.progress(stage) as advance:
        results = train_run(
            folder,
            base,
            config_file=config,
            overrides=sets or (),
            resume=resume is not None,
            overwrite=overwrite or replaced,
            device=device.value,
            track=track or (),
            log=out.log,
            advance=advance,
        )
    out.result(results, told(results))


@verb(app, "pretrain-decoder")
def pretrain_decoder(
    out: Output,
    data: Annotated[str, typer.Option("--data", help="A .txt or .jsonl file of texts.")] = "",
    config: ConfigFile = None,
    sets: Sets = None,
    output_dir: OutputDir = None,
    resume: Resume = None,
    overwrite: Overwrite = False,
    track: Track = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="With --resume: no more steps, the last checkpoint is the decoder.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Train a small decoder with a tokenizer of its own, for use where no hub is at hand; resumable."""
    if resume and any((data, config, sets, output_dir, overwrite, seed)):
        raise UserError("the run keeps its own data and settings", "--resume", "Leave the other options out")
    from dataclasses import replace

    from refrag.training.decoder import DecoderSettings, pretrain_decoder

    base = DecoderSettings(data=data)
    with out.progress("decoder") as advance:
        results = pretrain_decoder(
            resume or output_dir or Path("runs/refrag/decoder"),
            replace(base, loop=replace(base.loop, seed=seed)),
            config_file=config,
            overrides=sets or (),
            resume=resume is not None,
            overwrite=overwrite,
            finish=finish,
            track=track or (),
            log=out.log,
            advance=advance,
        )
    nats = results["nats"]
    told = f", {nats:.3f} nats per unseen token" if nats is not None else ""
    out.result(results, f"{results['decoder']}: {results['parameters']:,} parameters{told}")


@verb(app)
def evaluate(
    out: Output,
    model: Model = SAMPLE_RUN,
    task: Annotated[
        str,
        typer.Option("--task", help="questions (answers, citations), perplexity (of what follows) or reconstruction."),
    ] = "questions",
    data: Annotated[
        str, typer.Option("--data", help="sample, a file of questions, or a .txt or .jsonl file of texts.")
    ] = "sample",
    compression: Annotated[
        list[int] | None, typer.Option("--compression", min=1, max=1024, help="k; may be repeated.")
    ] = None,
    expand: Annotated[
        list[float] | None, typer.Option("--expand", help="questions: share of chunks as tokens; may be repeated.")
    ] = None,
    select: Annotated[
        list[str] | None, typer.Option("--select", help="questions: who chooses them; may be repeated (default: all).")
    ] = None,
    context: Annotated[int, typer.Option("--context", min=1, help="perplexity: tokens of a context, about.")] = 64,
    target: Annotated[int, typer.Option("--target", min=1, help="perplexity: tokens behind it, about.")] = 32,
    chunks: Annotated[
        list[int] | None, typer.Option("--chunks", min=1, help="reconstruction: of a stretch; may be repeated.")
    ] = None,
    decoder: Annotated[
        Path | None, typer.Option("--decoder", help="perplexity: reads tokens as well; the better one counts.")
    ] = None,
    limit: Limit = None,
    seed: Seed = 1,
    device: Device = DeviceName.auto,
    output_dir: OutputDir = None,
    name: Annotated[str, typer.Option("--name", help="Of the file below --output-dir; the task's, if empty.")] = "",
) -> None:
    """Measure on held-out data: answers and citations (with a report), perplexity or reconstruction."""
    if task not in ("questions", "perplexity", "reconstruction"):
        raise UserError(f"{task!r} is no task", "--task", "Use questions, perplexity or reconstruction")
    if name and output_dir is None:
        raise UserError("it names a file below --output-dir, which is not given", "--name", "Give -o FOLDER too")
    if set(name) & set("/\\.") or not name.isprintable():
        raise UserError(f"{name!r} is no name of a file", "--name", "Leave out dots and slashes: .json is added")
    from refrag.eval.answers import SELECTIONS
    from refrag.pipeline import evaluate_questions, evaluate_reconstruction, evaluate_run

    if unknown := set(select or ()) - set(SELECTIONS):
        raise UserError(f"{min(unknown)!r} is no selection", "--select", f"Use {', '.join(SELECTIONS)}")

    shares = tuple(expand or (0.25,))
    if task == "questions":
        rows = evaluate_questions(
            model,
            data,
            fractions=shares,
            rates=compression or (),
            selections=select or SELECTIONS,
            limit=limit,
            seed=seed,
            device=device.value,
            log=out.debug,
        )
        if missed := max(row["left_out"] for row in rows):
            out.log(f"left out: {missed} questions whose passages, as tokens, are more than the decoder's positions")
    else:
        rates = compression or [4, 8, 16, 32]
        if task == "reconstruction":
            lengths = chunks or (1, 2, 4, 8)
            rows = evaluate_reconstruction(
                model, data, rates=rates, lengths=lengths, limit=limit, seed=seed, device=device.value
            )
        else:
            sizes = {"context": context, "target": target}
            rows = evaluate_run(
                model, data, rates=rates, limit=limit, seed=seed, decoder=decoder, device=device.value, **sizes
            )
    files: dict[str, str] = {}
    if output_dir is not None:
        from latentlab_shared.provenance import write_table

        shown = [{"name": row["name"], "metrics": {k: v for k, v in row.items() if k != "name"}} for row in rows]
        command = f"refrag evaluate --task {task} --model {model.name} --data {Path(data).name}"
        command += "".join(f" --compression {k}" for k in compression or ())
        if task == "perplexity":
            command += f" --context {context} --target {target}"
            command += f" --decoder {decoder.name}" if decoder is not None else ""
        elif task == "reconstruction":
            command += "".join(f" --chunks {n}" for n in chunks or ())
        else:
            command += "".join(f" --expand {share:g}" for share in shares)
            command += "".join(f" --select {one}" for one in select or ())
        command += f" --limit {limit}" if limit else ""
        command += f" --seed {seed}" if data == "sample" and seed != 1 else ""
        seeds = [seed] if data == "sample" else []
        files["table"] = str(output_dir / f"{name or task}.json")
        write_table(Path(files["table"]), shown, command=command, data=Path(data).name, seeds=seeds)
    columns = [name for name in rows[0] if name not in _UNSHOWN] if task == "questions" else None
    place = model if (model / "config.json").is_file() else None  # the run's own folder
    place = output_dir / (name or task) if output_dir is not None else place
    if task == "questions" and place is not None:
        from refrag.eval.report import write_report

        files |= write_report(place, rows)
    told: list[Any] = [table(rows, columns), *([f"report: {files['report']}"] if "report" in files else [])]
    out.result({"results": rows, **({"files": files} if files else {})}, told)


@verb(app)
def demo(
    out: Output,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Of the built-in facts; trained first if it is not there.")
    ] = None,
    questions: Annotated[int, typer.Option("--questions", min=1, help="How many to ask.")] = 4,
    expand: Annotated[float, typer.Option("--expand", help="Share of the chunks shown as tokens.")] = 0.25,
    seed: Seed = 1,
    device: Device = DeviceName.auto,
) -> None:
    """Ask the built-in model questions it has not seen, and show answers, citations and what was read how."""
    from refrag.inference.generator import RefragGenerator
    from refrag.model.gate import Budget
    from refrag.pipeline import model_folder, train_run
    from refrag.sample.facts import generate
    from refrag.training.settings import QUICK, RunSettings

    home = model or SAMPLE_RUN
    if model is None and not (home / "results.json").exists():
        out.log("no model yet: training one on the built-in facts, in about two minutes")
        with out.progress("training", QUICK.steps) as advance:
            train_run(home, RunSettings(loop=QUICK), overwrite=True, device=device.value, log=out.log, advance=advance)
    generator = RefragGenerator.from_pretrained(model_folder(home), device=device.value)
    rows: list[dict[str, Any]] = []
    for example in generate(questions, seed):
        answer = generator.answer(example.question, example.docs, budget=Budget(fraction=expand))
        texts = {doc.id: doc.text for doc in example.docs}
        rows.append(
            {
                "question": example.question,
                "answer": answer.text,
                "right": example.value in answer.text,
                "cited": [{"doc": c.doc, "text": texts[c.doc][c.start : c.end]} for c in answer.citations],
                "gold": example.gold,
                "positions": answer.window_length,
                "full": answer.full_length,
            }
        )
    right = sum(row["right"] for row in rows)
    shown: list[Any] = []
    for row in rows:
        shown += [f"Q: {row['question']}", f"A: {row['answer'].translate(CONTROLS)}"]
        shown += [f"   [{c['doc']}] … {c['text']} …" for c in row["cited"]]
        shown += [f"   read {row['positions']} positions in place of {row['full']}", ""]
    shown.append(f"{right} of {len(rows)} answers have the right number")
    out.result({"answers": rows, "right": right}, "\n".join(shown))


@verb(app, "run")
def run_configuration(
    out: Output,
    overrides: Annotated[list[str], typer.Argument(help="Such as app=alignment env=torchrun trainer.epochs=2.")],
    multirun: Annotated[bool, typer.Option("--multirun", "-m", help="One run for every value of key=1,2.")] = False,
) -> None:
    """Run what configuration groups say, here or elsewhere: what run.py does, from any folder."""
    from refrag.framework.run import main as run_composed

    run_composed(arguments=[*(["--multirun"] if multirun else []), *overrides])


@verb(app)
def chat(
    out: Output,
    documents: Annotated[str | None, typer.Option("--docs", help="A folder, a text file, or .jsonl.")] = None,
    model: Model = SAMPLE_RUN,
    retriever: Annotated[str, typer.Option("--retriever", help="bm25 or dense.")] = "bm25",
    encoder: Annotated[str, typer.Option("--encoder", help="Of dense retrieval.")] = "minilm",
    top: Annotated[int, typer.Option("--top", min=1, max=64, help="Passages for each question.")] = 4,
    expand: Annotated[float, typer.Option("--expand", help="Share of the chunks shown as tokens.")] = 0.25,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of an answer.")] = 64,
    cache_dir: CacheDir = None,
    device: Device = DeviceName.auto,
) -> None:
    """Talk about documents in the terminal: every line is a question or a command (/docs, /k, /budget …)."""
    import sys

    from refrag.framework.apps.chatcli import chat_on

    spoken = chat_on(
        sys.stdin,
        sys.stderr if out.json else sys.stdout,
        model,
        documents,
        retriever=retriever,  # type: ignore[arg-type]  # checked there
        encoder=encoder,
        top=top,
        share=expand,
        new_tokens=max_new_tokens,
        cache=cache_dir,
        device=device.value,
    )
    if out.json:
        out.result(spoken)


@verb(app)
def serve(
    out: Output,
    model: Model = SAMPLE_RUN,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    documents: Annotated[
        Path | None, typer.Option("--docs", help="A folder, a text file or .jsonl to answer from.")
    ] = None,
    retriever: Annotated[str, typer.Option("--retriever", help="bm25 or dense.")] = "bm25",
    encoder: Annotated[str, typer.Option("--encoder", help="Of dense retrieval.")] = "minilm",
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, help="Processes, each with the model.")] = 1,
    backend: Annotated[str, typer.Option("--backend", help="What runs the decoder: torch or vllm.")] = "torch",
    token_env: Annotated[
        str | None, typer.Option("--token-env", help="Name of the variable that holds a bearer token.", metavar="NAME")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option("--allow-origin", help="A page that may use the API; may be repeated.")
    ] = None,
    cache_dir: CacheDir = None,
    device: Device = DeviceName.auto,
) -> None:
    """Serve the API and its page until Ctrl-C."""
    check_address(host, port)
    import os

    from refrag.pipeline import model_folder
    from refrag.serving.app import serve
    from refrag.serving.library import Library

    token = os.environ.get(token_env) if token_env is not None else None
    if token_env is not None and not token:
        raise UserError("this variable is not set", token_env, "Put the token into the environment")
    library = None
    if documents is not None:
        library = Library(retriever, encoder, cache_dir and cache_dir / "passages")  # type: ignore[arg-type]
        out.log(f"{library.add_path(documents):,} passages of {documents}")
    serve(
        model_folder(model),
        host,
        port,
        workers=workers,
        backend=backend,
        device=device.value,
        library=library,
        cache=cache_dir and cache_dir / "chunks",
        token=token,
        origins=allow_origin or (),
        log=out.log,
    )


@verb(app)
def export(
    out: Output,
    model: Model = SAMPLE_RUN,
    output_dir: OutputDir = None,
    format: Annotated[
        list[str] | None, typer.Option("--format", help="torch, onnx or hf; may be given many times.")
    ] = None,
) -> None:
    """Write the chunk encoder as a program, or the parts for transformers; each is compared with the model."""
    from refrag.inference.export import export_model
    from refrag.pipeline import model_folder

    formats = tuple(format) if format else ("torch", "hf")
    written = export_model(model_folder(model), output_dir or Path("exports/refrag"), formats, out.log)
    out.result({"files": written}, table(written))


@verb(app)
def predict(
    out: Output,
    question: Annotated[str, typer.Argument(help="What is asked.")],
    documents: Annotated[list[Path], typer.Option("--doc", help="A text file; its name is the document's id.")],
    model: Model = SAMPLE_RUN,
    expand: Annotated[float, typer.Option("--expand", help="Share of the chunks shown as tokens.")] = 0.25,
    compression: Annotated[int | None, typer.Option("--compression", min=1, max=1024, help="Another k.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of the answer.")] = 64,
    cache_dir: CacheDir = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show what each chunk was for the decoder.")] = False,
    device: Device = DeviceName.auto,
) -> None:
    """Answer a question from documents, with citations."""
    from dataclasses import asdict

    from refrag.inference.generator import RefragGenerator, greedy
    from refrag.model.documents import Doc
    from refrag.model.gate import Budget
    from refrag.pipeline import model_folder

    if not question.strip():
        raise UserError("the question is empty", "QUESTION", "Ask something")
    docs, budget = [Doc(path.stem, _read(path)) for path in documents], Budget(fraction=expand)
    generator = RefragGenerator.from_pretrained(model_folder(model), cache=cache_dir, device=device.value)
    answer = generator.answer(question, docs, budget=budget, compression=compression, generation=greedy(max_new_tokens))
    out.warn_of_sample(model, "refrag train --data YOUR_QUESTIONS")
    texts = {doc.id: doc.text for doc in docs}
    shown: list[Any] = [answer.text.translate(CONTROLS)]
    shown += [f"[{c.doc}] {texts[c.doc][c.start : c.end].translate(CONTROLS)}" for c in answer.citations]
    if explain:
        rows = [
            {
                "document": slot.doc,
                "read as": "tokens" if slot.expanded else "vector",
                "score": slot.score,
                "text": " ".join(texts[slot.doc][slot.start : slot.end].split()).translate(CONTROLS),
            }
            for slot in answer.slots
        ]
        shown.append(table(rows, title=f"{answer.window_length} positions in place of {answer.full_length}"))
    out.result(asdict(answer), shown if explain else "\n".join(map(str, shown)))


def _read(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise UserError("this is no file", path, "Give a text file")
    if path.is_file() and path.stat().st_size > MAX_DOCUMENT_BYTES:
        raise UserError(f"longer than {MAX_DOCUMENT_BYTES >> 20} MiB", path, "Give a part of it")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start})", path) from None


@verb(app)
def bench(
    out: Output,
    what: Annotated[str, typer.Argument(help="align, ttft (the first token), memory, step (of training) or serve.")],
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Holds tokenizers/ and wikitext2/.", envvar="LATENTLAB_DATA")
    ] = None,
    chars: Annotated[int, typer.Option("--chars", min=100, help="align: length of the measured text.")] = 16_000,
    cases: Annotated[int, typer.Option("--cases", min=0, help="align: random texts to compare on.")] = 10_000,
    references: Annotated[
        int, typer.Option("--references", min=0, help="align: pairs with the seed's table beside them.")
    ] = 2,
    context: Annotated[int, typer.Option("--context", min=64, help="ttft, memory: tokens of the documents.")] = 4096,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Rounds; medians are given.")] = 7,
    streams: Annotated[int, typer.Option("--streams", min=1, help="serve: streams held at once.")] = 50,
    workers: Annotated[int, typer.Option("--workers", min=1, help="serve: processes.")] = 1,
    output_dir: OutputDir = None,
    seed: Seed = 0,
) -> None:
    """Measure ratios side by side; with --output-dir, write the tables of the README."""
    from refrag.bench.suites import Asked, run_suite

    asked = Asked(data_dir, chars, cases, references, context, repeats, streams, workers, seed)
    found = run_suite(what, asked, output_dir, out.log)
    shown = [table(found.rows, found.columns), *([table(found.pairs)] if found.pairs else [])]
    out.result({"results": found.rows, **({"pairs": found.pairs} if found.pairs else {})}, shown)
    if what == "serve" and not found.met:
        raise RunFailed("the server did not do what is demanded", "refrag bench serve")


def main() -> None:
    """Run the command line."""
    from refrag.framework.run import forget_marker

    forget_marker()
    run(app, "refrag")


if __name__ == "__main__":
    main()
