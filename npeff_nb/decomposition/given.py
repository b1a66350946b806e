"""What people hand over, as rows: PEFs, factor rows, or one row an example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from npeff_nb.decomposition.rows import Stored
from npeff_nb.fisher.pefs import PEFs

_SMALL, _LARGE = 1e-6, 1e6
"""Between these sizes of rows float32 holds the products that norms are made of."""
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
    scales : (n,) what the rows were multiplied with, 1/√‖F_i‖; zero for a zero Fisher.
    """

    rows: Stored
    total: float
    carried: int
    present: np.ndarray
    pefs: PEFs | None
    scales: np.ndarray


def given(X: Any, weights: Any = None, device: Any = None) -> Given:
    """``X`` as rows of unit-norm Fishers.

    Raises
    ------
    ValueError
        A shape that fits nothing, numbers that are not finite, weights that are negative or not one an example.
    """
    pefs = X if isinstance(X, PEFs) else None
    raw = as_rows(X.factors if isinstance(X, PEFs) else X)
    n = len(raw)
    weights = None if weights is None else _weights(weights, n)
    device = _device(device)
    sizes, carried = np.zeros(n), 0  # √‖F_i‖ of what the rows carry: as large as a row, where ‖F_i‖ is as its square
    for part, A in Stored(raw, device=device).parts():
        grams = (A @ A.transpose(1, 2)).double()
        lengths, found = grams.diagonal(dim1=1, dim2=2).clone(), grams.square().sum((1, 2)).sqrt().sqrt()
        # Fourth powers of small or large numbers are none: such examples are looked at again, by their largest entry.
        for i in (~((found > _SMALL) & (found < _LARGE))).nonzero().flatten().tolist():
            height = float(A[i].abs().max())
            if not np.isfinite(height):
                raise ValueError(f"the factor rows of example {(part.start or 0) + i} are not finite (NaN or infinity): drop such examples first")
            # What is below the smallest normal number has lost its digits, and its inverse would be infinite: it counts as zero.
            real = A[i].abs().amax(1, keepdim=True) >= torch.finfo(A.dtype).tiny
            rows = torch.where(real, A[i].double() / (height or 1.0), 0.0)
            lengths[i], found[i] = rows.square().sum(1), (rows @ rows.T).norm().sqrt() * height
        sizes[part] = found.cpu().numpy()
        carried += int((lengths > 0).sum())
    del A  # a copy of all rows, where there are few
    # Norms of the full Fishers, where they are known: the features may have missed a part.
    whole = sizes if pefs is None else np.sqrt(pefs.norms.astype(np.float64))
    present = whole > 0
    scales = np.divide(1.0, whole, out=np.zeros(n), where=present)
    total = float(present.sum() if weights is None else weights[present].sum())
    if present.any() and total == 0:
        raise ValueError("sample_weight is zero for all Fishers that are not: there is nothing to decompose")
    return Given(Stored(raw, scales, weights, device, energies=(sizes * scales) ** 4), total, carried, present, pefs, scales)


def as_rows(X: Any) -> np.ndarray:
    """An array of factor rows (n, k, d) from whatever holds them."""
    if isinstance(X, (list, tuple)):
        X = [as_array(x) for x in X]
        X = _padded(X) if len({x.shape for x in X}) > 1 else X
    rows = as_array(X)
    shape = rows.shape
    rows = rows[:, None] if rows.ndim == 2 else rows
    if rows.ndim != 3 or 0 in shape:
        raise ValueError(f"X has shape {shape}; {_SHAPES}")
    return rows if rows.dtype in (np.float32, np.float64) else rows.astype(np.float64)


def as_array(x: Any) -> np.ndarray:
    """An array from a tensor of any device and precision, or from what numpy takes."""
    if torch.is_tensor(x):
        x = x.detach().cpu()
        x = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    x = np.asarray(x)
    if np.iscomplexobj(x):
        raise ValueError("X has complex numbers; factor rows are real")
    return x


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    """Fishers of different rank: zero rows add nothing to a Fisher."""
    if any(x.ndim != 2 for x in rows):
        raise ValueError(f"X is a list with the shapes {', '.join(sorted({str(x.shape) for x in rows}))}; {_SHAPES}")
    widths = sorted({x.shape[1] for x in rows})
    if len(widths) > 1:
        raise ValueError(f"X is a list of rows with {', '.join(map(str, widths))} features; all must have the same")
    padded = np.zeros((len(rows), max(len(x) for x in rows), widths[0]), dtype=np.result_type(*rows, np.float32))
    for to, x in zip(padded, rows, strict=True):
        to[: len(x)] = x
    return padded


def _weights(weights: Any, n: int) -> np.ndarray:
    found = as_array(weights).astype(np.float64)
    if found.shape != (n,):
        raise ValueError(f"sample_weight has shape {found.shape}; expected one number for each of the {n} examples")
    if not np.isfinite(found).all() or (found < 0).any() or not found.any():
        raise ValueError("sample_weight must be finite, not negative, and not zero throughout")
    return found


def _device(device: Any) -> torch.device:
    """The device, or an error where there is none such: the setting may come from a file that was saved on another machine."""
    try:
        return torch.empty(0, device=device or "cpu").device
    except (RuntimeError, AssertionError, TypeError) as error:  # torch raises any of them
        raise ValueError(f"device={device!r} cannot be used here ({str(error).splitlines()[0]}); device=None is the processor") from error
