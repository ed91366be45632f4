"""The conversation in a terminal: answers, commands, what is found for a question, faults that do not end it."""

import gzip
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refrag_models import make_model, make_tokenizer
from refrag_tokenizers import SENTENCES

from latentlab_shared.errors import UserError
from refrag.framework.apps.chatcli import chat_on
from refrag.inference.generator import RefragGenerator
from refrag.model.documents import Doc
from refrag.serving.library import Library, cut, read_sources


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    home = tmp_path_factory.mktemp("model")
    RefragGenerator(make_model(), make_tokenizer(compression=8)).save_pretrained(home)
    return home


def said(model, documents, *lines, **options):
    out = io.StringIO()
    given_lines = io.StringIO("\n".join(lines) + "\n")
    found = chat_on(given_lines, out, model, documents, share=0.25, new_tokens=4, **options)
    return found, out.getvalue()


@pytest.fixture
def texts(tmp_path):
    for n, text in enumerate(SENTENCES[:3]):
        (tmp_path / f"{n}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_conversation(model, texts):
    (texts / "more.jsonl").write_text(json.dumps({"text": "It is no text file.", "title": "Rows"}))
    word = SENTENCES[0].split()[1]
    lines = (f"What of {word}?", "/k 4", "/budget 0.5", "And now?", "/history", "/sources", "/docs")
    found, out = said(model, texts, *lines, "/clear", "/history", "/quit", "never read")
    assert found == {"turns": 9}
    assert out.count(f"user: What of {word}?") == 1 and "user: And now?" in out, out
    assert "[4] Rows (more.jsonl:1, 19 characters)" in out


def test_documents_can_be_added(model, texts, tmp_path_factory):
    more = tmp_path_factory.mktemp("more") / "mill.md"
    more.write_text("The mill count of Belford is 4711.")
    _, out = said(model, texts, f"/docs {more}", "What is the mill count?", "/docs")
    assert "1 passages added" in out and "[4] mill (mill.md," in out and "error" not in out


def test_a_long_conversation_forgets_its_oldest_turns(model, texts):
    room = RefragGenerator.from_pretrained(model).model.room
    word = SENTENCES[0].split()[1]
    long = f"What of {word}? " + "Really? " * 40
    found, out = said(model, texts, *[long] * 8, "/history")
    assert found == {"turns": 9} and "error" not in out and 0 < out.count("user: ") < 8, (room, out)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/docs absent.txt", "cannot be read"),
        ("/budget much", "no share"),
        ("/budget 7", "no budget"),
        ("/k", "/k 8"),
        ("/k 1000", "/k 8"),
        ("/what", "/quit"),
        ("zyx", "no passage has a word"),
    ],
)
def test_faults_do_not_end_it(model, line, message):
    found, out = said(model, None, line, "/docs")
    assert message in out and found == {"turns": 2} and "[" in out.splitlines()[-1]


# -- the library -------------------------------------------------------------------------------------------------------

TEXTS = [
    ("The mill count of Belford is 4711.", "Belford", "a"),
    ("Fog is common in spring.", None, "b"),
    ("The choir of Dunbury sings in the mill.", None, "c"),
]


def test_words_find_passages():
    library = Library()
    assert library.search("mill", 3) == [] and library.add(TEXTS) == 3
    found = library.search("What is the MILL count of Belford?", 3)
    assert [hit.passage.source for hit in found][0] == "a" and found[0].score > found[1].score > 0
    assert [hit.passage.doc.id for hit in library.search("fog", 3)] == ["2"]
    assert library.search("zyx ?", 3) == [] and library.search("", 3) == []
    library.add_docs([Doc("x", "zyx")])
    assert [hit.passage.doc.id for hit in library.search("zyx", 3)] == ["x"]


def test_bm25_is_the_formula():
    """Lucene's BM25 with k1 = 1.5 and b = 0.75, word by word."""
    import math

    rows = [f"{title or ''} {text}".casefold().replace(".", "").split() for text, title, _ in TEXTS]
    mean = sum(map(len, rows)) / len(rows)
    query = ["mill", "belford"]

    def score(row):
        total = 0.0
        for word in query:
            held = sum(word in other for other in rows)
            idf = math.log(1 + (len(rows) - held + 0.5) / (held + 0.5))
            tf = row.count(word)
            total += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(row) / mean))
        return total

    library = Library()
    library.add(TEXTS)
    found = {hit.passage.source: hit.score for hit in library.search("mill belford", 3)}
    assert found == pytest.approx({s: score(r) for (_, _, s), r in zip(TEXTS, rows, strict=True) if score(r)}, rel=1e-4)


def test_vectors_find_passages_and_are_kept(tmp_path, monkeypatch):
    library = Library("dense", "tiny", tmp_path / "cache")
    library.add(TEXTS)
    assert library.search("mill count of Belford", 1)[0].passage.source == "a"
    again = Library("dense", "tiny", tmp_path / "cache")
    asked, encode = [], type(again._index._encoder).encode

    def recorded(self, texts):
        asked.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(type(again._index._encoder), "encode", recorded)
    again.add(TEXTS)
    assert asked == []  # all from the cache
    assert again.search("mill count of Belford", 1)[0].score == pytest.approx(
        library.search("mill count of Belford", 1)[0].score, abs=1e-2
    )


@given(st.text(alphabet=st.sampled_from("ab. \n\tÄ😀"), max_size=400), st.integers(5, 60))
def test_passages_cover_a_text_and_are_no_longer_than_asked(text, size):
    spans = cut(text, size)
    kept = set()
    for start, end in spans:
        assert 0 <= start < end <= len(text) and end - start <= 2 * size and text[start:end] == text[start:end].strip()
        assert not kept.intersection(range(start, end))
        kept.update(range(start, end))
    assert all(text[n].isspace() for n in range(len(text)) if n not in kept)


def test_sources_of_all_kinds(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone", encoding="utf-8")
    (tmp_path / "b.bin").write_bytes(b"\xff")
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write('{"text": "two", "id": 7}\n\n{"text": "three"}\n')
    found = list(read_sources(tmp_path))
    assert found == [("one", "a", "a.txt"), ("two", "7", "c.jsonl.gz:1"), ("three", None, "c.jsonl.gz:3")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff", "not UTF-8 text"),
        ("a.jsonl", b'{"text": 1}', "a.jsonl:1: no document"),
        ("a.jsonl", b'{"text": "x"}\n[]', "a.jsonl:2: no JSON object"),
        ("a.jsonl.gz", b"no gzip", "is damaged"),
        ("b.bin", b"x", "no documents here"),
    ],
)
def test_sources_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_sources(tmp_path))


def test_an_unknown_retriever():
    with pytest.raises(UserError, match="Use bm25 or dense"):
        Library("magic")
