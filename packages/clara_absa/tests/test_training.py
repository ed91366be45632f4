"""Gradients and the loop: equal by every road, and the same after an interruption."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from clara_helpers import EXAMPLES, tiny

from clara_absa.configs import ClaraConfig, LoraSettings, LossConfig, MemoryConfig, TrainConfig
from clara_absa.training.fit import fit, learning_rate_share
from clara_absa.training.objectives import PackedObjective, SeedObjective
from clara_absa.training.schedules import Uncertainty, make_schedule
from latentlab_shared.errors import UserError

FULL = LoraSettings(rank=0)


def config_of(memory=None, loss=None, lora=FULL, recipe="clara", **train) -> ClaraConfig:
    train = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, **train}
    return ClaraConfig(
        recipe=recipe,
        backbone="tiny",
        memory=memory or MemoryConfig(tokens=4),
        lora=lora,
        loss=loss or LossConfig(),
        train=TrainConfig(**train),
    )


def objective_of(config, examples=EXAMPLES, kind=PackedObjective, lora=None, **more):
    model, batcher = tiny(config.memory, lora)
    schedule = make_schedule(config.loss)
    items = [batcher.item(example) for example in examples]
    return model, schedule, kind(model, batcher, items, config, schedule, **more)


def gradients(model, objective, units, progress=0.3) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    for loss, _ in objective.parts(units, 0, progress):
        loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(a, b, tolerance=1e-5):
    assert a.keys() == b.keys() and a
    for name in a:
        scale = float(b[name].abs().max())
        assert float((a[name] - b[name]).abs().max()) <= tolerance * max(scale, 1e-3), name


@pytest.mark.parametrize("schedule", ["linear", "uncertainty"])
def test_accumulated_parts_have_the_gradient_of_one(schedule):
    found = []
    for accumulate in (1, 3):
        model, weights, objective = objective_of(config_of(loss=LossConfig(schedule=schedule), accumulate=accumulate))
        found.append(gradients(model, objective, range(4)))
        found[-1] |= {name: p.grad.clone() for name, p in weights.named_parameters()}
    assert_equal(found[1], found[0])


def test_two_processes_together_have_the_gradient_of_one():
    model, _, objective = objective_of(config_of())
    alone = gradients(model, objective, range(5))
    shares = []
    for rank in range(2):
        model, _, objective = objective_of(config_of(), rank=rank, world=2)
        shares.append(gradients(model, objective, range(5)))
    assert_equal({name: (shares[0][name] + shares[1][name]) / 2 for name in alone}, alone)


@pytest.mark.slow
@pytest.mark.parametrize("roles", ["shared", "split"])
def test_gradients_are_the_same_with_and_without_checkpointing(roles):
    pytest.importorskip("peft")
    lora = LoraSettings(rank=2, dropout=0.0, roles=roles)
    found = []
    for on in (False, True):
        model, _, objective = objective_of(config_of(lora=lora), lora=lora)
        model.checkpointing(on)
        found.append(gradients(model, objective, range(4)))
    assert_equal(found[1], found[0])
    names = {part for name in found[0] for part in name.split(".")}
    assert ({"compress", "answer"} <= names) == (roles == "split")
    if roles == "split":  # the compressor's adapter learns from the answers alone
        assert all(float(g.abs().max()) > 0 for n, g in found[0].items() if ".compress." in n and "lora_B" in n)


def test_the_gradient_of_the_seeds_recipe_is_that_of_the_packed_one_for_one_sample():
    """Another road to the same loss: padding with a mask, and logits everywhere."""
    loss = LossConfig(schedule="constant", alpha=(1.0, 1.0), beta=(1.0, 1.0), rec_share=0.0, ext_share=0.0, gamma=0.0)
    one = [dataclasses.replace(EXAMPLES[0], aspects=EXAMPLES[0].aspects[:1])]
    memory = MemoryConfig(tokens=4, max_text_tokens=60)
    model, _, packed = objective_of(config_of(memory, loss), one)
    ours = gradients(model, packed, [0])
    model, _, seed = objective_of(config_of(memory, loss, recipe="seed"), one, SeedObjective)
    assert [task for _, task, _ in seed.samples] == [0, 1, 2]
    theirs = gradients(model, seed, [2])
    assert_equal(theirs, ours, 1e-4)


@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(stop, tmp_path):
    config = config_of(loss=LossConfig(schedule="uncertainty"), checkpoint_every=1, word_dropout=0.3)

    def train(name: str, resume: bool = False, stop_at: int | None = None):
        model, schedule, objective = objective_of(config)
        logged, done = [], [0]

        def advance(_: float) -> None:
            done[0] += 1
            if done[0] == stop_at:
                raise KeyboardInterrupt

        def note(epoch: int, values: dict[str, float]) -> None:
            logged.append((epoch, values))

        fit(model, schedule, objective, config, run=tmp_path / name, resume=resume, log=note, advance=advance)
        return model, logged

    whole, expected = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("cut", stop_at=stop)
    resumed, logged = train("cut", resume=True)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert logged == expected[-len(logged) :]


def test_the_seed_decides_dropout_whatever_was_drawn_before():
    lora = LoraSettings(rank=4, dropout=0.5)
    found = []
    for seed, before in ((3, 1), (3, 2), (4, 1)):
        config = config_of(lora=lora, seed=seed, epochs=1)
        model, schedule, objective = objective_of(config, lora=lora)
        objective.order = lambda epoch: np.arange(len(EXAMPLES))  # the order too is drawn from the seed
        torch.manual_seed(before)
        fit(model, schedule, objective, config)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_hidden_words_are_drawn_anew_for_each_update_and_questions_stay():
    config = config_of(word_dropout=0.5)
    _, _, objective = objective_of(config)
    batches = []
    training = objective.batcher.training

    def spy(items, *more):
        batches.append(items)
        return training(items, *more)

    objective.batcher.training = spy
    for update in (0, 0, 1):
        list(objective.parts(range(len(EXAMPLES)), update, 0.0))
    first, again, later = ([item.text for item in items] for items in batches)
    assert first == again != later
    end = objective.batcher.prompter.tokenizer.eos_token_id
    pairs = [
        (a, b)
        for item, whole in zip(batches[0], objective.items, strict=True)
        for a, b in zip(item.text, whole.text, strict=True)
    ]
    assert {a for a, b in pairs if a != b} == {end}
    assert 0.3 < sum(a != b for a, b in pairs) / len(pairs) < 0.7
    assert all(item.branches is whole.branches for item, whole in zip(batches[0], objective.items, strict=True))


def test_it_learns_one_batch_by_heart():
    loss = LossConfig(schedule="constant", alpha=(1.0, 1.0), beta=(1.0, 1.0), gamma=0.0)
    config = config_of(loss=loss, epochs=150, batch_size=3, learning_rate=1e-2, weight_decay=0.0)
    losses = []
    model, schedule, objective = objective_of(config, EXAMPLES[:3])
    fit(model, schedule, objective, config, log=lambda _, values: losses.append(values["reason"]))
    assert losses[-1] < 0.2 and losses[0] > 1


def test_schedules_move_as_they_say():
    def path(kind: str) -> list[float]:
        made = make_schedule(LossConfig(schedule=kind, staged_at=0.5))
        return [round(made.weights(x)["alpha"], 6) for x in (0.0, 0.25, 0.5, 1.0)]

    assert path("constant") == [1.0] * 4
    assert path("linear") == [1.0, 0.8, 0.6, 0.2]
    assert path("cosine") == pytest.approx([1.0, 1 - 0.8 * (1 - np.cos(np.pi / 4)) / 2, 0.6, 0.2])
    assert path("staged") == [1.0, 1.0, 0.2, 0.2]
    made = make_schedule(LossConfig(schedule="uncertainty"))
    assert isinstance(made, Uncertainty)
    # The best s of a loss L is log L.
    optimiser = torch.optim.SGD(made.parameters(), 0.1)
    for _ in range(300):
        optimiser.zero_grad()
        made.combine(torch.tensor(4.0), torch.tensor(0.5), 0.0).backward()
        optimiser.step()
    assert made.log_variance.tolist() == pytest.approx(np.log([4.0, 0.5]), abs=1e-3)


def test_the_learning_rate_rises_and_falls():
    shares = [learning_rate_share(i, 100, 0.1) for i in range(100)]
    assert shares[0] == pytest.approx(0.1) and max(shares) == shares[9] == 1.0
    assert shares[9:] == sorted(shares[9:], reverse=True) and shares[-1] == pytest.approx(0.1, abs=0.01)


def test_a_name_that_matches_no_module_is_an_error_and_phi_has_no_q_proj():
    from clara_absa.model.adapters import SEED_TARGETS, find_targets

    model, _ = tiny()
    with pytest.raises(UserError, match=r"is called q_proj, k_proj, v_proj.*qkv_proj"):
        find_targets(model.backbone, LoraSettings(targets=SEED_TARGETS))
    found = find_targets(model.backbone, LoraSettings(rank=2))
    assert {t.name for t in found} == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    [fused] = [t for t in found if t.name == "qkv_proj"]
    assert fused.modules == 2 and fused.parameters == 2 * 2 * (16 + 48)
