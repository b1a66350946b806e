"""Factor rows on the logits against the matrices they stand for: written out in float64, from log-probabilities and autograd alone."""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
import pytest
import tiny
import torch
import twins
from torch import nn

from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.factors import Recipe, Sampled, bernoulli_cotangents, class_cotangents, principal_rows, reduced_cotangents, sampling_error
from npeff_nb.fisher.gradients import Tape


def middle_matrix(logits: torch.Tensor) -> torch.Tensor:
    """diag p − p pᵀ (n, c, c), with the diagonal as Σ_{l≠k} p_k p_l so that it keeps its digits for a certain prediction."""
    p = torch.softmax(logits.double(), -1)
    off = -p[:, :, None] * p[:, None, :]
    off.diagonal(dim1=1, dim2=2).zero_()
    return off - torch.diag_embed(off.sum(-1))


def assert_exact(logits: torch.Tensor) -> None:
    rows = reduced_cotangents(logits)
    assert rows.shape == (len(logits), logits.shape[1] - 1, logits.shape[1])
    assert rows.dtype == torch.float64
    assert torch.isfinite(rows).all()
    expected = middle_matrix(logits)
    # Relative to each example's own matrix, which for a certain prediction is itself tiny; 1e-12 is c roundings of double precision.
    error = (rows.transpose(1, 2) @ rows - expected).norm(dim=(1, 2))
    assert (error <= 1e-12 * expected.norm(dim=(1, 2)) + 1e-300).all(), error


@pytest.mark.parametrize("classes", [2, 3, 6, 40])
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 200.0])
def test_rows_reproduce_the_distribution_s_covariance(classes, spread):
    assert_exact(spread * torch.randn(32, classes, generator=torch.Generator().manual_seed(classes)))


@pytest.mark.parametrize(
    "logits",
    [
        pytest.param([[0.0, 0.0]], id="tie of two"),
        pytest.param([[1.0, 1.0, 1.0]], id="tie of all"),
        pytest.param([[2.0, 2.0, -1.0, -1.0]], id="two ties"),
        pytest.param([[30.0, -30.0]], id="nearly certain"),
        pytest.param([[0.0, -1e30, -1e30]], id="certain, two impossible"),
        pytest.param([[0.0, 0.0, -1e30]], id="one impossible"),
        pytest.param([[5.0, float("-inf"), 1.0]], id="masked class"),
        pytest.param([[1e30, 1e30, 0.0]], id="huge and tied"),
    ],
)
def test_rows_are_exact_at_the_edges(logits):
    assert_exact(torch.tensor(logits))


def test_a_class_without_probability_gives_a_zero_row():
    rows = reduced_cotangents(torch.tensor([[0.0, -1e30, 0.0, -1e30]]))[0]
    assert rows[0].norm() > 0.5  # √(½·½/1)·‖(1, 0, −1, 0)‖ = √½
    assert torch.equal(rows[1:], torch.zeros(2, 4, dtype=torch.float64))


def test_a_certain_prediction_has_no_information():
    assert not reduced_cotangents(torch.tensor([[1000.0, 0.0, 0.0]])).any()


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_the_first_row_is_the_predicted_class_upwards(classes):
    logits = torch.randn(50, classes, generator=torch.Generator().manual_seed(1))
    first = reduced_cotangents(logits)[:, 0]
    p = torch.softmax(logits.double(), -1)
    top = p.argmax(1)
    own = first.gather(1, top[:, None])[:, 0]
    assert (own > 0).all()
    assert ((first > 0).sum(1) == 1).all()  # all other classes downwards ...
    against_rest = torch.where(torch.nn.functional.one_hot(top, classes).bool(), torch.zeros((), dtype=p.dtype), p)
    against_rest /= against_rest.sum(1, keepdim=True)
    # ... in proportion to their probabilities.
    torch.testing.assert_close(first / own[:, None], torch.nn.functional.one_hot(top, classes) - against_rest, rtol=0, atol=1e-14)


def test_a_recomputation_gives_the_same_rows_also_for_ties():
    logits = torch.zeros(4, 5)
    assert torch.equal(reduced_cotangents(logits), reduced_cotangents(logits.clone()))
    assert (reduced_cotangents(logits)[:, 0].argmax(1) == 0).all()  # stable: equal logits keep the classes' order


def test_extra_precision_is_taken_from_float32_logits_before_anything_else():
    logits = torch.tensor([[20.0, 0.0, 1.0]])  # 1 − p is 8e-9: below float32's resolution of p
    rows = reduced_cotangents(logits)
    assert np.isclose(float(rows.square().sum()), float(middle_matrix(logits).diagonal(dim1=1, dim2=2).sum()), rtol=1e-12)


