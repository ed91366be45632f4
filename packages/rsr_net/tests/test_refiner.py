"""The refiner and its confidence, against formulas written out article by article."""

import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from rsr_net import ArticleVectors, Batch, Refiner
from rsr_net.config import ModelConfig
from rsr_net.inference.export import export_safetensors
from rsr_net.model.fixed_point import spectral_radius

D = 8
CONFIG = ModelConfig(input_dim=D, hidden_dim=8, latent_dim=4, heads=2, steps=5)


def article(sentences, seed=0):
    """Vectors of a made-up article, of any length, as BART's are."""
    draw = np.random.default_rng([seed, sentences])
    vectors = draw.normal(size=(sentences, D)).astype(np.float32)
    vectors *= draw.uniform(0.2, 2, size=(sentences, 1)).astype(np.float32) / D**0.5
    doc, lead, target = draw.normal(size=(3, D)).astype(np.float32)
    return ArticleVectors(f"{seed}/{sentences}", doc, lead, vectors, target)


def articles(lengths):
    return [article(length, seed) for seed, length in enumerate(lengths)]


def ridge_start(model):
    """Give a refiner some ridge map."""
    with torch.no_grad():
        model.base.normal_(std=0.3)
        model.base_bias.normal_(std=0.3)


def awake(seed=0, config=CONFIG, scale=0.15):
    """A refiner whose every weight matters, in evaluation mode."""
    torch.manual_seed(seed)
    model = Refiner(config).eval()
    ridge_start(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
        model.feature_mean.normal_(std=0.3)
        model.feature_std.uniform_(0.5, 1.5)
        model.quality.mean.normal_()
        model.quality.std.uniform_(0.5, 1.5)
        model.quality.weight.normal_(std=0.5)
        model.quality.bias.fill_(0.2)
    return model


@pytest.fixture(scope="module")
def model():
    return awake()


def cut(found, row, sentences):
    """What a refinement says of one article, without the padding."""
    return {
        "y": found.y[row],
        "trajectory": found.trajectory[:, row],
        "residuals": found.residuals[:, row],
        "attention": found.attention[:, row, :sentences],
        "quality": found.quality[row],
    }


# -- what a step does --------------------------------------------------------------------------------------------


def step_by_hand(model, one, y, y0):
    """One step of one article from the class's formulas, numpy and loops; also the reading weights, (S,)."""
    w = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    count = len(one.sentences)
    mean = sum(one.sentences.astype(float)) / count
    fixed = [y0, one.doc.astype(float), one.lead.astype(float), mean]
    heads = len(w["sharpness"])
    scores, sentences = np.zeros((count, heads)), one.sentences.astype(float)
    for j in range(count):
        near = [sentences[j] @ v / np.linalg.norm(v) / np.linalg.norm(sentences[j]) for v in (y, *fixed)]
        place = [j, math.log1p(j), 1 / (1 + j), j / count, float(j == 0), float(j == 1), math.log(count)]
        f = (np.array(near + place) - w["feature_mean"]) / w["feature_std"]
        hidden = w["scorer.0.weight"] @ f + w["scorer.0.bias"]
        hidden = np.array([h * 0.5 * (1 + math.erf(h / math.sqrt(2))) for h in hidden])
        scores[j] = w["sharpness"] * near[0] + w["linear.weight"] @ f + w["linear.bias"]
        scores[j] += w["scorer.3.weight"] @ hidden + w["scorer.3.bias"]
    weights = np.exp(scores) / np.exp(scores).sum(0)
    u = np.array([*fixed, *(weights[:, h] @ sentences for h in range(heads))])
    z = w["to_latent.weight"] @ u.reshape(-1)
    target = ((w["gain"] + w["gain_by_component"]) * u).sum(0) + w["from_latent.weight"] @ z
    return y + model.config.step_size * (target - y), weights.mean(1)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_refinement_is_the_formula(model, length):
    one = article(length)
    found = model(Batch.collate([one]), steps=3)
    vectors = np.concatenate([one.doc, one.lead, one.sentences.mean(0)])
    y0 = vectors @ model.base.double().numpy() + model.base_bias.double().numpy()
    states, reads = [y0], []
    for _ in range(3):
        new, read = step_by_hand(model, one, states[-1], y0)
        states.append(new)
        reads.append(read)
    np.testing.assert_allclose(found.trajectory[:, 0].detach(), np.array(states), atol=1e-5)
    np.testing.assert_allclose(found.attention[:, 0].detach(), np.array(reads), atol=1e-5)
    change = [np.linalg.norm(b - a) / np.linalg.norm(b) for a, b in zip(states, states[1:], strict=False)]
    np.testing.assert_allclose(found.residuals[:, 0].detach(), change, atol=1e-5)


def test_an_untrained_step_changes_nothing():
    torch.manual_seed(0)
    model = Refiner(CONFIG).eval()
    ridge_start(model)
    batch = Batch.collate(articles([3, 1, 6]))
    vectors = torch.cat([batch.doc, batch.lead, batch.sentences.sum(1) / batch.mask.sum(1, keepdim=True)], 1)
    found = model(batch)
    for state in found.trajectory:
        torch.testing.assert_close(state, vectors @ model.base + model.base_bias, rtol=0, atol=1e-5)
    assert (found.quality == 0.5).all()


def test_another_start_is_taken_as_it_is(model):
    batch = Batch.collate(articles([3, 5]))
    start = torch.randn(2, D)
    found = model(batch, start=start, steps=1)
    assert torch.equal(found.trajectory[0], start)
    by_hand = [step_by_hand(model, one, s, s)[0] for one, s in zip(articles([3, 5]), start.numpy(), strict=True)]
    np.testing.assert_allclose(found.y.detach(), by_hand, atol=1e-5)


def test_every_field_has_its_shape(model):
    found = model(Batch.collate(articles([4, 1, 9])))
    assert found.y.shape == (3, D) and found.trajectory.shape == (6, 3, D)
    assert found.residuals.shape == (5, 3) and found.attention.shape == (5, 3, 9)
    assert found.steps_used.shape == found.quality.shape == (3,)
    assert found.steps_used.dtype == torch.int64 and found.steps_used.tolist() == [5, 5, 5]
    assert torch.equal(found.y, found.trajectory[-1])
    assert ((found.quality > 0) & (found.quality < 1)).all()


def test_every_parameter_of_the_step_learns(model):
    batch = Batch.collate(articles([4, 6]))
    model(batch, steps=2).y.sum().backward()
    used = {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    model.zero_grad()
    assert used == {name for name, _ in model.named_parameters() if not name.startswith("selector.")}


# -- batches -----------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_padding_and_neighbours_do_not_matter(model, lengths):
    some = articles(lengths)
    together = model(Batch.collate(some))
    for row, one in enumerate(some):
        alone = cut(model(Batch.collate([one])), 0, lengths[row])
        for name, value in cut(together, row, lengths[row]).items():
            torch.testing.assert_close(value, alone[name], rtol=1e-5, atol=1e-5, msg=name)


def test_what_stands_in_the_padding_does_not_matter(model):
    batch = Batch.collate(articles([2, 6]))
    clean = model(batch)
    batch.sentences[0, 2:] = 1e3
    dirty = model(batch)
    for name, value in cut(dirty, 0, 2).items():
        torch.testing.assert_close(value, cut(clean, 0, 2)[name], msg=name)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_attention_is_a_share_of_the_real_sentences(model, lengths):
    batch = Batch.collate(articles(lengths))
    found = model(batch).attention
    torch.testing.assert_close(found.sum(-1), torch.ones(5, len(lengths)))
    assert (found[:, ~batch.mask] == 0).all() and (found[:, batch.mask] > 0).all()


@pytest.mark.parametrize("solver", ["picard", "anderson"])
def test_articles_halt_by_themselves(model, solver):
    lengths = [1, 2, 5, 9, 3, 7]
    some = articles(lengths)
    tol = 2e-4
    together = model(Batch.collate(some), steps=40, tol=tol, solver=solver)
    used = together.steps_used.tolist()
    assert len(set(used)) > 1 and max(used) < 40 and len(together.residuals) == max(used)
    for row, one in enumerate(some):
        alone = model(Batch.collate([one]), steps=40, tol=tol, solver=solver)
        assert alone.steps_used.tolist() == [used[row]]
        torch.testing.assert_close(together.y[row], alone.y[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.quality[row], alone.quality[0], rtol=0, atol=1e-5)
        ours, read = together.residuals[:, row], together.attention[:, row].sum(-1)
        assert ours[used[row] - 1] <= tol and (ours[: used[row] - 1] > tol).all() and not ours[used[row] :].any()
        torch.testing.assert_close(read[: used[row]], torch.ones(used[row]))
        assert not read[used[row] :].any()
        assert (together.trajectory[used[row] :, row] == together.y[row]).all()


def test_without_a_step_the_start_is_the_prediction(model):
    batch = Batch.collate(articles([2, 4]))
    found = model(batch, steps=0)
    assert torch.equal(found.y, model.start(batch)) and found.trajectory.shape == (1, 2, D)
    assert found.residuals.shape == (0, 2) and found.attention.shape == (0, 2, 4)
    assert found.steps_used.tolist() == [0, 0]
    assert ((found.quality > 0) & (found.quality < 1)).all()


def test_an_article_with_one_sentence_reads_that_one(model):
    found = model(Batch.collate([article(1)]))
    assert (found.attention == 1).all()
    assert found.y.isfinite().all() and found.quality.isfinite().all()


# -- solvers -----------------------------------------------------------------------------------------------------


def test_both_solvers_meet_at_the_fixed_point(model):
    batch = Batch.collate(articles([3, 1, 6]))
    step = model.step_map(batch, model.start(batch))
    picard = model(batch, steps=200, tol=1e-7)
    anderson = model(batch, steps=200, tol=1e-6, solver="anderson")
    assert (spectral_radius(step, picard.y) < 1).all()
    torch.testing.assert_close(step(picard.y, None), picard.y, rtol=0, atol=1e-5)
    torch.testing.assert_close(anderson.y, picard.y, rtol=0, atol=1e-4)


def test_unknown_options_are_refused(model):
    batch = Batch.collate(articles([2]))
    with pytest.raises(ValueError, match="solver='newton' is not a choice; use one of: picard, anderson"):
        model(batch, solver="newton")
    with pytest.raises(ValueError, match="steps=-1"):
        model(batch, steps=-1)
    with pytest.raises(ValueError, match=r"tol=-0\.1"):
        model(batch, tol=-0.1)
    with pytest.raises(TypeError, match="depth"):
        model(batch, depth=3)


# -- training mode -----------------------------------------------------------------------------------------------


def test_dropout_is_for_training_alone(model):
    batch = Batch.collate(articles([3, 4]))
    assert torch.equal(model(batch).y, model(batch).y)
    for dropout, latent in ((0.5, 0.0), (0.0, 0.5), (0.0, 0.0)):
        config = ModelConfig(D, 8, 4, heads=2, steps=5, dropout=dropout, latent_dropout=latent)
        loose = awake(config=config).train()
        assert torch.equal(loose(batch).y, loose(batch).y) == (dropout == latent)


# -- confidence --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 6])
def test_quality_is_a_logistic_model_of_nine_signs(model, length):
    one, model = article(length), copy.deepcopy(model)
    model.quality.known = torch.nn.functional.normalize(torch.randn(7, D), dim=-1)
    model.quality.known_cosine = torch.rand(7)
    batch = Batch.collate([one, article(9, 5)])
    found = model(batch)
    y, weights = (v.detach().double().numpy() for v in (found.y[0], found.attention[-1, 0]))
    read = weights[:length] @ one.sentences.astype(float)

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    near = sorted((max(cosine(s.astype(float), y), 0.0) for s in one.sentences), reverse=True) + [0.0] * 6
    signs = [np.linalg.norm(y), np.linalg.norm(y - model.center.numpy()), cosine(y, one.lead)]
    signs += [near[0], near[1], sum(near[:6]) / 6, cosine(y, read), cosine(one.doc.astype(float), one.lead)]
    head = {name: value.double().numpy() for name, value in model.quality.state_dict().items()}
    kernel = [math.exp(8 * cosine(known, y)) for known in head["known"]]
    signs += [np.average(head["known_cosine"], weights=kernel)]
    logit = (np.array(signs) - head["mean"]) / head["std"] @ head["weight"] + head["bias"]
    assert found.quality[0].item() == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)


def test_a_known_article_does_not_count_for_itself(model):
    head, y = copy.deepcopy(model.quality), torch.randn(5, D)
    assert not head.expected_cosine(y).any()
    head.known, head.known_cosine = torch.nn.functional.normalize(y, dim=-1), torch.rand(5)
    found = head.expected_cosine(y, torch.arange(5))
    for i in range(5):
        others = [j for j in range(5) if j != i]
        weights = torch.exp(8 * head.known[others] @ head.known[i])
        assert found[i].item() == pytest.approx(float(weights @ head.known_cosine[others] / weights.sum()), abs=1e-5)


def test_what_is_known_is_kept_in_the_file(model, tmp_path):
    model = copy.deepcopy(model)
    model.quality.known, model.quality.known_cosine = torch.rand(6, D), torch.rand(6)
    export_safetensors(model, tmp_path / "model.safetensors")
    again = Refiner(model.config)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


# -- files -------------------------------------------------------------------------------------------------------


def test_a_fresh_process_gives_the_same_from_safetensors(model, tmp_path):
    """Sizes from the file's header, weights from the file: no other file, and no code of this test."""
    one = article(6)
    np.savez(tmp_path / "article.npz", doc=one.doc, lead=one.lead, sentences=one.sentences)
    assert export_safetensors(model, tmp_path / "model.safetensors") == 0.0
    code = """
import json, sys
import numpy as np, torch
from safetensors import safe_open
from rsr_net import ArticleVectors, Batch, ModelConfig, Refiner
torch.set_num_threads(1)
with safe_open("model.safetensors", "pt") as file:
    model = Refiner(ModelConfig(**json.loads(file.metadata()["model"])))
    model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
held = np.load("article.npz", allow_pickle=False)
found = model.eval()(Batch.collate([ArticleVectors("a", held["doc"], held["lead"], held["sentences"])]))
np.savez("found.npz", y=found.y.detach(), quality=found.quality.detach(), attention=found.attention.detach())
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    there = np.load(tmp_path / "found.npz", allow_pickle=False)
    here = model(Batch.collate([one]))
    for name in ("y", "quality", "attention"):
        np.testing.assert_allclose(there[name], getattr(here, name).detach(), rtol=0, atol=1e-6, err_msg=name)
