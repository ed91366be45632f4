"""Training and prediction beside the seed's way: the same weights, the same machine, interleaved, in CPU time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clara_absa.configs.base_config import ClaraConfig, LossConfig, MemoryConfig
from clara_absa.configs.schema import PROMPTS, Example, Task
from clara_absa.data_utils.batches import Batcher
from clara_absa.data_utils.prompts import Prompter
from clara_absa.inference.sentiment import AspectSentiment
from clara_absa.model.clara import FastClaraModel
from clara_absa.sample.backbone import make_backbone, train_tokenizer
from clara_absa.training.objectives import Objective, PackedObjective, SeedObjective
from clara_absa.training.schedules import make_schedule
from clara_absa.training.settings import examples_of
from latentlab_shared.provenance import write_table

_ASPECTS = 4


def run_bench(
    *,
    sentences: int = 32,
    repeats: int = 3,
    vocabulary: int = 4000,
    data: str = "sample",
    seed: int = 0,
    output: Path | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Measure; medians over interleaved repeats.

    Args:
        sentences: to train on and to ask about.
        repeats: rounds.
        vocabulary: tokens of the backbone, at most.
        data: where the sentences are from.
        seed: of the weights.
        output: also write ``bench.json`` here.
        log: told what is measured.

    Returns:
        Rows with name, value (a ratio), unit, against, target, ok, and the two amounts whose ratio it is.
    """
    train = examples_of(data, "train", seed=seed)
    tokenizer = train_tokenizer(train, vocabulary)
    examples = train[:sentences]
    log(f"training: {sentences} sentences, vocabulary {len(tokenizer)}")
    rows = _training(examples, tokenizer, repeats, seed)
    log(f"prediction: {sentences} sentences")
    rows += _prediction(examples, tokenizer, repeats, seed)
    if output is not None:
        shaped = [{"name": row["name"], "metrics": {k: v for k, v in row.items() if k != "name"}} for row in rows]
        sizes = f"--sentences {sentences} --repeats {repeats} --vocabulary {vocabulary}"
        command = f"clara-absa bench --data {Path(data).name} {sizes}"
        write_table(output / "bench.json", shaped, command=command, data=Path(data).name, seeds=[seed])
    return rows


def _model(tokenizer: Any, memory: MemoryConfig, seed: int) -> tuple[FastClaraModel, Batcher]:
    import torch

    backbone = make_backbone(tokenizer, seed=seed)
    torch.manual_seed(seed)
    return FastClaraModel(backbone, memory), Batcher(Prompter(tokenizer), memory)


