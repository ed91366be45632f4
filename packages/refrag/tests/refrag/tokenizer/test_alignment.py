"""Every anchor is right, none that exists is missing: against a slow search over sets of characters, on any text."""

import dataclasses
import itertools
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from refrag_tokenizers import FAMILIES, SENTENCES, tokenizer

from latentlab_shared.errors import UserError
from refrag.bench.oracle import HARD, LETTERS, faults
from refrag.model.tokenizer.spans import Ruler, token_spans
from refrag.model.tokenizer.tokenizer_utils import (
    align,
    alignment_pairs_from_dp,
    compute_dp_matrix,
    compute_prefix_strings,
    cost_aware_pairs,
)

PAIRS = list(itertools.combinations_with_replacement(FAMILIES, 2))
NASTY = st.text(st.sampled_from(LETTERS), max_size=24)


# -- the seed's reference ----------------------------------------------------------------------------------------------


def speak(pieces):
    return lambda ids: "".join(pieces[i] for i in ids)


def test_the_seeds_example_cell_by_cell():
    encoder, decoder = speak(["Re", "frag", "ation"]), speak(["Refr", "ag", "ation"])
    assert compute_prefix_strings(encoder, [0, 1, 2]) == ["", "Re", "Refrag", "Refragation"]
    assert compute_prefix_strings(decoder, [0, 1, 2]) == ["", "Refr", "Refrag", "Refragation"]
    dp = compute_dp_matrix(decoder_ids=[0, 1, 2], encoder_ids=[0, 1, 2], dec_decode_fn=decoder, enc_decode_fn=encoder)
    assert dp == [
        [True, False, False, False],
        [False, False, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]
    assert alignment_pairs_from_dp(dp) == [(0, 0), (2, 2), (3, 3)]


def test_partial_alignment_and_lengths_that_differ():
    encoder, decoder = speak(["a", "bc", "x"]), speak(["ab", "c"])
    dp = compute_dp_matrix(decoder_ids=[0, 1], encoder_ids=[0, 1, 2], dec_decode_fn=decoder, enc_decode_fn=encoder)
    assert len(dp) == 4 and {len(row) for row in dp} == {3}
    assert alignment_pairs_from_dp(dp) == [(0, 0), (2, 2)]


def test_pairs_rise_strictly_where_tokens_decode_to_nothing():
    dp = [[True, True], [True, True], [False, False]]
    assert alignment_pairs_from_dp(dp) == [(0, 0), (1, 1)]


def test_edit_costs_bridge_case_and_special_tokens():
    encoder = compute_prefix_strings(speak(["[CLS]", "albert", " ein", "stein", " was"]), range(5))
    decoder = compute_prefix_strings(speak(["Albert", " Einstein", " was"]), range(3))
    assert cost_aware_pairs(encoder, decoder) == [(0, 0), (2, 1), (4, 2), (5, 3)]


@given(st.lists(st.sampled_from(["a", "b", "ab", " ", "A"]), max_size=8), st.data())
def test_edit_costs_keep_strict_anchors_and_rise(pieces, data):
    others = data.draw(st.lists(st.sampled_from(["a", "b", "ba", " ", "B"]), max_size=8))
    encoder = compute_prefix_strings(speak(pieces), range(len(pieces)))
    decoder = compute_prefix_strings(speak(others), range(len(others)))
    strict = alignment_pairs_from_dp([[e == d for d in decoder] for e in encoder])
    pairs = cost_aware_pairs(encoder, decoder)
    assert set(strict) <= set(pairs)
    assert all(i < k and j < m for (i, j), (k, m) in itertools.pairwise(pairs))


@pytest.mark.parametrize("text", SENTENCES)
def test_strict_anchors_are_the_seeds_where_decoding_is_faithful(text):
    encoder, decoder = tokenizer("roberta"), tokenizer("gpt2")
    found = align(text, encoder, decoder, unit="byte", strict=True)
    # One byte is one letter here, so that no prefix ends in the replacement character.
    letters = [letters_of(t, ids.ids) for t, ids in ((encoder, found.encoder), (decoder, found.decoder))]
    dp = [[e == d for d in letters[1]] for e in letters[0]]
    assert found.pairs == alignment_pairs_from_dp(dp)
    if text.isascii():
        plain = compute_dp_matrix(
            decoder_ids=found.decoder.ids,
            encoder_ids=found.encoder.ids,
            dec_decode_fn=decoder.decode,
            enc_decode_fn=encoder.decode,
        )
        assert plain == dp


def letters_of(tokenizer, ids):
    return compute_prefix_strings(lambda part: "".join(tokenizer.convert_ids_to_tokens(part)), ids)


# -- the oracle --------------------------------------------------------------------------------------------------------


def check(text, found, unit, strict):
    """Compare with every pair of cuts there is."""
    assert faults(found, Ruler.of(text, unit), strict=strict) == (0, 0), (text, found.anchors)


def test_the_oracle_sees_faults():
    """Of a right alignment, an anchor taken away is missing, one moved is spurious."""
    text = "The Library held 288"
    found = align(text, tokenizer("wordpiece"), tokenizer("gpt2"))
    assert faults(found, Ruler.of(text), strict=False) == (0, 0)
    fewer = dataclasses.replace(found, table=np.delete(found.table, 2, axis=0))
    assert faults(fewer, Ruler.of(text), strict=False).missing > 0
    moved = found.table.copy()
    moved[2, 1] += 1
    assert faults(dataclasses.replace(found, table=moved), Ruler.of(text), strict=False).spurious > 0
    shifted = found.table.copy()
    shifted[2, 3] += 1
    assert faults(dataclasses.replace(found, table=shifted), Ruler.of(text), strict=False).spurious > 0


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("unit", ["char", "byte"])
@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_hard_texts(encoder, decoder, unit, strict):
    for text in HARD:
        check(text, align(text, tokenizer(encoder), tokenizer(decoder), unit=unit, strict=strict), unit, strict)


@settings(max_examples=300, deadline=None)
@given(NASTY, st.sampled_from(PAIRS), st.sampled_from(["char", "byte"]), st.booleans())
@example("a ☃ aa", ("slow wordpiece", "gpt2"), "char", False)
def test_any_text(text, pair, unit, strict):
    check(text, align(text, tokenizer(pair[0]), tokenizer(pair[1]), unit=unit, strict=strict), unit, strict)


@settings(max_examples=100, deadline=None)
@given(NASTY, st.sampled_from(PAIRS))
def test_sides_can_be_exchanged(text, pair):
    there = align(text, tokenizer(pair[0]), tokenizer(pair[1]))
    back = align(text, tokenizer(pair[1]), tokenizer(pair[0]))
    assert [(j, i) for i, j in back.pairs] == there.pairs


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizer_agrees_with_itself_at_every_token(family):
    text = SENTENCES[0] + " " + SENTENCES[2]
    found = align(text, tokenizer(family), tokenizer(family))
    # SentencePiece's lone first ▁ stands on the first letter of the next token: no cut between the two.
    assert len(found.anchors) >= len(found.encoder)
    assert found.pairs[-1] == (len(found.encoder), len(found.encoder))


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_words_are_anchors_for_every_pair(encoder, decoder):
    """Of plain text, at least every word's end is an anchor, whatever the vocabularies, cases and byte tricks."""
    text = SENTENCES[0]
    found = align(text, tokenizer(encoder), tokenizer(decoder))
    ends = {lo for _, _, lo, _ in found.anchors}
    assert {p for p, c in enumerate(text) if c == " "} <= ends
    assert found.pairs[-1] == (len(found.encoder), len(found.decoder))


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_chunks_tile_tokens_and_text(encoder, decoder):
    text = " ".join(SENTENCES)
    found = align(text, tokenizer(encoder), tokenizer(decoder))
    chunks = list(found.chunks())
    assert chunks[0].i0 == chunks[0].j0 == chunks[0].start == 0
    assert chunks[-1].end == len(text)
    assert all((a.i1, a.j1, a.end) == (b.i0, b.j0, b.start) for a, b in itertools.pairwise(chunks))
    assert all(c.i1 > c.i0 and c.j1 > c.j0 for c in chunks)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(SENTENCES), st.sampled_from(SENTENCES), st.sampled_from(PAIRS))
