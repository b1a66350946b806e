"""The loss, its gradient and its minimum along a line, against dense d × d matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import twins
from problems import KINDS, point, problem, weighted_loss, weights_of

from npeff_nb.decomposition.objective import line_minimum, loss, loss_of_products, stationary, total_energy
from npeff_nb.decomposition.rows import Gram, Rows, Stored

FORMS = ("rows", "gram")


def form(name: str, A: np.ndarray, H: torch.Tensor, weights: np.ndarray | None = None) -> tuple[Rows, torch.Tensor]:
    """Rows in one form, and H (r, d) in their coordinates."""
    rows = Stored(A, weights=weights)
    if name == "rows":
        return rows, H
    # Weights on the rows that give H again: there are, when the rows span all features.
    return Gram.of(rows), H @ torch.linalg.pinv(rows.rows.flatten(0, 1))


def derivative(f, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences: their error is step² of the third derivative, 1e-9 here, and rounding over step, 1e-10."""
    found = np.empty_like(x)
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        found[at] = (f(up) - f(down)) / (2 * step)
    return found


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_definition(kind, weighted, name):
    A = problem(kind, 1)
    weights = weights_of(14) if weighted else None
    W, H = point(14, 4, 7, 2)
    if name == "gram":  # whatever directions its weights on the rows make
        rows = Gram.of(Stored(A, weights=weights))
        theta = torch.from_numpy(np.random.default_rng(3).standard_normal((4, 28)) / 5)
        H = theta @ torch.from_numpy(A.reshape(28, 7))
    else:
        rows, theta = Stored(A, weights=weights), H
    total = total_energy(rows)
    counts = np.ones(14) if weights is None else weights
    # float64 and the same sums in another order: the rounding of some hundred terms.
    assert total == pytest.approx(sum(o * np.linalg.norm(twins.fisher(a)) ** 2 for o, a in zip(counts, A, strict=True)), rel=1e-12)
    expected = weighted_loss(A, W, H, weights)
    assert loss(rows, W, theta, total) == pytest.approx(expected, rel=1e-11)
    P, S = torch.from_numpy(A) @ H.T, H @ H.T
    assert loss_of_products(rows, W, P, S, total) == pytest.approx(expected, rel=1e-11)


def test_what_the_features_miss_counts_as_unexplained():
    """Rows in the first features only, under norms of all of them: the loss is the one over all features, of components that are zero elsewhere."""
    A = problem("random", 1, d=9)
    W, H = point(14, 3, 5, 2)
    padded = torch.nn.functional.pad(H, (0, 4))
    rows = Stored(A[:, :, :5])
    assert loss(rows, W, H, total_energy(Stored(A))) == pytest.approx(weighted_loss(A, W, padded), rel=1e-12)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_direction_solves_its_linear_system(seed, weighted, name):
    """M (target − H) = −∇/4, M = WᵀΩW∘S, ∇ the loss's gradient in H by finite differences of dense matrices."""
    A = problem("random", seed)
    weights = weights_of(14) if weighted else None
    W, H = point(14, 3, 7, seed + 20)
    rows, own = form(name, A, H, weights)
    P = rows.project(own)
    target = stationary(rows, W, rows.moment(W), P, rows.inner(own, own, P))
    if name == "gram":
        target = target @ torch.from_numpy(A.reshape(28, 7))
    gradient = derivative(lambda H: weighted_loss(A, W, H, weights), H.numpy())
    counts = np.ones(14) if weights is None else weights
    M = (W.T @ (torch.from_numpy(counts)[:, None] * W)) * (H @ H.T)
    np.testing.assert_allclose((M @ (target - H)).numpy(), -gradient / 4, atol=1e-7 * np.abs(gradient).max())


def test_the_direction_of_a_component_without_users_is_zero():
    A = problem("random", 0)
    W, H = point(14, 3, 7, 0)
    W[:, 1] = 0
    rows = Stored(A)
    target = stationary(rows, W, rows.moment(W), rows.project(H), H @ H.T)
    np.testing.assert_array_equal(target[1], 0)
    assert target[[0, 2]].norm() > 0.1


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_line_search_finds_the_minimum_along_the_direction(seed, weighted):
    """Five values of the loss, written out, determine the quartic; its minimum over all t is where the search must end."""
    A = problem("random", seed)
    weights = weights_of(14) if weighted else None
    W, H = point(14, 3, 7, seed)
    D = point(14, 3, 7, seed + 50)[1]

    def value(t: float) -> float:
        return weighted_loss(A, W, H + t * D, weights)

    rows = Stored(A, weights=weights)
    C = H @ D.T
    t = line_minimum(rows, W, rows.moment(W), rows.project(H), rows.project(D), H @ H.T, C + C.T, D @ D.T)
    at = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    quartic = np.polynomial.Polynomial.fit(at, [value(x) for x in at], 4).convert()
    assert quartic(0.37) == pytest.approx(value(0.37), rel=1e-10)  # along a line the loss really is a quartic
    slopes = quartic.deriv().roots()
    real = slopes[np.abs(slopes.imag) < 1e-9].real
    best = real[np.argmin(quartic(real))]
    assert value(t) <= value(best) * (1 + 1e-10)
    assert abs(quartic.deriv()(t)) < 1e-8 * abs(quartic.coef).sum()


@pytest.mark.parametrize("size", [0.0, 1e-170, 1e-60])
def test_the_line_search_bears_no_and_next_to_no_direction(size):
    A = problem("random", 0)
    W, H = point(14, 3, 7, 0)
    rows, D = Stored(A), size * point(14, 3, 7, 1)[1]
    C = H @ D.T
    t = line_minimum(rows, W, rows.moment(W), rows.project(H), rows.project(D), H @ H.T, C + C.T, D @ D.T)
    assert np.isfinite(t)
    assert t == 0 or size > 0
    assert weighted_loss(A, W, H + t * D) <= weighted_loss(A, W, H) * (1 + 1e-12)
