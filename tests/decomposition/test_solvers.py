"""The solver's pure functions against the loss written out with dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
import twins

from npeff_nb.decomposition import solvers


def unit(A: np.ndarray) -> np.ndarray:
    """Rows of unit-norm Fishers; a zero Fisher stays zero."""
    norms = np.array([twins.frobenius(a) for a in A])
    return A / np.sqrt(np.where(norms > 0, norms, 1))[:, None, None]


def problem(kind: str, seed: int, n: int = 14, k: int = 2, d: int = 7) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, k, d))
    if kind == "duplicates":
        A[n // 2 :] = A[: n - n // 2]
    elif kind == "all equal":
        A[:] = A[0]
    elif kind == "zero rows":
        A[:, 1:] = 0
    elif kind == "zero examples":
        A[::3] = 0
    elif kind == "low rank":
        A = A[:, :, :2] @ rng.standard_normal((2, d))
    elif kind == "one direction":
        A = A[:, :, :1] * rng.standard_normal(d)
    elif kind == "wide range":
        A *= np.logspace(0, -6, d)
    elif kind == "orthogonal":
        A = np.zeros((n, k, d))
        A[np.arange(n), 0, np.arange(n) % d] = 1
    return torch.from_numpy(unit(A))


KINDS = ("random", "duplicates", "all equal", "zero rows", "zero examples", "low rank", "one direction", "wide range", "orthogonal")
SHAPES = [(14, 1, 7, 3), (14, 2, 7, 1), (14, 3, 7, 5), (4, 2, 7, 6), (14, 2, 3, 9), (1, 1, 5, 1)]
"""n, k, d, r: also one component, more components than examples, more than features, and a single example."""
PROBLEMS = [(kind, *shape, seed) for seed, kind in enumerate(KINDS) for shape in SHAPES]


def start(A: torch.Tensor, r: int, seed: int = 0) -> torch.Tensor:
    return solvers.kmeans_pp(A, r, np.random.default_rng(seed))


def solve(A: torch.Tensor, r: int, seed: int = 0, **settings) -> solvers.Solution:
    return solvers.hals(A, start(A, r, seed), solvers.total_energy(A), **settings)


def random_point(A: torch.Tensor, r: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    W = torch.rand(len(A), r, generator=draw, dtype=torch.float64)
    H = torch.randn(r, A.shape[2], generator=draw, dtype=torch.float64)
    return W, H


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_definition(kind):
    A = problem(kind, 1)
    W, H = random_point(A, 4, 2)
    total = solvers.total_energy(A)
    assert total == pytest.approx(sum(np.linalg.norm(twins.fisher(a)) ** 2 for a in A.numpy()), rel=1e-12)
    expected = twins.dense_loss(A.numpy(), W.numpy(), H.numpy())
    assert solvers.loss(A, W, H, total) == pytest.approx(expected, rel=1e-12)  # float64, the same sums
    P, S = A @ H.T, H @ H.T
    assert solvers._loss(W, P, S, total) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("case", PROBLEMS, ids=lambda case: f"{case[0]} n{case[1]} k{case[2]} d{case[3]} r{case[4]}")
def test_the_loss_never_rises_and_is_the_one_reported(case):
    kind, n, k, d, r, seed = case
    A = problem(kind, seed, n, k, d)
    if not A.any():  # a single example that the case made zero
        return
    seen = []
    found = solve(A, r, seed, max_iter=60, tol=0, on_iteration=lambda i, now: seen.append((i, now)))
    losses = np.array(found.losses)
    assert np.isfinite(losses).all()
    # The loss is a difference of sums of the size of the total: 1e-12 of it is rounding.
    noise = 1e-12 * solvers.total_energy(A)
    assert (np.diff(losses) <= noise).all(), losses
    assert losses[-1] == pytest.approx(twins.dense_loss(A.numpy(), found.W.numpy(), found.H.numpy()), abs=10 * noise)
    assert [now for _, now in seen] == found.losses[1:-1]
    assert [i for i, _ in seen] == list(range(1, len(seen) + 1))
    assert (found.W >= 0).all()
    np.testing.assert_allclose(found.H.norm(dim=1), 1, atol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_the_line_search_finds_the_minimum_along_the_direction(seed):
    """Five values of the loss, written out, determine the quartic; its minimum over all t is where the search must end."""
    A = problem("random", seed)
    W, H = random_point(A, 3, seed)
    D = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed + 50), dtype=torch.float64)

    def value(t: float) -> float:
        return twins.dense_loss(A.numpy(), W.numpy(), (H + t * D).numpy())

    t = solvers._line_minimum(W, A @ H.T, A @ D.T, H @ H.T, H, D)
    at = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    quartic = np.polynomial.Polynomial.fit(at, [value(x) for x in at], 4).convert()
    assert quartic(0.37) == pytest.approx(value(0.37), rel=1e-10)  # along a line the loss really is a quartic
    slopes = quartic.deriv().roots()
    real = slopes[np.abs(slopes.imag) < 1e-9].real
    best = real[np.argmin(quartic(real))]
    assert value(t) <= value(best) * (1 + 1e-10)
    assert abs(quartic.deriv()(t)) < 1e-8 * abs(quartic.coef).sum()


def test_the_line_search_stays_where_there_is_nowhere_to_go():
    A = problem("random", 0)
    W, H = random_point(A, 3, 0)
    assert solvers._line_minimum(W, A @ H.T, A @ (0 * H).T, H @ H.T, H, 0 * H) == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_the_end_is_stationary(seed):
    """The dense loss's own gradient by autograd: zero in H; in W zero where W > 0 and not negative elsewhere."""
    A = problem("random", seed, 20, 2, 6)
    found = solve(A, 3, seed, tol=0, max_iter=3000)
    W, H = found.W.clone().requires_grad_(), found.H.clone().requires_grad_()
    fishers = A.transpose(1, 2) @ A
    loss = (fishers - torch.einsum("nr,ra,rb->nab", W, H, H)).square().sum()
    in_W, in_H = torch.autograd.grad(loss, [W, H])
    scale = 4 * (torch.einsum("nr,rd,nde->re", W, H, fishers)).norm()  # size of either of the two terms that cancel
    assert in_H.norm() < 1e-5 * scale
    # One coefficient's gradient is of the order of 2 (‖F̂‖ = 1).
    assert torch.minimum(W, in_W).abs().max() < 1e-5


