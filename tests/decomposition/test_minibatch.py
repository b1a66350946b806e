"""Components from some examples at a time, against the default solver over all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import in_parts, mapped, planted, point, problem, weighted_loss, weights_of

from npeff_nb.decomposition import minibatch as module
from npeff_nb.decomposition.coefficients import fit_coefficients
from npeff_nb.decomposition.hals import hals
from npeff_nb.decomposition.minibatch import minibatch
from npeff_nb.decomposition.objective import line_minimum, loss, total_energy
from npeff_nb.decomposition.rows import Stored
from npeff_nb.decomposition.starts import kmeans_pp


def exact_loss(rows: Stored, H: torch.Tensor) -> float:
    """The loss of components with the best coefficients."""
    W = fit_coefficients(rows.project(H).square().sum(1), (H @ H.T).square())
    return loss(rows, W, H, total_energy(rows))


def start(rows: Stored, r: int, seed: int = 0) -> torch.Tensor:
    return kmeans_pp(rows, r, np.random.default_rng(seed))


def run(rows: Stored, H: torch.Tensor, seed: int = 0, **settings):
    return minibatch(rows, H, np.random.default_rng(seed), **settings)


@pytest.fixture(scope="module")
def many():
    return planted(2000, 2, 20, 6, 0)[0]


@pytest.mark.parametrize("weighted", [False, True])
def test_components_are_as_good_as_those_over_all_examples(many, weighted):
    weights = weights_of(2000).astype(float) if weighted else None
    rows = Stored(many, weights=weights)
    H = start(rows, 6, 1)
    found, expected = run(rows, H, batch=200), hals(rows, H, total_energy(rows))
    assert found.converged
    # Measured over twenty problems: within 0.01 % of it.  What is left is the noise of batches.
    assert exact_loss(rows, found.H) == pytest.approx(expected.losses[-1], rel=1e-3)
    np.testing.assert_allclose(found.H.norm(dim=1), 1, atol=1e-12)
    assert found.W.shape == (0, 6)  # coefficients are the caller's


def test_losses_are_of_the_examples_looked_at_and_the_best_components_are_kept(many):
    """All examples are looked at here: every loss that is reported is true, and the last is the one of what comes back."""
    rows = Stored(many)
    H = start(rows, 6, 1)
    seen = []
    found = run(rows, H, batch=100, on_iteration=lambda count, now: seen.append((count, now)))
    assert (np.diff(found.losses) < 0).all()
    # Twenty sweeps find coefficients to three digits or so in the loss's small rest.
    assert found.losses[0] == pytest.approx(exact_loss(rows, H), rel=1e-3)
    assert found.losses[-1] == pytest.approx(exact_loss(rows, found.H), rel=1e-3)
    assert [count for count, _ in seen] == [20 * (i + 1) for i in range(len(seen))]
    assert min(now for _, now in seen) == found.losses[-1]
    assert len(seen) >= len(found.losses) - 1


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_never_ends_above_its_start(seed, monkeypatch):
    """Batches of two examples and a memory of next to nothing take good components apart; what comes back are the good ones."""
    A, _ = planted(200, 2, 12, 4, seed)
    rows = Stored(A)
    good = hals(rows, start(rows, 4, seed), 200.0, tol=1e-12, max_iter=1000)
    found = run(rows, good.H, seed, batch=2, memory=1e-12, max_iter=1, tol=0)
    assert found.losses[-1] <= found.losses[0]
    assert exact_loss(rows, found.H) <= good.losses[-1] * (1 + 1e-6)


def test_a_fit_that_falls_no_more_ends_and_one_that_does_goes_on(many):
    rows = Stored(many)
    good = hals(rows, start(rows, 6, 1), 2000.0, tol=1e-10)
    counts: list[int] = []
    again = run(rows, good.H, batch=200, max_iter=500, on_iteration=lambda count, _: counts.append(count))
    assert again.converged
    assert counts == [20, 40, 60]  # STILL looks, CHECKED_EVERY batches apart
    cut = run(rows, start(rows, 6, 1), batch=200, max_iter=4)
    assert not cut.converged
    assert cut.losses[-1] < 0.9 * cut.losses[0]


def test_a_sample_that_tells_nothing_from_noise_ends_the_fit(many, monkeypatch):
    """With few examples to look at, falls drown in their standard error long before ``tol`` is met; which look sees it first is luck."""
    rows = Stored(many)
    H = start(rows, 6, 1)
    batches = {30: 0, 2000: 0}
    for checked in batches:
        monkeypatch.setattr(module, "CHECKED", checked)
        for seed in range(5):
            looks: list[int] = []
            found = run(rows, H, seed, batch=200, tol=0, max_iter=40, on_iteration=lambda count, _, looks=looks: looks.append(count))
            assert looks[-1] >= 60  # STILL looks, CHECKED_EVERY batches apart
            assert exact_loss(rows, found.H) < exact_loss(rows, H)
            # Losses of the sample stand for all examples: they differ from them by 0.3 of their size over the root of 30.
            assert found.losses[0] == pytest.approx(exact_loss(rows, H), rel=0.25)
            batches[checked] += looks[-1]
    assert batches[30] < 0.75 * batches[2000]


@pytest.mark.parametrize(("n", "batch", "max_iter", "batches"), [(2000, 500, 1, 4), (2000, 300, 2, 14), (2000, 5000, 3, 3), (2000, 90, 1, 23)])
def test_passes_are_counted_and_the_last_batch_is_looked_at(many, n, batch, max_iter, batches, monkeypatch):
    """Fewer batches than lie between two looks: they are not in vain."""
    taken = []
    plain = Stored.take
    monkeypatch.setattr(Stored, "take", lambda self, which: (taken.append(which), plain(self, which))[1])
    rows = Stored(many[:n])
    found = run(rows, start(rows, 6, 1), batch=batch, max_iter=max_iter, tol=0)
    sizes = [len(which) for which in taken[1:]]  # the first is the sample that is looked at
    assert sizes == [min(batch, n)] * batches
    per_pass = n // min(batch, n)
    assert len(np.unique(np.concatenate(taken[1 : 1 + per_pass]))) == per_pass * min(batch, n)  # none twice before all were seen
    assert all((np.diff(which) > 0).all() for which in taken)  # neighbours on disk are read together
    assert not found.converged
    assert found.losses[-1] < found.losses[0]


def test_weights_count(many):
    """Half of the examples count nothing: the components are those of the other half."""
    weights = np.r_[np.ones(1000), np.zeros(1000)]
    other = many.copy()
    other[1000:] = planted(1000, 2, 20, 6, 99)[0]
    rows, half = Stored(other, weights=weights), Stored(many[:1000])
    H = start(half, 6, 1)
    found = run(rows, H, batch=200)
    expected = hals(half, H, 1000.0).losses[-1]
    assert exact_loss(half, found.H) == pytest.approx(expected, rel=1e-3)
    assert found.losses[-1] == pytest.approx(expected, rel=1e-2)


def test_one_example_that_counts_among_many():
    """It is the sample that is looked at, however small its share of all."""
    A = problem("orthogonal", 0, n=400, d=5)
    weights = np.zeros(400)
    weights[7] = 3.0
    found = run(Stored(A, weights=weights), torch.ones(1, 5, dtype=torch.float64), batch=50, max_iter=20)
    assert np.isfinite(found.losses).all()
    assert found.losses[-1] < 1e-6
    assert float(found.H[0, 7 % 5].abs()) == pytest.approx(1, abs=1e-6)


def test_components_without_users_find_some():
    A = problem("orthogonal", 0, n=120, d=4)
    H = torch.zeros(4, 4, dtype=torch.float64)
    H[:, 0] = 1
    found = run(Stored(A), H, batch=30)
    assert found.losses[-1] < 1e-6
    np.testing.assert_allclose((found.H @ found.H.T).numpy(), np.eye(4), atol=1e-6)


@pytest.mark.parametrize("form", ["parts", "mapped parts float32"])
def test_examples_on_disk_are_read_as_those_in_memory(form, many, monkeypatch, tmp_path):
    A = many[:600].astype(np.float32)
    H = start(Stored(A), 6, 1)
    expected = run(Stored(A), H, batch=100, max_iter=10)
    B = mapped(tmp_path / "rows", A) if "mapped" in form else A
    in_parts(monkeypatch, 64, B)
    found = run(Stored(B), H, batch=100, max_iter=10)
    assert found.losses[-1] == pytest.approx(expected.losses[-1], rel=1e-4)  # float32 products, and steps that follow from them


def test_equal_seeds_give_equal_components(many):
    rows = Stored(many[:300])
    H = start(rows, 6)
    one, two, three = (run(rows, H, seed, batch=50, max_iter=5) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.H, two.H)
    assert one.losses == two.losses
    assert not torch.equal(one.H, three.H)


def test_the_start_is_not_changed_and_its_lengths_say_nothing(many):
    rows = Stored(many[:300])
    H = start(rows, 6)
    scaled = H * torch.logspace(-8, 8, 6, dtype=torch.float64)[:, None]
    before = scaled.clone()
    found, expected = run(rows, scaled, batch=50, max_iter=5), run(rows, H, batch=50, max_iter=5)
    np.testing.assert_array_equal(scaled, before)
    assert found.losses == pytest.approx(expected.losses, rel=1e-6)


@pytest.mark.parametrize("kind", ["all equal", "zero examples", "zero rows", "low rank", "one direction", "wide range"])
def test_degenerate_examples_are_borne(kind):
    A = problem(kind, 0, n=60)
    rows = Stored(A)
    found = run(rows, start(rows, 5), batch=16, max_iter=30)
    assert np.isfinite(found.losses).all()
    assert torch.isfinite(found.H).all()
    np.testing.assert_allclose(found.H.norm(dim=1), 1, atol=1e-9)
    assert exact_loss(rows, found.H) <= exact_loss(rows, start(rows, 5)) * 1.001 + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_the_step_is_the_line_search_when_the_batch_is_all_there_is(seed):
    """Running means of one batch of all examples are that batch's own: the quartic is the one of the loss, its minimum sought between 0 and 1."""
    A = problem("random", seed)
    W, H = point(14, 3, 7, seed)
    D = point(14, 3, 7, seed + 50)[1]
    rows = Stored(A)
    P, Q, S, C = rows.project(H), rows.project(D), H @ H.T, H @ D.T
    V, T = W.T @ W / 14, rows.gather(W[:, None] * P) / 14
    own = float((W * Q.square().sum(1)).sum()) / 14
    t = module._step(V, T, S, H, D, own)
    at = np.linspace(0, 1, 401)
    values = [weighted_loss(A, W, H + x * D) for x in at]
    assert 0 <= t <= 1
    assert weighted_loss(A, W, H + t * D) <= min(values) * (1 + 1e-10)
    free = line_minimum(rows, W, rows.moment(W), P, Q, S, C + C.T, D @ D.T)
    if 0 <= free <= 1:
        assert t == pytest.approx(free, abs=1e-8)
