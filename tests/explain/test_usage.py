"""Figures of the coefficients by column, against NumPy's own on every column by itself."""

import numpy as np
import pytest

from npeff_nb.decomposition.factorisation import strongest
from npeff_nb.explain.usage import together, usage


def coefficients(n=300, r=70, seed=0):
    rng = np.random.default_rng(seed)
    W = rng.random((n, r)) * (rng.random((n, r)) < rng.random(r))
    W[:, 3] = 0
    W[:, 4] = 0.5
    return W


def test_every_column_as_by_itself():
    W = coefficients()
    found = usage(W, 0.2, 7, 24)
    for k, w in enumerate(W.T):
        assert found.examples[k] == (w >= 0.2).sum() and found.largest[k] == w.max()
        assert found.mean[k] == pytest.approx(w.mean()) and found.spread[k] == pytest.approx(np.linalg.norm(w - w.mean()))
        assert found.histogram[k].sum() == (w > 0).sum() and len(found.histogram[k]) == 24
        assert found.top[k].tolist() == [i for i in np.argsort(-w, kind="stable")[:7] if w[i] > 0]


def test_correlations_are_numpys_and_zero_where_nothing_varies():
    W = coefficients()
    found = usage(W, 0.2, 7, 24)
    for k in (0, 3, 4, 69):
        expected = np.array([np.corrcoef(W[:, k], w)[0, 1] if w.std() > 1e-12 and W[:, k].std() > 1e-12 else 0 for w in W.T])
        # Sums of 300 products, one of them a difference: some rounding is left.
        np.testing.assert_allclose(together(W, k, found.mean, found.spread), expected, atol=1e-9)


def test_strongest_takes_the_first_of_equals_and_no_zeros():
    rng = np.random.default_rng(0)
    for _ in range(300):
        w = np.round(rng.random(rng.integers(1, 40)), 1) * (rng.random() < 0.9)
        n = int(rng.integers(0, 45))
        assert strongest(w, n).tolist() == [i for i in np.argsort(-w, kind="stable")[:n] if w[i] > 0]
