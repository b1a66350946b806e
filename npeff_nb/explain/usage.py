"""Who uses which component: figures of every column of the coefficients, from one walk over them.

The coefficients of 100 000 examples in 512 components are 400 MB, examples along the rows: so columns are read in groups, and no copy of all is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npeff_nb.decomposition.factorisation import strongest

COLUMNS_AT_ONCE = 32
"""A row of so many float64 is four cache lines: reading them one by one would fetch each line eight times."""


@dataclass(frozen=True)
class Usage:
    """Figures of the coefficients W (n, r), by component.

    Attributes
    ----------
    examples : (r,) how many have a coefficient of at least the least that counts as use.
    largest : (r,) largest coefficient.
    mean, spread : (r,) mean, and ‖W_·j − mean‖.
    histogram : (r, bins) counts of positive coefficients in equal bins up to the largest.
    top : for each component its examples with the largest coefficients, falling; only those that use it at all.
    """

    examples: np.ndarray
    largest: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    histogram: np.ndarray
    top: list[np.ndarray]


def usage(W: np.ndarray, used: float, top: int, bins: int) -> Usage:
    """:class:`Usage` of coefficients (n, r), with ``top`` examples a component."""
    r = W.shape[1]
    examples, histogram = np.zeros(r, dtype=int), np.zeros((r, bins), dtype=int)
    largest, mean, spread = np.zeros(r), np.zeros(r), np.zeros(r)
    best = []
    for first in range(0, r, COLUMNS_AT_ONCE):
        for k, w in enumerate(np.ascontiguousarray(W[:, first : first + COLUMNS_AT_ONCE].T), first):
            examples[k], largest[k], mean[k] = (w >= used).sum(), w.max(), w.mean()
            spread[k] = np.square(w - mean[k]).sum() ** 0.5
            histogram[k] = np.histogram(w[w > 0], bins=bins, range=(0, max(largest[k], 1e-12)))[0]
            best.append(strongest(w, top))
    return Usage(examples, largest, mean, spread, histogram, best)


def together(W: np.ndarray, k: int, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """(r,) correlation over the examples of component ``k``'s coefficients with every one's; 0 with what never varies."""
    w = W[:, k]
    users = np.flatnonzero(w)  # few: what the others add to the covariance is their mean
    products = w[users] @ W[users] - len(w) * mean[k] * mean
    scale = spread * spread[k]
    return np.divide(products, scale, out=np.zeros(len(mean)), where=scale > 1e-12)
