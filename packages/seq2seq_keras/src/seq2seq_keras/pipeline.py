"""The work behind the verbs: data to a trained run, a run to figures and files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlab_shared.config import from_dict, load_config
from latentlab_shared.errors import UserError
from latentlab_shared.runs import RunFolder, model_card
from seq2seq_keras.config import PRESETS, Settings
from seq2seq_keras.data import Account, Columns, Example, read_parts
from seq2seq_keras.data.encode import build_vocabulary, encode_pairs, with_labels
from seq2seq_keras.data.readers import digest

if TYPE_CHECKING:
    from seq2seq_keras.inference.summarizer import Summarizer

RUNS = Path("runs/seq2seq_keras")

Log = Callable[[str], None]


@dataclass(frozen=True)
class RunSettings:
    """What a run was asked for; ``config.json`` of a run folder.

    Attributes:
        data: "sample", a file or a folder.
        split: "auto", "files", "date" or "hash".
        text_column: of tables; empty for the usual names.
        summary_column: of tables; empty for the usual names.
        limit: training examples at most; a tenth as many held out.
        skip_bad: leave malformed rows out.
        settings: data, model, training, decoding.
    """

    data: str = "sample"
    split: str = "auto"
    text_column: str = ""
    summary_column: str = ""
    limit: int | None = None
    skip_bad: bool = False
    settings: Settings = Settings()


def read_run_parts(asked: RunSettings, account: Account | None = None) -> dict[str, list[Example]]:
    """The labelled parts that a run was or will be trained on."""
    parts = read_parts(
        asked.data,
        split=asked.split,
        columns=Columns(asked.text_column, asked.summary_column),
        limit=asked.limit,
        skip_bad=asked.skip_bad,
        account=account,
        seed=asked.settings.train.seed,
    )
    return {part: with_labels(examples, asked.settings.data) for part, examples in parts.items()}


def settings_of(run: Path) -> RunSettings:
    """What a run folder was asked for."""
    return from_dict(RunSettings, RunFolder.read(run).config, run / "config.json")


def train_run(
    output: Path,
    asked: RunSettings,
    *,
    preset: str = "small",
    config_file: Path | None = None,
    overrides: Iterable[str] = (),
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    track: Iterable[str] = (),
    cache_dir: Path | None = None,
    log: Log = lambda _: None,
) -> dict[str, Any]:
    """Train a summarizer into a run folder.

    Args:
        output: the run folder.
        asked: data to train on; with ``resume`` the run's own is taken.
        preset: "small" or "full".
        config_file: keys over the preset's.
        overrides: ``key=value`` over the file.
        seed: of everything.
        resume: go on with the run in ``output``.
        overwrite: throw away an earlier run in ``output``.
        track: "tensorboard".
        cache_dir: where encoded pairs are kept; None for memory only.
        log: told what happens, a line at a time.

    Returns:
        Where the model is, its size and its losses.

    Raises:
        UserError: for data or settings that cannot be used; nothing is written then.
    """
    if resume:
        asked = settings_of(output)
    else:
        if preset not in PRESETS:
            raise UserError(f"{preset!r} is not a preset", "--preset", f"Use one of: {', '.join(PRESETS)}")
        base = PRESETS[preset]
        base = replace(base, train=replace(base.train, seed=seed))
        asked = replace(asked, settings=load_config(Settings, config_file, overrides, base))
    settings, account = asked.settings, Account()
    parts = read_run_parts(asked, account)
    if not parts["valid"]:
        raise UserError("there is nothing to validate on", asked.data, "Give a val file beside the train file")
    left_out = f"{account.duplicates} duplicates, {account.empty} empty, {account.malformed} malformed"
    log(f"{len(parts['train'])} texts to train on, {len(parts['valid'])} for validation; left out: {left_out}")
    vocabulary = build_vocabulary(parts["train"], settings.data)
    train = encode_pairs(parts["train"], vocabulary, settings.data, cache_dir)
    valid = encode_pairs(parts["valid"], vocabulary, settings.data, cache_dir)

    import keras

    from seq2seq_keras.inference.summarizer import Summarizer
    from seq2seq_keras.model.seq2seq import Seq2Seq
    from seq2seq_keras.training import fit

    keras.utils.set_random_seed(settings.train.seed)
    model = Seq2Seq(len(vocabulary), settings.model)
    log(f"{model.count_params():,} parameters, a vocabulary of {len(vocabulary):,}")
    hashes = {f"{asked.data} ({part})": digest(examples) for part, examples in parts.items()}
    run = (
        RunFolder.resume(output, track=track)
        if resume
        else RunFolder.create(output, asked, seed=settings.train.seed, data=hashes, overwrite=overwrite, track=track)
    )
    with run:
        try:
            fit(model, train, valid, settings.train, run=run, resume=resume, log=log)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"go on with seq2seq-keras train --resume {output}") from None
        summarizer = Summarizer(model, vocabulary, settings)
        summarizer.save(output / "model")
        rows = [row for row in run.metrics() if "valid_loss" in row]
        results = {
            "parameters": model.count_params(),
            "vocabulary": len(vocabulary),
            "examples": len(train),
            "epochs": len(rows),
            "valid_loss": min(row["valid_loss"] for row in rows),
            "seconds": sum(row["seconds"] for row in rows),
            "examples_per_second": max(row["examples_per_second"] for row in rows),
        }
        run.write_results({"training": results})
        run.write_card(_card(asked, summarizer, results, run))
    return {"run": str(output), **results}


def _card(asked: RunSettings, summarizer: Summarizer, results: dict[str, Any], run: RunFolder) -> str:
    labels = asked.settings.data.labels
    return model_card(
        "LSTM summarizer",
        f"One-sentence summaries: encoder-decoder with attention, {results['parameters']:,} parameters.",
        {
            "Use": f"`seq2seq-keras summarize article.txt --model {run.path}`",
            "Training data": f"`{asked.data}`, {results['examples']} texts; {labels} pseudo-summaries where it has none",
            "Validation": f"- loss per word {results['valid_loss']:.4f} after {results['epochs']} epochs",
            "Limits": "It knows the kind of text it was trained on. Names and numbers can be wrong: check them.",
        },
        run,
    )
