"""D-NPEFF against other non-negative matrix factorisations: time to within 1 % of the best loss that any of them reaches."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
from measuring import Row, row
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

import npeff_nb as nb

SEEDS = range(3)
BUDGETS = (5, 10, 20, 40, 80, 160, 320)
"""Iterations that each is given, one run each: others do not say how their loss falls on the way, so the first budget that suffices counts."""

Fit = Callable[[Any, int, int, int], np.ndarray]
"""(X, r, seed, iterations) -> (W, H) of a run."""


def rows() -> dict[str, Row]:
    return against("dense", planted(2000, 20_000, 32)) | against("sparse, 2 % filled", planted(2000, 20_000, 32, filled=0.02))


def planted(n: int, m: int, r: int, filled: float = 1.0) -> Any:
    """(n, m) float32 rows of unit length: three of r non-negative components each, with noise of a quarter of their size."""
    rng = np.random.default_rng(7)
    H = rng.gamma(0.3, size=(r, m)).astype(np.float32)
    W = np.zeros((n, r), dtype=np.float32)
    for w in W:
        w[rng.choice(r, 3, replace=False)] = rng.random(3)
    X = W @ H * (1 + 0.25 * rng.standard_normal((n, m), dtype=np.float32)).clip(0)
    if filled < 1:  # the largest entries of each row, as diagonals are kept
        cut = np.quantile(X, 1 - filled, axis=1, keepdims=True)
        X = np.where(cut <= X, X, 0)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return scipy.sparse.csr_array(X) if filled < 1 else X


def against(name: str, X: Any, r: int = 32) -> dict[str, Row]:
    found: dict[str, list[tuple[float, float]]] = {}  # (seconds, loss), rising
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # they are told to stop early
        for way, fit in others().items():
            try:
                found[way] = [_timed(fit, X, r, 0, budget) for budget in BUDGETS]
            except (NotImplementedError, RuntimeError, TypeError):  # torchnmf takes no sparse rows
                continue
        ours = [[_timed(fit_ours, X, r, seed, budget) for budget in BUDGETS[:5]] for seed in SEEDS]
    best = min([loss for trace in [*ours, *found.values()] for _, loss in trace])
    mine = statistics.median(_first(trace, best) for trace in ours)
    said = f"D-NPEFF, n=2 000, m=20 000, r={r}, {name}: seconds to within 1 % of the best loss, ours {mine:.3g}"
    reached = {way: _first(trace, best) for way, trace in found.items()}
    rows = {
        f"D-NPEFF, {name}: {way} / ours": row(min(at, found[way][-1][0]) / mine, None, said + ("" if np.isfinite(at) else f"; not in {BUDGETS[-1]}"))
        for way, at in reached.items()
    }
    quickest = min(min(at, found[way][-1][0]) for way, at in reached.items())
    return rows | {f"D-NPEFF, {name}: best of the others / ours": row(quickest / mine, 2, said)}


def fit_ours(X: Any, r: int, seed: int, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    found = nb.DNPEFF(r, n_init=1, tol=0, max_iter=iterations, random_state=seed).fit(X)
    H = np.zeros((r, X.shape[1]))
    H[:, found.kept_columns_] = found.components_
    return found.coefficients_, H


def others() -> dict[str, Fit]:
    def scikit(solver: str, init: str) -> Fit:
        def fit(X: Any, r: int, seed: int, iterations: int) -> tuple[np.ndarray, np.ndarray]:
            nmf = NMF(r, init=init, solver=solver, tol=0, max_iter=iterations, random_state=seed)
            return nmf.fit_transform(X), nmf.components_

        return fit

    ways = {f"scikit-learn {solver}, {init}": scikit(solver, init) for solver, init in (("mu", "nndsvda"), ("cd", "random"), ("cd", "nndsvd"))}
    try:
        from torchnmf import nmf as torchnmf
    except ImportError:
        return ways

    def torch_fit(X: Any, r: int, seed: int, iterations: int) -> tuple[np.ndarray, np.ndarray]:
        import torch

        if scipy.sparse.issparse(X):
            raise NotImplementedError
        torch.manual_seed(seed)
        found = torchnmf.NMF(X.shape, rank=r)
        found.fit(torch.from_numpy(X), beta=2, tol=0, max_iter=iterations)
        return found.H.detach().numpy(), found.W.detach().numpy().T

    return ways | {"torchnmf": torch_fit}


def _timed(fit: Fit, X: Any, r: int, seed: int, iterations: int) -> tuple[float, float]:
    begin = time.perf_counter()
    W, H = fit(X, r, seed, iterations)
    spent = time.perf_counter() - begin
    W, H = W.astype(np.float64), H.astype(np.float64)
    square = float((X.multiply(X) if scipy.sparse.issparse(X) else X**2).sum())
    return spent, square - 2 * float(((X @ H.T) * W).sum()) + float(((W.T @ W) * (H @ H.T)).sum())


def _first(trace: list[tuple[float, float]], best: float) -> float:
    return next((seconds for seconds, loss in trace if loss <= 1.01 * best), np.inf)
