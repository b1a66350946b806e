"""What people hand over, as rows: PEFs, factor rows, or one row an example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from npeff_nb.decomposition.rows import Stored
from npeff_nb.fisher.pefs import PEFs

_SHAPES = "expected PEFs, factor rows (n, k, d), a list of rows (k_i, d), or one row an example (n, d), none of them empty"


@dataclass(frozen=True)
class Given:
    """Rows of unit-norm Fishers with what a fit needs to know of them.

    Attributes
    ----------
    rows : the rows, scaled to unit-norm Fishers.
    total : Σ_i ω_i‖F̂_i‖² of all there is to explain: ω_i for every non-zero Fisher, whatever part of it the features kept.
    carried : factor rows that are not zero.
    present : (n,) Fishers that are not zero.
    pefs : the PEFs, where it were PEFs.
    """

    rows: Stored
    total: float
    carried: int
    present: np.ndarray
    pefs: PEFs | None


def given(X: Any, weights: Any = None, device: Any = None) -> Given:
    """``X`` as rows of unit-norm Fishers.

    Raises
    ------
    ValueError
        A shape that fits nothing, numbers that are not finite, weights that are negative or not one an example.
    """
    pefs = X if isinstance(X, PEFs) else None
    raw = X.factors if isinstance(X, PEFs) else as_rows(X)
    n = len(raw)
    weights = None if weights is None else _weights(weights, n)
    device = torch.device(device or "cpu")
    scales, carried = np.zeros(n), 0
    for part, A in Stored(raw, device=device).parts():
        heights = A.abs().amax(2)
        finite = heights.isfinite().all(1)
        if not finite.all():
            bad = (part.start or 0) + int((~finite).nonzero()[0])
            raise ValueError(f"the factor rows of example {bad} are not finite (NaN or infinity): drop such examples first")
        carried += int((heights > 0).sum())
        # By its largest entry first: the fourth power of a small or a large number is no number.
        height = heights.amax(1).double()
        A = A / height.clamp_min(torch.finfo(A.dtype).tiny)[:, None, None]
        root = (A @ A.transpose(1, 2)).double().square().sum((1, 2)).sqrt().sqrt() * height
        scales[part] = torch.where(height > 0, 1 / root, 0.0).cpu().numpy()
    if pefs is not None:  # norms of the full Fishers, of which the features may have missed a part
        norms = pefs.norms.astype(np.float64)
        scales = np.sqrt(np.divide(1.0, norms, out=np.zeros(n), where=norms > 0))
    counts = np.ones(n) if weights is None else weights
    return Given(Stored(raw, scales, weights, device), float(counts[scales > 0].sum()), carried, scales > 0, pefs)


def as_rows(X: Any) -> np.ndarray:
    """An array of factor rows (n, k, d) from whatever holds them."""
    if torch.is_tensor(X):
        X = X.detach().cpu().numpy()
    if isinstance(X, (list, tuple)) and X and all(np.ndim(x) == 2 for x in X) and len({np.shape(x)[0] for x in X}) > 1:
        return _padded([np.asarray(x) for x in X])
    rows = np.asarray(X)
    rows = rows[:, None] if rows.ndim == 2 else rows
    if rows.ndim != 3 or 0 in rows.shape:
        raise ValueError(f"X has shape {np.shape(X)}; {_SHAPES}")
    if not np.issubdtype(rows.dtype, np.floating) or rows.dtype.itemsize < 4:
        rows = rows.astype(np.float64)
    return rows


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    """Fishers of different rank: zero rows add nothing to a Fisher."""
    widths = sorted({x.shape[1] for x in rows})
    if len(widths) > 1:
        raise ValueError(f"X is a list of rows with {', '.join(map(str, widths))} features; all must have the same")
    padded = np.zeros((len(rows), max(len(x) for x in rows), widths[0]), dtype=np.result_type(*rows, np.float32))
    for to, x in zip(padded, rows, strict=True):
        to[: len(x)] = x
    return padded


def _weights(weights: Any, n: int) -> np.ndarray:
    found = np.asarray(weights, dtype=np.float64)
    if found.shape != (n,):
        raise ValueError(f"sample_weight has shape {found.shape}; expected one number for each of the {n} examples")
    if not np.isfinite(found).all() or (found < 0).any() or not found.any():
        raise ValueError("sample_weight must be finite, not negative, and not zero throughout")
    return found
