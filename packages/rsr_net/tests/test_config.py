"""Configuration: defaults, round trips, and what is refused."""

import dataclasses
import json
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
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
            by_name[name] = st.lists(st.floats(0.01, 9), min_size=1, max_size=4).map(tuple)
        else:
            by_name[name] = {int: st.integers(1, 999), float: st.floats(0.01, 0.99)}[hint]
    return st.builds(kind, **by_name)


@settings(deadline=None)
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
    ("values", "key", "nearest"),
    [
        ({"recpie": "rsr"}, "recpie", "recipe"),
        ({"modle": {}}, "modle", "model"),
        ({"model": {"hiden_dim": 8}}, "model.hiden_dim", "model.hidden_dim"),
        ({"train": {"learning_rat": 0.1}}, "train.learning_rat", "train.learning_rate"),
        ({"train": {"batchsize": 1}}, "train.batchsize", "train.batch_size"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(values, key, nearest):
    with pytest.raises(UserError) as caught:
        RsrConfig.from_dict(values)
    assert caught.value.what == f"unknown key {key}"
    assert caught.value.fix == f"Did you mean {nearest}?"
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"recipe": "sed"}, "recipe='sed' is not one of rsr, seed"),
        ({"model": {"norm": 1}}, "model.norm=1 is not one of batch, layer"),
        ({"model": {"steps": "8"}}, "model.steps='8' is not of type int"),
        ({"model": {"steps": 8.0}}, "model.steps=8.0 is not of type int"),
        ({"model": {"steps": True}}, "model.steps=True is not of type int"),
        ({"model": {"step_size": False}}, "model.step_size=False is not of type float"),
        ({"train": {"ridge": 0.1}}, "train.ridge=0.1 is not of type"),
        ({"train": {"ridge": [0.1, "x"]}}, "train.ridge[1]='x' is not of type float"),
        ({"train": {"seed": None}}, "train.seed=None is not of type int"),
        ({"model": [1]}, "model=[1] is not of type ModelConfig"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_key(values, said):
    with pytest.raises(UserError) as caught:
        RsrConfig.from_dict(values)
    assert said in caught.value.what


# Of each number: values that are refused, and the words that say why.
OUT_OF_RANGE = {
    **dict.fromkeys(("input_dim", "hidden_dim", "latent_dim"), ((0, -1, 10**9), "from 1 to 65536")),
    **dict.fromkeys(
        ("n", "T", "heads", "steps", "n_supervision", "gradient_steps", "cross_fits"),
        ((0, -1, 10**9), "from 1 to 1024"),
    ),
    **dict.fromkeys(("batch_size", "patience"), ((0,), "at least 1")),
    "epochs": ((-1,), "at least 0"),
    "seed": ((-1, 2**32, 10**20), "from 0 to 4294967295"),
    **dict.fromkeys(
        ("aux_weight", "stop_confidence", "weight_decay", "contrastive_weight"), ((-0.1, float("nan")), "at least 0")
    ),
    **dict.fromkeys(("learning_rate", "clip"), ((0.0, -1.0, float("inf")), "above 0")),
    "ridge": (((), (0.0,), (0.1, -1.0)), "above 0"),
    "ema_decay": ((-0.1, 1.1), "in [0, 1]"),
    "step_size": ((0.0, 5.0, float("nan")), "in (0, 1]"),
    **dict.fromkeys(("dropout", "latent_dropout", "sentence_dropout"), ((1.0, 1.5, -0.1), "in [0, 1)")),
}


@pytest.mark.parametrize("group", ["model", "train"])
def test_every_number_has_a_range_and_refuses_what_is_outside(group):
    kind = {"model": ModelConfig, "train": TrainConfig}[group]
    for name, hint in get_type_hints(kind).items():
        if get_origin(hint) is Literal:
            continue
        for value in OUT_OF_RANGE[name][0]:
            with pytest.raises(UserError) as caught:
                kind(**{name: value})
            assert caught.value.where == f"{group}.{name}"
            assert caught.value.what.startswith(f"must be {OUT_OF_RANGE[name][1]}, not "), name
            assert f"--set '{group}.{name}=" in caught.value.fix
            with pytest.raises(UserError, match="must be"):
                RsrConfig.from_dict({group: {name: value}})


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (ModelConfig, "step_size", 1.0),
        (ModelConfig, "dropout", 0.0),
        (TrainConfig, "ema_decay", 0.0),
        (TrainConfig, "ema_decay", 1.0),
        (TrainConfig, "epochs", 0),
        (TrainConfig, "seed", 0),
        (TrainConfig, "seed", 2**32 - 1),
        (ModelConfig, "hidden_dim", 65536),
        (TrainConfig, "contrastive_weight", 0.0),
    ],
)
def test_the_ends_of_a_range_belong_to_it(kind, name, value):
    assert getattr(kind(**{name: value}), name) == value


def test_whole_numbers_serve_as_fractions_and_lists_as_tuples():
    found = RsrConfig.from_dict({"model": {"step_size": 1}, "train": {"ridge": [1, 0.5], "clip": 2}})
    assert type(found.model.step_size) is float and type(found.train.clip) is float
    assert found.train.ridge == (1.0, 0.5) and all(type(value) is float for value in found.train.ridge)
