"""A decoder of one's own: a tokenizer and a small causal language model, where no hub is at hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentlab_shared.config import from_dict, load_config
from latentlab_shared.errors import UserError, shell_word
from latentlab_shared.files import read_json, sha256_file
from latentlab_shared.runs import RunFolder, model_card
from refrag.model.folder import load_decoder
from refrag.model.hub import silence
from refrag.model.tokenizer.loading import load_tokenizer
from refrag.sample.copying import ROPE_THETA, start_copying
from refrag.sample.tiny import decoder_tokenizer
from refrag.training.alignments import read_texts
from refrag.training.loop import load_trained, run_steps, steps_done
from refrag.training.settings import LoopSettings

DECODER = "decoder"  # of a run folder


@dataclass(frozen=True)
class DecoderSettings:
    """A decoder and how to train it; the defaults are some 8 million parameters.

    Attributes:
        data: a .txt or .jsonl file of texts.
        family: "llama" or "phi3".
        vocabulary: tokens of its byte-level BPE.
        width: D.
        layers: of the decoder.
        heads: of each layer.
        positions: the longest prompt.
        block: tokens of an example.
        copying: begin with attention that looks where copying looks (``sample.copying``): a small decoder uses what
            stands far back from its first steps on.
        held_out: share of the texts to measure on.
        loop: how to step.
    """

    data: str = ""
    family: Literal["llama", "phi3"] = "llama"
    vocabulary: int = 4096
    width: int = 256
    layers: int = 8
    heads: int = 4
    positions: int = 2048
    block: int = 256
    copying: bool = False
    held_out: float = 0.02
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(learning_rate=1e-3, beta2=0.98))

    def __post_init__(self) -> None:
        for name, least in (("vocabulary", 300), ("width", 2), ("layers", 1), ("heads", 1)):  # 256 bytes and some words
            if getattr(self, name) < least:
                raise UserError(f"must be at least {least}, not {getattr(self, name)}", name)
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise UserError(
                f"{self.width} is no even multiple of {self.heads} heads", "width", "For example: 256 and 4"
            )
        if self.copying and (self.family != "llama" or self.layers < 2):
            raise UserError("this start is for llama with two layers or more", "copying")
        if not 2 <= self.block <= self.positions:
            raise UserError(f"must be 2 … {self.positions}, not {self.block}", "block")
        if not 0 <= self.held_out < 1:
            raise UserError(f"must be in [0, 1), not {self.held_out}", "held_out")


class LanguageObjective(nn.Module):
    """Mean negative log-likelihood of the next token, in nats.

    Args:
        decoder: a causal language model.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        """``loss`` of a batch (B, T)."""
        ids = ids.to(next(self.decoder.parameters()).device)
        logits = self.decoder(input_ids=ids[:, :-1]).logits  # (B, T - 1, V)
        return {"loss": F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())}


class LanguageBatches:
    """Blocks of a corpus that is one stream of tokens, texts parted by the end mark.

    Args:
        stream: the tokens, (S,).
        batch_size: blocks per step, over all processes.
        block: tokens of a block, and one more to predict.
        seed: of the draws.

    Raises:
        UserError: if the stream is shorter than a block.
    """

    def __init__(self, stream: Tensor, batch_size: int, block: int, seed: int) -> None:
        if len(stream) <= block:
            raise UserError(f"the corpus has {len(stream)} tokens, a block {block}", "data", "Give more text")
        self.stream, self.batch_size, self.block, self.seed = stream, batch_size, block, seed

    def batch(self, step: int, rank: int, world: int) -> Tensor:
        """Every ``world``-th block of a step, from ``rank`` on, (B, T + 1)."""
        draw = random.Random(f"{self.seed} {step}")
        starts = [draw.randrange(len(self.stream) - self.block) for _ in range(self.batch_size)]
        return torch.stack([self.stream[at : at + self.block + 1] for at in starts[rank::world]])


