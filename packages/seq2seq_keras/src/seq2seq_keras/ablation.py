"""One change at a time: variants trained with the same data and evaluated on the same texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentlab_shared.errors import UserError
from latentlab_shared.files import read_json
from latentlab_shared.provenance import write_table
from seq2seq_keras.pipeline import (
    RunSettings,
    evaluate_run,
    is_finished,
    preset_settings,
    settings_of,
    shown,
    train_run,
)

Log = Callable[[str], None]

# What stands before the options: the preset, and what differs from it.
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "seed": ("full", ("model.mask=false", "train.mask_loss=false", "decode.no_repeat_ngram=0")),
    "masked": ("full", ()),
    "pointer": ("small", ()),
    "without pointer": ("small", ("model.pointer=false",)),
    "with coverage": ("small", ("model.coverage=true",)),
    "two embeddings": ("small", ("model.share_embeddings=false",)),
    "untied output": ("small", ("model.tied_output=false",)),
    "one-way encoder": ("small", ("model.bidirectional=false",)),
    "keras_additive": ("small", ("model.attention=keras_additive",)),
    "no n-gram rule": ("small", ("decode.no_repeat_ngram=0",)),
}


_TRAINED = ("parameters", "examples", "epochs", "valid_loss", "seconds")  # of a run's training, shown in its row


def ablate(
    folder: Path,
    asked: RunSettings,
    variants: Iterable[str],
    *,
    overrides: Iterable[str] = (),
    seed: int = 0,
    texts: int | None = None,
    table: Path | None = None,
    log: Log = lambda _: None,
) -> list[dict[str, Any]]:
    """Train variants into folders below ``folder`` and evaluate each on the test part.

    A variant whose training had ended is not trained again, one that was interrupted goes on.

    Args:
        folder: of the runs.
        asked: data to train on.
        variants: names, of ``VARIANTS``.
        overrides: ``key=value`` for all of them.
        seed: of everything.
        texts: to evaluate on, at most.
        table: a results table to write.
        log: told what happens.

    Returns:
        A row of scores for each variant.

    Raises:
        UserError: for a variant that is not known, or a folder that holds a run of other settings.
    """
    wanted = list(variants)
    for name in wanted:
        if name not in VARIANTS:
            raise UserError(f"{name!r} is not a variant", "--variant", f"Use one of: {', '.join(VARIANTS)}")
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    for name in wanted:
        preset, changes = VARIANTS[name]
        run = folder / name.replace(" ", "-")
        chosen = replace(asked, settings=preset_settings(preset, None, (*changes, *overrides), seed))
        log(f"== {name}: {run}")
        began = (run / "config.json").is_file()
        if began and settings_of(run) != chosen:
            raise UserError("this run has other data or settings", run, "Choose another --output-dir")
        if not is_finished(run):
            options = (*changes, *overrides)
            train_run(run, asked, preset=preset, overrides=options, seed=seed, resume=began, log=log)
        trained = read_json(run / "results.json")["training"]
        found = evaluate_run(run, limit=texts, log=log)
        shares = {key: value for key, value in found["behaviour"][0].items() if key != "name"}
        metrics = {**found["rows"][0]["metrics"], **shares, **{key: trained[key] for key in _TRAINED}}
        rows.append({"name": name, "metrics": metrics, "interval": found["rows"][0]["interval"]})
    if table is not None:
        told = "".join(f" --variant {name!r}" for name in wanted) + "".join(f" --set {item}" for item in overrides)
        told += "".join(f" --{flag} {count}" for flag, count in (("limit", asked.limit), ("texts", texts)) if count)
        write_table(
            table,
            [*rows, *(row for row in found["rows"] if row["name"] == "lead-13")],
            command=f"seq2seq-keras ablate --data {shown(asked.data)}{told}",
            data=f"{found['data']}, {found['texts']} texts of the test part",
            seeds=[seed],
            rouge=found["signature"],
        )
    return rows
