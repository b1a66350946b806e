"""The paper's solvers against their formulas written out with dense d × d matrices, example by example."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import twins

from npeff_nb.decomposition.multiplicative import (
    Extended,
    alternate,
    gradient,
    multiplicative,
    outside_features,
    random_start,
    with_start,
)
from npeff_nb.decomposition.objective import loss, total_energy
from npeff_nb.decomposition.rows import Gram, Rows, Stored
from npeff_nb.decomposition.shards import ColumnShards, RowShards
from npeff_nb.decomposition.stiefel import cayley, orthonormal_start, stiefel

EPS = 1e-9  # the paper's mu_eps
SOLVERS = (multiplicative, stiefel)


def unit(A: np.ndarray) -> np.ndarray:
    norms = np.array([twins.frobenius(a) for a in A])
    return A / np.sqrt(np.where(norms > 0, norms, 1))[:, None, None]


def planted(n: int = 12, k: int = 2, d: int = 7, seed: int = 0, weights: np.ndarray | None = None) -> Stored:
    """Three directions and noise; the last example's Fisher has one row less."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(3, d))[rng.integers(3, size=(n, k))] + 0.3 * rng.normal(size=(n, k, d))
    A[-1, 1:] = 0
    return Stored(unit(A), weights=weights)


def point(rows: Stored, r: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Anywhere: not small as the paper's start is, so that no term of a formula hides behind another."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.random((rows.n, r))), torch.from_numpy(rng.normal(size=(r, rows.d)) / 2)


# ------------------------------------------------------------------------------------------------------------------- the formulas, slowly


def slow_coefficients(A: np.ndarray, W: np.ndarray, H: np.ndarray) -> np.ndarray:
    new = np.empty_like(W)
    for i, j in np.ndindex(W.shape):
        above = H[j] @ twins.fisher(A[i]) @ H[j]
        below = sum(W[i, other] * (H[j] @ H[other]) ** 2 for other in range(len(H)))
        new[i, j] = W[i, j] * above / (below + EPS)
    return new


def slow_gradient(A: np.ndarray, W: np.ndarray, H: np.ndarray, weights: np.ndarray, orthogonality: float = 0.0) -> np.ndarray:
    found = 4 * orthogonality * (H @ H.T - 2 / len(H) * np.eye(len(H))) @ H
    for a, w, weight in zip(A, W, weights, strict=True):
        residual = twins.fisher(a) - (H.T * w) @ H
        found -= 4 * weight * w[:, None] * (H @ residual)
    return found


def slow_run(rows: Stored, W, H, rates: list[float], joint_from: int, orthogonality: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Iterations at ``rates``; those from number ``joint_from`` on move W too."""
    A, W, H, weights = rows.rows.numpy(), W.numpy(), H.numpy(), rows.weights.numpy()
    for number, rate in enumerate(rates):
        if number >= joint_from:
            W = slow_coefficients(A, W, H)
        H = H - rate * slow_gradient(A, W, H, weights, orthogonality)
    return W, H


def slow_loss(rows: Stored, W, H, weights: np.ndarray | None = None) -> float:
    A = rows.rows.numpy()
    weights = rows.weights.numpy() if weights is None else weights
    return sum(weight * twins.dense_loss(a[None], w[None], np.asarray(H)) for a, w, weight in zip(A, np.asarray(W), weights, strict=True))


def assert_same(solution, W: np.ndarray, H: np.ndarray, rtol: float) -> None:
    """``solution`` is (W, H) with components of unit norm."""
    norms = np.linalg.norm(H, axis=1)
    np.testing.assert_allclose(solution.H.numpy(), H / norms[:, None], rtol=rtol, atol=rtol)
    np.testing.assert_allclose(solution.W.numpy(), W * norms**2, rtol=rtol, atol=rtol)


# ------------------------------------------------------------------------------------------------------------------------- single steps


@pytest.mark.parametrize("weights", [None, np.linspace(0, 2, 12)], ids=["plain", "weighted"])
@pytest.mark.parametrize("orthogonality", [0.0, 0.7])
def test_one_joint_iteration_is_the_dense_formulas(weights, orthogonality):
    rows = planted(weights=weights)
    W, H = point(rows, 4)
    found = multiplicative(rows, 4, total_energy(rows), None, iterations=1, h_only=0, orthogonality=orthogonality, start=(W, H))
    W1, H1 = slow_run(rows, W, H, [1e-3], 0, orthogonality)
    assert not np.allclose(W1, W.numpy())
    assert_same(found, W1, H1, 1e-12)  # float64, other orders of summation


@pytest.mark.parametrize("orthogonality", [0.0, 3.0])
def test_the_gradient_is_that_of_the_dense_loss(orthogonality):
    rows = planted(weights=np.linspace(0.5, 2, 12))
    W, H = point(rows, 3)

    def value(H: np.ndarray) -> float:
        penalty = np.linalg.norm(H @ H.T - 2 / 3 * np.eye(3)) ** 2
        return slow_loss(rows, W, H) + orthogonality * penalty

    step = 1e-5  # central differences: error step² × third derivative, and rounding 1e-16 / step × loss
    expected = np.zeros(H.shape)
    for at in np.ndindex(*H.shape):
        shift = np.zeros(H.shape)
        shift[at] = step
        expected[at] = (value(H.numpy() + shift) - value(H.numpy() - shift)) / (2 * step)
    found = gradient(rows, W, rows.moment(W), H, rows.project(H), H @ H.T, orthogonality)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.numpy(), slow_gradient(rows.rows.numpy(), W.numpy(), H.numpy(), rows.weights.numpy(), orthogonality), rtol=1e-11)


def test_the_w_step_never_raises_the_loss():
    for seed in range(5):
        rows = planted(seed=seed)
        W, H = point(rows, 5, seed)
        *_, losses, _ = alternate(
            rows, W, H, total_energy(rows), lambda W, V, H, P, S, rate: (H, P, S), iterations=60, h_only=0, learning_rate=1.0,
            h_only_learning_rate=None, mu_eps=EPS, tol=0.0, on_iteration=None,
        )  # fmt: skip
        assert losses[-1] < losses[0]
        assert np.diff(losses).max() <= 1e-12 * losses[0]  # rounding of the loss


@pytest.mark.parametrize("solver", SOLVERS)
def test_zero_coefficients_stay_zero(solver):
    rows = planted()
    W, H = orthonormal_start(rows, 4, np.random.default_rng(0))
    zero = torch.from_numpy(np.random.default_rng(1).random(W.shape) < 0.3)
    found = solver(rows, 4, total_energy(rows), None, iterations=50, h_only=5, start=(W.masked_fill(zero, 0.0), H))
    assert (found.W[zero] == 0).all()
    assert (found.W[~zero] > 0).all()


# --------------------------------------------------------------------------------------------------------------------------- whole runs


def test_h_moves_alone_first_and_each_phase_has_its_rate():
    rows = planted()
    W, H = random_start(rows, 3, np.random.default_rng(0))
    settings = {"h_only": 3, "learning_rate": 2e-3, "h_only_learning_rate": 9e-3, "start": (W, H)}
    seen = []
    found = multiplicative(rows, 3, total_energy(rows), None, iterations=4, on_iteration=lambda *x: seen.append(x), **settings)
    assert_same(found, *slow_run(rows, W, H, [9e-3] * 3 + [2e-3] * 4, 3), 1e-10)
    assert len(found.losses) == 1 + 3 + 4
    assert seen == list(enumerate(found.losses[1:], 1))
    assert not found.converged
    alone = multiplicative(rows, 3, total_energy(rows), None, iterations=0, **settings)
    held = alone.W / W  # what is left is the squared norm of each component
    assert torch.allclose(held, held[:1].expand_as(held), rtol=1e-12)
    plain = multiplicative(rows, 3, total_energy(rows), None, iterations=4, **settings | {"h_only_learning_rate": None})
    assert_same(plain, *slow_run(rows, W, H, [2e-3] * 7, 3), 1e-10)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("weights", [None, np.linspace(0, 2, 12)], ids=["plain", "weighted"])
def test_losses_are_those_of_the_definition(solver, weights):
    rows = planted(weights=weights)
    total = total_energy(rows)
    run = functools.partial(solver, rows, 4, h_only=2, learning_rate=5e-3)
    whole = run(total, np.random.default_rng(0), iterations=5)
    for iterations in range(6):
        found = run(total, np.random.default_rng(0), iterations=iterations)
        assert found.losses == whole.losses[: 3 + iterations]
        assert found.losses[-1] == pytest.approx(slow_loss(rows, found.W, found.H), rel=1e-11)
        assert found.losses[-1] == pytest.approx(loss(rows, found.W, found.H, total), rel=1e-11)
        torch.testing.assert_close(found.P, rows.project(found.H), rtol=0, atol=1e-12)
    # More to explain than the rows carry raises every loss by as much.
    more = run(total + 2.5, np.random.default_rng(0), iterations=5)
    np.testing.assert_allclose(np.array(more.losses) - whole.losses, 2.5, rtol=1e-11)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_run_is_determined_by_its_generator(solver):
    rows = planted()
    one, same, other = (solver(rows, 3, total_energy(rows), np.random.default_rng(seed), iterations=20) for seed in (3, 3, 4))
    assert torch.equal(one.W, same.W)
    assert torch.equal(one.H, same.H)
    assert one.losses == same.losses
    assert one.losses != other.losses


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_start_may_be_arrays_of_any_precision_and_stays_as_it_is(solver):
    rows = planted()
    W, H = orthonormal_start(rows, 3, np.random.default_rng(0))
    given = (W.numpy().astype(np.float32), H.numpy().astype(np.float32))
    kept = tuple(x.copy() for x in given)
    found = solver(rows, 3, total_energy(rows), None, iterations=5, h_only=2, start=given)
    expected = solver(rows, 3, total_energy(rows), None, iterations=5, h_only=2, start=tuple(torch.from_numpy(x).double() for x in given))
    assert torch.equal(found.W, expected.W)
    assert found.losses == expected.losses
    assert all(np.array_equal(x, y) for x, y in zip(given, kept, strict=True))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_weight_counts_as_so_many_examples(solver):
    weights = np.array([3, 1, 0, 2] * 3)
    rows = planted(weights=weights)
    W, H = orthonormal_start(rows, 4, np.random.default_rng(0))
    copies = np.repeat(np.arange(12), weights)
    repeated = Stored(rows.rows[copies])
    weighted = solver(rows, 4, total_energy(rows), None, iterations=40, h_only=10, start=(W, H))
    spelt_out = solver(repeated, 4, total_energy(repeated), None, iterations=40, h_only=10, start=(W[copies], H))
    np.testing.assert_allclose(weighted.losses, spelt_out.losses, rtol=1e-10)
    np.testing.assert_allclose(weighted.H, spelt_out.H, atol=1e-9)
    np.testing.assert_allclose(weighted.W[copies], spelt_out.W, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_tolerance_ends_the_joint_phase_early(solver):
    rows = planted(n=40)
    run = functools.partial(solver, rows, 3, total_energy(rows), learning_rate=2e-3, h_only=20)
    every = run(np.random.default_rng(0), iterations=400)
    some = run(np.random.default_rng(0), iterations=400, tol=1e-3)
    assert some.converged
    assert 22 < len(some.losses) < 421
    assert some.losses == every.losses[: len(some.losses)]
    changes = np.abs(np.diff(some.losses)) / some.losses[1:]
    assert changes[-1] < 1e-3
    assert (changes[20:-1] >= 1e-3).all()


def test_the_paper_s_solver_finds_planted_components():
    rng = np.random.default_rng(7)
    truth = np.linalg.qr(rng.normal(size=(30, 4)))[0].T
    rows = Stored(unit(truth[rng.integers(4, size=(200, 2))] * rng.uniform(0.5, 1, (200, 2, 1))))
    found = multiplicative(rows, 4, total_energy(rows), np.random.default_rng(1), iterations=400)
    assert found.losses[-1] < 0.02 * found.losses[0]
    assert np.abs(found.H.numpy() @ truth.T).max(0).min() > 0.99
    torch.testing.assert_close(found.H.norm(dim=1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (found.W >= 0).all()


# --------------------------------------------------------------------------------------------------------------------------- the starts


def test_the_start_has_the_paper_s_law():
    rows, r, p = planted(n=400, d=300), 8, 1000
    W, H = random_start(rows, r, np.random.default_rng(0), p)
    assert 0 < W.min() < 0.01 < 0.99 < W.max() <= 1
    assert W.mean() == pytest.approx(0.5, abs=0.03)  # six standard errors of 3200 uniform numbers
    assert H.square().mean() == pytest.approx(2 / (r * p), rel=0.17)  # six standard errors of 2400 squares
    assert random_start(rows, r, np.random.default_rng(0))[1].square().sum(1).mean() == pytest.approx(2 / r, rel=0.17)


@pytest.mark.parametrize(("r", "d", "p"), [(3, 5, 5), (3, 5, 6), (3, 5, 8), (3, 5, 40)])
def test_the_unseen_part_of_a_start_has_the_law_of_its_inner_products(r, d, p):
    rng = np.random.default_rng(0)
    drawn = np.stack([outside_features(r, d, p, rng).numpy() for _ in range(4000)])
    variance, free = 2 / (r * p), p - d
    standard_error = variance * np.sqrt(2 * free / 4000)  # of the diagonal; smaller off it
    np.testing.assert_allclose(drawn.mean(0), free * variance * np.eye(r), atol=5 * standard_error)
    # Wishart: the diagonal varies by 2 ν σ⁴, the rest by ν σ⁴.
    np.testing.assert_allclose(drawn.var(0), free * variance**2 * (1 + np.eye(r)), rtol=0.35)
    assert np.linalg.matrix_rank(drawn[0]) == min(r, free)


@pytest.mark.parametrize("start", [random_start, orthonormal_start])
def test_processes_share_one_start(start):
    rows = planted()
    W, H = start(rows, 3, np.random.default_rng(0))
    # As the second of two processes sees it, which has been told of the first one's draw.
    some = RowShards(Stored(rows.rows[5:]))
    some.shapes, some.here = [(5, *rows.rows.shape[1:]), (7, *rows.rows.shape[1:])], slice(5, 12)
    found = start(some, 3, np.random.default_rng(0))
    assert torch.equal(found[0], W[5:])
    assert torch.equal(found[1], H)
    some = ColumnShards(Stored(rows.rows[..., 3:]))
    some.d, some.here = 7, slice(3, 7)
    found = start(some, 3, np.random.default_rng(0))
    assert torch.equal(found[0], W)
    assert torch.equal(found[1], H[:, 3:])


def test_extended_gram_follows_the_dense_trajectory():
    """Most of the start is outside the span of 24 rows in 90 features, and decays slowly: without it the iterations are others."""
    rows = planted(d=90, weights=np.linspace(0.5, 2, 12))
    W, H = random_start(rows, 5, np.random.default_rng(0))
    extended, weights = with_start(rows, H)
    settings = {"iterations": 20, "h_only": 10, "learning_rate": 2e-2, "orthogonality": 0.3}
    total = total_energy(rows)
    dense = multiplicative(rows, 5, total, None, start=(W, H), **settings)
    gram = multiplicative(extended, 5, total, None, start=(W, weights), **settings)
    back = gram.H @ torch.cat([rows.rows.flatten(0, 1), H])
    np.testing.assert_allclose(gram.losses, dense.losses, rtol=1e-8)
    np.testing.assert_allclose(gram.W, dense.W, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(back, dense.H, rtol=1e-8, atol=1e-8)
    assert abs(dense.losses[-1] / dense.losses[0] - 1) > 0.1  # it moved
    inside = torch.linalg.lstsq(rows.rows.flatten(0, 1).T, H.T).solution.T
    projected = multiplicative(Gram.of(rows), 5, total, None, start=(W, inside), **settings)
    assert abs(projected.losses[-1] / dense.losses[-1] - 1) > 1e-3


def test_extended_gram_knows_what_a_start_has_outside_the_features():
    rows, r = planted(), 4
    wide = Stored(torch.nn.functional.pad(rows.rows, (0, 60)))
    W, H = random_start(wide, r, np.random.default_rng(0))
    unseen = H[:, 7:] @ H[:, 7:].T
    extended, weights = with_start(rows, H[:, :7], outside=unseen, gram=Gram.of(rows))
    total = total_energy(rows)
    dense = multiplicative(wide, r, total, None, start=(W, H), iterations=20, h_only=10, learning_rate=2e-2)
    gram = multiplicative(extended, r, total, None, start=(W, weights), iterations=20, h_only=10, learning_rate=2e-2)
    np.testing.assert_allclose(gram.losses, dense.losses, rtol=1e-8)
    np.testing.assert_allclose(gram.W, dense.W, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", SOLVERS)
def test_gram_form_follows_the_dense_trajectory_within_the_span(solver):
    rows = planted()
    gram = Gram.of(rows)
    rng = np.random.default_rng(0)
    A = rows.rows.flatten(0, 1)
    W = torch.from_numpy(rng.random((12, 4)))
    H = torch.linalg.qr((torch.from_numpy(rng.normal(size=(4, 24))) @ A).T)[0].T
    weights = torch.linalg.lstsq(A.T, H.T, driver="gelsd").solution.T
    dense = solver(rows, 4, total_energy(rows), None, start=(W, H), iterations=20, h_only=10, learning_rate=5e-3)
    found = solver(gram, 4, total_energy(rows), None, start=(W, weights), iterations=20, h_only=10, learning_rate=5e-3)
    np.testing.assert_allclose(found.losses, dense.losses, rtol=1e-8)
    np.testing.assert_allclose(found.W, dense.W, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.H @ A, dense.H, rtol=1e-8, atol=1e-8)


def test_extended_rows_are_rows():
    """Every product that the interface promises, against the vectors they stand for."""
    rows = planted()
    _, H = point(rows, 3)
    extended, weights = with_start(rows, H)
    assert isinstance(extended, Rows)
    assert isinstance(extended, Extended)
    vectors = torch.cat([rows.rows.flatten(0, 1), H])
    assert torch.equal(weights @ vectors, H)
    rng = np.random.default_rng(0)
    X, Y = (torch.from_numpy(rng.normal(size=(4, 27))) for _ in range(2))
    V = torch.from_numpy(rng.normal(size=(12, 2, 4)))
    torch.testing.assert_close(extended.project(X), rows.project(X @ vectors))
    torch.testing.assert_close(extended.inner(X, Y, extended.project(Y)), X @ vectors @ vectors.T @ Y.T)
    torch.testing.assert_close(extended.gather(V) @ vectors, rows.gather(V))
    torch.testing.assert_close(extended.example(5) @ vectors, rows.example(5))
    torch.testing.assert_close(extended.energies, rows.energies)
    torch.testing.assert_close((extended.leading(5) @ vectors).abs(), rows.leading(5).abs())


# ------------------------------------------------------------------------------------------------------------------------------ Stiefel


@pytest.mark.parametrize(("r", "d"), [(1, 1), (1, 7), (3, 7), (7, 7)])
def test_the_low_rank_step_is_the_dense_cayley_transform(r, d):
    rows = planted(d=d)
    W, H = orthonormal_start(rows, r, np.random.default_rng(0))
    D = gradient(rows, W, rows.moment(W), H, rows.project(H), H @ H.T)
    rate = 0.05
    B = (D.T @ H - H.T @ D).numpy()
    expected = np.linalg.solve(np.eye(d) + rate / 2 * B, (np.eye(d) - rate / 2 * B) @ H.numpy().T).T
    new_H, new_P, new_S = cayley(rows, H, H @ H.T, D, rate)
    assert d == 1 or r == d or np.abs(expected - H.numpy()).max() > 1e-3  # it moved
    np.testing.assert_allclose(new_H, expected, atol=1e-13)
    np.testing.assert_allclose(new_P, rows.project(new_H), atol=1e-13)
    np.testing.assert_allclose(new_S, np.eye(r), atol=1e-13)


def test_one_stiefel_iteration_steps_in_w_and_then_turns():
    rows = planted(weights=np.linspace(0.5, 2, 12))
    W, H = orthonormal_start(rows, 3, np.random.default_rng(0))
    found = stiefel(rows, 3, total_energy(rows), None, iterations=1, h_only=0, learning_rate=0.01, start=(W, H))
    W1 = slow_coefficients(rows.rows.numpy(), W.numpy(), H.numpy())
    D = slow_gradient(rows.rows.numpy(), W1, H.numpy(), rows.weights.numpy())
    B = D.T @ H.numpy() - H.numpy().T @ D
    expected = np.linalg.solve(np.eye(7) + 0.005 * B, (np.eye(7) - 0.005 * B) @ H.numpy().T).T
    np.testing.assert_allclose(found.W, W1, rtol=1e-12)
    np.testing.assert_allclose(found.H, expected, atol=1e-12)


@pytest.mark.parametrize("rate", [1e-3, 1e-2])
def test_components_stay_orthonormal(rate):
    rows = planted(n=60, d=20)
    found = stiefel(rows, 6, total_energy(rows), np.random.default_rng(0), iterations=600, h_only=100, learning_rate=rate)
    assert float((found.H @ found.H.T - torch.eye(6)).abs().max()) < 1e-12  # 1e-5 is asked for; rounding alone leaves 1e-14 or so
    assert found.losses[-1] < 0.2 * found.losses[0]
    large = stiefel(rows, 6, total_energy(rows), np.random.default_rng(0), iterations=600, h_only=100, learning_rate=100 * rate)
    assert float((large.H @ large.H.T - torch.eye(6)).abs().max()) < 1e-11  # however wild the steps
    gram = Gram.of(rows)
    vectors = rows.rows.flatten(0, 1)
    start = orthonormal_start(rows, 6, np.random.default_rng(0))
    weights = torch.linalg.lstsq(vectors.T, start[1].T, driver="gelsd").solution.T
    dual = stiefel(gram, 6, total_energy(rows), None, iterations=600, h_only=100, learning_rate=rate, start=(start[0], weights))
    assert float((dual.H @ gram.K @ dual.H.T - torch.eye(6)).abs().max()) < 1e-10  # the Gram matrix itself is known to 1e-12 or so


def test_the_stiefel_start_is_orthonormal_and_its_coefficients_small():
    rows = planted(n=400)
    W, H = orthonormal_start(rows, 5, np.random.default_rng(0))
    torch.testing.assert_close(H @ H.T, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-13)
    assert 0 < W.min() < 0.004 < 0.396 < W.max() <= 0.4


# ------------------------------------------------------------------------------------------------------------------------------- errors


def test_divergence_is_said_with_its_iteration_and_what_to_do():
    rows = planted()
    total = total_energy(rows)
    # While W moves too it makes up for steps that are too long, and the loss only jumps: no more than a number beyond float64 is an error.
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) after iteration 1[1-9] of 60: .* lower learning_rate \(now 1e\+100\)"):
        multiplicative(rows, 4, total, np.random.default_rng(0), iterations=50, h_only=10, h_only_learning_rate=1e-3, learning_rate=1e100)
    with pytest.raises(FloatingPointError, match=r"after iteration [1-9] of 60: .* lower h_only_learning_rate \(now 1e\+06\)"):
        multiplicative(rows, 4, total, np.random.default_rng(0), iterations=50, h_only=10, h_only_learning_rate=1e6)
    with pytest.raises(FloatingPointError, match=r"the Cayley step .*: lower learning_rate \(now 1e\+308\)"):
        stiefel(rows, 4, total, np.random.default_rng(0), learning_rate=1e308)


@pytest.mark.parametrize("solver", SOLVERS)
def test_settings_that_cannot_be_are_refused(solver):
    rows = planted()
    run = functools.partial(solver, rows, 3, total_energy(rows), np.random.default_rng(0))
    for name in ("learning_rate", "h_only_learning_rate", "mu_eps"):
        for value in (0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"{name}={value}: it must be positive and finite"):
                run(**{name: value})
    for name in ("iterations", "h_only"):
        for value in (-1, 2.0, True):
            with pytest.raises(ValueError, match=f"{name}={value}: it must be a whole number of iterations from 0 up"):
                run(**{name: value})
    W, H = orthonormal_start(rows, 3, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"start has shapes \(12, 3\) and \(2, 7\); expected W \(12, 3\) and H \(3, ·\)"):
        run(start=(W, H[:2]))
    with pytest.raises(ValueError, match="expected finite numbers and W ≥ 0"):
        run(start=(W - 1, H))
    with pytest.raises(ValueError, match="expected finite numbers and W ≥ 0"):
        run(start=(W, H * float("nan")))
    with pytest.raises(ValueError, match=r"Gram rows have no coordinates .* pass start=\(W, H\)"):
        solver(Gram.of(rows), 3, 12.0, np.random.default_rng(0))


def test_components_that_cannot_be_orthonormal_are_refused():
    rows = planted()
    with pytest.raises(ValueError, match=r"r=8 orthonormal components in d=7 features: choose r from 1 to 7"):
        stiefel(rows, 8, 12.0, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"H Hᵀ is .* off the identity; orthonormal rows are needed"):
        stiefel(rows, 3, 12.0, None, start=point(rows, 3))
    with pytest.raises(ValueError, match=r"p=3 parameters: r must be at least 1, and p at least the number of features, 7"):
        multiplicative(rows, 3, 12.0, np.random.default_rng(0), p=3)
    with pytest.raises(ValueError, match="r must be at least 1"):
        multiplicative(rows, 0, 12.0, np.random.default_rng(0))


DEGENERATE = {
    "all zero": np.zeros((5, 2, 6)),
    "zero examples": np.concatenate([np.zeros((4, 2, 6)), np.ones((4, 2, 6))]),
    "one example": np.arange(6.0)[None, None],
    "one direction": np.ones((6, 3, 4)),
    "one feature": np.ones((6, 2, 1)),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("r", [1, 4, 9])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_problems_end_with_finite_numbers(solver, r, kind):
    A = unit(DEGENERATE[kind])
    if solver is stiefel and r > A.shape[2]:
        return
    rows = Stored(A)
    found = solver(rows, r, total_energy(rows), np.random.default_rng(0), iterations=200, learning_rate=0.01)
    assert torch.isfinite(found.W).all()
    assert (found.W >= 0).all()
    torch.testing.assert_close(found.H.norm(dim=1), torch.ones(r, dtype=torch.float64), rtol=0, atol=1e-10)
    assert np.isfinite(found.losses).all()
    assert found.losses[-1] == pytest.approx(twins.dense_loss(A, found.W.numpy(), found.H.numpy()), abs=1e-9)
    assert (found.W[~A.any((1, 2))] < 1e-12).all()  # a Fisher that is zero uses no component
