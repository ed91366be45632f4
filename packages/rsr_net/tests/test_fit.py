"""Training: what it learns, what it keeps, and that a run goes on after any end."""

import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression, Ridge

from latentlab_shared.errors import UserError
from latentlab_shared.runs import RunFolder
from rsr_net import ArticleVectors, Batch, Refiner, RsrConfig, fit
from rsr_net.model.quality import quality_signs
from rsr_net.training.calibration import calibrate
from rsr_net.training.fit import _loss
from rsr_net.training.ridge import CrossFit, article_matrix, target_matrix
from rsr_net.training.seed import fit_recursion, predict_recursion

D = 8
CHECKPOINT = Path("checkpoints") / "last" / "state.safetensors"


def made(number, width=D):
    """An article whose summary is its second sentence (its only one, if it has one), with some noise."""
    draw = np.random.default_rng(number)
    sentences = draw.normal(size=(int(draw.integers(1, 9)), width))
    sentences /= np.linalg.norm(sentences, axis=1, keepdims=True)
    target = sentences[min(1, len(sentences) - 1)] + 0.05 * draw.normal(size=width)
    vectors = (sentences.mean(0), sentences[:3].mean(0), sentences, target)
    return ArticleVectors(str(number), *(v.astype(np.float32) for v in vectors))


ARTICLES = [made(number) for number in range(40)]
TRAIN, VALID = ARTICLES[:30], ARTICLES[30:]


