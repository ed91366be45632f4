"""Readers: stories, JSONL, SciTLDR, text files, splits, malformed input, vectors through the cache."""

import gzip
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlab_shared.encoders import TinyEncoder
from latentlab_shared.errors import NeedsNetwork, UserError
from rsr_net.data import BadRows, Example, embed_examples, read_examples
from rsr_net.data.embed import CachedArticles, encode
from rsr_net.data.stories import article_id, hashed_split, make_example, parse_story
from rsr_net.sample import generate, write_stories

STORY = "First line of news.\n\nSecond line here.\n\n@highlight\n\nIt happened\n\n@highlight\n\nPeople were there.\n"


def rows(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


# -- stories -----------------------------------------------------------------------------------------------------


def test_story_has_article_and_highlights():
    assert parse_story(STORY) == ("First line of news.\nSecond line here.", ["It happened", "People were there."])


def test_windows_line_ends_and_byte_order_mark_change_nothing():
    assert parse_story("\ufeff" + STORY.replace("\n", "\r\n")) == parse_story(STORY)


def test_every_line_after_the_first_mark_is_a_highlight():
    article, highlights = parse_story("News.\n@highlight\nOne\nTwo\n\nThree\n")
    assert (article, highlights) == ("News.", ["One", "Two", "Three"])


def test_story_without_article_has_highlights_only():
    assert parse_story("@highlight\n\nLonely\n") == ("", ["Lonely"])


def test_missing_end_marks_are_added_and_others_kept():
    example = make_example("x", "News.", ["It happened", "Really?", 'He said "yes"', "Done."], "x")
    assert example.highlights == ("It happened.", "Really?", 'He said "yes"', "Done.")


def test_penn_treebank_tokens_are_undone():
    text = "-LRB- CNN -RRB- -- The town 's mayor said `` it is over . '' Nobody believed him , though . It rained ."
    example = make_example("x", text, ["The mayor said so . Nobody believed him ."], "x")
    assert example.sentences == ('The town\'s mayor said "it is over."', "Nobody believed him, though.", "It rained.")
    assert example.highlights == ("The mayor said so.", "Nobody believed him.")


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("(CNN)Share, and give.", "Share, and give."),
        ("(CNN) -- The storm came.", "The storm came."),
        ("LONDON, England (CNN) -- The storm came.", "The storm came."),
        ("BERLIN (Reuters) - The storm came.", "The storm came."),
        ("(WIRED)Screens are flat.", "Screens are flat."),
        (
            "By . Jo Doe . PUBLISHED: . 14:11 EST, 2 May 2013 . | . UPDATED: . 15:36 EST, 2 May 2013 . It rained.",
            "It rained.",
        ),
        ("By. Jo Doe. It rained.", "It rained."),
        ("PUBLISHED:. 07:04 EST, 9 January 2014. It rained.", "It rained."),
        ("By Jo alone it was done.", "By Jo alone it was done."),
        ("The CDU (Christian Democrats) won.", "The CDU (Christian Democrats) won."),
        ("The Party (CDU) won the vote.", "The Party (CDU) won the vote."),
    ],
)
def test_datelines_go_and_other_brackets_stay(text, first):
    assert make_example("x", text, [], "x").sentences[0] == first


def test_text_without_capitals_is_split_too():
    text = "mr. rose won the cup in the u.s. yesterday. ' i am happy, ' he said. it rained!"
    assert make_example("x", text, [], "x").sentences == (
        "mr. rose won the cup in the u.s. yesterday.",
        "' i am happy, ' he said.",
        "it rained!",
    )


def test_ids_are_the_sha1_of_the_address():
    # Known from the published lists and file names of CNN/DailyMail.
    assert article_id("http://web.archive.org/a\n") == article_id("http://web.archive.org/a")
    assert article_id("abc") == "a9993e364706816aba3e25717850c26c9cd0d89d"