def make_decoder(settings: DecoderSettings, vocabulary: int, end: int) -> Any:
    """A decoder of a family with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

    kinds: Any = {"llama": (LlamaConfig, LlamaForCausalLM), "phi3": (Phi3Config, Phi3ForCausalLM)}
    describe, make = kinds[settings.family]
    more: dict[str, Any] = {"original_max_position_embeddings": settings.positions} if settings.family == "phi3" else {}
    if settings.copying:
        more = {"attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.loop.seed)
        decoder = make(
            describe(
                vocab_size=vocabulary,
                hidden_size=settings.width,
                intermediate_size=3 * settings.width,
                num_hidden_layers=settings.layers,
                num_attention_heads=settings.heads,
                num_key_value_heads=settings.heads,
                max_position_embeddings=settings.positions,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=end,
                pad_token_id=end,
                **more,
            )
        )
    if settings.copying:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.loop.seed)
            start_copying(decoder)
    return decoder


def token_stream(texts: Iterable[str], tokenizer: Any, end: int) -> Tensor:
    """All texts as one stream, the end mark behind each, (S,)."""
    every = [*texts]
    ids = tokenizer(every, add_special_tokens=False, verbose=False)["input_ids"] if every else []
    return torch.tensor([token for row in ids for token in (*row, end)], dtype=torch.long)


@torch.no_grad()
def held_out_nats(objective: LanguageObjective, stream: Tensor, block: int, most: int = 64) -> float | None:
    """Nats per token on the first blocks of a held-out stream; None if it is shorter than one."""
    blocks = [stream[at : at + block + 1] for at in range(0, len(stream) - block, block)][:most]
    if not blocks:
        return None
    objective.eval()
    return sum(float(objective(ids[None])["loss"]) for ids in blocks) / len(blocks)


def pretrain_decoder(
    folder: Path,
    base: DecoderSettings,
    *,
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    finish: bool = False,
    track: Sequence[str] = (),
    log: Callable[[str], None] = lambda line: None,
    advance: Callable[[float], None] = lambda steps: None,
) -> dict[str, Any]:
    """Train a tokenizer and a decoder into a run folder; with ``resume`` the run's own settings are read.

    With ``finish`` as well there are no more steps: what the last checkpoint holds is the decoder.

    Returns:
        The decoder's folder, its size, and nats per token on texts it has not seen, before and after.

    Raises:
        UserError: for wrong settings or data; nothing is written.
    """
    if finish and not (resume and steps_done(folder)):
        raise UserError("there is no run to finish", folder, "Give a run with a checkpoint as --resume")
    if resume:
        settings = from_dict(DecoderSettings, RunFolder.read(folder).config, folder / "config.json")
        read_json(folder / "environment.json")  # of the results, at the end
    else:
        settings = load_config(DecoderSettings, config_file, overrides, base)
        RunFolder.ensure_free(folder, overwrite=overwrite)
    if not settings.data:
        raise UserError("no corpus", "--data", "Give a .txt or .jsonl file of texts")
    texts = [text for text in read_texts(Path(settings.data)) if text.strip()]
    cut = len(texts) - int(settings.held_out * len(texts))
    train, valid = texts[:cut], texts[cut:]
    # A tokenizer trained anew may differ in its ties, so a run keeps the one it began with.
    home = folder / DECODER
    tokenizer: Any = load_tokenizer(home) if resume else decoder_tokenizer(train, settings.vocabulary)
    end = int(tokenizer.eos_token_id)
    decoder = load_decoder(home) if resume else make_decoder(settings, len(tokenizer), end)
    objective = LanguageObjective(decoder)
    batches = LanguageBatches(
        token_stream(train, tokenizer, end), settings.loop.batch_size, settings.block, settings.loop.seed
    )
    unseen = token_stream(valid, tokenizer, end)
    size = sum(p.numel() for p in decoder.parameters())
    log(f"{size:,} parameters, {len(batches.stream):,} tokens, {settings.loop.steps} steps")
    run = (
        RunFolder.resume(folder, track=track)
        if resume
        else RunFolder.create(
            folder,
            settings,
            seed=settings.loop.seed,
            data={"data": sha256_file(Path(settings.data))},
            track=track,
            overwrite=overwrite,
        )
    )
    with run:
        before = held_out_nats(objective, unseen, settings.block)
        if resume:
            run.rewind(steps_done(folder))
        else:
            silence()
            tokenizer.save_pretrained(home)
            decoder.save_pretrained(home)
        if not finish:
            try:
                run_steps(
                    objective,
                    batches,
                    settings.loop,
                    folder=folder,
                    resume=resume,
                    log=lambda step, found: run.log(step, **found),
                    advance=advance,
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"go on with refrag pretrain-decoder --resume {shell_word(folder)}") from None
        kept = LanguageObjective(load_decoder(home))
        load_trained(folder, kept)  # in one piece, whatever the engine did with its own
        kept.decoder.save_pretrained(home)
        results = {
            "decoder": str(home),
            "parameters": size,
            "steps": steps_done(folder),
            "tokens": len(batches.stream),
            "nats_before": before,
            "nats": held_out_nats(kept, unseen, settings.block),
        }
        run.write_results(results)
        code = f"from transformers import AutoModelForCausalLM\n\nAutoModelForCausalLM.from_pretrained({DECODER!r})"
        nats = results["nats"]
        sections = {
            "Use": f"```python\n{code}\n```",
            "Training data": f"`{Path(settings.data).name}`, {len(batches.stream):,} tokens, {results['steps']} steps",
            "Validation": "nothing was held out" if nats is None else f"{nats:.3f} nats per token of unseen texts",
            "Limits": "A small language model of its training texts. It follows no instructions.",
        }
        run.write_card(model_card("A small decoder", "Trained by `refrag pretrain-decoder`.", sections, run))
    return results
