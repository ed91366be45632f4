"""A conversation in a terminal: answers as they are written, with what they cite."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

from latentlab_shared.errors import CONTROLS, UserError
from refrag.inference.generator import RefragGenerator, greedy
from refrag.model.documents import Doc, Message
from refrag.model.gate import Budget
from refrag.pipeline import model_folder

HELP = "/docs [FILE]  /k N  /budget SHARE  /sources  /history  /clear  /quit"


class Chat:
    """The state of a conversation.

    Args:
        generator: the model.
        docs: what answers come from.
        share: of the chunks that may be shown as tokens.
        new_tokens: of an answer.
        out: where to write.
    """

    def __init__(self, generator: RefragGenerator, docs: list[Doc], share: float, new_tokens: int, out: TextIO) -> None:
        self.generator, self.docs, self.out = generator, docs, out
        self.share, self.new_tokens = share, new_tokens
        self.compression: int | None = None
        self.history: list[Message] = []
        self.sources: list[str] = []

    def turn(self, line: str) -> bool:
        """One line of the user's; False ends the conversation."""
        word, _, rest = line.strip().partition(" ")
        if word in ("/quit", "quit", "exit"):
            return False
        if not word:
            return True
        try:
            if word.startswith("/"):
                self._command(word, rest.strip())
            else:
                self._ask(line.strip())
        except UserError as error:
            self._say(f"error: {error}")
        return True

    def _ask(self, question: str) -> None:
        if not self.docs:
            raise UserError("there are no documents", "chat", "Add one: /docs FILE")
        messages: list[Message] = [*self.history, {"role": "user", "content": question}]
        answer = self.generator.answer(
            messages,
            self.docs,
            budget=Budget(fraction=self.share),
            compression=self.compression,
            generation=greedy(self.new_tokens),
            on_text=lambda piece: self._say(piece.translate(CONTROLS), end=""),
        )
        self._say("")
        texts = {doc.id: doc.text for doc in self.docs}
        self.sources = [f"[{c.doc}] {texts[c.doc][c.start : c.end]}" for c in answer.citations]
        self.history = [*messages, {"role": "assistant", "content": answer.text}]
        for source in self.sources:
            self._say(f"  {source.translate(CONTROLS)}")

    def _command(self, word: str, rest: str) -> None:
        if word == "/docs" and rest:
            self.docs.append(read_document(Path(rest), len(self.docs) + 1))
        elif word == "/docs":
            for doc in self.docs:
                self._say(f"[{doc.id}] {doc.title or ''} ({len(doc.text)} characters)")
        elif word == "/k" and rest.isdigit() and int(rest) > 0:
            self.compression = int(rest)
        elif word == "/budget":
            try:
                share = float(rest)
            except ValueError:
                raise UserError(f"{rest!r} is no share", "/budget", "For example: /budget 0.25") from None
            self.share = share if Budget(fraction=share) else 0.0
        elif word == "/sources":
            for source in self.sources:
                self._say(source.translate(CONTROLS))
        elif word == "/history":
            for message in self.history:
                self._say(f"{message['role']}: {message['content']}".translate(CONTROLS))
        elif word == "/clear":
            self.history, self.sources = [], []
        else:
            self._say(HELP)

    def _say(self, text: str, end: str = "\n") -> None:
        self.out.write(text + end)
        self.out.flush()


def read_document(path: Path, number: int) -> Doc:
    """A text file as a document.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return Doc(str(number), path.read_text(encoding="utf-8"), path.stem)
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start})", path) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", path) from None


def chat_on(
    lines: TextIO, out: TextIO, model: Path, documents: str | None, share: float, new_tokens: int
) -> dict[str, Any]:
    """Answer lines until they end or say ``/quit``.

    Args:
        lines: of the user.
        out: where to write.
        model: a saved model, or a run folder.
        documents: a folder of .txt files; without one, documents of the built-in facts.
        share: of the chunks that may be shown as tokens.
        new_tokens: of an answer.

    Raises:
        UserError: if there is no model, or a document cannot be read.
    """
    generator = RefragGenerator.from_pretrained(model_folder(model))
    if documents is None:
        from refrag.sample.facts import generate

        example = generate(1, 1)[0]
        docs = list(example.docs)
        out.write(f"No documents given: these are built in. Try: {example.question}\n")
    else:
        docs = [read_document(path, n) for n, path in enumerate(sorted(Path(documents).glob("*.txt")), start=1)]
    chat = Chat(generator, docs, share, new_tokens, out)
    turns = 0
    for line in lines:
        if not chat.turn(line):
            break
        turns += 1
    return {"turns": turns}
