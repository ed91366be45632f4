"""From a vector to new words: a small decoder that is trained here, and BART's.

Both are autoencoders of (embedding, text) pairs. One vector holds the gist of a text and few of its names and numbers,
so what a decoder writes is to be embedded again and compared (``Summary.faithfulness``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentlab_shared.config import from_dict
from latentlab_shared.errors import NeedsNetwork, UserError
from latentlab_shared.files import atomic_path, read_json, write_json, write_text
from rsr_net.tensor_files import write_tensors

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import BartForConditionalGeneration, PreTrainedTokenizerBase

PAD, START, END = 0, 1, 2
_SPECIAL = ["<pad>", "<s>", "</s>"]


class TextDecoder(Protocol):
    """What the ``generate`` mode needs."""

    def generate(self, vectors: Tensor, beams: int = 4) -> list[str]:
        """One text for each vector, (B, D)."""
        ...

    def save(self, folder: Path) -> None:
        """Write everything ``load_decoder`` needs."""
        ...


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a ``VectorDecoder``.

    Attributes:
        input_dim: D, the width of the embeddings.
        vocabulary: BPE pieces at most.
        width: W of the transformer.
        layers: of the transformer.
        heads: of the transformer.
        prefix: k, the vectors that the embedding becomes.
        max_tokens: the longest text.
    """

    input_dim: int
    vocabulary: int = 1200
    width: int = 128
    layers: int = 2
    heads: int = 4
    prefix: int = 4
    max_tokens: int = 80

    def __post_init__(self) -> None:
        sizes = asdict(self)
        if not all(1 <= size <= 65536 for size in sizes.values()) or self.layers > 64 or self.width % self.heads:
            raise ValueError(f"these are no sizes of a decoder: {sizes}")


