"""Readers, splits, vocabulary and batches."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlab_shared.errors import UserError
from seq2seq_keras.config import DataConfig
from seq2seq_keras.data import Account, Columns, Example, Vocabulary, read_examples, read_parts, split_by_date
from seq2seq_keras.data.encode import (
    Encoded,
    batch_rows,
    build_vocabulary,
    encode_pairs,
    encode_source,
    in_order,
    pad,
    with_labels,
)
from seq2seq_keras.data.text import split_rules
from seq2seq_keras.data.vocabulary import EOS, NEVER_WRITTEN, PAD, SOS, UNK
from seq2seq_keras.sample import demo, generate, sample_parts

CAPTIONS = "\ufeffURL,MatchDateTime,Station,Show,IAShowID,IAPreviewThumb,Snippet\n"
REUTERS = """<!DOCTYPE lewis SYSTEM "lewis.dtd">
<REUTERS TOPICS="YES" NEWID="7">
<DATE> 2-MAR-1987 15:01:01.79</DATE>
<TEXT>&#2;
<TITLE>DUNNE &lt;DNE.N> TO BUY R&amp;D FIRM</TITLE>
<DATELINE>    DOVER, March 2 - </DATELINE><BODY>Dunne Corp said it would buy
&lt;Velt Labs Inc> for 1,750 dlrs.
 Reuter
