"""Starts and the default solver: the loss never rises and is the true one, every form of the rows gives the same, the end is a minimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import twins
from problems import KINDS, SHAPES, features_of, in_parts, mapped, planted, point, problem, unit, weighted_loss, weights_of

from npeff_nb.decomposition import hals as module
from npeff_nb.decomposition.coefficients import optimality
from npeff_nb.decomposition.hals import hals
from npeff_nb.decomposition.objective import Solution, stationary, total_energy
from npeff_nb.decomposition.reduction import reduce
from npeff_nb.decomposition.rows import Gram, Rows, Stored
from npeff_nb.decomposition.starts import kmeans_pp, loosened, uniform_coefficients


def start(rows: Rows, r: int, seed: int = 0) -> torch.Tensor:
    return kmeans_pp(rows, r, np.random.default_rng(seed))


def solve(A: np.ndarray, r: int, seed: int = 0, weights: np.ndarray | None = None, **settings) -> Solution:
    rows = Stored(A, weights=weights)
    return hals(rows, start(rows, r, seed), total_energy(rows), **settings)


def gradients(A: np.ndarray, W: torch.Tensor, H: torch.Tensor, weights: np.ndarray | None = None) -> tuple[torch.Tensor, torch.Tensor, float]:
    """∂L/∂W and ∂L/∂H of the dense loss by autograd, and the size of either of the two terms that cancel in the second."""
    W, H = W.clone().requires_grad_(), H.clone().requires_grad_()
    counts = torch.ones(len(A), dtype=torch.float64) if weights is None else torch.from_numpy(weights).double()
    fishers = torch.from_numpy(np.stack([twins.fisher(a) for a in A]))
    loss = (counts[:, None, None] * (fishers - torch.einsum("nr,ra,rb->nab", W, H, H)).square()).sum()
    scale = 4 * torch.einsum("n,nr,rd,nde->re", counts, W, H, fishers).norm()
    return *torch.autograd.grad(loss, [W, H]), float(scale.detach())


# ------------------------------------------------------------------------------------------------------------------- starts


def test_starts_are_leading_directions_of_unlike_examples():
    A = problem("orthogonal", 0, n=14, d=7)
    for rows in (Stored(A), Gram.of(Stored(A))):
        H = start(rows, 7)
        # Every draw takes away the two examples that are alike: all seven directions come, none twice.
        S = rows.inner(H, H, rows.project(H))
        torch.testing.assert_close(S.abs(), torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_starts_are_unit_directions_also_when_there_are_more_than_different_fishers(kind):
    """Every example of some kinds is the same, or zero: a component must not begin at nothing."""
    A = problem(kind, 0, n=6)
    for seed in range(5):
        np.testing.assert_allclose(start(Stored(A), 9, seed).norm(dim=1), 1, atol=1e-12)


def test_examples_that_do_not_count_are_no_starts():
    A = problem("orthogonal", 0, n=7, d=7)
    rows = Stored(A, weights=np.array([1, 0, 1, 0, 0, 2, 0.0]))
    for seed in range(10):
        assert set(start(rows, 4, seed).abs().argmax(1).tolist()) == {0, 2, 5}


def test_starts_are_drawn_by_how_far_they_are():
    """The second of two draws, after the first: with probability ω_i‖F̂_i − F̂_first‖² / Σ."""
    A = problem("random", 1, n=5)
    weights = np.array([1, 2, 1, 0.5, 1])
    rows = Stored(A, weights=weights)
    fishers = np.stack([twins.fisher(a) for a in A])
    distance = np.linalg.norm(fishers[:, None] - fishers[None], axis=(2, 3)) ** 2
    first = weights / weights.sum()  # unit norms: all are as far from "no centre at all"
    second = weights * distance / (weights * distance).sum(1, keepdims=True)
    expected = first[:, None] * second
    leading = np.stack([np.linalg.eigh(f)[1][:, -1] for f in fishers])
    counts = np.zeros((5, 5))
    for seed in range(1000):
        one, two = (start(rows, 2, seed) @ torch.from_numpy(leading).T).abs().argmax(1).tolist()
        counts[one, two] += 1
    assert np.trace(counts) == 0
    np.testing.assert_allclose(counts / 1000, expected, atol=0.04)  # four standard errors


def test_gram_and_rows_start_alike():
    A = problem("random", 2)
    rows = Stored(A)
    gram = Gram.of(rows)
    H, theta = start(rows, 5, 3), start(gram, 5, 3)
    np.testing.assert_allclose(np.abs(np.sum(H.numpy() * features_of(gram, A, theta), 1)), 1, atol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_loosened_starts_fit_random_coefficients_better(weighted):
    """Each step goes to the minimum along a line: the more of them, the lower the loss of the coefficients that were drawn."""
    A = problem("random", 2)
    rows = Stored(A, weights=weights_of(14) if weighted else None)
    H = start(rows, 3)
    W = uniform_coefficients(rows, 3, np.random.default_rng(5))
    assert W.shape == (14, 3)
    assert ((W > 0) & (W <= 1)).all()
    losses = [weighted_loss(A, W, loosened(rows, H, np.random.default_rng(5), steps), rows.weights) for steps in (0, 1, 2, 5, 10, 300)]
    assert (np.diff(losses) <= 1e-12 * 14).all()  # rounding of sums of unit norms
    assert losses[-1] < losses[0]
    _, in_H, scale = gradients(A, W, loosened(rows, H, np.random.default_rng(5), 300), rows.weights.numpy())
    assert in_H.norm() < 1e-4 * scale


def test_loosened_starts_are_the_same_in_gram_form():
    A = problem("random", 2)
    rows = Stored(A)
    gram = Gram.of(rows)
    H, theta = (loosened(x, start(x, 3), np.random.default_rng(5)) for x in (rows, gram))
    # Signs of directions are those of eigenvectors.
    np.testing.assert_allclose(np.abs(features_of(gram, A, theta)), H.abs().numpy(), atol=1e-8)


# ------------------------------------------------------------------------------------------------------------------- the loss


def forms(A: np.ndarray, name: str, weights: np.ndarray | None) -> tuple[Rows, float]:
    """Rows in one form, and the energy there is to explain: over a basis, more than the rows carry."""
    rows = Stored(A, weights=weights)
    total = total_energy(rows)
    if name == "gram":
        return Gram.of(rows), total
    if name == "basis":
        return reduce(rows, 3, np.random.default_rng(0)).rows, total
    return rows, total


@pytest.mark.parametrize("name", ["rows", "gram", "basis"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_never_rises_and_is_the_one_reported(kind, name):
    """Nine kinds, eight shapes, three forms: 216 problems, every other one weighted."""
    for number, (n, k, d, r) in enumerate(SHAPES):
        seed = 100 * KINDS.index(kind) + number
        A = problem(kind, seed, n, k, d)
        weights = weights_of(n, seed).astype(float) if seed % 2 else None
        if not (A * (1 if weights is None else weights[:, None, None])).any():
            continue
        rows, total = forms(A, name, weights)
        seen = []
        found = hals(rows, start(rows, r, seed), total, max_iter=40, tol=0, on_iteration=lambda i, now, seen=seen: seen.append((i, now)))
        losses = np.array(found.losses)
        assert np.isfinite(losses).all()
        # The loss is a difference of sums of the size of the total: 1e-12 of it is rounding.  A Gram matrix has a little on its diagonal,
        # which weights on rows that are nearly dependent, up to some thousands, magnify.
        noise = (1e-9 if name == "gram" else 1e-12) * total
        assert (np.diff(losses) <= noise).all(), (n, k, d, r, losses)
        carried = rows.rows.numpy() if isinstance(rows, Stored) else A
        H = found.H.numpy() if isinstance(rows, Stored) else features_of(rows, A, found.H)
        expected = weighted_loss(carried, found.W, H, weights) + total - total_energy(rows)
        assert losses[-1] == pytest.approx(expected, abs=10 * noise)
        # An iteration that rounding would make worse is told but not taken, and ends the fit.
        told = [now for _, now in seen]
        assert told[: len(losses) - 1] == found.losses[:-1]
        assert told[len(losses) - 1 :] in ([], [found.losses[-2]])
        assert [i for i, _ in seen] == list(range(len(seen)))
        assert (found.W >= 0).all()
        S = rows.inner(found.H, found.H, found.P)
        np.testing.assert_allclose(S.diagonal(), 1, atol=1e-6 if name == "gram" else 1e-12)
        np.testing.assert_allclose(found.P.numpy(), carried @ H.T, atol=1e-6 if name == "gram" else 1e-12)


def test_a_step_that_would_raise_the_loss_is_not_taken(monkeypatch):
    A = problem("random", 1, 20, 2, 6)
    good = solve(A, 4, tol=0, max_iter=5)
    monkeypatch.setattr(module, "line_minimum", lambda *_: -30.0)
    found = hals(Stored(A), good.H, 20.0, W=good.W, tol=0)
    assert len(found.losses) == 2  # the start, and the coefficients of the end
    assert (np.diff(found.losses) <= 0).all()
    np.testing.assert_allclose(found.H, good.H, atol=1e-15)


def test_a_step_goes_to_the_minimum_along_its_line_and_coefficients_keep_their_meaning(monkeypatch):
    """With the sweeps withheld, the loss after a step of unit components is the one of W and H + tD, whose lengths W takes over."""
    A = problem("random", 1, 20, 2, 6)
    rows = Stored(A)
    W, H = point(20, 3, 6, 1)
    P, S = rows.project(H), H @ H.T
    D = stationary(rows, W, rows.moment(W), P, S) - H
    at = np.linspace(-0.5, 2, 501)
    best = min(weighted_loss(A, W, H + t * D) for t in at)
    monkeypatch.setattr(module, "sweep", lambda W, *_: W)
    found = hals(rows, H, 20.0, W=W, max_iter=1)
    assert found.losses[0] == pytest.approx(weighted_loss(A, W, H), rel=1e-12)
    assert best * (1 - 1e-4) <= found.losses[1] <= best * (1 + 1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_every_loss_on_the_way_is_the_true_one(weighted, monkeypatch):
    """Stopped after every iteration, with the exact coefficients of the end withheld, W and H are those of that iteration."""
    A = problem("random", 1, 20, 2, 6)
    weights = weights_of(20).astype(float) if weighted else None
    all_ = solve(A, 4, weights=weights, tol=0, max_iter=6).losses
    monkeypatch.setattr(module, "fit_coefficients", lambda B, G: torch.full_like(B, 1e3))
    for count in range(7):
        found = solve(A, 4, weights=weights, tol=0, max_iter=count)
        assert found.losses[:-1] == all_[: count + 1]
        assert found.losses[-1] == found.losses[-2]
        assert found.losses[-1] == pytest.approx(weighted_loss(A, found.W, found.H, weights), rel=1e-11)


# ------------------------------------------------------------------------------------------------------------------- the forms


@pytest.fixture(scope="module")
def many():
    return planted(80, 2, 30, 4, 0)[0].astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["gram", "basis", "parts", "parts float32", "mapped parts float32"])
def test_all_forms_end_at_the_same(name, weighted, many, monkeypatch, tmp_path):
    """From the same start: the loss within 1e-5 of it, and the components.  float32 products are 1e-6 off; the minimum forgives that much."""
    A = many
    weights = weights_of(80).astype(float) if weighted else None
    rows = Stored(A, weights=weights)
    total = total_energy(rows)
    H = start(rows, 4, 1)
    settings = {"tol": 1e-10, "max_iter": 300}
    expected = hals(rows, H, total, **settings)
    if name == "gram":
        gram = Gram.of(rows)
        theta = torch.from_numpy(np.linalg.lstsq(A.reshape(160, 30).T, H.numpy().T, rcond=None)[0].T)
        found = hals(gram, theta, total, **settings)
        H = features_of(gram, A, found.H)
    elif name == "basis":
        reduced = reduce(rows, 30, np.random.default_rng(0))
        found = hals(reduced.rows, H @ reduced.basis.T, total, **settings)
        H = (found.H @ reduced.basis).numpy()
    else:
        B = A.astype(np.float32) if "float32" in name else A
        B = mapped(tmp_path / "rows", B) if "mapped" in name else B
        in_parts(monkeypatch, 7, B)
        found = hals(Stored(B, weights=weights), H, total, **settings)
        H = found.H.numpy()
    assert found.losses[-1] == pytest.approx(expected.losses[-1], rel=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(H * expected.H.numpy(), 1)), 1, atol=1e-5)
    np.testing.assert_allclose(found.W, expected.W, atol=1e-3)  # where the loss is within 1e-10 of its minimum, arguments are within its root


@pytest.mark.parametrize("name", ["rows", "gram", "parts"])
def test_weights_are_repetitions_of_examples(name, monkeypatch):
    """Step by step the same fit: only the order of sums differs."""
    A, weights = problem("random", 5, 20, 2, 6), weights_of(20)
    repeated = np.repeat(A, weights, 0)
    H = start(Stored(repeated), 4, 2)
    if name == "parts":
        in_parts(monkeypatch, 3, A)
    once, often = Stored(A, weights=weights), Stored(repeated)
    assert total_energy(once) == pytest.approx(total_energy(often), rel=1e-12)
    if name == "gram":
        lifted = [torch.from_numpy(np.linalg.lstsq(X.reshape(-1, 6).T, H.numpy().T, rcond=None)[0].T) for X in (A, repeated)]
        found, expected = (
            hals(Gram.of(rows), start_, total_energy(often), max_iter=15, tol=0) for rows, start_ in zip((once, often), lifted, strict=True)
        )
        ours, theirs = features_of(Gram.of(once), A, found.H), features_of(Gram.of(often), repeated, expected.H)
    else:
        found, expected = (hals(rows, H, total_energy(often), max_iter=15, tol=0) for rows in (once, often))
        ours, theirs = found.H, expected.H
    # Rounding of 1e-16 grows from iteration to iteration, by a factor of a few.
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-9)
    np.testing.assert_allclose(ours, theirs, atol=1e-7)
    np.testing.assert_allclose(np.repeat(found.W.numpy(), weights, 0), expected.W, atol=1e-5)


def test_scales_are_as_good_as_scaled_rows():
    A = problem("random", 5)
    scales = np.logspace(-2, 2, 14)
    rows, scaled = Stored(A), Stored(A / scales[:, None, None], scales)
    found, expected = (hals(x, start(rows, 3), total_energy(rows), max_iter=10, tol=0) for x in (scaled, rows))
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-9)
    np.testing.assert_allclose(found.H, expected.H, atol=1e-7)


@pytest.mark.parametrize("seed", range(6))
def test_examples_that_do_not_count_change_nothing(seed):
    """More components than there are examples that count: none of them may go to one that does not, or to nothing."""
    A = problem("random", seed, 20, 2, 8)
    counted = hals(Stored(A[:5]), point(5, 6, 8, seed)[1], 5.0, tol=0, max_iter=100)
    weights = np.r_[np.ones(5), np.zeros(15)]
    found = hals(Stored(A, weights=weights), point(5, 6, 8, seed)[1], 5.0, tol=0, max_iter=100)
    assert found.losses[-1] == pytest.approx(counted.losses[-1], rel=1e-6)  # of chaotic paths into one minimum
    np.testing.assert_allclose(found.H.norm(dim=1), 1, atol=1e-12)
    assert (found.W[:5].sum(0) > 0).all()


# ------------------------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_end_is_stationary(seed, weighted):
    """The dense loss's own gradient by autograd: zero in H; in W zero where W > 0 and not negative elsewhere."""
    A = problem("random", seed, 20, 2, 6)
    weights = weights_of(20, seed) + 1.0 if weighted else None
    found = solve(A, 3, seed, weights, tol=0, max_iter=3000)
    in_W, in_H, scale = gradients(A, found.W, found.H, weights)
    # Near the minimum the loss is flat to its rounding, 1e-16 of the total, where the gradient is 1e-8: it cannot be seen to fall further.
    assert in_H.norm() < 1e-5 * scale
    # One coefficient's gradient is of the order of 2 ω (‖F̂‖ = 1).
    assert torch.minimum(found.W, in_W).abs().max() < 1e-5


