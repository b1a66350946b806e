"""The reduced factor against the matrix it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from npeff_nb.fisher.factors import reduced_cotangents


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
