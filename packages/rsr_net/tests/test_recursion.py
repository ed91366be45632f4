"""The seed's recursion and its training function, against loops and formulas written out by hand."""

import inspect
from collections import Counter

import pytest
import torch
from torch import nn

from rsr_net import RecursionModel, RsrConfig, TrainConfig, deep_recursion, latent_recursion, train_refinement
from rsr_net.model.recursion import recursion_loss
from rsr_net.training.seed import SegmentReport

B, D, H, L = 5, 6, 8, 4
ARTICLES = ["the river rose after rain", "a court fined the bank", "voters chose a new mayor", "snow shut the pass"]
SUMMARIES = ["flood warning", "bank fined", "mayor elected", "pass closed"]


def tiny(seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    net = RecursionModel(D, H, L, D, **options).to(dtype)
    with torch.no_grad():  # norms that are not the identity
        for norm in (net.norm1, net.norm2):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
    return net


def states(count=B, seed=1, dtype=torch.float64):
    torch.manual_seed(seed)
    return (torch.randn(count, width, dtype=dtype) for width in (D, D, L))


def letters(texts):
    """A small real encoder: how often each of the letters a-z stands in a text, as a unit vector, (B, 26)."""
    found = torch.zeros(len(texts), 26)
    for row, text in enumerate(texts):
        for letter, count in Counter(c for c in text if "a" <= c <= "z").items():
            found[row, ord(letter) - ord("a")] = count
    return nn.functional.normalize(found, dim=-1)


def apply_by_hand(net, x, y, z):
    """One application from the weights alone: x, y, z side by side, two normalised hidden layers, three heads."""

    def normed(h, norm):
        dims = 0 if isinstance(norm, nn.BatchNorm1d) else 1
        mean = h.mean(dims, keepdim=True)
        variance = ((h - mean) ** 2).mean(dims, keepdim=True)
        return (h - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias

    h = torch.cat([x, y, z], 1)
    h = normed(h @ net.fc1.weight.T + net.fc1.bias, net.norm1).clamp_min(0)
    h = normed(h @ net.fc2.weight.T + net.fc2.bias, net.norm2).clamp_min(0)
    z_new = (h @ net.fc_latent.weight.T + net.fc_latent.bias).clamp_min(0)
    return h @ net.fc_out.weight.T + net.fc_out.bias, h @ net.fc_aux.weight.T + net.fc_aux.bias, z_new


def gradients(net, loss):
    """The gradient of every parameter, None where there is none."""
    found = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
    return dict(zip((name for name, _ in net.named_parameters()), found, strict=True))


# -- the network -------------------------------------------------------------------------------------------------


def test_names_signatures_and_defaults_are_the_seeds():
    assert list(inspect.signature(latent_recursion).parameters) == ["x", "y", "z", "net", "n"]
    assert list(inspect.signature(deep_recursion).parameters) == ["x", "y", "z", "net", "n", "T"]
    assert list(inspect.signature(RecursionModel).parameters)[:4] == [
        "input_dim",
        "hidden_dim",
        "latent_dim",
        "num_classes",
    ]
    for function in (latent_recursion, deep_recursion, train_refinement):
        assert inspect.signature(function).parameters["n"].default == 4
    for function in (deep_recursion, train_refinement):
        assert inspect.signature(function).parameters["T"].default == 3
    assert inspect.signature(recursion_loss).parameters["aux_weight"].default == 0.1
    config = RsrConfig.default("seed")
    assert (config.model.input_dim, config.model.hidden_dim, config.model.latent_dim) == (768, 128, 64)
    assert (config.model.n, config.model.T) == (4, 3)
    assert (config.train.learning_rate, config.train.aux_weight, config.train.epochs) == (1e-3, 0.1, 2)


def test_full_size_has_the_seeds_widths_and_parameter_counts():
    net = RecursionModel(768, 128, 64, 768)
    assert net.fc1.in_features == 768 + 768 + 64
    assert sum(p.numel() for p in net.parameters()) == 428_352
    assert sum(p.numel() for p in net.fc_aux.parameters()) == 99_072
    y_out, y_aux, z_new = net(torch.randn(2, 768), torch.randn(2, 768), torch.randn(2, 64))
    assert (y_out.shape, y_aux.shape, z_new.shape) == ((2, 768), (2, 768), (2, 64))
    assert (z_new >= 0).all()


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_one_application_is_the_formula(norm):
    net = tiny(norm=norm)
    x, y, z = states()
    for ours, theirs in zip(net(x, y, z), apply_by_hand(net, x, y, z), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_widths_of_document_and_summary_may_differ():
    net = RecursionModel(7, H, L, 3)
    y, z = net.start(torch.randn(B, 7))
    assert (y.shape, z.shape) == ((B, 3), (B, L))
    assert not y.any() and not z.any()
    y_out, y_aux, z_new = net(torch.randn(B, 7), y, z)
    assert (y_out.shape, y_aux.shape, z_new.shape) == ((B, 3), (B, 3), (B, L))


@pytest.mark.parametrize(("norm", "apart"), [("layer", True), ("batch", False)])
def test_only_layer_norm_keeps_the_articles_of_a_training_batch_apart(norm, apart):
    net = tiny(norm=norm).train()
    x, y, z = states()
    (_, together, _), (_, few, _) = deep_recursion(x, y, z, net), deep_recursion(x[:2], y[:2], z[:2], net)
    difference = (together[:2] - few).abs().max()
    assert difference < 1e-6 if apart else difference > 1e-2


# -- the recursion -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4])
def test_latent_recursion_is_n_applications(n):
    net = tiny()
    x, y, z = states()
    found = latent_recursion(x, y, z, net, n)
    for _ in range(n):
        y, _, z = apply_by_hand(net, x, y, z)
    for ours, theirs in zip(found, (y, z), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("confidence", ["max", "aux"])
def test_gradient_is_that_of_the_last_segment_alone(norm, confidence):
    n, T = 3, 3
    net = tiny(norm=norm, confidence=confidence)
    x, y, z = states()
    target = torch.randn(B, D, dtype=torch.float64)

    def unrolled(cut):
        y_, z_ = y, z
        for segment in range(T):
            if segment == T - 1 and cut:
                y_, z_ = y_.detach(), z_.detach()
            for _ in range(n):
                y_, aux, z_ = apply_by_hand(net, x, y_, z_)
        q = torch.sigmoid(y_.max(1).values if confidence == "max" else aux.mean(1))
        return y_, z_, q, ((y_ - target) ** 2).mean() + 0.1 * -q.log().mean()

    (y_new, z_new), y_hat, q_hat = deep_recursion(x, y, z, net, n, T)
    y_ref, z_ref, q_ref, loss_ref = unrolled(cut=True)
    for ours, theirs in ((y_hat, y_ref), (y_new, y_ref), (z_new, z_ref), (q_hat, q_ref)):
        torch.testing.assert_close(ours, theirs.detach() if not ours.requires_grad else theirs, rtol=0, atol=1e-9)
    found, expected = gradients(net, recursion_loss(y_hat, q_hat, target)), gradients(net, loss_ref)
    full = gradients(net, unrolled(cut=False)[3])
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None and confidence == "max" and name.startswith("fc_aux")
        else:
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6)
    assert max((found[name] - full[name]).abs().max() for name in ("fc1.weight", "fc_out.weight")) > 1e-4


def test_with_the_seeds_confidence_the_auxiliary_head_never_learns():
    x, y, z = states()
    for confidence in ("max", "aux"):
        net = tiny(confidence=confidence)
        _, y_hat, q_hat = deep_recursion(x, y, z, net)
        without = {k for k, g in gradients(net, recursion_loss(y_hat, q_hat, y_hat.detach() + 1)).items() if g is None}
        assert without == ({"fc_aux.weight", "fc_aux.bias"} if confidence == "max" else set())


def test_returned_states_are_detached_and_the_prediction_is_not():
    net = tiny()
    x, y, z = states()
    (y_new, z_new), y_hat, q_hat = deep_recursion(x, y, z, net)
    assert not y_new.requires_grad and not z_new.requires_grad
    assert y_hat.requires_grad and q_hat.requires_grad
    assert torch.equal(y_new, y_hat) and q_hat.shape == (B,)
    assert ((q_hat > 0) & (q_hat < 1)).all()


def test_the_first_segments_keep_no_graph():
    """As many tensors are kept for the backward pass with five segments as with one, though five times are computed."""
    net = tiny()
    x, y, z = states()

    def kept(segments):
        saved, calls = [], []
        hook = net.register_forward_hook(lambda *_: calls.append(1))
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(1) or t, lambda t: t):
            deep_recursion(x, y, z, net, 2, segments)
        hook.remove()
        return len(saved), len(calls)

    (one, calls_one), (five, calls_five) = kept(1), kept(5)
    assert one == five > 0
    assert (calls_one, calls_five) == (2, 10)


def test_the_loss_is_mse_plus_a_tenth_of_bce_with_one():
    y_hat = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    true = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    q = torch.tensor([0.5, 0.25])
    mse = (1 + 4 + 0 + 4) / 4
    bce = -(torch.log(torch.tensor(0.5)) + torch.log(torch.tensor(0.25))) / 2
    torch.testing.assert_close(recursion_loss(y_hat, q, true), mse + 0.1 * bce)
    torch.testing.assert_close(recursion_loss(y_hat, q, true, 0.0), torch.tensor(mse))


# -- the training function ---------------------------------------------------------------------------------------


def test_training_is_a_supervised_segment_per_update_with_states_carried():
    """Losses and weights are those of a loop written out here."""

    def encode(texts):
        return letters(texts).double()

    nets, reports = [], []
    for by_hand in (False, True):
        torch.manual_seed(3)
        net = RecursionModel(26, H, L, 26).double()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        nets.append(net)
        if not by_hand:
            reports = train_refinement(ARTICLES, SUMMARIES, net, optimizer, encode, n=2, T=2)
            continue
        x, target = encode(ARTICLES), encode(SUMMARIES)
        y, z = torch.zeros_like(x), torch.zeros(4, L, dtype=x.dtype)
        expected = []
        for _ in range(3):
            (y, z), y_hat, q_hat = deep_recursion(x, y, z, net, 2, 2)
            loss = nn.functional.mse_loss(y_hat, target) + 0.1 * -q_hat.log().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            expected.append(SegmentReport(loss.item(), q_hat.mean().item()))
    assert len(reports) == TrainConfig().n_supervision == 3
    for ours, theirs in zip(reports, expected, strict=True):
        assert (ours.loss, ours.confidence) == pytest.approx((theirs.loss, theirs.confidence), rel=1e-6)
    for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_both_sides_are_encoded_without_gradient_and_the_network_is_put_in_training_mode():
    calls = []

    def encode(texts):
        calls.append((list(texts), torch.is_grad_enabled()))
        return letters(texts)

    net = RecursionModel(26, H, L, 26).eval()
    train_refinement(ARTICLES, SUMMARIES, net, torch.optim.Adam(net.parameters()), encode)
    assert calls == [(ARTICLES, False), (SUMMARIES, False)]
    assert net.training


@pytest.mark.parametrize(("limit", "segments"), [(0.0, 1), (1.0, 5)])
def test_segments_end_early_above_the_confidence(limit, segments):
    net = RecursionModel(26, H, L, 26)
    config = TrainConfig(n_supervision=5, stop_confidence=limit)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    reports = train_refinement(ARTICLES, SUMMARIES, net, optimizer, letters, config=config)
    assert len(reports) == segments
    assert all(0 < report.confidence < 1 for report in reports)


def test_the_clip_bounds_the_update():
    """Plain gradient descent with rate 1 moves the weights by the clipped gradient, no further."""
    torch.manual_seed(0)
    net = RecursionModel(26, H, L, 26)
    before = nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    config = TrainConfig(n_supervision=1, clip=1e-3)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    train_refinement(ARTICLES, SUMMARIES, net, optimizer, letters, config=config)
    moved = (nn.utils.parameters_to_vector(net.parameters()) - before).norm().item()
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_it_overfits_one_batch():
    torch.manual_seed(0)
    net = RecursionModel(26, 32, L, 26)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    config = TrainConfig(aux_weight=0.0, stop_confidence=1.0)
    losses = [train_refinement(ARTICLES, SUMMARIES, net, optimizer, letters, config=config)[-1].loss for _ in range(80)]
    mean = letters(SUMMARIES)
    blind = ((mean - mean.mean(0)) ** 2).mean().item()  # what a network that does not look at the article can reach
    assert losses[-1] < 0.05 * blind < losses[0]


# -- wrong arguments ---------------------------------------------------------------------------------------------


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="norm"):
        RecursionModel(D, H, L, D, norm="group")
    with pytest.raises(ValueError, match="confidence"):
        RecursionModel(D, H, L, D, confidence="mean")
    net = tiny()
    x, y, z = states()
    with pytest.raises(ValueError, match="n must be at least 1"):
        latent_recursion(x, y, z, net, 0)
    with pytest.raises(ValueError, match="n must be at least 1"):
        deep_recursion(x, y, z, net, n=0)
    with pytest.raises(ValueError, match="T must be at least 1"):
        deep_recursion(x, y, z, net, T=0)
    with pytest.raises(ValueError, match="batch sizes differ: x 5, y 2, z 5"):
        deep_recursion(x, y[:2], z, net)
    optimizer = torch.optim.Adam(net.parameters())
    with pytest.raises(ValueError, match="the encoder gives 26 and 26 numbers, the network takes 6 and 6"):
        train_refinement(ARTICLES, SUMMARIES, net, optimizer, letters)
