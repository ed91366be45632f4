"""Cleaning, tokens, sentences, pseudo-summaries and F1: the seed's form with its flaws, and the repaired one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentlab_shared.errors import UserError
from seq2seq_keras.data import calculate_text_f1, create_pseudo_summary
from seq2seq_keras.data.hard_cases import HARD_CASES, splitter_accuracy
from seq2seq_keras.data.seed_exact import SeedTokenizer, pad_sequences, seed_references
from seq2seq_keras.data.text import clean, make_splitter, source_tokens, split_rules, words


def marks(text: str) -> list[str]:
    """A splitter for golden tests that depends on nothing: a cut after each full stop and blank."""
    pieces = text.replace(". ", ".|").split("|")
    return [piece for piece in pieces if piece]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Carbon-tax: isn't it 1,750.5 dlrs?", ["carbon", "tax", "isn't", "it", "1,750.5", "dlrs"]),
        ("the U.S. and U.N. agreed", ["the", "u.s.", "and", "u.n.", "agreed"]),
        ("--- ... !!", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_clean_resolves_entities_and_drops_markup():
    assert clean("a &lt;b&gt;bold&lt;/b&gt;\n\x00 &amp;\t“tax”") == 'a bold & "tax"'


def test_source_has_a_boundary_after_each_sentence():
    assert source_tokens("It rained. Who knew? -- !", split_rules) == ["it", "rained", ".", "who", "knew", "."]


def test_every_hard_case_is_split_by_rules():
    assert splitter_accuracy("rules") == f"{len(HARD_CASES)} of {len(HARD_CASES)}"


def test_punkt_is_asked_for_in_one_line():
    try:
        make_splitter("punkt")
    except UserError as error:
        assert "punkt_tab" in str(error) and "rules" in str(error)
    with pytest.raises(UserError, match="not a splitter"):
        make_splitter("spacy")


@given(st.text(max_size=200))
def test_splitting_keeps_all_words(text):
    assert [w for s in split_rules(clean(text)) for w in words(s)] == words(clean(text))


# -- pseudo-summaries ------------------------------------------------------------------------------------------------

TAX = "A carbon tax. The tax is a tax. Nobody likes it but the cost of the whole plan was low."


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        # Counted by \w+ and scored by split(): "tax." scores 0 and the longest sentence wins.
        (TAX, 1, "Nobody likes it but the cost of the whole plan was low."),
        # In order of score, not of the text.
        (TAX, 2, "Nobody likes it but the cost of the whole plan was low. The tax is a tax."),
        # Equal sentences are one key: of three sentences two are left.
        ("So it is. So it is. Not.", 2, "So it is. Not."),
        # No more sentences than asked for: the text itself.
        ("Only one. ", 1, "Only one. "),
        ("", 1, ""),
    ],
)
def test_seed_exact_labels_are_the_seeds(text, count, expected):
    assert create_pseudo_summary(text, count, seed_exact=True, split=marks) == expected


@pytest.mark.parametrize(
    ("scoring", "count", "expected"),
    [
        ("mean", 1, "The tax is a tax."),
        ("sum", 1, "Nobody likes it but the cost of the whole plan was low."),
        ("sum", 2, "The tax is a tax. Nobody likes it but the cost of the whole plan was low."),
    ],
)
def test_repaired_labels(scoring, count, expected):
    assert create_pseudo_summary(TAX, count, scoring=scoring, split=marks) == expected


def test_repaired_labels_keep_equal_sentences_apart():
    assert create_pseudo_summary("Rain fell on us. Rain fell on us. Not.", 2, split=marks) == (
        "Rain fell on us. Rain fell on us."
    )


def test_short_sentences_stand_back():
    text = "Tax tax. The new tax was approved on Monday."
    assert create_pseudo_summary(text, split=marks) == "The new tax was approved on Monday."
    assert create_pseudo_summary("Tax tax. Not now.", split=marks) == "Tax tax."


@given(st.lists(st.sampled_from(["rain", "tax", "the", "Oslo", "12", "."]), max_size=30), st.integers(1, 4))
def test_a_label_is_made_of_whole_sentences_in_order(tokens, count):
    text = " ".join(tokens).replace(" .", ".")
    sentences, label = marks(text), create_pseudo_summary(text, count, split=marks)
    if len(sentences) <= count:
        assert label == text
    else:
        at = 0
        for sentence in marks(label):
            at = sentences.index(sentence, at) + 1


# -- F1 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "prediction", "seed", "repaired"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1.2, 1.0),
        ("tax tax tax", "tax tax tax", 3.0, 1.0),
        ("the tax the tax", "the the the the", 4 / 3, 0.5),
        ("Carbon tax.", "carbon tax", 0.0, 1.0),
        ("a b", "", 0.0, 0.0),
        ("a b", "c d", 0.0, 0.0),
        ("carbon tax impacts industrial", "carbon tax affects industry negatively", 4 / 9, 4 / 9),
    ],
)
def test_f1(reference, prediction, seed, repaired):
    assert calculate_text_f1(reference, prediction, seed_exact=True) == pytest.approx(seed)
    assert calculate_text_f1(reference, prediction) == pytest.approx(repaired)


@given(st.lists(st.sampled_from("abcd"), max_size=8), st.lists(st.sampled_from("abcd"), max_size=8))
def test_repaired_f1_is_a_symmetric_share(a, b):
    value = calculate_text_f1(" ".join(a), " ".join(b))
    assert 0 <= value <= 1 and value == pytest.approx(calculate_text_f1(" ".join(b), " ".join(a)))
    assert (value == 1) == (sorted(a) == sorted(b) and bool(a))


# -- the seed's tokenizer and padding --------------------------------------------------------------------------------


def test_tokenizer_drops_marks_and_rare_words_without_a_trace():
    tokenizer = SeedTokenizer(num_words=4)
    tokenizer.fit_on_texts(["The tax. The carbon-tax, the plan!", "tax plan"])
    assert tokenizer.word_index == {"the": 1, "tax": 2, "plan": 3, "carbon": 4}
    assert tokenizer.texts_to_sequences(["The carbon plan: unknown tax"]) == [[1, 3, 2]]


def test_padding_cuts_the_front():
    expected = np.array([[5, 6, 7, 3], [2, 3, 0, 0], [0, 0, 0, 0]])
    assert (pad_sequences([[2, 5, 6, 7, 3], [2, 3], []], 4, padding="post") == expected).all()
    assert (pad_sequences([[2, 3]], 4) == [[0, 0, 2, 3]]).all()
    assert (pad_sequences([[1, 2, 3]], 2, truncating="post") == [[1, 2]]).all()


def test_padding_and_tokenizer_equal_kerases_own():
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 9, rng.integers(0, 7)).tolist() for _ in range(50)]
    for padding in ("pre", "post"):
        for truncating in ("pre", "post"):
            theirs = keras.utils.pad_sequences(rows, 4, padding=padding, truncating=truncating)
            assert (pad_sequences(rows, 4, padding=padding, truncating=truncating) == theirs).all()
    from keras.src.legacy.preprocessing.text import Tokenizer

    texts = ["The tax. The carbon-tax, the plan!", "tax plan é ü — dash", "a\tb\nc  d", "Isn't it U.S.?"]
    theirs, ours = Tokenizer(num_words=8), SeedTokenizer(num_words=8)
    theirs.fit_on_texts(texts)
    ours.fit_on_texts(texts)
    assert ours.word_index == theirs.word_index
    assert ours.texts_to_sequences(texts) == theirs.texts_to_sequences(texts)


def test_seed_references_lose_their_front():
    label = " ".join(f"w{i}" for i in range(25))
    reference = seed_references([label], [label, "w1 unseen w2"], maxlen=20)
    assert reference[0] == " ".join(f"w{i}" for i in range(6, 25))  # sostok and six words are gone, eostok is kept
    assert reference[1] == "w1 w2"


@pytest.mark.timeout(30)  # takes hours where a pattern tries every place again
def test_splitting_takes_one_pass():
    assert len(split_rules("abc " + "." * 500_000 + "x")) == 1
    assert split_rules('she said "go..." and left. he stayed') == ['she said "go..."', "and left.", "he stayed"]
