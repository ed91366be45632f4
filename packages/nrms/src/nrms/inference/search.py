"""The articles whose vectors have the largest dot products with a user's: exactly, or by a graph in memory."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentlab_shared.errors import NeedsExtra
from nrms.data.types import Floats
from nrms.inference.catalogue import Catalogue, Filter, Found

_EXCLUDED = 1000  # articles left out that a graph is first asked beyond; a reader may have read far more
_BLOCK = 2048  # rows widened to float32 at a time: 2 MiB at 256 dimensions, so they stay in the second-level cache


class Source(Protocol):
    """Where a recommender finds articles."""

    @property
    def model_id(self) -> str:
        """The model that made the vectors."""

    def __len__(self) -> int:
        """How many articles there are."""

    def find(self, ids: list[str]) -> Found:
        """The known ones among these articles, in the order given."""

    def search(self, user: Floats, k: int, wanted: Filter) -> Found:
        """The k best articles for a user vector (D,), best first; fewer if fewer pass the filter."""

    def newest(self, k: int, wanted: Filter) -> Found:
        """The k articles published last."""


def all_scores(matrix: Tensor, user: Tensor) -> Tensor:
    """Dot products of ``user`` (D,) with every row of ``matrix`` (N, D), summed in float32, (N,)."""
    if matrix.dtype == torch.float32:
        return matrix @ user
    scores = torch.empty(len(matrix))
    wide = torch.empty(min(_BLOCK, len(matrix)), matrix.shape[1])
    for start in range(0, len(matrix), _BLOCK):
        rows = matrix[start : start + _BLOCK]
        torch.mv(wide[: len(rows)].copy_(rows), user, out=scores[start : start + len(rows)])
    return scores


def top_rows(scores: Tensor, k: int) -> NDArray[np.int64]:
    """Rows of the k largest of the finite scores (N,), largest first; of equal scores the lower row first."""
    k = min(k, len(scores))
    if k == 0:
        return np.zeros(0, np.int64)
    least = scores.topk(k).values[-1]
    rows = (scores >= least).nonzero().squeeze(1)
    rows = rows[scores[rows].isfinite()]
    order = torch.sort(scores[rows], descending=True, stable=True).indices[:k]
    return rows[order].numpy()


class ExactSearch:
    """Reads the whole matrix for every user.

    Args:
        catalogue: the articles.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue.warm()
        # A memory map that may only be read is shared with torch as it is: nothing here writes to it.
        self._matrix = _as_tensor(catalogue.vectors)

    @property
    def model_id(self) -> str:
        """The model that made the vectors."""
        return self.catalogue.model_id

    def __len__(self) -> int:
        return len(self.catalogue)

    def find(self, ids: list[str]) -> Found:
        """The known ones among these articles."""
        row_of = self.catalogue.row_of
        return self.catalogue.take([row_of[id] for id in ids if id in row_of])

    def search(self, user: Floats, k: int, wanted: Filter) -> Found:
        """The k best articles, exactly."""
        scores = all_scores(self._matrix, torch.from_numpy(np.ascontiguousarray(user)))
        allowed = self.catalogue.allowed(wanted)
        if allowed is not None:
            scores[torch.from_numpy(~allowed)] = -torch.inf
        rows = top_rows(scores, k)
        return self.catalogue.take(rows, scores[torch.from_numpy(rows)].numpy())

    def newest(self, k: int, wanted: Filter) -> Found:
        """The k articles published last."""
        rows, allowed = self.catalogue.newest, self.catalogue.allowed(wanted)
        rows = rows if allowed is None else rows[allowed[rows]]
        return self.catalogue.take(rows[:k])


class GraphSearch(ExactSearch):
    """Asks an HNSW graph (usearch), then scores what it names exactly.

    Args:
        catalogue: the articles.
        before: the graph of an earlier catalogue of the same model, which is taken over and completed.
        connectivity: edges per node.
        care: nodes looked at per article while building.
        effort: nodes looked at per search; more finds more and takes longer.
        threads: for building; 0 for all cores.
    """

    _graph: Any

    def __init__(
        self,
        catalogue: Catalogue,
        before: GraphSearch | None = None,
        *,
        connectivity: int = 32,
        care: int = 160,
        effort: int = 1024,
        threads: int = 0,
    ) -> None:
        super().__init__(catalogue)
        try:
            from usearch.index import Index
        except ImportError:
            raise NeedsExtra("usearch", "ann", "latentlab-nrms") from None
        self._threads = threads
        if before is not None and before.model_id == catalogue.model_id and len(before):
            old = before.catalogue
            self._graph = before._graph
            changed = np.flatnonzero((old.vectors != catalogue.vectors[: len(old)]).any(1))
            for row in changed.tolist():
                self._graph.remove(row)
            self._add(np.concatenate([changed, np.arange(len(old), len(catalogue))]))
            return
        self._graph = Index(
            ndim=catalogue.dim,
            metric="ip",
            dtype="f16",
            connectivity=connectivity,
            expansion_add=care,
            expansion_search=effort,
        )
        self._add(np.arange(len(catalogue)))

    def _add(self, rows: NDArray[np.int64]) -> None:
        for start in range(0, len(rows), 65536):
            part = rows[start : start + 65536]
            self._graph.add(part.astype(np.uint64), self.catalogue.vectors[part], threads=self._threads)

    def search(self, user: Floats, k: int, wanted: Filter) -> Found:
        """The k best articles among those that the graph names; exact where a filter leaves the graph too few."""
        if k == 0 or not len(self.catalogue):
            return self.catalogue.take([], np.zeros(0, np.float32))
        allowed = self.catalogue.allowed(wanted)
        first = fetch = k + min(len(wanted.exclude), _EXCLUDED) + 16
        while fetch < len(self.catalogue) // 4 and fetch <= 16 * first:
            rows = self._nearest(user, fetch)
            if allowed is not None:
                rows = rows[allowed[rows]]
            if len(rows) >= k:
                scores = np.asarray(self.catalogue.vectors[rows], np.float32) @ user
                order = np.lexsort((rows, -scores))[:k]
                return self.catalogue.take(rows[order], scores[order])
            fetch *= 4
        return super().search(user, k, wanted)

    def _nearest(self, user: Floats, count: int) -> NDArray[np.int64]:
        query = (user / max(float(np.linalg.norm(user)), 1e-12)).astype(np.float16)
        found: Any = self._graph.search(query, count)
        keys: NDArray[np.int64] = np.asarray(found.keys, np.int64)
        return keys[keys < len(self.catalogue)]  # a later catalogue may have added to the graph

    def recall(self, users: Floats, k: int = 10) -> float:
        """The share of the exact k best articles that the graph finds, over users (B, D)."""
        shares = []
        for user in users:
            exact = {entry.id for entry in super().search(user, k, Filter()).entries}
            found = {entry.id for entry in self.search(user, k, Filter()).entries}
            shares.append(len(exact & found) / max(1, len(exact)))
        return float(np.mean(shares))


def _as_tensor(vectors: NDArray[np.float16]) -> Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(vectors)