def test_joined_texts_keep_their_anchors(left, right, pair):
    """Neither side's vocabulary reaches over a line's end, so the first text's inner anchors stay."""
    alone = align(left, tokenizer(pair[0]), tokenizer(pair[1]))
    joined = align(f"{left} \n {right}", tokenizer(pair[0]), tokenizer(pair[1]))
    assert {a.char_lo for a in alone.anchors[:-2]} <= {a.char_lo for a in joined.anchors}


def test_bytes_show_cuts_inside_characters():
    text = "한국어"
    inside = align(text, tokenizer("slow bytes"), tokenizer("gpt2"), unit="byte")
    assert len(inside.anchors) == len(inside.decoder) + 1
    outside = align(text, tokenizer("slow bytes"), tokenizer("gpt2"))
    assert {a.char_lo for a in outside.anchors} == {0, 1, 2, 3}


def test_fast_and_slow_of_one_vocabulary_stand_at_the_same_places():
    for text in [*SENTENCES, *HARD]:
        ruler = Ruler.of(text)
        fast, slow = (token_spans(text, tokenizer(name), ruler) for name in ("wordpiece", "slow wordpiece"))
        if fast.ids == slow.ids and 1 not in fast.ids and "한" not in text:
            assert (fast.starts.tolist(), fast.ends.tolist()) == (slow.starts.tolist(), slow.ends.tolist()), text