# ------------------------------------------------------------------------------------------------------------------- the other families of rows


def logits_like(n: int, c: int, spread: float = 2.0, seed: int = 0) -> torch.Tensor:
    return spread * torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fisher_of(log_p, z: torch.Tensor) -> torch.Tensor:
    """Σ_y p_y ∇log p_y ∇log p_yᵀ over the logits z (c,), the definition; ``log_p`` gives log-probabilities of disjoint outcomes."""
    jacobian = torch.autograd.functional.jacobian(log_p, z.double())
    return jacobian.T @ (log_p(z.double()).exp()[:, None] * jacobian)


def softmax_fisher(z: torch.Tensor) -> torch.Tensor:
    return fisher_of(lambda x: torch.log_softmax(x, -1), z)


def bernoulli_fisher(z: torch.Tensor) -> torch.Tensor:
    """Independent labels: the Fishers of single yes/no predictions add up."""
    return sum(
        fisher_of(lambda x, at=at: torch.stack([nn.functional.logsigmoid(x[at]), nn.functional.logsigmoid(-x[at])]), z) for at in range(len(z))
    )


def coarsened(z: torch.Tensor, kept: list[int]):
    """Log-probabilities of the outcomes ``kept`` and, last, of *anything else*, as a function of the logits."""
    rest = [at for at in range(len(z)) if at not in kept]

    def log_p(x: torch.Tensor) -> torch.Tensor:
        x = torch.log_softmax(x, -1)
        return torch.cat([x[kept], x[rest].logsumexp(0)[None]]) if rest else x[kept]

    return log_p


def all_rows(recipe: Recipe, z: torch.Tensor, numbers=None, gold=None) -> tuple[torch.Tensor, dict]:
    """Cotangents (n, K, C) as an extraction makes them, and what was decided."""
    chosen = recipe.decide(z, np.arange(len(z)) if numbers is None else numbers, gold)
    return recipe.cotangents(z, recipe.coarse(z, chosen), chosen), chosen


def assert_gram(rows: torch.Tensor, expected: torch.Tensor, rel: float = 1e-12) -> None:
    """rowsᵀ rows is ``expected``, up to a handful of float64 roundings of its norm."""
    error = float((rows.T @ rows - expected).norm())
    assert error <= rel * float(expected.norm()) + 1e-300, error


def assert_below(part: torch.Tensor, whole: torch.Tensor) -> None:
    """part ≤ whole in the order of positive semi-definite matrices."""
    assert float(torch.linalg.eigvalsh(whole - part).min()) >= -1e-13 * float(whole.norm())


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0, 30.0])
@pytest.mark.parametrize("classes", [2, 5, 12])
def test_every_family_of_rows_carries_its_fisher(classes, spread):
    z = logits_like(8, classes, spread)
    for found, expected in ((reduced_cotangents, softmax_fisher), (class_cotangents, softmax_fisher), (bernoulli_cotangents, bernoulli_fisher)):
        for rows, one in zip(found(z), z, strict=True):
            # Autograd's 1 − p has an absolute error of 1e-16, where the rows keep their digits: what is tiny is compared to 1 instead.
            assert float((rows.T @ rows - expected(one)).norm()) <= 1e-12 * float(expected(one).norm()) + 1e-15


def test_class_rows_are_the_paper_s():
    """√p_y ∇log p_y in the classes' own order, however unlikely."""
    z = logits_like(5, 4)
    for rows, one in zip(class_cotangents(z), z, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: torch.log_softmax(x, -1), one)
        torch.testing.assert_close(rows, torch.softmax(one, -1).sqrt()[:, None] * jacobian, rtol=1e-12, atol=1e-15)


def test_empirical_and_predicted_rows_are_gradients_of_one_label():
    z, gold = logits_like(6, 5), np.array([4, 0, 1, 1, 3, 2])
    for recipe, labels in ((Recipe(fisher="empirical"), gold), (Recipe(fisher="predicted"), z.argmax(1).numpy())):
        rows, chosen = all_rows(recipe, z, gold=gold)
        assert rows.shape == (6, 1, 5)
        np.testing.assert_array_equal(chosen["labels"][:, 0], labels)
        for row, one, label in zip(rows, z, labels, strict=True):
            expected = torch.autograd.functional.jacobian(lambda x, label=label: torch.log_softmax(x, -1)[label], one)
            torch.testing.assert_close(row[0], expected, rtol=1e-12, atol=1e-15)


