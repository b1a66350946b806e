"""Rows of unit-norm Fishers for the solvers' tests: planted ones, and those on which solvers break."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import twins

from npeff_nb import _files
from npeff_nb.decomposition import rows as rows_module
from npeff_nb.decomposition.rows import Gram

KINDS = ("random", "duplicates", "all equal", "zero rows", "zero examples", "low rank", "one direction", "wide range", "orthogonal")
SHAPES = [(14, 1, 7, 3), (14, 2, 7, 1), (14, 3, 7, 5), (4, 2, 7, 6), (14, 2, 3, 9), (1, 1, 5, 1), (9, 1, 4, 4), (3, 1, 6, 5)]
"""n, k, d, r: also one component, as many as features, more than features, than examples and than the rank, and a single example."""


def unit(A: np.ndarray) -> np.ndarray:
    """Rows of unit-norm Fishers; a zero Fisher stays zero."""
    norms = np.array([twins.frobenius(a) for a in A])
    return A / np.sqrt(np.where(norms > 0, norms, 1))[:, None, None]


def problem(kind: str, seed: int, n: int = 14, k: int = 2, d: int = 7) -> np.ndarray:
    """(n, k, d) rows of one of the :data:`KINDS`; never all zero."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, k, d))
    if kind == "duplicates":
        A[n // 2 :] = A[: n - n // 2]
    elif kind == "all equal":
        A[:] = A[0]
    elif kind == "zero rows":
        A[:, 1:] = 0
    elif kind == "zero examples":
        A[1::3] = 0
    elif kind == "low rank":
        A = A[:, :, :2] @ rng.standard_normal((2, d))
    elif kind == "one direction":
        A = A[:, :, :1] * rng.standard_normal(d)
    elif kind == "wide range":
        A *= np.logspace(0, -6, d)
    elif kind == "orthogonal":
        A = np.zeros((n, k, d))
        A[np.arange(n), 0, np.arange(n) % d] = 1
    return unit(A)


def planted(n: int, k: int, d: int, r: int, seed: int, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, k, d) along r unit directions (r, d), one of them for each row, with noise of ``noise`` times a direction's length."""
    rng = np.random.default_rng(seed)
    H = rng.standard_normal((r, d))
    H /= np.linalg.norm(H, axis=1, keepdims=True)
    A = H[rng.integers(r, size=(n, k))] * rng.uniform(0.3, 1, size=(n, k, 1))
    return unit(A + noise * rng.standard_normal(A.shape) / np.sqrt(d)), H


def weights_of(n: int, seed: int = 0) -> np.ndarray:
    """(n,) whole numbers from 0 to 3, the first not zero."""
    found = np.random.default_rng(seed).integers(0, 4, n)
    found[0] = 2
    return found


def point(n: int, r: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Any W (n, r) ≥ 0 and unit H (r, d)."""
    rng = np.random.default_rng(seed)
    H = rng.standard_normal((r, d))
    return torch.from_numpy(rng.random((n, r))), torch.from_numpy(H / np.linalg.norm(H, axis=1, keepdims=True))


def weighted_loss(A: np.ndarray, W, H, weights: np.ndarray | None = None) -> float:
    """Σ_i ω_i ‖F̂_i − Σ_j W_ij h_j h_jᵀ‖²_F with every matrix written out."""
    weights = np.ones(len(A)) if weights is None else weights
    return sum(float(o) * twins.dense_loss(a[None], w[None], np.asarray(H)) for o, a, w in zip(weights, A, np.asarray(W), strict=True))


def in_parts(monkeypatch: pytest.MonkeyPatch, examples: int, A: np.ndarray) -> None:
    """From now on no rows are held, and those like ``A`` are read ``examples`` at a time."""
    monkeypatch.setattr(rows_module, "CONVERTED_UP_TO", 0)
    monkeypatch.setattr(rows_module, "PART", examples * A[0].nbytes)


def mapped(path: Path, A: np.ndarray) -> np.ndarray:
    """``A`` on disk, mapped for reading as loaded Fishers are."""
    _files.allocate(path, A.shape, A.dtype)[:] = A
    return _files.map_array(path)


def features_of(rows: Gram, A: np.ndarray, H: torch.Tensor) -> np.ndarray:
    """(r, d) in features, from weights on the rows ``A``."""
    assert H.shape[1] == len(rows.K)
    return H.numpy() @ A.reshape(len(rows.K), -1)