@given(st.text(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_text_is_an_example_or_one_clear_line(text):
    try:
        example = make_example("x", text, text.splitlines(), "there")
    except UserError as error:
        assert "\n" not in str(error) and "there" in str(error)
        return
    assert example.sentences and all(s.strip() == s and s for s in example.sentences)
    assert all(line.strip() for line in example.highlights)


@given(st.lists(st.uuids().map(str), min_size=50, max_size=50, unique=True))
@settings(max_examples=20, deadline=None)
def test_a_hashed_split_does_not_depend_on_the_company(ids):
    alone = {i: hashed_split(i) for i in ids}
    assert alone == {i: hashed_split(i) for i in reversed(ids)}


def test_hashed_split_has_the_promised_sizes():
    parts = [hashed_split(str(i)) for i in range(4000)]
    assert abs(parts.count("valid") - 200) < 50 and abs(parts.count("test") - 200) < 50


# -- folders -----------------------------------------------------------------------------------------------------


def test_written_stories_are_read_back(tmp_path):
    made = {e.id: e for e in generate(12, seed=3)}
    write_stories(tmp_path, 12, seed=3)
    read = {e.id: e for e in read_examples(tmp_path, None)}
    assert read == made


def test_url_lists_decide_the_split_and_are_looked_for(tmp_path):
    urls = [f"http://news.example/{n}" for n in range(4)]
    for url in urls:
        (tmp_path / "stories").mkdir(exist_ok=True)
        (tmp_path / "stories" / f"{article_id(url)}.story").write_text(STORY)
    lists = tmp_path / "url_lists"
    lists.mkdir()
    (lists / "all_train.txt").write_text("\n".join(urls[:2]) + "\n")
    (lists / "all_val.txt").write_text(urls[2] + "\n")
    assert {e.id for e in read_examples(tmp_path, "train")} == {article_id(u) for u in urls[:2]}
    assert [e.id for e in read_examples(tmp_path, "valid")] == [article_id(urls[2])]
    with pytest.raises(UserError, match="all_test.txt"):
        list(read_examples(tmp_path, "test"))


def test_stories_without_lists_are_split_without_overlap(tmp_path):
    write_stories(tmp_path, 60)
    parts = {s: {e.id for e in read_examples(tmp_path, s)} for s in ("train", "valid", "test")}
    assert sum(map(len, parts.values())) == 60 == len(set().union(*parts.values()))


def test_empty_stories_are_counted_and_left_out(tmp_path):
    (tmp_path / "a.story").write_text(STORY)
    (tmp_path / "b.story").write_text("@highlight\n\nNo article\n")
    bad = BadRows()
    assert [e.id for e in read_examples(tmp_path, None, bad=bad)] == ["a"]
    assert bad.without_article == 1 and bad.count == 0


def test_jsonl_parts_go_by_file_name_and_shards_by_number(tmp_path):
    article = {"article": "News came.", "highlights": "It came."}
    for name in ("train-00000", "train-00001", "val", "short_train"):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.write(json.dumps({"id": name, **article}) + "\n")
    assert [e.id for e in read_examples(tmp_path, "train")] == ["train-00000", "train-00001"]
    assert [e.id for e in read_examples(tmp_path, "valid")] == ["val"]
    with pytest.raises(UserError, match="no test part; it has: train, valid"):
        list(read_examples(tmp_path, "test"))


def test_highlights_are_lines_or_a_list(tmp_path):
    path = rows(
        tmp_path / "x.jsonl",
        {"id": 1, "article": "News.", "highlights": "One\nTwo"},
        {"id": 2, "article": ["News.", "More."], "highlights": ["One", "Two"]},
        {"article": "News."},
    )
    read = list(read_examples(path, None))
    assert [e.highlights for e in read] == [("One.", "Two."), ("One.", "Two."), ()]
    assert [e.id for e in read] == ["1", "2", "x-3"]
    assert read[1].sentences == ("News.", "More.")


def test_scitldr_rows_take_the_first_summary(tmp_path):
    path = rows(tmp_path / "x.jsonl", {"paper_id": "p", "source": ["We do A.", "It works."], "target": ["A.", "B."]})
    assert list(read_examples(path, None)) == [Example("p", ("We do A.", "It works."), ("A.",))]


def test_limit_stops_reading_before_a_bad_row(tmp_path):
    path = rows(tmp_path / "x.jsonl", {"article": "News."}, "{")
    assert len(list(read_examples(path, None, limit=1))) == 1


def test_text_files_and_folders_have_no_highlights(tmp_path):
    (tmp_path / "b.txt").write_text("B came.")
    (tmp_path / "a.txt").write_text("A came. A went.")
    assert [(e.id, len(e.sentences), e.highlights) for e in read_examples(tmp_path, None)] == [
        ("a", 2, ()),
        ("b", 1, ()),
    ]


# -- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "JSON"),
        ("[1]", "not an object"),
        ('{"text": "x"}', "neither article nor source"),
        ('{"article": 3}', "neither a string nor a list"),
        ('{"article": "...", "highlights": "x"}', "no article text"),
        ('{"article": "x", "highlights": [1]}', "neither a string nor a list"),
        (r'{"article": "x \ud800"}', "half a character"),
        (r'{"id": "\ud800", "article": "x"}', "half a character"),
        ('{"article": "x", "id": %s}' % ("7" * 5000), "thousands of digits"),
        ('{"article": "x", "id": [1]}', "id is neither"),
        ('{"article": "%s"}' % ("x" * 9 * 2**20), "longer than 4 MiB"),
    ],
    ids=lambda value: value[:40],  # some rows are long
)
def test_a_malformed_row_is_named_by_file_and_line_and_can_be_skipped(tmp_path, row, said):
    path = rows(tmp_path / "x.jsonl", {"article": "News."}, row, {"article": "More."})
    with pytest.raises(UserError, match=said) as caught:
        list(read_examples(path, None))
    assert f"{path}:2" in str(caught.value) and "\n" not in str(caught.value)
    bad = BadRows(skip=True)
    assert [e.article for e in read_examples(path, None, bad=bad)] == ["News.", "More."]
    assert bad.count == 1 and f"{path}:2" in bad.first[0]


