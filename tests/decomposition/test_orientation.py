"""The sign of a component: a step along −h disturbs its users more than one along +h."""

import numpy as np
import pytest
import torch

from npeff_nb.decomposition import orientation as module
from npeff_nb.directions.perturb import edited_logits, kl
from npeff_nb.fisher.factors import Recipe, bernoulli_cotangents, principal_rows, reduced_cotangents


def orientation(*given):
    """The signs that the scores ask for."""
    return np.where(module.orientation(*given) > 0, -1.0, 1.0)


def one_direction(z, delta, cotangents=reduced_cotangents):
    """Projections (n, k, 1) and norms (n,) of a model whose logits move by ``delta`` along one direction."""
    along = np.einsum("nkc,nc->nk", cotangents(torch.from_numpy(z)).numpy(), delta)
    norms = np.full(len(z), 2.0)  # any number: it is divided out and put back
    return (along / np.sqrt(norms)[:, None])[:, :, None], norms


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("confidence", [0.5, 3.0, 8.0])
def test_sign_is_that_of_the_larger_divergence_for_small_steps(seed, confidence):
    rng = np.random.default_rng(seed)
    z, delta = confidence * rng.normal(size=(1, 5)), rng.normal(size=(1, 5))
    P, norms = one_direction(z, delta)
    sign = orientation(np.ones((1, 1)), P, z, norms)[0]
    s = 1e-2  # the third order decides (the fifth is s² of it), and it stands well above rounding even where the divergence is 1e-12
    down, up = kl(z - sign * s * delta, z)[0], kl(z + sign * s * delta, z)[0]
    assert down >= up


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("confidence", [0.5, 3.0, 8.0])
def test_the_same_for_independent_labels(seed, confidence):
    rng = np.random.default_rng(seed)
    z, delta = confidence * rng.normal(size=(1, 4)), rng.normal(size=(1, 4))
    P, norms = one_direction(z, delta, bernoulli_cotangents)
    sign = orientation(np.ones((1, 1)), P, z, norms, Recipe("bernoulli"))[0]
    s = 1e-2
    assert kl(z - sign * s * delta, z, "bernoulli")[0] >= kl(z + sign * s * delta, z, "bernoulli")[0]


def test_rotated_rows_have_the_sign_of_the_rows_they_were_made_of():
    """All axes kept: the recorded rotation is undone, so whatever it was, the sign is that of the rows by class."""
    rng = np.random.default_rng(3)
    z, delta = 3 * rng.normal(size=(20, 5)), rng.normal(size=(20, 5))
    P, norms = one_direction(z, delta)
    W = rng.random((20, 1))
    rows = reduced_cotangents(torch.from_numpy(z)) @ torch.from_numpy(rng.normal(size=(5, 30)))
    turn = principal_rows(rows @ rows.transpose(1, 2), 4).numpy()
    turned = np.einsum("nqk,nkr->nqr", turn, P)
    plain, rotated = orientation(W, P, z, norms), orientation(W, turned, z, norms, Recipe(rank=4), {"mixing": turn})
    assert plain[0] == rotated[0]
    assert orientation(W, -turned, z, norms, Recipe(rank=4), {"mixing": turn})[0] == -plain[0]


@pytest.mark.parametrize("fisher", ["empirical", "predicted"])
def test_a_single_gradient_points_where_its_label_becomes_likelier(fisher):
    projections = np.array([[[0.5]], [[0.4]], [[-0.2]]])
    for sign in (1.0, -1.0):
        assert orientation(np.ones((3, 1)), sign * projections, np.zeros((3, 4)), np.ones(3), Recipe(fisher=fisher))[0] == sign


def test_turning_the_projections_round_turns_the_sign_round():
    rng = np.random.default_rng(0)
    z, delta = 3 * rng.normal(size=(20, 4)), rng.normal(size=(20, 4))
    P, norms = one_direction(z, delta)
    W = rng.random((20, 1))
    assert orientation(W, P, z, norms)[0] == -orientation(W, -P, z, norms)[0]


def test_examples_count_by_their_coefficients():
    z = np.array([[4.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    delta = np.array([[-1.0, 0.5, 0.5], [1.0, -0.5, -0.5]])  # one against the other
    P, norms = one_direction(z, delta)
    assert orientation(np.array([[1.0], [0.1]]), P, z, norms)[0] == -orientation(np.array([[0.1], [1.0]]), P, z, norms)[0]


def test_parts_add_up(monkeypatch):
    rng = np.random.default_rng(1)
    z, delta = 2 * rng.normal(size=(30, 4)), rng.normal(size=(30, 4))
    P, norms = one_direction(z, delta)
    W = rng.random((30, 1))
    whole = orientation(W, P, z, norms)
    monkeypatch.setattr(module, "NUMBERS_AT_ONCE", 1)
    np.testing.assert_array_equal(orientation(W, P, z, norms), whole)


def test_certain_predictions_and_unused_components_are_no_problem():
    z = np.array([[0.0, -2000.0, -2000.0]])
    P, norms = one_direction(z, np.ones((1, 3)))
    assert orientation(np.zeros((1, 1)), P, z, norms)[0] == 1.0


def test_fitted_components_turn_down_along_minus(npeff):
    """On the model itself: the mean divergence of each component's users, both ways, at a step small enough for the third order."""
    agree = 0
    for k in range(len(npeff.components_)):
        top = npeff.top_examples(k, 8)
        direction = npeff.direction(k)
        before = npeff.subject.logits(np.sort(top)).numpy()
        down, up = (kl(z, before).mean() for z in edited_logits(npeff.subject, direction, [-0.5, 0.5], np.sort(top)))
        agree += down > up
    # Skewness is averaged over all users and counts each alike, the divergence over the top ones and counts strong ones more: most, not all.
    assert agree >= len(npeff.components_) - 1