def test_a_walk_that_loses_its_way_claims_nothing_behind():
    """An unknown word that ends like what follows: matching it letter by letter would give wrong anchors."""
    text = "aaaa☃aaaa aaaa aaaa"
    found = align(text, tokenizer("slow wordpiece"), tokenizer("gpt2"))
    check(text, found, "char", False)
    truth = align(text, tokenizer("wordpiece"), tokenizer("gpt2"))
    assert set(found.pairs) <= set(truth.pairs)


def test_long_text_without_blanks():
    text = "".join(random.Random(0).choices("abcdefgh", k=20_000))
    found = align(text, tokenizer("llama"), tokenizer("gpt2"))
    assert found.pairs[-1] == (len(found.encoder), len(found.decoder)) and len(found.anchors) > 1000


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(UserError, match="half a surrogate pair"):
        align("a\ud800", tokenizer("gpt2"), tokenizer("gpt2"))


# -- the published vocabularies ----------------------------------------------------------------------------------------


def published():
    folder = os.environ.get("LATENTLAB_DATA")
    if not folder or not (Path(folder) / "tokenizers").is_dir():
        pytest.skip("LATENTLAB_DATA names no folder with tokenizers/")
    from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

    made = {}
    for family in sorted((Path(folder) / "tokenizers").iterdir()):
        if (family / "tokenizer.json").exists():
            made[family.name] = PreTrainedTokenizerFast(tokenizer_file=str(family / "tokenizer.json"))
        else:
            made[family.name] = GPT2Tokenizer(str(family / "vocab.json"), str(family / "merges.txt"))
    return made


def test_published_vocabularies_on_hard_texts():
    families = published()
    assert len(families) == 7
    for encoder, decoder in itertools.combinations_with_replacement(families, 2):
        for text in [*HARD, *SENTENCES[:3]]:
            for unit, strict in itertools.product(("char", "byte"), (False, True)):
                found = align(text, families[encoder], families[decoder], unit=unit, strict=strict)
                check(text, found, unit, strict)
