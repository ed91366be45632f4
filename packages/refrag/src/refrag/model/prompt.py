"""What stands around the documents: the decoder's chat template, or plain words for a decoder that has none.

The template is filled with marks; only its own text may hold special tokens. What people wrote is put in afterwards as
plain tokens, so it can forge neither turns nor documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latentlab_shared.errors import UserError
from refrag.model.documents import Message, require_text
from refrag.model.tokenization_refrag import RefragTokenizer

_DOCUMENTS = -1  # the mark at which documents stand


def frame(messages: Sequence[Message], tokenizer: RefragTokenizer) -> tuple[list[int], list[int]]:
    """Decoder tokens before and after the documents, which stand at the start of the last message.

    Args:
        messages: the conversation; the last one is the user's question.
        tokenizer: whose decoder side has the chat template, or has none.

    Raises:
        UserError: if there is no question, a message is no text, or the template takes no such conversation.
    """
    _check(messages)
    words: Any = tokenizer.decoder_tokenizer
    pieces = _template(words, messages) if words.chat_template else _plain(messages)
    before: list[int] = []
    after: list[int] = []
    side = before
    for piece in pieces:
        if piece == _DOCUMENTS:
            side = after
        elif isinstance(piece, int):
            side += tokenizer.decoder_ids(messages[piece]["content"])
        else:
            side += words.encode(piece, add_special_tokens=False, verbose=False)
    if not words.chat_template and words.bos_token_id is not None:
        before.insert(0, words.bos_token_id)
    return before, after


def _check(messages: object) -> None:
    """Callers may have no types."""
    if not isinstance(messages, Sequence):
        require_text(messages, "question")
    elif not messages or not all(isinstance(m, Mapping) for m in messages) or messages[-1].get("role") != "user":
        raise UserError("the last message is not a question", "messages", "End with a message of the role user")
    else:
        for message in messages:
            require_text(message.get("content"), "question")
        if not messages[-1]["content"].strip():
            raise UserError("the question is empty", "question")


def _plain(messages: Sequence[Message]) -> list[str | int]:
    """Documents, earlier turns, question."""
    pieces: list[str | int] = [_DOCUMENTS]
    for n, message in enumerate(messages):
        name = "Question" if n == len(messages) - 1 else message["role"].capitalize()
        pieces += [f"{name}: ", n, "\n"]
    return [*pieces, "Answer:"]


def _template(words: Any, messages: Sequence[Message]) -> list[str | int]:
    """The template's text, cut at the messages' contents."""
    marks = [_mark(n, messages) for n in range(len(messages) + 1)]
    filled = [{"role": m["role"], "content": marks[n]} for n, m in enumerate(messages)]
    filled[-1]["content"] = marks[-1] + marks[len(messages) - 1]
    ways = [filled]
    if filled[0]["role"] == "system" and len(filled) > 1:
        # Some templates know no system role: what it says then opens the first turn.
        joined = {"role": filled[1]["role"], "content": f"{filled[0]['content']}\n\n{filled[1]['content']}"}
        ways.append([joined, *filled[2:]])
    text = _applied(words, ways)
    pieces: list[str | int] = [text]
    for n, mark in enumerate(marks):
        place = _DOCUMENTS if n == len(messages) else n
        at = next((k for k, piece in enumerate(pieces) if isinstance(piece, str) and mark in piece), None)
        if at is None:
            raise UserError("the decoder's chat template leaves a message out", "messages")
        left, _, right = str(pieces[at]).partition(mark)
        pieces[at : at + 1] = [left, place, right]
    return [piece for piece in pieces if piece != ""]


def _applied(words: Any, ways: list[list[dict[str, str]]]) -> str:
    """The template filled with the first of some conversations that it takes."""
    line = ""
    for messages in ways:
        try:
            found = words.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except Exception as error:  # jinja's own, and whatever a template raises
            line = line or " ".join(str(error).split())[:160]
        else:
            return str(found)
    raise UserError(f"the decoder's chat template refuses these messages ({line})", "messages")


def _mark(n: int, messages: Sequence[Message]) -> str:
    """A text that stands in no message."""
    mark = f"@@{n}@@"
    while any(mark in message["content"] for message in messages):
        mark = f"@{mark}@"
    return mark