def test_empirical_and_predicted_rows_of_independent_labels():
    z, gold = logits_like(6, 4), np.random.default_rng(0).integers(0, 2, (6, 4))
    for recipe, labels in ((Recipe("bernoulli", "empirical"), gold), (Recipe("bernoulli", "predicted"), (z > 0).int().numpy())):
        rows, chosen = all_rows(recipe, z, gold=gold)
        np.testing.assert_array_equal(chosen["labels"], labels)
        for row, one, y in zip(rows, z, torch.from_numpy(labels).double(), strict=True):
            log_p = lambda x, y=y: (y * nn.functional.logsigmoid(x) + (1 - y) * nn.functional.logsigmoid(-x)).sum()  # noqa: E731
            torch.testing.assert_close(row[0], torch.autograd.functional.jacobian(log_p, one), rtol=1e-12, atol=1e-15)


# ------------------------------------------------------------------------------------------------------------------- a few classes of many


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("top", [1, 2, 5, 10])
def test_kept_classes_carry_the_fisher_of_the_coarser_prediction(top, spread):
    """Exactly: the likeliest ones each by itself, and anything else as one more outcome.  It is never more than the whole Fisher."""
    z = logits_like(6, 12, spread)
    recipe = Recipe().for_classes(top, 12)
    rows, chosen = all_rows(recipe, z)
    assert rows.shape == (6, recipe.n_rows(12), 12) == (6, top, 12)
    retained = recipe.retained(z, chosen)
    for i, one in enumerate(z):
        kept = one.argsort(descending=True)[:top].tolist()
        assert chosen["outcomes"][i].tolist() == kept
        whole, part = softmax_fisher(one), fisher_of(coarsened(one, kept), one)
        assert_gram(rows[i], part)
        assert_below(part, whole)
        assert retained[i] == pytest.approx(float(part.trace() / whole.trace()), rel=1e-12)


@pytest.mark.parametrize("least", [0.5, 0.1, 0.02, 1e-6])
def test_a_cut_by_probability_keeps_what_is_as_likely(least):
    z = logits_like(20, 12, 2.0)
    recipe = Recipe().for_classes(least, 12)
    rows, chosen = all_rows(recipe, z)
    retained = recipe.retained(z, chosen)
    counts = set()
    for i, one in enumerate(z):
        p = torch.softmax(one, -1)
        order = one.argsort(descending=True).tolist()
        kept = [at for at in order if p[at] >= least][:11] or order[:1]
        counts.add(len(kept))
        assert chosen["outcomes"][i].tolist() == kept + [-1] * (11 - len(kept))
        part = fisher_of(coarsened(one, kept), one)
        assert_gram(rows[i], part)
        assert not rows[i, len(kept) :].any()  # an example has as many rows as kept classes
        assert retained[i] == pytest.approx(float(part.trace() / softmax_fisher(one).trace()), rel=1e-12)
    assert len(counts) > 1 or least in (0.5, 1e-6)


def test_an_expectation_over_so_many_outcomes_is_cut_at_some_number():
    assert Recipe().for_classes(0.001, 50_000).n_rows(50_000) == 64


def exact_retained(z: list[float], kept: list[int]) -> float:
    """Share of the trace over the logits that the coarser prediction's Fisher has, with sixty digits."""
    with localcontext() as context:
        context.prec = 60
        weight = [Decimal(x).exp() for x in z]
        p = [w / sum(weight) for w in weight]
        rest = [at for at in range(len(z)) if at not in kept]
        s = sum(p[at] for at in rest)
        outcomes = [(p[at], [int(at == m) for m in range(len(z))]) for at in kept] + [(s, [p[m] / s if m in rest else 0 for m in range(len(z))])]
        part = sum(q * sum((Decimal(g) - p[m]) ** 2 for m, g in enumerate(of_one)) for q, of_one in outcomes)
        whole = sum(p[y] * sum((int(m == y) - p[m]) ** 2 for m in range(len(z))) for y in range(len(z)))
        return float(part / whole)


