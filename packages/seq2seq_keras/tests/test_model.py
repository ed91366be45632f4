"""The network: sizes, a NumPy oracle, masks, and that one word at a time gives what all words at once give."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import OPTIONS, SMALL, TINY, VOCABULARY, sharpen, texts

from latentlab_shared.errors import UserError
from seq2seq_keras.config import PRESETS, ModelConfig
from seq2seq_keras.model.attention import BahdanauAttention
from seq2seq_keras.model.seq2seq import Seq2Seq
from seq2seq_keras.model.weights import load_variables, named_weights, save_variables
from seq2seq_keras.training.loss import batch_loss, token_nll


@pytest.mark.parametrize(
    ("size", "config", "parameters"),
    [
        (10_001, ModelConfig(attention="keras_additive"), 8_912_729),
        (10_000, ModelConfig(attention="keras_additive"), 8_912_016),
        (10_000, ModelConfig(), 9_043_088),
        (10_000, PRESETS["small"].model, 1_793_305),
    ],
)
def test_parameters(size, config, parameters):
    model = Seq2Seq(size, config)
    assert model.count_params() == parameters
    if config.attention == "keras_additive":
        assert model.attention.count_params() == 256
    else:
        assert model.attention.count_params() == 131_328


# -- oracle ----------------------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_step(x, h, c, kernel, recurrent, bias):
    i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def oracle(model, source, target_in):
    """Logits and attention of one unpadded text, written out step by step."""
    w = {name.removeprefix("seq2seq/"): np.array(v, np.float64) for name, v in named_weights(model).items()}
    weights = [w[f"encoder_lstm1/lstm_cell/{part}"] for part in ("kernel", "recurrent_kernel", "bias")]
    h = c = np.zeros(TINY.units)
    outputs = []
    for token in source:
        h, c = lstm_step(w["source_embedding/embeddings"][token], h, c, *weights)
        outputs.append(h)
    weights = [w[f"decoder_lstm/lstm_cell/{part}"] for part in ("kernel", "recurrent_kernel", "bias")]
    logits, attention = [], []
    for token in target_in:
        h, c = lstm_step(w["target_embedding/embeddings"][token], h, c, *weights)
        score = [w["attention/v"] @ np.tanh(h @ w["attention/W1"] + o @ w["attention/W2"]) for o in outputs]
        share = np.exp(score - np.max(score)) / np.exp(score - np.max(score)).sum()
        context = sum(s * o for s, o in zip(share, outputs, strict=True))
        logits.append(np.concatenate([h, context]) @ w["projection/kernel"] + w["projection/bias"])
        attention.append(share)
    return np.array(logits), np.array(attention)


def test_the_model_is_what_the_equations_say():
    model = sharpen(Seq2Seq(VOCABULARY, TINY), scale=0.5)
    source, target = [5, 9, 7, 20, 6], [2, 11, 8, 5]
    memory, state = model.encode(np.array([source], np.int32))
    decoded = model.decode_teacher_forced(np.array([target], np.int32), state, memory)
    logits, attention = oracle(model, source, target)
    np.testing.assert_allclose(decoded.logits[0], logits, atol=1e-5)
    np.testing.assert_allclose(decoded.attention[0], attention, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_without_projections_is_keras_own(masked):
    rng = np.random.default_rng(0)
    query, value = rng.normal(size=(2, 3, 4)).astype("float32"), rng.normal(size=(2, 5, 4)).astype("float32")
    ours, theirs = BahdanauAttention(4, project=False), keras.layers.AdditiveAttention()
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool) if masked else None
    given = [None, mask] if masked else None
    expected, scores = theirs([query, value], mask=given, return_attention_scores=True)
    ours.build(query.shape, value.shape)
    ours.v.assign(theirs.scale)
    context, weights = ours(query, value, mask=given)
    np.testing.assert_allclose(context, expected, atol=1e-6)
    np.testing.assert_allclose(weights, scores, atol=1e-6)
    again = BahdanauAttention.from_config(ours.get_config())
    assert (again.units, again.project, again.coverage) == (4, False, False)
    with pytest.raises(ValueError, match="4 wide"):
        BahdanauAttention(4, project=False).build((None, None, 3), (None, None, 4))


# -- invariances -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_one_word_at_a_time_gives_what_all_at_once_give(name):
    covering = name == "coverage"
    model = sharpen(Seq2Seq(VOCABULARY, OPTIONS[name], covering), scale=0.5)
    source, _ = texts(4)
    target = np.random.default_rng(1).integers(5, VOCABULARY, (4, 6)).astype(np.int32)
    memory, state = model.encode(source)
    whole = model.decode_teacher_forced(target, state, memory)
    for t in range(6):
        one, state = model.step(target[:, t], state, memory)
        np.testing.assert_allclose(one.logits[:, 0], whole.logits[:, t], atol=1e-5)
        np.testing.assert_allclose(one.attention[:, 0], whole.attention[:, t], atol=1e-5)
        if whole.gate is not None:
            np.testing.assert_allclose(one.gate[:, 0], whole.gate[:, t], atol=1e-5)
    np.testing.assert_allclose(np.sum(whole.attention, -1), 1, atol=1e-5)
    assert (whole.overlap is not None) == covering


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - {"no mask"}))
def test_padding_and_batch_mates_change_nothing(name):
    model = sharpen(Seq2Seq(VOCABULARY, OPTIONS[name], name == "coverage"), scale=0.5)
    source, _ = texts(3)
    target = np.array([[2, 7, 8]] * 3, np.int32)
    memory, state = model.encode(np.pad(source, ((0, 0), (0, 5))))
    padded = model.decode_teacher_forced(target, state, memory)
    for i, row in enumerate(source):
        alone = row[row != 0][None]
        memory, state = model.encode(alone)
        decoded = model.decode_teacher_forced(target[:1], state, memory)
        np.testing.assert_allclose(padded.logits[i], decoded.logits[0], atol=1e-5)
        assert (np.array(padded.attention[i])[:, alone.shape[1] :] == 0).all()


def test_without_a_mask_padding_takes_attention_as_in_the_seed():
    model = sharpen(Seq2Seq(VOCABULARY, OPTIONS["no mask"]), scale=0.3)
    memory, state = model.encode(np.array([[5, 6, 7, 0, 0, 0]], np.int32))
    attention = model.decode_teacher_forced(np.array([[2]], np.int32), state, memory).attention
    assert np.array(attention)[0, 0, 3:].sum() > 0.2


def test_coverage_begins_as_the_model_it_goes_on_from():
    plain, covering = Seq2Seq(VOCABULARY, OPTIONS["coverage"]), Seq2Seq(VOCABULARY, OPTIONS["coverage"], True)
    for ours, theirs in zip(covering.weights, sharpen(plain).weights, strict=True):
        ours.assign(theirs)
    covering.attention.w_coverage.assign(np.zeros(8))
    inputs = (texts(3)[0], np.array([[2, 7, 8, 9]] * 3, np.int32))
    np.testing.assert_allclose(covering(inputs), plain(inputs), atol=1e-5)
    covering.attention.w_coverage.assign(np.full(8, -3.0))
    assert np.abs(np.array(covering(inputs)) - np.array(plain(inputs))).max() > 1e-3
    with pytest.raises(ValueError, match="covering"):
        Seq2Seq(VOCABULARY, TINY, covering=True)


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seed", "coverage"])
def test_keras_files_and_safetensors_round_trip(name, tmp_path):
    model = sharpen(Seq2Seq(VOCABULARY, OPTIONS[name], name == "coverage"))
    inputs = (texts(3)[0], np.array([[2, 7, 8]] * 3, np.int32))
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert again.settings == model.settings and again.covering == model.covering
    np.testing.assert_array_equal(again(inputs), model(inputs))
    save_variables(named_weights(model), tmp_path / "m.safetensors")
    other = Seq2Seq(VOCABULARY, OPTIONS[name], name == "coverage")
    load_variables(named_weights(other), tmp_path / "m.safetensors")
    np.testing.assert_array_equal(other(inputs), model(inputs))


def test_weights_of_another_model_are_refused_and_nothing_is_changed(tmp_path):
    model, other = Seq2Seq(VOCABULARY, TINY), Seq2Seq(VOCABULARY + 1, TINY)
    save_variables(named_weights(other), tmp_path / "other.safetensors")
    before = [np.array(w) for w in model.weights]
    with pytest.raises(UserError, match="shape"):
        load_variables(named_weights(model), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="missing"):
        load_variables(named_weights(Seq2Seq(VOCABULARY + 1, SMALL)), tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:100])
    for name in ("cut", "none"):
        with pytest.raises(UserError):
            load_variables(named_weights(model), tmp_path / f"{name}.safetensors")
    assert all((a == np.array(b)).all() for a, b in zip(before, model.weights, strict=True))


def test_a_copy_without_dropout_is_the_same_network():
    model = Seq2Seq(VOCABULARY, replace(SMALL, dropout=0.4))
    inputs = (texts(3)[0], np.array([[2, 7, 8]] * 3, np.int32))
    assert (np.array(model(inputs, training=True)) != np.array(model(inputs))).any()
    quiet = model.without_dropout()
    np.testing.assert_array_equal(quiet(inputs, training=True), model(inputs))
    assert quiet.without_dropout() is quiet


# -- loss ------------------------------------------------------------------------------------------------------------


def test_the_pointers_loss_is_that_of_the_whole_distribution():
    model = sharpen(Seq2Seq(VOCABULARY, SMALL), scale=0.5)
    source, ext = texts(5, seed=3)
    target = np.random.default_rng(2).integers(5, VOCABULARY + 3, (5, 4)).astype(np.int32)
    memory, state = model.encode(source)
    decoded = model.decode_teacher_forced(np.full((5, 4), 2, np.int32), state, memory)
    found = np.array(token_nll(decoded, target, ext, VOCABULARY))
    logits, attention = np.array(decoded.logits, np.float64), np.array(decoded.attention, np.float64)
    gate = sigmoid(np.array(decoded.gate, np.float64))
    for b in range(5):
        for t in range(4):
            p = np.zeros(VOCABULARY + 10)
            p[:VOCABULARY] = gate[b, t] * np.exp(logits[b, t]) / np.exp(logits[b, t]).sum()
            for s in range(ext.shape[1]):
                p[ext[b, s]] += (1 - gate[b, t]) * attention[b, t, s]
            assert found[b, t] == pytest.approx(-np.log(p[target[b, t]] + 1e-10), abs=1e-4)
            assert p.sum() == pytest.approx(1, abs=1e-5)


def test_padding_counts_only_where_the_seed_counted_it():
    model = Seq2Seq(VOCABULARY, TINY)
    source, ext = texts(2)
    target = np.array([[7, 3, 0, 0], [8, 9, 10, 3]], np.int32)
    memory, state = model.encode(source)
    decoded = model.decode_teacher_forced(target, state, memory)
    nll = np.array(token_nll(decoded, target, ext, VOCABULARY))
    masked = batch_loss(decoded, target, ext, VOCABULARY)
    counted = batch_loss(decoded, target, ext, VOCABULARY, mask_padding=False)
    assert float(masked.tokens) == 6 and float(counted.tokens) == 8
    assert float(masked.nll) == pytest.approx(nll[target != 0].sum(), rel=1e-5)
    assert float(counted.nll) == pytest.approx(nll.sum(), rel=1e-5)
    expected = tf.nn.sparse_softmax_cross_entropy_with_logits(target, decoded.logits)
    np.testing.assert_allclose(nll, expected, atol=1e-5)
