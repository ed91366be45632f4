"""The file that MIND's leaderboard takes: ``prediction.txt`` in ``prediction.zip``, a line of ranks per impression."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentlab_shared.errors import UserError
from latentlab_shared.files import ZIP_ERRORS, atomic_path
from nrms.data.log import ClickLog

_NAME = "prediction.txt"


def ranks_of(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """The place of each candidate, from 1, by (-score, position): no two are equal."""
    order = np.argsort(-scores, kind="stable")
    ranks = np.empty(len(scores), np.int64)
    ranks[order] = np.arange(1, len(scores) + 1)
    return ranks


def write_submission(path: Path, log: ClickLog, scores: NDArray[np.floating]) -> Path:
    """Write a zip for the leaderboard.

    Args:
        path: ending in .zip.
        log: the part; labels are not needed.
        scores: of all candidates, impression after impression, (M,).

    Raises:
        UserError: for another ending.
        ValueError: for scores of another number, or that are not numbers.
    """
    if path.suffix != ".zip":
        raise UserError("a submission is a .zip file", path)
    if scores.shape != log.candidates.values.shape or np.isnan(scores).any():
        raise ValueError("there must be one number for each candidate")
    offsets = log.candidates.offsets
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as held:
        # A fixed date: equal scores, equal bytes.
        info = zipfile.ZipInfo(_NAME, (1980, 1, 1, 0, 0, 0))
        info.compress_type = zipfile.ZIP_DEFLATED
        with held.open(info, "w") as raw, io.TextIOWrapper(raw, encoding="ascii", newline="\n") as file:
            for row in range(len(log)):
                ranks = ranks_of(scores[offsets[row] : offsets[row + 1]])
                file.write(f"{log.impression_id(row)} [{','.join(map(str, ranks.tolist()))}]\n")
    return path


def read_submission(path: Path) -> Iterator[tuple[str, list[int]]]:
    """Stream (impression id, ranks).

    Raises:
        UserError: for a damaged file, or a line whose ranks are not 1 to their number, by file and line.
    """
    try:
        with zipfile.ZipFile(path) as held, held.open(_NAME) as raw:
            for number, line in enumerate(io.TextIOWrapper(raw, encoding="ascii"), start=1):
                where = f"{path}:{_NAME}:{number}"
                name, _, text = line.strip().partition(" ")
                try:
                    ranks = [int(rank) for rank in text.removeprefix("[").removesuffix("]").split(",")]
                except ValueError:
                    raise UserError("the line is not an id and a list of ranks", where) from None
                if sorted(ranks) != list(range(1, len(ranks) + 1)):
                    raise UserError(f"the ranks are not 1 to {len(ranks)}", where)
                yield name, ranks
    except ZIP_ERRORS as error:
        raise UserError(f"is no submission ({error})", path, f"A submission is a zip with {_NAME}") from None
