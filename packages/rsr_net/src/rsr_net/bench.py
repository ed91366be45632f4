"""What the cache and the depth cost and save: ratios of CPU time, rounds interleaved, medians."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlab_shared.embeddings import EmbeddingCache
from latentlab_shared.encoders import TextEncoder, load_encoder
from latentlab_shared.errors import UserError
from latentlab_shared.plots import new_figure, save_png
from latentlab_shared.provenance import write_table
from rsr_net.config import RsrConfig, TrainConfig
from rsr_net.data import read_examples
from rsr_net.data.embed import embed_examples
from rsr_net.data.types import Batch, Example
from rsr_net.model.recursion import RecursionModel
from rsr_net.model.refiner import Refiner
from rsr_net.sample import generate
from rsr_net.training.seed import supervise, train_refinement

_BATCH = 16
_DEPTHS = ((1, 1, 1), (2, 2, 1), (4, 3, 1), (4, 3, 3), (8, 3, 3), (8, 6, 3))  # (n, T, segments)
Log = Callable[[str], None]


def run_bench(
    articles: int = 64,
    encoder: str = "minilm",
    repeats: int = 3,
    seed: int = 0,
    output: Path | None = None,
    data: str = "sample",
    log: Log = lambda _: None,
) -> list[dict[str, Any]]:
    """Measure training with the cache beside encoding in every epoch, its throughput, and the cost of depth.

    Args:
        articles: how many, with their summaries.
        encoder: what ``train_refinement`` calls for every batch, the seed's way. The larger it is, the more is saved.
        repeats: interleaved rounds.
        seed: of the articles and the networks.
        output: folder for ``bench.json`` and ``depth.png``; None writes nothing.
        data: "sample" for built-in articles, which are short, or a file or folder of others.
        log: told what is measured.

    Returns:
        Rows with name, value, unit, against, target and ok.
    """
    examples = _examples(data, articles, seed)
    network = load_encoder(encoder, device="cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # CPU time of several threads counts their waiting
    try:
        with tempfile.TemporaryDirectory() as folder:
            cache = EmbeddingCache(Path(folder) / "cache", network.fingerprint, network.dim)
            rows = _epochs(examples, network, cache, repeats, seed, log)
            rows += _refiner(examples, network, cache, repeats, seed, log)
            depths = _depths(network.dim, repeats, seed, log)
    finally:
        torch.set_num_threads(threads)
    slope = np.polyfit([d["steps"] for d in depths], [d["seconds"] for d in depths], 1)[0]
    rows.append(_row("cost_per_recursion_step", 1e6 * slope / _BATCH, "µs of CPU per article", "n·T·segments, a line"))
    if output is not None:
        words = sum(len(example.article.split()) for example in examples) / len(examples)
        what = "built-in articles" if data == "sample" else f"articles of {Path(data).name}"
        about = f"{len(examples)} {what} of {words:.0f} words, encoder {encoder}, {repeats} rounds, one thread, medians"
        command = f"rsr-net bench --articles {articles} --encoder {encoder} --repeats {repeats} --seed {seed}"
        command += "" if data == "sample" else f" --data DATA/{Path(data).name}"
        table = [{"name": row["name"], "metrics": {k: v for k, v in row.items() if k != "name"}} for row in rows]
        path = output / "bench.json"
        write_table(path, table, command=command, data=about, seeds=[seed], depths=depths)
        _plot(depths, output / "depth.png")
    return rows


def _examples(data: str, count: int, seed: int) -> list[Example]:
    """The articles to measure on, all with summaries."""
    if data == "sample":
        return generate(count, seed)
    examples = [e for e in read_examples(data, None, limit=count) if e.highlights]
    if len(examples) < 2 * _BATCH:
        raise UserError(f"holds {len(examples)} articles with summaries", data, f"Give {2 * _BATCH} or more")
    return examples


def _row(name: str, value: float, unit: str, against: str | None = None, target: float | None = None) -> dict[str, Any]:
    ok = None if target is None else value >= target
    return {"name": name, "value": value, "unit": unit, "against": against, "target": target, "ok": ok}


def _cpu(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _epochs(
    examples: list[Example], network: TextEncoder, cache: EmbeddingCache, repeats: int, seed: int, log: Log
) -> list[dict[str, Any]]:
    """One epoch of the seed's training: its own way, and from cached vectors."""
    torch.manual_seed(seed)
    net = RecursionModel(network.dim, num_classes=network.dim)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    never_early = TrainConfig(stop_confidence=2.0)  # both sides do the same number of updates
    texts = [(e.article, e.summary) for e in examples]
    groups = [texts[at : at + _BATCH] for at in range(0, len(texts), _BATCH)]

    def encode(batch: Any) -> Tensor:
        return torch.from_numpy(network.encode(list(batch)))

    def seed_way() -> None:
        for group in groups:
            given, wanted = ([pair[side] for pair in group] for side in (0, 1))
            train_refinement(given, wanted, net, optimizer, encode, config=never_early)

    def from_cache() -> None:
        for group in groups:
            x, y = (torch.from_numpy(cache.get_many(side).vectors) for side in zip(*group, strict=True))
            supervise(x, y, net, optimizer, n=4, T=3, config=never_early)

    def updates_alone() -> None:
        for x, y in vectors:
            supervise(x, y, net, optimizer, n=4, T=3, config=never_early)

    log("filling the cache")
    filling = _cpu(lambda: cache.get_or_compute([t for pair in texts for t in pair], network.encode, progress=False))
    vectors = [
        tuple(torch.from_numpy(cache.get_many(side).vectors) for side in zip(*group, strict=True)) for group in groups
    ]
    times: dict[str, list[float]] = {"seed": [], "cache": [], "updates": []}
    for round_ in range(repeats):
        log(f"an epoch of the seed's network, round {round_ + 1} of {repeats}")
        for name, work in (("seed", seed_way), ("cache", from_cache), ("updates", updates_alone)):
            times[name].append(_cpu(work))
    encoded, cached, updates = (statistics.median(times[name]) for name in ("seed", "cache", "updates"))
    return [
        _row("epoch_cpu_ratio", encoded / cached, "x", "encoding inside train_refinement, same updates", 100.0),
        _row("input_cpu_ratio", (encoded - updates) / max(cached - updates, 1e-9), "x", "vectors alone, no updates"),
        _row("epoch_encoding", encoded, "CPU s"),
        _row("epoch_cached", cached, "CPU s"),
        _row("filling_the_cache", filling, "CPU s, once"),
    ]


