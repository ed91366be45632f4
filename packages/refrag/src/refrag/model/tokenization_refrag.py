"""The tokenizer of prompts with documents: decoder text to decoder ids, documents to rows of encoder ids.

Each row becomes one vector. In the seed's packing a row is the next ``compression`` ids, bare. By default it also ends
where both tokenizers cut the text, so that the same stretch can be shown to the decoder as tokens instead, and carries
the marks the encoder was trained with: ``[CLS] … [SEP]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from latentlab_shared.errors import UserError
from refrag.model.config_refrag import check_compression
from refrag.model.documents import Segment, parse_segments
from refrag.model.tokenizer.alignment import align
from refrag.model.tokenizer.loading import load_tokenizer
from refrag.model.tokenizer.spans import plain_ids

RowFormat = Literal["cls", "seed"]


@dataclass(frozen=True)
class Chunk:
    """A stretch of a document that is one vector, or its decoder tokens.

    Attributes:
        start: first character in the document.
        end: the character after its last; the chunks of a document tile it.
        encoder_ids: at most k, unless both tokenizers agree on no earlier cut.
        decoder_ids: of the same stretch; those of all chunks, joined, are the document's.
    """

    start: int
    end: int
    encoder_ids: tuple[int, ...]
    decoder_ids: tuple[int, ...]


class RefragTokenizer:
    """Two tokenizers and how documents become rows.

    Args:
        encoder_tokenizer: reads documents.
        decoder_tokenizer: reads everything else, and documents that are expanded.
        compression: k, encoder tokens per row.
        encoder_pad_token_id: fills rows.
        row_format: "cls" for rows with the encoder's marks that end where both tokenizers cut, "seed" for bare rows.
        whole_numbers: end a chunk before a number rather than inside of it, so that a number is read as one thing.

    Raises:
        UserError: if ``compression`` is below 1.
    """

    def __init__(
        self,
        encoder_tokenizer: PreTrainedTokenizerBase,
        decoder_tokenizer: PreTrainedTokenizerBase,
        compression: int = 4,
        encoder_pad_token_id: int = 0,
        row_format: RowFormat = "cls",
        whole_numbers: bool = True,
    ) -> None:
        check_compression(compression, most=None)
        if row_format not in ("cls", "seed"):
            raise UserError(f"{row_format!r} is no row format", "row_format", "Use cls or seed")
        self.encoder_tokenizer, self.decoder_tokenizer = encoder_tokenizer, decoder_tokenizer
        self.compression, self.encoder_pad_token_id = compression, encoder_pad_token_id
        self.row_format: RowFormat = row_format
        self.whole_numbers = whole_numbers
        cls, sep = encoder_tokenizer.cls_token_id, encoder_tokenizer.sep_token_id
        self._first, self._last = [] if cls is None else [cls], [] if sep is None else [sep]

    @classmethod
    def from_pretrained(
        cls, encoder: str | Path, decoder: str | Path, compression: int = 4, row_format: RowFormat = "cls"
    ) -> RefragTokenizer:
        """Load both tokenizers from folders or hub names; rows are padded with the encoder's own padding token."""
        encoder_tokenizer = load_tokenizer(encoder)
        pad = encoder_tokenizer.pad_token_id
        return cls(encoder_tokenizer, load_tokenizer(decoder), compression, pad or 0, row_format)

    def parse_segments(self, text: str) -> list[Segment]:
        """Cut a tagged text into segments with ``type``, ``raw_text`` and ``meta``.

        Raises:
            RefragParseError: if the tags are not well formed.
        """
        return parse_segments(text)

    def parse_and_tokenize(self, text: str) -> list[Segment]:
        """``parse_segments``, then ``tokenize``.

        Raises:
            RefragParseError: if the tags are not well formed.
        """
        return self.tokenize(self.parse_segments(text))

    def tokenize(self, segments: Sequence[Segment], compression: int | None = None) -> list[Segment]:
        """Add ``tokens`` to each segment, and ``packed_tokens`` and ``attention_mask`` to documents.

        Args:
            segments: parsed, or made by hand; they are not changed.
            compression: another k than the tokenizer's own.
        """
        return [self._tokenize(segment, self._rate(compression)) for segment in segments]

    def _rate(self, compression: int | None) -> int:
        """The k that was asked for, or the tokenizer's own."""
        if compression is None:
            return self.compression
        check_compression(compression, most=None)
        return compression

    def _tokenize(self, segment: Segment, compression: int) -> Segment:
        text = segment["raw_text"]
        if segment["type"] == "decoder":
            return {**segment, "tokens": self.decoder_ids(text)}
        if self.row_format == "seed":
            ids = plain_ids(text, self.encoder_tokenizer)
            rows, mask = self.pack([ids[at : at + compression] for at in range(0, len(ids), compression)], compression)
            return {**segment, "tokens": ids, "packed_tokens": rows, "attention_mask": mask}
        chunks = self.chunks(text, compression)
        rows, mask = self.pack([self.row(chunk.encoder_ids) for chunk in chunks])
        ids = [token for chunk in chunks for token in chunk.encoder_ids]
        return {**segment, "tokens": ids, "packed_tokens": rows, "attention_mask": mask, "chunks": chunks}

    def decoder_ids(self, text: str) -> list[int]:
        """Decoder ids of a text; no name of a special token in it is taken for one."""
        return plain_ids(text, self.decoder_tokenizer)

    def chunks(self, text: str, compression: int | None = None) -> list[Chunk]:
        """Cut a document at places where both tokenizers do, as late as k encoder tokens (and a number) allow.

        Args:
            text: of the document.
            compression: another k than the tokenizer's own.

        Returns:
            Chunks that tile the text; none for a text without tokens.
        """
        k = self._rate(compression)
        found = align(text, self.encoder_tokenizer, self.decoder_tokenizer)
        last = (len(found.encoder), len(found.decoder))
        stops = [(i, j, lo) for i, j, lo, _ in found.anchors]
        while stops and (stops[-1][0] == last[0] or stops[-1][1] == last[1]):
            stops.pop()  # blanks at the end that only one side has join the last chunk
        stops.append((*last, len(text)))
        stops = stops if stops[0][:2] == (0, 0) else [(0, 0, 0), *stops]
        chunks = []
        at = 0
        while at < len(stops) - 1:
            i0, j0, start = stops[at]
            first = at = at + 1
            # A token that stands for no text, such as the ▁ before a first word, goes with the next one.
            while at + 1 < len(stops) and (stops[at + 1][0] - i0 <= k or stops[at][2] == start):
                at += 1
            if self.whole_numbers and _inside_number(text, stops[at][2]):
                whole = (n for n in range(at - 1, first - 1, -1) if not _inside_number(text, stops[n][2]))
                at = next((n for n in whole if stops[n][0] > i0 and stops[n][2] > start), at)
            i1, j1, end = stops[at]
            ids = tuple(found.encoder.ids[i0:i1]), tuple(found.decoder.ids[j0:j1])
            chunks.append(Chunk(start, end, *ids))
        return [chunk for chunk in chunks if chunk.encoder_ids or chunk.decoder_ids]

    def row(self, ids: Sequence[int], question: Sequence[int] = ()) -> list[int]:
        """The encoder's row of some tokens, with the marks that the encoder has; a question comes first, if given."""
        before = [*question, *self._last] if question else []
        return [*self._first, *before, *ids, *self._last]

    def pack(self, rows: Sequence[Sequence[int]], width: int = 0) -> tuple[list[list[int]], list[list[int]]]:
        """Rows padded to the longest (at least ``width``), and their attention mask."""
        width = max([width, *(len(row) for row in rows)])
        pad = self.encoder_pad_token_id
        return (
            [[*row, *[pad] * (width - len(row))] for row in rows],
            [[1] * len(row) + [0] * (width - len(row)) for row in rows],
        )


def _inside_number(text: str, at: int) -> bool:
    """Whether a cut before the character ``at`` leaves digits of one number on both sides, as in 4|711 and 3,|517."""
    before, after = text[max(0, at - 2) : at], text[at : at + 2]
    if not before or not after:
        return False
    if before[-1].isdigit():
        return after[0].isdigit() or (after[0] in ".,:" and after[1:].isdigit())
    return before[-1] in ".,:" and before[0].isdigit() and after[0].isdigit()
