"""A corpus aligned into parts: whole, resumable, the same on any number of ranks."""

import gzip
import json

import pytest
from refrag_tokenizers import SENTENCES, tokenizer

from latentlab_shared.errors import UserError
from refrag.model.tokenizer.alignment import align
from refrag.training.alignments import precompute_alignments, read_alignments, read_texts


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for text in SENTENCES:
            file.write(json.dumps({"text": text}) + "\n")
    return path


def run(corpus, folder, **options):
    return precompute_alignments(corpus, folder, tokenizer("wordpiece"), tokenizer("gpt2"), part_rows=2, **options)


def test_what_is_read_is_what_align_gives(corpus, tmp_path):
    done = run(corpus, tmp_path / "out")
    rows = list(read_alignments(tmp_path / "out"))
    assert done["texts"] == len(rows) == len(SENTENCES)
    for index, (row, text) in enumerate(zip(rows, SENTENCES, strict=True)):
        found = align(text, tokenizer("wordpiece"), tokenizer("gpt2"))
        assert row.index == index and row.anchors == found.anchors
        assert (row.encoder_ids, row.decoder_ids) == (found.encoder.ids, found.decoder.ids)


def test_a_killed_run_goes_on_and_ranks_share_the_work(corpus, tmp_path, monkeypatch):
    run(corpus, tmp_path / "alone")
    monkeypatch.setenv("WORLD_SIZE", "3")
    total = 0
    for rank in (2, 0, 1):
        monkeypatch.setenv("RANK", str(rank))
        total += run(corpus, tmp_path / "shared")["texts"]
    assert total == len(SENTENCES)
    (tmp_path / "shared" / "part-000001.parquet").unlink()  # as a kill before its rename would
    monkeypatch.setenv("RANK", "0"), monkeypatch.setenv("WORLD_SIZE", "1")
    assert run(corpus, tmp_path / "shared")["texts"] == 2
    assert list(read_alignments(tmp_path / "shared")) == list(read_alignments(tmp_path / "alone"))


def test_another_plan_is_refused(corpus, tmp_path):
    run(corpus, tmp_path / "out")
    with pytest.raises(UserError, match="another strict"):
        run(corpus, tmp_path / "out", strict=True)
    with pytest.raises(UserError, match="another limit"):
        run(corpus, tmp_path / "out", limit=3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        run(corpus, tmp_path / "full")


def test_limit(corpus, tmp_path):
    assert run(corpus, tmp_path / "out", limit=3)["texts"] == 3
    assert len(list(read_alignments(tmp_path / "out"))) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', r"a\.jsonl:2: no text under 'text'"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl:1"),
        ("a.jsonl", b"nonsense\n", "a.jsonl:1"),
        ("a.txt", b"ok\n\xff\n", "not UTF-8"),
        ("a.csv", b"a,b\n", r"\.csv is not read"),
    ],
)
def test_bad_input_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_texts(tmp_path / name))


def test_bad_input_writes_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_text("nonsense\n")
    for source in (tmp_path / "a.jsonl", tmp_path / "absent.txt"):
        with pytest.raises(UserError):
            run(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_an_empty_folder_has_no_alignments(tmp_path):
    with pytest.raises(UserError, match="no alignments"):
        list(read_alignments(tmp_path))