@pytest.mark.parametrize(
    "z",
    [
        pytest.param([30.0, 0.0, 0.0, -1.0, -2.0], id="nearly certain"),
        pytest.param([300.0, 0.0, 0.0, 0.0, 0.0], id="as certain as double precision can say"),
        pytest.param([0.0, -200.0, -200.0, -300.0, -300.0], id="a rest beyond rounding"),
        pytest.param([5.0, 5.0, 5.0, 5.0, 5.0], id="all alike"),
        pytest.param([40.0, 40.0, 0.0, -40.0, -80.0], id="two alike"),
        pytest.param([40.0, 20.0, 0.0, -20.0, -40.0], id="steps"),
    ],
)
@pytest.mark.parametrize("top", [1, 2, 3])
def test_what_is_retained_is_exact_for_any_confidence(z, top):
    recipe, logits = Recipe(top=top), torch.tensor([z], dtype=torch.float64)
    rows, chosen = all_rows(recipe, logits)
    assert torch.isfinite(rows).all()
    assert recipe.retained(logits, chosen)[0] == pytest.approx(exact_retained(z, list(range(top))), rel=1e-12)


def test_where_there_is_nothing_to_retain_nothing_is_lost():
    """All mass in one class: a Fisher of zeros."""
    z = torch.tensor([[1000.0, 0.0, -5.0, -1000.0], [0.0, -2000.0, -2000.0, -2000.0]])
    for recipe in (Recipe(top=1), Recipe(top=2), Recipe(top=3, least=0.1)):
        rows, chosen = all_rows(recipe, z)
        assert not rows.any()
        np.testing.assert_array_equal(recipe.retained(z, chosen), 1)


def test_a_class_kept_without_probability_changes_nothing():
    z = torch.tensor([[2.0, 1.0, -1e30, -1e30, -1e30]])
    recipe = Recipe(top=4)
    rows, chosen = all_rows(recipe, z)
    assert torch.isfinite(rows).all()
    assert_gram(rows[0], middle_matrix(z)[0])
    assert recipe.retained(z, chosen)[0] == 1


@pytest.mark.parametrize("shift", [500.0, 2e4, -2e4])
def test_a_number_added_to_all_logits_changes_nothing(shift):
    """Softmax does not know it: logits may be log-likelihoods of long texts, all of them far below zero."""
    z = logits_like(4, 12)
    for recipe in (Recipe(), Recipe(top=3), Recipe(top=5, least=0.1), Recipe(top=2, draws=4)):
        here, chosen = all_rows(recipe, z)
        there, again = all_rows(recipe, z + shift)
        np.testing.assert_array_equal(chosen.get("outcomes", 0), again.get("outcomes", 0))
        torch.testing.assert_close(here, there, rtol=0, atol=1e-10)  # 2e4 + z is rounded at 4e-12
        np.testing.assert_allclose(recipe.retained(z, chosen), recipe.retained(z + shift, again), atol=1e-10)


@pytest.mark.parametrize("top", [1, 2, 4])
def test_kept_labels_of_many_independent_ones(top):
    z = logits_like(6, 5, 3.0)
    recipe = Recipe("bernoulli").for_classes(top, 5)
    rows, chosen = all_rows(recipe, z)
    assert rows.shape == (6, top, 5)
    retained = recipe.retained(z, chosen)
    for i, one in enumerate(z):
        kept = one.abs().argsort()[:top].tolist()  # p (1 − p) is largest where the logit is nearest to zero
        assert sorted(chosen["outcomes"][i].tolist()) == sorted(kept)
        whole = bernoulli_fisher(one)
        part = torch.diag(torch.tensor([float(whole[at, at]) if at in kept else 0.0 for at in range(5)], dtype=torch.float64))
        assert_gram(rows[i], part)
        assert retained[i] == pytest.approx(float(part.trace() / whole.trace()), rel=1e-12)


def test_labels_that_are_all_certain_lose_nothing():
    z = torch.tensor([[900.0, -900.0, 800.0], [1.0, -1.0, 800.0]])
    recipe = Recipe("bernoulli", top=2)
    _, chosen = all_rows(recipe, z)
    np.testing.assert_array_equal(recipe.retained(z, chosen), 1)


def test_a_cut_by_probability_may_keep_every_label():
    """Independent labels have no *anything else* that would carry one of them."""
    z = torch.tensor([[0.1, -0.2, 0.3]])
    recipe = Recipe("bernoulli").for_classes(0.1, 3)
    rows, chosen = all_rows(recipe, z)
    assert recipe.retained(z, chosen)[0] == pytest.approx(1)
    assert_gram(rows[0], bernoulli_fisher(z[0]))


# ------------------------------------------------------------------------------------------------------------------- drawn labels


def spread_over_draws(z: torch.Tensor, recipe: Recipe, times: int, along: torch.Tensor) -> torch.Tensor:
    """Rows (times, K, d) of one prediction z (c,), each time with labels of its own, seen through a Jacobian (c, d)."""
    return all_rows(recipe, z.expand(times, -1))[0] @ along