@pytest.mark.parametrize(
    ("raw", "said"), [(b"", "empty"), (b" \n\t", "empty"), (b"a\x00b", "not text"), (b"caf\xe9", "not UTF-8")]
)
def test_unreadable_text_files_get_one_line(tmp_path, raw, said):
    path = tmp_path / "x.txt"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=said) as caught:
        list(read_examples(path, None))
    assert str(path) in str(caught.value) and caught.value.exit_code == 2


def test_other_faults_of_a_source_get_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        list(read_examples(tmp_path / "absent", None))
    with pytest.raises(UserError, match="holds no data"):
        list(read_examples(tmp_path, None))
    (tmp_path / "e.jsonl").touch()
    with pytest.raises(UserError, match="empty"):
        list(read_examples(tmp_path / "e.jsonl", None))
    (tmp_path / "huge.txt").write_bytes(b"word " * 2**20)
    with pytest.raises(UserError, match="too large"):
        list(read_examples(tmp_path / "huge.txt", None))
    (tmp_path / "long.jsonl").write_bytes(b"x" * (5 * 2**20))
    with pytest.raises(UserError, match=r"long.jsonl:1.*longer than 4 MiB"):
        list(read_examples(tmp_path / "long.jsonl", None))
    with pytest.raises(UserError, match="not a part"):
        read_examples(tmp_path, "dev")


def test_what_never_ends_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (Path("/dev/zero"), tmp_path / "pipe.jsonl"):
        with pytest.raises(UserError, match="not a file"):
            list(read_examples(path, None))
    with pytest.raises(UserError, match="no such file"):
        read_examples("A whole article. " * 99, None)


