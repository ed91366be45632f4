"""A corpus that a decoder has written itself: texts of its own distribution, where what it learned from is not at hand.

Of such texts the decoder is the best model there can be, so what it loses by reading vectors is the vectors' doing.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from latentlab_shared.errors import UserError
from latentlab_shared.files import atomic_path
from refrag.model.folder import load_decoder
from refrag.model.tokenizer.loading import load_tokenizer

Log = Callable[[str], None]
_HELD_OUT = 10  # one in so many
_TOGETHER = 128  # texts written side by side


def write_corpus(
    decoder: str, folder: Path, count: int, tokens: int, seed: int = 0, log: Log = lambda line: None
) -> dict[str, int]:
    """Write ``corpus_{train,valid}.jsonl.gz``: texts drawn from a decoder token by token, at temperature 1.

    Args:
        decoder: a folder or a hub name.
        folder: to write to.
        count: of texts; one in ten is held out.
        tokens: of a text at most; it ends earlier where the decoder ends it.
        seed: of the draws.
        log: told what is going on.

    Returns:
        How many there are, by file name.

    Raises:
        UserError: if the decoder cannot be read, or has no token to begin with.
    """
    model, words = load_decoder(decoder).eval(), load_tokenizer(decoder)
    begin = words.bos_token_id if words.bos_token_id is not None else words.eos_token_id
    if begin is None:
        raise UserError("its tokenizer has no token to begin with", decoder)
    draw = torch.Generator().manual_seed(seed)
    texts: list[str] = []
    while len(texts) < count:
        log(f"{len(texts):,} of {count:,}")
        rows = draw_rows(model, int(begin), words.eos_token_id, min(_TOGETHER, count - len(texts)), tokens, draw)
        texts += [str(words.decode(row, skip_special_tokens=True)).strip() for row in rows]
    parts = {"valid": texts[::_HELD_OUT], "train": [text for n, text in enumerate(texts) if n % _HELD_OUT]}
    counts = {}
    for part, some in parts.items():
        name = f"corpus_{part}.jsonl.gz"
        with atomic_path(folder / name) as temporary, gzip.open(temporary, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in some)
        counts[name] = len(some)
    return counts


@torch.no_grad()
def draw_rows(
    model: Any, begin: int, end: int | None, rows: int, tokens: int, draw: torch.Generator
) -> list[list[int]]:
    """Rows of at most ``tokens`` new tokens, each up to the end mark or the beginning of another text."""
    ids = torch.full((rows, 1), begin)
    found: list[list[int]] = [[] for _ in range(rows)]
    open_, past = set(range(rows)), None
    for _ in range(tokens):
        out = model(input_ids=ids, past_key_values=past, use_cache=True)
        past = out.past_key_values
        ids = torch.multinomial(out.logits[:, -1].float().softmax(-1), 1, generator=draw)
        for row in list(open_):
            token = int(ids[row])
            if token in (begin, end):
                open_.remove(row)
            else:
                found[row].append(token)
        if not open_:
            break
    return found
