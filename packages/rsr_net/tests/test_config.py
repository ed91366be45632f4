"""Configuration: defaults, round trips, and what is refused."""

import dataclasses
import json
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentlab_shared.errors import UserError
from rsr_net.config import ModelConfig, RsrConfig, TrainConfig


def anything(kind):
    """Any configuration whose values are of the annotated types."""
    by_name = {}
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            by_name[name] = anything(hint)
        elif get_origin(hint) is Literal:
            by_name[name] = st.sampled_from(get_args(hint))
        elif get_origin(hint) is tuple:
            by_name[name] = st.lists(st.floats(0, 9), min_size=1, max_size=4).map(tuple)
        else:
            by_name[name] = {int: st.integers(1, 999), float: st.floats(0, 1)}[hint]
    return st.builds(kind, **by_name)


@given(anything(RsrConfig))
def test_round_trip_through_json(config):
    assert RsrConfig.from_dict(config.to_dict()) == config
    assert RsrConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_part_keeps_the_other_defaults():
    found = RsrConfig.from_dict({"recipe": "seed", "model": {"latent_dim": 3}})
    assert found == RsrConfig("seed", ModelConfig(latent_dim=3), TrainConfig())
    assert RsrConfig.from_dict({}) == RsrConfig()


def test_the_seeds_numbers_are_its_defaults():
    config = RsrConfig.default("seed")
    assert config.recipe == "seed"
    model = {"input_dim": 768, "hidden_dim": 128, "latent_dim": 64, "n": 4, "T": 3, "norm": "batch"}
    train = {"epochs": 2, "learning_rate": 1e-3, "aux_weight": 0.1}
    plain = config.to_dict()
    assert plain["model"].items() >= {**model, "confidence": "max"}.items()
    assert plain["train"].items() >= train.items()


@pytest.mark.parametrize("recipe", ["rsr", "seed"])
def test_default_of_a_recipe_takes_the_encoders_width(recipe):
    config = RsrConfig.default(recipe, 24)
    assert (config.recipe, config.model.input_dim) == (recipe, 24)


def test_configurations_cannot_be_changed():
    config = RsrConfig()
    for part, name in ((config, "recipe"), (config.model, "steps"), (config.train, "seed")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, 1)


@pytest.mark.parametrize(
    ("values", "where", "nearest"),
    [
        ({"recpie": "rsr"}, "recpie", "recipe"),
        ({"modle": {}}, "modle", "model"),
        ({"model": {"hiden_dim": 8}}, "model.hiden_dim", "model.hidden_dim"),
        ({"model": {"t": 3}}, "model.t", "model."),
        ({"train": {"learning_rat": 0.1}}, "train.learning_rat", "train.learning_rate"),
        ({"train": {"lr": 0.1}}, "train.lr", "train."),
        ({"train": {"batchsize": 1}}, "train.batchsize", "train.batch_size"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(values, where, nearest):
    with pytest.raises(UserError) as caught:
        RsrConfig.from_dict(values)
    assert caught.value.where == where
    assert caught.value.what == "unknown setting"
    assert caught.value.fix.startswith(f"Did you mean {nearest}")
    if not nearest.endswith("."):
        assert caught.value.fix == f"Did you mean {nearest}?"
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("values", "where", "what"),
    [
        ({"recipe": "sed"}, "recipe", "'sed' is not a choice"),
        ({"model": {"norm": 1}}, "model.norm", "1 is not a choice"),
        ({"model": {"steps": "8"}}, "model.steps", "'8' is not of type int"),
        ({"model": {"steps": 8.0}}, "model.steps", "8.0 is not of type int"),
        ({"model": {"steps": True}}, "model.steps", "True is not of type int"),
        ({"model": {"step_size": False}}, "model.step_size", "False is not of type float"),
        ({"train": {"ridge": 0.1}}, "train.ridge", "0.1 is not of type"),
        ({"train": {"ridge": [0.1, "x"]}}, "train.ridge", "'x' is not of type float"),
        ({"train": {"seed": None}}, "train.seed", "None is not of type int"),
        ({"model": [1]}, "model", "[1] is not a group of settings"),
        ([], "configuration", "[] is not a group of settings"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_key(values, where, what):
    with pytest.raises(UserError) as caught:
        RsrConfig.from_dict(values)
    assert caught.value.where == where
    assert what in caught.value.what


def test_a_choice_that_is_refused_comes_with_the_choices():
    with pytest.raises(UserError, match=r"model\.confidence: 'min' is not a choice\. Use one of: max, aux\."):
        RsrConfig.from_dict({"model": {"confidence": "min"}})


def test_whole_numbers_serve_as_fractions_and_lists_as_tuples():
    found = RsrConfig.from_dict({"model": {"step_size": 1}, "train": {"ridge": [1, 0.5], "clip": 2}})
    assert type(found.model.step_size) is float and type(found.train.clip) is float
    assert found.train.ridge == (1.0, 0.5) and all(type(value) is float for value in found.train.ridge)
