"""Citations that cannot be wrong in form, and that follow the evidence.

After ``[`` only the given ids can follow, up to ``]``. Which of them is decided by what has been said: the document
that shares most words with the statement before the bracket, figures counting double; among equals the decoder chooses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from latentlab_shared.errors import UserError
from refrag.model.documents import Doc
from refrag.model.tokenizer.spans import token_bytes
from refrag.model.window import Slot

_STATEMENT = re.compile(r"[^.!?\n\[\]]*$")
_WORD = re.compile(r"\w+")
_UNIT = re.compile(r"[^\W_]+(?:[.,:'’/_-][^\W_]+)*")  # a word or a number, such as 3,517 or mid-1990s
_NEAR = 48  # characters around the end of a span in which the unit it cuts is looked for


@dataclass(frozen=True)
class Citation:
    """A document an answer names, and where in it the evidence stands.

    Attributes:
        doc: its id, always one of those given.
        at: index of its ``[`` in the answer.
        start: first character of the evidence in the document's text.
        end: the character after its last.
    """

    doc: str
    at: int
    start: int
    end: int


class Vocabulary:
    """What each token of a decoder adds to a text, looked up once.

    Args:
        tokenizer: of the decoder.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.pieces = token_bytes(tokenizer)
        self.opening = [token for token, piece in enumerate(self.pieces) if b"[" in piece]
        self.starting: dict[int, list[int]] = {}
        for token, piece in enumerate(self.pieces):
            if piece:
                self.starting.setdefault(piece[0], []).append(token)


class CitationRules(LogitsProcessor):
    """The rule of each prompt of a batch; with beams, its rows stand side by side."""

    def __init__(self, rules: Sequence[CitationRule]) -> None:
        self.rules = rules

    def __call__(self, input_ids: torch.Tensor, scores: Tensor) -> Tensor:
        """Forbid what would break a citation, (B · beams, V)."""
        scores, beams = scores.clone(), len(scores) // len(self.rules)
        for row, ids in enumerate(input_ids.tolist()):
            self.rules[row // beams].apply(ids, scores[row])
        return scores


class CitationRule:
    """Keeps every ``[…]`` of the new text one of the given ids. Special tokens cannot stand inside.

    Args:
        vocabulary: of the decoder.
        ids: documents that may be cited.
        supported: from the text before a bracket to those of the ids that it may hold; None leaves it to the decoder.

    Raises:
        UserError: if the tokenizer cannot write one of the ids.
    """

    def __init__(
        self, vocabulary: Vocabulary, ids: Sequence[str], supported: Callable[[str], Sequence[str]] | None = None
    ) -> None:
        self.vocabulary, self.supported = vocabulary, supported
        self.names = [f"{name}]".encode() for name in ids]
        self.known: dict[bytes | None, tuple[Tensor, bool]] = {}
        self.narrower: dict[tuple[str, ...], CitationRule] = {}
        # The longest first: a rule asks for those of the states it leads to, and ids are longer than a stack is deep.
        for state in sorted({name[:end] for name in self.names for end in range(len(name))}, key=len, reverse=True):
            self._rule(state)
        for name in self.names:
            self._must_be_writable(name)

    def apply(self, ids: Sequence[int], scores: Tensor) -> None:
        """Forbid, in place, what would break a citation after the new tokens ``ids``; scores (V,)."""
        state = self.state(ids)
        tokens, only = self._narrowed(ids, state)._rule(state)
        tokens = tokens.to(scores.device)
        if only:
            kept = scores[tokens]
            scores[:] = -torch.inf
            scores[tokens] = kept
        else:
            scores[tokens] = -torch.inf

    def _narrowed(self, ids: Sequence[int], state: bytes | None) -> CitationRule:
        """The rule of the documents that the text before the bracket speaks for."""
        if self.supported is None:
            return self
        written = b"".join(self.vocabulary.pieces[token] for token in ids)
        before = written if state is None else written[: written.rindex(b"[")]
        names = tuple(self.supported(before.decode(errors="replace")))
        if state and not any(f"{name}]".encode().startswith(state) for name in names):
            return self  # an id was begun before the statement was whole
        if names not in self.narrower:
            self.narrower[names] = CitationRule(self.vocabulary, names)
        return self.narrower[names]

    def state(self, ids: Sequence[int]) -> bytes | None:
        """What has been written since an open ``[``; None outside of brackets."""
        state: bytes | None = None
        for token in ids:
            found = self._after(state, self.vocabulary.pieces[token])
            state = found[0] if found is not None else None
        return state

    def _after(self, state: bytes | None, piece: bytes) -> tuple[bytes | None] | None:
        """The state after a piece, in a tuple; None if it breaks a citation."""
        inside = state is not None
        for byte in piece:
            if state is None:
                if byte == ord("["):
                    if inside:  # closes one citation and opens the next: needless, and could go on for ever
                        return None
                    state = b""
                continue
            state += bytes([byte])
            if not any(name.startswith(state) for name in self.names):
                return None
            if state in self.names:
                state = None
        return (state,)

    def _leads_on(self, state: bytes | None, token: int) -> bool:
        """Whether a token breaks nothing, and what it opens can be closed."""
        found = self._after(state, self.vocabulary.pieces[token])
        return found is not None and (found[0] is None or len(self._rule(found[0])[0]) > 0)

    def _rule(self, state: bytes | None) -> tuple[Tensor, bool]:
        """Token ids, and whether they are the only ones allowed (else those forbidden)."""
        if state not in self.known:
            if state is None:
                tokens = [token for token in self.vocabulary.opening if not self._leads_on(None, token)]
            else:
                following = {name[len(state)] for name in self.names if name.startswith(state)}
                starting = [token for byte in following for token in self.vocabulary.starting.get(byte, [])]
                tokens = [token for token in starting if self._leads_on(state, token)]
            self.known[state] = torch.tensor(tokens, dtype=torch.long), state is not None
        return self.known[state]

    def _must_be_writable(self, name: bytes) -> None:
        """Some way must lead from outside of brackets through the whole of ``name``."""
        pieces = self.vocabulary.pieces
        forbidden = set(self._rule(None)[0].tolist())
        outside: bytes | None = None
        ways = [(outside, token) for token in self.vocabulary.opening if token not in forbidden]
        seen: set[bytes | None] = set()
        while ways:
            state, token = ways.pop()
            if b"[" + name in (b"[" + state if state is not None else b"") + pieces[token]:
                return
            (after,) = self._after(state, pieces[token]) or (None,)
            if after is not None and name.startswith(after) and after not in seen:
                seen.add(after)
                ways += [(after, following) for following in self._rule(after)[0].tolist()]
        raise UserError(f"the decoder's tokens cannot write {name[:-1].decode()!r}", "Doc.id", "Use plain ids")


class Support:
    """Which documents speak for a statement: those that share most of its words, figures counting double.

    Args:
        docs: that may be cited.
    """

    def __init__(self, docs: Sequence[Doc]) -> None:
        self.words = {doc.id: set(_WORD.findall(f"{doc.title or ''} {doc.text}".casefold())) for doc in docs}

    def __call__(self, text: str) -> list[str]:
        """Ids for the last statement of a text; several if they share as much."""
        statement = _STATEMENT.search(text)
        wanted = set(_WORD.findall((statement[0] if statement else "").casefold()))
        worth = {name: _weight(wanted & words) for name, words in self.words.items()}
        most = max(worth.values(), default=0)
        return [name for name, weight in worth.items() if weight == most]


def _weight(shared: set[str]) -> int:
    return sum(2 if word.isdecimal() else 1 for word in shared)


def find_citations(answer: str, docs: Sequence[Doc], slots: Sequence[Slot]) -> list[Citation]:
    """The citations of an answer, in order; an unfinished one at its end is none.

    The evidence is the slot of the cited document that shares most with the statement before the citation: figures
    count double; of equal ones an expanded slot, then the one the gate rates higher. A slot beside it joins it if it
    holds a figure of the statement that is missing there.
    """
    texts = {doc.id: doc.text for doc in docs}
    found = []
    for bracket in re.finditer(r"\[([^\[\]]*)\]", answer):
        name = bracket[1]
        mine = [slot for slot in slots if slot.doc == name]
        if name not in texts:
            continue
        statement = _STATEMENT.search(answer, 0, bracket.start())
        wanted = set(_WORD.findall((statement[0] if statement else "").casefold()))
        text = texts[name]

        seen = [set(_WORD.findall(text[slot.start : slot.end].casefold())) for slot in mine]
        start, end = 0, len(text)
        if mine:
            ranks = [(_weight(wanted & seen[n]), slot.expanded, slot.score or 0.0, -n) for n, slot in enumerate(mine)]
            at = -max(ranks)[-1]
            missing = {word for word in wanted - seen[at] if word.isdecimal()}
            near = [n for n in (at - 1, at, at + 1) if n == at or (0 <= n < len(mine) and missing & seen[n])]
            start, end = whole_units(text, *_trimmed(text, mine[near[0]].start, mine[near[-1]].end))
        found.append(Citation(name, bracket.start(), start, end))
    return found


def whole_units(text: str, start: int, end: int) -> tuple[int, int]:
    """A span widened to the ends of the words and numbers that it cuts.

    Args:
        text: of the document.
        start: first character of the span.
        end: the character after its last.
    """
    return _border(text, start)[0], _border(text, end)[1]


def _border(text: str, at: int) -> tuple[int, int]:
    """Both ends of the word or number that a place lies inside of; the place itself if it lies in none."""
    low = max(0, at - _NEAR)
    for unit in _UNIT.finditer(text, low, at + _NEAR):
        if unit.start() < at < unit.end():
            return unit.start(), unit.end()
    return at, at


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without blanks at its ends."""
    part: Any = text[start:end]
    left = len(part) - len(part.lstrip())
    return start + left, max(start + left, start + len(part.rstrip()))
