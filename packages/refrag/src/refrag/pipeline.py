"""The work behind the verbs: data, a model, training, the saved run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from latentlab_shared.config import from_dict, load_config
from latentlab_shared.errors import UserError
from latentlab_shared.files import sha256_file
from latentlab_shared.runs import RunFolder, model_card
from refrag.eval.perplexity import measure_perplexity
from refrag.inference.generator import RefragGenerator
from refrag.sample.facts import generate
from refrag.sample.tiny import make_tiny
from refrag.training.alignment import AlignmentBatches, AlignmentObjective, AlignmentWeights
from refrag.training.alignments import read_texts
from refrag.training.loop import Batches, LoopSettings, run_steps, steps_done
from refrag.training.objectives import ContinuationObjective, NextParagraphBatches, ReconstructionBatches
from refrag.training.questions import QuestionBatches, expansion_gains, prepare, train_gate

RUNS = Path("runs/refrag")
MODEL = "model"  # of a run folder
_JOINED = 4  # questions whose documents make one text

Log = Callable[[str], None]
Stage = Literal["alignment", "reconstruction", "pretraining", "questions"]


@dataclass(frozen=True)
class RunSettings:
    """What a run was asked for; ``config.json`` of a run folder.

    Attributes:
        stage: "alignment" (encoder and decoder over the same text), "reconstruction" (a text from its vectors),
            "pretraining" (what follows a context of vectors), or "questions" (answers with citations, then the gate).
        data: "sample", or for the first three stages a .txt or .jsonl file of texts.
        model: "tiny", made here, or the folder of a saved model to go on from.
        compression: k of a tiny model.
        training_model: what learns: p(rojector), e(ncoder), d(ecoder).
        examples: questions of the sample.
        gate_examples: of these, for the gate.
        max_tokens: of an example of the alignment stage, on either side.
        longest: stretches of the reconstruction stage are 1, 2, 4 … 2 ** (longest - 1) chunks.
        curriculum: reconstruction goes from short stretches to long ones.
        context: chunks before the target of the pretraining stage.
        target: chunks to write there.
        expanded: share of the context left as tokens there.
        weights: of the alignment losses.
        loop: how to step.
    """

    stage: Stage = "questions"
    data: str = "sample"
    model: str = "tiny"
    compression: int = 8
    training_model: str = "ped"
    examples: int = 6000
    gate_examples: int = 64
    max_tokens: int = 128
    longest: int = 4
    curriculum: bool = True
    context: int = 16
    target: int = 4
    expanded: float = 0.1
    weights: AlignmentWeights = field(default_factory=AlignmentWeights)
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        if self.stage == "questions" and self.data != "sample":
            raise UserError("questions are of the sample only, so far", "data", "Use data=sample, or another stage")


def train_run(
    folder: Path,
    base: RunSettings,
    *,
    config_file: Path | None = None,
    overrides: Iterable[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    log: Log = lambda line: None,
    advance: Callable[[float], None] = lambda steps: None,
) -> dict[str, Any]:
    """Train a model into a run folder; with ``resume`` the run's own settings are read.

    Returns:
        The folder of the model, the first losses and the last.

    Raises:
        UserError: for wrong settings or data; nothing is written.
    """
    if resume:
        settings = from_dict(RunSettings, RunFolder.read(folder).config, folder / "config.json")
    else:
        settings = load_config(RunSettings, config_file, overrides, base)
    texts = _texts(settings)
    # A tokenizer trained anew may differ in its ties, so a run keeps the one it began with.
    generator = RefragGenerator.from_pretrained(folder / MODEL) if resume else _generator(settings, texts)
    generator.model.set_trained(settings.training_model)
    objective, batches = _stage(settings, generator, texts)
    log(f"{settings.stage}: {settings.loop.steps} steps of {settings.loop.batch_size} examples")
    hashes = {} if settings.data == "sample" else {"data": sha256_file(Path(settings.data))}
    run = (
        RunFolder.resume(folder)
        if resume
        else RunFolder.create(folder, settings, seed=settings.loop.seed, data=hashes, overwrite=overwrite)
    )
    losses: list[dict[str, float]] = []
    with run:
        if resume:
            run.rewind(steps_done(folder))
        else:
            generator.save_pretrained(folder / MODEL)

        def step(number: int, found: dict[str, float]) -> None:
            losses.append(found)
            run.log(number, **found)

        run_steps(objective, batches, settings.loop, folder=folder, resume=resume, log=step, advance=advance)
        if settings.stage == "questions":
            log("the gate")
            _fit_gate(settings, generator)
        generator.save_pretrained(folder / MODEL)
        first, last = (losses[0], losses[-1]) if losses else ({}, {})
        results = {"model": str(folder / MODEL), "first": first, "last": last}
        run.write_results(results)
        run.write_card(_card(settings, run))
    return results


def evaluate_run(
    model: Path,
    data: str,
    *,
    rates: Sequence[int],
    context: int,
    target: int,
    limit: int | None = None,
    seed: int = 1,
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

    Raises:
        UserError: if there is no model, or no text is long enough.
    """
    texts = (
        _long_texts(limit or 50, seed)
        if data == "sample"
        else [text for text, _ in zip(read_texts(Path(data)), range(limit or 1 << 60), strict=False)]
    )
    generator = RefragGenerator.from_pretrained(model_folder(model))
    objective = ContinuationObjective(generator.model, generator.tokenizer)
    rows = []
    for k in rates:
        sizes = {"context": max(1, context // k), "target": max(1, target // k)}
        found = measure_perplexity(objective, texts, compression=k, **sizes)
        closed = {"gap_closed": found.gap_closed(), "gap_closed_by_last": found.gap_closed("last")}
        rows.append({"name": f"k={k}", **asdict(found), **closed})
    return rows


def model_folder(path: Path) -> Path:
    """The model of a run folder, or the folder itself."""
    return path / MODEL if (path / MODEL / "refrag.json").exists() else path


def _texts(settings: RunSettings) -> list[str]:
    """The corpus of the text stages, or what the sample's vocabularies are made from."""
    if settings.data != "sample":
        return list(read_texts(Path(settings.data)))
    if settings.stage != "questions":
        return _long_texts(max(1, settings.examples // _JOINED), settings.loop.seed)
    examples = generate(min(settings.examples, 2000), settings.loop.seed)
    return [text for e in examples for text in (*(doc.text for doc in e.docs), e.question, e.answer)]


def _long_texts(count: int, seed: int) -> list[str]:
    """Texts of some four hundred tokens, from the documents of generated questions."""
    examples = generate(count * _JOINED, seed)
    return [
        " ".join(doc.text for e in examples[at : at + _JOINED] for doc in e.docs)
        for at in range(0, len(examples), _JOINED)
    ]


def _generator(settings: RunSettings, texts: list[str]) -> RefragGenerator:
    if settings.model != "tiny":
        return RefragGenerator.from_pretrained(settings.model)
    return RefragGenerator(*make_tiny(texts, settings.compression, seed=settings.loop.seed))


def _stage(settings: RunSettings, generator: RefragGenerator, texts: list[str]) -> tuple[Any, Batches]:
    """The losses and the batches of a stage."""
    model, tokenizer, loop = generator.model, generator.tokenizer, settings.loop
    if settings.stage == "alignment":
        aligned = AlignmentBatches(texts, tokenizer, loop.batch_size, settings.max_tokens, loop.seed)
        return AlignmentObjective(model, settings.weights), aligned
    objective = ContinuationObjective(model, tokenizer)
    if settings.stage == "reconstruction":
        return objective, ReconstructionBatches(
            texts, tokenizer, loop.batch_size, loop.steps, settings.longest, loop.seed, settings.curriculum
        )
    if settings.stage == "pretraining":
        return objective, NextParagraphBatches(
            texts, tokenizer, loop.batch_size, settings.context, settings.target, loop.seed, settings.expanded
        )
    examples = generate(settings.examples, loop.seed)
    return objective, QuestionBatches(examples, tokenizer, loop.batch_size, loop.seed)


def _fit_gate(settings: RunSettings, generator: RefragGenerator) -> None:
    """Train the gate on what expansions are worth to the model as it is now."""
    generator.model.eval()
    objective, tail = ContinuationObjective(generator.model, generator.tokenizer), generator.tokenizer.decoder_ids("\n")
    examples = generate(settings.gate_examples, settings.loop.seed)
    gains = [expansion_gains(objective, prepare(e, generator.tokenizer), tail) for e in examples]
    given = [generator.gate_inputs(e.question, e.docs) for e in examples]
    train_gate(generator.model.gate, given, gains)


def _card(settings: RunSettings, run: RunFolder) -> str:
    data = "the generated facts" if settings.data == "sample" else f"`{Path(settings.data).name}`"
    use = f'```python\nfrom refrag import RefragGenerator\n\nRefragGenerator.from_pretrained("{MODEL}")\n```'
    sections = {"Use": use, "Training": f"Stage {settings.stage}, on {data}."}
    return model_card("Answers from compressed context", "A model of `refrag`.", sections, run)
