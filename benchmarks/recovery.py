"""Are planted components found again?  Ours, the paper's solver, k-means on gradients and PCA, on problems whose answer is known.

    python benchmarks/recovery.py

Examples are made as the method believes them to be: F_i = Σ_j W_ij h_jh_jᵀ + noise, 16 components in 128 features, one component an
example or two to three of them, with directions at right angles on average or with cosines of a half, and with rows that carry noise of a stated
share of their energy.
Found components are paired with planted ones (Hungarian method on |cos|); a cell says the mean |cos| of the pairs, and the mean correlation of
their coefficients over the examples.  Medians over seeds.

What each method is given: the number of components, and

* NPEFF: defaults (four starts).
* paper: its solver with its own start, 100 iterations for the components alone and 1 000 joint ones, the one of three
  learning rates that ends with the lowest loss in a first start, then the best of four starts.
* k-means: on the leading direction of each example's Fisher, the sign of each set right with the planted components at hand, which no one has;
  a coefficient is the example's energy along its centre, zero for the other centres.
* PCA: leading singular directions of all rows; a coefficient is the energy along one.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

import npeff_nb as nb

EXAMPLES, ROWS, FEATURES, COMPONENTS = 400, 3, 128, 16
NOISES = (0.0, 0.1, 0.3, 0.5)
RATES = (1e-3, 3e-3, 1e-2)
STARTS = 4

Found = tuple[np.ndarray, np.ndarray]
"""Unit-norm directions (r, d) and coefficients (n, r)."""


@dataclass(frozen=True)
class Planted:
    """Factor rows A (n, k, d) of unit-norm Fishers, and what was planted in them: directions H (r, d), coefficients W (n, r)."""

    A: np.ndarray
    H: np.ndarray
    W: np.ndarray


def plant(most: int, cosine: float, noise: float, seed: int) -> Planted:
    """Examples of one component (``most`` = 1) or of two to ``most``; ``noise`` is its share of the rows' energy."""
    rng = np.random.default_rng(seed)
    H = rng.standard_normal((COMPONENTS, FEATURES))
    H /= np.linalg.norm(H, axis=1, keepdims=True)
    shared = rng.standard_normal(FEATURES)
    H = np.sqrt(1 - cosine) * H + np.sqrt(cosine) * shared / np.linalg.norm(shared)
    H /= np.linalg.norm(H, axis=1, keepdims=True)
    W = np.zeros((EXAMPLES, COMPONENTS))
    A = np.zeros((EXAMPLES, ROWS, FEATURES))
    for i in range(EXAMPLES):
        users = rng.choice(COMPONENTS, rng.integers(min(2, most), most + 1), replace=False)
        W[i, users] = rng.uniform(0.3, 1, len(users))
        A[i, : len(users)] = np.sqrt(W[i, users])[:, None] * H[users]
        # Rows are known up to a rotation: RA has the Fisher of A.
        A[i] = np.linalg.qr(rng.standard_normal((ROWS, ROWS)))[0] @ A[i]
    energy = np.square(A).sum((1, 2), keepdims=True)
    A = np.sqrt(1 - noise) * A + np.sqrt(noise * energy / (ROWS * FEATURES)) * rng.standard_normal(A.shape)
    norms = np.linalg.norm(A @ A.transpose(0, 2, 1), axis=(1, 2))
    return Planted(A / np.sqrt(norms)[:, None, None], H, (1 - noise) * W / norms[:, None])


# ------------------------------------------------------------------------------------------------------------------------ methods


def ours(planted: Planted, seed: int) -> Found:
    found = nb.NPEFF(COMPONENTS, n_init=STARTS, random_state=seed).fit(planted.A)
    return found.components_, found.coefficients_


def paper(planted: Planted, seed: int) -> Found:
    def fit(rate: float, seed: int) -> nb.NPEFF | None:
        options = {"iterations": 1000, "h_only": 100, "learning_rate": rate}
        try:
            return nb.NPEFF(COMPONENTS, solver="multiplicative", n_init=1, random_state=seed, solver_options=options).fit(planted.A)
        except FloatingPointError:  # this rate diverges
            return None

    def best(runs: Iterator[nb.NPEFF | None]) -> nb.NPEFF:
        return min((run for run in runs if run is not None), key=lambda run: run.reconstruction_err_)

    first = {rate: fit(rate, STARTS * seed) for rate in RATES}
    rate = min((rate for rate in RATES if first[rate] is not None), key=lambda rate: first[rate].reconstruction_err_)
    found = best(first[rate] if start == 0 else fit(rate, STARTS * seed + start) for start in range(STARTS))
    return found.components_, found.coefficients_


def k_means(planted: Planted, seed: int) -> Found:
    directions = np.linalg.svd(planted.A, full_matrices=False)[2][:, 0]
    along = directions @ planted.H.T
    largest = np.abs(along).argmax(1)[:, None]
    directions = directions * np.sign(np.take_along_axis(along, largest, 1))
    clusters = KMeans(COMPONENTS, n_init=10, random_state=seed).fit(directions)
    H = clusters.cluster_centers_ / np.linalg.norm(clusters.cluster_centers_, axis=1, keepdims=True)
    return H, energies(planted.A, H) * (clusters.labels_[:, None] == np.arange(COMPONENTS))


def pca(planted: Planted, seed: int) -> Found:
    H = np.linalg.svd(planted.A.reshape(-1, FEATURES), full_matrices=False)[2][:COMPONENTS]
    return H, energies(planted.A, H)


def energies(A: np.ndarray, H: np.ndarray) -> np.ndarray:
    """h_jᵀF̂_ih_j, (n, r)."""
    return np.square(A @ H.T).sum(1)


METHODS: dict[str, Callable[[Planted, int], Found]] = {"NPEFF": ours, "paper's solver": paper, "k-means on gradients": k_means, "PCA": pca}


# ------------------------------------------------------------------------------------------------------------------------ table


def recovery(planted: Planted, found: Found) -> tuple[float, float]:
    """Mean |cos| of the best pairs, and the mean correlation of their coefficients (0 where one is constant)."""
    H, W = found
    cosines = np.abs(planted.H @ H.T)
    one, other = linear_sum_assignment(cosines, maximize=True)
    both = [(planted.W[:, a], W[:, b]) for a, b in zip(one, other, strict=True)]
    correlations = [np.corrcoef(a, b)[0, 1] if a.std() and b.std() else 0.0 for a, b in both]
    return float(cosines[one, other].mean()), float(np.mean(correlations))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    print(f"| components an example | cosine between them | noise | {' | '.join(METHODS)} |")
    print("|---" * (3 + len(METHODS)) + "|")
    for most in (1, 3):
        for cosine in (0.0, 0.5):
            for noise in NOISES:
                problems = [plant(most, cosine, noise, seed) for seed in seeds]
                cells = []
                for method in METHODS.values():
                    scores = [recovery(planted, method(planted, seed)) for planted, seed in zip(problems, seeds, strict=True)]
                    cells.append(" / ".join(f"{statistics.median(column):.2f}" for column in zip(*scores, strict=True)))
                print(f"| {'2 or 3' if most > 1 else '1'} | {cosine:g} | {noise:.0%} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