def config(**train):
    model = {"input_dim": D, "hidden_dim": 8, "latent_dim": 4, "heads": 2, "steps": 3}
    return RsrConfig.from_dict({"model": model, "train": {"batch_size": 16, "cross_fits": 3, **train}})


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums of several threads are rounded in another order: "the same" means with the same number of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same(one, other):
    """Whether two models are equal to the bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def saved(run):
    """What a checkpoint holds: its plain values and its tensors."""
    with safe_open(run / CHECKPOINT, "pt") as file:
        return json.loads(file.metadata()["run"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


# -- what is learned ---------------------------------------------------------------------------------------------


def test_it_overfits_a_small_set():
    """The start cannot see where a sentence stands (and is held near the mean); the steps find the second one."""
    still = config(epochs=40, learning_rate=3e-2, sentence_dropout=0.0, patience=40, ema_decay=0.5, ridge=[100.0])
    still = replace(still, model=replace(still.model, dropout=0.0, latent_dropout=0.0))
    scores, some = [], TRAIN[:16]
    model = fit(some, some, still, log=lambda epoch, values: scores.append(values["valid_r2"]))
    batch = Batch.collate(some)
    found = model(batch)
    error = ((found.y - batch.target) ** 2).sum().item()
    start = ((found.trajectory[0] - batch.target) ** 2).sum().item()
    assert error < 0.15 * start
    total = ((batch.target - batch.target.mean(0)) ** 2).sum().item()
    assert max(scores) == pytest.approx(1 - error / total, abs=1e-4)


def test_it_returns_the_best_epoch_in_evaluation_mode():
    scores = {}
    wild = config(epochs=6, learning_rate=0.3, ema_decay=0.0)
    model = fit(TRAIN, VALID, wild, log=lambda epoch, values: scores.__setitem__(epoch, values["valid_r2"]))
    assert not model.training and next(model.parameters()).device.type == "cpu"
    batch = Batch.collate(VALID)
    found = model(batch)
    total = ((batch.target - model.center) ** 2).sum().item()
    r2, start = (1 - ((y - batch.target) ** 2).sum().item() / total for y in (found.y, found.trajectory[0]))
    assert r2 == pytest.approx(max(*scores.values(), start), abs=1e-4)
    assert r2 > min(scores.values()) + 0.01  # so that there was something to choose


def test_training_ends_after_the_patience_and_keeps_the_start():
    epochs = []
    idle = config(epochs=9, learning_rate=1e-30, patience=2)
    model = fit(TRAIN, VALID, idle, log=lambda epoch, values: epochs.append(epoch))
    assert epochs == [1, 2]
    batch = Batch.collate(VALID)
    torch.testing.assert_close(model(batch).y, model.start(batch), rtol=0, atol=1e-5)


def test_no_epochs_give_the_calibrated_start():
    batch = Batch.collate(VALID)
    model = fit(TRAIN, VALID, config(epochs=0))
    fits = CrossFit(TRAIN, 3, 0)
    weights, bias = fits.whole.solve(fits.best_penalty(config().train.ridge, VALID))
    expected = article_matrix(VALID) @ weights + bias
    np.testing.assert_allclose(model(batch).y.detach(), expected, atol=1e-5)
    assert model.quality.weight.any()


def test_the_same_seed_gives_the_same_model_and_another_seed_another():
    first, again, other = (fit(TRAIN, VALID, config(epochs=1, seed=seed)) for seed in (3, 3, 4))
    assert same(first, again) and not same(first, other)


def test_the_callers_random_numbers_stay_as_they_were():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(TRAIN, VALID, config(epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_the_kept_weights_are_the_running_mean(tmp_path):
    """One update per epoch, so that every checkpoint shows one: the mean is made again from the weights it met."""
    decay, weights, averages = 0.6, [], []

    def note(epoch, values):
        if epoch > 1:  # the checkpoint of the epoch before
            _, tensors = saved(tmp_path)
            weights.append({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
            averages.append({k.removeprefix("averaged/"): v for k, v in tensors.items() if k.startswith("averaged/")})

    plan = config(epochs=12, batch_size=64, learning_rate=0.02, ema_decay=decay, patience=12)
    fit(TRAIN, VALID, plan, run=tmp_path, log=note)
    torch.manual_seed(plan.train.seed)
    mean = {name: value.detach().double() for name, value in Refiner(plan.model).named_parameters()}
    assert len(weights) == 11
    for update, (new, averaged) in enumerate(zip(weights, averages, strict=True), start=1):
        keep = min(decay, (1 + update) / (10 + update))
        for name in mean:
            mean[name] = keep * mean[name] + (1 - keep) * new[name].double()
            torch.testing.assert_close(averaged[name].double(), mean[name], rtol=0, atol=1e-6)
    assert not torch.equal(averages[-1]["gain"], weights[-1]["gain"])


@pytest.mark.parametrize("free", [0, 2])
def test_an_update_runs_free_then_is_supervised_at_every_step(free):
    """The loss and its gradient are those of steps written out here, cut off from the free ones."""
    still = config(gradient_steps=2, sentence_dropout=0.0, contrastive_weight=0.5)
    torch.manual_seed(0)
    model = Refiner(still.model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = Batch.collate(TRAIN[:6])
    start = torch.randn(6, D)
    step, y, expected = model.step_map(batch, start), start, 0.0
    for _ in range(free):
        y = step(y, None).detach()
    for _ in range(2):
        y = step(y, None)
        near = torch.nn.functional.cosine_similarity(y[:, None], batch.target[None], dim=-1) / 0.05  # center: zero
        expected = expected + ((y - batch.target) ** 2).sum(1).mean() / 2
        expected = expected - 0.5 * near.log_softmax(1).diag().mean() / 2
    found = _loss(model, batch, start, free, still.train)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    named = [p for name, p in model.named_parameters() if not name.startswith("selector.")]
    for ours, theirs in zip(torch.autograd.grad(found, named), torch.autograd.grad(expected, named), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


# -- interruptions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [1, 3])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, last):
    plan = config(epochs=4, learning_rate=0.01)
    whole = fit(TRAIN, VALID, plan)

    def stop(epoch, values):
        run.log(epoch, **values)
        if epoch == last:
            raise KeyboardInterrupt

    with RunFolder.create(tmp_path / "run", plan.to_dict(), seed=0) as run, pytest.raises(KeyboardInterrupt):
        fit(TRAIN, VALID, plan, run=run.path, log=stop)
    epochs = []
    with RunFolder.resume(tmp_path / "run", plan.to_dict()) as run:
        note = lambda epoch, values: epochs.append(epoch)  # noqa: E731
        resumed = fit(TRAIN, VALID, plan, run=run.path, resume=run.path, log=note)
    assert epochs == list(range(last, 5))  # the epoch that was not saved comes again
    assert same(whole, resumed)
    assert saved(run.path)[0]["epoch"] == 4


def test_a_finished_run_resumes_to_the_same_model(tmp_path):
    plan = config(epochs=2)
    whole = fit(TRAIN, VALID, plan, run=tmp_path)
    epochs = []
    assert same(whole, fit(TRAIN, VALID, plan, resume=tmp_path, log=lambda epoch, values: epochs.append(epoch)))
    assert epochs == []


KILLED = """
import json, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from test_fit import TRAIN, VALID, fit, RunFolder, RsrConfig
torch.set_num_threads(1)
plan, path = RsrConfig.from_dict(json.loads(sys.argv[2])), Path(sys.argv[3])
again = path.exists()
run = RunFolder.resume(path) if again else RunFolder.create(path, plan.to_dict(), seed=0)
with run:
    say = lambda epoch, values: print(epoch, flush=True)
    fit(TRAIN, VALID, plan, run=path, resume=path if again else None, log=say)
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_run_goes_on_as_if_nothing_had_happened(tmp_path):
    """SIGKILL twice, each a random moment after an epoch's figures: before, in or after the write."""
    plan = config(epochs=24, patience=24)
    whole = fit(TRAIN, VALID, plan)
    moments = random.Random()
    path, here = tmp_path / "run", str(Path(__file__).parent)
    for earliest in (2, 10):
        command = [sys.executable, "-c", KILLED, here, json.dumps(plan.to_dict()), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if int(line) >= earliest:
                    time.sleep(moments.uniform(0, 0.03))
                    os.kill(process.pid, signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL
        assert earliest - 1 <= saved(path)[0]["epoch"] < 24
    epochs = []
    with RunFolder.resume(path) as run:
        note = lambda epoch, values: epochs.append(epoch)  # noqa: E731
        resumed = fit(TRAIN, VALID, plan, run=path, resume=path, log=note)
    assert epochs[-1] == 24 and len(epochs) < 24 and run.path == path
    assert same(whole, resumed)


def test_a_checkpoint_is_replaced_never_written_over(tmp_path):
    """A second name for the first checkpoint's file still shows the first one whole when the run is over."""

    def note(epoch, values):
        if epoch == 2:
            os.link(tmp_path / CHECKPOINT, tmp_path / "first")

    fit(TRAIN, VALID, config(epochs=3), run=tmp_path, log=note)
    with safe_open(tmp_path / "first", "pt") as file:
        assert json.loads(file.metadata()["run"])["epoch"] == 1
    assert saved(tmp_path)[0]["epoch"] == 3
    assert [path.name for path in (tmp_path / "checkpoints" / "last").iterdir()] == ["state.safetensors"]


def test_a_checkpoint_of_another_configuration_or_damaged_is_refused(tmp_path):
    fit(TRAIN, VALID, config(epochs=1), run=tmp_path)
    with pytest.raises(UserError, match="another configuration") as caught:
        fit(TRAIN, VALID, config(epochs=2), resume=tmp_path)
    assert caught.value.where == str(tmp_path / CHECKPOINT)
    held = (tmp_path / CHECKPOINT).read_bytes()
    for damaged in (held[: len(held) // 2], b"", b"\xff" * 64):
        (tmp_path / CHECKPOINT).write_bytes(damaged)
        with pytest.raises(UserError, match="the checkpoint is damaged"):
            fit(TRAIN, VALID, config(epochs=1), resume=tmp_path)


# -- wrong input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("train", "valid"), [(0, 5), (5, 1), (5, 0)])
def test_too_few_articles_are_refused(tmp_path, train, valid):
    with pytest.raises(UserError, match=f"{train} training and {valid} validation articles are too few") as caught:
        fit(TRAIN[:train], VALID[:valid], config(), run=tmp_path)
    assert caught.value.exit_code == 2 and not list(tmp_path.iterdir())


def test_the_seed_recipe_has_its_own_loop():
    with pytest.raises(UserError, match="train_refinement"):
        fit(TRAIN, VALID, RsrConfig.default("seed", D))


@pytest.mark.parametrize("part", ["train", "valid"])
def test_an_article_without_summary_is_named(tmp_path, part):
    parts = {"train": list(TRAIN), "valid": list(VALID)}
    parts[part][3] = replace(parts[part][3], target=None)
    with pytest.raises(UserError, match=f"article {parts[part][3].id} has no target"):
        fit(parts["train"], parts["valid"], config(), run=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["train", "valid"])
@pytest.mark.parametrize("field", ["doc", "lead", "sentences", "target"])
def test_numbers_that_are_not_finite_are_refused(tmp_path, part, field):
    parts = {"train": list(TRAIN), "valid": list(VALID)}
    broken = getattr(parts[part][3], field).copy()
    broken.flat[0] = np.nan if part == "train" else np.inf
    parts[part][3] = replace(parts[part][3], **{field: broken})
    with pytest.raises(UserError, match="not finite"):
        fit(parts["train"], parts["valid"], config(), run=tmp_path)
    assert not list(tmp_path.iterdir())


# -- the closed forms --------------------------------------------------------------------------------------------


def test_the_start_is_ridge_regression_and_each_articles_own_has_not_seen_it():
    """Against scikit-learn; an article's own start does not move with its own target."""
    penalties, parts, seed = (0.01, 0.3, 5.0), 3, 1
    x, y, valid_x, valid_y = article_matrix(TRAIN), target_matrix(TRAIN), article_matrix(VALID), target_matrix(VALID)
    fits = CrossFit(TRAIN, parts, seed, block=7)

    def ridge(penalty, rows):
        return Ridge(alpha=penalty * x[rows].var(0).mean() * rows.sum(), solver="svd").fit(x[rows], y[rows])

    every = np.ones(len(TRAIN), dtype=bool)
    errors = [((ridge(penalty, every).predict(valid_x) - valid_y) ** 2).sum() for penalty in penalties]
    assert fits.best_penalty(penalties, VALID) == penalties[int(np.argmin(errors))]
    part = np.random.default_rng(seed).permutation(len(TRAIN)) % parts
    for penalty in penalties:
        weights, bias = fits.whole.solve(penalty)
        expected = ridge(penalty, every)
        np.testing.assert_allclose(weights, expected.coef_.T, atol=1e-5)
        np.testing.assert_allclose(bias, expected.intercept_, atol=1e-5)
        own = fits.starts(penalty)
        for k in range(parts):
            unseen = ridge(penalty, part != k).predict(x[part == k])
            np.testing.assert_allclose(own[part == k], unseen, atol=1e-4)
    moved = [replace(one, target=one.target + 9) if number == 4 else one for number, one in enumerate(TRAIN)]
    again, own = CrossFit(moved, parts, seed).starts(0.3), fits.starts(0.3)
    np.testing.assert_allclose(again[part == part[4]], own[part == part[4]], atol=1e-5)
    assert np.abs(again[part != part[4]] - own[part != part[4]]).max() > 0.1


def test_the_confidence_is_a_regression_scaled_by_a_logistic_regression():
    """Against scikit-learn, on the signs and the event that the function names."""
    model = fit(TRAIN, VALID, config(epochs=1))
    held_out = [made(number) for number in range(100, 180)]
    starts = torch.from_numpy(CrossFit(TRAIN, 3, 0).starts(0.3))

    def look(articles, start=None):
        batch = Batch.collate(articles)
        with torch.no_grad():
            found = model(batch, start=start)
            signs = quality_signs(batch, found.y, model.center, found.attention).double().numpy()
        y = found.y.double().numpy()
        near = torch.nn.functional.cosine_similarity(found.y, batch.target, dim=-1).double().numpy()
        return signs, near, y / np.linalg.norm(y, axis=1, keepdims=True)

    def expected(y, among):
        weights = np.exp(8 * known[among] @ y)
        return weights @ near[among] / weights.sum()

    (seen, near, known), (unseen, reached, new) = look(TRAIN, starts), look(held_out)
    everyone = np.arange(len(TRAIN))
    others = [expected(y, everyone != number) for number, y in enumerate(known)]
    seen = np.c_[seen, others]
    unseen = np.c_[unseen, [expected(y, everyone >= 0) for y in new]]
    mean, std = seen.mean(0), seen.std(0)
    regression = Ridge(alpha=0.1 * len(TRAIN)).fit((seen - mean) / std, near)
    score = regression.predict((unseen - mean) / std)
    score = ((score - score.mean()) / score.std())[:, None]
    event = reached > np.median(reached)
    expected = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(score, event).predict_proba(score)[:, 1]
    calibrate(model, TRAIN, held_out, starts=starts, penalty=0.1, batch_size=7)
    np.testing.assert_allclose(model(Batch.collate(held_out)).quality.detach(), expected, atol=1e-3)
    before = copy.deepcopy(model)
    calibrate(model, TRAIN, held_out, starts=starts, penalty=0.1)
    for name, value in before.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-3, msg=name)


def test_articles_that_are_all_alike_leave_the_weights_finite():
    model = fit(TRAIN, VALID, config(epochs=0))
    calibrate(model, [TRAIN[0]] * 5, [VALID[0]] * 4)
    assert model.quality.weight.isfinite().all() and model.quality.bias.isfinite()
    assert model(Batch.collate(VALID)).quality.isfinite().all()


# -- the seed's loop ---------------------------------------------------------------------------------------------


def test_the_seeds_loop_learns_from_its_configuration():
    torch.manual_seed(1)
    x = torch.randn(17, D)  # a last batch of one is left out: it has no variance
    target = torch.tanh(x.flip(1))
    seed = RsrConfig.from_dict(
        {
            "recipe": "seed",
            "model": {"input_dim": D, "hidden_dim": 32, "latent_dim": 4, "n": 2, "T": 2},
            "train": {"epochs": 40, "batch_size": 8, "learning_rate": 1e-2, "aux_weight": 0.0, "stop_confidence": 1.0},
        }
    )
    losses = {}
    before = torch.get_rng_state()
    net = fit_recursion(x, target, seed, log=losses.__setitem__)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(losses) == list(range(1, 41)) and losses[40] < 0.2 * losses[1]
    assert not net.training and (net.num_classes, net.latent_dim) == (D, 4)
    y_hat, q_hat = predict_recursion(net, x, n=2, T=2)
    assert ((y_hat - target) ** 2).mean() < 0.5 * target.var()
    assert y_hat.shape == (17, D) and q_hat.shape == (17,) and not y_hat.requires_grad
    alone = predict_recursion(net, x[:1], n=2, T=2)[0]
    torch.testing.assert_close(alone, y_hat[:1], rtol=0, atol=1e-5)
    again = fit_recursion(x, target, seed)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))