&#3;</BODY></TEXT>
</REUTERS>
<REUTERS NEWID="8"><DATE>3-MAR-1987 605:01:01.79</DATE><TEXT><TITLE>NO BODY</TITLE></TEXT></REUTERS>
<REUTERS NEWID="9"><DATE>3-MAR-1987 605:01:01.79</DATE>
<TEXT><TITLE>LATE</TITLE><BODY>It was late.</BODY></TEXT></REUTERS>
"""


def test_captions_with_their_mark_and_without_summary(tmp_path):
    (tmp_path / "CNN.201006.csv").write_text(
        CAPTIONS + 'u#1,6/13/2010 19:18:36,CNN,Your Money,CNN_1,t,"the tax, it is high. ok?"\n'
        "u#2,1/2/2011 3:04:05,CNN,Your Money,CNN_1,t,the TAX it is low\n",
        encoding="utf-8",
    )
    (tmp_path / "README.txt").write_text("not a text to summarize")
    (tmp_path / "EMPTY.csv").write_text("")
    found = read_examples(tmp_path)
    assert [e.id for e in found] == ["u#1", "u#2"]
    assert found[0].text == "the tax, it is high. ok?" and found[0].summary == ""
    assert (found[0].group, found[0].date) == ("CNN_1", "2010-06-13T19:18:36")


def test_reuters(tmp_path):
    with gzip.open(tmp_path / "reut2-000.sgm.gz", "wt", encoding="latin-1") as file:
        file.write(REUTERS)
    found = read_examples(tmp_path)
    assert [e.id for e in found] == ["7", "9"]
    # The ticker is dropped, the company's name is kept, the sign-off is gone.
    assert found[0].summary == "DUNNE TO BUY R&D FIRM"
    assert found[0].text == "Dunne Corp said it would buy Velt Labs Inc for 1,750 dlrs."
    assert [e.date for e in found] == ["1987-03-02T15:01:01", "1987-03-03T00:00:00"]


def test_agnews_has_no_header(tmp_path):
    rows = ['"3","Fears for T N","Unions say\\they are out."', '"4","A race","A second\\team."']
    (tmp_path / "test.csv").write_text("\n".join(rows))
    found = read_examples(tmp_path / "test.csv")
    assert [(e.summary, e.text) for e in found] == [
        ("Fears for T N", "Unions say they are out."),
        ("A race", "A second team."),
    ]


def test_tables_with_named_columns(tmp_path):
    (tmp_path / "a.tsv").write_text("no\tstory\tgist\n1\tIt rained in Oslo.\train in Oslo\n")
    found = read_examples(tmp_path / "a.tsv", columns=Columns("story", "gist"))
    assert (found[0].text, found[0].summary) == ("It rained in Oslo.", "rain in Oslo")
    (tmp_path / "b.jsonl").write_text(json.dumps({"source": ["One.", "Two."], "target": ["Both."]}) + "\n")
    assert read_examples(tmp_path / "b.jsonl")[0].text == "One. Two."
    (tmp_path / "c.txt").write_text("Plain text.")
    assert read_examples(tmp_path / "c.txt")[0].id == "c.txt"


@pytest.mark.parametrize(
    ("name", "content", "columns", "said"),
    [
        ("a.csv", "text,summary\none,two,three\n", None, "a.csv:2: this row is malformed"),
        ("a.csv", "body_text,x\none,two\n", None, "no column text or Snippet or article"),
        ("a.csv", "text,summary\none,two\n", Columns("story", ""), "no column story"),
        ("a.csv", "text,summary\none,two\n", Columns("", "gist"), "no column gist"),
        ("a.csv", "text,summary\none,two\n", Columns("text", "text"), "both text"),
        ("a.jsonl", '{"text": "one"}\n{"text": 3}\n', None, "a.jsonl:2: text is not text"),
        ("a.jsonl", "[1]\n", None, "a.jsonl:1: this row is malformed"),
        ("a.jsonl", '{"text": "half \\ud800 of it"}\n', None, "a.jsonl:1: this row is malformed"),
        ("a.csv", "text\n" + "x" * (2**24 + 1) + "\n", None, "a.csv:2: this row is malformed"),
        ("a.csv", "text,summary\n...,two\n", None, "there is no text here"),
        ("a.pdf", "x", None, "kind of file is not known"),
    ],
)
def test_bad_files_are_one_line(tmp_path, name, content, columns, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        read_examples(tmp_path / name, columns=columns)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_one_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.jsonl.gz").write_bytes(b"\x1f\x8b broken")
    for name in ("a.txt", "b.jsonl.gz", "missing.csv"):
        with pytest.raises(UserError):
            read_examples(tmp_path / name)


def test_bad_rows_are_counted_and_texts_come_once(tmp_path):
    rows = [{"text": "One thing."}, [], {"text": "one  THING."}, {"text": "!"}, {"text": "Two."}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    account = Account()
    found = read_examples(tmp_path / "a.jsonl", skip_bad=True, account=account)
    assert [e.text for e in found] == ["One thing.", "Two."]
    assert (account.malformed, account.duplicates, account.empty) == (1, 1, 1)
    assert len(read_examples(tmp_path / "a.jsonl", skip_bad=True, limit=1)) == 1


def test_an_empty_name_is_not_the_current_folder():
    with pytest.raises(UserError, match="is empty"):
        read_examples("")


def test_texts_may_come_twice(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "One thing."}\n{"text": "One thing."}\n')
    assert len(read_examples(tmp_path / "a.jsonl", unique=False)) == 2


def test_a_date_that_is_none_is_left_out(tmp_path):
    document = "<REUTERS><DATE>99-JAN-1987</DATE><TITLE>A title</TITLE><BODY>A body.</BODY></REUTERS>"
    (tmp_path / "a.sgm").write_text(document)
    assert read_examples(tmp_path / "a.sgm")[0].date == ""


@pytest.mark.timeout(30)  # each takes hours where a pattern tries every place again
@pytest.mark.parametrize(
    "content",
    [
        "<REUTERS><TITLE>A title</TITLE><BODY>A body." + " " * 1_000_000 + "</BODY></REUTERS>",
        "<REUTERS><TITLE>A title</TITLE><BODY>A body.</BODY></REUTERS>" + "<REUTERS " * 300_000,
        "<REUTERS>" + "<TITLE>" * 300_000 + "A title</TITLE><BODY>A body.</BODY></REUTERS>",
    ],
)
def test_reading_sgml_takes_one_pass(tmp_path, content):
    (tmp_path / "a.sgm").write_text(content)
    assert len(read_examples(tmp_path / "a.sgm")) == 1


# -- splits ----------------------------------------------------------------------------------------------------------


def test_groups_stand_in_one_part(tmp_path):
    rows = [{"text": f"text number {i}", "show": f"show {i % 40}"} for i in range(400)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = read_parts(str(tmp_path / "a.jsonl"))
    groups = {part: {e.group for e in found} for part, found in parts.items()}
    assert not groups["train"] & groups["valid"] and not groups["train"] & groups["test"]
    assert sum(map(len, parts.values())) == 400 and min(map(len, parts.values())) > 0


def test_a_later_date_is_never_trained_on():
    examples = [Example(str(i), f"text {i}", date=f"1987-01-{1 + i % 28:02d}") for i in range(60)]
    parts = split_by_date(examples, 10, 10)
    assert [len(parts[p]) for p in ("train", "valid", "test")] == [40, 10, 10]
    assert max(e.date for e in parts["train"]) <= min(e.date for e in parts["valid"])
    assert max(e.date for e in parts["valid"]) <= min(e.date for e in parts["test"])
    with pytest.raises(UserError, match="no date"):
        split_by_date([*examples, Example("x", "undated")], 10, 10)
    with pytest.raises(UserError, match="too few"):
        split_by_date(examples, 30, 30)


def test_files_name_the_parts_and_what_is_held_out_is_not_trained_on(tmp_path):
    for name, rows in {"train": range(200), "val": range(190, 220)}.items():
        lines = [json.dumps({"text": f"text number {i}", "id": str(i)}) for i in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    parts = read_parts(str(tmp_path))
    texts = {part: {e.text for e in found} for part, found in parts.items()}
    assert len(texts["test"]) == 30 and not texts["train"] & (texts["test"] | texts["valid"])
    assert 0 < len(texts["valid"]) < 30 and len(texts["train"] | texts["valid"]) >= 190
    with pytest.raises(UserError, match="not a split"):
        read_parts(str(tmp_path), split="random")
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(UserError, match="no train file"):
        read_parts(str(tmp_path), split="files")


# -- the sample ------------------------------------------------------------------------------------------------------


def test_the_sample_is_seeded_and_its_parts_share_no_text():
    parts = sample_parts(200)
    assert generate(50, 3) == generate(80, 3)[:50] and generate(5, 3) != generate(5, 4)
    texts = [e.text for part in parts.values() for e in part]
    assert len(set(texts)) == len(texts) == 240 and demo().text not in texts


def test_every_fact_of_a_summary_stands_in_its_text():
    for e in generate(300, 1):
        source = encode_source(e.text, Vocabulary([]), DataConfig(max_source=200), split_rules).tokens
        facts = [w.lower() for w in e.summary.split() if w[0].isdigit() or w[0].isupper()]
        assert len(facts) >= 2 and set(facts) <= set(source), e


# -- vocabulary and ids ----------------------------------------------------------------------------------------------

VOCABULARY = Vocabulary(["tax", "rain"])


def test_extended_ids_follow_the_source():
    size = len(VOCABULARY)
    ids, unknown = VOCABULARY.extend(["oslo", "tax", "velt", "oslo"])
    assert ids == [size, 5, size + 1, size] and unknown == ["oslo", "velt"]
    assert VOCABULARY.encode_target(["velt", "rain", "absent"], unknown) == [size + 1, 6, UNK]
    assert VOCABULARY.decode([SOS, size + 1, 6, EOS, 5], unknown) == ["velt", "rain"]
    assert VOCABULARY.encode(["tax", "oslo"]) == [5, UNK]


def test_vocabulary_counts_and_round_trips(tmp_path):
    made = Vocabulary.build([["b", "a", "b", "."], ["a", "c", "b"]], size=7, min_count=2)
    assert made.words[5:] == ("b", "a")
    made.save(tmp_path / "v.txt")
    assert Vocabulary.load(tmp_path / "v.txt").words == made.words
    with pytest.raises(UserError):
        Vocabulary.load(tmp_path / "none.txt")
    (tmp_path / "v.txt").write_text("a\na\n")
    with pytest.raises(UserError, match="twice"):
        Vocabulary.load(tmp_path / "v.txt")


@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=2), max_size=12))
def test_source_ids_name_their_words(tokens):
    ids, unknown = VOCABULARY.extend(tokens)
    assert VOCABULARY.decode(ids, unknown) == tokens
    assert VOCABULARY.encode_target(tokens, unknown) == ids


def test_a_cut_summary_keeps_its_end():
    config = DataConfig(max_source=6, max_target=4)
    examples = [Example("1", "Tax it. Rain now in Oslo.", "tax rain oslo"), Example("2", "Rain.", "rain")]
    encoded = encode_pairs(examples, VOCABULARY, config)
    batch = encoded.batch(np.array([0, 1]))
    size = len(VOCABULARY)
    assert batch.source_ext.tolist() == [[5, size, 4, 6, size + 1, size + 2], [6, 4, 0, 0, 0, 0]]
    assert batch.source.tolist() == [[5, UNK, 4, 6, UNK, UNK], [6, 4, 0, 0, 0, 0]]
    assert batch.target_out.tolist() == [[5, 6, EOS], [6, EOS, PAD]]
    assert batch.target_in.tolist() == [[SOS, 5, 6], [SOS, 6, PAD]]


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_holds_every_row_once(count, size, seed, epoch):
    ext = pad([[5] * (1 + i % 7) for i in range(count)])
    encoded = Encoded(ext, pad([[6]] * count), len(VOCABULARY))
    rows = batch_rows(encoded, size, seed, epoch)
    assert sorted(np.concatenate(rows).tolist()) == list(range(count))
    again = batch_rows(encoded, size, seed, epoch)
    assert all((a == b).all() for a, b in zip(rows, again, strict=True))
    whole = np.concatenate([batch.source for batch in in_order(encoded, count)])
    assert (whole == ext).all()


def test_orders_differ_between_epochs():
    encoded = Encoded(pad([[5]] * 40), pad([[6]] * 40), len(VOCABULARY))
    orders = [np.concatenate(batch_rows(encoded, 4, 0, epoch)).tolist() for epoch in range(2)]
    assert orders[0] != orders[1]


def test_encoding_is_kept_in_a_cache(tmp_path):
    config, examples = DataConfig(), generate(20)
    vocabulary = build_vocabulary(examples, config)
    first = encode_pairs(examples, vocabulary, config, tmp_path)
    files = list(tmp_path.glob("encoded-*.npz"))
    again = encode_pairs(examples, vocabulary, config, tmp_path)
    assert len(files) == 1 and (again.source_ext == first.source_ext).all() and (again.target == first.target).all()
    encode_pairs(examples[:19], vocabulary, config, tmp_path)
    assert len(list(tmp_path.glob("encoded-*.npz"))) == 2
    for damage in (b"", b"PK\x03\x04 and no more", files[0].read_bytes()[:-30], b"\x80\x04K\x01."):
        files[0].write_bytes(damage)
        again = encode_pairs(examples, vocabulary, config, tmp_path)  # made again
        assert (again.source_ext == first.source_ext).all() and len(files[0].read_bytes()) > 100


def test_pairs_without_words_are_an_error():
    with pytest.raises(UserError, match="no example"):
        encode_pairs([Example("1", "!", "?")], VOCABULARY, DataConfig())


def test_labels_are_made_where_none_are():
    made = with_labels([Example("1", "Rain fell on the town. So.", ""), Example("2", "A b.", "c")], DataConfig())
    assert [e.pseudo for e in made] == [True, False] and made[0].summary == "Rain fell on the town."


def test_what_is_never_written_is_special():
    assert set(NEVER_WRITTEN) == {PAD, UNK, SOS, 4} and EOS not in NEVER_WRITTEN
