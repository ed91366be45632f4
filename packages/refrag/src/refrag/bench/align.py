"""What aligning two tokenizers costs, and whether it is right: every pair of families, beside the seed's table."""

from __future__ import annotations

import itertools
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from latentlab_shared.errors import UserError
from latentlab_shared.provenance import write_table
from refrag.bench.oracle import HARD, LETTERS, faults
from refrag.model.tokenizer.alignment import align, anchors_of
from refrag.model.tokenizer.loading import load_tokenizer
from refrag.model.tokenizer.spans import Ruler, token_spans
from refrag.model.tokenizer.tokenizer_utils import alignment_pairs_from_dp, compute_dp_matrix

Log = Callable[[str], None]
Row = dict[str, Any]

_SPEED_TARGET = 1e6  # tokens per second
_RATIO_TARGET = 2000.0
_MEMORY_TARGET = 2.0  # MB


def bench_align(
    tokenizers: Path, text_file: Path, *, chars: int, cases: int, repeats: int, references: int, seed: int, log: Log
) -> tuple[list[Row], list[Row]]:
    """Measure ``align``.

    Args:
        tokenizers: a folder with a folder for each family.
        text_file: where the measured text comes from.
        chars: its length.
        cases: random texts for the comparison with the slow search.
        repeats: rounds; medians are given.
        references: pairs for which the seed's table is computed too (it takes seconds each).
        seed: of the random texts.
        log: told what is going on.

    Returns:
        The figures with their targets, and a row for every pair of families.
    """
    families = {path.name: load_tokenizer(path) for path in sorted(tokenizers.iterdir()) if path.is_dir()}
    text = text_file.read_text(encoding="utf-8")[:chars]
    if len(families) < 2 or len(text) < chars:
        raise UserError(f"{len(families)} families and {len(text)} characters are too few", tokenizers)
    pairs = [
        _pair(e, d, families, text, repeats) for e, d in itertools.combinations_with_replacement(sorted(families), 2)
    ]
    log(f"{len(pairs)} pairs measured; {cases} random texts")
    spurious, missing, compared = _compare(families, cases, seed)
    rows = [
        _row("tokens_per_second", min(p["tokens_per_second"] for p in pairs), "tokens/s, slowest pair", _SPEED_TARGET),
        _row("peak_memory", max(p["peak_MB"] for p in pairs), "MB, largest pair", -_MEMORY_TARGET),
        _row("spurious_anchors", spurious, f"of {compared:,} alignments", 0),
        _row("missing_anchors", missing, f"of {compared:,} alignments", 0),
    ]
    chosen = [p for p in pairs if p["decoder"] == "gpt2" or p["encoder"] == "gpt2"][:references]
    for pair in chosen:
        log(f"the seed's table for {pair['name']}")
        seconds, found = _reference(families[pair["encoder"]], families[pair["decoder"]], text)
        pair |= {"table_s": seconds, "table_anchors": found, "ratio": seconds / (pair["align_ms"] / 1e3)}
    if chosen:
        rows.append(_row("ratio", min(p["ratio"] for p in chosen), "x, the seed's table / align", _RATIO_TARGET))
    return rows, pairs


def write_results(folder: Path, rows: list[Row], pairs: list[Row], command: str, seed: int) -> None:
    """Write ``align.json`` and ``align_pairs.json``, the tables of the README."""
    about = "the first characters of WikiText-2's valid.txt, seven published tokenizers, one thread, CPU time, medians"
    for name, found in (("align", rows), ("align_pairs", pairs)):
        shown = [{"name": row["name"], "metrics": {k: v for k, v in row.items() if k != "name"}} for row in found]
        write_table(folder / f"{name}.json", shown, command=command, data=about, seeds=[seed])


def _row(name: str, value: float, unit: str, target: float) -> Row:
    """A figure; a negative target, and zero, are the most it may be."""
    ok = value <= -target if target <= 0 else value >= target
    return {"name": name, "value": value, "unit": unit, "target": abs(target), "ok": ok}


def _cpu(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


def _pair(e: str, d: str, families: dict[str, PreTrainedTokenizerBase], text: str, repeats: int) -> Row:
    """One pair: time of tokenizing both sides, of aligning what came out, and the most memory the latter takes."""
    ruler = Ruler.of(text)
    encoder, decoder = (token_spans(text, families[name], ruler) for name in (e, d))
    tokens = len(encoder) + len(decoder)

    def tokenize() -> None:
        for name in (e, d):
            token_spans(text, families[name], ruler)

    def merge() -> Any:
        return anchors_of(encoder, decoder, Ruler.of(text))

    tokenizing, aligning = _cpu(tokenize, repeats), _cpu(merge, 5 * repeats)
    tracemalloc.start()
    anchors = merge()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "name": f"{e} / {d}",
        "encoder": e,
        "decoder": d,
        "tokens": tokens,
        "anchors": len(anchors),
        "align_ms": 1e3 * aligning,
        "tokenize_ms": 1e3 * tokenizing,
        "tokens_per_second": tokens / aligning,
        "peak_MB": peak / 1e6,
    }


def _compare(families: dict[str, PreTrainedTokenizerBase], cases: int, seed: int) -> tuple[int, int, int]:
    """Spurious and missing anchors of all pairs on the hard texts, and of random pairs on random texts."""
    draw = random.Random(seed)
    pairs = list(itertools.combinations_with_replacement(sorted(families), 2))
    texts = [(text, pair) for text in HARD for pair in pairs]
    texts += [("".join(draw.choices(LETTERS, k=draw.randint(0, 24))), draw.choice(pairs)) for _ in range(cases)]
    spurious = missing = compared = 0
    for text, (e, d) in texts:
        for unit, strict in itertools.product(("char", "byte"), (False, True)):
            found = align(text, families[e], families[d], unit=unit, strict=strict)  # type: ignore[arg-type]
            wrong = faults(found, Ruler.of(text, unit), strict=strict)  # type: ignore[arg-type]
            spurious, missing, compared = spurious + wrong.spurious, missing + wrong.missing, compared + 1
    return spurious, missing, compared


def _reference(encoder: PreTrainedTokenizerBase, decoder: PreTrainedTokenizerBase, text: str) -> tuple[float, int]:
    """CPU seconds of the seed's table and its pairs, without special tokens, and how many pairs it finds."""
    ids = [
        t.encode(text, add_special_tokens=False, truncation=False, padding=False, verbose=False)
        for t in (encoder, decoder)
    ]
    began = time.process_time()
    dp = compute_dp_matrix(
        encoder_ids=ids[0],
        decoder_ids=ids[1],
        enc_decode_fn=lambda part: str(encoder.decode(part)),
        dec_decode_fn=lambda part: str(decoder.decode(part)),
    )
    found = alignment_pairs_from_dp(dp)
    return time.process_time() - began, len(found)
