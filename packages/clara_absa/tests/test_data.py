"""Readers, splits and the generated sentences: offsets hold, faults are named, nothing held out is trained on."""

import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_absa.configs import POLARITIES, Aspect, Example
from clara_absa.data_utils import drop_held_out, merge_sentences, read_file, read_part, write_jsonl
from clara_absa.data_utils.readers import parse_inline
from clara_absa.data_utils.splits import sentence_key
from clara_absa.sample.generator import demo, generate, sample_part
from clara_absa.training.settings import examples_of
from latentlab_shared.errors import NeedsNetwork, UserError

TERM = '<aspectTerm from="{}" polarity="{}" term="{}" to="{}"/>'


def xml(*sentences: tuple[str, str], tag: str = "aspectTerms") -> str:
    inner = "".join(
        f"\n<sentence>\n<text>{text}</text>\n<{tag}>\n{aspects}\n</{tag}>\n</sentence>" for text, aspects in sentences
    )
    return f'<?xml version="1.0" encoding="utf-8"?>\n<sentences>{inner}\n</sentences>\n'


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_spans_count_the_text_as_it_stands_with_its_leading_blank(tmp_path):
    path = write(tmp_path, "a.xml", xml((" Nice soup &amp; tea", TERM.format(6, "positive", "soup", 10))))
    [example] = read_file(path)
    assert example.text == " Nice soup & tea"
    assert example.aspects == (Aspect("soup", "positive", 6, 10),)


def test_categories_have_no_span_and_conflicts_are_left_out(tmp_path):
    aspects = '<aspectCategory category="food" polarity="negative"/><aspectCategory category="x" polarity="conflict"/>'
    [example] = read_file(write(tmp_path, "a.xml", xml(("Bad soup", aspects), tag="aspectCategories")))
    assert example.aspects == (Aspect("food", "negative"),) and example.aspects[0].is_category


GOOD = ("Nice soup", TERM.format(5, "positive", "soup", 9))


def json_row(text, term, start, end):
    """A line of JSON lines."""
    return json.dumps({"text": text, "aspects": [{"term": term, "polarity": "1", "start": start, "end": end}]})


