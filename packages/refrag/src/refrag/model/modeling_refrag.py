"""The model: an encoder makes one vector of each row of a document, a projector carries it into the decoder's space.

Shapes: R rows of W encoder tokens, E the encoder's width, D the decoder's, L slots (positions) of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict

import torch
from torch import Tensor, nn

from latentlab_shared.errors import UserError
from refrag.model.config_refrag import RefragConfig
from refrag.model.documents import Segment
from refrag.model.gate import Gate

if TYPE_CHECKING:
    from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
    from transformers.generation.streamers import BaseStreamer

_CALL_TOKENS = 1 << 17  # of one encoder call; more rows than that are encoded in several


class Embedded(TypedDict):
    """A segment as the decoder reads it: ``embeddings`` (length, D)."""

    type: str
    embeddings: Tensor
    length: int


class RefragModel(nn.Module):
    """Encoder, projector, gate and decoder.

    Args:
        config: what it is made of.
        encoder: a network of transformers' with ``last_hidden_state``; loaded by its name if it is not given.
        decoder: a causal language model of transformers'; loaded by its name if it is not given.

    Source: the seed, "RefragModel Architecture".
    """

    def __init__(
        self, config: RefragConfig, encoder: PreTrainedModel | None = None, decoder: PreTrainedModel | None = None
    ) -> None:
        super().__init__()
        if encoder is None or decoder is None:
            from refrag.model.folder import load_decoder, load_encoder

            encoder = encoder or load_encoder(config.encoder_name_or_path, config.pooling == "pooler")
            decoder = decoder or load_decoder(config.decoder_name_or_path)
        self.config = config
        self.encoder: Any = encoder
        self.decoder: Any = decoder
        self.projector = make_projector(config, self.encoder_dim, self.decoder_dim)
        self.gate = Gate(self.encoder_dim, config.gate_dim, asks=config.conditioning != "none")
        self.set_trained(config.training_model)

    @property
    def encoder_dim(self) -> int:
        """E."""
        return int(self.encoder.config.hidden_size)

    @property
    def decoder_dim(self) -> int:
        """D."""
        return int(self.decoder.get_input_embeddings().weight.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the decoder is."""
        return torch.device(self.decoder.device)

    @property
    def room(self) -> int | None:
        """Slots the decoder has positions for; None if it sets no limit."""
        config = self.decoder.config
        found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        return int(found) if found else None

    @property
    def row_limit(self) -> int:
        """Tokens of a row that the encoder has positions for; RoBERTa keeps two for itself."""
        return int(getattr(self.encoder.config, "max_position_embeddings", 1 << 30)) - 2

    def set_trained(self, letters: str, gate: bool = False) -> None:
        """Let the parts named by their letters learn, and the gate if wished, and no others."""
        for letter, part in (("p", self.projector), ("e", self.encoder), ("d", self.decoder)):
            part.requires_grad_(letter in letters)
        self.gate.requires_grad_(gate)

    def train(self, mode: bool = True) -> Self:
        """As of any module, but parts that do not learn stay in evaluation mode: no dropout in them."""
        super().train(mode)
        for part in (self.projector, self.encoder, self.decoder):
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    # -- from tokens to slots ------------------------------------------------------------------------------------------

    def encode_rows(self, rows: Sequence[Sequence[int]], masks: Sequence[Sequence[int]]) -> Tensor:
        """Vectors of rows before the projector, (R, E); one encoder call, whatever documents the rows are of.

        A row that is longer than the encoder's positions, for want of a cut both tokenizers agree on, is read so far.

        Args:
            rows: R rows of encoder ids; their widths may differ.
            masks: 1 for a token, 0 for padding, as wide as the rows.
        """
        if not rows:
            return torch.zeros(0, self.encoder_dim, device=self.device)
        width = min(max(len(row) for row in rows), self.row_limit)
        ids = torch.tensor([[*row[:width], *[0] * (width - len(row))] for row in rows], device=self.device)  # (R, W)
        mask = torch.tensor([[*m[:width], *[0] * (width - len(m))] for m in masks], device=self.device)  # (R, W)
        step = max(1, _CALL_TOKENS // width)
        return torch.cat([self.pool_rows(ids[at : at + step], mask[at : at + step]) for at in range(0, len(ids), step)])

    def pool_rows(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors (R, E) of padded rows (R, W), as tensors."""
        found = self.encoder(input_ids=ids, attention_mask=mask)
        if self.config.pooling == "pooler":
            pooled: Tensor = found.pooler_output
            return pooled
        states: Tensor = found.last_hidden_state  # (R, W, E)
        if self.config.pooling == "cls":
            return states[:, 0]
        counted = mask[..., None].to(states.dtype)
        return (states * counted).sum(1) / counted.sum(1).clamp_min(1)

    def project(self, vectors: Tensor) -> Tensor:
        """Vectors (R, E) in the decoder's space, (R, D)."""
        projected: Tensor = self.projector(vectors)
        return projected

    def embed(self, ids: Sequence[int]) -> Tensor:
        """The decoder's own embeddings of tokens, (L, D)."""
        table: Any = self.decoder.get_input_embeddings()
        found: Tensor = table(torch.tensor(list(ids), dtype=torch.long, device=self.device))
        return found

    def splice(self, pieces: Sequence[Sequence[int] | None], projected: Tensor) -> Tensor:
        """Tokens and vectors side by side, (L, D).

        Args:
            pieces: decoder tokens, or None where the next vector stands.
            projected: as many vectors as there are Nones, in the decoder's space, (R, D).
        """
        tokens: list[int] = []
        gaps: list[int] = []
        for piece in pieces:
            if piece is None:
                gaps.append(len(tokens))
                tokens.append(0)
            else:
                tokens += piece
        embeddings = self.embed(tokens)
        if not gaps:
            return embeddings
        where = torch.tensor(gaps, device=embeddings.device)
        return embeddings.index_copy(0, where, projected.to(embeddings.dtype))  # of another type under autocast

    def forward(self, segments: Sequence[Segment]) -> list[Embedded]:
        """Embeddings of tokenized segments, in their order.

        Args:
            segments: what ``RefragTokenizer.parse_and_tokenize`` gives.

        Returns:
            For decoder text the decoder's embeddings of its tokens, for a document one projected vector per row.
        """
        documents = [s for s in segments if s["type"] == "encoder"]
        rows = [row for s in documents for row in s["packed_tokens"]]
        masks = [mask for s in documents for mask in s["attention_mask"]]
        counts = [len(s["packed_tokens"]) for s in documents]
        vectors = torch.split(self.project(self.encode_rows(rows, masks)), counts)
        encoded = iter(vectors)
        embeddings = [next(encoded) if s["type"] == "encoder" else self.embed(s["tokens"]) for s in segments]
        return [
            {"type": s["type"], "embeddings": e, "length": len(e)} for s, e in zip(segments, embeddings, strict=True)
        ]

    # -- from slots to text --------------------------------------------------------------------------------------------

    def pad_left(self, prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Prompts (L_i, D) side by side, (B, L, D), with their attention mask (B, L): all end at the same place."""
        longest = max(len(prompt) for prompt in prompts)
        batch = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[1])
        mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=batch.device)
        for n, prompt in enumerate(prompts):
            batch[n, longest - len(prompt) :] = prompt
            mask[n, longest - len(prompt) :] = 1
        return batch, mask

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Tensor],
        generation: GenerationConfig,
        *,
        logits_processor: LogitsProcessorList | None = None,
        streamer: BaseStreamer | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> list[list[int]]:
        """Continue prompts by greedy search, sampling or beams, as ``generation`` says, with a KV cache.

        Args:
            prompts: B prompts (L_i, D), of tokens and vectors mixed.
            generation: transformers' settings, with ``max_new_tokens``.
            logits_processor: more rules for the next token; it sees the new tokens only.
            streamer: told each token as it comes (one prompt, no beams).
            stopped: asked after every token; what has been written when it says yes is returned.

        Returns:
            New token ids of each prompt, without padding and end marks.

        Raises:
            UserError: if a prompt is empty, or has not the room for what is to come.
        """
        new = generation.max_new_tokens or 0
        for prompt in prompts:
            if not len(prompt):
                raise UserError("the prompt is empty", "generate", "Give some text")
            if self.room is not None and len(prompt) + new > self.room:
                raise UserError(
                    f"{len(prompt)} slots and {new} new tokens are more than the decoder's {self.room} positions",
                    "generate",
                    "Give fewer documents, a larger compression or a smaller budget",
                )
        if not prompts:
            return []
        ends = generation.eos_token_id if generation.eos_token_id is not None else self.decoder.config.eos_token_id
        stops = set(ends) if isinstance(ends, (list, tuple)) else {ends}
        pad = generation.pad_token_id if generation.pad_token_id is not None else next(iter(stops - {None}), 0)
        generation = copy(generation)
        generation.pad_token_id = pad
        batch, mask = self.pad_left(prompts)
        was_training = self.decoder.training
        self.decoder.eval()
        try:
            found: Tensor = self.decoder.generate(
                inputs_embeds=batch,
                attention_mask=mask,
                generation_config=generation,
                logits_processor=logits_processor,
                streamer=streamer,
                stopping_criteria=None if stopped is None else [_Stop(stopped)],
            )
        finally:
            self.decoder.train(was_training)
        return [_until(row, stops) for row in found.tolist()]

    def logits(self, prompts: Sequence[Tensor]) -> Tensor:
        """The decoder's logits for the token after each prompt, (B, vocabulary)."""
        batch, mask = self.pad_left(prompts)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        found = self.decoder(inputs_embeds=batch, attention_mask=mask, position_ids=positions, logits_to_keep=1)
        last: Tensor = found.logits[:, -1]
        return last

    # -- files ---------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model, weights as safetensors, with a card."""
        from refrag.model.folder import save_model

        save_model(self, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> RefragModel:
        """Read what ``save_pretrained`` wrote.

        Raises:
            UserError: if there is no model in the folder, or it is damaged.
        """
        from refrag.model.folder import load_model

        return load_model(Path(folder))


class _Stop:
    """Ends all rows at once, for transformers."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self.stopped = stopped

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full((len(input_ids),), self.stopped(), dtype=torch.bool, device=input_ids.device)


def make_projector(config: RefragConfig, encoder_dim: int, decoder_dim: int) -> nn.Module:
    """From (…, E) to (…, D)."""
    if config.projector == "linear":
        return nn.Linear(encoder_dim, decoder_dim)
    return nn.Sequential(nn.Linear(encoder_dim, decoder_dim), nn.GELU(), nn.Linear(decoder_dim, decoder_dim))


def _until(ids: list[int], stops: set[int | None]) -> list[int]:
    """New tokens up to the first end mark; the padding stands behind it."""
    end = next((n for n, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]
