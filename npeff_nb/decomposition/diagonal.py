"""D-NPEFF: the factorisation for diagonal per-example Fishers, a non-negative matrix factorisation over the model's own parameters.

Stands beside :mod:`~npeff_nb.decomposition.factorisation`: where that one asks for rank-1 directions, this one asks which sets of parameters work
together.  With x_i = d_i/‖d_i‖₂, the unit-norm diagonal of example i's Fisher (≥ 0, p parameters):

    L(W, H) = Σ_i ‖x_i − Σ_j W_ij h_j‖²  = ‖X‖² − 2⟨XHᵀ, W⟩ + ⟨WᵀW, HHᵀ⟩,      W ≥ 0 (n, r),  H ≥ 0 (r, m).

Sources: Matena and Raffel, arXiv 2310.04649; HALS with several inner sweeps: Gillis and Glineur, Neural Computation 24(4), 2012.  A component may not
leave the parameters it is made of, so nothing can be reduced beforehand as for NPEFF.  But given W every column of H stands alone: an iteration reads
X once, by slabs of columns that stay in the cache, and nothing as large as X is made.  NumPy and SciPy only.

Shapes: n examples, p parameters, m of them in use by any example, r components.  The pure functions take ``Xt`` = Xᵀ (m, n): a transposed view, or a
SciPy CSR array, whose rows (parameters) are then quick to read; and ``Wt`` = Wᵀ (r, n), so that both factors have long rows.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from scipy.optimize import nnls
from scipy.sparse import csr_array, issparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from npeff_nb import _files
from npeff_nb.decomposition.factorisation import Factorisation, generator_of
from npeff_nb.fisher import pefs as _pefs
from npeff_nb.fisher.features import FeatureMap
from npeff_nb.fisher.pefs import PEFs
from npeff_nb.fisher.sparse import SparseDiagonals

KIND = "D-NPEFF decomposition"
SOLVERS = ("hals", "multiplicative")

SLAB = 2048
"""Columns at a time, and examples: 32 components of them are 256 KB, which a core's own cache holds."""
SWEEPS = 4
"""Passes over the components in each half-step: beside the products with X they are nearly free, and they halve the iterations."""
FIRST_SWEEPS = 10
"""The same where a factor starts from zero."""
COARSE_SHARE, COARSE_COLUMNS = 1 / 20, 32
"""A start first looks at this share of the columns, and at so many for a component at least."""
COARSE_TOL, COARSE_ITERATIONS = 1e-4, 100
"""Where that look ends: its iterations cost a twentieth and get it over the plateaus that come first."""
MULTIPLICATIVE_EPS = 1e-8
"""Of the reference implementation, which has no option for it."""
DEAD = 1e-12
"""A component that carries less than this share of all is dead."""
KKT = 1e-8
"""Coefficients end at this residual of the optimality conditions, for unit-norm examples and components."""
RIDGE = 1e-10
"""Beside eigenvalues of the order of 1."""

_BLOCK = 2**23
"""Numbers of X in float64 at a time: 64 MB."""

Columns = Any
"""An array or a CSR array; SciPy has no types of its own."""


@dataclass(frozen=True)
class Solution:
    """Unit-norm components H (r, m), exact coefficients W (n, r) for them; B = HXᵀ (r, n) and G = HHᵀ (r, r), in float64; the loss at the start,
    after each iteration, and after the last fit of W.
    """

    W: np.ndarray
    H: np.ndarray
    B: np.ndarray
    G: np.ndarray
    losses: list[float]
    converged: bool


# ---------------------------------------------------------------------------------------------------------------------------- pure functions


def loss(B: np.ndarray, G: np.ndarray, Wt: np.ndarray, total: float) -> float:
    """L(W, H) from B = HXᵀ (r, n), G = HHᵀ and ``total``, the squared norm of all there is to explain."""
    return float(total - 2 * (B * Wt).sum() + ((Wt @ Wt.T) * G).sum())


