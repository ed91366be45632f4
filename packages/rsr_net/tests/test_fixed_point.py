"""Fixed-point solvers and the spectral radius, against linear algebra."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsr_net.model.fixed_point import solve, spectral_radius

B, D = 4, 6


def contraction(seed=0, factor=0.9):
    """y ↦ y A + b with spectral norm ``factor``; its step for some rows, and its fixed points, (B, D)."""
    torch.manual_seed(seed)
    a = torch.randn(D, D, dtype=torch.float64)
    a = factor * a / torch.linalg.matrix_norm(a, 2)
    b = torch.randn(B, D, dtype=torch.float64)

    def step(y, rows=None):
        return y @ a + (b if rows is None else b[rows])

    return step, b @ torch.linalg.inv(torch.eye(D, dtype=torch.float64) - a)


ZERO = torch.zeros(B, D, dtype=torch.float64)


def test_picard_is_the_plain_iteration_with_its_residuals():
    step, _ = contraction()
    found = solve(step, ZERO + 1, steps=5)
    y, states, residuals = ZERO + 1, [ZERO + 1], []
    for _ in range(5):
        new = step(y)
        residuals.append([((new[i] - y[i]) ** 2).sum().sqrt() / (new[i] ** 2).sum().sqrt() for i in range(B)])
        y = new
        states.append(y)
    torch.testing.assert_close(found.trajectory, torch.stack(states))
    torch.testing.assert_close(found.residuals, torch.tensor(residuals, dtype=torch.float64))
    assert torch.equal(found.y, found.trajectory[-1])
    assert found.steps_used.tolist() == [5] * B


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(0.1, 0.9))
def test_both_solvers_find_the_fixed_point_of_a_contraction(seed, factor):
    step, exact = contraction(seed, factor)
    picard = solve(step, ZERO, steps=500, tol=1e-12)
    anderson = solve(step, ZERO, steps=500, tol=1e-12, solver="anderson")
    torch.testing.assert_close(picard.y, exact, rtol=0, atol=1e-8)
    torch.testing.assert_close(anderson.y, exact, rtol=0, atol=1e-8)


def test_anderson_needs_fewer_steps_where_picard_is_slow():
    step, _ = contraction(factor=0.95)
    symmetric = 0.95 * torch.diag(torch.linspace(-1, 1, D, dtype=torch.float64))
    for map_ in (step, lambda y, rows=None: y @ symmetric + 1):
        plain = solve(map_, ZERO, steps=500, tol=1e-8).steps_used
        mixed = solve(map_, ZERO, steps=500, tol=1e-8, solver="anderson", memory=D + 1, ridge=1e-12).steps_used
        assert (mixed < plain).all()


def test_anderson_with_a_memory_of_one_is_picard():
    step, _ = contraction()
    mixed = solve(step, ZERO, steps=6, solver="anderson", memory=1)
    torch.testing.assert_close(mixed.trajectory, solve(step, ZERO, steps=6).trajectory)


@pytest.mark.parametrize("memory", [2, 3])
def test_anderson_takes_the_weights_of_least_mixed_residual(memory):
    """The weights minimise ||Σ w r||² + ridge · mean ||r||² · ||w||² with Σ w = 1: here through the KKT equations."""
    step, _ = contraction(1)
    ridge, steps = 1e-3, 4
    found = solve(step, ZERO + 1, steps=steps, solver="anderson", memory=memory, ridge=ridge)
    for row in range(B):
        inputs = found.trajectory[steps - memory : steps, row].numpy()
        images = np.stack([step(state)[row].numpy() for state in found.trajectory[steps - memory : steps]])
        residual = images - inputs
        quadratic = residual @ residual.T
        quadratic += ridge * np.trace(quadratic) / memory * np.eye(memory)
        kkt = np.block([[2 * quadratic, np.ones((memory, 1))], [np.ones((1, memory)), np.zeros((1, 1))]])
        weights = np.linalg.solve(kkt, [0.0] * memory + [1.0])[:memory]
        np.testing.assert_allclose(found.y[row].numpy(), weights @ images, rtol=1e-9)


@pytest.mark.parametrize("solver", ["picard", "anderson"])
def test_rows_halt_by_themselves_and_are_not_computed_again(solver):
    """Each row contracts at its own speed; it ends as if it were alone, and the map is not asked for it any more."""
    speed = torch.tensor([0.0, 0.3, 0.6, 0.9], dtype=torch.float64)
    scale = torch.linspace(-1, 1, D, dtype=torch.float64)  # eigenvalues apart, so that no solver is done at once
    asked = torch.zeros(B, dtype=torch.int64)

    def step(y, rows=None):
        which = torch.arange(B) if rows is None else rows
        assert len(y) == len(which)
        asked[which] += 1
        return torch.tanh(speed[which, None] * scale * y) + which[:, None] + 1

    found = solve(step, ZERO, steps=60, tol=1e-6, solver=solver)
    assert torch.equal(found.steps_used, asked)
    assert 2 == asked[0] < asked[1] < 60 and asked[0] < asked[3] < 60 and len(set(asked.tolist())) > 2
    for row in range(B):

        def alone(y, rows=None, row=row):
            return torch.tanh(speed[row] * scale * y) + row + 1

        solo = solve(alone, ZERO[:1], steps=60, tol=1e-6, solver=solver)
        used = int(found.steps_used[row])
        assert int(solo.steps_used) == used == len(solo.residuals)
        torch.testing.assert_close(found.y[row], solo.y[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(found.trajectory[: used + 1, row], solo.trajectory[:, 0], rtol=0, atol=1e-12)
        assert found.residuals[used - 1, row] <= 1e-6 and (found.residuals[: used - 1, row] > 1e-6).all()
        assert not found.residuals[used:, row].any()
        assert (found.trajectory[used:, row] == found.y[row]).all()


def test_the_iteration_ends_when_every_row_has_halted():
    found = solve(lambda y, rows: torch.ones_like(y), ZERO, steps=50, tol=0.0)
    assert found.steps_used.tolist() == [2] * B
    assert found.trajectory.shape == (3, B, D) and found.residuals.shape == (2, B)


def test_without_a_tolerance_every_step_is_taken():
    found = solve(lambda y, rows: torch.ones_like(y), ZERO, steps=7)
    assert found.steps_used.tolist() == [7] * B and found.trajectory.shape == (8, B, D)


def test_no_steps_change_nothing():
    found = solve(lambda y, rows: y + 1, ZERO + 3, steps=0, tol=1e-3)
    assert torch.equal(found.y, ZERO + 3)
    assert found.trajectory.shape == (1, B, D) and found.residuals.shape == (0, B)
    assert found.steps_used.tolist() == [0] * B


@pytest.mark.parametrize(
    "wrong",
    [{"solver": "broyden"}, {"steps": -1}, {"memory": 0}, {"tol": -1e-3}, {"tol": float("nan")}],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        solve(lambda y, rows: y, ZERO, **{"steps": 1, **wrong})


# -- spectral radius ---------------------------------------------------------------------------------------------


def test_the_spectral_radius_of_a_diagonal_map_is_its_largest_entry():
    entries = torch.tensor([[0.1, -0.9, 0.5], [2.0, 0.3, -0.1]], dtype=torch.float64)
    found = spectral_radius(lambda y, rows: y * entries, torch.ones(2, 3, dtype=torch.float64), iterations=100)
    torch.testing.assert_close(found, torch.tensor([0.9, 2.0], dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_leading_complex_pair_does_not_disturb_it():
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.2]], dtype=torch.float64)
    found = spectral_radius(lambda y, rows: 0.7 * y @ turn, torch.ones(1, 3, dtype=torch.float64), iterations=60)
    assert found.item() == pytest.approx(0.7, rel=1e-6)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_it_is_the_jacobians_where_it_is_asked(seed):
    """A map that is not linear: the Jacobian is taken at y, and its eigenvalues are numpy's."""
    torch.manual_seed(seed)
    square = torch.randn(D, D, dtype=torch.float64)
    weight = square @ square.T / D  # real eigenvalues
    y = torch.randn(B, D, dtype=torch.float64)
    found = spectral_radius(lambda state, rows: torch.tanh(state @ weight), y, iterations=400)
    for row in range(B):
        jacobian = torch.func.jacrev(lambda state: torch.tanh(state @ weight))(y[row])
        expected = np.abs(np.linalg.eigvals(jacobian.numpy())).max()
        assert found[row].item() == pytest.approx(expected, rel=0.02)
