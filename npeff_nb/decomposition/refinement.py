"""A decomposition that changes without starting again: components join, two become one, one becomes two.

What is not asked about keeps its direction and its sign; coefficients of all examples are exact for the components that come out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from npeff_nb.decomposition.coefficients import fit_coefficients
from npeff_nb.decomposition.given import Given, given
from npeff_nb.decomposition.hals import hals
from npeff_nb.decomposition.rows import Stored
from npeff_nb.decomposition.starts import kmeans_pp

if TYPE_CHECKING:
    from npeff_nb.decomposition.factorisation import Factorisation

F = TypeVar("F", bound="Factorisation")
Starts = Callable[[Stored, Tensor], Tensor]
"""(rows, coefficients) -> directions (s, d) of the new components."""


def expand(npeff: F, X: Any, by: int) -> F:
    """``by`` more components for what the old ones leave unexplained.

    The old ones come first, in their order and bit for bit; the new ones follow, most explained energy first.

    Parameters
    ----------
    X : Fishers in the coordinates of the fit; coefficients of the result are theirs.
    """
    check_is_fitted(npeff, "components_")
    if isinstance(by, bool) or not isinstance(by, (int, np.integer)) or by < 1:
        raise ValueError(f"by={by!r}: it must be a whole number from 1 up")
    rng = np.random.default_rng(npeff.random_state if isinstance(npeff.random_state, (int, np.integer)) else None)

    def start(rows: Stored, W: Tensor) -> Tensor:
        return kmeans_pp(rows, int(by), rng, nearest=_unexplained(rows, W, npeff))

    r = len(npeff.components_)
    return _changed(npeff, X, np.arange(r), start, npeff.n_init, lambda share: np.r_[:r, r + np.argsort(-share[r:], kind="stable")])


def merge(npeff: F, components: Any, X: Any) -> F:
    """Components as one: the direction that carries most of what they explain together, then fitted to ``X`` with the others as they are.

    It takes the lowest of their numbers; those that come after a component that is gone move up.
    """
    check_is_fitted(npeff, "components_")
    gone = sorted({npeff.check_component(k) for k in components})
    if len(gone) < 2:
        raise ValueError(f"components={components!r}: merging takes at least two different components")
    r = len(npeff.components_)
    kept = np.setdiff1d(np.arange(r), gone)

    def start(rows: Stored, W: Tensor) -> Tensor:
        H = torch.from_numpy(npeff.components_[gone]).to(rows.device)
        mass = (rows.weights[:, None] * W[:, gone]).sum(0)
        # The leading direction of Σ_k mass_k h_kh_kᵀ, on which an eigenvalue's sign says nothing: kept on the side of the largest.
        found = torch.linalg.svd(mass.clamp_min(torch.finfo(mass.dtype).tiny).sqrt()[:, None] * H, full_matrices=False).Vh[:1]
        return found * (1 if float(found[0] @ H[int(mass.argmax())]) >= 0 else -1)

    at = int(np.searchsorted(kept, gone[0]))
    return _changed(npeff, X, kept, start, 1, lambda _: np.insert(np.arange(r - len(gone)), at, r - len(gone)))


def split(npeff: F, component: int, X: Any, into: int = 2) -> F:
    """One component as several, fitted to ``X`` from examples that use it and are far apart, with the others as they are.

    The one that explains most keeps the number; the others come last.
    """
    k = npeff.check_component(component)
    if isinstance(into, bool) or not isinstance(into, (int, np.integer)) or into < 2:
        raise ValueError(f"into={into!r}: it must be a whole number from 2 up")
    r = len(npeff.components_)
    rng = np.random.default_rng(npeff.random_state if isinstance(npeff.random_state, (int, np.integer)) else None)

    def start(rows: Stored, W: Tensor) -> Tensor:
        users = int((W[:, k] > 0).sum())
        if users < into:
            raise ValueError(f"component {k} is used by {users} of these examples: it cannot become {into}")
        # An example is as far from "no centre" as this component matters to it.
        return kmeans_pp(rows, int(into), rng, nearest=rows.energies * (W[:, k] > 0) * (W[:, k] / W[:, k].max()))

    def order(share: np.ndarray) -> np.ndarray:
        new = r - 1 + np.argsort(-share[r - 1 :], kind="stable")
        return np.concatenate([np.arange(k), new[:1], np.arange(k, r - 1), new[1:]])

    return _changed(npeff, X, np.delete(np.arange(r), k), start, npeff.n_init, order)


def applied(npeff: F, X: Any) -> F:
    """The same components, bit for bit and in their order, with other Fishers' coefficients: for tables and pictures of new examples."""
    check_is_fitted(npeff, "components_")
    found = _again(npeff, X)
    result = clone(npeff).set_params(shards=None)
    H = torch.from_numpy(npeff.components_).to(found.rows.device)
    result._finish(found, found.rows, found.total, H, frozen=len(H), order=lambda share: np.arange(len(share)))
    result._record(None, [result.reconstruction_err_], npeff.converged_, [result.reconstruction_err_])
    return _remembering(result, npeff, {k: k for k in range(len(H))})


def _again(npeff: Factorisation, X: Any) -> Given:
    """Fishers in the coordinates of the fit."""
    npeff._check_same(X)
    found = given(npeff._checked(X, reset=False), device=npeff.device)
    if found.rows.d != npeff.components_.shape[1]:
        raise ValueError(f"X has {found.rows.d} features, but {type(npeff).__name__} is expecting {npeff.components_.shape[1]} features as input")
    return found


def _changed(npeff: F, X: Any, kept: np.ndarray, start: Starts, n_init: int, order: Callable[[np.ndarray], np.ndarray]) -> F:
    """A new estimator with the ``kept`` components as they are and new ones fitted beside them; ``order`` takes their shares, kept ones first."""
    if npeff.shards is not None:
        raise ValueError("a decomposition is changed in one process: give X whole and set_params(shards=None)")
    found = _again(npeff, X)
    rows = found.rows
    H = torch.from_numpy(npeff.components_).to(rows.device)
    W = fit_coefficients(rows.project(H).square().sum(1), (H @ H.T).square())
    tried = [
        hals(rows, torch.cat([H[kept], start(rows, W)]), found.total, tol=npeff.tol, max_iter=npeff.max_iter, frozen=len(kept)) for _ in range(n_init)
    ]
    best = min(tried, key=lambda s: s.losses[-1])
    result = clone(npeff).set_params(n_components=len(best.H), init="k-means++")
    place = result._finish(found, rows, found.total, best.H, best.P, frozen=len(kept), order=order)
    result._record(None, best.losses, best.converged, [s.losses[-1] for s in tried])
    return _remembering(result, npeff, {new: int(kept[old]) for new, old in enumerate(place) if old < len(kept)})


def _remembering(result: F, npeff: F, was: dict[int, int]) -> F:
    """What a person said of components stays with those that are still there; ``was`` is their former number by number."""
    result.labels, result.notes = ({new: said[old] for new, old in was.items() if old in said} for said in (npeff.labels, npeff.notes))
    result.stars = {new for new, old in was.items() if old in npeff.stars}
    return result


def _unexplained(rows: Stored, W: Tensor, npeff: Factorisation) -> Tensor:
    """(n,) ‖F̂_i − F̃_i‖² within the features."""
    H = torch.from_numpy(npeff.components_).to(rows.device)
    B = rows.project(H).square().sum(1)
    return (rows.energies - (W * (2 * B - W @ (H @ H.T).square())).sum(1)).clamp_min(0)