@pytest.mark.parametrize(("top", "draws", "spread"), [(1, 2, 0.5), (2, 8, 1.0), (4, 3, 2.0)])
def test_drawn_labels_give_the_whole_fisher_on_average(top, draws, spread):
    times, c = 6000, 15
    z, along = logits_like(1, c, spread)[0], logits_like(c, 5, 1.0, seed=1)
    rows = spread_over_draws(z, Recipe(top=top, draws=draws), times, along)
    assert rows.shape == (times, top + draws, 5)
    estimates = rows.transpose(1, 2) @ rows
    exact = along.T @ softmax_fisher(z) @ along
    # The mean of S independent estimates is off by (their standard deviation) / √S.
    error = estimates.var(0).sqrt() / times**0.5
    off = ((estimates.mean(0) - exact).abs() / error).flatten()
    # Fifteen different entries: in one such test of 25 some entry is beyond three.
    assert float(off.max()) < 4, off
    assert float((off > 3).double().mean()) < 0.1, off
    assert float((estimates.mean(0) - exact).norm()) < 3 * float(error.norm())
    assert float(error.norm()) < 0.03 * float(exact.norm())  # the bounds above say something


@pytest.mark.parametrize(("top", "draws"), [(1, 4), (1, 16), (3, 8)])
def test_the_error_of_drawn_labels_is_estimated_from_themselves(top, draws):
    """Against the spread of many estimates of the same Fisher: within 15 % on average, for each of several predictions."""
    times, c = 3000, 15
    ratios = []
    for seed in range(6):
        z, along = logits_like(1, c, 1.0, seed)[0], logits_like(c, 5, 1.0, seed=seed + 50)
        rows = spread_over_draws(z, Recipe(top=top, draws=draws), times, along)
        estimates = rows.transpose(1, 2) @ rows
        exact = along.T @ softmax_fisher(z) @ along
        truly = float((estimates - exact).square().sum((1, 2)).mean().sqrt() / exact.norm())
        said = sampling_error(rows @ rows.transpose(1, 2), draws)
        # The mean square is what is unbiased ...
        ratios.append(float(np.sqrt(np.mean(said**2 * estimates.square().sum((1, 2)).numpy())) / exact.norm()) / truly)
        # ... and a single number is too small rather than too large: it is relative to an estimate that its own scatter makes longer.
        assert 0.65 < said.mean() / truly < 1.05
    assert np.abs(np.mean(ratios) - 1) < 0.15
    assert np.abs(np.array(ratios) - 1).max() < 0.15


def test_draws_are_the_example_s_own():
    """By its number and the seed, whatever batch it comes in."""
    z, recipe = logits_like(10, 20), Recipe(top=2, draws=6, seed=3)
    together = recipe.decide(z, np.arange(10))["labels"]
    for batch in (np.array([7, 2]), np.array([2]), np.array([9, 8, 2, 0])):
        np.testing.assert_array_equal(recipe.decide(z[batch], batch)["labels"], together[batch])
    same = z[:1].expand(10, -1)
    of_others = recipe.decide(same, np.arange(10))["labels"]
    assert len({tuple(row) for row in of_others.tolist()}) > 5  # equal predictions, different numbers
    assert not np.array_equal(of_others, Recipe(top=2, draws=6, seed=4).decide(same, np.arange(10))["labels"])


def test_no_kept_class_is_drawn():
    z, recipe = logits_like(50, 8, 3.0), Recipe(top=3, draws=40)
    chosen = recipe.decide(z, np.arange(50))
    assert all(not set(drawn) & set(kept) for drawn, kept in zip(chosen["labels"].tolist(), chosen["outcomes"].tolist(), strict=True))


def test_too_few_draws_are_refused():
    with pytest.raises(ValueError, match=r"Sampled\(draws=1, top=1\): at least 2 draws \(their spread is the error\) and 1 class kept exactly"):
        Sampled(draws=1)
    with pytest.raises(ValueError, match=r"Sampled\(draws=8, top=0\)"):
        Sampled(top=0)


# ------------------------------------------------------------------------------------------------------------------- fewer rows by rotation


