"""A conversation in a terminal: answers as they are written, from passages that each question finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

from latentlab_shared.errors import CONTROLS, UserError
from refrag.inference.generator import RefragGenerator, greedy
from refrag.model.documents import Doc, Message
from refrag.model.gate import Budget
from refrag.pipeline import model_folder
from refrag.serving.library import Found, Library, Retriever

HELP = "/docs [FILE or FOLDER]  /k N  /budget SHARE  /sources  /history  /clear  /quit"


class Chat:
    """The state of a conversation.

    Args:
        generator: the model.
        library: what answers come from.
        share: of the chunks that may be shown as tokens.
        new_tokens: of an answer.
        top: passages for each question.
        out: where to write.
    """

    def __init__(
        self, generator: RefragGenerator, library: Library, share: float, new_tokens: int, top: int, out: TextIO
    ) -> None:
        self.generator, self.library, self.out = generator, library, out
        self.budget, self.new_tokens, self.top = Budget(fraction=share), new_tokens, top
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
        if not len(self.library):
            raise UserError("there are no documents", "chat", "Add some: /docs FILE")
        found = self._found(question)
        if not found:
            raise UserError("no passage has a word of this question", "chat", "Ask in the documents' words")
        docs = [hit.passage.doc for hit in found]
        messages = self._that_fit([*self.history, {"role": "user", "content": question}], docs)
        answer = self.generator.answer(
            messages,
            docs,
            budget=self.budget,
            compression=self.compression,
            generation=greedy(self.new_tokens),
            on_text=lambda piece: self._say(piece.translate(CONTROLS), end=""),
        )
        self._say("")
        by_id = {hit.passage.doc.id: hit.passage for hit in found}
        self.sources = []
        for citation in answer.citations:
            passage = by_id[citation.doc]
            text = " ".join(passage.doc.text[citation.start : citation.end].split())
            at = passage.start + citation.start
            told = f"[{citation.doc}] {passage.source}, character {at}: {text}".translate(CONTROLS)
            self.sources += [told] if told not in self.sources else []
        self.history = [*messages, {"role": "assistant", "content": answer.text}]
        for source in self.sources:
            self._say(f"  {source}")

    def _found(self, question: str) -> list[Found]:
        """Passages for a question; one that finds none by itself ("and the other one?") is read with the one before."""
        found = self.library.search(question, self.top)
        before = [message["content"] for message in self.history if message["role"] == "user"]
        return found or (self.library.search(f"{before[-1]} {question}", self.top) if before else [])

    def _that_fit(self, messages: list[Message], docs: list[Doc]) -> list[Message]:
        """The conversation without its oldest turns, where the decoder has not the room for all."""
        room = self.generator.model.room
        while room is not None and len(messages) > 1:
            window = self.generator.window(messages, docs, budget=self.budget, compression=self.compression)
            if len(window.embeddings) + self.new_tokens <= room:
                break
            messages = messages[2:]
        return messages

    def _command(self, word: str, rest: str) -> None:
        if word == "/docs" and rest:
            added = self.library.add_path(Path(rest).expanduser())
            self._say(f"{added} passages added")
        elif word == "/docs":
            for passage in self.library.passages:
                doc = passage.doc
                told = f"[{doc.id}] {doc.title or ''} ({passage.source}, {len(doc.text)} characters)"
                self._say(told.translate(CONTROLS))
        elif word == "/k" and rest.isdecimal() and 1 <= int(rest) <= 256:
            self.compression = int(rest)
        elif word == "/k":
            raise UserError(f"{rest!r} is no number of tokens", "/k", "For example: /k 8")
        elif word == "/budget":
            try:
                self.budget = Budget(fraction=float(rest))
            except ValueError:
                raise UserError(f"{rest!r} is no share", "/budget", "For example: /budget 0.25") from None
        elif word == "/sources":
            for source in self.sources:
                self._say(source)
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


def chat_on(
    lines: TextIO,
    out: TextIO,
    model: Path,
    documents: str | None,
    *,
    retriever: Retriever = "bm25",
    encoder: str = "minilm",
    top: int = 4,
    share: float = 0.25,
    new_tokens: int = 64,
    cache: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Answer lines until they end or say ``/quit``.

    Args:
        lines: of the user; a terminal is shown a prompt.
        out: where to write.
        model: a saved model, or a run folder.
        documents: a folder or a file, see ``Library``; without one, documents of the built-in facts.
        retriever: see ``Library``.
        encoder: see ``Library``.
        top: passages for each question.
        share: of the chunks that may be shown as tokens.
        new_tokens: of an answer.
        cache: a folder that keeps vectors of chunks, and of passages if retrieval is dense.
        device: "auto" or a device.

    Raises:
        UserError: if there is no model, or a document cannot be read.
    """
    library = Library(retriever, encoder, cache and cache / "passages")
    if documents is None:
        from refrag.sample.facts import generate

        example = generate(1, 1, docs=9)[0]
        library.add_docs(example.docs)
        out.write(f"No documents given: these are built in. Try: {example.question}\n")
    else:
        library.add_path(Path(documents))
    generator = RefragGenerator.from_pretrained(model_folder(model), cache=cache and cache / "chunks", device=device)
    chat = Chat(generator, library, share, new_tokens, top, out)
    asked = lines.isatty() and out.isatty()
    turns = 0
    while True:
        if asked:
            out.write("> ")
            out.flush()
        line = lines.readline()
        if not line or not chat.turn(line):
            return {"turns": turns}
        turns += 1
