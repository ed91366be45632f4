"""Prompts with documents: the seed's cases, the parser's hard ones, rows and chunks."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from refrag_tokenizers import FAMILIES, SENTENCES, tokenizer

from latentlab_shared.errors import UserError
from refrag.bench.oracle import HARD
from refrag.model.documents import Doc, RefragParseError, escape, parse_segments
from refrag.model.tokenization_refrag import RefragTokenizer
from refrag.model.tokenizer.spans import plain_ids

MARKS = '<>&"\'/ =\ndocid</doc><doc id="1">&lt;&amp;'


def make(encoder="wordpiece", decoder="gpt2", **options):
    return RefragTokenizer(tokenizer(encoder), tokenizer(decoder), **options)


def short(segments):
    return [(s["type"], s["raw_text"], s["meta"]) for s in segments]


# -- parsing -----------------------------------------------------------------------------------------------------------


def test_simple_parsing():
    text = "Question: What is AI? <doc id='1'>Artificial intelligence is...</doc> Answer:"
    assert short(make().parse_segments(text)) == [
        ("decoder", "Question: What is AI? ", {}),
        ("encoder", "Artificial intelligence is...", {"id": "1"}),
        ("decoder", " Answer:", {}),
    ]


def test_multiple_documents_keep_the_blanks_between_them():
    found = short(parse_segments('<doc id="a">x</doc>\n \n<doc id="b">y</doc>'))
    assert found == [("encoder", "x", {"id": "a"}), ("decoder", "\n \n", {}), ("encoder", "y", {"id": "b"})]


def test_no_tags_and_empty_text():
    assert short(parse_segments("just text")) == [("decoder", "just text", {})]
    assert parse_segments("") == []


@pytest.mark.parametrize(
    ("text", "meta", "body"),
    [
        ("<DOC ID=7>x</Doc>", {"id": "7"}, "x"),
        ("<doc title='a > b' id = \"it's\">x</doc>", {"title": "a > b", "id": "it's"}, "x"),
        ("<doc id=7/>", {"id": "7"}, ""),
        ("<doc id=a/b>x</doc>", {"id": "a/b"}, "x"),
        ("<doc\n  id='1'\n  lang=en\n>x</doc >", {"id": "1", "lang": "en"}, "x"),
        ("<doc>x</doc>", {}, "x"),
        ('<doc id="&quot;&#65;&#x42;">x &lt;/doc&gt; &amp;amp; &unknown; &#0; AT&T</doc>', {"id": '"AB'}, None),
        ("<doc id=''>x</doc>", {"id": ""}, "x"),
        ("<doc id=1>a <document> <docs> b < c </docx></doc>", {"id": "1"}, "a <document> <docs> b < c </docx>"),
    ],
)
def test_ways_to_write_a_tag(text, meta, body):
    (found,) = parse_segments(text)
    assert found["type"] == "encoder" and found["meta"] == meta
    assert found["raw_text"] == (body if body is not None else "x </doc> &amp; &unknown; &#0; AT&T")


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("a\n  <doc id=1>x", 2, 3, "<doc> is not closed"),
        ("a</doc>", 1, 2, "closes nothing"),
        ("<doc id=1>x</doc></doc>", 1, 18, "closes nothing"),
        ("<doc id=1>a\n<doc id=2>b</doc></doc>", 2, 1, "inside a document"),
        ("<doc id=1 id=2>x</doc>", 1, 11, "given twice"),
        ("<doc id='1>x</doc>", 1, 6, "cannot read"),
        ("<doc id='1'title=x>x</doc>", 1, 12, "cannot read"),
        ("<doc =3>x</doc>", 1, 6, "cannot read"),
        ("\n\n<doc id='1' ", 3, 1, "not ended by >"),
        ("<doc", 1, 1, "not ended by >"),
        ("<doc id=1>x</doc y", 1, 12, "not ended by >"),
    ],
)
def test_faults_have_their_place(text, line, column, message):
    with pytest.raises(RefragParseError, match=message) as error:
        parse_segments(text)
    assert (error.value.line, error.value.column) == (line, column)
    assert str(error.value).startswith(f"line {line}, column {column}: ")


@given(st.text(st.sampled_from(MARKS), max_size=40), st.text(st.sampled_from(MARKS + "é☃"), max_size=20))
def test_escaped_text_comes_back(body, name):
    before, found = parse_segments(f'&lt; <doc id="{escape(name)}">{escape(body)}</doc>')
    assert found["raw_text"] == body and found["meta"] == {"id": name} and before["raw_text"] == "&lt; "


@given(st.text(st.sampled_from(MARKS), max_size=60))
def test_any_text_is_read_or_refused_with_its_place(text):
    try:
        segments = parse_segments(text)
    except RefragParseError as error:
        assert 1 <= error.line <= text.count("\n") + 1 and error.column >= 1
    else:
        assert all(segment["raw_text"] for segment in segments if segment["type"] == "decoder")


@pytest.mark.parametrize("wrong", ["", " a", "a\n", "[1]", "a]b"])
def test_ids_that_cannot_be_cited_are_refused(wrong):
    with pytest.raises(UserError, match="no document id"):
        Doc(wrong, "text")


# -- rows --------------------------------------------------------------------------------------------------------------


def test_the_seeds_packing():
    made = make(compression=4, row_format="seed")
    segments = made.parse_and_tokenize(f"Q: <doc id='1'>{SENTENCES[0]}</doc> A:")
    first, document, last = segments
    ids = made.encoder_tokenizer.encode(SENTENCES[0], add_special_tokens=False)
    assert document["tokens"] == ids
    assert {len(row) for row in document["packed_tokens"]} == {4}
    flat = [t for row, mask in zip(document["packed_tokens"], document["attention_mask"], strict=True)
            for t, m in zip(row, mask, strict=True) if m]  # fmt: skip
    assert flat == ids and sum(map(sum, document["attention_mask"])) == len(ids)
    assert len(document["packed_tokens"]) == -(-len(ids) // 4)
    assert first["tokens"] == made.decoder_tokenizer.encode("Q: ") and last["raw_text"] == " A:"


def test_rows_carry_the_encoders_marks():
    made = make(compression=4)
    (document,) = made.parse_and_tokenize(f"<doc id='1'>{SENTENCES[0]}</doc>")
    for row, mask in zip(document["packed_tokens"], document["attention_mask"], strict=True):
        kept = row[: sum(mask)]
        assert kept[0] == 2 and kept[-1] == 3 and len(kept) <= 6
        assert set(row[sum(mask) :]) <= {0} and mask == sorted(mask, reverse=True)
    assert sum(len(chunk.encoder_ids) for chunk in document["chunks"]) == len(document["tokens"])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*HARD, *SENTENCES]),
    st.sampled_from(FAMILIES),
    st.sampled_from(FAMILIES),
    st.integers(1, 20),
)
@example(" ", "llama", "llama", 1)  # a token that stands for no text
@example("4711 of 12", "llama", "llama", 2)  # and one before a number
def test_chunks_tile_a_document(text, encoder, decoder, k):
    made = make(encoder, decoder)
    chunks = made.chunks(text, k)
    plain = [plain_ids(text, side) for side in (made.encoder_tokenizer, made.decoder_tokenizer)]
    assert [t for c in chunks for t in c.encoder_ids] == plain[0]
    assert [t for c in chunks for t in c.decoder_ids] == plain[1]
    if chunks:
        assert chunks[0].start == 0 and chunks[-1].end == len(text)
    assert all(a.end == b.start and a.start < a.end for a, b in zip(chunks, chunks[1:], strict=False))


# Without offsets the two sides agree on few places, some of them in numbers.
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["the mill", "of", "4711.", "3,517", "9:30", "0.25", "in 1942,", "x7"]), min_size=1, max_size=30
    ),
    st.sampled_from(sorted(set(FAMILIES) - {"slow wordpiece"})),
    st.sampled_from(sorted(set(FAMILIES) - {"slow wordpiece"})),
)
def test_no_chunk_ends_inside_a_number(words, encoder, decoder):
    text = " ".join(words)
    made = make(encoder, decoder)
    numbers = [match.span() for match in re.finditer(r"\d+(?:[.,:]\d+)*", text)]
    longest = max((len(plain_ids(text[a:b], made.encoder_tokenizer)) for a, b in numbers), default=0)
    k = longest + 2  # every number has room in a chunk, with what the tokenizer puts before it
    ends = [chunk.end for chunk in made.chunks(text, k)]
    assert [(end, text[a:b]) for end in ends for a, b in numbers if a < end < b] == [], (
        text,
        encoder,
        decoder,
        k,
        ends,
    )


def test_chunks_are_as_long_as_agreed_cuts_allow():
    made = make("gpt2", "gpt2", whole_numbers=False)
    text = " ".join(SENTENCES[:3])
    for k in (1, 4, 8, 16):
        lengths = [len(chunk.encoder_ids) for chunk in made.chunks(text, k)]
        assert set(lengths[:-1]) == {k} and 0 < lengths[-1] <= k


def test_names_of_special_tokens_in_a_document_are_text():
    made = make("roberta", "gpt2")
    text = "end <|endoftext|> </s> [CLS] now"
    special = {*made.encoder_tokenizer.all_special_ids}, {*made.decoder_tokenizer.all_special_ids}
    (document, rest) = made.tokenize(
        [{"type": t, "raw_text": text, "meta": {}} for t in ("encoder", "decoder")]  # type: ignore[typeddict-item]
    )
    assert not special[0] & set(document["tokens"]) and not special[1] & set(rest["tokens"])
    assert not special[1] & {t for chunk in document["chunks"] for t in chunk.decoder_ids}
    assert made.decoder_tokenizer.decode(rest["tokens"]) == text


def test_a_document_without_text_has_no_rows():
    (document,) = make().parse_and_tokenize("<doc id='1'></doc>")
    assert document["tokens"] == [] and document["packed_tokens"] == [] and document["chunks"] == []


def test_segments_given_are_not_changed():
    made = make()
    segments = made.parse_segments("a<doc id=1>b</doc>")
    made.tokenize(segments, compression=8)
    assert all("tokens" not in segment for segment in segments)


def test_both_come_back_from_folders(tmp_path):
    tokenizer("roberta").save_pretrained(tmp_path / "encoder")
    tokenizer("gpt2").save_pretrained(tmp_path / "decoder")
    made = RefragTokenizer.from_pretrained(tmp_path / "encoder", tmp_path / "decoder", compression=8)
    assert made.compression == 8 and made.encoder_pad_token_id == tokenizer("roberta").pad_token_id
    assert made.chunks(SENTENCES[0]) == make("roberta", "gpt2", compression=8).chunks(SENTENCES[0])


@pytest.mark.parametrize(("options", "message"), [({"compression": 0}, "number"), ({"row_format": "x"}, "row format")])
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=message):
        make(**options)