def products(Xt: Columns, H: np.ndarray | csr_array) -> tuple[np.ndarray, np.ndarray]:
    """(HXᵀ, HHᵀ) in float64, slab by slab."""
    if issparse(H):
        H = H.astype(np.float64)
        B, G = H @ Xt, H @ H.T
        return (B.toarray() if issparse(B) else B), G.toarray()
    B, G = np.zeros((len(H), Xt.shape[1])), np.zeros((len(H), len(H)))
    for at, part in _slabs(Xt):
        h = H[:, at].astype(np.float64)
        B += (part.T.astype(np.float64) @ np.ascontiguousarray(h.T)).T
        G += h @ h.T
    return B, G


def descend(H: np.ndarray, C: np.ndarray, V: np.ndarray, sweeps: int = SWEEPS) -> None:
    """Cyclic exact coordinate descent on ‖X − WH‖² over H ≥ 0, in place: h_j ← max(0, (C_j − Σ_{k≠j} V_jk h_k)/V_jj), C = WᵀX, V = WᵀW.

    Never raises the loss.  The loss is the same with the factors exchanged: ``descend(Wt, HXᵀ, HHᵀ)`` is the step for W.
    """
    used = np.flatnonzero(V.diagonal() > 0)
    scale = np.zeros(len(V))
    scale[used] = 1 / V.diagonal()[used]
    M = V * scale[:, None]
    np.fill_diagonal(M, 0)
    M = M.astype(H.dtype)
    for at in range(0, H.shape[1], SLAB):
        h, c = H[:, at : at + SLAB], np.ascontiguousarray(C[:, at : at + SLAB] * scale[:, None], dtype=H.dtype)
        row = np.empty(h.shape[1], H.dtype)
        for _ in range(sweeps):
            for j in used:
                np.matmul(M[j], h, out=row)
                np.subtract(c[j], row, out=row)
                np.maximum(row, 0, out=h[j])


def multiply(H: np.ndarray, C: np.ndarray, V: np.ndarray) -> None:
    """The paper's step, in place: H ← H ∘ C / (VH + 1e-8).  With the factors exchanged, the same for W."""
    H *= C / (V.astype(H.dtype) @ H + H.dtype.type(MULTIPLICATIVE_EPS))
    # Numbers on their way to zero never arrive; below the smallest normal one they only make the arithmetic slow.
    H[np.finfo(H.dtype).tiny > H] = 0


def fit_coefficients(B: np.ndarray, G: np.ndarray, W: np.ndarray | None = None) -> np.ndarray:
    """Non-negative least squares for given components, W (n, r), from HXᵀ (r, n) and HHᵀ; ``W`` is where to begin, by default zero.

    Every example ends by itself when its residual max |min(W, WG − XHᵀ)| is at most 1e-8: by coordinate descent, or, where nearly parallel components
    make that creep, by active sets.
    """
    W = np.zeros(B.shape[::-1]) if W is None else W.copy()
    left = np.arange(len(W))
    for _ in range(20):
        w = np.ascontiguousarray(W[left].T)
        descend(w, B[:, left], G, FIRST_SWEEPS)
        W[left] = w.T
        residual = np.abs(np.minimum(W[left], W[left] @ G - B[:, left].T)).max(1)
        left = left[residual > KKT]
        if not len(left):
            return W
    # With RᵀR = G the same problem is ‖Rw − R⁻ᵀb‖².  Parallel components make G singular; the ridge moves the residual by its own size at most.
    values, vectors = np.linalg.eigh(G)
    root = np.sqrt(values.clip(0) + RIDGE)
    R, targets = root[:, None] * vectors.T, (vectors.T @ B[:, left]) / root[:, None]
    for i, target in zip(left, targets.T, strict=True):
        W[i] = nnls(R, target, maxiter=100 * len(G))[0]
    return W


def start(Xt: Columns, r: int, rng: np.random.Generator) -> np.ndarray:
    """Where HALS begins, Wt (r, n): examples that are far apart as components, then a rough solution on a few of the columns.

    A twentieth of the columns knows nearly as much about W as all of them, and H follows from W in one pass.  They are drawn without repetition with
    their energy as weight: diagonal Fishers have most of it in few columns.
    """
    m = Xt.shape[0]
    few = max(int(COARSE_SHARE * m), COARSE_COLUMNS * r)
    coarse = 2 * few < m
    if coarse:
        energy = (Xt**2).sum(1) if issparse(Xt) else np.einsum("mn,mn->m", Xt, Xt)
        order = np.argpartition(rng.exponential(size=m) / np.maximum(energy, 1e-290, dtype=np.float64), few)
        Xt = Xt[np.sort(order[:few])]
    Wt = np.zeros((r, Xt.shape[1]))
    descend(Wt, *products(Xt, kmeans_pp(Xt, r, rng)), FIRST_SWEEPS)
    if coarse:
        H = np.zeros((r, few), dtype=Xt.dtype)
        total = float(_energies(Xt).sum())
        _alternate(Xt, Wt, H, partial(descend, sweeps=FIRST_SWEEPS), descend, total, COARSE_TOL, COARSE_ITERATIONS, None)
    return Wt


