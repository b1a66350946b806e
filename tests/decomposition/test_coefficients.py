"""Coefficients against scipy's active-set solver on vectorised d × d matrices, example by example."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
import twins
from problems import point, problem, unit, weighted_loss

from npeff_nb.decomposition import coefficients as module
from npeff_nb.decomposition.coefficients import fit_coefficients, optimality, sweep

TOL = 1e-6
"""The default of :func:`fit_coefficients`."""


def columns(H: torch.Tensor) -> np.ndarray:
    """h_jh_jᵀ as vectors, (d², r)."""
    return np.stack([np.outer(h, h).ravel() for h in H.numpy()], 1)


def system(A: np.ndarray, H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (torch.from_numpy(A) @ H.T).square().sum(1), (H @ H.T).square()


def value(W: np.ndarray, B: torch.Tensor, G: torch.Tensor) -> np.ndarray:
    """(n,) f(w) = ½ wᵀG w − Bᵀw."""
    return np.einsum("ni,ij,nj->n", W, G.numpy(), W) / 2 - (W * B.numpy()).sum(1)


def best_values(A: np.ndarray, H: torch.Tensor) -> np.ndarray:
    """(n,) min f, by scipy: ‖F̂ − F̃‖² = ‖F̂‖² + 2 f."""
    C = columns(H)
    left = np.array([scipy.optimize.nnls(C, twins.fisher(a).ravel(), maxiter=300 * len(H))[1] for a in A])
    return (left**2 - np.array([twins.frobenius(a) ** 2 for a in A])) / 2


COMPONENTS = {
    "unlike": lambda H, rng: H,
    "one": lambda H, rng: H[:1],
    "near duplicates": lambda H, rng: np.repeat(H, 2, 0) + 1e-3 * rng.standard_normal((2 * len(H), H.shape[1])),
    "nearer duplicates": lambda H, rng: np.repeat(H, 3, 0) + 1e-7 * rng.standard_normal((3 * len(H), H.shape[1])),
    "duplicates": lambda H, rng: np.repeat(H, 2, 0),
    "opposite": lambda H, rng: np.concatenate([H, -H]),
    "all equal": lambda H, rng: np.repeat(H[:1], 5, 0),
    "alike": lambda H, rng: 1 + 0.05 * rng.standard_normal((2 * len(H), H.shape[1])),
    "in a plane": lambda H, rng: rng.standard_normal((12, 2)) @ rng.standard_normal((2, H.shape[1])),
    "more than d²": lambda H, rng: rng.standard_normal((30, H.shape[1])),
}


def components(kind: str, seed: int) -> torch.Tensor:
    """(r, 5) unit components of one of the kinds above."""
    rng = np.random.default_rng(seed)
    H = COMPONENTS[kind](rng.standard_normal((4, 5)), rng)
    return torch.from_numpy(H / np.linalg.norm(H, axis=1, keepdims=True))


def examples(H: torch.Tensor, seed: int) -> np.ndarray:
    """(24, 2, 5) rows, some of which are components themselves, some zero."""
    A = problem("random", seed, n=24, d=5)
    rng = np.random.default_rng(seed)
    A[:8] = H.numpy()[rng.integers(len(H), size=(8, 2))] * rng.uniform(0.2, 1, (8, 2, 1))
    A[8:12, 1] = 0
    A[12:14] = 0
    return unit(A)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", COMPONENTS)
def test_coefficients_are_nonnegative_least_squares(kind, seed):
    H = components(kind, seed)
    A = examples(H, seed)
    B, G = system(A, H)
    W = fit_coefficients(B, G)
    residual, gap = optimality(W, B, G)
    assert float(residual.max()) <= TOL
    assert float(gap.max()) <= TOL
    assert (W >= 0).all()
    np.testing.assert_array_equal(W[12:14], 0)  # zero Fishers use nothing
    short = value(W.numpy(), B, G) - best_values(A, H)
    # The gap is what the minimum is at most short of; 1e-12 for scipy's own rounding.
    assert (short <= gap.numpy() + 1e-12).all()
    assert (short >= -1e-12).all()
    if kind in ("unlike", "one"):  # only one minimum: the coefficients are scipy's
        expected = np.stack([scipy.optimize.nnls(columns(H), twins.fisher(a).ravel())[0] for a in A])
        # ½ λ ‖w − w*‖² ≤ gap, λ the smallest eigenvalue of G.
        bound = np.sqrt(2 * TOL / float(torch.linalg.eigvalsh(G)[0]))
        np.testing.assert_allclose(W, expected, atol=bound)


@pytest.mark.parametrize("tol", [1e-2, 1e-9])
def test_the_tolerance_is_met_by_every_example(tol):
    """By the gap too, which many components make larger than the residual."""
    many = torch.from_numpy(1 + np.random.default_rng(0).standard_normal((200, 5)))
    for H in (components("near duplicates", 0), components("in a plane", 0), many / many.norm(dim=1, keepdim=True)):
        B, G = system(examples(H, 0), H)
        residual, gap = optimality(fit_coefficients(B, G, tol), B, G)
        assert float(residual.max()) <= tol
        assert float(gap.max()) <= tol


def test_no_more_sweeps_than_asked_for():
    H = components("near duplicates", 0)
    B, G = system(examples(H, 0), H)
    np.testing.assert_array_equal(fit_coefficients(B, G, max_sweeps=0), 0)
    few = fit_coefficients(B, G, tol=0, max_sweeps=5)
    np.testing.assert_array_equal(few, sweep(torch.zeros_like(B), B, G, 5))


def test_nothing_to_explain_gives_zeros():
    H = components("unlike", 0)
    G = (H @ H.T).square()
    np.testing.assert_array_equal(fit_coefficients(torch.zeros(3, 4, dtype=torch.float64), G), 0)
    assert fit_coefficients(torch.zeros(0, 4, dtype=torch.float64), G).shape == (0, 4)


def test_a_component_that_is_zero_is_used_by_none():
    H = components("unlike", 0)
    H[2] = 0
    A = problem("random", 0, d=5)
    B, G = system(A, H)
    W = fit_coefficients(B, G)
    np.testing.assert_array_equal(W[:, 2], 0)
    np.testing.assert_allclose(W[:, [0, 1, 3]], fit_coefficients(*system(A, H[[0, 1, 3]])), atol=1e-6)


def test_large_problems_go_through_in_blocks(monkeypatch):
    """Blocks of examples, of components and of linear systems: the same coefficients with other sizes of them."""
    H = torch.from_numpy(np.random.default_rng(0).standard_normal((70, 12)))
    H = torch.cat([H, H[:8] + 1e-3])
    H = H / H.norm(dim=1, keepdim=True)
    B, G = system(problem("random", 1, n=50, d=12), H)
    whole = sweep(torch.zeros_like(B), B, G, 7)
    fitted = fit_coefficients(B, G, 1e-9)
    monkeypatch.setattr(module, "EXAMPLES_AT_ONCE", 16)
    monkeypatch.setattr(module, "COMPONENTS_AT_ONCE", 5)
    # The same steps with sums in another order.
    np.testing.assert_allclose(sweep(torch.zeros_like(B), B, G, 7), whole, atol=1e-12)
    np.testing.assert_allclose(value(fit_coefficients(B, G, 1e-9).numpy(), B, G), value(fitted.numpy(), B, G), atol=1e-9)


@pytest.mark.parametrize("r", [1, 3, 40])
def test_a_sweep_is_exact_coordinate_descent(r):
    """Against the update written out: column after column, each the minimum with the others as they are."""
    A = problem("random", 3)
    W, H = point(14, r, 7, 3)
    B, G = system(A, H)
    expected = W.numpy().copy()
    for _ in range(3):
        for j in range(r):
            expected[:, j] = np.maximum(0, expected[:, j] + (B.numpy()[:, j] - expected @ G.numpy()[:, j]) / G.numpy()[j, j])
    assert sweep(W, B, G, 3) is W
    np.testing.assert_allclose(W, expected, atol=1e-12)  # the same sums in another order


def test_a_sweep_never_raises_the_loss():
    A = problem("random", 3)
    W, H = point(14, 4, 7, 3)
    B, G = system(A, H)
    before = weighted_loss(A, W, H)
    for _ in range(5):
        sweep(W, B, G, 1)
        now = weighted_loss(A, W, H)
        assert now <= before + 1e-12 * len(A)  # rounding of a sum of n unit norms
        before = now


@pytest.mark.parametrize("kind", COMPONENTS)
def test_going_to_the_minimum_on_the_support_never_raises_the_loss(kind):
    """From anywhere, also where equal components make the systems singular: their answers may be anything."""
    for seed in range(4):
        H = components(kind, seed)
        B, G = system(examples(H, seed), H)
        rng = np.random.default_rng(seed)
        W = torch.from_numpy(rng.random(tuple(B.shape)) * (rng.random(tuple(B.shape)) < 0.6))
        before, used = value(W.numpy(), B, G), W > 0
        module._solve_on_support(W, B, G)
        assert (value(W.numpy(), B, G) <= before + 1e-12).all()  # rounding
        assert (W >= 0).all()
        assert not (W[~used] > 0).any()


@pytest.mark.parametrize("kind", COMPONENTS)
def test_the_gap_bounds_how_far_any_coefficients_are_from_the_minimum(kind):
    rng = np.random.default_rng(7)
    H = components(kind, 1)
    A = examples(H, 1)
    B, G = system(A, H)
    best = best_values(A, H)
    for size in (0.0, 0.1, 1.0, 10.0):
        for sparse in (0.2, 1.0):
            W = size * rng.random(tuple(B.shape)) * (rng.random(tuple(B.shape)) < sparse)
            residual, gap = optimality(torch.from_numpy(W), B, G)
            short = value(W, B, G) - best
            assert (gap.numpy() >= short - 1e-12 * (1 + short)).all()  # rounding of values of this size
            slack = W @ G.numpy() - B.numpy()
            np.testing.assert_allclose(residual, np.abs(np.minimum(W, slack)).max(1), atol=1e-12 * (1 + size**2))


@pytest.mark.parametrize("kind", COMPONENTS)
def test_residual_and_gap_vanish_at_the_minimum(kind):
    H = components(kind, 2)
    A = examples(H, 2)
    B, G = system(A, H)
    W = np.stack([scipy.optimize.nnls(columns(H), twins.fisher(a).ravel(), maxiter=300 * len(H))[0] for a in A])
    residual, gap = optimality(torch.from_numpy(W), B, G)
    # scipy ends with a gradient of rounding; nearly singular systems magnify it in w, not in the gradient.
    assert float(residual.max()) < 1e-10
    assert float(gap.abs().max()) < 1e-10
