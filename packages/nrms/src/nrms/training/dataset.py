"""Clicks as training samples, and batches in which each distinct article stands once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from latentlab_shared.errors import UserError
from nrms.data.log import ClickLog, Ragged
from nrms.data.types import Batch, Ints, TokenTable


@dataclass(frozen=True)
class Sample:
    """One click beside articles of the same impression that were not clicked.

    Attributes:
        history: rows of the catalogue, oldest first.
        candidates: rows of the catalogue, the clicked one first; at most K follow.
        slots: 1 + K; where an impression had fewer negatives, the rest is padding.
        titles: the catalogue.
        weight: how much the click counts in the loss.
    """

    history: Ints
    candidates: Ints
    slots: int
    titles: TokenTable
    weight: float = 1.0


class MindDataset(Dataset[Sample]):
    """One sample per click; its negatives are drawn anew in each epoch, from the click's own impression.

    Clicks on articles without a catalogue entry, and impressions without any negative, teach nothing: they are left
    out and counted in ``left_out``. What is drawn depends on the seed, the epoch and the sample only, so neither the
    order of reading nor the number of processes changes it.

    Args:
        log: a labelled part.
        negatives: K.
        seed: of the draws.
        balance: weigh clicks so that every reader counts alike; the mean weight is 1.

    Raises:
        UserError: if the part has no labels, or no click to learn from.

    Source: the seed's `trainer.py`; Wu et al. 2019, section 2.3.
    """

    def __init__(self, log: ClickLog, negatives: int = 4, seed: int = 0, balance: bool = False) -> None:
        labels = log.known_labels()
        self.log, self.negatives, self.seed, self.epoch = log, negatives, seed, 0
        self._labels = Ragged(labels, log.candidates.offsets)
        rows, offsets = log.candidates.values, log.candidates.offsets
        clicked = np.flatnonzero(labels == 1)  # places among all candidates
        impressions = np.searchsorted(offsets, clicked, side="right") - 1
        negatives_before = np.concatenate(([0], np.cumsum((labels == 0) & (rows > 0), dtype=np.int64)))
        has_negative = np.diff(negatives_before[offsets]) > 0  # per impression
        usable = (rows[clicked] > 0) & has_negative[impressions]
        self.clicks, self.impressions = clicked[usable], impressions[usable]
        self.left_out = len(clicked) - len(self.clicks)
        if not len(self.clicks):
            raise UserError("there is no click beside an article that was not clicked", "the training part")

        self.weights = np.ones(len(self.clicks))
        if balance:
            readers = log.user_of[self.impressions]
            clicks_of = np.bincount(readers)
            self.weights = len(readers) / np.count_nonzero(clicks_of) / clicks_of[readers]

    def set_epoch(self, epoch: int) -> None:
        """Draw other negatives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.clicks)

    def __getitem__(self, index: int) -> Sample:
        log, impression = self.log, int(self.impressions[index])
        shown, labels = log.candidates[impression], self._labels[impression]
        pool = shown[(labels == 0) & (shown > 0)]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        drawn = rng.choice(pool, min(self.negatives, len(pool)), replace=False)
        candidates = np.concatenate((log.candidates.values[self.clicks[index], None], drawn))
        return Sample(
            log.histories[log.history_of[impression]],
            candidates,
            1 + self.negatives,
            log.titles,
            float(self.weights[index]),
        )


def mind_collate_fn(samples: Sequence[Sample]) -> Batch:
    """Samples of one catalogue to a batch; the clicked article is candidate 0.

    Source: the seed's `trainer.py`.
    """
    size, slots = len(samples), samples[0].slots
    longest = max(1, max(len(s.history) for s in samples))
    history, candidates = np.zeros((size, longest), np.int32), np.zeros((size, slots), np.int32)
    for row, sample in enumerate(samples):
        history[row, : len(sample.history)] = sample.history
        candidates[row, : len(sample.candidates)] = sample.candidates
    # Row 0, the padding, first: then padded slots keep the number 0.
    distinct, places = np.unique(np.concatenate(([0], history.ravel(), candidates.ravel())), return_inverse=True)
    titles = samples[0].titles
    tokens, lengths = titles.tokens[distinct], titles.lengths[distinct]
    if lengths.ndim == 1:
        tokens = tokens[:, : max(1, int(lengths.max()))]
    numbers = torch.from_numpy(places[1:].astype(np.int64))
    numbered = numbers[history.size :].view(size, slots)
    return Batch(
        titles=torch.from_numpy(np.ascontiguousarray(tokens)),
        title_lengths=torch.from_numpy(np.ascontiguousarray(lengths)),
        history=numbers[: history.size].view(size, longest),
        candidates=numbered,
        candidate_mask=numbered > 0,
        target=torch.zeros(size, dtype=torch.int64),
        weight=torch.tensor([s.weight for s in samples], dtype=torch.float32),
    )