def kmeans_pp(Xt: Columns, r: int, rng: np.random.Generator) -> np.ndarray:
    """Components (r, m) that are examples far apart, drawn as in k-means++ (Arthur and Vassilvitskii 2007) with ‖x_i − x_k‖² as the distance.

    Before the first draw the distance is ‖x_i‖²: no example without energy is drawn.
    """
    energy = _energies(Xt)
    nearest = energy
    H = np.empty((r, Xt.shape[0]), dtype=Xt.dtype)
    for j in range(r):
        weights = nearest if nearest.any() else energy
        at = rng.choice(len(energy), p=weights / weights.sum())
        H[j] = _example(Xt, at)
        distance = energy - 2 * np.asarray(Xt.T @ H[j], dtype=np.float64) + energy[at]
        nearest = np.minimum(nearest, distance.clip(0))
        nearest[at] = 0
    return H


def hals(
    Xt: Columns, Wt: np.ndarray, total: float, *, tol: float = 1e-5, max_iter: int = 200, on_iteration: Callable[[int, float], None] | None = None
) -> Solution:
    """The default solver: exact coordinate descent on W, then on H, several inner sweeps each, from coefficients ``Wt`` (r, n).

    Ends when an iteration lowers the loss by less than ``tol`` of it, or by less than the rounding of ``total``.  The loss never rises.

    Parameters
    ----------
    Xt : (m, n) columns of unit-norm diagonals.
    Wt : (r, n) start, as from :func:`start`; not changed.
    total : the squared norm of what is to be explained; at least that of ``Xt``, more when entries were cut.
    """
    Wt, H = Wt.copy(), np.zeros((len(Wt), Xt.shape[0]), dtype=Xt.dtype)
    losses, converged = _alternate(Xt, Wt, H, partial(descend, sweeps=FIRST_SWEEPS), descend, total, tol, max_iter, on_iteration)
    return _finished(Xt, Wt, H, losses, converged, total)


def multiplicative(
    Xt: Columns,
    r: int,
    total: float,
    rng: np.random.Generator,
    *,
    tol: float = 1e-5,
    max_iter: int = 200,
    on_iteration: Callable[[int, float], None] | None = None,
) -> Solution:
    """The paper's solver, for comparison: W and H from U(0, 1], then W ← W∘XHᵀ/(WHHᵀ + ε) and H ← H∘WᵀX/(WᵀWH + ε) in turn, ε = 1e-8.

    The reference implementation has no tolerance: ``tol=0`` is the letter.  The last entry of the losses is after an exact fit of W, as for
    :func:`hals`.
    """
    Wt = 1 - rng.random((r, Xt.shape[1]))
    H = (1 - rng.random((r, Xt.shape[0]))).astype(Xt.dtype)
    losses, converged = _alternate(Xt, Wt, H, None, multiply, total, tol, max_iter, on_iteration)
    return _finished(Xt, Wt, H, losses, converged, total)


Step = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


def _alternate(
    Xt: Columns,
    Wt: np.ndarray,
    H: np.ndarray,
    first: Step | None,
    step: Step,
    total: float,
    tol: float,
    max_iter: int,
    on_iteration: Callable[[int, float], None] | None,
) -> tuple[list[float], bool]:
    """``first`` on H, then ``step`` on W and on H until the loss stands, all in place: the losses, and whether it did."""
    B, G = _pass(Xt, Wt, H, first)
    losses = [loss(B, G, Wt, total)]
    rounding = np.finfo(H.dtype).eps
    for iteration in range(max_iter):
        if step is not multiply:
            _revive(Xt, Wt, H, B, G)
        step(Wt, B, G)
        B, G = _pass(Xt, Wt, H, step)
        losses.append(loss(B, G, Wt, total))
        if on_iteration is not None:
            on_iteration(iteration + 1, losses[-1])
        if losses[-2] - losses[-1] <= max(tol * losses[-1], rounding * total):
            return losses, True
    return losses, False