def _refiner(
    examples: list[Example], network: TextEncoder, cache: EmbeddingCache, repeats: int, seed: int, log: Log
) -> list[dict[str, Any]]:
    """Examples per second of the refiner's training step."""
    log("the refiner's training step")
    torch.manual_seed(seed)
    config = RsrConfig.default("rsr", network.dim)
    model = Refiner(config.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = [
        Batch.collate(list(embed_examples(examples[at : at + _BATCH], network, cache)))
        for at in range(0, len(examples), _BATCH)
    ]

    def epoch() -> None:
        for batch in batches:
            assert batch.target is not None
            y = batch_start = model.start(batch)
            step = model.step_map(batch, batch_start)
            for _ in range(config.train.gradient_steps):
                y = step(y, None)
            optimizer.zero_grad()
            torch.autograd.backward(((y - batch.target) ** 2).sum(-1).mean())
            optimizer.step()

    seconds = statistics.median(_cpu(epoch) for _ in range(repeats))
    return [_row("refiner_training", len(examples) / seconds, "articles per CPU s")]


def _depths(dim: int, repeats: int, seed: int, log: Log) -> list[dict[str, Any]]:
    """CPU time of one batch of the seed's training against n·T·segments."""
    log("the cost of depth")
    torch.manual_seed(seed)
    x, y = torch.randn(_BATCH, dim), torch.randn(_BATCH, dim)
    net = RecursionModel(dim, num_classes=dim)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    times: dict[tuple[int, int, int], list[float]] = {depth: [] for depth in _DEPTHS}
    for _ in range(max(repeats, 3)):
        for depth in _DEPTHS:
            n, T, segments = depth
            config = TrainConfig(n_supervision=segments, stop_confidence=2.0)
            times[depth].append(
                _cpu(lambda: [supervise(x, y, net, optimizer, n=n, T=T, config=config) for _ in range(5)]) / 5  # noqa: B023
            )
    return [
        {"n": n, "T": T, "segments": s, "steps": n * T * s, "seconds": statistics.median(times[n, T, s])}
        for n, T, s in _DEPTHS
    ]


def _plot(depths: list[dict[str, Any]], path: Path) -> None:
    figure, (axis,) = new_figure()
    axis.plot([d["steps"] for d in depths], [1e3 * d["seconds"] for d in depths], marker="o")
    axis.set(
        xlabel="n · T · segments", ylabel=f"CPU ms per batch of {_BATCH}", title="What depth costs", ylim=(0, None)
    )
    save_png(figure, path)
