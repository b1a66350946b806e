"""From rows to components: every plan ends over the rows themselves, and the best of several starts is kept."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from problems import KINDS, in_parts, planted, problem, weighted_loss, weights_of

from npeff_nb.decomposition import fitting
from npeff_nb.decomposition.coefficients import fit_coefficients
from npeff_nb.decomposition.fitting import Found, find_components, options_of
from npeff_nb.decomposition.objective import Solution, total_energy
from npeff_nb.decomposition.plan import plan
from npeff_nb.decomposition.rows import Stored

WAYS = {
    "rows": ("hals", "none"),
    "gram": ("hals", "gram"),
    "basis": ("hals", 0.5),
    "all directions": ("hals", 1.0),
    "mini-batch": ("minibatch", "auto"),
}


def find(A: np.ndarray, r: int, way: str = "rows", weights: np.ndarray | None = None, seed: int = 0, n_init: int = 2, **settings) -> Found:
    rows = Stored(A, weights=weights)
    solver, reduction = WAYS[way]
    planned = plan(*A.shape, r, solver, reduction, 8)
    energy = None if isinstance(reduction, str) else reduction
    options = {"batch": 8} if solver == "minibatch" else {}
    settings = {"tol": 1e-5, "max_iter": 50, "start": None, "options": options, "energy": energy, "n_init": n_init} | settings
    return find_components(rows, r, total_energy(rows), planned, np.random.default_rng(seed), solver=solver, **settings)


def exact_loss(A: np.ndarray, H: torch.Tensor, weights: np.ndarray | None = None) -> float:
    W = fit_coefficients((torch.from_numpy(A) @ H.T).square().sum(1), (H @ H.T).square())
    return weighted_loss(A, W, H, weights)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_back_are_unit_components_with_the_loss_that_is_said(kind, way):
    for n, k, d, r in [(14, 2, 7, 3), (14, 3, 5, 9), (4, 2, 7, 6)]:
        A = problem(kind, 2, n, k, d)
        found = find(A, r, way)
        assert found.H.shape == (r, d)
        np.testing.assert_allclose(found.H.norm(dim=1), 1, atol=1e-9)
        assert len(found.restart_losses) == 2
        # Batches have losses of quick coefficients; the others end with exact ones, to 1e-6 an example.
        assert found.losses[-1] == pytest.approx(exact_loss(A, found.H), abs=1e-2 if way == "mini-batch" else 2e-6 * n)
        # From a reduced form to the rows the loss may rise by what that form does not know, 1e-14 of the trace for a Gram matrix.
        assert (np.diff(found.losses) <= 1e-8).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("way", ["gram", "basis", "all directions", "mini-batch"])
def test_every_way_finds_components_as_good_as_those_over_the_rows(way, weighted):
    A, _ = planted(60, 2, 30, 4, 0)
    weights = weights_of(60).astype(float) if weighted else None
    expected = find(A, 4, weights=weights, n_init=6, tol=1e-8, max_iter=300)
    found = find(A, 4, way, weights, n_init=6, tol=1e-8, max_iter=300)
    # The best of six starts is the best there is here; batches end within their noise of it.
    assert exact_loss(A, found.H, weights) == pytest.approx(exact_loss(A, expected.H, weights), rel=1e-3 if way == "mini-batch" else 1e-5)


def test_a_basis_that_carries_little_is_left_behind():
    """Components leave its span over the rows."""
    A, _ = planted(60, 2, 30, 4, 0)
    found = find(A, 4, "basis", n_init=1, max_iter=300)
    told = []
    again = find(A, 4, "basis", n_init=1, max_iter=300, tell=lambda what, iteration, now: told.append((what, iteration, now)))
    assert again.losses == found.losses
    assert {what for what, _, _ in told} == {"fit", "over the rows"}
    turned = next(now for what, _, now in told if what == "over the rows")
    assert found.losses[-1] < turned


def test_iterations_are_shared_between_the_forms():
    A, _ = planted(60, 2, 30, 4, 0)
    for way in ("gram", "basis"):
        told = []
        find(A, 4, way, n_init=1, tol=0, max_iter=7, tell=lambda what, iteration, now, told=told: told.append(what))
        assert told == ["fit"] * 8 + ["over the rows"] * 2  # a start and its iterations; the last is for the rows, however many there were


def test_the_best_start_is_kept_and_the_others_are_let_go():
    alive: list[weakref.ref] = []

    def attempts():
        for now in (5.0, 3.0, 4.0, 3.0, 7.0):
            assert sum(ref() is not None for ref in alive) <= 1  # the best so far
            W = torch.full((2, 2), now)
            alive.append(weakref.ref(W))
            yield Solution(W, W, [9.0, now], True)
            del W

    best, losses = fitting._best(attempts())
    assert losses == [5.0, 3.0, 4.0, 3.0, 7.0]
    assert float(best.W[0, 0]) == 3.0
    assert best.W is alive[1]()  # the first of equals


def test_a_start_that_is_given_is_the_only_one():
    A, H = planted(60, 2, 30, 4, 0)
    told = []
    found = find(A, 4, start=torch.from_numpy(H), n_init=5, tell=lambda what, iteration, now: told.append(what))
    assert len(found.restart_losses) == 1
    assert set(told) == {"fit"}
    assert (found.H * torch.from_numpy(H)).sum(1).min() > 0.9  # from there, in that order


@pytest.mark.parametrize("way", ["rows", "mini-batch"])
def test_starts_among_rows_that_are_not_held_are_looked_for_in_a_sample(way, monkeypatch):
    A, _ = planted(200, 1, 12, 3, 0)
    monkeypatch.setattr(fitting, "START_EXAMPLES", 40)
    monkeypatch.setattr(fitting, "CONVERTED_UP_TO", 0)
    in_parts(monkeypatch, 16, A)
    looked_at = []
    plain = fitting.kmeans_pp
    monkeypatch.setattr(fitting, "kmeans_pp", lambda rows, *rest: (looked_at.append(rows.n), plain(rows, *rest))[1])
    found = find(A, 3, way, n_init=3)
    assert looked_at == [40, 40, 40]
    assert exact_loss(A, found.H) == pytest.approx(exact_loss(A, find(A, 3, n_init=3).H), rel=1e-2)
    if way == "mini-batch":  # losses of a sample stand for all
        assert min(found.restart_losses) == pytest.approx(found.losses[-1], rel=0.3)


def test_equal_seeds_give_equal_components():
    A, _ = planted(40, 2, 30, 4, 0)
    for way in WAYS:
        one, two, three = (find(A, 4, way, seed=seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one.H, two.H)
        assert one.restart_losses == two.restart_losses
        assert one.restart_losses != three.restart_losses


def test_options_of_a_solver_are_its_own():
    assert options_of("hals") == {}
    assert options_of("minibatch") == {"batch": 1024, "memory": 0.7}
    assert "learning_rate" in options_of("multiplicative")
    assert not {"tol", "max_iter", "on_iteration", "frozen", "start", "W", "P"} & set(options_of("stiefel"))