def test_planted_components_are_found():
    A, H = planted(300, 2, 40, 6, 0, noise=0.1)
    found = min((solve(A, 6, seed) for seed in range(4)), key=lambda s: s.losses[-1])
    assert np.abs(found.H.numpy() @ H.T).max(0).min() > 0.99


def test_more_components_than_needed_explain_everything():
    found = solve(problem("one direction", 2), 3)
    assert found.losses[-1] == pytest.approx(0, abs=1e-9)
    assert found.converged


def test_tolerance_and_iterations_are_honoured():
    A = problem("random", 0, 30, 2, 12)
    few = solve(A, 5, max_iter=3, tol=0)
    assert len(few.losses) == 3 + 2  # the start, three iterations, the last pass over the coefficients
    assert not few.converged
    none = solve(A, 5, max_iter=0)
    assert len(none.losses) == 2
    assert not none.converged
    for tol in (1e-2, 1e-3, 1e-5):
        found = solve(A, 5, tol=tol)
        assert found.converged
        falls = -np.diff(found.losses[:-1]) / np.array(found.losses[1:-1])
        assert falls[-1] <= tol
        assert (falls[:-1] > tol).all()


def test_the_coefficients_of_the_end_are_exact():
    A = problem("random", 0, 30, 2, 12)
    found = solve(A, 5, max_iter=2, tol=0)
    B = found.P.square().sum(1)
    residual, gap = optimality(found.W, B, (found.H @ found.H.T).square())
    assert float(residual.max()) <= 1e-6  # fit_coefficients's own tolerance
    assert float(gap.max()) <= 1e-6


