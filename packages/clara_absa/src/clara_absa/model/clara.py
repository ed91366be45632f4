"""FastClaraModel: a text becomes k memory vectors, and questions are answered from these alone.

Both phases are passes of one causal language model over packed rows (`data_utils.packing`). The mask is explicit: which
token sees which is built here, never inferred by the library from positions, where a key-value cache or a padding mask
would silently let packed sentences read each other. For the same reason ``use_cache`` is always off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clara_absa.configs.base_config import MemoryConfig
from clara_absa.data_utils.packing import TASKS, Packed
from clara_absa.model.light import LightReader
from clara_absa.model.pooling import Slots, neighbours, stretches

Role = Literal["compress", "answer"]


@dataclass(frozen=True)
class LossSums:
    """Losses summed over a batch, so that parts of a batch and processes can be added up.

    Attributes:
        tasks: negative log-likelihood of the tokens of each task, (len(TASKS),).
        alignment: squared distances of mean memory and mean text, averaged over components, summed over texts, ().
        distill: KL divergence from the teacher, summed over aspects, ().
        marked: negative log-likelihood of the polarities read off the memory, summed over marks, ().
    """

    tasks: Tensor
    alignment: Tensor
    distill: Tensor
    marked: Tensor


class FastClaraModel(nn.Module):
    """A causal language model with k trainable memory tokens, or with a light encoder that reads for it.

    Args:
        backbone: a causal model of transformers (Llama, Phi-3, Qwen …), with or without LoRA adapters.
        memory: how the memory is made.
        reader: the light encoder, for ``memory.reader == "encoder"``.

    Attributes:
        memory_tokens: (k, d), put after the text; their last hidden states are the memory.
        log_scale: logarithm of what memory vectors are multiplied by: at first the size of the backbone's token
            embeddings. As a logarithm, because a step that suits weights would carry so small a number through zero.
    """

    def __init__(self, backbone: nn.Module, memory: MemoryConfig, reader: LightReader | None = None) -> None:
        super().__init__()
        self.backbone, self.memory, self.reader = backbone, memory, reader
        table = self._causal.get_input_embeddings().weight
        width = table.shape[1]
        with torch.no_grad():
            size = table.float().square().mean().sqrt()
        if memory.reader == "decoder":
            # Beside the mean of several words, which is smaller than a word, a token must not be the louder one.
            share = 1.0 if memory.start == "tokens" else 0.3
            self.memory_tokens = nn.Parameter(torch.randn(memory.tokens, width, device=table.device) * size * share)
        if memory.reader != "none":
            # Words are to be found by their embeddings, so what was read must not drown them.
            share = 0.3 if memory.matched else 1.0
            self.log_scale = nn.Parameter((share * size).log().detach().view(1))
        self._roles = [m for m in backbone.modules() if "compress" in getattr(m, "lora_A", {})]

    @property
    def _causal(self) -> Any:
        """The causal model inside of an adapter's wrapper, if there is one."""
        getter = getattr(self.backbone, "get_base_model", None)
        return getter() if getter is not None else self.backbone

    @property
    def width(self) -> int:
        """d, the width of a memory vector."""
        return int(self._causal.get_input_embeddings().weight.shape[1])

    @property
    def scale(self) -> Tensor:
        """What memory vectors are multiplied by, (1,)."""
        return self.log_scale.exp()

    # ---- roles ----------------------------------------------------------------------------------------------------

    @contextmanager
    def role(self, role: Role) -> Iterator[None]:
        """Use one role's adapter inside of the block; nothing happens where the adapter is shared."""
        before = [layer.active_adapters for layer in self._roles]
        self._activate([[role]] * len(self._roles))
        try:
            yield
        finally:
            self._activate(before)

    def _activate(self, names: list[Any]) -> None:
        for layer, chosen in zip(self._roles, names, strict=True):
            # Not set_adapter(): it freezes the other role, whose gradient is still to come.
            layer._active_adapter = chosen

    def checkpointing(self, on: bool) -> None:
        """Recompute activations in the backward pass, each with the adapter it was computed with.

        Without this, a recomputation takes the adapter that is active when the gradient is asked for: the loss stays
        right and the gradient of the other adapter is wrong.
        """
        if on:
            self._causal.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": self._recompute})
        else:
            self._causal.gradient_checkpointing_disable()

    def _recompute(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts of a checkpoint's forward pass and of its recomputation."""
        active = [layer.active_adapters for layer in self._roles]

        @contextmanager
        def as_before() -> Iterator[None]:
            now = [layer.active_adapters for layer in self._roles]
            self._activate(active)
            try:
                yield
            finally:
                self._activate(now)

        return nullcontext(), as_before()

    # ---- passes ---------------------------------------------------------------------------------------------------

    def hidden(self, packed: Packed, vectors: Tensor | None = None, slots: Slots | None = None) -> Tensor:
        """Last hidden states of packed rows, (R, L, d); no logits are computed.

        Args:
            packed: rows.
            vectors: what stands at the rows' slots, in their order, (V, d).
            slots: the stretches of the slots, where they compress.
        """
        model = self._causal
        embeddings = model.get_input_embeddings()(packed.ids.clamp(min=0))  # (R, L, d)
        if vectors is not None:
            rows = embeddings.flatten(0, 1).index_copy(0, packed.slots, vectors.to(embeddings.dtype))
            embeddings = rows.view_as(embeddings)
        mask, positions = packed.visible(self.memory.attention == "both"), packed.positions
        if self.memory.window is not None and (slots is not None or vectors is None):
            near, positions = neighbours(packed, self.memory.window, slots)
            mask = mask & near[:, None]
        if model.config._attn_implementation != "sdpa":  # eager attention adds its mask to the scores
            mask = torch.zeros(mask.shape, dtype=embeddings.dtype, device=mask.device).masked_fill_(
                ~mask, torch.finfo(embeddings.dtype).min
            )
        found: Tensor = model.model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        return found

    def compress(self, texts: Packed) -> tuple[Tensor, Tensor | None]:
        """Memory of packed texts.

        Args:
            texts: trunks of text tokens, followed by the memory tokens where the backbone itself compresses.

        Returns:
            Memory vectors of all texts, tree by tree, (V, d); and the mean last hidden state of each text's tokens,
            (S, d), None for a light encoder. A memory vector sees only what is before it: the first vectors of a
            longer memory are a shorter memory.
        """
        if self.reader is not None:
            read, words = self.reader(texts)
            return read * self.scale + words, None
        inputs = self.memory_tokens[-1 - texts.ids.flatten()[texts.slots]]  # (V, d)
        slots = words = None
        if self.memory.start != "tokens":
            slots = Slots.of(texts, bool(self.memory.sizes))
            words = slots.means(self._causal.get_input_embeddings()(texts.ids.clamp(min=0)).flatten(0, 1))  # (V, d)
            inputs = inputs + words
        with self.role("compress"):
            states = self.hidden(texts, inputs, slots).flatten(0, 1)  # (R*L, d)
        memory = states[texts.slots] * self.scale
        if self.memory.matched and words is not None:
            memory = memory - words  # the other sign: a word of a question is not to take itself for the memory
        return memory, _means(states, texts)

    def answer(self, questions: Packed, memory: Tensor | None) -> Tensor:
        """Log-probability of every token to predict, (P,).

        Args:
            questions: trees on memory slots, or on text tokens for a model without compression.
            memory: the table of the slots, (V, d).
        """
        return self._chosen(self.logits(questions, memory), questions.targets)

    def logits(self, questions: Packed, memory: Tensor | None) -> Tensor:
        """Logits at the sources of the tokens to predict and nowhere else, (P, vocabulary), in float32."""
        given = None if memory is None else memory[-1 - questions.ids.flatten()[questions.slots]]
        with self.role("answer"):
            states = self.hidden(questions, given).flatten(0, 1)  # (R*L, d)
            found: Tensor = self._causal.get_output_embeddings()(states[questions.sources])
        return found.float()

    @staticmethod
    def _chosen(logits: Tensor, targets: Tensor) -> Tensor:
        return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]

    def answer_scores(self, questions: Packed, memory: Tensor | None) -> Tensor:
        """Log-probability of each whole answer, (A,)."""
        each = self.answer(questions, memory)
        return each.new_zeros(len(questions.tasks)).index_add(0, questions.answer, each)

    def forward(
        self,
        texts: Packed | None,
        questions: Packed,
        *,
        align_to: Callable[[Packed], Tensor] | None = None,
        label_smoothing: float = 0.0,
        teacher: Tensor | None = None,
        verbalizers: Tensor | None = None,
        marks: Tensor | None = None,
        shown: int | None = None,
    ) -> LossSums:
        """Both phases in one call, which is what data-parallel wrappers need.

        Args:
            texts: to compress; None for a model that reads the text in ``questions``.
            questions: with their right answers.
            align_to: gives the target of the alignment instead of the mean last hidden state.
            label_smoothing: of the polarity answers.
            teacher: probabilities of the polarities for each question about an aspect, (Q, 3).
            verbalizers: the one token of each polarity, (3,); needed with ``teacher`` and ``marks``.
            marks: text, token of the text, and number of the polarity that the token's vector should say, (N, 3).
            shown: memory vectors of each text that the questions see; None for all.
        """
        memory, means = self.compress(texts) if texts is not None else (None, None)
        logits = self.logits(questions, memory)
        nll = F.cross_entropy(logits, questions.targets, reduction="none")  # (P,)
        task = questions.tasks[questions.answer]  # (P,)
        reasoning = task == len(TASKS) - 1
        if label_smoothing:
            spread = -logits.log_softmax(-1).mean(-1)
            nll = torch.where(reasoning, (1 - label_smoothing) * nll + label_smoothing * spread, nll)
        sums = nll.new_zeros(len(TASKS)).index_add(0, task, nll)
        zero = nll.new_zeros(())
        alignment = zero
        if texts is not None and memory is not None and self.memory.reader == "decoder":
            target = align_to(texts) if align_to is not None else means
            assert target is not None
            owner = texts.tree.flatten()[texts.slots]  # (V,)
            count = torch.bincount(owner, minlength=len(target)).clamp(min=1)
            mean = memory.new_zeros(target.shape).index_add(0, owner, memory) / count[:, None]
            alignment = (mean - target.to(mean.dtype)).square().mean(-1).sum()
        distill = zero
        if teacher is not None:
            assert verbalizers is not None
            answers = questions.answer
            first = torch.ones_like(reasoning)
            first[1:] = answers[1:] != answers[:-1]
            asked = logits[reasoning & first][:, verbalizers].log_softmax(-1)  # (Q, 3)
            distill = F.kl_div(asked, teacher.to(asked), reduction="sum")
        marked = zero
        if marks is not None and len(marks):
            assert texts is not None and memory is not None and verbalizers is not None
            text, token, polarity = marks.unbind(1)
            # As the decoder's last norm and its output embeddings would read it, at no cost in parameters.
            vectors = F.rms_norm(memory[self._holders(texts, text, token, shown)].float(), memory.shape[1:])  # (N, d)
            words = self._causal.get_output_embeddings().weight[verbalizers].float()  # (3, d)
            marked = F.cross_entropy(vectors @ words.T, polarity, reduction="sum")
        return LossSums(sums, alignment, distill, marked)

    def _holders(self, texts: Packed, text: Tensor, token: Tensor, shown: int | None = None) -> Tensor:
        """The memory vector of the shortest stretch that holds a token, for memories of one length, (N,).

        Args:
            texts: what is compressed.
            text: number of each token's text, (N,).
            token: its place there, (N,).
            shown: vectors of each memory to choose from; None for all.
        """
        tree, count = texts.tree.flatten(), self.memory.tokens
        length = torch.bincount(tree[(tree >= 0) & (texts.ids.flatten() >= 0)])  # (S,)
        number = torch.arange(count, device=tree.device).repeat(len(length))
        nested = bool(self.memory.sizes)
        low, high = stretches(number, torch.full_like(number, count), length.repeat_interleave(count), nested)
        low, high = low.view(-1, count)[text, :shown], high.view(-1, count)[text, :shown]  # (N, shown)
        inside = (low <= token[:, None]) & (token[:, None] < high)
        return text * count + (high - low).masked_fill(~inside, torch.iinfo(low.dtype).max).argmin(1)

    def mean_embeddings(self, texts: Packed) -> Tensor:
        """Mean input embedding of each text's tokens, (S, d): what the seed aligns its memory to."""
        table = self._causal.get_input_embeddings()
        return _means(table(texts.ids.clamp(min=0)).flatten(0, 1), texts)


def _means(states: Tensor, texts: Packed) -> Tensor:
    """Mean of the states of each text's own tokens, memory tokens left out, (S, d)."""
    tree, ids = texts.tree.flatten(), texts.ids.flatten()
    own = (tree >= 0) & (ids >= 0)
    count = torch.bincount(tree[own])
    sums = states.new_zeros(len(count), states.shape[1]).index_add(0, tree[own], states[own])
    return sums / count[:, None]
