"""Peak memory of a question: a context as it is, and compressed; each in a process of its own.

What counts is how far the process grows over what it holds when its model is loaded and has read a few tokens: the
activations and the KV cache. Growth is the kernel's own high-water mark, reset just before.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from latentlab_shared.errors import RunFailed, UserError
from latentlab_shared.provenance import write_table
from refrag.bench.random_models import QUESTION, Sizes, documents, random_models

Log = Callable[[str], None]
Row = dict[str, Any]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FULL = 1  # the k that stands for all tokens


def bench_memory(
    sizes: Sizes = Sizes(),  # noqa: B008  (frozen)
    *,
    rates: Sequence[int] = (8, 16, 32),
    repeats: int = 3,
    log: Log = lambda line: None,
) -> list[Row]:
    """Measure; the least of some repeats, since other things can only add.

    Args:
        sizes: of the models and the documents.
        rates: k.
        repeats: processes for each way.
        log: told what is going on.

    Raises:
        UserError: where the kernel has no high-water mark to reset (it is Linux's).
        RunFailed: if a process ends otherwise than with a figure.
    """
    if not _RESET.exists():
        raise UserError("peak memory is measured on Linux only", "refrag bench memory")
    grown: dict[int, list[Row]] = {k: [] for k in (_FULL, *rates)}
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(repeats):
            for k in grown:
                log(f"round {round_ + 1} of {repeats}: {_name(k)}")
                grown[k].append(_child([*astuple(sizes), k], folder))
    best = {k: min(found, key=lambda one: float(one["peak_MB"])) for k, found in grown.items()}
    full = best[_FULL]
    return [
        {"name": _name(k), **one, "ratio": full["peak_MB"] / one["peak_MB"], "kv_ratio": full["kv_MB"] / one["kv_MB"]}
        for k, one in best.items()
    ]


def write_results(folder: Path, rows: Sequence[Row], command: str, seed: int) -> None:
    """Write ``memory.json``, the table of the README."""
    about = "random weights, Llama 8 x 512 (58 M) and BERT 4 x 256; growth of a process's resident memory, least of all"
    shown = [{"name": row["name"], "metrics": {k: v for k, v in row.items() if k != "name"}} for row in rows]
    write_table(folder / "memory.json", shown, command=command, data=about, seeds=[seed])


def _name(k: int) -> str:
    return "full" if k == _FULL else f"k={k}, cached"


def _child(numbers: Sequence[int], folder: str) -> Row:
    command = [sys.executable, "-m", "refrag.bench.memory", folder, *map(str, numbers)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found: Row = json.loads(ended.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        line = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RunFailed(f"a measuring process failed ({line[:160]})", "refrag bench memory") from None
    return found


def _measured(folder: str, numbers: Sequence[int]) -> Row:
    """In the child: load, warm up, reset the mark, read, and say how far it rose."""
    import torch

    from refrag.inference.generator import RefragGenerator
    from refrag.model.gate import Budget

    *of, k = numbers
    sizes = Sizes(*of)
    torch.set_num_threads(1)
    model, tokenizer = random_models(sizes)
    docs = documents(tokenizer, sizes.context, sizes.seed)
    budget = Budget(fraction=1.0 if k == _FULL else 0.0)
    rate = None if k == _FULL else k
    with torch.no_grad():
        # Vectors come from the folder, where an earlier process, or this one's first look, has put them.
        RefragGenerator(model, tokenizer, cache=folder).window(QUESTION, docs, budget=budget, compression=rate)
        generator = RefragGenerator(model, tokenizer, cache=folder)
        warm = generator.window(QUESTION, [], budget=budget, compression=rate).embeddings
        model.decoder(inputs_embeds=warm[None], logits_to_keep=1, use_cache=True)
        _give_back()
        _RESET.write_text("5")
        before = _kilobytes("VmRSS")
        slots = generator.window(QUESTION, docs, budget=budget, compression=rate).embeddings
        found = model.decoder(inputs_embeds=slots[None], logits_to_keep=1, use_cache=True)
        peak = _kilobytes("VmHWM")
    layers_ = found.past_key_values.layers
    held = sum(t.numel() * t.element_size() for layer in layers_ for t in (layer.keys, layer.values))
    return {"positions": len(slots), "peak_MB": (peak - before) * 1024 / 1e6, "kv_MB": held / 1e6}


def _give_back() -> None:
    """Return freed memory to the system, or what is used again would not count; glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _kilobytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise UserError(f"the kernel does not tell {field}", _STATUS)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measured(sys.argv[1], [int(word) for word in sys.argv[2:]])) + "\n")
