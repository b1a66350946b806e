"""The factorisation as an estimator: per-example Fishers in, components and coefficients out.

People meet it as :class:`npeff_nb.NPEFF`, which adds what later rooms make of a component.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from npeff_nb import _files
from npeff_nb.fisher import pefs as _pefs
from npeff_nb.fisher.features import FeatureMap
from npeff_nb.fisher.pefs import PEFs

if TYPE_CHECKING:
    from torch import nn

    from npeff_nb.fisher.subject import Subject

KIND = "NPEFF decomposition"
SOLVERS = ("hals",)


class Factorisation(TransformerMixin, BaseEstimator):
    """Non-negative per-example Fisher factorisation: F̂_i ≈ Σ_j W_ij h_j h_jᵀ with W ≥ 0 and unit-norm h_j.

    Source: Matena and Raffel, arXiv 2310.04649, section 3; solver and constants in :mod:`npeff_nb.decomposition.solvers`.

    Parameters
    ----------
    n_components : number r of components.
    solver : ``"hals"``.
    n_init : starts; the one with the lowest loss is kept (seeds differ by 5 to 20 % of the loss).
    tol : a start ends when an iteration lowers its loss by less than this share.
    max_iter : iterations of a start at most.
    random_state : seed; equal seeds give equal results.

    Attributes
    ----------
    coefficients_ : (n, r) ≥ 0, for unit-norm components and unit-norm Fishers.
    components_ : (r, d) float64 in the features' coordinates, unit norm, most explained energy first.  The sign is chosen so that a step along
        −h_j disturbs the predictions of the examples that use it (turns the component down) and one along +h_j less so
        (:mod:`npeff_nb.decomposition.orientation`).
    projections_ : (n, k, r), each unit-norm Fisher's factor rows along the components.
    reconstruction_err_ : Σ_i ‖F̂_i − Σ_j W_ij h_j h_jᵀ‖²_F over the full Fishers: what the kept features miss counts as unexplained.
    explained_variance_ : 1 − reconstruction_err_ / Σ_i ‖F̂_i‖²_F, in [0, 1].
    component_shares_ : (r,) each component's part of the explained energy; sums to ``explained_variance_``.
    example_explained_ : (n,) share of each unit-norm Fisher that its components explain.
    n_iter_, losses_ : iterations of the kept start, and its loss after each.
    restart_losses_ : final loss of every start.
    examples, parameters, logits, norms, classes, choices, feature_map, facts : what came with the PEFs (see :class:`~npeff_nb.PEFs`); None for an
        array.
    subject : the live model with its examples, or None (see :meth:`attach`).
    labels : names given to components by a person, by number.
    profiles : portraits of components computed so far, by number (:func:`npeff_nb.explain.profile.profile`).
    """

    examples: Any
    parameters: Any
    feature_map: Any
    logits: Any
    norms: Any
    classes: Any
    subject: Subject | None

    def __init__(
        self,
        n_components: int = 32,
        *,
        solver: str = "hals",
        n_init: int = 4,
        tol: float = 1e-5,
        max_iter: int = 500,
        random_state: int | None = None,
    ) -> None:
        self.n_components = n_components
        self.solver = solver
        self.n_init = n_init
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    # ---------------------------------------------------------------------------------------------------------------- fit and transform

    def fit(self, X: PEFs | np.ndarray, y: Any = None) -> Self:
        """Finds components and coefficients for PEFs, rows (n, k, d), or one row an example (n, d).

        Raises
        ------
        ValueError
            Values that are not finite, all-zero Fishers, or more components than there are non-zero factor rows.
        """
        import torch

        from npeff_nb.decomposition import solvers

        self._check_settings()
        rows, scale = _unit_norm(X)
        n, _, d = rows.shape
        carried = int((np.abs(rows).max(2) > 0).sum())
        if carried == 0:
            raise ValueError("all Fishers are zero: there is nothing to decompose")
        if self.n_components > carried:
            raise ValueError(
                f"n_components={self.n_components} is more than these Fishers can carry: {n} examples have {carried} non-zero factor rows; "
                f"choose n_components from 1 to {carried}"
            )
        A = torch.from_numpy(rows)
        # Unit-norm Fishers have total energy 1 each, whatever part of it the features kept: losses refer to the full Fishers.
        total = float((scale > 0).sum()) if isinstance(X, PEFs) else solvers.total_energy(A)
        rng = np.random.default_rng(self.random_state)
        found = []
        for _ in range(self.n_init):
            start = solvers.kmeans_pp(A, self.n_components, rng)
            found.append(solvers.hals(A, start, total, tol=self.tol, max_iter=self.max_iter))
        best = min(found, key=lambda s: s.losses[-1])
        W, H = best.W.numpy(), best.H.numpy()

        P = rows @ H.T
        G = (H @ H.T) ** 2
        # Energy that disappears with W_j's own terms; the parts add up to the explained energy exactly.
        share = (W * (2 * (P**2).sum(1) - W @ G)).sum(0)
        order = np.argsort(-share, kind="stable")
        W, H, P, share = W[:, order], H[order], P[:, :, order], share[order]
        # Rows without a prediction behind them are turned to their first row's side, so that equal runs look equal.
        sign = _signs(W, P, X) if isinstance(X, PEFs) else np.where((W * P[:, 0]).sum(0) < 0, -1.0, 1.0)
        H, P = H * sign[:, None], P * sign

        self.coefficients_, self.components_, self.projections_ = W, H, P
        self.n_features_in_ = d
        self.losses_, self.n_iter_ = best.losses, len(best.losses) - 2
        self.converged_ = best.converged
        self.restart_losses_ = [s.losses[-1] for s in found]
        # A difference of large sums over float32 rows: a perfect fit may end below zero by rounding.
        self.reconstruction_err_ = max(0.0, best.losses[-1])
        self.explained_variance_ = float(np.clip(1 - best.losses[-1] / total, 0.0, 1.0))
        self.component_shares_ = share / total
        self.example_explained_ = _explained(W, P, G[np.ix_(order, order)])
        self._adopt(X if isinstance(X, PEFs) else None)
        return self

    def fit_transform(self, X: PEFs | np.ndarray, y: Any = None) -> np.ndarray:
        """:meth:`fit`, then ``coefficients_``."""
        return self.fit(X).coefficients_

    def transform(self, X: PEFs | np.ndarray) -> np.ndarray:
        """Coefficients (n, r) of other examples for these components: exact non-negative least squares."""
        import torch

        from npeff_nb.decomposition import solvers

        check_is_fitted(self, "components_")
        if isinstance(X, PEFs) and self.feature_map is not None and X.feature_map.id != self.feature_map.id:
            raise ValueError("these Fishers have other coordinates than the ones fitted on; extract them with nb.extract_fishers(..., like=npeff)")
        rows, _ = _unit_norm(X)
        if rows.shape[2] != self.n_features_in_:
            raise ValueError(f"X has {rows.shape[2]} features, but this NPEFF was fitted on {self.n_features_in_}")
        B = ((rows @ self.components_.T) ** 2).sum(1)
        G = (self.components_ @ self.components_.T) ** 2
        return solvers.fit_coefficients(torch.from_numpy(B), torch.from_numpy(G)).numpy()

    def inverse_transform(self, W: np.ndarray) -> np.ndarray:
        """Fishers Σ_j W_ij h_j h_jᵀ as factor rows (n, r, d): row j is √W_ij h_j, the form that :meth:`transform` takes back."""
        check_is_fitted(self, "components_")
        W = np.asarray(W, dtype=np.float64)
        if W.ndim != 2 or W.shape[1] != len(self.components_) or (W < 0).any():
            raise ValueError(f"coefficients of shape {W.shape}; expected (n, {len(self.components_)}) without negative values")
        return np.sqrt(W)[:, :, None] * self.components_

    # ---------------------------------------------------------------------------------------------------------------- reading the result

    def check_component(self, k: int) -> int:
        """``k`` as an int, or an error that names what exists."""
        check_is_fitted(self, "components_")
        r = len(self.components_)
        if isinstance(k, (bool, np.bool_)) or not isinstance(k, (int, float, np.integer, np.floating)) or not 0 <= k < r or int(k) != k:
            raise ValueError(f"component {k} does not exist: this decomposition has {r} (0 to {r - 1}).")
        return int(k)

    def top_examples(self, k: int, n: int = 20) -> np.ndarray:
        """Positions of the ``n`` examples with the largest coefficients of component ``k``, falling; only examples that use it."""
        k = self.check_component(k)
        w = self.coefficients_[:, k]
        order = np.argsort(-w, kind="stable")[:n]
        return order[w[order] > 0]

    def row_weights(self, k: int) -> np.ndarray:
        """Θ_k, (n, k rows): component k is Σ Θ_k,iy · (unit-norm factor row iy), the exact stationary form h = Σ_j (WᵀW∘S)⁻¹_kj (W⊙P)_jᵀ A."""
        k = self.check_component(k)
        W, P = self.coefficients_, self.projections_
        M = (W.T @ W) * (self.components_ @ self.components_.T)
        mix = np.linalg.pinv(M, rcond=1e-12, hermitian=True)[k]
        return np.einsum("j,nj,nyj->ny", mix, W, P)

    # ---------------------------------------------------------------------------------------------------------------- the model behind it

    def attach(self, model: nn.Module, tokenizer: Any = None, *, output: Any = None, logits: Any = None, inputs: Any = None) -> Self:
        """Gives a loaded decomposition its model back, so that it can be lifted, perturbed and explored live.  Returns self.

        Warns when it is not the model of the extraction to the bit, naming what differs.

        Raises
        ------
        ValueError
            When the model lacks one of the parameters, or has it in another shape.
        """
        from npeff_nb.fisher.reattach import subject_again

        check_is_fitted(self, "components_")
        if self.examples is None:
            raise ValueError("this NPEFF was fitted on an array: there are no examples and no model behind it")
        self.subject = subject_again(self, model, tokenizer, output, logits, inputs)
        return self

    @property
    def family(self) -> str:
        """Of the predictions: ``"categorical"`` or ``"bernoulli"``."""
        return self.facts.get("recipe", {}).get("family", "categorical")

    def _adopt(self, X: PEFs | None) -> None:
        # Whatever belongs to the Fishers and not to their factorisation: all None after a fit on an array.
        for name in ("examples", "parameters", "feature_map", "logits", "norms", "classes", "subject"):
            setattr(self, name, getattr(X, name, None))
        self.choices: dict[str, np.ndarray] = {} if X is None else X.choices
        self.facts: dict[str, Any] = {} if X is None else dict(X.facts)
        self.labels: dict[int, str] = {}
        self.profiles: dict[int, Any] = {}

    # ---------------------------------------------------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike) -> Path:
        """Writes a folder of safetensors and JSON; labels that a person gave and profiles that were computed are kept."""
        check_is_fitted(self, "components_")
        arrays = {
            "coefficients": self.coefficients_, "components": self.components_, "projections": self.projections_,
            "component_shares": self.component_shares_, "example_explained": self.example_explained_,
        }  # fmt: skip
        facts: dict[str, Any] = {
            "settings": self.get_params(),
            "losses": self.losses_, "n_iter": self.n_iter_, "converged": self.converged_, "restart_losses": self.restart_losses_,
            "reconstruction_err": self.reconstruction_err_, "explained_variance": self.explained_variance_,
            "labels": {str(k): v for k, v in self.labels.items()},
            "profiles": {str(k): v for k, v in self.profiles.items()},
            "facts": self.facts,
        }  # fmt: skip
        tables = {}
        if self.examples is not None:
            arrays |= {"norms": self.norms, "logits": self.logits}
            arrays |= self.feature_map.arrays() | _files.named("choices", self.choices)
            facts |= {"classes": self.classes, "feature_map": self.feature_map.to_json()}
            tables = {"examples": self.examples, "parameters": _pefs.parameters_to_json(self.parameters)}
        return _files.write_folder(path, KIND, arrays, tables, facts)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Reads what :meth:`save` wrote; needs no torch.  The model comes back with :meth:`attach`."""
        _, arrays, tables, facts = _files.read_folder(path, KIND)
        self = cls(**facts["settings"])
        self._adopt(None)
        self.coefficients_, self.components_, self.projections_ = arrays["coefficients"], arrays["components"], arrays["projections"]
        self.component_shares_, self.example_explained_ = arrays["component_shares"], arrays["example_explained"]
        self.n_features_in_ = self.components_.shape[1]
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

    def _check_settings(self) -> None:
        for name, smallest in (("n_components", 1), ("n_init", 1), ("max_iter", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < smallest:
                raise ValueError(f"{name}={value!r}: it must be a whole number from {smallest} up")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver={self.solver!r} is not known; choose one of {', '.join(map(repr, SOLVERS))}")
        if not self.tol >= 0:
            raise ValueError(f"tol={self.tol!r}: it must not be negative")


def _unit_norm(X: PEFs | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factor rows of unit-norm Fishers (n, k, d) float64, and the norms they were divided by (0 for a zero Fisher)."""
    if isinstance(X, PEFs):
        rows, norms = X.factors.astype(np.float64), X.norms.astype(np.float64)
    else:
        rows = np.asarray(X, dtype=np.float64)
        rows = rows[:, None] if rows.ndim == 2 else rows
        if rows.ndim != 3 or 0 in rows.shape:
            raise ValueError(f"X has shape {np.shape(X)}; expected PEFs, factor rows (n, k, d) or one row an example (n, d), none of them empty")
        norms = np.sqrt(((rows @ rows.transpose(0, 2, 1)) ** 2).sum((1, 2)))
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all((1, 2)))[0])
        raise ValueError(f"the factor rows of example {bad} are not finite (NaN or infinity): drop such examples first")
    return rows / np.sqrt(np.where(norms > 0, norms, 1.0))[:, None, None], norms


def _signs(W: np.ndarray, P: np.ndarray, X: PEFs) -> np.ndarray:
    from npeff_nb.decomposition.orientation import orientation
    from npeff_nb.fisher.factors import Recipe

    recipe = Recipe.from_json(X.facts["recipe"]) if "recipe" in X.facts else None
    return orientation(W, P, X.logits, X.norms, recipe, X.choices)


def _explained(W: np.ndarray, P: np.ndarray, G: np.ndarray) -> np.ndarray:
    """(n,) share of each unit-norm Fisher's energy that its components explain, 1 − ‖F̂_i − F̃_i‖²."""
    return np.clip((W * (2 * (P**2).sum(1) - W @ G)).sum(1), 0.0, 1.0)
