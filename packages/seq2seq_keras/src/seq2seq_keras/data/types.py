"""What text is at each stage: an example as read, and a batch as the model takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Example:
    """One text and, where there is one, its summary.

    Attributes:
        id: names the text in its source.
        text: as read, cleaned of control characters.
        summary: a human's; empty where a pseudo-summary is to be made.
        group: examples of one group never stand in two parts (a show, a source).
        date: sortable, such as 1987-02-26T15:01:01; empty if unknown.
        pseudo: the summary was made by ``create_pseudo_summary``.
    """

    id: str
    text: str
    summary: str = ""
    group: str = ""
    date: str = ""
    pseudo: bool = False


class Batch(NamedTuple):
    """A batch, padded on the right with 0. S and T are the longest source and target of the batch.

    Attributes:
        source: (B, S) vocabulary ids; unknown words are ``UNK``.
        source_ext: (B, S) the same, but unknown words are V, V + 1, … in order of appearance in their text.
        target_in: (B, T) what the decoder reads: ``sostok``, then the words.
        target_out: (B, T) what it should write: the words in extended ids, then ``eostok``.
    """

    source: Ids
    source_ext: Ids
    target_in: Ids
    target_out: Ids
