"""The conversation in a terminal: answers, commands, faults that do not end it."""

import io

import pytest
from refrag_models import make_model, make_tokenizer
from refrag_tokenizers import SENTENCES

from refrag.framework.apps.chatcli import chat_on
from refrag.inference.generator import RefragGenerator


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    home = tmp_path_factory.mktemp("model")
    RefragGenerator(make_model(), make_tokenizer(compression=8)).save_pretrained(home)
    return home


def said(model, documents, *lines):
    out = io.StringIO()
    found = chat_on(io.StringIO("\n".join(lines) + "\n"), out, model, documents, 0.25, 4)
    return found, out.getvalue()


def test_a_conversation(model, tmp_path):
    for n, text in enumerate(SENTENCES[:2]):
        (tmp_path / f"{n}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "more.md").write_text("No .txt, but it can be added.")
    lines = ("How old?", "/k 4", "/budget 0.5", "And now?", "/history", f"/docs {tmp_path / 'more.md'}", "/docs")
    found, out = said(model, tmp_path, *lines, "/clear", "/history", "/quit", "never read")
    assert found == {"turns": 9}
    assert out.count("user: How old?") == 1 and "user: And now?" in out and "[3] more (" in out


@pytest.mark.parametrize(
    ("line", "message"),
    [("/docs absent.txt", "cannot be read"), ("/budget much", "no share"), ("/budget 7", "no budget"), ("/k", "/quit")],
)
def test_faults_do_not_end_it(model, line, message):
    found, out = said(model, None, line, "/docs")
    assert message in out and found == {"turns": 2} and "[" in out.splitlines()[-1]


def test_no_documents_no_answer(model, tmp_path):
    _, out = said(model, tmp_path, "Who?")
    assert "there are no documents" in out