def test_coefficients_never_raise_the_loss_and_change_in_place():
    A = problem("random", 3)
    W, H = random_point(A, 4, 3)
    B, G, total = (A @ H.T).square().sum(1), (H @ H.T).square(), solvers.total_energy(A)
    before = solvers.loss(A, W, H, total)
    for _ in range(5):
        assert solvers.hals_coefficients(W, B, G) is W
        now = solvers.loss(A, W, H, total)
        assert now <= before + 1e-12 * total
        before = now


@pytest.mark.parametrize(("kind", "k", "r"), [("random", 1, 3), ("random", 3, 5), ("zero rows", 2, 4), ("zero examples", 2, 4), ("low rank", 2, 2)])
def test_coefficients_are_nonnegative_least_squares(kind, k, r):
    """Against scipy's active-set solver on the vectorised problem, example by example."""
    A = problem(kind, 5, k=k)
    _, H = random_point(A, r, 6)
    H = H / H.norm(dim=1, keepdim=True)
    found = solvers.fit_coefficients((A @ H.T).square().sum(1), (H @ H.T).square()).numpy()
    columns = np.stack([np.outer(h, h).ravel() for h in H.numpy()], 1)
    for a, w in zip(A.numpy(), found, strict=True):
        expected, _ = scipy.optimize.nnls(columns, twins.fisher(a).ravel())
        # Ends at a residual of 1e-6 in the optimality conditions; the smallest eigenvalue of these G is above 0.05.
        np.testing.assert_allclose(w, expected, atol=2e-5)


def test_coefficients_for_equal_components_still_fit_as_well_as_one_can():
    """Two equal components: the split between them is free, the residual is not."""
    A = problem("random", 5)
    _, H = random_point(A, 2, 6)
    H = (H / H.norm(dim=1, keepdim=True))[[0, 1, 1]]
    found = solvers.fit_coefficients((A @ H.T).square().sum(1), (H @ H.T).square())
    columns = np.stack([np.outer(h, h).ravel() for h in H.numpy()], 1)
    for a, w in zip(A.numpy(), found.numpy(), strict=True):
        target = twins.fisher(a).ravel()
        assert np.linalg.norm(columns @ w - target) == pytest.approx(scipy.optimize.nnls(columns, target)[1], abs=1e-6)


def test_starts_are_leading_directions_of_unlike_examples():
    A = problem("orthogonal", 0, n=14, d=7)
    H = start(A, 7)
    # Every draw takes away the two examples that are alike: all seven directions come, none twice.
    torch.testing.assert_close((H @ H.T).abs(), torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-12)


def test_starts_never_take_a_zero_example():
    A = problem("zero examples", 0)
    for seed in range(10):
        np.testing.assert_allclose(start(A, 5, seed).norm(dim=1), 1, atol=1e-12)


def test_dead_components_find_users():
    """Two starts at one place: one of them is starved at once, and must not stay so while anything is left to explain."""
    A = problem("orthogonal", 0, n=12, d=4)
    H = torch.zeros(4, 4, dtype=torch.float64)
    H[:, 0] = 1
    found = solvers.hals(A, H, solvers.total_energy(A))
    assert (found.W.sum(0) > 0).all()
    assert found.losses[-1] < 1e-9


def test_more_components_than_needed_explain_everything():
    A = problem("one direction", 2)
    found = solve(A, 3)
    assert found.losses[-1] == pytest.approx(0, abs=1e-9)
    assert found.converged


def test_tolerance_and_iterations_are_honoured():
    A = problem("random", 0, 30, 2, 12)
    few = solve(A, 5, max_iter=3, tol=0)
    assert len(few.losses) == 3 + 2  # the start, three iterations, the last pass over the coefficients
    assert not few.converged
    assert len(solve(A, 5, tol=0.5).losses) < len(solve(A, 5, tol=1e-6).losses)