# ------------------------------------------------------------------------------------------------------------------- settings


def test_dead_components_find_users():
    """Four starts at one place: three of them are starved at once, and must not stay so while anything is left to explain."""
    A = problem("orthogonal", 0, n=12, d=4)
    H = torch.zeros(4, 4, dtype=torch.float64)
    H[:, 0] = 1
    for rows in (Stored(A), Stored(A, weights=weights_of(12) + 1.0)):
        found = hals(rows, H, total_energy(rows))
        assert (found.W.sum(0) > 0).all()
        assert found.losses[-1] < 1e-9


def test_components_that_begin_at_nothing_find_users():
    A = problem("orthogonal", 0, n=12, d=4)
    found = hals(Stored(A), torch.zeros(4, 4, dtype=torch.float64), 12.0)
    np.testing.assert_allclose(found.H.norm(dim=1), 1, atol=1e-12)
    assert found.losses[-1] < 1e-9


def test_examples_that_do_not_count_revive_nothing():
    """Nor are they users: the second start is a component that only one of them would use."""
    A = problem("orthogonal", 0, n=12, d=12)
    weights = np.zeros(12)
    weights[[0, 7]] = 1, 2
    for at in (0, 3):
        found = hals(Stored(A, weights=weights), torch.eye(12, dtype=torch.float64)[[0, at]], 3.0)
        assert sorted(found.H.abs().argmax(1).tolist()) == [0, 7]
        assert found.losses[-1] < 1e-9


