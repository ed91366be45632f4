"""How much work a CPU-second does: embedding, training, evaluation; beside a plain form and a peer."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from latentlab_shared.errors import RunFailed
from latentlab_shared.metrics.ranking import ranking_metrics
from nrms.bench.data import Size, make_log, titles
from nrms.bench.measure import Result, result
from nrms.config import ModelConfig
from nrms.data.log import ClickLog, open_log
from nrms.data.mind import NEWS_FILE, read_news
from nrms.data.types import Batch, News
from nrms.data.vocabulary import WordVocabulary
from nrms.model.folder import LoadedModel
from nrms.model.nrms import NRMS
from nrms.model.scoring import score_log
from nrms.server.article_recommender.calculate_embeddings import embed_pending
from nrms.server.corpus import add_articles
from nrms.server.store import Store
from nrms.training.dataset import MindDataset, mind_collate_fn

Log = Callable[[str], None]
BATCH, NEGATIVES, HISTORY, TITLE = 32, 4, 50, 30
_PEER = {
    "words": 300,
    "heads": 20,
    "head_dim": 20,
    "query": 200,
    "title": TITLE,
    "batch": BATCH,
    "rate": 1e-4,
    "seed": 0,
}


def measure_embedding(store: Store, kind: str, model: LoadedModel, count: int, log: Log) -> list[Result]:
    """Titles embedded and committed per CPU-second of the embedding process."""
    words = titles(count, 20_000, np.random.default_rng(0))
    add_articles(store, (News(f"N{i}", text) for i, text in enumerate(words)))
    done = embed_pending(store, model, "bench")
    rate = done.done / done.cpu_seconds
    log(f"embedding into {kind}: {rate:.0f} titles per CPU-s")
    return [result(f"re-embedding, {kind}", rate, "titles/CPU-s", f"{count:,} titles, 256-d", 5000.0, "more")]


class PlainNRMS(nn.Module):
    """NRMS as it is usually written: every slot of every history and every candidate is encoded, padding included.

    Torch's own attention, padding masked as in ours; what differs is only what is computed.

    Args:
        config: the sizes.
        vocabulary_size: rows of the word table.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, config.word_dim, padding_idx=0)
        self.words = _PlainEncoder(config.word_dim, config)
        self.news = _PlainEncoder(config.dim, config)
        self.dropout = nn.Dropout(config.dropout)

    def encode(self, tokens: Tensor) -> Tensor:
        """Titles (B, N, T) to vectors (B, N, D)."""
        rows = tokens.flatten(0, 1)
        vectors: Tensor = self.words(self.dropout(self.embedding(rows)), rows != 0).unflatten(0, tokens.shape[:2])
        return vectors

    def forward(self, history: Tensor, candidates: Tensor) -> Tensor:
        """Scores (B, C) of titles (B, C, T) after titles (B, H, T)."""
        read = self.encode(history)
        user = self.news(read, (history != 0).any(-1))
        scores: Tensor = (self.encode(candidates) @ user.unsqueeze(-1)).squeeze(-1)
        return scores


class _PlainEncoder(nn.Module):
    def __init__(self, width: int, config: ModelConfig) -> None:
        super().__init__()
        self.heads, dim = config.heads, config.dim
        self.qkv = nn.Linear(width, 3 * dim, bias=False)
        self.project, self.query = nn.Linear(dim, config.query_dim), nn.Linear(config.query_dim, 1, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        keys = (mask | ~mask.any(1, keepdim=True))[:, None, None, :]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = self.dropout(F.scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2).flatten(2))
        scores = self.query(torch.tanh(self.project(out))).squeeze(-1).masked_fill(~mask, -1e9)
        pooled: Tensor = ((scores.softmax(-1) * mask).unsqueeze(1) @ out).squeeze(1)
        return pooled


def open_bench_log(folder: Path, config: ModelConfig) -> tuple[ClickLog, ClickLog, WordVocabulary]:
    """A generated log: train, dev, vocabulary."""
    vocabulary = WordVocabulary.build(n.title for n in read_news(folder / "train" / NEWS_FILE))
    train, dev = (open_log(folder / part, vocabulary, config) for part in ("train", "dev"))
    return train, dev, vocabulary