def _pass(Xt: Columns, Wt: np.ndarray, H: np.ndarray, step: Step | None) -> tuple[np.ndarray, np.ndarray]:
    """One reading of X: ``step`` on H, slab by slab, and with each new slab its part of (HXᵀ, HHᵀ), summed in float64."""
    V, W = Wt @ Wt.T, np.ascontiguousarray(Wt.T, dtype=H.dtype)
    B, G = np.zeros(Wt.shape), np.zeros(V.shape)
    for at, part in _slabs(Xt):
        h = H[:, at]
        if step is not None:
            step(h, (part @ W).T, V)
        B += (part.T @ np.ascontiguousarray(h.T)).T
        G += h @ h.T
    return B, G


def _revive(Xt: Columns, Wt: np.ndarray, H: np.ndarray, B: np.ndarray, G: np.ndarray) -> None:
    """Makes a dead component the example that is explained worst, without coefficients yet: the loss stays as it is.  All in place."""
    carried = Wt.sum(1) * np.sqrt(G.diagonal())
    dead = np.flatnonzero(carried <= DEAD * carried.sum())
    if not len(dead):
        return
    Wt[dead] = 0
    residual = _energies(Xt) - 2 * (B * Wt).sum(0) + ((G @ Wt) * Wt).sum(0)
    for j, at in zip(dead, np.argsort(-residual), strict=False):
        if residual[at] <= 100 * np.finfo(H.dtype).eps:  # rounding
            break
        H[j] = _example(Xt, at)
        B[j] = Xt.T @ H[j]
        G[j] = G[:, j] = H @ H[j]


def _finished(Xt: Columns, Wt: np.ndarray, H: np.ndarray, losses: list[float], converged: bool, total: float) -> Solution:
    """Unit-norm components with exact coefficients.  A component that ended empty becomes an example, which can only help."""
    empty = np.flatnonzero(~H.any(1))
    if len(empty):
        Wt[empty] = 0
        for j, at in zip(empty, np.argsort(-_energies(Xt)), strict=False):
            H[j] = _example(Xt, at)
    lengths = np.sqrt(np.einsum("rm,rm->r", H, H, dtype=np.float64))[:, None]
    H /= lengths.astype(H.dtype)
    B, G = products(Xt, H)
    W = fit_coefficients(B, G, (Wt * lengths).T)
    return Solution(W, H, B, G, [*losses, loss(B, G, W.T, total)], converged)


def _slabs(Xt: Columns) -> Iterator[tuple[slice, Columns]]:
    for at in range(0, Xt.shape[0], SLAB):
        where = slice(at, at + SLAB)
        yield where, Xt[where]


def _energies(Xt: Columns) -> np.ndarray:
    """Squared norms of the examples, (n,)."""
    return sum((np.asarray((part.astype(np.float64) ** 2).sum(0)) for _, part in _slabs(Xt)), start=np.zeros(Xt.shape[1]))


def _example(Xt: Columns, i: int) -> np.ndarray:
    return Xt[:, [i]].toarray().ravel() if issparse(Xt) else Xt[:, i]


# --------------------------------------------------------------------------------------------------------------------------------- estimator


