"""Where components stand on the map: near each other where their directions are alike."""

from __future__ import annotations

import numpy as np

PERPLEXITY = 6.0
"""About how many neighbours each point of the map stands by: a family of alike components has few members."""
ITERATIONS = 400
"""Of t-SNE; longer changes little (0.5 s for 512 components)."""
RATE, EXAGGERATION = 20.0, 4.0
"""Smaller than scikit-learn's, which are for thousands of points and throw a few dozen far apart."""
FEWEST = 3
"""Two points say nothing on a map that their cosine would not say."""
FEW = 10
"""Fewer points have too few neighbours for t-SNE; classical scaling shows them well enough."""


def places(components: np.ndarray, shares: np.ndarray) -> list[list[float]] | None:
    """Points in [0, 1]² for components (r, d) of unit norm; None for fewer than three.

    The distance of two components is the sine of the angle between their directions, √(1 − cos²): the sign of a direction is a convention.  Most
    directions are nearly at right angles, and no plane shows r right angles, so the layout keeps neighbours together instead of all distances
    (t-SNE, van der Maaten and Hinton, JMLR 9, 2008, started from classical scaling; a few points are placed by that alone).  Near points are alike;
    how far apart far ones stand says little.  The widest extent lies along x; of each axis, the half with more of ``shares`` (r,) comes first.
    Equal input gives equal points.
    """
    r = len(components)
    if r < FEWEST:
        return None
    cosines = np.clip(np.abs(components @ components.T), 0, 1)
    distances = np.sqrt(1 - cosines**2)
    np.fill_diagonal(distances, 0)
    start = _classical(distances)
    if r < FEW:
        return np.round(_upright(start, shares), 4).tolist()
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    start *= 1e-4 / max(float(start[:, 0].std()), np.finfo(float).tiny)  # the spread that t-SNE's rates are made for
    layout = TSNE(
        metric="precomputed", init=start.astype(np.float32), perplexity=min(PERPLEXITY, (r - 1) / 3), max_iter=ITERATIONS, learning_rate=RATE,
        early_exaggeration=EXAGGERATION, random_state=0, n_jobs=1,
    )  # fmt: skip
    with threadpool_limits(1, user_api="openmp"):  # threads add up in another order each time, and small differences grow
        found = layout.fit_transform(distances.astype(np.float32)).astype(np.float64)
    return np.round(_upright(found, shares), 4).tolist()


def _classical(distances: np.ndarray) -> np.ndarray:
    """Classical scaling to two dimensions (Torgerson 1952): the two longest axes of the doubly centred squared distances."""
    squared = distances**2
    centred = -0.5 * (squared - squared.mean(0) - squared.mean(1)[:, None] + squared.mean())
    values, vectors = np.linalg.eigh(centred)
    return vectors[:, [-1, -2]] * np.sqrt(np.maximum(values[[-1, -2]], 0))


def _upright(points: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Points turned so that what is wide lies flat and what is large stands up left, in the unit square with its proportions kept."""
    centred = points - points.mean(0)
    turned = centred @ np.linalg.svd(centred, full_matrices=False)[2].T
    turned *= np.where(np.maximum(shares, 0) @ turned > 0, -1, 1)
    extent = np.ptp(turned, axis=0)
    return 0.5 + (turned - (turned.min(0) + turned.max(0)) / 2) / max(float(extent.max()), np.finfo(float).tiny)