@pytest.mark.parametrize(
    ("name", "text", "line", "said"),
    [
        ("a.xml", xml(GOOD, ("Bad soup", TERM.format(3, "positive", "soup", 8))), 12, "are ' soup', not 'soup'"),
        ("a.xml", xml(("Nice soup", TERM.format(5, "good", "soup", 9))), 6, "'good' is not a polarity"),
        ("a.xml", xml(("Nice soup", '<aspectTerm polarity="positive" term="soup" to="9"/>')), 6, "from is missing"),
        ("a.xml", xml(("Nice soup", TERM.format("x", "positive", "soup", 9))), 6, "whole numbers"),
        ("a.xml", xml(GOOD)[:-5], 9, "not well-formed XML"),
        ("a.xml", "<reviews></reviews>", 1, "the root is <reviews>"),
        ("a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><sentences/>', 1, "document type"),
        ("a.csv", "text,aspect\nNice soup,soup\n", 1, "no column polarity"),
        ("a.csv", "text,aspect,polarity\nNice soup,soup,fine\n", 2, "'fine' is not a polarity"),
        ("a.csv", "text,aspect,polarity\nNice soup,soup\n", 2, "does not have 3 columns"),
        ("a.csv", "text,aspect,polarity,start,end\nNice soup,soup,positive,5,\n", 2, "start and end"),
        ("a.jsonl", '{"text": "a", "aspects": []}\n{"text": 1}\n', 2, "a row is"),
        ("a.jsonl", '{"text": "a",\n', 1, "not valid JSON"),
        (
            "a.jsonl",
            '\n{"text": "a \\ud800", "aspects": [{"term": "a", "polarity": "positive"}]}',
            2,
            "half a character",
        ),
        ("a.jsonl", '{"text": "a", "aspects": [{"term": "\\udfff", "polarity": "positive"}]}', 1, "half a character"),
        (
            "a.jsonl",
            '{"id": "\\ud800", "text": "a", "aspects": [{"term": "a", "polarity": "1"}]}',
            1,
            "half a character",
        ),
        ("a.csv", f"text,aspect,polarity\nNice,{'x' * 201},positive\n", 2, "200 characters"),
        ("a.jsonl", '{"text": "Nice", "aspects": [{"term": "soup", "polarity": "positive", "start": 0}]}', 1, "half a"),
        ("a.jsonl", '{"text": "  ", "aspects": [{"term": "soup", "polarity": "positive"}]}', 1, "the text is empty"),
        ("a.jsonl", '{"text": "Nice", "aspects": [{"term": "", "polarity": "positive"}]}', 1, "an aspect is empty"),
        ("a.jsonl", json_row("abc food", "foo", -4, -1), 1, "(-4, -1) is no span of a text of 8 characters"),
        ("a.jsonl", json_row("abc food", "food", 4, 99), 1, "(4, 99) is no span"),
        ("a.xml", xml(("food", TERM.format(0, "positive", "food", 99))), 6, "(0, 99) is no span"),
        ("a.xml", xml((" ", '<aspectTerm polarity="positive" term="a" from="0" to="1"/>')), 6, "the text is empty"),
        ("a.csv", "text,aspect,polarity\nNice soup, ,positive\n", 2, "an aspect is empty"),
        ("a.csv", 'text,aspect,polarity\n"Nice\nsoup",soup,1\nNice tea,tea,fine\n', 4, "'fine' is not a polarity"),
        ("a.txt", "[B-ASP][E-ASP]Soup is good $LABEL$ Positive\n", 1, "an aspect is empty"),
        ("a.txt", "[B-ASP]Soup[E-ASP] is good $LABEL$ Positive, Negative\n", 1, "1 aspects and 2 labels"),
        ("a.txt", "\n[B-ASP]Soup is good $LABEL$ Positive\n", 2, "opened and closed"),
        ("a.txt", "Soup is good $LABEL$ Positive\n", 1, "no [B-ASP]aspect[E-ASP]"),
    ],
)
def test_a_fault_is_one_line_with_its_place(tmp_path, name, text, line, said):
    with pytest.raises(UserError) as caught:
        read_file(write(tmp_path, name, text))
    assert f"{name}:{line}: " in str(caught.value) and said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mark", ["\u2028", "\x0b", "\x0c", "\x85", "\x1c"])
def test_only_line_ends_end_a_row_of_a_table(tmp_path, mark):
    [found] = read_file(write(tmp_path, "a.csv", f"text,aspect,polarity\nNice{mark}soup,soup,positive\n"))
    assert found.text == f"Nice{mark}soup"


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.xml").write_bytes(b"<sentences>\xff</sentences>")
    for name, said in (("a.xml", "not UTF-8"), ("b.xml", "no such file"), ("c.doc", "not known")):
        with pytest.raises(UserError, match=said):
            read_file(tmp_path / name)
    with pytest.raises(UserError, match="no sentence with an aspect"):
        read_file(write(tmp_path, "d.xml", "<sentences/>"))


def test_every_form_of_a_file_says_the_same(tmp_path):
    expected = (Aspect("soup", "positive", 5, 9), Aspect("tea", "negative", 15, 18))
    text = "Nice soup, bad tea"
    files = {
        "a.xml": xml((text, TERM.format(5, "positive", "soup", 9) + TERM.format(15, "negative", "tea", 18))),
        "a.csv": f'text,aspect,polarity,start,end\n"{text}",soup,Positive,5,9\n"{text}",tea,-1,15,18\n',
        "a.txt": "Nice [B-ASP]soup[E-ASP], bad [B-ASP]tea[E-ASP] $LABEL$ Positive, Negative\n",
    }
    for name, content in files.items():
        [example] = read_file(write(tmp_path, name, content))
        assert (example.text, example.aspects) == (text, expected), name
        write_jsonl([example], tmp_path / "b.jsonl")
        assert read_file(tmp_path / "b.jsonl") == [example]


words = st.text(st.characters(exclude_characters="[]$,\n\r\x85\u2028\u2029"), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words.filter(str.strip)), min_size=1, max_size=4))
def test_inline_marks_come_off_and_spans_hold(pairs):
    marked = "".join(f"{before}[B-ASP]{aspect}[E-ASP]" for before, aspect in pairs)
    text, spans, labels = parse_inline(marked)
    assert text == "".join(before + aspect for before, aspect in pairs) and labels == []
    assert [text[a:b] for a, b in spans] == [aspect for _, aspect in pairs]


