"""Where a fit begins: directions of examples that are far apart, loosened from these examples."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from npeff_nb.decomposition.objective import line_minimum, stationary
from npeff_nb.decomposition.rows import Rows, leading

LOOSENED = 10
"""Steps of :func:`loosened`.  On planted Fishers of two components each, starts that lead to the best loss rise from none to two in three."""
START_EXAMPLES = 20_000
"""Starts are looked for among so many examples when the rows are not held in memory: each costs a product with all rows that are looked at."""


def kmeans_pp(rows: Rows, r: int, rng: np.random.Generator, nearest: Tensor | None = None) -> Tensor:
    """Leading directions (r, ·) of r examples, drawn as in k-means++ (Arthur and Vassilvitskii 2007) with ‖F̂_i − F̂_j‖² as the distance.

    ``nearest`` (n,) are distances before the first draw; by default those to "no centre at all", ‖F̂_i‖²: zero Fishers are never drawn.
    """
    norms = rows.energies
    nearest = norms.clone() if nearest is None else nearest
    chosen = []
    for _ in range(r):
        # What is left of a centre's own distance is rounding, not distance.
        mass = rows.weights * torch.where(nearest > 1e-12 * norms, nearest, 0.0)
        if float(rows.total(mass.sum())) == 0:  # more components than there are different Fishers
            mass = rows.weights * norms
        at = rows.draw(mass, rng)
        own = rows.example(at)
        P = rows.project(own)
        S = rows.inner(own, own, P)
        chosen.append(leading(own, S))
        nearest = torch.minimum(nearest, norms - 2 * P.square().sum((1, 2)) + S.square().sum())
    return torch.cat(chosen)


def uniform_coefficients(rows: Rows, r: int, rng: np.random.Generator) -> Tensor:
    """(n, r) in (0, 1].  Where the examples are shared out among processes, each has its part of one draw for all."""
    return rows.share(torch.from_numpy(1 - rng.random((rows.n_all, r))).to(rows.device))


def loosened(rows: Rows, H: Tensor, rng: np.random.Generator, steps: int = LOOSENED) -> Tensor:
    """Directions (r, ·) after a few exact steps with random coefficients, as the paper's algorithm begins.

    An example of several components leads along a mixture of them, and the coefficients that suit mixtures hold them there.  Coefficients
    that suit nothing let every direction move towards what many examples share.
    """
    W = uniform_coefficients(rows, len(H), rng)
    # The norms that make the sum of r components about as large as a Fisher.
    H = H * (2 / len(H)) ** 0.5
    P = rows.project(H)
    V, S = rows.moment(W), rows.inner(H, H, P)
    for _ in range(steps):
        D = stationary(rows, W, V, P, S) - H
        Q = rows.project(D)
        C, E = rows.inner(H, D, Q), rows.inner(D, D, Q)
        C = C + C.T
        t = line_minimum(rows, W, V, P, Q, S, C, E)
        H, P, S = H + t * D, P + t * Q, S + t * C + t * t * E
    return H
