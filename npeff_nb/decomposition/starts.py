"""Where a fit begins: directions of examples that are far apart."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from npeff_nb.decomposition.rows import Rows


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
        chosen.append(rows.leading(at))
        own = rows.example(at)
        energy = rows.inner(own, own, rows.project(own)).square().sum()
        nearest = torch.minimum(nearest, norms - 2 * rows.overlap(at) + energy)
    return torch.cat(chosen)