def some_rows(n: int = 6, k: int = 7, d: int = 20) -> torch.Tensor:
    """Rows whose principal axes differ in length, different for each example."""
    draw = torch.Generator().manual_seed(3)
    return torch.randn(n, k, d, generator=draw, dtype=torch.float64) * torch.logspace(0, -3, k, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("rank", [1, 3, 7, 20])
def test_a_number_of_principal_rows(rank):
    rows = some_rows()
    turn = principal_rows(rows @ rows.transpose(1, 2), rank)
    q = min(rank, 7)
    assert turn.shape == (6, q, 7)
    turned = turn @ rows
    for i in range(6):
        torch.testing.assert_close(turn[i] @ turn[i].T, torch.eye(q, dtype=torch.float64), rtol=0, atol=1e-12)
        values = torch.linalg.svdvals(rows[i])[:q].square()
        torch.testing.assert_close(turned[i] @ turned[i].T, torch.diag(values), rtol=1e-9, atol=1e-12 * float(values[0]))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999, 1.0])
def test_principal_rows_for_a_share_of_the_trace(share):
    rows = torch.cat([some_rows(), some_rows()[:, [0] * 7]])  # the second half has rank one
    turn = principal_rows(rows @ rows.transpose(1, 2), share)
    turned = turn @ rows
    used = []
    for i in range(len(rows)):
        own = int((turn[i].abs().sum(1) > 0).sum())
        used.append(own)
        assert not turn[i, own:].any()
        torch.testing.assert_close(turn[i, :own] @ turn[i, :own].T, torch.eye(own, dtype=torch.float64), rtol=0, atol=1e-12)
        kept, whole = float(turned[i].square().sum()), float(rows[i].square().sum())
        assert kept >= (share - 1e-9) * whole
        if own > 1:  # one fewer would not do
            assert float(turned[i, : own - 1].square().sum()) < share * whole
    assert set(used[6:]) == {1} or share == 1.0


def test_principal_rows_have_a_sign_of_their_own():
    rows = some_rows()
    grams = rows @ rows.transpose(1, 2)
    turn = principal_rows(grams, 7)
    assert (turn.gather(2, turn.abs().argmax(2, keepdim=True)) > 0).all()
    assert torch.equal(turn, principal_rows(grams.clone(), 7))
    assert torch.equal(turn[2:4], principal_rows(grams[2:4], 7))  # whatever stands beside it in the batch


def test_recorded_rotations_give_the_same_rows_again():
    z = logits_like(5, 12)
    for recipe in (Recipe(), Recipe(top=4), Recipe(top=2, draws=3), Recipe("bernoulli")):
        rows, chosen = all_rows(recipe, z)
        turn = principal_rows(rows @ rows.transpose(1, 2), 2)
        again = recipe.cotangents(z, recipe.coarse(z, chosen), chosen | {"mixing": turn.numpy()})
        torch.testing.assert_close(again, turn @ rows, rtol=0, atol=1e-14)


# ------------------------------------------------------------------------------------------------------------------- classes=


@pytest.mark.parametrize(
    ("classes", "c", "top", "rows"),
    [("auto", 33, None, 32), ("auto", 34, 8, 8), ("all", 5000, None, 4999), (5, 200, 5, 5), (5, 6, None, 5), (5, 3, None, 2), (np.int64(4), 9, 4, 4),
     (0.1, 9, 8, 8), (Sampled(8, 2), 200, 2, 10), (Sampled(8, 2), 3, None, 2)],
)  # fmt: skip
def test_what_classes_means(classes, c, top, rows):
    recipe = Recipe().for_classes(classes, c)
    assert (recipe.top, recipe.n_rows(c)) == (top, rows)


@pytest.mark.parametrize("classes", [0, -1, 1.5, 1.0, 0.0, True, False, "some", None, float("nan")])
def test_classes_that_mean_nothing(classes):
    with pytest.raises(ValueError, match=r"give 'auto', 'all', how many to keep \(from 1\), a least probability \(below 1\), or Sampled\(draws\)"):
        Recipe().for_classes(classes, 100)


@pytest.mark.parametrize("recipe", [Recipe(fisher="empirical"), Recipe(fisher="predicted"), Recipe(rows="classes")])
def test_classes_of_a_fisher_without_an_expectation(recipe):
    assert recipe.for_classes("auto", 100) == recipe
    assert recipe.for_classes("all", 100) == recipe
    with pytest.raises(ValueError, match="classes=5 cuts the expectation over classes, of which this Fisher has none: leave it at 'auto'"):
        recipe.for_classes(5, 100)
    with pytest.raises(ValueError, match="leave it at 'auto'"):
        recipe.for_classes(Sampled(4), 100)


def test_independent_labels_are_not_drawn():
    with pytest.raises(ValueError, match="Sampled draws one class of many; independent labels are kept or left out: give classes= a number"):
        Recipe("bernoulli").for_classes(Sampled(4), 100)


