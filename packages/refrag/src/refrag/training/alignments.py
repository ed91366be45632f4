"""Aligning a corpus once, before training: parquet parts, resumable, divided among ranks.

Texts are cut into parts of equal size; part p belongs to rank p mod the number of ranks. A part is written whole or not
at all, so a killed run goes on with the parts that are missing, on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from latentlab_shared.errors import UserError
from latentlab_shared.files import atomic_path, read_json, sha256_file, write_json
from latentlab_shared.precompute import rank_and_world
from refrag.data.lines import read_lines, read_rows
from refrag.model.tokenizer.alignment import align
from refrag.model.tokenizer.loading import tokenizer_identity
from refrag.model.tokenizer.spans import Unit

_PLAN = "alignments.json"


@dataclass(frozen=True)
class AlignedText:
    """One text of a corpus.

    Attributes:
        index: its number in the corpus, from 0.
        encoder_ids: M tokens.
        decoder_ids: N tokens.
        anchors: rows (i, j, char_lo, char_hi).
    """

    index: int
    encoder_ids: list[int]
    decoder_ids: list[int]
    anchors: list[tuple[int, int, int, int]]


def read_texts(path: Path, field: str = "text") -> Iterator[str]:
    """Texts of a file: one per line of ``.txt``, or ``field`` of the rows of ``.jsonl``; either may end in ``.gz``.

    Raises:
        UserError: if there is no such file, it is damaged, or a row has no such text; it names the line.
    """
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    if path.is_file() and kind not in ("txt", "jsonl"):
        raise UserError(f".{kind} is not read", path, "Give .txt (a text per line) or .jsonl")
    found = ((where, row.get(field)) for where, row in read_rows(path)) if kind == "jsonl" else read_lines(path)
    for where, text in found:
        if not isinstance(text, str):
            raise UserError(f"no text under {field!r}", where)
        yield text


def precompute_alignments(
    source: Path,
    output: Path,
    encoder_tokenizer: PreTrainedTokenizerBase,
    decoder_tokenizer: PreTrainedTokenizerBase,
    *,
    unit: Unit = "char",
    strict: bool = False,
    field: str = "text",
    part_rows: int = 4096,
    limit: int | None = None,
    advance: Callable[[float], None] = lambda texts: None,
) -> dict[str, int]:
    """Align this rank's share of a corpus; parts that are done are skipped.

    Args:
        source: a file of texts, see ``read_texts``.
        output: a folder for ``part-*.parquet`` and the plan they were made by.
        encoder_tokenizer: as for ``align``.
        decoder_tokenizer: as for ``align``.
        unit: as for ``align``.
        strict: as for ``align``.
        field: of the rows of a ``.jsonl`` file.
        part_rows: texts per part: what a kill may cost.
        limit: read at most so many texts.
        advance: told how many texts are done.

    Returns:
        ``texts``, ``tokens`` and ``anchors`` of this call.

    Raises:
        UserError: if the folder holds alignments of another corpus, other tokenizers or settings.
    """
    rank, world = rank_and_world()
    plan = {
        "source_sha256": sha256_file(source) if source.is_file() else "",
        "encoder_sha256": tokenizer_identity(encoder_tokenizer),
        "decoder_sha256": tokenizer_identity(decoder_tokenizer),
        "unit": unit,
        "strict": strict,
        "field": field,
        "part_rows": part_rows,
        "limit": limit,
    }
    texts = read_texts(source, field)
    part = _next_part(texts, part_rows, limit, 0)  # read before anything is written
    _claim(output, plan)
    done = {"texts": 0, "tokens": 0, "anchors": 0}
    number = 0
    while part:
        path = output / f"part-{number:06d}.parquet"
        if number % world == rank and not path.exists():
            first = number * part_rows
            rows = [
                _row(first + n, text, encoder_tokenizer, decoder_tokenizer, unit, strict) for n, text in enumerate(part)
            ]
            _write(path, rows)
            done["texts"] += len(rows)
            done["tokens"] += sum(len(row["encoder_ids"]) + len(row["decoder_ids"]) for row in rows)
            done["anchors"] += sum(len(row["i"]) for row in rows)
        advance(len(part))
        number += 1
        part = _next_part(texts, part_rows, limit, number * part_rows)
    return done


def read_alignments(folder: Path) -> Iterator[AlignedText]:
    """The alignments of a folder, part by part.

    Raises:
        UserError: if there are none.
    """
    import pyarrow.parquet as pq

    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise UserError("no alignments in this folder", folder, "Make them: refrag align --input FILE --output DIR")
    for path in parts:
        for row in pq.read_table(path).to_pylist():
            anchors = list(zip(row["i"], row["j"], row["char_lo"], row["char_hi"], strict=True))
            yield AlignedText(row["index"], row["encoder_ids"], row["decoder_ids"], anchors)


def _next_part(texts: Iterator[str], rows: int, limit: int | None, read: int) -> list[str]:
    room = rows if limit is None else min(rows, limit - read)
    return [text for _, text in zip(range(room), texts, strict=False)]


def _claim(output: Path, plan: dict[str, Any]) -> None:
    """Write the plan, or compare with the one that is there."""
    if (output / _PLAN).exists():
        held = read_json(output / _PLAN)
        differing = sorted(key for key in plan if held.get(key) != plan[key])
        if differing:
            raise UserError(
                f"holds alignments made with another {', '.join(differing)}", output, "Choose another --output"
            )
        return
    if output.exists() and any(output.iterdir()):
        raise UserError("the folder is not empty", output, "Choose another --output")
    write_json(output / _PLAN, plan)


def _row(
    index: int,
    text: str,
    encoder_tokenizer: PreTrainedTokenizerBase,
    decoder_tokenizer: PreTrainedTokenizerBase,
    unit: Unit,
    strict: bool,
) -> dict[str, Any]:
    found = align(text, encoder_tokenizer, decoder_tokenizer, unit=unit, strict=strict)
    i, j, lo, hi = found.table.T.tolist()
    ids = {"encoder_ids": found.encoder.ids, "decoder_ids": found.decoder.ids}
    return {"index": index, **ids, "i": i, "j": j, "char_lo": lo, "char_hi": hi}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = pa.list_(pa.int32())
    columns = ("encoder_ids", "decoder_ids", "i", "j", "char_lo", "char_hi")
    schema = pa.schema([("index", pa.int64()), *((name, numbers) for name in columns)])
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema), temporary, compression="zstd")
