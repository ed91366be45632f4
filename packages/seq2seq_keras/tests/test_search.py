"""Greedy and beam search against slow references, and what they must never do."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import OPTIONS, SMALL, TINY, VOCABULARY, sharpen, texts

from seq2seq_keras.config import DecodeConfig
from seq2seq_keras.data.vocabulary import EOS, NEVER_WRITTEN, PAD, SOS, UNK
from seq2seq_keras.inference.beam import search_beam
from seq2seq_keras.inference.candidates import log_probabilities, prepare, repeated, word_ids
from seq2seq_keras.inference.greedy import search_greedy
from seq2seq_keras.inference.seed_models import SeedDecoder, make_decoder_model, make_encoder_model
from seq2seq_keras.inference.summarizer import compile_search
from seq2seq_keras.model.seq2seq import Seq2Seq

LENGTH = 7


def model_of(name, seed=0, scale=0.7):
    model = sharpen(Seq2Seq(VOCABULARY, OPTIONS[name], name == "coverage"), seed, scale)
    if hasattr(model, "output_bias"):
        model.output_bias.assign(model.output_bias * 3)
    return model


def words_of(row):
    return [int(i) for i in row if i not in (PAD, EOS)]


# -- candidates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tied", "small"])
def test_candidates_hold_the_whole_distribution_once(name):
    model = model_of(name)
    source, ext = texts(6)
    memory, state = model.encode(source)
    decoded, _ = model.step(np.full(6, SOS, np.int32), state, memory)
    candidates = prepare(tf.constant(ext), VOCABULARY, model.settings.pointer)
    found = np.exp(np.array(log_probabilities(decoded, candidates, VOCABULARY), np.float64))
    columns = [tf.fill([6], column) for column in range(found.shape[1])]
    ids = np.array([word_ids(column, candidates, VOCABULARY) for column in columns])  # (C, B)
    for b in range(6):
        p = Counter()
        logits = np.array(decoded.logits[b, 0], np.float64)
        gate = 1 / (1 + np.exp(-float(decoded.gate[b, 0]))) if model.settings.pointer else 1.0
        for i, value in enumerate(np.exp(logits) / np.exp(logits).sum()):
            p[i] += gate * value
        for place, weight in enumerate(decoded.attention[b, 0].numpy()):
            p[int(ext[b, place])] += (1 - gate) * weight
        ours = Counter()
        for word, value in zip(ids[:, b].tolist(), found[b], strict=True):
            if value > 1e-12:
                assert word not in ours, "a word has two live columns"
                ours[word] = value
        expected = {w: v for w, v in p.items() if w not in NEVER_WRITTEN and v > 1e-9}
        assert set(expected) <= set(ours)
        for word, value in expected.items():
            assert ours[word] == pytest.approx(value, rel=1e-3, abs=1e-7)
        assert not set(ours) & set(NEVER_WRITTEN)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(5, 8), max_size=8), st.integers(1, 4))
def test_repeated_names_the_words_that_end_a_known_ngram(tokens, n):
    ids = np.zeros((1, 8), np.int32)
    ids[0, : len(tokens)] = tokens
    found = {int(i) for i in repeated(tf.constant(ids), tf.constant(len(tokens)), n)[0] if i >= 0}
    known = {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}
    tail = tuple(tokens[len(tokens) - n + 1 :]) if n > 1 else ()
    expected = {gram[-1] for gram in known if gram[:-1] == tail} if len(tail) == n - 1 else set()
    assert found == expected


# -- greedy against the seed's loop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seed", "no mask", "small", "coverage"])
def test_the_compiled_loop_writes_what_the_seeds_loop_writes(name):
    model, rules = model_of(name), DecodeConfig(no_repeat_ngram=2, min_length=3)
    source, ext = texts(3, seed=5)
    found = compile_search(model, LENGTH, rules)(source, ext)[0].numpy()[:, 0]
    seed = SeedDecoder(model, source.shape[1], LENGTH, rules)
    for i in range(3):
        assert seed.decode_sequence(source[i : i + 1], ext[i : i + 1]) == words_of(found[i])


def test_the_seeds_two_models_have_its_inputs_and_outputs():
    model = model_of("seed")
    encoder, decoder = make_encoder_model(model, 7), make_decoder_model(model, 7)
    assert [tuple(o.shape) for o in encoder.outputs] == [(None, 7, 8), (None, 8), (None, 8)]
    names = [tensor.name for tensor in decoder.inputs]
    assert names == [
        "decoder_inputs",
        "decoder_hidden_state_input",
        "decoder_state_input_h",
        "decoder_state_input_c",
    ]
    assert [tuple(o.shape) for o in decoder.outputs] == [(None, 1, VOCABULARY), (None, 8), (None, 8)]
    # The encoder's mask reaches the decoder: a padded text gives what the text alone gives.
    padded, alone = np.array([[5, 9, 0, 0, 0, 0, 0]], np.int32), np.array([[5, 9]], np.int32)
    e_out, h, c = encoder.predict(padded, verbose=0)
    probabilities = decoder.predict([np.array([[SOS]]), e_out, h, c], verbose=0)[0]
    memory, state = model.encode(alone)
    decoded, _ = model.step(np.array([SOS], np.int32), state, memory)
    np.testing.assert_allclose(probabilities[0, 0], tf.nn.softmax(decoded.logits[0, 0]), atol=1e-6)
    with pytest.raises(ValueError, match="source_ext"):
        SeedDecoder(model_of("small"), 7, LENGTH, DecodeConfig()).decode_sequence(alone)


# -- what must hold for any weights ----------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from(["seed", "small", "coverage"]),
    st.sampled_from([1, 3]),
    st.integers(0, 3),
    st.integers(0, 4),
)
def test_rules_hold_for_random_weights(seed, name, beam, ngram, least):
    model = model_of(name, seed)
    source, ext = texts(3, seed=seed)
    config = DecodeConfig(beam=beam, n_best=beam, no_repeat_ngram=ngram, min_length=least)
    search = search_greedy if beam == 1 else search_beam
    found = search(model, tf.constant(source), tf.constant(ext), LENGTH, config)
    for b in range(3):
        seen = set()
        for ids, score in zip(found.ids[b].numpy(), found.scores[b].numpy(), strict=True):
            if score < -1e8:
                continue  # a rule left no other hypothesis
            words = words_of(ids)
            assert not set(words) & set(NEVER_WRITTEN)
            assert all(w < VOCABULARY or w in ext[b] for w in words)
            assert len(words) >= min(least, LENGTH)
            end = len(words) + (EOS in ids)
            assert (ids[end:] == PAD).all() and (EOS not in ids[: len(words)])
            if ngram:
                grams = [tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)]
                assert len(set(grams)) == len(grams)
            assert tuple(words) not in seen, "two hypotheses are the same"
            seen.add(tuple(words))
        scores = found.scores[b].numpy()
        assert (np.diff(scores) <= 1e-6).all()


@pytest.mark.parametrize("name", ["seed", "small", "coverage"])
def test_a_beam_of_one_is_greedy(name):
    model, (source, ext) = model_of(name), texts(6)
    config = DecodeConfig(length_penalty=0.0)
    greedy = search_greedy(model, tf.constant(source), tf.constant(ext), LENGTH, config)
    beam = search_beam(model, tf.constant(source), tf.constant(ext), LENGTH, config)
    assert (greedy.ids.numpy() == beam.ids.numpy()).all()
    np.testing.assert_allclose(greedy.scores, beam.scores, rtol=1e-5)
    np.testing.assert_allclose(greedy.attention, beam.attention, atol=1e-6)
    np.testing.assert_allclose(greedy.copied, beam.copied, atol=1e-6)


def all_hypotheses(model, source, ext, length, alpha):
    """Every possible summary of one text with its score: exhaustive, for a tiny vocabulary."""
    live, ended = [((), 0.0, model.encode(source)[1])], []
    memory = model.encode(source)[0]
    candidates = prepare(tf.constant(ext), model.vocabulary_size, model.settings.pointer)
    for step in range(length):
        nxt = []
        for words, total, state in live:
            last = words[-1] if words else SOS
            last = last if last < model.vocabulary_size else UNK
            decoded, after = model.step(np.array([last], np.int32), state, memory)
            log_p = log_probabilities(decoded, candidates, model.vocabulary_size).numpy()[0]
            for column, value in enumerate(log_p):
                if value < -1e8:
                    continue
                word = int(word_ids(tf.constant([column]), candidates, model.vocabulary_size)[0])
                (ended if word == EOS or step == length - 1 else nxt).append(((*words, word), total + value, after))
        live = nxt
    return sorted(((t / ((5 + len(w)) / 6) ** alpha, w) for w, t, _ in ended), reverse=True)


@pytest.mark.parametrize("pointer", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all(pointer, alpha):
    # Wide enough for every first word, so that nothing is pruned before the last step.
    size = 8
    model = sharpen(Seq2Seq(size, replace(SMALL if pointer else TINY, dropout=0.0)), 3, 0.6)
    source, ext = np.array([[5, 1, 6]], np.int32), np.array([[5, size, 6]], np.int32)
    expected = all_hypotheses(model, source, ext, 2, alpha)
    config = DecodeConfig(beam=8, n_best=8, no_repeat_ngram=0, min_length=0, length_penalty=alpha)
    found = search_beam(model, tf.constant(source), tf.constant(ext), 2, config)
    ids, scores = found.ids[0].numpy(), found.scores[0].numpy()
    assert tuple(int(i) for i in ids[0] if i != PAD) == expected[0][1]
    assert scores[0] == pytest.approx(expected[0][0], rel=1e-4)
    table = {words: score for score, words in expected}
    for row, score in zip(ids, scores, strict=True):
        if score > -1e8:
            assert table[tuple(int(i) for i in row if i != PAD)] == pytest.approx(float(score), rel=1e-4)


@pytest.mark.parametrize("beam", [1, 3])
def test_batch_mates_and_padding_change_nothing(beam):
    model, (source, ext) = model_of("small"), texts(5)
    search = compile_search(model, LENGTH, DecodeConfig(beam=beam))
    together = search(np.pad(source, ((0, 0), (0, 4))), np.pad(ext, ((0, 0), (0, 4))))[0].numpy()
    for i in range(5):
        width = int((source[i] != 0).sum())
        alone = search(source[i : i + 1, :width], ext[i : i + 1, :width])[0].numpy()
        assert (alone[0] == together[i]).all()


def test_attention_is_that_of_the_words_written():
    model, (source, ext) = model_of("small"), texts(3)
    found = search_beam(model, tf.constant(source), tf.constant(ext), LENGTH, DecodeConfig(beam=3))
    for b in range(3):
        words = found.ids[b, 0].numpy()
        length = int((words != PAD).sum())
        target = np.array([[SOS, *[w if w < VOCABULARY else UNK for w in words[: length - 1]]]], np.int32)
        memory, state = model.encode(source[b : b + 1])
        decoded = model.decode_teacher_forced(target, state, memory)
        np.testing.assert_allclose(found.attention[b, 0, :length], decoded.attention[0], atol=1e-5)
        in_source = np.isin(words[:length], ext[b])  # no other word can have been copied
        share = tf.sigmoid(-decoded.gate[0]).numpy() * in_source
        np.testing.assert_allclose(found.copied[b, 0, :length], share, atol=1e-5)
        assert (found.attention[b, 0, length:].numpy() == 0).all()


def test_a_greedy_word_that_is_not_in_the_source_was_not_copied():
    model, (source, ext) = model_of("small"), texts(6)
    found = search_greedy(model, tf.constant(source), tf.constant(ext), LENGTH, DecodeConfig())
    for b in range(6):
        words = found.ids[b, 0].numpy()
        copied = found.copied[b, 0].numpy()
        live = words != PAD
        assert ((copied > 0)[live] == np.isin(words, ext[b])[live]).all()
    assert (found.copied.numpy() > 0).any()