def test_joint_training_drops_every_sentence_that_either_task_holds_out(tmp_path):
    """As in MAMS: what one task holds out stands in the other's training part."""

    def terms(*texts: str) -> str:
        return xml(*((t, TERM.format(0, "positive", t.split()[0], len(t.split()[0]))) for t in texts))

    def categories(*texts: str) -> str:
        one = '<aspectCategory category="food" polarity="negative"/>'
        return xml(*((t, one) for t in texts), tag="aspectCategories")

    write(tmp_path, "ATSA/train.xml", terms("Soup one.", "Soup two.", "Soup three."))
    write(tmp_path, "ATSA/val.xml", terms("Soup four."))
    write(tmp_path, "ATSA/test.xml", terms("Soup five."))
    write(tmp_path, "ACSA/train.xml", categories("Soup one.", "soup FOUR", "Soup five!", "Soup six."))
    write(tmp_path, "ACSA/val.xml", categories("Soup two."))
    joint = read_part(tmp_path, "train", "joint")
    assert [example.text for example in joint] == ["Soup one.", "Soup three.", "Soup six."]
    assert [aspect.term for aspect in joint[0].aspects] == ["Soup", "food"]
    held = {sentence_key(e.text) for p in ("val", "test") for e in read_part(tmp_path, p, "atsa")}
    held |= {sentence_key(e.text) for e in read_part(tmp_path, "val", "acsa")}
    assert not held & {sentence_key(e.text) for e in joint}


def test_mams_counts_and_its_leak():
    home = os.environ.get("LATENTLAB_DATA")
    if not home or not (Path(home) / "mams").is_dir():
        pytest.skip("LATENTLAB_DATA names no folder with mams")
    folder = Path(home) / "mams"
    counts = {
        (k, p): (len(e), sum(len(x.aspects) for x in e))
        for k in ("atsa", "acsa")
        for p in ("train", "val")
        for e in [read_part(folder, p, k)]
    }
    assert counts == {
        ("atsa", "train"): (4297, 11186),
        ("atsa", "val"): (500, 1332),
        ("acsa", "train"): (3149, 7090),
        ("acsa", "val"): (400, 888),
    }
    categories, held = read_part(folder, "train", "acsa"), read_part(folder, "val", "atsa")
    kept, dropped = drop_held_out(categories, held)
    assert dropped == 299 and len(kept) == 3149 - 299
    joint = {sentence_key(e.text) for e in read_part(folder, "train", "joint")}
    assert not joint & {sentence_key(e.text) for k in ("atsa", "acsa") for e in read_part(folder, "val", k)}


def test_a_part_is_found_by_name_or_its_absence_said(tmp_path):
    with pytest.raises(UserError, match="no val part"):
        read_part(tmp_path, "val")
    with pytest.raises(UserError, match="no such file or folder"):
        read_part(tmp_path / "absent", "val")
    write(tmp_path, "dev.xml", xml(GOOD))
    assert len(read_part(tmp_path, "val")) == 1
    write(tmp_path, "train.xml", xml(GOOD))
    with pytest.raises(UserError, match="needs the categories"):
        read_part(tmp_path, "train", "joint")


