"""The verb ``pretrain``: a small backbone learns to read before it learns to answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clara_absa.configs.base_config import ClaraConfig, LoraSettings, MemoryConfig, TinyConfig, TrainConfig
from clara_absa.data_utils.splits import Kind
from clara_absa.training.settings import Progress, examples_of, is_lone_file, no_progress
from latentlab_shared.config import from_dict
from latentlab_shared.devices import choose_device
from latentlab_shared.errors import UserError, shell_word
from latentlab_shared.runs import RunFolder

Log = Callable[[str], None]


@dataclass(frozen=True)
class PretrainSettings:
    """What a backbone learns from; saved with it.

    Attributes:
        data: "sample", a file or a folder; its training part is read.
        task: "atsa", "acsa" or "joint".
        texts: plain text files, one text per line.
        epochs: passes over all texts.
        width: d.
        layers: of the backbone.
        dropout: of what each layer adds; the backbone keeps it for the training that follows.
        seed: of every random number.
        limit: sentences of ``data`` at most.
    """

    data: str = "sample"
    task: Kind = "atsa"
    texts: tuple[str, ...] = ()
    epochs: int = 5
    width: int = 128
    layers: int = 2
    dropout: float = 0.3
    seed: int = 0
    limit: int | None = None


def pretrain_run(
    output: Path,
    settings: PretrainSettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    log: Log = lambda _: None,
    detail: Log = lambda _: None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Train a language model into ``output/backbone``: its weights and its tokenizer, for ``train --backbone``.

    Returns:
        The folder, and the perplexity per token on the validation sentences.
    """
    import torch

    from clara_absa.data_utils.batches import Batcher
    from clara_absa.data_utils.prompts import Prompter
    from clara_absa.model.clara import FastClaraModel
    from clara_absa.model.folder import quiet
    from clara_absa.sample.backbone import make_backbone, train_tokenizer
    from clara_absa.training.fit import fit, updates_of
    from clara_absa.training.pretrain import LanguageObjective
    from clara_absa.training.schedules import make_schedule

    if resume:
        settings = from_dict(PretrainSettings, RunFolder.read(output).config, output / "config.json")
    else:
        RunFolder.ensure_free(output, overwrite=overwrite)  # before the work; created when all input has been read
    device = choose_device(device)
    train = examples_of(settings.data, "train", settings.task, limit=settings.limit, seed=settings.seed)
    valid = examples_of(settings.data, "val", settings.task, limit=settings.limit, seed=settings.seed)
    texts = [example.text for example in train]
    for name in settings.texts:
        try:
            texts += [line.strip() for line in Path(name).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError("this text cannot be read", name, "Give a UTF-8 file, one text per line") from error
    if is_lone_file(settings.data):
        log(f"{settings.data} is one file: a tenth of its sentences is kept for val, a tenth for test")
    log(f"{len(texts)} texts to learn from")
    tokenizer = train_tokenizer(train, TinyConfig().vocabulary)
    heads = max(1, settings.width // 32)
    backbone = make_backbone(tokenizer, settings.width, settings.layers, heads, settings.seed, settings.dropout)
    config = ClaraConfig(
        backbone="tiny",
        memory=MemoryConfig(reader="none"),
        lora=LoraSettings(rank=0),
        train=TrainConfig(epochs=settings.epochs, batch_size=32, learning_rate=2e-3, seed=settings.seed),
    )
    model = FastClaraModel(backbone, config.memory).to(device)
    batcher = Batcher(Prompter(tokenizer), config.memory)
    objective = LanguageObjective(model, batcher, texts, config.train, device)
    held_out = LanguageObjective(model, batcher, [e.text for e in valid], replace(config.train, row_tokens=512), device)

    @torch.no_grad()
    def perplexity(_: int = 0) -> dict[str, float]:
        losses = [float(loss) for loss, _ in held_out.parts(range(held_out.units), 0, 0.0)]
        return {"perplexity": math.exp(sum(losses) / len(losses))}

    run = (
        RunFolder.resume(output)
        if resume
        else RunFolder.create(output, settings, seed=settings.seed, overwrite=overwrite)
    )
    with run:

        def note(epoch: int, values: dict[str, float]) -> None:
            if resume:
                run.rewind(epoch - 1)
            run.log(epoch, **values)
            detail(f"epoch {epoch}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))

        try:
            with progress("pretraining", updates_of(objective.units, config.train)) as advance:
                fit(
                    model,
                    make_schedule(config.loss),
                    objective,
                    config,
                    run=run.path,
                    resume=resume,
                    log=note,
                    after_epoch=perplexity,
                    advance=advance,
                    device=device,
                )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"go on with clara-absa pretrain --resume {shell_word(run.path)}") from None
        quiet()
        backbone.save_pretrained(run.path / "backbone")
        tokenizer.save_pretrained(run.path / "backbone")
        results = {"backbone": str(run.path / "backbone"), "texts": len(texts), **perplexity()}
        run.write_results(results)
    return results