def test_a_recipe_is_plain_values():
    for recipe in (Recipe(), Recipe(top=3, draws=4, seed=9), Recipe("bernoulli", "empirical", rank=0.9), Recipe(rows="classes", rank=2)):
        assert Recipe.from_json(recipe.to_json()) == recipe


# ------------------------------------------------------------------------------------------------------------------- through a whole extraction


class Reader(nn.Module):
    """A language model in small: three tokens in, one of 200 out, some far likelier than others."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle, self.out = nn.Embedding(30, 6), nn.Linear(6, 6), nn.Linear(6, 200)
        with torch.no_grad():
            self.table.weight.mul_(2)
            self.out.weight.mul_(4)

    def forward(self, ids):
        return self.out(torch.tanh(self.middle(self.table(ids))).sum(1))


N = 24
IDS = torch.randint(30, (N, 3), generator=torch.Generator().manual_seed(2))
WITHIN = ["middle.weight", "middle.bias"]


@pytest.fixture(scope="module")
def reader():
    return tiny.seeded(Reader)


def read(model, **settings):
    return extract_fishers(model, logits=tiny.plain_logits, inputs=IDS, parameters=WITHIN, features="dense", batch_size=7, progress=False, **settings)


def true_rows(model, i, logits_of=tiny.plain_logits):
    return twins.fisher_rows(model, logits_of, IDS[i : i + 1], WITHIN)


def coarse_rows(model, i, kept):
    """Of the prediction with *anything else* as one class, by autograd through its log-probabilities."""
    return true_rows(model, i, lambda model, batch: coarsened(z := model(batch)[0], kept)(z)[None])


def test_few_of_many_classes_through_an_extraction(reader):
    pefs = read(reader, classes=5)
    table = pefs.to_frame()
    assert pefs.factors.shape[:2] == (N, 5)
    assert pefs.classes == ["guess 1", "guess 2", "guess 3", "guess 4", "guess 5", "anything else"]
    with torch.no_grad():
        z = reader(IDS).double()
    for i in range(N):
        kept = z[i].argsort(descending=True)[:5].tolist()
        assert pefs.choices["outcomes"][i].tolist() == kept
        part = coarse_rows(reader, i, kept)
        assert twins.relative_distance(pefs.factors[i], part) < 1e-5
        assert pefs.norms[i] == pytest.approx(twins.frobenius(part), rel=1e-5)
        dense = fisher_of(coarsened(z[i], kept), z[i]).trace() / softmax_fisher(z[i]).trace()
        assert table["retained_trace"][i] == pytest.approx(float(dense), rel=1e-5)  # of float32 logits
        np.testing.assert_allclose(pefs.probabilities[i], coarsened(z[i], kept)(z[i]).exp(), atol=1e-6)
        whole = twins.fisher(true_rows(reader, i))
        assert np.linalg.eigvalsh(whole - twins.fisher(part)).min() > -1e-12 * np.linalg.norm(whole)
    assert not {"sampling_error", "retained_rows", "masked"} & {*table.columns}


def test_auto_keeps_eight_and_all_keeps_all(reader):
    assert read(reader).factors.shape[1] == 8
    every = read(reader, classes="all")
    assert every.factors.shape[1] == 199
    assert "retained_trace" not in every.to_frame()
    for i in range(0, N, 6):
        assert twins.relative_distance(every.factors[i], true_rows(reader, i)) < 1e-5


def test_a_cut_by_probability_through_an_extraction(reader):
    pefs = read(reader, classes=0.04)
    own = (pefs.choices["outcomes"] >= 0).sum(1)
    assert len(set(own)) > 2
    table = pefs.to_frame()
    with torch.no_grad():
        z = reader(IDS).double()
    for i in range(N):
        kept = pefs.choices["outcomes"][i, : own[i]].tolist()
        p = torch.softmax(z[i], -1)
        assert set(kept) == {at for at in range(200) if p[at] >= 0.04} or len(kept) == 1
        assert not pefs.factors[i, own[i] :].any()
        assert twins.relative_distance(pefs.factors[i], coarse_rows(reader, i, kept)) < 1e-5
        dense = fisher_of(coarsened(z[i], kept), z[i]).trace() / softmax_fisher(z[i]).trace()
        assert table["retained_trace"][i] == pytest.approx(float(dense), rel=1e-5)


@pytest.mark.parametrize(
    ("classes", "rank"),
    [("all", 4), ("all", 0.8), *((classes, rank) for classes in (6, 0.04, Sampled(6, 2)) for rank in (1, 4, 300, 0.8, 1.0))],
)
def test_rotated_rows_through_an_extraction(rank, classes, reader):
    plain = read(reader, classes=classes)
    pefs = read(reader, classes=classes, rank=rank)
    said = pefs.to_frame()["retained_rows"]
    assert pefs.factors.shape[1] <= plain.factors.shape[1]  # no more rows than there are, whatever is asked for
    for i in range(N):
        rows, own = plain.factors[i].astype(np.float64), pefs.factors[i].astype(np.float64)
        gram = own @ own.T
        assert np.abs(gram - np.diag(np.diag(gram))).max() <= 1e-5 * np.trace(gram)  # principal axes
        values = np.linalg.svd(rows, compute_uv=False) ** 2
        kept = int((np.diag(gram) > 1e-9 * values.sum()).sum())
        np.testing.assert_allclose(np.diag(gram)[:kept], values[:kept], atol=2e-5 * values[0])  # the largest ones, in order
        assert said[i] == pytest.approx((own**2).sum() / (rows**2).sum(), rel=1e-5)
        assert pefs.norms[i] == pytest.approx(twins.frobenius(own), rel=1e-5)
        if isinstance(rank, float):
            assert said[i] >= rank - 1e-5
        else:
            assert kept <= rank
            assert said[i] == pytest.approx(values[:rank].sum() / values.sum(), rel=1e-5)


@pytest.mark.parametrize(
    "settings", [{"rank": 2}, {"rank": 0.9, "classes": 4}, {"classes": Sampled(4, 2), "rank": 3}, {"classes": Sampled(4, 2)}, {"classes": 4}]
)
def test_the_model_run_again_gives_the_rows_that_were_kept(settings, reader):
    """From the recorded choices, in other batches: what lifting a component rests on."""
    pefs = read(reader, **settings)
    subject, tape = pefs.subject, Tape(pefs.subject.model, list(pefs.parameters["name"]))
    tape.learn([(lambda: subject.raw_logits(np.array([0])), lambda: subject.raw_logits(np.array([0, 0])))])
    for batch in (np.array([5, 1, 17]), np.array([22])):
        with subject.gradients(tape, batch) as found:
            rows = {name: torch.stack([use.dense() for use in uses]).sum(0).flatten(2) for name, uses in found.gradients}
        again = torch.cat([rows[name] for name in pefs.parameters["name"]], 2).numpy()
        kept = pefs.factors[batch]
        np.testing.assert_allclose(again, kept[:, : again.shape[1]], atol=1e-5 * np.abs(kept).max())
        assert not kept[:, again.shape[1] :].any()


def test_drawn_labels_through_an_extraction(reader):
    """The column says how far off the Fishers are: checked on average over the examples, each drawn several times."""
    exact = [twins.fisher(true_rows(reader, i)) for i in range(N)]
    true, said = np.zeros(N), np.zeros(N)
    seeds = range(6)
    for seed in seeds:
        pefs = read(reader, classes=Sampled(8, 2, seed=seed))
        assert pefs.factors.shape[:2] == (N, 10)
        table = pefs.to_frame()
        assert "retained_trace" not in table  # nothing is left out
        found = np.stack([twins.fisher(rows) for rows in pefs.factors])
        true += [np.square(found[i] - exact[i]).sum() for i in range(N)]
        said += (table["sampling_error"].to_numpy() * np.linalg.norm(found, axis=(1, 2))) ** 2
    scale = np.array([np.square(f).sum() for f in exact])
    assert np.sqrt((said / scale).mean()) == pytest.approx(np.sqrt((true / scale).mean()), rel=0.15)
    assert np.sqrt((true / scale).mean() / len(seeds)) > 0.02  # there is an error to tell of


class Certain(nn.Module):
    """Forty classes of which two are possible."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 2)

    def forward(self, x):
        return torch.cat([self.out(x), torch.full((len(x), 38), -1e4)], 1)


def test_drawn_labels_of_a_rest_with_one_class_have_no_error():
    """Every draw gives that class: rows of zeros, which need no backward pass and must not be mistaken for the kept ones."""
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    model = tiny.seeded(Certain)
    pefs = extract_fishers(model, logits=tiny.plain_logits, inputs=inputs, parameters="all", features="dense", classes=Sampled(4, 1), progress=False)
    assert pefs.to_frame()["sampling_error"].tolist() == [0] * 5
    for i in range(5):
        assert (
            twins.relative_distance(pefs.factors[i], twins.fisher_rows(model, tiny.plain_logits, inputs[i : i + 1], ["out.weight", "out.bias"]))
            < 1e-5
        )