def measure_work(
    folder: Path, size: Size, steps: int, rounds: int, peer: Path | None, log: Log, evaluate: bool = True
) -> list[Result]:
    """Training and evaluation at 20 heads of 20, interleaved with the plain form and, if there, the peer."""
    config = ModelConfig(heads=20, head_dim=20)
    make_log(folder, size)
    train, dev, vocabulary = open_bench_log(folder, config)
    torch.manual_seed(0)
    ours, plain = NRMS(config, len(vocabulary)), PlainNRMS(config, len(vocabulary))
    data = MindDataset(train, NEGATIVES, seed=0)
    batches = _rows(data, steps * rounds)
    ours_step, plain_step = our_step(ours), _plain_step(plain)
    rates: dict[str, list[float]] = {"ours": [], "plain": [], "peer": []}
    shown: dict[str, list[float]] = {"ours": [], "wall": [], "peer": []}
    for number in range(rounds):
        part = batches[number * steps : (number + 1) * steps]
        rates["ours"].append(_rate(ours_step, data, part))
        # The plain form takes several times as long: fewer steps of it are as exact.
        rates["plain"].append(_rate(plain_step, data, part[: max(2, steps // 3)]))
        if evaluate:
            began, wall = time.process_time(), time.perf_counter()
            scores = score_log(ours, dev)
            ranking_metrics(scores, dev.known_labels(), dev.candidates.lengths)
            shown["ours"].append(len(dev) / (time.process_time() - began))
            shown["wall"].append(time.perf_counter() - wall)
        if peer is not None:
            found = run_peer(peer, folder, {**_PEER, "steps": max(2, steps // 2), "evaluate": evaluate and number == 0})
            rates["peer"].append(found["train"])
            if found["evaluate"]:
                shown["peer"].append(found["evaluate"])
        log(f"round {number + 1}: " + ", ".join(f"{k} {v[-1]:.1f} samples/CPU-s" for k, v in rates.items() if v))
    return list(_lines(rates, shown, len(dev)))


def _lines(rates: dict[str, list[float]], shown: dict[str, list[float]], impressions: int) -> Iterator[Result]:
    middle = {name: float(np.median(values)) for name, values in rates.items() if values}
    how = f"one thread, batch {BATCH}, title {TITLE}, history {HISTORY}, K={NEGATIVES}, 20x20"
    yield result("training", middle["ours"], "samples/CPU-s", how)
    yield result("training, plain form", middle["plain"], "samples/CPU-s", how)
    ratio = middle["ours"] / middle["plain"]
    yield result("training, ratio to the plain form", ratio, "times", "medians, interleaved", 4.0, "more")
    if "peer" in middle:
        yield result("training, recommenders 1.2.1", middle["peer"], "samples/CPU-s", how)
        ratio = middle["ours"] / middle["peer"]
        yield result("training, ratio to recommenders 1.2.1", ratio, "times", "medians, interleaved", 2.5, "more")
    if shown["ours"]:
        rate, wall = float(np.median(shown["ours"])), float(np.median(shown["wall"]))
        how = f"{impressions:,} impressions"
        yield result("evaluation", rate, "impressions/CPU-s", how)
        yield result("evaluation, wall time", wall, "s", f"{how}, {torch.get_num_threads()} thread", 10.0)
        if shown["peer"]:
            peer = float(np.median(shown["peer"]))
            yield result("evaluation, recommenders 1.2.1", peer, "impressions/CPU-s", "the same files")
            yield result("evaluation, ratio to recommenders 1.2.1", rate / peer, "times", "same files", 10.0, "more")


def _rows(data: MindDataset, count: int) -> NDArray[np.int64]:
    """Samples of ``count`` batches, (count, BATCH)."""
    order = np.random.default_rng(0).permutation(len(data))
    if len(order) < BATCH:
        raise RunFailed(f"{len(order)} clicks are too few for a batch of {BATCH}")
    return np.resize(order[: len(order) // BATCH * BATCH].reshape(-1, BATCH), (count, BATCH))


def make_batch(data: MindDataset, rows: NDArray[np.int64]) -> Batch:
    """A batch of these samples."""
    return mind_collate_fn([data[int(i)] for i in rows])


def our_step(model: NRMS) -> Callable[[Batch], None]:
    """One update as `train` makes it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)  # as `train` does

    def step(batch: Batch) -> None:
        assert batch.target is not None
        optimizer.zero_grad()
        F.cross_entropy(model(batch), batch.target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _plain_step(model: PlainNRMS) -> Callable[[Batch], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)  # as `train` does

    def step(batch: Batch) -> None:
        assert batch.target is not None
        titles = F.pad(batch.titles, (0, TITLE - batch.titles.shape[1]))
        places = F.pad(batch.history, (0, HISTORY - batch.history.shape[1]))
        optimizer.zero_grad()
        scores = model(titles[places], titles[batch.candidates]).masked_fill(~batch.candidate_mask, -1e9)
        F.cross_entropy(scores, batch.target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _rate(step: Callable[[Batch], None], data: MindDataset, batches: NDArray[np.int64]) -> float:
    """Samples per CPU-second, making the batches included; the first one warms up."""
    step(make_batch(data, batches[0]))
    began = time.process_time()
    for rows in batches:
        step(make_batch(data, rows))
    return batches.size / (time.process_time() - began)


def run_peer(python: Path, folder: Path, given: dict[str, Any]) -> dict[str, float]:
    """Run ``recommenders`` in its own environment on the same files; what its script printed."""
    script = Path(__file__).with_name("peer_recommenders.py")
    command = [str(python), str(script), str(folder), json.dumps(given)]
    threads = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads)
    if done.returncode:
        raise RunFailed("recommenders failed", str(python), done.stderr.strip().splitlines()[-1])
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