def _medians(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """CPU seconds of each way; the ways take turns, so that a slow moment meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for call in ways.values():  # once before, unmeasured
        call()
    for _ in range(repeats):
        for name, call in ways.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def _training(examples: Sequence[Example], tokenizer: Any, repeats: int, seed: int) -> list[dict[str, Any]]:
    """Forward and backward passes of all tasks of the sentences: packed, and as the seed does it."""
    base = ClaraConfig(backbone="tiny", loss=LossConfig(schedule="constant", alpha=(1.0, 1.0), beta=(1.0, 1.0)))
    base = replace(base, lora=replace(base.lora, rank=0))
    model, batcher = _model(tokenizer, base.memory, seed)
    items = [batcher.item(example) for example in examples]
    schedule = make_schedule(base.loss)
    packed = PackedObjective(model, batcher, items, base, schedule)
    padded = SeedObjective(model, batcher, items, replace(base, recipe="seed"), schedule)
    samples = len(padded.samples)

    def passes(objective: Objective, size: int, count: int) -> Callable[[], None]:
        def call() -> None:
            model.train()
            for start in range(0, count, size):
                for loss, _ in objective.parts(range(start, min(start + size, count)), 0, 0.5):
                    loss.backward()  # type: ignore[no-untyped-call]
            model.zero_grad()

        return call

    # The seed's batch is four samples. Memory is compared for the same samples in one pass.
    some = min(samples, 16)
    seconds = _medians({"packed": passes(packed, 16, len(items)), "seed": passes(padded, 4, some)}, repeats)
    fast, slow = samples / seconds["packed"], some / seconds["seed"]
    few = range(min(6, len(items)))
    same = [index for index, sample in enumerate(padded.samples) if sample[0] in few]
    kept = {name: _kept(objective, units) for name, objective, units in (("p", packed, few), ("s", padded, same))}
    return [
        _row("training", "task samples/CPU-s", fast, slow, "recipe seed", 15.0),
        _row(
            f"kept for backward, {len(same)} samples", "MiB", kept["p"], kept["s"], "recipe seed", 0.5, at_least=False
        ),
    ]


def _row(
    name: str,
    unit: str,
    ours: float,
    other: float,
    against: str,
    target: float | None = None,
    at_least: bool = True,
) -> dict[str, Any]:
    """How much one way does or takes, as a ratio to the way it replaces."""
    value = ours / other
    ok = None if target is None else (value >= target) == at_least
    row = {"name": name, "value": value, "unit": f"x {unit}", "against": against, "target": target, "ok": ok}
    return row | {"ours": ours, "other": other}


def _kept(objective: Objective, units: Sequence[int]) -> float:
    """MiB of tensors that a forward pass keeps for the backward pass, each storage once, weights left out."""
    import torch

    model: Any = objective.model  # type: ignore[attr-defined]  # both objectives have one
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, int] = {}
    alive: list[Any] = []  # a freed storage's address could come again

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for _ in objective.parts(units, 0, 0.5):
            pass
    return sum(held.values()) / 2**20


def _prediction(examples: Sequence[Example], tokenizer: Any, repeats: int, seed: int) -> list[dict[str, Any]]:
    """Aspects answered: one by one by writing, in one batch by scoring, from kept memories, and by reading the text."""
    base = ClaraConfig(backbone="tiny", memory=MemoryConfig(tokens=8))
    base = replace(base, lora=replace(base.lora, rank=0))
    model, _ = _model(tokenizer, base.memory, seed)
    answerer = AspectSentiment(model, tokenizer, base)
    reading = replace(base, memory=MemoryConfig(reader="none"))
    reader = AspectSentiment(FastClaraModel(model.backbone, reading.memory), tokenizer, reading)
    terms = [a.term for example in examples for a in example.aspects]
    asked = [
        (e.text, [terms[(i * _ASPECTS + j) % len(terms)] for j in range(_ASPECTS)]) for i, e in enumerate(examples)
    ]
    memories = answerer.compress_batch([text for text, _ in asked])
    few = asked[:4]

    def from_memory() -> None:
        vectors = [memory.vectors for memory in memories]
        aspects = [answerer._aspects(text, given) for text, given in asked]
        answerer._answer(vectors, aspects, None, 0.0, "score")

    def one_by_one() -> None:
        for text, given in few:
            for aspect in given:
                vectors = answerer.compress(text).vectors
                answerer.generate([vectors], [PROMPTS[Task.REASONING].format(aspect=aspect)], max_tokens=4)

    def read_again() -> None:
        reader.predict_batch([(text, [aspect]) for text, given in asked for aspect in given])

    seconds = _medians(
        {
            "one": one_by_one,
            "batch": lambda: answerer.predict_batch(asked),
            "memory": from_memory,
            "again": read_again,
            "prefix": lambda: reader.predict_batch(asked),
        },
        repeats,
    )
    total = len(asked) * _ASPECTS
    rates = {name: total / value for name, value in seconds.items()} | {"one": len(few) * _ASPECTS / seconds["one"]}
    unit, again = "aspects/CPU-s", f"reading the text again for each of {_ASPECTS} aspects"
    return [
        _row("prediction, packed, scoring", unit, rates["batch"], rates["one"], "one by one, writing", 10.0),
        _row(f"kept memory, {_ASPECTS} aspects", unit, rates["memory"], rates["again"], again, 1.5),
        _row(f"keys and values of the text, {_ASPECTS} aspects", unit, rates["prefix"], rates["again"], again),
    ]
