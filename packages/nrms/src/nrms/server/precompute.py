"""Embed a corpus on many processes or machines without a database, into part files that ``nrms embed`` loads.

Run it under torchrun: ``torchrun --nproc-per-node 8 -m nrms.server.precompute --model M --data D --out PARTS``, then
once ``nrms embed --model M --data D --vectors PARTS``. A killed rank loses one part at most.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentlab_shared.cli import guarded
from latentlab_shared.embeddings import EmbeddingCache, Fingerprint
from latentlab_shared.errors import UserError
from latentlab_shared.precompute import merge, precompute
from nrms.data.types import Floats
from nrms.model.folder import LoadedModel, load_model_dir
from nrms.server.corpus import read_articles
from nrms.server.store import Store, StoredModel

_CHUNK = 4096


def fingerprint_of(model: LoadedModel) -> Fingerprint:
    """What decides the vectors: the model's id holds weights, configuration and vocabulary.

    Raises:
        UserError: for a model that reads more than titles.
    """
    if model.config.views != ("title",):
        raise UserError("the model reads more than titles", "precompute", "Use nrms embed, also on several machines")
    return Fingerprint("nrms", model.model_id, max_length=model.config.title_length, pooling="additive")


def embed_corpus(model: LoadedModel, titles: Sequence[str], out: str) -> int:
    """Embed this rank's share of the titles; how many were new."""

    def encode(batch: Sequence[Any]) -> Floats:
        vectors: Floats = model.encode_titles(list(batch)).numpy()
        return vectors

    return precompute(
        list(titles), encode, out, fingerprint_of(model), dim=model.config.dim, batch_size=512, part_rows=1024
    )


def load_vectors(store: Store, model: LoadedModel, stored: StoredModel, parts: Path) -> int:
    """Give the articles of a store the vectors of their titles, as far as the parts hold them; how many got one.

    Raises:
        UserError: if the parts are of another model, or damaged.
    """
    given = 0
    with EmbeddingCache(parts / "cache", fingerprint_of(model), model.config.dim) as cache:
        merge(parts, cache)
        after = 0
        while rows := store.embeddings.missing(stored, after, _CHUNK):
            after = rows[-1][0]
            vectors, known = cache.get_many([title for _, _, title in rows])
            places = np.flatnonzero(known)
            given += store.embeddings.put(stored, [rows[i][1] for i in places], np.asarray(vectors)[places])
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Embed one rank's share; the exit code."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="nrms.server.precompute", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a run or model folder")
    parser.add_argument("--data", required=True, help="sample, a news.tsv or a folder")
    parser.add_argument("--out", required=True, help="a folder or fsspec URL for the parts")
    given = parser.parse_args(arguments)

    def work() -> None:
        titles = [news.title for news in read_articles(given.data)]
        count = embed_corpus(load_model_dir(given.model), titles, given.out)
        sys.stdout.write(f'{{"embedded": {count}}}\n')

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
