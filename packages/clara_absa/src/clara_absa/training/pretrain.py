"""A small backbone's first lesson: the training texts as plain language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clara_absa.configs.base_config import TrainConfig
from clara_absa.configs.schema import Task
from clara_absa.data_utils.batches import Batcher
from clara_absa.data_utils.packing import Branch, Tree, pack


class LanguageObjective:
    """Next-token loss of texts in packed rows; another `Objective`.

    Args:
        model: whose backbone is trained.
        batcher: of its tokenizer.
        texts: to learn from.
        config: batch size, row length and seed.
        device: where to compute.
    """

    def __init__(
        self, model: Any, batcher: Batcher, texts: Sequence[str], config: TrainConfig, device: str = "cpu"
    ) -> None:
        end = batcher.prompter.tokenizer.eos_token_id
        self._trees = [
            Tree((), (Branch((end,), ((*batcher.prompter.text(text), end),), Task.RECONSTRUCTION),)) for text in texts
        ]
        self.model, self.config, self.units, self.device = model, config, len(texts), device

    def order(self, epoch: int) -> NDArray[np.int64]:
        """All texts, shuffled."""
        return np.random.default_rng([self.config.seed, 2, epoch]).permutation(self.units)

    def parts(self, units: Sequence[int], update: int, progress: float) -> Iterator[tuple[Tensor, dict[str, float]]]:
        """See `Objective`."""
        packed = pack([self._trees[i] for i in units], self.config.row_tokens).to(self.device)
        loss = -self.model.answer(packed, None).mean()
        yield loss, {"loss": float(loss.detach())}
