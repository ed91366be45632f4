"""Ratios measured side by side in one run: decoding against the seed's loop, beam against greedy, training speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import keras
import numpy as np

from latentlab_shared.errors import RunFailed
from seq2seq_keras.config import PRESETS, DecodeConfig, ModelConfig
from seq2seq_keras.data.encode import Encoded
from seq2seq_keras.data.types import Ids
from seq2seq_keras.data.vocabulary import SPECIAL
from seq2seq_keras.inference.seed_models import SeedDecoder
from seq2seq_keras.inference.summarizer import compile_search
from seq2seq_keras.model.seq2seq import Seq2Seq
from seq2seq_keras.sample import generate
from seq2seq_keras.training import Trainer

Log = Callable[[str], None]

PARTS = ("sample", "decode", "beam", "train")
_VOCABULARY, _SOURCE, _WORDS = 10_000, 50, 19  # as many steps as the seed takes
_BATCH, _ITEMS = 64, 75_000


def run_bench(
    *, repeats: int = 3, seed: int = 0, parts: Sequence[str] = PARTS, log: Log = lambda _: None
) -> list[dict[str, Any]]:
    """Measure, and return one row per comparison.

    The models have the presets' sizes and random weights, their logits spread so that rounding decides nothing. Every
    summary is 19 words long. What is compared runs in turns in one process; medians are given. Ratios are of processor
    time, which other work on the machine does not stretch; ``wall_ratio`` is of the clock.

    Args:
        repeats: rounds.
        seed: of weights and texts.
        parts: of ``PARTS``.
        log: told what is being measured.

    Returns:
        Rows with a name and metrics: value, unit, against, target (None for none), ok, and more.

    Raises:
        RunFailed: if two ways of decoding give different ids.
    """
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    texts = rng.integers(len(SPECIAL), _VOCABULARY, (_BATCH, _SOURCE)).astype(np.int32)
    rows: list[dict[str, Any]] = []
    if "sample" in parts:
        spent, _ = _timed(lambda: generate(_ITEMS))
        rows.append(_row(f"generate {_ITEMS:,} built-in items", _ITEMS / spent.cpu, "items/CPU-s", seconds=spent.wall))
    for preset in ("full", "small") if {"decode", "beam"} & set(parts) else ():
        model = _spread(PRESETS[preset].model, rng)
        if "decode" in parts:
            rows += _decoding(preset, model, texts, repeats, log)
        if "beam" in parts:
            rows.append(_beam(preset, model, texts, repeats, log))
    if "train" in parts:
        rows += _training(texts, rng, repeats, log)
    return rows


def _spread(config: ModelConfig, rng: Any) -> Seq2Seq:
    """A model of random weights whose best word is far before the second."""
    model = Seq2Seq(_VOCABULARY, replace(config, dropout=0.0))
    table = model.target_embedding.embeddings if config.tied_output else model.projection.kernel
    table.assign(rng.normal(0, 1.0, table.shape))
    return model


def _decoding(preset: str, model: Seq2Seq, texts: Ids, repeats: int, log: Log) -> list[dict[str, Any]]:
    config = DecodeConfig(min_length=_WORDS, no_repeat_ngram=0)
    seed_loop = SeedDecoder(model, _SOURCE, _WORDS, config)
    compiled = compile_search(model, _WORDS, config)
    compiled(texts[:1], texts[:1]), compiled(texts, texts), seed_loop.decode_sequence(texts[:1], texts[:1])
    rows = []
    for count, target in ((1, 50.0), (_BATCH, 350.0)):
        log(f"{preset}: decoding {count} texts, the seed's loop and the compiled one in turns")
        slow, fast, same = [], [], True
        for _ in range(repeats if count == 1 else 1):
            spent, one_by_one = _timed(lambda: [seed_loop.decode_sequence(t[None], t[None]) for t in texts[:count]])  # noqa: B023
            slow.append(spent)
            for _ in range(5):
                spent, found = _timed(lambda: np.asarray(compiled(texts[:count], texts[:count])[0]))  # noqa: B023
                fast.append(spent)
            same &= [row.tolist() for row in found[:, 0]] == one_by_one
        if not same:
            raise RunFailed("the compiled loop gives other ids than the per-token loop", "bench")
        name = f"{preset}, decode {count}: the seed's loop / compiled"
        rows.append(_ratio(name, slow, fast, "the seed's predict per word", target, True, same_ids=True))
    return rows


def _beam(preset: str, model: Seq2Seq, texts: Ids, repeats: int, log: Log) -> dict[str, Any]:
    log(f"{preset}: beam 4 and greedy on {_BATCH} texts in turns")
    rules = DecodeConfig(min_length=_WORDS)
    greedy = compile_search(model, _WORDS, rules)
    beam = compile_search(model, _WORDS, replace(rules, beam=4))
    greedy(texts, texts), beam(texts, texts)
    slow, fast = [], []
    for _ in range(max(5, repeats)):
        slow.append(_timed(lambda: np.asarray(beam(texts, texts)[0]))[0])
        fast.append(_timed(lambda: np.asarray(greedy(texts, texts)[0]))[0])
    return _ratio(f"{preset}, beam 4 / greedy, {_BATCH} texts", slow, fast, "greedy", 4.0, False)


def _training(texts: Ids, rng: Any, repeats: int, log: Log) -> list[dict[str, Any]]:
    """Examples per second of the presets at batch 60, and of tied against projected logits."""
    target = rng.integers(len(SPECIAL), _VOCABULARY, (_BATCH, _WORDS - 1)).astype(np.int32)
    batch = Encoded(texts, target, _VOCABULARY).batch(np.arange(60))
    small = PRESETS["small"].model
    models = {
        "full": PRESETS["full"].model,
        "small": small,
        "small with a 512 x 10,000 projection": replace(small, tied_output=False),
    }
    trainers = {}
    for name, config in models.items():
        log(f"compiling the training step: {name}")
        trainers[name] = Trainer(Seq2Seq(_VOCABULARY, config), PRESETS["small"].train)
        trainers[name].train_step(*batch)
    spent: dict[str, list[Spent]] = {name: [] for name in models}
    log("training steps in turns")
    for _ in range(max(3, repeats)):
        for name, trainer in trainers.items():
            spent[name].append(_timed(lambda: float(trainer.train_step(*batch)[0]))[0])  # noqa: B023
    rows = []
    for name, times in spent.items():
        median = _median(times)
        more = {"seconds": median.wall, "parameters": trainers[name].model.count_params()}
        rows.append(_row(f"train {name}, batch 60", 60 / median.cpu, "examples/CPU-s", **more))
    return rows


class Spent(NamedTuple):
    """Seconds on the clock, and of this process on all processors."""

    wall: float
    cpu: float


def _timed(work: Callable[[], Any]) -> tuple[Spent, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu), found


def _median(times: list[Spent]) -> Spent:
    return Spent(statistics.median(t.wall for t in times), statistics.median(t.cpu for t in times))


def _ratio(
    name: str, slow: list[Spent], fast: list[Spent], against: str, target: float, at_least: bool, **more: Any
) -> dict[str, Any]:
    slower, faster = _median(slow), _median(fast)
    value = slower.cpu / faster.cpu
    ok = value >= target if at_least else value <= target
    wall = {"wall_ratio": slower.wall / faster.wall, "seconds": faster.wall, "other_seconds": slower.wall}
    return _row(name, value, "x CPU time", against, target, ok, **wall, runs=len(slow), **more)


def _row(
    name: str,
    value: float,
    unit: str,
    against: str = "",
    target: float | None = None,
    ok: bool | None = None,
    **more: Any,
) -> dict[str, Any]:
    metrics = {"value": value, "unit": unit, "against": against, "target": target, "ok": ok, **more}
    return {"name": name, "metrics": metrics}