class DNPEFF(TransformerMixin, BaseEstimator):
    """Non-negative factorisation of diagonal per-example Fishers: x_i = d_i/‖d_i‖₂ ≈ Σ_j W_ij h_j with W ≥ 0 and unit-norm h_j ≥ 0.

    Source: Matena and Raffel, arXiv 2310.04649 (D-NPEFF); solvers in :mod:`npeff_nb.decomposition.diagonal`.  There may be more examples than
    parameters, or fewer.

    Parameters
    ----------
    n_components : number r of components, at most the number of examples with energy.
    solver : ``"hals"``, or ``"multiplicative"``: the paper's, for comparison (with ``tol=0`` it runs ``max_iter`` iterations as there).
    n_init : starts; the one with the lowest loss is kept.
    tol : a start ends when an iteration lowers its loss by less than this share.
    max_iter : iterations of a start at most.
    random_state : seed; equal seeds give equal results.

    Attributes
    ----------
    coefficients_ : (n, r) ≥ 0, for unit-norm components and unit-norm diagonals; exact for ``components_``.
    components_ : (r, m) ≥ 0, unit norm, most explained energy first, over the parameters in use; a CSR array after :meth:`sparsify`.
    kept_columns_ : (m,) which of the p parameters those are, ascending: all that any example has an entry for.
    n_parameters_, n_features_in_ : p.
    reconstruction_err_ : Σ_i ‖x_i − Σ_j W_ij h_j‖², at most: an entry that was not kept counts as unexplained (it was not negative, nor is what the
        components say of it).
    explained_variance_ : 1 − reconstruction_err_ / the number of examples with energy; in [0, 1].
    component_shares_ : (r,) each component's part of it; sums to ``explained_variance_``.
    example_explained_ : (n,) share of each unit-norm diagonal that its components explain.
    n_iter_, losses_, converged_ : iterations of the kept start, its loss at the start, after each and after the last fit of W; whether ``tol`` ended
        it.
    restart_losses_ : final loss of every start.
    examples, parameters, logits, norms, classes, choices, feature_map, facts, subject : what came with the PEFs (see :class:`~npeff_nb.PEFs`); None
        for other input.  ``subject``, the live model, is not saved: :meth:`attach` gives it back.
    labels, profiles : as for :class:`~npeff_nb.NPEFF`: names given by a person, portraits; empty after a fit.
    """

    examples: Any
    parameters: Any
    feature_map: Any
    logits: Any
    norms: Any
    classes: Any
    subject: Any = None
    choices: dict[str, np.ndarray]
    facts: dict[str, Any]
    labels: dict[int, str]
    profiles: dict[int, Any]
    coefficients_: np.ndarray
    component_shares_: np.ndarray

    def __init__(
        self,
        n_components: int = 32,
        *,
        solver: str = "hals",
        n_init: int = 2,
        tol: float = 1e-5,
        max_iter: int = 200,
        random_state: int | None = None,
    ) -> None:
        self.n_components = n_components
        self.solver = solver
        self.n_init = n_init
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    # ---------------------------------------------------------------------------------------------------------------- fit and transform

    def fit(self, X: Any, y: Any = None) -> Self:
        """Finds components and coefficients for PEFs with diagonals, :class:`SparseDiagonals`, an array (n, p) or a SciPy sparse one.

        float32 (which PEFs are) is worked on in float32, anything else in float64; losses and coefficients are float64.  What fails or is interrupted
        leaves the estimator as it was.

        Raises
        ------
        ValueError
            PEFs without diagonals, entries that are negative or not finite, nothing but zeros, or more components than examples with energy.
        """
        fitted = copy.copy(self)
        fitted._fit(X)
        self.__dict__ = fitted.__dict__
        return self

    def _fit(self, X: Any) -> None:
        self._check_settings()
        raw, norms = self._read(X, reset=True)
        carried = int((norms > 0).sum())
        if carried == 0:
            raise ValueError("all diagonal Fishers are zero: there is nothing to decompose")
        if self.n_components > carried:
            raise ValueError(
                f"n_components={self.n_components} is more than these diagonal Fishers can carry: {carried} of {len(norms)} examples are not zero; "
                f"choose n_components from 1 to {carried}"
            )
        self.kept_columns_ = _used(raw)
        Xt, total = _unit_columns(raw, norms, self.kept_columns_), float(carried)
        rng = generator_of(self.random_state)
        settings: dict[str, Any] = {"tol": self.tol, "max_iter": self.max_iter}
        best, self.restart_losses_ = None, []
        for _ in range(self.n_init):
            if self.solver == "multiplicative":
                found = multiplicative(Xt, self.n_components, total, rng, **settings)
            else:
                found = hals(Xt, start(Xt, self.n_components, rng), total, **settings)
            self.restart_losses_.append(found.losses[-1])
            if best is None or found.losses[-1] < best.losses[-1]:
                best = found
        assert best is not None
        self._settle(best.W, best.B, best.G, norms)
        order = np.argsort(-self.component_shares_, kind="stable")
        self.components_: Any = best.H[order]
        self.coefficients_, self.component_shares_ = self.coefficients_[:, order], self.component_shares_[order]
        self.n_parameters_ = self.n_features_in_
        self.losses_, self.n_iter_, self.converged_ = best.losses, len(best.losses) - 2, best.converged
        self._sparse = issparse(raw)
        self._adopt(X)

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """:meth:`fit`, then ``coefficients_``."""
        return self.fit(X).coefficients_

    def transform(self, X: Any) -> np.ndarray:
        """Coefficients (n, r) of other examples for these components: exact non-negative least squares, to a residual of 1e-8."""
        return self._coefficients_of(X)[0]

    def score(self, X: Any, y: Any = None) -> float:
        """Explained variance of examples, the share of the energy of their unit-norm diagonals; of those fitted on, ``explained_variance_``."""
        W, B, G, norms = self._coefficients_of(X)
        return float(np.clip(_explained(W, B, G).sum() / max(1, (norms > 0).sum()), 0, 1))

    def inverse_transform(self, W: np.ndarray) -> np.ndarray | csr_array:
        """Diagonals Σ_j W_ij h_j over all p parameters, (n, p): an array after a fit on an array, else a CSR array of the columns in use."""
        check_is_fitted(self, "components_")
        W = np.asarray(W, dtype=np.float64)
        r = self.components_.shape[0]
        if W.ndim != 2 or W.shape[1] != r or not (W >= 0).all():
            raise ValueError(f"coefficients of shape {W.shape}; expected (n, {r}) without negative values")
        rebuilt = W @ self.components_
        if self._sparse:
            some = csr_array(rebuilt)
            return csr_array((some.data, self.kept_columns_[some.indices], some.indptr), shape=(len(W), self.n_parameters_))
        whole = np.zeros((len(W), self.n_parameters_))
        whole[:, self.kept_columns_] = rebuilt
        return whole

    def sparsify(self, threshold: float, X: Any) -> Self:
        """A copy without the entries of components that are below ``threshold``; what is left has unit norm again, in a CSR array.

        Coefficients and all that is reported of them are fitted again on ``X``, the examples of the fit (which are not kept here) or others.
        Components keep their numbers.

        Raises
        ------
        ValueError
            When a component would lose all its entries.
        """
        check_is_fitted(self, "components_")
        H = csr_array(self.components_, copy=True)
        peaks = H.max(axis=1).toarray().ravel()
        if not 0 <= threshold <= peaks.min():
            raise ValueError(
                f"threshold={threshold!r} would leave component {peaks.argmin()} without entries, the largest of which is {peaks.min():.3g}; "
                f"choose a threshold from 0 to that"
            )
        H.data[H.data < threshold] = 0
        H.eliminate_zeros()
        lengths = np.sqrt((H.astype(np.float64) ** 2).sum(1))
        H.data /= np.repeat(lengths, np.diff(H.indptr)).astype(H.dtype)
        found = copy.copy(self)
        found.components_ = H
        W, B, G, norms = found._coefficients_of(X)
        found._settle(W, B, G, norms)
        found._adopt(X)
        found.labels = dict(self.labels)
        return found

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """``npeff0`` and so on: names of the coefficients, for ``set_output``."""
        check_is_fitted(self, "components_")
        return np.array([f"npeff{k}" for k in range(self.components_.shape[0])], dtype=object)

    # ---------------------------------------------------------------------------------------------------------------- reading the result

    # What can be said of coefficients is the same whatever they are of.
    top_examples, example_table = Factorisation.top_examples, Factorisation.example_table
    dead_components_, family = Factorisation.dead_components_, Factorisation.family
    __copy__, __getstate__ = Factorisation.__copy__, Factorisation.__getstate__
    attach = Factorisation.attach

    def check_component(self, k: int) -> int:
        """``k`` as an int, or an error that names what exists."""
        check_is_fitted(self, "components_")
        r = self.components_.shape[0]
        if isinstance(k, (bool, np.bool_)) or not isinstance(k, (int, float, np.integer, np.floating)) or not 0 <= k < r or int(k) != k:
            raise ValueError(f"component {k} does not exist: this decomposition has {r} (0 to {r - 1}).")
        return int(k)

    # ---------------------------------------------------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike) -> Path:
        """Writes a folder of safetensors and JSON."""
        check_is_fitted(self, "components_")
        arrays = {
            "coefficients": self.coefficients_, "kept_columns": self.kept_columns_,
            "component_shares": self.component_shares_, "example_explained": self.example_explained_,
        }  # fmt: skip
        facts: dict[str, Any] = {
            "settings": self.get_params(), "n_parameters": self.n_parameters_, "sparse": self._sparse,
            "feature_names": list(getattr(self, "feature_names_in_", [])),
            "losses": self.losses_, "n_iter": self.n_iter_, "converged": self.converged_, "restart_losses": self.restart_losses_,
            "reconstruction_err": self.reconstruction_err_, "explained_variance": self.explained_variance_,
            "labels": {str(k): v for k, v in self.labels.items()},
            "profiles": {str(k): v for k, v in self.profiles.items()},
            "facts": self.facts,
        }  # fmt: skip
        tables, mapped = {}, {}
        if issparse(self.components_):
            H = self.components_
            arrays |= _files.named("components", {"data": H.data, "indices": H.indices, "indptr": H.indptr})
        else:
            mapped = {"components": self.components_}
        if self.examples is not None:
            arrays |= {"norms": self.norms, "logits": self.logits}
            arrays |= self.feature_map.arrays() | _files.named("choices", self.choices)
            facts |= {"classes": self.classes, "feature_map": self.feature_map.to_json()}
            tables = {"examples": self.examples, "parameters": _pefs.parameters_to_json(self.parameters)}
        return _files.write_folder(path, KIND, arrays, tables, facts, mapped)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Reads what :meth:`save` wrote; components are mapped from the disk."""
        _, arrays, tables, facts = _files.read_folder(path, KIND)
        self = cls(**facts["settings"])
        self._adopt(None)
        self.coefficients_, self.kept_columns_ = arrays["coefficients"], arrays["kept_columns"]
        self.component_shares_, self.example_explained_ = arrays["component_shares"], arrays["example_explained"]
        self.n_parameters_ = self.n_features_in_ = facts["n_parameters"]
        self._sparse = facts["sparse"]
        if facts["feature_names"]:
            self.feature_names_in_ = np.array(facts["feature_names"], dtype=object)
        if "components" in arrays:
            self.components_ = arrays["components"]
        else:
            parts = _files.under("components", arrays)
            shape = (self.coefficients_.shape[1], len(self.kept_columns_))
            self.components_ = csr_array((parts["data"], parts["indices"], parts["indptr"]), shape=shape)
        self.losses_, self.n_iter_, self.converged_ = facts["losses"], facts["n_iter"], facts["converged"]
        self.restart_losses_ = facts["restart_losses"]
        self.reconstruction_err_, self.explained_variance_ = facts["reconstruction_err"], facts["explained_variance"]
        self.labels = {int(k): v for k, v in facts["labels"].items()}
        self.profiles = {int(k): v for k, v in facts["profiles"].items()}
        self.facts = facts["facts"]
        if "examples" in tables:
            self.examples, self.parameters = tables["examples"], _pefs.parameters_from_json(tables["parameters"])
            self.logits, self.norms, self.classes = arrays["logits"], arrays["norms"], facts["classes"]
            self.feature_map = FeatureMap.from_json(facts["feature_map"], arrays)
            self.choices = _files.under("choices", arrays)
        return self

    # ---------------------------------------------------------------------------------------------------------------- inside

    def _coefficients_of(self, X: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(W, HXᵀ, HHᵀ, norms) of other examples, some at a time."""
        check_is_fitted(self, "components_")
        raw, norms = self._read(X, reset=False)
        B = np.empty((self.components_.shape[0], len(norms)))
        step = max(1, _BLOCK // len(self.kept_columns_))
        for at in range(0, len(norms), step):
            some = slice(at, at + step)
            B[:, some], G = products(_unit_columns(raw[some], norms[some], self.kept_columns_), self.components_)
        return fit_coefficients(B, G), B, G, norms

    def _settle(self, W: np.ndarray, B: np.ndarray, G: np.ndarray, norms: np.ndarray) -> None:
        """Coefficients, and what they explain of which example by which component."""
        explained, total = _explained(W, B, G), max(1, int((norms > 0).sum()))
        self.coefficients_ = W
        self.component_shares_ = explained.sum(0) / total
        self.example_explained_ = explained.sum(1).clip(0, 1)
        # A difference of large sums: a perfect fit may end below zero by rounding.
        self.reconstruction_err_ = max(0.0, float(total - explained.sum()))
        self.explained_variance_ = float(np.clip(explained.sum() / total, 0, 1))

    def _adopt(self, X: Any) -> None:
        Factorisation._adopt(self, X if isinstance(X, PEFs) else None)

    def _read(self, X: Any, reset: bool) -> tuple[Columns, np.ndarray]:
        """Diagonals (n, p) as they came, an array or a CSR array, and the norms (n,) to divide them by."""
        if isinstance(X, PEFs):
            if X.diagonals is None:
                raise ValueError(
                    "these PEFs have no diagonal Fishers of single examples: extract them with nb.extract_fishers(..., diagonal=K), K the entries to "
                    "keep of each example's diagonal"
                )
            known = None if reset else self.parameters
            if known is not None and _coordinates(known) != _coordinates(X.parameters):
                raise ValueError("these Fishers are over other parameters than the ones fitted on; extract them with the same parameters and scale")
            X = X.diagonals
        if isinstance(X, SparseDiagonals):
            raw = X.matrix()
            validate_data(self, raw, reset=reset, skip_check_array=True)
            return raw, X.norms
        X = validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32), ensure_all_finite=False, reset=reset)
        raw = csr_array(X) if issparse(X) else X
        if issparse(raw) and not raw.has_canonical_format:
            raw = raw.copy()
            raw.sum_duplicates()
        with np.errstate(over="ignore"):
            norms = np.sqrt((raw.astype(np.float64) ** 2).sum(1) if issparse(raw) else np.einsum("ij,ij->i", raw, raw, dtype=np.float64))
        if not np.isfinite(norms).all():
            i = int(np.argmin(np.isfinite(norms)))
            raise ValueError(f"NaN or infinity in data, or a number too large to square: example {i}; drop such examples first")
        values = raw.data if issparse(raw) else raw
        if values.size and values.min() < 0:
            at = np.argwhere(values < 0)[0]
            i = int(np.searchsorted(raw.indptr, at[0], side="right") - 1) if issparse(raw) else int(at[0])
            raise ValueError(
                f"Negative values in data: example {i} holds {values[tuple(at)]}; a diagonal Fisher sums squares, so all entries must be ≥ 0"
            )
        return raw, norms

    def _check_settings(self) -> None:
        for name, smallest in (("n_components", 1), ("n_init", 1), ("max_iter", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < smallest:
                raise ValueError(f"{name}={value!r}: it must be a whole number from {smallest} up")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver={self.solver!r} is not known; choose one of {', '.join(map(repr, SOLVERS))}")
        if not self.tol >= 0:
            raise ValueError(f"tol={self.tol!r}: it must not be negative")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = tags.input_tags.positive_only = True
        return tags


def _used(raw: Columns) -> np.ndarray:
    """Columns in which any example has an entry above zero."""
    if not issparse(raw):
        return np.flatnonzero(raw.any(0))
    used = np.zeros(raw.shape[1], dtype=bool)
    used[raw.indices[raw.data > 0]] = True
    return np.flatnonzero(used)


def _unit_columns(raw: Columns, norms: np.ndarray, kept: np.ndarray) -> Columns:
    """Xt (m, n) of some columns of examples (n, p), divided by their norms."""
    some = raw if len(kept) == raw.shape[1] else raw[:, kept]
    lengths = np.where(norms > 0, norms, 1).astype(raw.dtype)
    if not issparse(some):
        return (some / lengths[:, None]).T
    return csr_array(csr_array((some.data / np.repeat(lengths, np.diff(some.indptr)), some.indices, some.indptr), shape=some.shape).T)


def _explained(W: np.ndarray, B: np.ndarray, G: np.ndarray) -> np.ndarray:
    """(n, r) energy of each example that disappears with each component's own terms; the parts add up to the explained energy exactly."""
    return W * (2 * B.T - W @ G)


def _coordinates(parameters: Any) -> list[tuple]:
    table = parameters.assign(scale=parameters.get("scale", 1.0))
    return list(zip(table["name"], table["shape"], table["scale"], strict=True))
