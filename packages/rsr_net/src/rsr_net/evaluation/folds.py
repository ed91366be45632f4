"""The protocol behind the published figures: folds over the full-length articles, the short ones always in training.

Test and validation articles are kept out of everything that is fitted, the LSA encoder included: an article whose words
shaped the encoder is embedded better than a new one, and a validation part that looks easier than the test part chooses
wrong penalties and gives wrong confidence.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentlab_shared.embeddings import EmbeddingCache
from latentlab_shared.encoders import LsaEncoder, TextEncoder, TransformerEncoder, load_encoder
from latentlab_shared.errors import UserError
from latentlab_shared.files import read_json, write_json
from latentlab_shared.metrics.summarization import RougeScorer, greedy_oracle
from rsr_net.config import RsrConfig
from rsr_net.data.embed import embed_examples
from rsr_net.data.readers import read_examples
from rsr_net.data.types import ArticleVectors, Batch, Example, Floats
from rsr_net.evaluation.baselines import closed_form_baselines, mlp_baseline, seed_network, seed_predictions
from rsr_net.evaluation.tables import SEED_NETWORK, summarise, write_tables
from rsr_net.evaluation.vectors import VectorScores, cosines, score_vectors
from rsr_net.model.fixed_point import spectral_radius
from rsr_net.model.refiner import Refinement, Refiner
from rsr_net.model.selection import SentenceSelector
from rsr_net.training import fit, fit_selector
from rsr_net.training.ridge import CrossFit, target_matrix
from rsr_net.training.selector import word_counts

FULL = ("train.jsonl.gz", "val.jsonl.gz")
SHORT = "short_train.jsonl.gz"
VALID = 150  # full-length training articles that choose penalty, epoch and step, and set the confidence
OVER = 3  # the state is followed to this many times the trained depth
TOLERANCES = (0.1, 0.05, 0.02, 0.01)  # of adaptive stopping
LSA_WIDTH = 256
_GROUP = 64
_VERSION = 2  # of what a finished fold holds

__all__ = ["Fold", "Part", "load_fold", "run_fold", "run_folds", "train_on", "write_tables"]

Log = Callable[[str], None]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """Articles with their vectors, in the same order."""

    examples: list[Example]
    vectors: list[ArticleVectors]

    def batches(self) -> list[tuple[list[Example], Batch]]:
        """Groups of articles, in order."""
        cuts = range(0, len(self.vectors), _GROUP)
        return [(self.examples[at : at + _GROUP], Batch.collate(self.vectors[at : at + _GROUP])) for at in cuts]


@dataclass(frozen=True)
class Fold:
    """One fold's parts, embedded."""

    train: Part
    valid: Part
    test: Part


def run_folds(
    data_dir: Path,
    work_dir: Path,
    *,
    encoder: str = "lsa",
    seeds: Sequence[int] = (0, 1, 2),
    folds: int = 5,
    limit: int | None = None,
    config: RsrConfig | None = None,
    log: Log = lambda _: None,
) -> dict[str, Any]:
    """Run the protocol, or go on with it: each fold and seed leaves a file in ``work_dir``.

    Args:
        data_dir: a folder with ``train``, ``val`` and ``short_train`` ``.jsonl.gz``.
        work_dir: where embeddings and finished folds are kept.
        encoder: "lsa" (fitted on each fold's training part), or any name that ``load_encoder`` takes.
        seeds: of the networks and the order of the articles; the folds and their validation parts are fixed.
        folds: how many.
        limit: full-length articles at most, for a quick look.
        config: other settings than the recipe's; the width and the seed are set here.
        log: told what happens.

    Returns:
        Tables: ``embedding``, ``differences``, ``steps``, ``convergence``, ``extraction``, ``confidence``,
        ``stopping``, each a list of rows with metrics and intervals over articles; and ``about``.

    Raises:
        UserError: if a file is missing.
    """
    full = list(chain.from_iterable(read_part(data_dir / name) for name in FULL))[:limit]
    short = read_part(data_dir / SHORT)[: None if limit is None else 3 * limit]
    base = config or RsrConfig.default("rsr")
    about = [_VERSION, encoder, folds, [e.id for e in full], len(short), asdict(base.model), asdict(base.train)]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
    done = []
    for number in range(folds):
        paths = {seed: work_dir / f"{encoder.replace('/', '-')}-{key}-{number}-{seed}.json" for seed in seeds}
        missing = [seed for seed in seeds if not paths[seed].is_file()]
        if missing:
            fold = load_fold(full, short, number, folds, encoder, work_dir, log)
            for seed in missing:
                began = time.process_time()
                found = run_fold(fold, with_seed(base, len(fold.test.vectors[0].doc), seed))
                write_json(paths[seed], {"fold": number, "seed": seed, **found})
                log(f"fold {number + 1} of {folds}, seed {seed}: {time.process_time() - began:.0f} CPU s")
        done += [read_json(paths[seed]) for seed in seeds]
    return summarise(done)


