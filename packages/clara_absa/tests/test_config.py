"""The seed's numbers, and what is refused."""

import pytest

from clara_absa.configs import ClaraConfig, LoraSettings, LossConfig, MemoryConfig, Task, TrainConfig
from clara_absa.configs.schema import PROMPTS
from latentlab_shared.config import load_config
from latentlab_shared.errors import UserError


def test_the_seeds_numbers_are_the_defaults():
    config = ClaraConfig.default("phi")
    assert config.backbone == "microsoft/Phi-3.5-mini-instruct"
    assert (config.memory.tokens, config.memory.max_text_tokens) == (8, 246)
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (16, 32.0, 0.05)
    assert (config.loss.alpha, config.loss.beta, config.loss.gamma) == ((1.0, 0.2), (0.1, 1.0), 0.1)
    assert config.loss.schedule == "linear"
    train = config.train
    assert (train.epochs, train.batch_size, train.learning_rate, train.warmup, train.clip) == (5, 8, 1e-4, 0.1, 1.0)
    assert PROMPTS == {
        Task.RECONSTRUCTION: "Restore text:",
        Task.EXTRACTION: "List all aspects:",
        Task.REASONING: "Sentiment of {aspect}?",
    }


@pytest.mark.parametrize("profile", ["phi", "sample", "scratch", "light"])
def test_profiles_survive_json(profile):
    config = ClaraConfig.default(profile)
    assert ClaraConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        (MemoryConfig, "tokens", 0),
        (MemoryConfig, "ratio", 0.5),
        (MemoryConfig, "sizes", (2, 4)),
        (MemoryConfig, "max_text_tokens", 1),
        (MemoryConfig, "window", 0),
        (TrainConfig, "word_dropout", 1.0),
        (LoraSettings, "rank", -1),
        (LoraSettings, "dropout", 1.0),
        (LossConfig, "alpha", (-1.0, 1.0)),
        (LossConfig, "rec_share", 1.5),
        (TrainConfig, "learning_rate", 0.0),
        (TrainConfig, "learning_rate", float("nan")),
        (TrainConfig, "accumulate", 9),
    ],
)
def test_a_number_out_of_range_is_named(group, key, value):
    with pytest.raises(UserError, match=key):
        group(**{key: value})


def test_mistakes_of_a_user_are_one_line():
    with pytest.raises(UserError, match=r"unknown key memory.token.*Did you mean memory.tokens"):
        load_config(ClaraConfig, None, ["memory.token=4"])
    with pytest.raises(UserError, match="not a profile"):
        ClaraConfig.default("large")
    with pytest.raises(UserError, match=r"at least 1, not 0. For example: --set 'memory.window=4'"):
        MemoryConfig(start="matched", window=0)
    with pytest.raises(UserError, match=r"memory.window.*stretches of text"):
        MemoryConfig(window=3)
    with pytest.raises(UserError, match=r"train.word_dropout.*hides no words"):
        ClaraConfig(recipe="seed", train=TrainConfig(word_dropout=0.1))
    with pytest.raises(UserError, match="exclude each other"):
        MemoryConfig(tokens=4, sizes=(2, 4), ratio=4.0)
    with pytest.raises(UserError, match=r"memory.reader"):
        ClaraConfig(recipe="seed", memory=MemoryConfig(reader="none"))


def test_a_line_names_who_reads_and_who_answers():
    assert ClaraConfig.default("light").described == "minilm before tiny"
    assert ClaraConfig.default("sample").described == "backbone tiny"
