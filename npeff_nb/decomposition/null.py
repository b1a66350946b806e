"""What chance would explain: Fishers that share nothing but what is kept on purpose, as a yardstick for explained variance.

Every example keeps its own spectrum, A_iA_iᵀ; where it points is drawn anew.  Two kinds of chance, by what else is kept:

``"average"`` keeps the average of the unit-norm Fishers, F̄ = (1/n) Σ_i F̂_i, too: directions come from one cloud as wide along every principal axis
as the real ones are.  What real Fishers explain beyond it is owed to directions that come back, not to a few axes that all examples favour.  Some
axes of F̄ are wide by chance alone; what n examples leave uncertain is taken out by shrinkage (Ledoit and Wolf 2004), or noise would beat itself.
``"spectra"`` keeps the spectra alone: directions are uniform.  Nearly everything beats it, so it says little.

With A_i = U_i S_i V_iᵀ (largest singular value first) the null is U_i S_i R_i, where R_i has orthonormal rows: Gaussian vectors N(0, Σ), made
orthonormal one after the other.  So the leading direction has the angular central Gaussian distribution (Tyler 1987), and the Gram of the rows is
exact whatever Σ is.  Uniform is Σ = 1.  For ``"average"`` Σ has the principal axes of F̄, and its variances are those at which the expected energy
along each axis is that of F̄ (to scale them in proportion alone would flatten F̄, since every direction has length one).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from npeff_nb._progress import Bar, Progress
from npeff_nb.decomposition.given import as_rows, given
from npeff_nb.decomposition.held_out import Groups, check_carried, check_count, check_settings, examples_of, explained, generator, seed, splits
from npeff_nb.decomposition.rows import PART, Gram, Stored
from npeff_nb.fisher.pefs import PEFs

Keep = Literal["average", "spectra"]
CALIBRATED = 2048
"""Examples by which the variances of the cloud are found: what is drawn by chance there stays as an error of a few per cent in each."""
RANK_CUT = 1e-12
"""Principal axes with less than this share of the first one's energy are rounding."""
MISSED, ROUNDS = 1e-3, 50
"""The variances are found when so small a share of the energy lies along wrong axes: three to five rounds, more with few axes."""


def null_fishers(X: Any, *, keep: Keep = "average", random_state: Any = None) -> Any:
    """Fishers with the spectra of ``X`` and directions of their own, drawn at random.

    Parameters
    ----------
    X : as for :meth:`NPEFF.fit <npeff_nb.NPEFF.fit>`.
    keep : ``"average"``, also the average of the unit-norm Fishers, in expectation and as far as it is known; ``"spectra"``, nothing else.
    random_state : seed; equal seeds give equal results.

    Returns
    -------
    What ``X`` is: PEFs with the same norms, logits and tables (``facts["null"]`` says what they are, the model is not part of them), an array of the
    same shape and precision, or a list of rows.  Held in memory.

    Raises
    ------
    ValueError
        ``X`` is no Fishers, or has values that are not finite.
    """
    if keep not in ("average", "spectra"):
        raise ValueError(f"keep={keep!r} is not known; choose 'average' or 'spectra'")
    rng = generator(random_state)
    raw = as_rows(X.factors if isinstance(X, PEFs) else X)
    found = given(X)
    rows, k, d = found.rows, found.rows.k, found.rows.d
    axes, variances = (None, d) if keep == "spectra" else _cloud(rows, rng)
    new = np.zeros(raw.shape, dtype=raw.dtype)
    for some in _parts(rows):
        A = _unit(rows, some)
        U, S = _spectra(A, min(k, d if axes is None else len(axes)))
        R = _directions(rng.standard_normal((len(A), S.shape[1], d if axes is None else len(axes))), variances)
        made = (U * S[:, None]) @ (R if axes is None else R @ axes)
        scales = found.scales[some, None, None]
        new[some] = np.divide(made.numpy(), scales, out=np.zeros(made.shape), where=scales > 0)
        new[some][~raw[some].any(2)] = 0  # not only nearly
    return _like(X, new, keep)


def explained_by_chance(
    X: Any,
    n_components: int,
    *,
    keep: Keep = "average",
    draws: int = 1,
    held_out: float = 0.2,
    groups: Groups = None,
    random_state: Any = 0,
    n_init: int = 2,
    progress: bool | Progress = True,
    **npeff_settings: Any,
) -> pd.DataFrame:
    """How much ``n_components`` components explain of :func:`null_fishers`, one row a draw.

    Parameters
    ----------
    X : as for :meth:`NPEFF.fit <npeff_nb.NPEFF.fit>`.
    keep : what the null keeps beside the spectra.
    draws : so many nulls, each with a split of its own.
    held_out, groups : as for :func:`~npeff_nb.decomposition.components_count.choose_n_components`.
    npeff_settings : of :class:`~npeff_nb.NPEFF`.

    Returns
    -------
    DataFrame with ``draw``, ``training`` and ``held_out``: shares explained of the examples fitted on, and of the others.
    """
    rng = generator(random_state)
    settings = check_settings({"n_init": n_init} | npeff_settings)
    r, X = check_count("n_components", n_components), examples_of(X)
    every = splits(X, held_out, check_count("draws", draws), groups, rng)
    check_carried(X, r, every)
    rows = []
    with Bar(progress, draws, "Fishers by chance", "fit") as bar:
        for number, (training, out) in enumerate(every):
            null = null_fishers(X, keep=keep, random_state=seed(rng))
            found = explained(null[training], null[out], r, seed(rng), settings)
            rows.append({"draw": number, "training": found.training, "held_out": found.held_out})
            bar.add(1)
    return pd.DataFrame(rows)