@pytest.mark.parametrize("frozen", [1, 2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_frozen_directions_stay_to_the_bit_and_the_rest_settles_around_them(frozen, weighted):
    A = problem("random", 7, 20, 2, 6)
    weights = weights_of(20) + 1.0 if weighted else None
    H = point(20, 4, 6, 3)[1]
    rows = Stored(A, weights=weights)
    found = hals(rows, H, total_energy(rows), frozen=frozen, tol=0, max_iter=3000)
    np.testing.assert_array_equal(found.H[:frozen], H[:frozen])
    assert (np.diff(found.losses) <= 1e-12 * total_energy(rows)).all()
    in_W, in_H, scale = gradients(A, found.W, found.H, weights)
    # As in test_the_end_is_stationary; the frozen ones are where they are, not where they would go.
    assert in_H[frozen:].norm() < 1e-5 * scale
    assert in_H[:frozen].norm(dim=1).min() > 1e-3 * scale
    assert torch.minimum(found.W, in_W).abs().max() < 1e-5


def test_frozen_directions_are_taken_as_given():
    """Some of the planted directions held, the others are found beside them; in Gram form as well."""
    A, H = planted(200, 2, 20, 5, 1, noise=0.05)
    rows = Stored(A)
    first = torch.cat([torch.from_numpy(H[:3]), start(rows, 2, 1)])
    found = hals(rows, first, 200.0, frozen=3, tol=1e-9)
    assert np.abs(found.H.numpy() @ H.T)[3:, 3:].max(0).min() > 0.99
    gram = Gram.of(rows)
    theta = torch.from_numpy(np.linalg.lstsq(A.reshape(400, 20).T, first.numpy().T, rcond=None)[0].T)
    also = hals(gram, theta, 200.0, frozen=3, tol=1e-9)
    np.testing.assert_array_equal(also.H[:3], theta[:3])
    assert also.losses[-1] == pytest.approx(found.losses[-1], rel=1e-6)


def test_a_frozen_component_without_users_stays_too():
    A = problem("orthogonal", 0, n=3, d=4)
    H = torch.eye(4, dtype=torch.float64)[[3, 0]]  # no example is along the last feature
    found = hals(Stored(A), H, 3.0, frozen=1)
    np.testing.assert_array_equal(found.H[0], H[0])
    np.testing.assert_array_equal(found.W[:, 0], 0)
    assert found.losses[-1] == pytest.approx(2, abs=1e-9)


def test_coefficients_to_start_from_are_used_and_not_changed():
    A = problem("random", 3, 30, 2, 8)
    ended = solve(A, 4, tol=1e-9)
    before = ended.W.clone()
    again = hals(Stored(A), ended.H, 30.0, W=ended.W)
    np.testing.assert_array_equal(ended.W, before)
    assert again.losses[0] <= ended.losses[-1] * (1 + 1e-12)  # a fresh start needs some sweeps to be there
    assert len(again.losses) == 3
    # Where sweeps are slow, among components that are alike, a start of zeros is worse.
    H = ended.H[:1] + 1e-2 * ended.H
    good = hals(Stored(A), H, 30.0, max_iter=0, W=hals(Stored(A), H, 30.0, max_iter=0).W)
    assert good.losses[0] < hals(Stored(A), H, 30.0, max_iter=0).losses[0]


def test_known_projections_are_used():
    A = problem("random", 3)
    rows = Stored(A)
    H = 2.5 * start(rows, 3)
    plain = hals(rows, H, 14.0, max_iter=5)
    known = hals(rows, H, 14.0, max_iter=5, P=rows.project(H))
    assert plain.losses == known.losses
    assert hals(rows, H, 14.0, max_iter=0, P=0 * rows.project(H)).losses[0] == pytest.approx(14)  # nothing seen, nothing explained


def test_the_start_is_not_changed_and_its_lengths_say_nothing():
    A = problem("random", 3)
    rows = Stored(A)
    H = start(rows, 3)
    scaled = H * torch.tensor([[1e-8], [1.0], [1e8]], dtype=torch.float64)
    before = scaled.clone()
    found, expected = hals(rows, scaled, 14.0, tol=0, max_iter=5), hals(rows, H, 14.0, tol=0, max_iter=5)
    np.testing.assert_array_equal(scaled, before)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-9)


def test_one_example_is_explained_by_its_own_directions():
    """All starts are its leading direction: those that find no use go where its Fisher is not explained."""
    A = unit(np.random.default_rng(0).standard_normal((1, 3, 8)))
    for rows in (Stored(A), Gram.of(Stored(A))):
        found = hals(rows, start(rows, 3), 1.0)
        assert found.losses[-1] < 1e-9