class VectorDecoder(nn.Module):
    """A causal transformer over k vectors made from the embedding, then the text's BPE pieces.

    Args:
        config: sizes.
        tokenizer: BPE with ``<pad>``, ``<s>`` and ``</s>`` as its first three pieces.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, config: DecoderConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        width = config.width
        # Directions only: a regressed embedding is shorter than a true one.
        self.register_buffer("center", torch.zeros(config.input_dim))
        self.register_buffer("scale", torch.ones(()))
        self.to_prefix = nn.Linear(config.input_dim, config.prefix * width)
        self.pieces = nn.Embedding(tokenizer.get_vocab_size(), width, padding_idx=PAD)
        # The same matrix makes the logits: rows of length near one keep the first ones near zero.
        nn.init.normal_(self.pieces.weight, std=width**-0.5)
        self.places = nn.Parameter(torch.randn(config.prefix + config.max_tokens, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 4 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, vectors: Tensor, pieces: Tensor) -> Tensor:
        """Logits of the next piece after each given one: vectors (B, D), pieces (B, N) → (B, N, V)."""
        k, n = self.config.prefix, pieces.shape[1]
        unit = (F.normalize(vectors, dim=-1) - self.center) / self.scale  # (B, D)
        prefix = self.to_prefix(unit).unflatten(-1, (k, -1))  # (B, k, W)
        h = torch.cat([prefix, self.pieces(pieces)], dim=1) + self.places[: k + n]  # (B, k + N, W)
        causal = nn.Transformer.generate_square_subsequent_mask(k + n, device=h.device, dtype=h.dtype)
        h = self.layers(h, mask=causal, is_causal=True)
        logits: Tensor = h[:, k:] @ self.pieces.weight.T
        return logits

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        vectors: Tensor,
        *,
        epochs: int = 12,
        batch_size: int = 32,
        learning_rate: float = 3e-3,
        noise: float = 0.3,
        seed: int = 0,
        config: DecoderConfig | None = None,
        advance: Callable[[float], None] = lambda _: None,
    ) -> VectorDecoder:
        """Train a decoder as a denoising autoencoder.

        Args:
            texts: N texts; they also make the vocabulary.
            vectors: their embeddings, (N, D).
            epochs: passes over the texts.
            batch_size: texts per update.
            learning_rate: AdamW's highest, reached after a tenth of the updates.
            noise: length of the Gaussian noise on a unit vector; the predicted embedding is never exact.
            seed: of everything.
            config: sizes; the defaults for the vectors' width when None.
            advance: told 1 after every epoch.

        Raises:
            ValueError: if the numbers of texts and vectors differ.
        """
        if len(texts) != len(vectors) or not len(texts):
            raise ValueError(f"{len(texts)} texts and {len(vectors)} vectors")
        config = DecoderConfig(input_dim=vectors.shape[1]) if config is None else config
        tokenizer = train_tokenizer(texts, config.vocabulary)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(config, tokenizer)
            unit = F.normalize(vectors, dim=-1)
            model.center.copy_(unit.mean(0))
            model.scale.copy_((unit - model.center).std().clamp_min(1e-6))
            rows = [
                [START, *ids[: config.max_tokens - 1], END]
                for ids in (encoding.ids for encoding in tokenizer.encode_batch(list(texts)))
            ]
            updates = epochs * -(-len(rows) // batch_size)
            optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr=learning_rate, total_steps=updates, pct_start=0.1
            )
            model.train()
            for _ in range(epochs):
                for picked in _batches([len(row) for row in rows], batch_size):
                    batch = _pad([rows[i] for i in picked.tolist()])  # (B, N + 1)
                    given = unit[picked]
                    given = given + noise * torch.randn_like(given) / given.shape[-1] ** 0.5
                    logits = model(given, batch[:, :-1])
                    loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=PAD)
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    schedule.step()
                advance(1)
        return model.eval()

    @torch.no_grad()
    def generate(self, vectors: Tensor, beams: int = 4) -> list[str]:
        """One text for each vector, (B, D): the likeliest per piece of ``beams`` kept hypotheses; 1 is greedy."""
        self.eval()
        return [self.tokenizer.decode(_beam(self, vector, beams)).strip() for vector in vectors]

    def save(self, folder: Path) -> None:
        """Write ``decoder.json``, ``decoder.safetensors`` and ``tokenizer.json``."""
        with atomic_path(folder / "decoder.safetensors") as temporary:
            write_tensors(temporary, self.state_dict())
        write_text(folder / "tokenizer.json", self.tokenizer.to_str(pretty=True))
        write_json(folder / "decoder.json", {"kind": "vector", "config": asdict(self.config)})

    @classmethod
    def load(cls, folder: Path) -> VectorDecoder:
        """Read what ``save`` wrote."""
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        model = cls(
            from_dict(DecoderConfig, read_json(folder / "decoder.json")["config"]),
            Tokenizer.from_file(str(folder / "tokenizer.json")),
        )
        model.load_state_dict(load_file(folder / "decoder.safetensors"))
        return model.eval()


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE over the given texts; any text can be encoded with it and decoded again."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocabulary, 259),
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _batches(lengths: list[int], size: int) -> list[Tensor]:
    """Row numbers in random batches of similar length, so that little is padded."""
    noisy = torch.tensor(lengths) + 8 * torch.rand(len(lengths))
    batches = torch.split(noisy.argsort(), size)
    return [batches[i] for i in torch.randperm(len(batches)).tolist()]


def _pad(rows: list[list[int]]) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)


def _beam(model: VectorDecoder, vector: Tensor, beams: int) -> list[int]:
    """Beam search for one vector; hypotheses are compared by log-probability per piece."""
    kept: list[tuple[float, list[int]]] = [(0.0, [START])]
    done: list[tuple[float, list[int]]] = []
    for _ in range(model.config.max_tokens - 1):
        pieces = torch.tensor([row for _, row in kept], device=vector.device)  # (K, N)
        logits = model(vector.expand(len(kept), -1), pieces)[:, -1]  # (K, V)
        logits[:, [PAD, START]] = float("-inf")
        best = logits.log_softmax(-1).topk(beams, dim=-1)  # (K, beams)
        longer = [
            (score + value, [*row, piece])
            for (score, row), values, ids in zip(kept, best.values.tolist(), best.indices.tolist(), strict=True)
            for value, piece in zip(values, ids, strict=True)
        ]
        longer.sort(key=lambda found: -found[0])
        done += [(score / len(row), row[1:-1]) for score, row in longer[:beams] if row[-1] == END]
        kept = [found for found in longer if found[1][-1] != END][:beams]
        if len(done) >= beams:
            break
    done += [(score / len(row), row[1:]) for score, row in kept] if not done else []
    return max(done)[1]


class BartVectorDecoder:
    """BART's decoder with the embedding as the only encoder state.

    The published decoder has never seen a pooled vector: without ``fit`` it writes fluent nonsense.

    Args:
        model: a BART with a language-model head.
        tokenizer: its tokenizer.
        max_tokens: the longest text.

    Raises:
        ValueError: when the embeddings' width is not the model's (in ``generate`` and ``fit``).
    """

    def __init__(
        self, model: BartForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, max_tokens: int = 80
    ) -> None:
        self.model: Any = model  # transformers' own annotations do not hold for a composed class
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.model.train(False)

    @classmethod
    def from_pretrained(cls, name: str, max_tokens: int = 80) -> BartVectorDecoder:
        """Load ``facebook/bart-base`` or a local folder."""
        from transformers import AutoTokenizer, BartForConditionalGeneration

        try:
            model = BartForConditionalGeneration.from_pretrained(name)
            return cls(model, AutoTokenizer.from_pretrained(name), max_tokens)
        except (OSError, ValueError) as error:
            raise NeedsNetwork(
                f"the BART model cannot be loaded ({' '.join(str(error).split())[:120]})",
                name,
                "Give a local folder, or use the small decoder that `rsr-net train` makes",
            ) from None

    def _states(self, vectors: Tensor) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        if vectors.shape[-1] != self.model.config.d_model:
            raise ValueError(f"embeddings of width {vectors.shape[-1]} for a BART of width {self.model.config.d_model}")
        return BaseModelOutput(last_hidden_state=vectors[:, None, :].to(self.model.device))  # (B, 1, D)

    @torch.no_grad()
    def generate(self, vectors: Tensor, beams: int = 4) -> list[str]:
        """One text for each vector, (B, D)."""
        found = self.model.generate(
            encoder_outputs=self._states(vectors),
            attention_mask=torch.ones(len(vectors), 1, dtype=torch.long, device=self.model.device),
            num_beams=beams,
            max_length=self.max_tokens,
        )
        return [str(text).strip() for text in self.tokenizer.batch_decode(found, skip_special_tokens=True)]

    def fit(
        self,
        texts: Sequence[str],
        vectors: Tensor,
        *,
        epochs: int = 3,
        batch_size: int = 16,
        learning_rate: float = 3e-5,
        seed: int = 0,
    ) -> list[float]:
        """Fine-tune the decoder and the embeddings it shares with the head; returns the mean loss of each epoch."""
        if len(texts) != len(vectors):
            raise ValueError(f"{len(texts)} texts and {len(vectors)} vectors")
        self.model.model.encoder.requires_grad_(False)
        self.model.model.shared.requires_grad_(True)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=learning_rate)
        order = torch.Generator().manual_seed(seed)
        losses = []
        self.model.train()
        for _ in range(epochs):
            total = 0.0
            for picked in torch.split(torch.randperm(len(texts), generator=order), batch_size):
                labels = self.tokenizer(
                    [texts[i] for i in picked.tolist()],
                    return_tensors="pt",
                    padding=True,
                    truncation=True,
                    max_length=self.max_tokens,
                )["input_ids"]
                labels = labels.masked_fill(labels == self.tokenizer.pad_token_id, -100).to(self.model.device)
                ones = torch.ones(len(picked), 1, dtype=torch.long, device=self.model.device)
                loss = self.model(
                    encoder_outputs=self._states(vectors[picked]), attention_mask=ones, labels=labels
                ).loss
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                total += loss.item() * len(picked)
            losses.append(total / len(texts))
        self.model.eval()
        return losses

    def save(self, folder: Path) -> None:
        """Write the model and the tokenizer, so that ``load_decoder`` finds them."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / "decoder.json", {"kind": "bart", "max_tokens": self.max_tokens})


def load_decoder(folder: Path) -> TextDecoder:
    """Read a decoder of either kind from its folder.

    Raises:
        UserError: if a file is missing, damaged or of an unknown kind.
    """
    try:
        described = read_json(folder / "decoder.json")
        if described["kind"] == "vector":
            return VectorDecoder.load(folder)
        if described["kind"] == "bart":
            return BartVectorDecoder.from_pretrained(str(folder), int(described["max_tokens"]))
        raise ValueError(f"{json.dumps(described['kind'])} is no kind of decoder")
    except NeedsNetwork:
        raise
    except Exception as error:  # tokenizers raises Exception itself, and each file has errors of its own
        what = f"the model is damaged (its decoder: {' '.join(str(error).split())[:160]})"
        raise UserError(what, folder, "Train it again with rsr-net train --decoder") from None