def read_part(path: Path) -> list[Example]:
    """The articles of a file that have a summary.

    Raises:
        UserError: if there is no such file.
    """
    if not path.is_file():
        raise UserError("there is no such file", path, "Give the folder of the full-length and short articles")
    return [example for example in read_examples(path, None) if example.highlights]


def with_seed(config: RsrConfig, width: int, seed: int) -> RsrConfig:
    """The same settings for an encoder's width and with a seed."""
    return replace(config, model=replace(config.model, input_dim=width), train=replace(config.train, seed=seed))


def load_fold(
    full: Sequence[Example],
    short: Sequence[Example],
    number: int,
    folds: int,
    encoder: str,
    work_dir: Path,
    log: Log = lambda _: None,
) -> Fold:
    """Split the full-length articles and embed all parts; see ``run_folds`` for the arguments."""
    order = np.random.default_rng(0).permutation(len(full))
    inside = [i for place, i in enumerate(order) if place % folds != number]
    held = inside[: min(VALID, len(inside) // 4)]
    parts = [
        [full[i] for i in inside[len(held) :]] + list(short),
        [full[i] for i in held],
        [full[i] for place, i in enumerate(order) if place % folds == number],
    ]
    if encoder == "lsa":
        log(f"fold {number + 1}: fitting LSA on {len(parts[0])} training articles")
        network: TextEncoder = LsaEncoder.fit([e.article for e in parts[0]], min(LSA_WIDTH, len(parts[0]) // 4))
        return Fold(*(Part(part, list(embed_examples(part, network))) for part in parts))
    network = load_encoder(encoder, device="cpu")
    if not isinstance(network, TransformerEncoder):  # faster than a disk
        return Fold(*(Part(part, list(embed_examples(part, network))) for part in parts))
    folder = work_dir / "embeddings" / network.fingerprint.digest().hex()[:16]
    log(f"fold {number + 1}: embedding with {encoder}; what is in the cache is not computed again")
    with EmbeddingCache(folder, network.fingerprint, network.dim) as cache:
        return Fold(*(Part(part, list(embed_examples(part, network, cache))) for part in parts))


def train_on(fold: Fold, config: RsrConfig, *, selector: bool = True) -> Refiner:
    """A refiner of a fold's training part, with its selector."""
    refiner = fit(fold.train.vectors, fold.valid.vectors, config)
    if selector:
        fits = CrossFit(fold.train.vectors, config.train.cross_fits, config.train.seed)
        starts = torch.from_numpy(fits.starts(fits.best_penalty(config.train.ridge, fold.valid.vectors)))
        fit_selector(refiner, fold.train.vectors, fold.train.examples, starts=starts, seed=config.train.seed)
    return refiner


@torch.no_grad()
def run_fold(fold: Fold, config: RsrConfig) -> dict[str, Any]:
    """Train on one fold and measure every article of its test part: plain values, per article where it can be."""
    with torch.enable_grad():
        refiner = train_on(fold, config)
    depth, test = config.model.steps, fold.test.vectors
    target, center = target_matrix(test).astype(np.float64), refiner.center.numpy().astype(np.float64)
    others = target_matrix(v for v in fold.train.vectors).astype(np.float64)
    others = others[np.random.default_rng(1).permutation(len(others))]

    path, residuals = follow(refiner, fold.test, OVER * depth)
    on_valid, _ = follow(refiner, fold.valid, depth)
    wanted = target_matrix(fold.valid.vectors)
    best = int(np.argmin([((y - wanted) ** 2).sum() for y in on_valid]))
    numbers = sum(p.numel() for name, p in refiner.named_parameters() if not name.startswith("selector."))
    numbers += refiner.base.numel() + refiner.base_bias.numel()
    with torch.enable_grad():
        mlp = mlp_baseline(fold.train.vectors, fold.valid.vectors, test, parameters=numbers, seed=config.train.seed)
        seeds_own = seed_network(fold.train.vectors, seed=config.train.seed)
    predictions: dict[str, Floats] = {
        **{name: work() for name, work in closed_form_baselines(fold.train.vectors, fold.valid.vectors, test).items()},
        "MLP of as many numbers": mlp,
        SEED_NETWORK: seed_predictions(seeds_own, test),
        "refiner, step 0": path[0],
        "refiner, step 1": path[1],
        "refiner": path[depth],
        "refiner, step chosen on validation": path[best],
        "refiner, 3x the trained depth": path[OVER * depth],
    }
    stopping = {}
    for tol in TOLERANCES:
        found = [refiner(batch, tol=tol) for _, batch in fold.test.batches()]
        y = np.concatenate([f.y.numpy() for f in found])
        used = torch.cat([f.steps_used for f in found])
        stopping[str(tol)] = {"error": ((y - target) ** 2).sum(1).tolist(), "steps": used.tolist()}
    valid_cosines = cosines(on_valid[depth].astype(np.float64), wanted.astype(np.float64))
    quality = torch.cat([refiner(batch).quality for _, batch in fold.test.batches()])
    return {
        "ids": [e.id for e in fold.test.examples],
        "depth": depth,
        "best_step": best,
        "numbers": numbers,
        "embedding": {name: _plain(score_vectors(y, target, center, others)) for name, y in predictions.items()},
        "steps": [_plain(score_vectors(y, target, center, others)) for y in path],
        "residuals": residuals.tolist(),
        "radius": radii(refiner, fold.test).tolist(),
        "stopping": stopping,
        "quality": quality.tolist(),
        "event": (cosines(path[depth].astype(np.float64), target) > np.median(valid_cosines)).tolist(),
        "rouge": _rouge(refiner, fold.test),
    }


def _plain(scores: VectorScores) -> dict[str, list[float]]:
    values: Mapping[str, Doubles] = vars(scores)
    return {name: [round(v, 6) for v in array.tolist()] for name, array in values.items()}


@torch.no_grad()
def follow(refiner: Refiner, part: Part, steps: int) -> tuple[Floats, Floats]:
    """States at the start and after each step, (steps + 1, N, D), and residuals, (steps, N)."""
    found = [refiner(batch, steps=steps) for _, batch in part.batches()]
    states = np.concatenate([f.trajectory.numpy() for f in found], axis=1)
    return states, np.concatenate([f.residuals.numpy() for f in found], axis=1)


@torch.no_grad()
def radii(refiner: Refiner, part: Part) -> Floats:
    """Spectral radius of the step at each article's last state, (N,)."""
    found: list[Floats] = []
    for _, batch in part.batches():
        last = refiner(batch, steps=OVER * refiner.config.steps).y
        found.append(spectral_radius(refiner.step_map(batch, refiner.start(batch)), last).numpy())
    return np.concatenate(found)


@torch.no_grad()
def _rouge(refiner: Refiner, part: Part) -> dict[str, dict[str, list[float]]]:
    """ROUGE F1, in percent, and sentences picked, of each article for every way to pick them."""
    scorer = RougeScorer(("rouge1", "rouge2", "rougeLsum"), split=str.splitlines)
    nearest = SentenceSelector()  # unfitted: the set whose sum is nearest to the vector it is given
    picked: dict[str, list[tuple[int, ...]]] = {}
    for examples, batch in part.batches():
        assert batch.target is not None
        found: Refinement = refiner(batch)
        words = word_counts(examples, batch.mask.shape[1])

        def choose(
            selector: SentenceSelector,
            y: Tensor,
            batch: Batch = batch,
            found: Refinement = found,
            words: Tensor = words,
        ) -> list[tuple[int, ...]]:
            return selector.choose(batch, y, found.trajectory[0], found.attention[-1], words)

        for name, sets in (
            ("LEAD-3", [tuple(range(min(3, len(e.sentences)))) for e in examples]),
            ("nearest to the document", choose(nearest, batch.doc)),
            ("nearest to the refined state", choose(nearest, found.y)),
            ("selector around the refined state", choose(refiner.selector, found.y)),
            ("nearest to the true summary", choose(nearest, batch.target)),
            (
                "greedy oracle",
                [tuple(greedy_oracle(e.sentences, "\n".join(e.highlights), 3, scorer=scorer)) for e in examples],
            ),
        ):
            picked.setdefault(name, []).extend(sets)
    references = ["\n".join(e.highlights) for e in part.examples]
    result = {}
    for name, sets in picked.items():
        texts = ["\n".join(e.sentences[i] for i in s) for e, s in zip(part.examples, sets, strict=True)]
        scores = {metric: (100 * values).round(4).tolist() for metric, values in scorer.f1(texts, references).items()}
        result[name] = {**scores, "sentences": [float(len(s)) for s in sets]}
    return result
