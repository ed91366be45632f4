"""The work behind the verbs: data, a model, training, the saved run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from latentlab_shared.config import from_dict, load_config
from latentlab_shared.devices import choose_device
from latentlab_shared.errors import UserError, shell_word
from latentlab_shared.files import read_json, sha256_file
from latentlab_shared.runs import RunFolder, model_card
from refrag.data.questions import QuestionExample, read_questions
from refrag.eval.answers import SELECTIONS, Way, evaluate_answers, those_that_fit, ways
from refrag.eval.perplexity import measure_perplexity
from refrag.eval.reconstruction import measure_reconstruction
from refrag.inference.generator import RefragGenerator
from refrag.model.folder import load_decoder
from refrag.model.gate import Budget
from refrag.model.tokenization_refrag import RefragTokenizer
from refrag.sample.facts import generate, generate_groups
from refrag.sample.tiny import assemble, make_tiny
from refrag.training.alignment import AlignmentBatches, AlignmentObjective
from refrag.training.alignments import read_texts
from refrag.training.loop import Batches, load_trained, run_steps, steps_done
from refrag.training.lora import add_lora, merge_lora
from refrag.training.objectives import (
    ContinuationObjective,
    NextParagraphBatches,
    ReconstructionBatches,
    TurnBatches,
)
from refrag.training.questions import QuestionBatches, expansion_gains, prepare, train_gate
from refrag.training.settings import RunSettings

RUNS = Path("runs/refrag")
MODEL = "model"  # of a run folder
_HELD_OUT = 50  # questions that a run is tried on at its end
_JOINED = 4  # questions whose documents make one text

Log = Callable[[str], None]


def train_run(
    folder: Path,
    base: RunSettings,
    *,
    config_file: Path | None = None,
    overrides: Iterable[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    track: Sequence[str] = (),
    log: Log = lambda line: None,
    advance: Callable[[float], None] = lambda steps: None,
) -> dict[str, Any]:
    """Train a model into a run folder; with ``resume`` the run's own settings are read.

    Under a launcher every process trains its share, and only the first one writes. ``device`` is "auto" or a kind of
    device, of which each process takes its own. ``track`` names where losses go
    besides ``metrics.jsonl``: "tensorboard", "wandb".

    Returns:
        The folder of the model, the first losses and the last.

    Raises:
        UserError: for wrong settings or data, or a device that is not here; nothing is written.
    """
    from accelerate import PartialState

    process = PartialState(cpu=choose_device(device) == "cpu")
    main = process.is_main_process
    if resume:
        settings = from_dict(RunSettings, RunFolder.read(folder).config, folder / "config.json")
        read_json(folder / "environment.json")  # of the results, at the end
        if not (folder / MODEL / "refrag.json").is_file():
            fix = f"The run had hardly begun: train again with -o {folder} --overwrite"
            raise UserError("the model that the run began with is missing", folder / MODEL, fix)
    else:
        settings = load_config(RunSettings, config_file, overrides, base)
        if main:
            RunFolder.ensure_free(folder, overwrite=overwrite)
    corpus = _corpus(settings)
    run = None
    if main:
        generator = (
            RefragGenerator.from_pretrained(folder / MODEL, device="cpu") if resume else _generator(settings, corpus)
        )
        _batches(settings, generator.tokenizer, corpus).batch(0, 0, 1)  # what cannot be trained on shows here
        hashes = {} if settings.data == "sample" else {"data": sha256_file(Path(settings.data))}
        run = (
            RunFolder.resume(folder, track=track)
            if resume
            else RunFolder.create(
                folder, settings, seed=settings.loop.seed, data=hashes, track=track, overwrite=overwrite
            )
        )
        if resume:
            run.rewind(steps_done(folder))
        else:
            generator.save_pretrained(folder / MODEL)
    process.wait_for_everyone()
    # From the folder: a tokenizer trained anew, in another process or on resuming, may differ in its ties.
    generator = RefragGenerator.from_pretrained(folder / MODEL, device="cpu")
    try:
        return _train(settings, folder, generator, corpus, run, resume, device, log, advance)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"go on with refrag train --resume {shell_word(folder)}") from None
    finally:
        if run is not None:
            run.close()


def _train(
    settings: RunSettings,
    folder: Path,
    generator: RefragGenerator,
    corpus: _Corpus,
    run: RunFolder | None,
    resume: bool,
    device: str,
    log: Log,
    advance: Callable[[float], None],
) -> dict[str, Any]:
    objective, batches = _objective(settings, generator), _batches(settings, generator.tokenizer, corpus)
    losses: list[dict[str, float]] = []

    def step(number: int, found: dict[str, float]) -> None:
        losses.append(found)
        if run is not None:
            run.log(number, **found)

    log(f"{settings.stage}: {settings.loop.steps} steps of {settings.loop.batch_size} examples")
    run_steps(objective, batches, settings.loop, folder=folder, resume=resume, device=device, log=step, advance=advance)
    first, last = (losses[0], losses[-1]) if losses else ({}, {})
    results: dict[str, Any] = {"model": str(folder / MODEL), "first": first, "last": last}
    if run is None:
        return results
    if settings.loop.engine == "fsdp2":  # its layers stay spread over the processes: take a whole copy
        generator = RefragGenerator.from_pretrained(folder / MODEL, device="cpu")
        load_trained(folder, _objective(settings, generator))
    if settings.lora:
        merge_lora(generator.model.decoder)
    if settings.stage == "questions":
        log("the gate")
        results["gate"] = _fit_gate(settings, generator, corpus.groups)
    if settings.stage == "questions" and settings.data == "sample":
        log(f"{_HELD_OUT} held-out questions")
        results["validation"] = _validate(generator, settings.loop.seed + 1)
    generator.save_pretrained(folder / MODEL)
    run.write_results(results)
    run.write_card(_card(settings, results, run))
    return results


def told(results: Mapping[str, Any]) -> str:
    """What ``train_run`` gave, in one line: where the model lies, and its losses."""
    first, last = results["first"].get("loss"), results["last"].get("loss")
    losses = f", loss {first:.3f} at first, {last:.3f} at last" if first is not None and last is not None else ""
    return f"{results['model']}{losses}"


def evaluate_run(
    model: Path,
    data: str,
    *,
    rates: Sequence[int],
    context: int,
    target: int,
    limit: int | None = None,
    seed: int = 1,
    decoder: Path | None = None,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Perplexity after a context by how it is given, one row for each compression.

    Args:
        model: a saved model, or a run folder.
        data: "sample", held out from training by its seed, or a .txt or .jsonl file of texts.
        rates: k.
        context: encoder tokens of a context, about.
        target: encoder tokens behind it, about.
        limit: texts at most.
        seed: of the sample.
        device: "auto" or a device.
        decoder: folder of another decoder to read what has no vectors, as well; the better one counts.

    Raises:
        UserError: if there is no model, or no text is long enough.
    """
    texts = _texts(data, limit, seed)
    generator = RefragGenerator.from_pretrained(model_folder(model), device=device)
    reference = load_decoder(decoder).to(generator.model.device) if decoder is not None else None
    objective = ContinuationObjective(generator.model, generator.tokenizer)
    rows = []
    for k in rates:
        sizes = {"context": max(1, context // k), "target": max(1, target // k)}
        found = measure_perplexity(objective, texts, compression=k, reference=reference, **sizes)
        closed = {"gap_closed": found.gap_closed(), "gap_closed_by_last": found.gap_closed("last")}
        rows.append({"name": f"k={k}", **asdict(found), **closed})
    return rows


def evaluate_reconstruction(
    model: Path,
    data: str,
    *,
    rates: Sequence[int],
    lengths: Sequence[int],
    limit: int | None = None,
    seed: int = 1,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Texts written again from their vectors, a row for each compression and length.

    Args:
        model: a saved model, or a run folder.
        data: as of ``evaluate_run``.
        rates: k.
        lengths: chunks of a stretch.
        limit: texts at most.
        seed: of the sample.
        device: "auto" or a device.

    Raises:
        UserError: if there is no model, or no text is long enough.
    """
    texts = _texts(data, limit, seed)
    generator = RefragGenerator.from_pretrained(model_folder(model), device=device)
    objective = ContinuationObjective(generator.model, generator.tokenizer)
    return [
        {"name": f"k={k}, {row['chunks']} chunks", **row}
        for k in rates
        for row in measure_reconstruction(objective, texts, lengths=lengths, compression=k)
    ]


def _texts(data: str, limit: int | None, seed: int) -> list[str]:
    """Held-out texts: generated, or the first of a file."""
    if data == "sample":
        return _long_texts(limit or 50, seed)
    return [text for text, _ in zip(read_texts(Path(data)), range(limit or 1 << 60), strict=False)]


def model_folder(path: Path) -> Path:
    """The model of a run folder, or the folder itself.

    Raises:
        UserError: if the run is not finished: its model is still the one that it began with.
    """
    run = path.parent if path.name == MODEL and (path.parent / "config.json").is_file() else path
    if (run / MODEL / "refrag.json").is_file() and not (run / "results.json").is_file():
        raise UserError("this run is not finished", run, f"Go on: refrag train --resume {shell_word(run)}")
    return run / MODEL if (run / MODEL / "refrag.json").is_file() else path


def evaluate_questions(
    model: Path,
    data: str,
    *,
    fractions: Sequence[float] = (0.25,),
    rates: Sequence[int] = (),
    selections: Sequence[str] = SELECTIONS,
    limit: int | None = None,
    seed: int = 1,
    device: str = "auto",
    log: Log = lambda line: None,
) -> list[dict[str, Any]]:
    """Answers to held-out questions, by how the documents are given; one row for each way and compression.

    Args:
        model: a saved model, or a run folder.
        data: "sample", held out from training by its seed, or a .jsonl file of questions.
        fractions: shares of the chunks that may be expanded.
        rates: k; the model's own if there are none.
        selections: who chooses what is expanded, of ``refrag.eval.answers.SELECTIONS``.
        limit: questions at most.
        seed: of the sample.
        device: "auto" or a device.
        log: told what is going on.

    Returns:
        The rows of ``evaluate_answers``, with ``k``, ``questions`` (of the row) and ``left_out`` (those whose passages
        the decoder has not the positions for).

    Raises:
        UserError: if there is no model or no question, or none that the decoder has the positions for.
    """
    count = limit or 200
    examples = generate(count, seed) if data == "sample" else list(read_questions(Path(data), count))
    generator = RefragGenerator.from_pretrained(model_folder(model), device=device)
    rows = []
    for k in rates or (generator.tokenizer.compression,):
        fitting = those_that_fit(generator, examples, k)
        if examples and not fitting:
            raise UserError(
                f"the passages of each question are more than the decoder's {generator.model.room} positions",
                data,
                "Give questions with fewer distractors: refrag prepare --distractors N",
            )
        found = evaluate_answers(generator, fitting, ways(fractions, selections), compression=k, seed=seed, log=log)
        counts = {"questions": len(fitting), "left_out": len(examples) - len(fitting)}
        rows += [{"name": row.pop("name"), "k": k, **counts, **row} for row in found]
    return rows


@dataclass(frozen=True)
class _Corpus:
    """What a stage reads: texts, or questions in groups that share their documents."""

    texts: list[str]
    groups: list[tuple[QuestionExample, ...]]


def _corpus(settings: RunSettings) -> _Corpus:
    seed = settings.loop.seed
    if settings.stage == "questions":
        if settings.data == "sample":
            groups = generate_groups(
                min(settings.examples, settings.limit or settings.examples), seed, settings.questions
            )
        else:
            groups = [(example,) for example in read_questions(Path(settings.data), settings.limit)]
        if not groups:
            raise UserError("there is no question", settings.data)
        some = [example for group in groups[:1000] for example in group]
        return _Corpus([t for e in some for t in (*(doc.text for doc in e.docs), e.question, e.answer)], groups)
    if settings.data == "sample":
        return _Corpus(_long_texts(max(1, settings.examples // _JOINED), seed), [])
    texts = (text for text in read_texts(Path(settings.data)) if text.strip())
    return _Corpus(list(islice(texts, settings.limit)), [])


def _long_texts(count: int, seed: int) -> list[str]:
    """Texts of some four hundred tokens, from the documents of generated questions."""
    examples = generate(count * _JOINED, seed)
    return [
        " ".join(doc.text for e in examples[at : at + _JOINED] for doc in e.docs)
        for at in range(0, len(examples), _JOINED)
    ]


def _generator(settings: RunSettings, corpus: _Corpus) -> RefragGenerator:
    if settings.model:
        return RefragGenerator.from_pretrained(model_folder(Path(settings.model)), device="cpu")
    if settings.encoder == settings.decoder == "tiny":
        return RefragGenerator(*make_tiny(corpus.texts, settings.compression, seed=settings.loop.seed))
    return RefragGenerator(
        *assemble(settings.encoder, settings.decoder, corpus.texts, settings.compression, settings.loop.seed)
    )


def _objective(settings: RunSettings, generator: RefragGenerator) -> Any:
    """The losses of a stage, and what may learn."""
    model = generator.model
    model.set_trained(settings.training_model)
    if settings.lora:
        add_lora(model.decoder, settings.lora_rank, settings.loop.seed)
    if settings.stage == "alignment":
        return AlignmentObjective(model, settings.weights)
    return ContinuationObjective(model, generator.tokenizer)


def _batches(settings: RunSettings, tokenizer: RefragTokenizer, corpus: _Corpus) -> Batches:
    """The batches of a stage; text that is too short for them is a ``UserError``."""
    loop = settings.loop
    if settings.stage == "alignment":
        return AlignmentBatches(corpus.texts, tokenizer, loop.batch_size, settings.max_tokens, loop.seed)
    kinds: list[Any] = []
    own = tokenizer.compression
    for k in settings.rates or (own,):
        if settings.stage == "reconstruction":
            kinds.append(
                ReconstructionBatches(
                    corpus.texts,
                    tokenizer,
                    loop.batch_size,
                    loop.steps,
                    settings.longest,
                    loop.seed,
                    settings.lengths,
                    compression=k,
                )
            )
        elif settings.stage == "pretraining":
            kinds.append(
                NextParagraphBatches(
                    corpus.texts,
                    tokenizer,
                    loop.batch_size,
                    max(1, settings.context * own // k),
                    max(1, settings.target * own // k),
                    loop.seed,
                    settings.expanded,
                    compression=k,
                    whole=settings.whole,
                )
            )
    if kinds:
        return TurnBatches(kinds)
    return QuestionBatches(corpus.groups, tokenizer, loop.batch_size, loop.seed)


def _fit_gate(
    settings: RunSettings, generator: RefragGenerator, groups: Sequence[Sequence[QuestionExample]]
) -> dict[str, float]:
    """Train the gate on what expansions are worth to the model as it is now."""
    generator.model.eval()
    objective, tail = ContinuationObjective(generator.model, generator.tokenizer), generator.tokenizer.decoder_ids("\n")
    examples = [group[0] for group in groups[: settings.gate_examples]]
    gains = [expansion_gains(objective, prepare(e, generator.tokenizer), tail) for e in examples]
    given = [generator.gate_inputs(e.question, e.docs) for e in examples]
    losses = train_gate(generator.model.gate, given, gains, margin=settings.gate_margin)
    return {"first": losses[0], "last": losses[-1]}


def _validate(generator: RefragGenerator, seed: int) -> dict[str, Any]:
    """Answers to generated questions of another seed, a quarter of the chunks expanded by the gate."""
    (row,) = evaluate_answers(generator, generate(_HELD_OUT, seed), [Way("gate", Budget(fraction=0.25), "gate")])
    return {name: row[name] for name in ("value", "cited_right", "gold_cited", "positions")}


def _card(settings: RunSettings, results: dict[str, Any], run: RunFolder) -> str:
    data = "Generated facts" if settings.data == "sample" else f"`{Path(settings.data).name}`"
    use = f'```python\nfrom refrag import RefragGenerator\n\nRefragGenerator.from_pretrained("{MODEL}")\n```'
    found = results.get("validation")
    if found:
        told = (
            f"{_HELD_OUT} questions that training has not seen, a quarter of the chunks expanded: right value "
            f"in {found['value']:.2f} of the answers, right document in {found['cited_right']:.2f} of the citations."
        )
    else:
        told = f"Not measured while training; `refrag evaluate --model {shell_word(run.path)}` measures it."
    limits = "It knows the kind of text it was trained on; what vectors hold of others has to be measured."
    if settings.data == "sample":
        limits = "It knows one kind of generated document and question: numbers of places. It shows the way, no more."
    steps = f"stage {settings.stage}, {settings.loop.steps} steps of {settings.loop.batch_size} examples"
    sections = {"Use": use, "Training data": f"{data}; {steps}.", "Validation": told, "Limits": limits}
    return model_card("Answers from compressed context", "A model of `refrag`.", sections, run)