def _like(X: Any, new: np.ndarray, keep: Keep) -> Any:
    if isinstance(X, PEFs):
        # What was kept of single parameters belongs to the real Fishers.
        facts = X.facts | {"null": {"keeps": keep}}
        return replace(X, factors=new, facts=facts, subject=None, sparse=None, diagonal=None, diagonals=None)
    if isinstance(X, (list, tuple)) and np.ndim(X[0]) == 2:
        return [rows[: len(x)] for rows, x in zip(new, X, strict=True)]
    new = new[:, 0] if np.ndim(X) == 2 else new
    return torch.from_numpy(new) if torch.is_tensor(X) else new


def _parts(rows: Stored) -> list[slice]:
    step = max(1, PART // (8 * rows.k * rows.d))
    return [slice(at, at + step) for at in range(0, rows.n, step)]


def _unit(rows: Stored, some: slice) -> Tensor:
    """Rows of unit-norm Fishers, (m, k, d) float64."""
    found = rows.take(some)
    return found.rows.double() * found.scales[:, None, None]


def _spectra(A: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """U (n, k, m) and singular values S (n, m), falling, of rows A (n, k, d)."""
    squares, U = torch.linalg.eigh(A @ A.transpose(1, 2))
    return U.flip(2)[:, :, :m], squares.flip(1)[:, :m].clamp_min(0).sqrt()


def _directions(Z: np.ndarray, variances: Tensor | int) -> Tensor:
    """R (n, m, q): standard normal Z (n, m, q), stretched along the axes and made orthonormal row after row; the first keeps its direction."""
    G = torch.from_numpy(Z)
    G = G if isinstance(variances, int) else G * variances.sqrt()
    return torch.linalg.qr(G.transpose(1, 2)).Q.transpose(1, 2)


def _cloud(rows: Stored, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Principal axes (q, d) of the average Fisher, and the variances (q,) along them at which the null has the same average."""
    axes, energies = _axes(rows)
    wanted = _shrunk(energies / rows.n, float(rows.energies.mean()), rows.n)
    S = torch.cat([_spectra(_unit(rows, some), min(rows.k, len(axes)))[1] for some in _parts(rows)])
    S = S[np.sort(rng.choice(rows.n, min(rows.n, CALIBRATED), replace=False))]
    Z = rng.standard_normal((*S.shape, len(axes)))
    wanted = wanted / wanted.sum()
    variances = wanted
    for _ in range(ROUNDS):
        there = torch.einsum("nm,nmq->q", S.square(), _directions(Z, variances).square())
        there = (there / there.sum()).clamp_min(torch.finfo(there.dtype).tiny)
        if float((there - wanted).abs().sum()) <= 2 * MISSED:
            break
        variances = variances * wanted / there
        variances = variances / variances.sum()
    return axes, variances


def _shrunk(energies: Tensor, of_each: float, n: int) -> Tensor:
    """Energies (q,) of the average F̄ along its axes, moved towards their mean by what n examples leave uncertain (Ledoit and Wolf 2004).

    The share is (1/n) mean_i ‖F̂_i − F̄‖² / ‖F̄ − mean energy · 1‖²; ``of_each`` is the mean of ‖F̂_i‖².
    """
    away = float((energies - energies.mean()).square().sum())
    noise = max(0.0, of_each - float(energies.square().sum())) / n
    share = noise / max(noise, away) if noise > 0 else 0.0
    return (1 - share) * energies + share * energies.mean()


def _axes(rows: Stored) -> tuple[Tensor, Tensor]:
    """Principal axes (q, d) of Σ_i F̂_i and the energy (q,) along each, by the smaller of two matrices."""
    if rows.n * rows.k < rows.d:
        energies, V = torch.linalg.eigh(Gram.of(rows).K)
        real = energies > RANK_CUT * energies[-1]
        found = rows.gather((V[:, real] / energies[real].sqrt()).view(rows.n, rows.k, -1))
        return torch.linalg.qr(found.T).Q.T, energies[real]  # dividing by small energies magnified the rounding
    summed = torch.zeros(rows.d, rows.d, dtype=torch.float64)
    for some in _parts(rows):
        A = _unit(rows, some).flatten(0, 1)
        summed.addmm_(A.T, A)
    energies, V = torch.linalg.eigh(summed)
    real = energies > RANK_CUT * energies[-1]
    return V[:, real].T, energies[real]
