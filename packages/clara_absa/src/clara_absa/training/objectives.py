"""What one update minimises: our packed batches, or the seed's padded ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clara_absa.configs.base_config import ClaraConfig
from clara_absa.configs.schema import Task
from clara_absa.data_utils.batches import Batcher, Item, task_tokens
from clara_absa.data_utils.packing import TASKS
from clara_absa.training.schedules import Moving, Uncertainty
from latentlab_shared.errors import UserError

REC, EXT, REASON = range(len(TASKS))


class Objective(Protocol):
    """Losses of a set of units: sentences, or the seed's task samples."""

    units: int

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The units of an epoch, in order."""

    def parts(self, units: Sequence[int], update: int, progress: float) -> Iterator[tuple[Tensor, dict[str, float]]]:
        """Losses whose sum is the update's, each with what is logged; backward is called on each in turn."""


class PackedObjective:
    """Each sentence is compressed once for all it is asked; every loss is a mean over the whole update.

    Means are taken over the tokens of a task in the whole update, whatever part or process they fall to: one process
    that accumulates, and several that share a batch, get the gradient of one that does neither.

    Args:
        model: or its data-parallel wrapper.
        batcher: makes its batches.
        items: the training sentences.
        config: of the run.
        schedule: of the losses.
        rank: of this process.
        world: processes.
    """

    def __init__(
        self,
        model: Any,
        batcher: Batcher,
        items: Sequence[Item],
        config: ClaraConfig,
        schedule: Moving | Uncertainty,
        *,
        device: str = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.model, self.batcher, self.items, self.config = model, batcher, items, config
        self.schedule, self.device, self.rank, self.world = schedule, device, rank, world
        self.units = len(items)
        inner = getattr(model, "module", model)
        self._align = inner.mean_embeddings if config.loss.alignment == "embedding" else None
        single = batcher.prompter.single
        if config.loss.distill and not single:
            raise UserError("distillation needs a backbone whose polarities are one token each", "loss.distill")
        memory = config.memory
        parted = memory.reader != "none" and memory.start != "tokens" and memory.ratio is None
        if config.loss.mark and not (single and parted and any(item.marks for item in items)):
            raise UserError(
                "polarities cannot be read off this memory",
                "loss.mark",
                "It needs one token for each polarity, memory.start=pooled or matched, no ratio, and aspects with "
                "places; or --set loss.mark=0",
            )
        ids = [answer[0] for answer in batcher.prompter.verbalizers]
        self._verbalizers = torch.tensor(ids, device=device) if config.loss.distill or config.loss.mark else None

    def order(self, epoch: int) -> NDArray[np.int64]:
        """All sentences, shuffled."""
        return np.random.default_rng([self.config.train.seed, epoch]).permutation(self.units)

    def parts(self, units: Sequence[int], update: int, progress: float) -> Iterator[tuple[Tensor, dict[str, float]]]:
        """See `Objective`."""
        loss, memory = self.config.loss, self.config.memory
        rng = np.random.default_rng([self.config.train.seed, 1, update])  # drawn anew: an update can be repeated
        size = int(rng.choice(memory.sizes)) if memory.sizes else None
        draws = rng.random((len(units), 2)) < (loss.rec_share, loss.ext_share)
        chosen = [
            [t for t, wanted in ((Task.RECONSTRUCTION, rec), (Task.EXTRACTION, ext)) if wanted] + [Task.REASONING]
            for rec, ext in draws.tolist()
        ]
        items = [self.items[i] for i in units]
        if self.config.train.word_dropout:
            hide = np.random.default_rng([self.config.train.seed, 3, update])
            items = [
                self.batcher.hide(item, hide.random(len(item.text)) < self.config.train.word_dropout) for item in items
            ]
        tokens = torch.from_numpy(task_tokens(items, chosen)).clamp(min=1).to(self.device)
        aspects = sum(len(item.branches[Task.REASONING]) for item in items)
        mine = range(self.rank, len(items), self.world)
        for part in np.array_split(np.array(mine), self.config.train.accumulate):
            # A process whose share is empty still takes part in the exchange of gradients.
            picked = part.tolist() or [0]
            share = float(self.world) if len(part) else 0.0  # the wrapper averages over processes
            batch = self.batcher.training([items[i] for i in picked], [chosen[i] for i in picked], size)
            batch = batch.to(self.device)
            sums = self.model(
                batch.texts,
                batch.questions,
                align_to=self._align,
                label_smoothing=loss.label_smoothing,
                teacher=batch.teacher if loss.distill else None,
                verbalizers=self._verbalizers,
                marks=batch.marks if loss.mark else None,
                shown=size,
            )
            means = sums.tasks / tokens
            alignment = sums.alignment / len(items)
            distill = sums.distill / aspects
            marked = sums.marked / max(1, sum(len(item.marks) for item in items))
            # The schedule's own term counts once, however many parts there are.
            whole = len(part) / len(items)
            joined = self.schedule.combine(means[REC], means[EXT] + means[REASON], progress, whole)
            total = joined + loss.gamma * alignment + loss.distill * distill + loss.mark * marked
            found = (("rec", means[REC]), ("ext", means[EXT]), ("reason", means[REASON]))
            logged = (*found, ("alignment", alignment), ("distill", distill), ("mark", marked))
            # A process knows its own share of the update only: for the log it stands for all.
            yield total * share, {name: self.world * float(value.detach()) for name, value in logged}


class SeedObjective:
    """The seed's recipe, as a baseline: a sample is one task; texts padded, encoded once per task, logits everywhere.

    Texts with their memory tokens are padded to ``memory.max_text_tokens``, memory with its question to ten tokens
    more, as in the seed (246 and 256). Samples are drawn with its weights: 1 for reconstruction and extraction, 0.5 for
    reasoning.

    Args:
        model: with the backbone as its own compressor.
        batcher: gives ids and prompts.
        items: the training sentences.
        config: of the run.
        schedule: of the losses.
    """

    weights = (1.0, 1.0, 0.5)

    def __init__(
        self,
        model: Any,
        batcher: Batcher,
        items: Sequence[Item],
        config: ClaraConfig,
        schedule: Moving | Uncertainty,
        *,
        device: str = "cpu",
    ) -> None:
        self.model, self.batcher, self.items, self.config = model, batcher, items, config
        self.schedule, self.device = schedule, device
        self.samples = [
            (i, TASKS.index(task), branch)
            for i, item in enumerate(items)
            for task in TASKS
            for branch in item.branches[task]
        ]
        self.units = len(self.samples)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """As many samples as there are, drawn with replacement."""
        weights = np.array([self.weights[task] for _, task, _ in self.samples])
        rng = np.random.default_rng([self.config.train.seed, epoch])
        return rng.choice(self.units, self.units, p=weights / weights.sum())

    def parts(self, units: Sequence[int], update: int, progress: float) -> Iterator[tuple[Tensor, dict[str, float]]]:
        """See `Objective`; as in the seed, each part is a mean of its own."""
        parts = np.array_split(np.array(units), self.config.train.accumulate)
        for part in parts:
            found = self._part([self.samples[i] for i in part.tolist()])
            joined = self.schedule.combine(found[REC], found[EXT], progress)  # a part is a batch of its own here
            total = joined + self.config.loss.gamma * found[REASON]
            logged = {"rec": float(found[REC].detach()), "absa": float(found[EXT].detach())}
            yield total / len(parts), {**logged, "alignment": float(found[REASON].detach())}

    def _part(self, samples: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss of the reconstruction, of the other tasks, and the alignment."""
        causal = self.model._causal
        pad, k = self.batcher.prompter.tokenizer.eos_token_id, self.config.memory.tokens
        longest = self.config.memory.max_text_tokens
        texts = [self.items[i].words[: longest - k] for i, _, _ in samples]
        ids = torch.full((len(texts), longest), pad, device=self.device)
        seen, own = torch.zeros_like(ids), torch.zeros_like(ids)
        at = torch.tensor([list(range(len(text), len(text) + k)) for text in texts], device=self.device)  # (B, k)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text, device=self.device)
            own[row, : len(text)] = seen[row, : len(text) + k] = 1
        table = causal.get_input_embeddings()
        words = table(ids)  # (B, T, d)
        places = at[..., None].expand(-1, -1, words.shape[2])
        memory_tokens = self.model.memory_tokens.to(words.dtype).expand(len(texts), -1, -1)
        # The seed calls the causal model and reads its last hidden states: the logits are made and thrown away.
        said = causal(
            inputs_embeds=words.scatter(1, places, memory_tokens),
            attention_mask=seen,
            output_hidden_states=True,
            use_cache=False,
        )
        memory = said.hidden_states[-1].gather(1, places) * self.model.scale  # (B, k, d)
        length = longest + 10 - k
        ids = ids.new_full((len(texts), length), pad)
        labels, seen = ids.new_full((len(texts), length + k), -100), seen.new_zeros(len(texts), length + k)
        for row, (_, _, branch) in enumerate(samples):
            sequence = torch.tensor((*branch.prompt, *branch.answers[0])[:length], device=self.device)
            ids[row, : len(sequence)] = sequence
            labels[row, k + len(branch.prompt) : k + len(sequence)] = sequence[len(branch.prompt) :]
            seen[row, : k + len(sequence)] = 1
        logits = causal(
            inputs_embeds=torch.cat([memory.to(words.dtype), table(ids)], 1), attention_mask=seen, use_cache=False
        ).logits.float()
        each = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="none"
        )
        each = each.view(len(texts), -1).sum(1) / (labels != -100).sum(1)
        rec = torch.tensor([task == REC for _, task, _ in samples], device=self.device)
        zero = each.new_zeros(())
        mean = (words * own[..., None]).sum(1) / own.sum(1, keepdim=True)
        alignment = (memory.mean(1) - mean).square().mean()
        return each[rec].mean() if rec.any() else zero, each[~rec].mean() if (~rec).any() else zero, alignment
