"""What the verbs do: data, training and evaluation joined into run folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clara_absa.configs.base_config import ClaraConfig
from clara_absa.configs.schema import Example
from clara_absa.data_utils.splits import digest
from clara_absa.training.settings import Progress, RunSettings, examples_of, is_lone_file, no_progress, settings_in
from latentlab_shared.config import load_config
from latentlab_shared.devices import choose_device
from latentlab_shared.errors import UserError, shell_word
from latentlab_shared.files import write_text
from latentlab_shared.runs import RunFolder, model_card

Log = Callable[[str], None]
RUNS = Path("runs/clara_absa")


def train_run(
    output: Path,
    settings: RunSettings,
    *,
    config_file: Path | None = None,
    overrides: Iterable[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    quantise: bool = False,
    log: Log = lambda _: None,
    detail: Log = lambda _: None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Train a model into a run folder; with ``resume`` the run's own settings are read.

    Returns:
        Where the model is, and its validation figures.
    """
    is_first = os.environ.get("RANK", "0") == "0"
    log = log if is_first else (lambda _: None)
    if resume:
        settings = settings_in(RunFolder.read(output))
    else:
        base = replace(settings.clara, train=replace(settings.clara.train, seed=settings.seed))
        clara = load_config(ClaraConfig, config_file, overrides, base)
        settings = replace(settings, clara=clara, seed=clara.train.seed)  # --set train.seed is --seed, too
        if is_first:  # for a later process, the first may have made it already
            RunFolder.ensure_free(output, overwrite=overwrite)  # before the work; made when all input has been read
    config = settings.clara
    train = examples_of(settings.data, "train", settings.task, limit=settings.limit, seed=settings.seed)
    few = None if settings.limit is None else max(10, settings.limit // 8)
    valid = examples_of(settings.data, "val", settings.task, limit=few, seed=settings.seed)
    if is_lone_file(settings.data):
        log(f"{settings.data} is one file: a tenth of its sentences is kept for val, a tenth for test")
    log(f"{len(train)} sentences to train on, {len(valid)} for validation, {config.described}")

    from clara_absa.inference.sentiment import AspectSentiment
    from clara_absa.logger import LocalLogger
    from clara_absa.training.build import build
    from clara_absa.training.fit import fit, updates_of
    from clara_absa.training.objectives import PackedObjective, SeedObjective
    from clara_absa.training.processes import Workers
    from clara_absa.training.schedules import make_schedule

    device = choose_device(device)
    workers = Workers.join(device, config.train.parallel == "shard")
    if workers.world > 1 and (config.recipe == "seed" or config.loss.schedule == "uncertainty"):
        raise UserError(
            "this recipe or schedule runs in one process", "recipe, loss.schedule", "Start it without a launcher"
        )
    teachers = _teacher(settings, train, device, log)
    built = build(config, train, quantise)
    model, batcher = built.model.to(device), built.batcher
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for target in built.targets:
        log(f"adapter on {target.modules} x {target.name}: {target.parameters:,} parameters")
    log(f"{trainable:,} of {sum(p.numel() for p in model.parameters()):,} parameters are trained, on {device}")
    items = [batcher.item(example, teacher) for example, teacher in zip(train, teachers, strict=True)]
    if cut := sum(batcher.kept(example.text) < len(example.text) for example in train):
        log(f"{cut} texts are longer than memory.max_text_tokens ({batcher.max_tokens}): only their beginning is read")
    schedule = make_schedule(config.loss).to(device)
    objective: SeedObjective | PackedObjective
    if config.recipe == "seed":
        objective = SeedObjective(model, batcher, items, config, schedule, device=device)
    else:
        objective = PackedObjective(
            workers.wrap(model), batcher, items, config, schedule, device=device, rank=workers.rank, world=workers.world
        )
    if workers.rank:  # the first process writes, the others only compute
        fit(model, schedule, objective, config, run=output, resume=resume, is_main=False, device=device)
        if workers.sharded:
            _gathered(model)
        return {"run": str(output)}

    def answerer_of(model: Any) -> AspectSentiment:
        return AspectSentiment(model, batcher.prompter.tokenizer, config, batcher.encoder_tokenizer, device)

    run = (
        RunFolder.resume(output)
        if resume
        else RunFolder.create(
            output,
            settings,
            seed=settings.seed,
            data={settings.data: digest(train + valid)},
            packages=("accelerate",),
            overwrite=overwrite,
        )
    )
    with run:
        curve = LocalLogger(run.path / "research_logs")

        def note(epoch: int, values: dict[str, float]) -> None:
            if resume:
                run.rewind(epoch - 1)
                curve.rewind("epoch", epoch - 1)
            run.log(epoch, **values)
            curve.log(epoch=epoch, **values)
            detail(f"epoch {epoch}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))

        def after_epoch(epoch: int) -> dict[str, float]:
            if workers.sharded:  # no process could answer alone
                return {}
            return {f"val_{name}": value for name, value in score(answerer_of(model), valid).items()}

        try:
            with progress("training", updates_of(objective.units, config.train)) as advance:
                fit(
                    model,
                    schedule,
                    objective,
                    config,
                    run=run.path,
                    resume=resume,
                    log=note,
                    after_epoch=after_epoch,
                    advance=advance,
                    device=device,
                )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"go on with clara-absa train --resume {shell_word(run.path)}") from None
        if workers.sharded:
            trained = _gathered(model)
            model = build(config, train, quantise).model.to(device)
            model.load_state_dict(trained, strict=False)  # what was not trained is what was built
        answerer = answerer_of(model)
        answerer.save_pretrained(run.path / "model")
        results = {
            "sentences": len(train),
            "validation": score(answerer, valid),
            "trained_parameters": trainable,
            "adapter": {target.name: target.parameters for target in built.targets},
        }
        run.write_results(results)
        card = _card(settings, results, run)
        run.write_card(card)
        write_text(run.path / "model" / "README.md", card)
    return {"run": str(output), **results}


def _gathered(model: Any) -> dict[str, Any]:
    """Trained parameters of a shared-out model, whole; every process has to take part."""
    from clara_absa.training.processes import whole

    return {name: whole(p.detach()) for name, p in model.named_parameters() if p.requires_grad}


def score(answerer: Any, examples: Sequence[Example], size: int | None = None) -> dict[str, float]:
    """Accuracy and macro-F1 on examples."""
    from clara_absa.evaluation.metrics import evaluate_metrics_pure_python

    found = answerer.predict_batch([(e.text, e.aspects) for e in examples], size=size)
    labels = [str(a.polarity) for e in examples for a in e.aspects]
    metrics = evaluate_metrics_pure_python(labels, [r.polarity for each in found for r in each])
    return {"accuracy": metrics["accuracy"], "macro_f1": metrics["macro_f1"]}


def _teacher(settings: RunSettings, train: Sequence[Example], device: str, log: Log) -> list[Any]:
    """The teacher's probabilities for the aspects of each sentence, or None for each."""
    if settings.clara.loss.distill and not settings.teacher:
        raise UserError("distillation needs a teacher", "loss.distill", "Give --teacher a run trained without memory")
    if not settings.teacher or not settings.clara.loss.distill:
        return [None] * len(train)
    import torch

    from clara_absa.configs.schema import POLARITIES
    from clara_absa.inference.sentiment import AspectSentiment

    log(f"asking the teacher {settings.teacher}")
    teacher = AspectSentiment.from_pretrained(settings.teacher, device)
    found = teacher.predict_batch([(example.text, example.aspects) for example in train])
    return [torch.tensor([[r.probabilities[p] for p in POLARITIES] for r in each]) for each in found]


def _card(settings: RunSettings, results: dict[str, Any], run: RunFolder) -> str:
    scores = results["validation"]
    memory = settings.clara.memory
    return model_card(
        "Aspect sentiment from memory tokens",
        f"Compresses a sentence to {memory.tokens} vectors and answers what it says about an aspect "
        f"(backbone {settings.clara.backbone}, reader {memory.reader}).",
        {
            "Use": f"`clara-absa predict 'TEXT' --aspect food --model {shell_word(run.path)}`",
            "Training data": f"`{settings.data}`, {settings.task}, {results['sentences']} sentences",
            "Validation": f"accuracy {scores['accuracy']:.3f}, macro-F1 {scores['macro_f1']:.3f}",
            "Limits": "It knows the kind of text it was trained on: English restaurant sentences, three polarities.",
        },
        run,
    )
