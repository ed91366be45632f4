"""Settings: the seed's numbers as defaults, ranges, and one line for each mistake."""

import re

import pytest

from latentlab_shared.config import load_config
from latentlab_shared.errors import UserError
from seq2seq_keras.config import PRESETS, DecodeConfig, ModelConfig, Settings, TrainConfig


def test_defaults_are_the_seeds():
    made = Settings()
    assert (made.data.vocabulary_size, made.data.max_source, made.data.max_target) == (10_000, 50, 20)
    model = made.model
    assert (model.embedding_dim, model.units, model.encoder_layers, model.dropout) == (100, 256, 3, 0.4)
    assert (model.attention, model.pointer, model.bidirectional, model.share_embeddings) == (
        "bahdanau",
        False,
        False,
        False,
    )
    train = made.train
    assert (train.batch_size, train.epochs, train.patience, train.optimizer) == (60, 40, 2, "rmsprop")
    assert PRESETS["full"] == made


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.units=0", "units is 0; it must be at least 1"),
        ("model.dropout=1", "dropout is 1; it must be from 0 to 0.99"),
        ("model.unit=3", "Did you mean model.units?"),
        ("model.attention=luong", "not one of bahdanau, keras_additive"),
        ("model.units=255", "not of type"),
        ("data.vocabulary_size=5", "vocabulary_size is 5"),
        ("train.epochs=0", "epochs is 0"),
        ("train.epochs=2.5", "not of type int"),
        ("train.seed=-1", "seed is -1"),
        ("decode.n_best=2", "n_best is 2"),
        ("decode.beam=65", "beam is 65"),
    ],
)
def test_mistakes_are_named(override, said):
    overrides = [override]
    if override == "model.units=255":
        overrides, said = [override, "model.bidirectional=true"], "even number"
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        load_config(Settings, None, overrides)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TrainConfig(optimizer="sgd"), "optimizer is 'sgd'; it must be one of: rmsprop, adam"),
        (lambda: ModelConfig(attention="luong"), "must be one of: bahdanau, keras_additive"),
        (lambda: ModelConfig(units=2.5), "units is 2.5, which is no int"),
        (lambda: ModelConfig(units=True), "units is True, which is no int"),
        (lambda: ModelConfig(pointer=1), "pointer is 1, which is no bool"),
        (lambda: ModelConfig(dropout="0.1"), "which is no float"),
        (lambda: DecodeConfig(beam="4"), "which is no int"),
    ],
)
def test_python_is_told_as_much_as_the_command_line(make, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        make()


def test_coverage_needs_its_attention():
    with pytest.raises(UserError, match="coverage needs"):
        load_config(Settings, None, ["model.coverage=true", "model.attention=keras_additive"])
    with pytest.raises(UserError, match="above max_length"):
        load_config(Settings, None, ["decode.min_length=5", "decode.max_length=3"])