def test_a_lone_file_is_split_and_no_sentence_stands_in_two_parts(tmp_path):
    rows = [f"Soup {n} was good,soup,positive\nThe tea {n} was bad,tea,negative\n" for n in range(20)]
    rows += ["soup 3 WAS good!,good,positive\n", "喫茶店 一,店,neutral\n", "喫茶店 二,店,neutral\n"]
    header = "text,aspect,polarity\n"
    path = write(tmp_path, "train.csv", header + "".join(rows))
    parts = {part: read_part(path, part) for part in ("train", "val", "test")}
    assert {part: len(held) for part, held in parts.items()} | {"train": 0} == {"train": 0, "val": 4, "test": 4}
    held = [{sentence_key(e.text) or e.text for e in examples} for examples in parts.values()]
    assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]
    together = {e.text for examples in parts.values() for e in examples}
    assert together == {e.text for e in read_file(path)}
    turned = write(tmp_path, "turned.csv", header + "".join(reversed(rows)))  # the file's order does not matter
    for part, examples in parts.items():
        assert {e.text for e in read_part(turned, part)} == {e.text for e in examples}
    assert read_part(path, "train", limit=3) == parts["train"][:3]
    assert examples_of(str(path), "test") == parts["test"]
    assert examples_of(str(path), "test", whole=True) == read_file(path)
    few = write(tmp_path, "few.csv", header + "A,A,positive\na!,a,positive\nB,B,negative\n")
    with pytest.raises(UserError, match="2 different sentences cannot be parted"):
        read_part(few, "train")
    few.write_text(header + "A,A,positive\nB,B,negative\nC,C,negative\n")
    assert sorted(len(read_part(few, part)) for part in ("train", "val", "test")) == [1, 1, 1]


def test_generated_sentences_need_their_context():
    examples = generate(300, seed=1)
    assert examples == generate(300, seed=1) != generate(300, seed=2)
    assert all(len({a.polarity for a in e.aspects}) > 1 for e in examples)
    assert not {e.text for e in sample_part("train")} & {e.text for e in sample_part("val")}
    from clara_absa.evaluation.metrics import TermPrior, questions_of

    prior = TermPrior(examples)
    questions = questions_of(generate(300, seed=2))
    right = sum(prior.predict(q.term) == q.label for q in questions) / len(questions)
    assert abs(right - 1 / 3) < 0.06  # a term alone says nothing
    assert {a.polarity for a in demo().aspects} == set(POLARITIES)


def test_half_a_span_is_refused_and_merging_keeps_order():
    with pytest.raises(ValueError, match="half a span"):
        Example("a", "Soup", (Aspect("Soup", None, 0, None),))
    a, b = Example("a", "x y", (Aspect("x"),)), Example("b", "x y", (Aspect("y"), Aspect("x")))
    assert merge_sentences([a, b]) == [Example("a", "x y", (Aspect("x"), Aspect("y")))]


def test_prepare_converts_and_counts(tmp_path):
    from clara_absa.data_utils.prepare import prepare_data

    write(tmp_path, "in/train.xml", xml(GOOD))
    write(tmp_path, "in/val.xml", xml(GOOD))
    account = prepare_data(str(tmp_path / "in"), tmp_path / "out")
    assert {p: (h["sentences"], h["aspects"]) for p, h in account.items()} == {"train": (1, 1), "val": (1, 1)}
    assert json.loads((tmp_path / "out" / "train.jsonl").read_text())["text"] == "Nice soup"
    write(tmp_path, "in/val.xml", "<sentences>")
    with pytest.raises(UserError):
        prepare_data(str(tmp_path / "in"), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    [account] = prepare_data(str(tmp_path / "in" / "train.xml"), tmp_path / "one").values()  # a lone file stays whole
    assert account["sentences"] == 1 and (tmp_path / "one" / "train.jsonl").is_file()


@pytest.mark.parametrize("flag", ["--source", "--data"])
def test_a_download_without_a_network_leaves_no_folder_and_names_the_way_without(tmp_path, monkeypatch, flag):
    from clara_absa.data_utils import prepare

    with socket.socket() as closed:  # a port that nobody listens on
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(prepare, "MAMS_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/{{task}}/{{part}}.xml")
        (tmp_path / "kept").mkdir()
        with pytest.raises(NeedsNetwork, match=f"give its folder with {flag}"):
            prepare.prepare_data("mams", tmp_path / "kept" / "data" / "raw2", flag=flag)
    assert [p.name for p in tmp_path.rglob("*")] == ["kept"]
