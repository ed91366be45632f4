"""Time to the first token and between the next ones, tokens per second, bytes of the KV cache, full and compressed.

One decoder reads both. Both tokenizers are one, so that a chunk is exactly k tokens of either side. Weights are random:
they cost the same. The compressed side pays for everything a question costs: cutting the documents, looking vectors up
(or encoding), the gate, the projector, the window and the first token.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentlab_shared.provenance import write_table
from refrag.bench.random_models import QUESTION, Sizes, documents, random_models
from refrag.inference.generator import RefragGenerator
from refrag.model.documents import Doc
from refrag.model.gate import Budget
from refrag.model.modeling_refrag import RefragModel
from refrag.model.tokenization_refrag import RefragTokenizer

Log = Callable[[str], None]
Row = dict[str, Any]

TARGETS = {8: 11.0, 16: 22.0, 32: 36.0}  # cached, nothing expanded
EXPANDED_TARGET, FRESH_TARGET = 9.0, 7.5  # k = 16: a tenth expanded; not cached
_NEXT = 8  # tokens after the first, to time one by one
_ANSWER = 64  # tokens of an answer, for the throughput


def bench_ttft(
    sizes: Sizes = Sizes(),  # noqa: B008  (frozen)
    *,
    rates: Sequence[int] = (8, 16, 32),
    repeats: int = 7,
    log: Log = lambda line: None,
) -> list[Row]:
    """Measure, in CPU time of one thread, interleaved; medians.

    Args:
        sizes: of the models and the documents.
        rates: k.
        repeats: rounds.
        log: told what is going on.
    """
    model, tokenizer = random_models(sizes)
    docs = documents(tokenizer, sizes.context, sizes.seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            return _measure(model, tokenizer, docs, Path(folder), rates, repeats, log)
    finally:
        torch.set_num_threads(threads)


def write_results(folder: Path, rows: Sequence[Row], command: str, seed: int) -> None:
    """Write ``ttft.json``, the table of the README."""
    about = "random weights, Llama 8 x 512 (58 M) and BERT 4 x 256; one thread, CPU time, interleaved, medians"
    shown = [{"name": row["name"], "metrics": {k: v for k, v in row.items() if k != "name"}} for row in rows]
    write_table(folder / "ttft.json", shown, command=command, data=about, seeds=[seed])


def _measure(
    model: RefragModel,
    tokenizer: RefragTokenizer,
    docs: Sequence[Doc],
    folder: Path,
    rates: Sequence[int],
    repeats: int,
    log: Log,
) -> list[Row]:
    cached = RefragGenerator(model, tokenizer, cache=folder)
    fresh = RefragGenerator(model, tokenizer)
    none = Budget(fraction=0.0)  # the gate is asked, and expands nothing
    ways = {f"k={k}, cached": (cached, k, none) for k in rates}
    for k in rates:
        ways[f"k={k}, cached, a tenth expanded"] = (cached, k, Budget(fraction=0.1))
        ways[f"k={k}, not cached"] = (fresh, k, none)
    times: dict[str, list[float]] = {name: [] for name in ("full", *ways)}
    nexts: dict[str, list[float]] = {name: [] for name in times}
    facts: dict[str, tuple[int, int]] = {}  # positions and bytes
    full = cached.window(QUESTION, docs, budget=Budget(fraction=1.0)).embeddings  # the prompt as it is
    for generator, k, budget in ways.values():
        generator.window(QUESTION, docs, budget=budget, compression=k)  # fills the cache
    for round_ in range(repeats):
        log(f"round {round_ + 1} of {repeats}")
        facts["full"] = _timed(lambda: full, model, times["full"], nexts["full"])
        for name, (generator, k, budget) in ways.items():
            facts[name] = _timed(
                lambda g=generator, k=k, b=budget: g.window(QUESTION, docs, budget=b, compression=k).embeddings,  # type: ignore[misc]
                model,
                times[name],
                nexts[name],
            )
    return [_row(name, times, nexts, facts, model) for name in times]


def _timed(prompt: Callable[[], Tensor], model: RefragModel, times: list[float], nexts: list[float]) -> tuple[int, int]:
    """Add the CPU time of a prompt and its first token, and of a token after it.

    Returns:
        The prompt's positions and the cache's bytes.
    """
    began = time.process_time()
    slots = prompt()
    found = model.decoder(inputs_embeds=slots[None], logits_to_keep=1, use_cache=True)
    token = int(found.logits[0, -1].argmax())
    times.append(time.process_time() - began)
    layers = found.past_key_values.layers
    held = sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))
    began = time.process_time()
    for _ in range(_NEXT):
        found = model.decoder(input_ids=torch.tensor([[token]]), past_key_values=found.past_key_values, use_cache=True)
        token = int(found.logits[0, -1].argmax())
    nexts.append((time.process_time() - began) / _NEXT)
    return len(slots), held


def _row(
    name: str,
    times: dict[str, list[float]],
    nexts: dict[str, list[float]],
    facts: dict[str, tuple[int, int]],
    model: RefragModel,
) -> Row:
    seconds, against = statistics.median(times[name]), statistics.median(times["full"])
    (slots, held), (all_slots, all_held) = facts[name], facts["full"]
    d = model.decoder_dim
    after, after_all = statistics.median(nexts[name]), statistics.median(nexts["full"])
    weights = 2 * sum(parameter.numel() for parameter in model.decoder.parameters())
    per_slot = 4 * d * model.decoder.config.num_hidden_layers
    formula = all_slots * (24 * d + 4 * all_slots) / (slots * (24 * d + 4 * slots))
    rate, rate_all = _ANSWER / (seconds + (_ANSWER - 1) * after), _ANSWER / (against + (_ANSWER - 1) * after_all)
    k = int(name.split(",")[0].removeprefix("k=")) if name != "full" else 0
    target = TARGETS.get(k) if name.endswith(", cached") else None
    if k == 16 and not target:
        target = FRESH_TARGET if "not cached" in name else EXPANDED_TARGET
    return {
        "name": name,
        "cpu_s": seconds,
        "ratio": against / seconds,
        "formula": formula,
        "positions": slots,
        "kv_MB": held / 1e6,
        "kv_ratio": all_held / held,
        "positions_ratio": all_slots / slots,
        "next_ms": 1e3 * after,
        "next_ratio": after_all / after,
        "next_formula": (weights + per_slot * all_slots) / (weights + per_slot * slots),
        "tokens_per_s": rate,
        "tokens_ratio": rate / rate_all,
        "target": target,
        "ok": None if target is None else against / seconds >= target,
    }