@pytest.mark.parametrize(("line", "said"), [(b"\n", "empty lines in a row"), (b"x" * 2**20 + b"\n", "too large")])
def test_bombs_are_refused_even_where_bad_rows_are_skipped(tmp_path, line, said):
    path = tmp_path / "x.jsonl.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(66 * 2**20 // 2**20):
            file.write(line * (2**20 // len(line) or 1))
    with pytest.raises(UserError, match=said):
        list(read_examples(path, None, bad=BadRows(skip=True)))


def test_stories_are_looked_for_two_folders_deep_and_names_need_not_be_utf_8(tmp_path):
    deep = tmp_path / "cnn" / "stories" / "more"
    deep.mkdir(parents=True)
    for name in ("a", "cnn/b", "cnn/stories/c", "cnn/stories/more/d", "caf\udce9"):
        (tmp_path / f"{name}.story").write_text("News came.")
    assert [e.id for e in read_examples(tmp_path, None)] == ["a", "b", "c", "caf\\udce9"]


@pytest.mark.parametrize(("files", "said"), [(1, "Give a UTF-8 text file"), (2, "--skip-bad")])
def test_the_advice_fits_a_file_alone_or_one_of_many(tmp_path, files, said):
    for number in range(files):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(UserError, match=said):
        list(read_examples(tmp_path / "0.txt" if files == 1 else tmp_path, None))


def test_a_cut_gzip_is_reported_with_the_last_good_line(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    lines = "".join(json.dumps({"article": f"News {n} came from the {n * 7919} sea."}) + "\n" for n in range(3000))
    path.write_bytes(gzip.compress(lines.encode())[:-2000])
    with pytest.raises(UserError, match=r"damaged after line \d+"):
        list(read_examples(path, None))


def test_a_dataset_is_read_through_datasets(tmp_path):
    pytest.importorskip("datasets", reason="the extra hub is not installed")
    for part in ("train", "validation"):
        rows(tmp_path / f"{part}.jsonl", {"id": part, "article": "News came.", "highlights": "One .\nTwo ."})
    assert list(read_examples(f"hub:{tmp_path}", "valid")) == [Example("validation", ("News came.",), ("One.", "Two."))]


def test_no_network_is_one_line_that_names_the_offline_ways(monkeypatch):
    pytest.importorskip("datasets", reason="the extra hub is not installed")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NeedsNetwork, match="--data sample") as caught:
        list(read_examples("hub:abisee/cnn_dailymail", "train"))
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # what Python does for a module that cannot be imported
    with pytest.raises(UserError, match=r'pip install "latentlab-rsr-net\[hub\]"'):
        list(read_examples("hub:abisee/cnn_dailymail", "train"))


# -- vectors -----------------------------------------------------------------------------------------------------


class CountingEncoder:
    """A tiny encoder that remembers what it was asked."""

    def __init__(self) -> None:
        self.inner, self.asked = TinyEncoder(dim=16), []
        self.dim, self.fingerprint = self.inner.dim, self.inner.fingerprint

    def encode(self, texts):
        self.asked += list(texts)
        return self.inner.encode(texts)


def test_vectors_are_those_of_the_texts_one_by_one():
    examples = generate(5, seed=1)
    encoder = TinyEncoder(dim=16)
    for example, got in zip(examples, embed_examples(examples, encoder, group=2), strict=True):
        np.testing.assert_allclose(got.doc, encoder.encode([example.article])[0], atol=1e-6)
        np.testing.assert_allclose(got.lead, encoder.encode([example.lead])[0], atol=1e-6)
        np.testing.assert_allclose(got.target, encoder.encode([example.summary])[0], atol=1e-6)
        for row, sentence in zip(got.sentences, example.sentences, strict=True):
            np.testing.assert_allclose(row, encoder.encode([sentence])[0], atol=1e-6)


def test_each_text_is_embedded_once_per_group_and_once_ever_with_a_cache(tmp_path):
    from latentlab_shared.embeddings import EmbeddingCache

    examples, encoder = [*generate(6), *generate(6)], CountingEncoder()
    with EmbeddingCache(tmp_path / "c", encoder.fingerprint, encoder.dim) as cache:
        first = list(embed_examples(examples, encoder, cache, group=4))
        assert len(encoder.asked) == len(set(encoder.asked))
        encoder.asked.clear()
        second = list(embed_examples(reversed(examples), encoder, cache, group=5))
        assert encoder.asked == []
    for a, b in zip(first, reversed(second), strict=True):
        np.testing.assert_array_equal(a.sentences, b.sentences)


def test_articles_too_many_for_memory_are_read_from_the_cache(tmp_path):
    from latentlab_shared.embeddings import EmbeddingCache

    examples, encoder = generate(7), TinyEncoder(dim=16)
    with EmbeddingCache(tmp_path / "c", encoder.fingerprint, encoder.dim) as cache:
        there = list(embed_examples(examples, encoder, cache))
        lazy = CachedArticles(examples, cache)
        assert len(lazy) == 7 and [a.id for a in lazy[2:5]] == [e.id for e in examples[2:5]]
        for ours, theirs in zip(lazy, there, strict=True):
            for field in ("doc", "lead", "sentences", "target"):
                np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
        with pytest.raises(UserError, match="not in the cache"):
            CachedArticles(generate(1, seed=99), cache)[0]


def test_examples_without_highlights_get_no_target():
    (article,) = embed_examples([Example("x", ("One.", "Two."))], TinyEncoder(dim=16))
    assert article.target is None and article.sentences.shape == (2, 16)


def test_encode_keeps_the_order():
    encoder = TinyEncoder(dim=16)
    np.testing.assert_array_equal(encode(["b c", "a"], encoder)[::-1], encode(["a", "b c"], encoder))
