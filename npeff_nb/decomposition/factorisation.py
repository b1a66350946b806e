"""The factorisation as an estimator: per-example Fishers in, components and coefficients out.

People meet it as :class:`npeff_nb.NPEFF`, which adds what later rooms make of a component.
"""

from __future__ import annotations

import copy
import math
import os
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from npeff_nb import _files
from npeff_nb._progress import Bar, say
from npeff_nb.fisher import pefs as _pefs
from npeff_nb.fisher.features import FeatureMap
from npeff_nb.fisher.pefs import PEFs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from npeff_nb.decomposition.fitting import Tell
    from npeff_nb.decomposition.given import Given
    from npeff_nb.decomposition.plan import Plan
    from npeff_nb.decomposition.rows import Rows
    from npeff_nb.fisher.subject import Subject

KIND = "NPEFF decomposition"
SOLVERS = ("hals", "multiplicative", "stiefel", "minibatch")
REDUCTIONS = ("auto", "none", "gram")
TRANSFORMED_AT_ONCE = 8192


class Factorisation(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Non-negative per-example Fisher factorisation: F̂_i ≈ Σ_j W_ij h_j h_jᵀ with W ≥ 0 and unit-norm h_j.

    Source: Matena and Raffel, arXiv 2310.04649, section 3; the loss and its constants in :mod:`npeff_nb.decomposition.objective`.

    Parameters
    ----------
    n_components : number r of components.
    solver : ``"hals"`` (:mod:`~npeff_nb.decomposition.hals`); ``"minibatch"``, some examples at a time, for millions
        (:mod:`~npeff_nb.decomposition.minibatch`); ``"multiplicative"``, the paper's own algorithm, and ``"stiefel"``, with orthonormal components
        (:mod:`~npeff_nb.decomposition.multiplicative`).
    solver_options : further keyword arguments of the solver's function, such as ``{"learning_rate": 1e-2}`` for ``"multiplicative"``.
    init : ``"k-means++"``, or components (r, d) to go on from; the two paper's solvers draw their own start.
    n_init : starts; the one with the lowest loss is kept (seeds differ by 5 to 20 % of the loss).
    reduction : coordinates in which most iterations of ``"hals"`` run: ``"auto"``, ``"none"``, ``"gram"`` (inner products of the rows), or a share of
        energy that a basis has to carry.  The last iterations are over the rows themselves whatever it is; :meth:`plan` says what ``"auto"`` does.
    tol : a start ends when an iteration lowers its loss by less than this share.
    max_iter : iterations of a start at most; passes through the data for ``"minibatch"``.  The paper's two solvers know neither this nor ``tol``:
        they run as many ``iterations`` as ``solver_options`` says.
    device : where to compute, such as ``"cuda"``; by default the processor.
    shards : under ``torch.distributed``, what each process's ``X`` is: ``"rows"`` (other examples) or ``"columns"`` (other features) of the same
        Fishers; None when each process works by itself.
    verbose : tells the plan and how far it is.
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
    n_iter_, losses_, converged_ : iterations of the kept start, the loss after each (last: with exact coefficients), whether ``tol`` ended it.  Of
        ``"minibatch"``, not iterations but the looks at a sample that saw its loss fall.
    restart_losses_ : final loss of every start, in the coordinates that :attr:`plan_` says.
    plan_ : how the fit went about it (:meth:`plan`); None after loading.
    examples, parameters, logits, norms, classes, choices, feature_map, facts : what came with the PEFs (see :class:`~npeff_nb.PEFs`); None for an
        array.
    subject : the live model with its examples, or None (see :meth:`attach`).  Left out of files, pickles and deep copies.
    labels, notes : names given to components by a person, and what was written about them, by number; stars : components that were marked.
    profiles : portraits of components computed so far, by number (:func:`npeff_nb.explain.profile.profile`).
    """

    coefficients_: np.ndarray
    components_: np.ndarray
    projections_: np.ndarray
    examples: Any
    parameters: Any
    feature_map: Any
    logits: Any
    norms: Any
    classes: Any
    subject: Subject | None = None
    plan_: Plan | None = None

    def __init__(
        self,
        n_components: int = 32,
        *,
        solver: str = "hals",
        solver_options: dict[str, Any] | None = None,
        init: str | np.ndarray = "k-means++",
        n_init: int = 4,
        reduction: str | float = "auto",
        tol: float = 1e-5,
        max_iter: int = 500,
        device: Any = None,
        shards: str | None = None,
        verbose: bool = False,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.solver = solver
        self.solver_options = solver_options
        self.init = init
        self.n_init = n_init
        self.reduction = reduction
        self.tol = tol
        self.max_iter = max_iter
        self.device = device
        self.shards = shards
        self.verbose = verbose
        self.random_state = random_state

    # ---------------------------------------------------------------------------------------------------------------- fit and transform

    def plan(self, X: Any) -> Plan:
        """How :meth:`fit` would go about ``X`` and the memory it would take, without doing it."""
        self._check_settings()
        from npeff_nb.decomposition.given import as_rows

        return self._plan(*(X.factors if isinstance(X, PEFs) else as_rows(X)).shape)

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Finds components and coefficients.  What fails or is interrupted leaves the estimator as it was.

        Parameters
        ----------
        X : PEFs; rows (n, k, d); one row an example (n, d); or a list of rows (k_i, d), for Fishers of different rank.
        sample_weight : (n,) how much each example counts; all the same by default.

        Raises
        ------
        ValueError
            Values that are not finite, all-zero Fishers, or more components than there are non-zero factor rows.
        MemoryError
            When the plan needs more memory than the machine has.
        """
        fitted = copy.copy(self)
        fitted._fit(X, sample_weight)
        self.__dict__ = fitted.__dict__
        return self

    def _fit(self, X: Any, sample_weight: Any) -> None:
        from npeff_nb.decomposition.fitting import find_components
        from npeff_nb.decomposition.given import given

        self._check_settings()
        found = given(self._checked(X, reset=True), sample_weight, self.device)
        rows, total, carried = self._shared(found)
        n, k, d = found.rows.rows.shape
        if carried == 0:
            raise ValueError("all Fishers are zero: there is nothing to decompose")
        if self.n_components > carried:
            raise ValueError(
                f"n_components={self.n_components} is more than these Fishers can carry: {rows.n_all} examples have {carried} non-zero factor rows; "
                f"choose n_components from 1 to {carried}"
            )
        plan = self._plan(n, k, d)
        _check_memory(plan)
        rng = generator_of(self.random_state)
        with _Teller(self.verbose, plan, total) as tell:
            result = find_components(
                rows, self.n_components, total, plan, rng, solver=self.solver, options=self.solver_options or {}, start=self._start(rows),
                n_init=self.n_init, energy=None if isinstance(self.reduction, str) else self.reduction, tol=self.tol, max_iter=self.max_iter,
                tell=tell,
            )  # fmt: skip
        self._finish(found, rows, total, *_of_unit_norm(rows, result.H))
        # HALS ends with exact coefficients; of the others the last loss is the one of their last step.
        losses = result.losses if self.solver == "hals" else [*result.losses, self.reconstruction_err_]
        self._record(plan, losses, result.converged, result.restart_losses)

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """:meth:`fit`, then ``coefficients_``."""
        return self.fit(X, sample_weight=sample_weight).coefficients_

    def transform(self, X: Any) -> np.ndarray:
        """Coefficients (n, r) of other examples for these components: exact non-negative least squares.

        Raises
        ------
        ValueError
            Fishers over other parameters, or in other coordinates.
        """
        return self._coefficients(X)[0]

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Share of the Fishers ``X`` that the components explain, 1 − Σ_i ω_i‖F̂_i − F̃_i‖² / Σ_i ω_i‖F̂_i‖²; of those fitted on,
        ``explained_variance_``.
        """
        W, B, G, weights = self._coefficients(X, sample_weight, stacklevel=5)
        return float(np.average(_explained(W, B, G), weights=weights)) if weights.any() else 0.0

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Fishers Σ_j W_ij h_j h_jᵀ of coefficients W = ``X`` (n, r), as factor rows (n, r, d): row j is √W_ij h_j, as :meth:`transform` takes it."""
        check_is_fitted(self, "components_")
        W = np.asarray(X, dtype=np.float64)
        if W.ndim != 2 or W.shape[1] != len(self.components_) or not (W >= 0).all():
            raise ValueError(f"coefficients of shape {W.shape}; expected (n, {len(self.components_)}) without negative values")
        return np.sqrt(W)[:, :, None] * self.components_

    def _coefficients(self, X: Any, sample_weight: Any = None, stacklevel: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """W (n, r), B (n, r), G (r, r) and how much each Fisher counts (n,), a zero one nothing."""
        import torch

        from npeff_nb.decomposition.coefficients import fit_coefficients
        from npeff_nb.decomposition.given import given

        check_is_fitted(self, "components_")
        self._check_same(X, stacklevel)
        found = given(self._checked(X, reset=False), sample_weight, self.device)
        rows = found.rows
        if rows.d != self.n_features_in_:
            raise ValueError(f"X has {rows.d} features, but {type(self).__name__} is expecting {self.n_features_in_} features as input")
        H = torch.from_numpy(self.components_).to(rows.device)
        G = (H @ H.T).square()
        W, B = np.empty((rows.n, len(H))), np.empty((rows.n, len(H)))
        for at in range(0, rows.n, TRANSFORMED_AT_ONCE):
            part = slice(at, at + TRANSFORMED_AT_ONCE)
            b = rows.take(part).project(H).square().sum(1)
            W[part], B[part] = fit_coefficients(b, G).cpu().numpy(), b.cpu().numpy()
        return W, B, G.cpu().numpy(), rows.weights.cpu().numpy() * found.present

    def _finish(
        self,
        found: Given,
        rows: Rows,
        total: float,
        H: Tensor,
        P: Tensor | None = None,
        *,
        frozen: int = 0,
        order: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """Sets what is known of a fit from its components alone: exact coefficients, shares, order, signs.

        The first ``frozen`` components keep their sign; ``order`` takes shares to the order, which is returned.
        """
        import torch

        from npeff_nb.decomposition.coefficients import fit_coefficients
        from npeff_nb.decomposition.objective import loss_of_products

        P = rows.project(H) if P is None else P
        S = rows.inner(H, H, P)
        B, G = P.square().sum(1), S.square()
        W = fit_coefficients(B, G)
        err = loss_of_products(rows, W, P, S, total)
        # Energy that disappears with W_j's own terms; the parts add up to the explained energy exactly.
        share = rows.total((rows.weights[:, None] * W * (2 * B - W @ G)).sum(0)).cpu().numpy()
        place = np.argsort(-share, kind="stable") if order is None else order(share)
        components, share = rows.whole(H).cpu().numpy()[place], share[place]
        coefficients, projections = W.cpu().numpy()[:, place], P.cpu().numpy()[:, :, place]
        weighted = rows.weights.cpu().numpy()[:, None] * coefficients
        score = -(weighted * projections[:, 0]).sum(0) if found.pefs is None else _turned(weighted, projections, found.pefs)
        sign = np.where(rows.total(torch.from_numpy(score).to(rows.device)).cpu().numpy() > 0, -1.0, 1.0)
        sign[place < frozen] = 1.0
        self.coefficients_, self.components_, self.projections_ = coefficients, components * sign[:, None], projections * sign
        self.n_features_in_ = components.shape[1]
        # A difference of large sums over float32 rows: a perfect fit may end below zero by rounding.
        self.reconstruction_err_ = max(0.0, err)
        self.explained_variance_ = float(np.clip(1 - err / total, 0.0, 1.0))
        self.component_shares_ = share / total
        self.example_explained_ = np.clip(_explained(coefficients, (projections**2).sum(1), G.cpu().numpy()[np.ix_(place, place)]), 0.0, 1.0)
        self._adopt(found.pefs)
        return place

    def _record(self, plan: Plan | None, losses: list[float], converged: bool, restart_losses: list[float]) -> None:
        """Sets how a fit went; its last loss is the one of the components as they were kept."""
        self.plan_, self.losses_, self.converged_ = plan, [*losses[:-1], self.reconstruction_err_], converged
        self.restart_losses_, self.n_iter_ = restart_losses, max(1, len(losses) - 2)

    # ---------------------------------------------------------------------------------------------------------------- going on from a fit

    def applied_to(self, X: Any) -> Self:
        """A new decomposition of other Fishers with the same components.  See :func:`npeff_nb.decomposition.refinement.applied`."""
        from npeff_nb.decomposition.refinement import applied

        return applied(self, X)

    def expand(self, X: Any, by: int) -> Self:
        """A new decomposition with ``by`` more components; the old ones first, unchanged.  See :func:`npeff_nb.decomposition.refinement.expand`."""
        from npeff_nb.decomposition.refinement import expand

        return expand(self, X, by)

    def merge(self, components: Any, X: Any) -> Self:
        """A new decomposition in which ``components`` are one.  See :func:`npeff_nb.decomposition.refinement.merge`."""
        from npeff_nb.decomposition.refinement import merge

        return merge(self, components, X)

    def split(self, component: int, X: Any, into: int = 2) -> Self:
        """A new decomposition in which one component is several.  See :func:`npeff_nb.decomposition.refinement.split`."""
        from npeff_nb.decomposition.refinement import split

        return split(self, component, X, into)

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
        return strongest(self.coefficients_[:, k], n)

    def example_table(self) -> pd.DataFrame:
        """One row an example: the caller's columns (where the fit was on PEFs) and

        ``component``, the one with the largest coefficient (none for an example that uses none); ``coefficient`` of it; ``components``, how many it
        uses; ``explained`` and ``unexplained``, the shares of its unit-norm Fisher's energy that all components together explain, and that
        none does.  A column of the caller's that has one of these names keeps it.
        """
        check_is_fitted(self, "components_")
        W = self.coefficients_
        main = pd.array(W.argmax(1), dtype="Int64")
        main[W.max(1) == 0] = pd.NA
        found = {
            "component": main, "coefficient": W.max(1), "components": (W > 0).sum(1), "explained": self.example_explained_,
            "unexplained": 1 - self.example_explained_,
        }  # fmt: skip
        examples = pd.DataFrame(index=range(len(W))) if self.examples is None else self.examples
        return examples.assign(**{name: value for name, value in found.items() if name not in examples.columns})

    @property
    def dead_components_(self) -> np.ndarray:
        """Numbers of components that no example uses: more were asked for than these Fishers have."""
        check_is_fitted(self, "components_")
        return np.flatnonzero(~(self.coefficients_ > 0).any(0))

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
            raise ValueError(f"this {type(self).__name__} was fitted on an array: there are no examples and no model behind it")
        self.subject = subject_again(self, model, tokenizer, output, logits, inputs)
        return self

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def __copy__(self) -> Self:
        found = object.__new__(type(self))
        found.__dict__.update(self.__dict__)
        return found

    def __getstate__(self) -> dict[str, Any]:
        # A model is large, may be no more than a local function, and is not ours to hand on.
        return {name: value for name, value in vars(self).items() if name != "subject"}

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
        self.notes: dict[int, str] = {}
        self.stars: set[int] = set()
        self.profiles: dict[int, Any] = {}

    # ---------------------------------------------------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike) -> Path:
        """Writes a folder of safetensors and JSON; names, notes and stars that a person gave and profiles that were computed are kept."""
        check_is_fitted(self, "components_")
        arrays = {
            "coefficients": self.coefficients_, "components": self.components_, "projections": self.projections_,
            "component_shares": self.component_shares_, "example_explained": self.example_explained_,
        }  # fmt: skip
        settings = self.get_params()
        if not isinstance(settings["init"], str):
            arrays["init"] = np.asarray(settings.pop("init"), dtype=np.float64)
        # What is no plain value (a device, a random state that has moved on) is not a setting that could be used again.
        settings = {name: value if isinstance(value, (str, int, float, dict, np.generic)) else None for name, value in settings.items()}
        facts: dict[str, Any] = {
            "settings": settings,
            "losses": self.losses_, "n_iter": self.n_iter_, "converged": self.converged_, "restart_losses": self.restart_losses_,
            "reconstruction_err": self.reconstruction_err_, "explained_variance": self.explained_variance_,
            "feature_names": list(getattr(self, "feature_names_in_", [])),
            "labels": {str(k): v for k, v in self.labels.items()},
            "notes": {str(k): v for k, v in self.notes.items()},
            "stars": sorted(self.stars),
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
        """Reads what :meth:`save` wrote; needs no torch.  The model comes back with :meth:`attach`.

        Raises
        ------
        FileNotFoundError, ValueError
            Nothing there, something else, a newer version, or a file that was damaged.
        """
        _, arrays, tables, facts = _files.read_folder(path, KIND)
        try:
            return cls._read(arrays, tables, facts)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} does not fit this npeff_nb ({error}): it was changed since it was written, or a later one wrote it") from error

    @classmethod
    def _read(cls, arrays: dict[str, np.ndarray], tables: dict[str, pd.DataFrame], facts: dict[str, Any]) -> Self:
        self = cls(**facts["settings"] | ({"init": arrays["init"]} if "init" in arrays else {}))
        self._adopt(None)
        self.coefficients_, self.components_, self.projections_ = arrays["coefficients"], arrays["components"], arrays["projections"]
        self.component_shares_, self.example_explained_ = arrays["component_shares"], arrays["example_explained"]
        self.n_features_in_ = self.components_.shape[1]
        if facts.get("feature_names"):
            self.feature_names_in_ = np.array(facts["feature_names"], dtype=object)
        self.losses_, self.n_iter_, self.converged_ = facts["losses"], facts["n_iter"], facts["converged"]
        self.restart_losses_ = facts["restart_losses"]
        self.reconstruction_err_, self.explained_variance_ = facts["reconstruction_err"], facts["explained_variance"]
        self.labels = {int(k): v for k, v in facts["labels"].items()}
        # Files of the first release know neither.
        self.notes, self.stars = {int(k): v for k, v in facts.get("notes", {}).items()}, set(facts.get("stars", []))
        self.profiles = {int(k): v for k, v in facts["profiles"].items()}
        self.facts = facts["facts"]
        if "examples" in tables:
            self.examples, self.parameters = tables["examples"], _pefs.parameters_from_json(tables["parameters"])
            self.logits, self.norms, self.classes = arrays["logits"], arrays["norms"], facts["classes"]
            self.feature_map = FeatureMap.from_json(facts["feature_map"], arrays)
            self.choices = _files.under("choices", arrays)
        return self

    def _checked(self, X: Any, reset: bool) -> Any:
        """Tables and two-dimensional arrays through scikit-learn's own checks, so that its names of features and words of errors hold."""
        from npeff_nb.decomposition.given import as_array

        if reset:
            self.__dict__.pop("feature_names_in_", None)
        if isinstance(X, PEFs) or _rank(X) > 2:
            return X
        X = as_array(X) if hasattr(X, "detach") else X
        return validate_data(self, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite=False)

    def _check_same(self, X: Any, stacklevel: int = 6) -> None:
        """That ``X`` is in the coordinates, and over the parameters, of what was fitted on.

        ``stacklevel`` leads a warning to the caller's line: scikit-learn wraps :meth:`transform` once.
        """
        from npeff_nb.fisher.provenance import of_fingerprints

        if not isinstance(X, PEFs) or self.feature_map is None:
            return
        mine, theirs = set(self.parameters["name"]), set(X.parameters["name"])
        if mine != theirs:
            some = ", ".join(sorted(mine ^ theirs)[:3]) + (" and others" if len(mine ^ theirs) > 3 else "")
            raise ValueError(
                f"these Fishers are over {len(theirs)} parameters and this NPEFF was fitted on {len(mine)}; only one of them has {some}: "
                "extract them with nb.extract_fishers(..., like=npeff)"
            )
        if X.feature_map is not self.feature_map and X.feature_map.id != self.feature_map.id:  # an id is a hash of all of it
            raise ValueError("these Fishers have other coordinates than the ones fitted on; extract them with nb.extract_fishers(..., like=npeff)")
        found = of_fingerprints(self.facts.get("fingerprints", {}), X.facts.get("fingerprints", {}))
        _pefs.warn_of(found, "the Fishers fitted on", stacklevel=stacklevel)

    def _shared(self, found: Given) -> tuple[Rows, float, int]:
        """Rows as the solver sees them, and sums over all processes."""
        if self.shards is None:
            return found.rows, found.total, found.carried
        from npeff_nb.decomposition.shards import shared

        return shared(found, self.shards)

    def _plan(self, n: int, k: int, d: int) -> Plan:
        from npeff_nb.decomposition.minibatch import BATCH
        from npeff_nb.decomposition.plan import plan

        reduction = self.reduction if self.shards is None and isinstance(self.init, str) else "none"
        return plan(n, k, d, self.n_components, self.solver, reduction, (self.solver_options or {}).get("batch", BATCH))

    def _start(self, rows: Rows) -> Tensor | None:
        import torch

        from npeff_nb.decomposition.multiplicative import features

        if isinstance(self.init, str):
            return None
        start, d = np.asarray(self.init, dtype=np.float64), features(rows)
        if start.shape != (self.n_components, d) or not np.isfinite(start).all():
            raise ValueError(f"init has shape {start.shape}; expected finite components ({self.n_components}, {d})")
        return rows.part(torch.from_numpy(start).to(rows.device))

    def _check_settings(self) -> None:
        for name, smallest in (("n_components", 1), ("n_init", 1), ("max_iter", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < smallest:
                raise ValueError(f"{name}={value!r}: it must be a whole number from {smallest} up")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver={self.solver!r} is not known; choose one of {', '.join(map(repr, SOLVERS))}")
        if not isinstance(self.tol, Real) or not 0 <= self.tol < math.inf:
            raise ValueError(f"tol={self.tol!r}: it must be a finite number that is not negative")
        share = isinstance(self.reduction, Real) and not isinstance(self.reduction, bool) and 0 < self.reduction <= 1
        if not share and not (isinstance(self.reduction, str) and self.reduction in REDUCTIONS):
            raise ValueError(f"reduction={self.reduction!r}: choose {', '.join(map(repr, REDUCTIONS))}, or a share of energy above 0, at most 1")
        if isinstance(self.init, str) and self.init != "k-means++":
            raise ValueError(f"init={self.init!r}: choose 'k-means++', or give components (n_components, d)")
        if not isinstance(self.init, str) and self.solver in {"multiplicative", "stiefel"}:
            raise ValueError(f"solver={self.solver!r} draws its own start: leave init='k-means++'")
        if self.shards not in (None, "rows", "columns"):
            raise ValueError(f"shards={self.shards!r}: choose None, 'rows' or 'columns'")
        if self.shards is not None and self.solver == "minibatch":
            raise ValueError("solver='minibatch' works in one process: give shards=None, or another solver")
        if not isinstance(self.solver_options, (dict, type(None))):
            raise ValueError(f"solver_options={self.solver_options!r}: give a dict of keyword arguments, or None")
        from npeff_nb.decomposition.fitting import options_of

        allowed = options_of(self.solver)
        unknown = sorted(set(self.solver_options or {}) - set(allowed))
        if unknown:
            raise ValueError(
                f"solver_options has {', '.join(map(repr, unknown))}, which solver={self.solver!r} does not know; it takes "
                + (", ".join(f"{name}={default!r}" for name, default in allowed.items()) or "none")
            )


def strongest(w: np.ndarray, n: int) -> np.ndarray:
    """Positions of the ``n`` largest of ``w``, falling, the first of equals first; only positive ones."""
    rows = np.flatnonzero(w > 0)  # coefficients are mostly zero, and a partition of equal numbers is slow
    if 0 < n < len(rows):
        values = w[rows]
        rows = rows[values >= np.partition(values, len(rows) - n)[len(rows) - n]]
    return rows[np.argsort(-w[rows], kind="stable")][:n]


def _of_unit_norm(rows: Rows, H: Tensor) -> tuple[Tensor, Tensor]:
    """Components as they are reported and their projections, counted anew: what solvers carry along drifts, weights on like rows cancel."""
    P = rows.project(H)
    lengths = rows.inner(H, H, P).diagonal().sqrt()
    if bool((lengths == 0).any()):  # nothing was left for them to explain, so that any direction does
        H = H.clone()
        H[lengths == 0] = rows.leading(rows.largest(rows.energies, 1)[0][0])
        return _of_unit_norm(rows, H)
    return H / lengths[:, None], P / lengths


def _turned(W: np.ndarray, P: np.ndarray, X: PEFs) -> np.ndarray:
    from npeff_nb.decomposition.orientation import orientation
    from npeff_nb.fisher.factors import Recipe

    recipe = Recipe.from_json(X.facts["recipe"]) if "recipe" in X.facts else None
    return orientation(W, P, X.logits, X.norms, recipe, X.choices)


def _explained(W: np.ndarray, B: np.ndarray, G: np.ndarray) -> np.ndarray:
    """(n,) share of each unit-norm Fisher's energy that its components explain, 1 − ‖F̂_i − F̃_i‖²."""
    return (W * (2 * B - W @ G)).sum(1)


def _rank(X: Any) -> int:
    """Dimensions of what was given; of a list, one more than of its first part: the parts may differ in length."""
    return 1 + _rank(X[0]) if isinstance(X, (list, tuple)) and X else getattr(X, "ndim", 0)


def generator_of(random_state: Any) -> np.random.Generator:
    """NumPy's generator of a seed; scikit-learn's own kinds of random state give theirs one."""
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31 - 1))
    return np.random.default_rng(random_state)


def _check_memory(plan: Plan) -> None:
    from npeff_nb.decomposition.plan import physical_memory

    there = physical_memory()
    if there is not None and plan.peak_bytes > there:
        raise MemoryError(
            f"this fit needs about {plan.peak_bytes / 2**30:.1f} GB and the machine has {there / 2**30:.1f} GB ({plan.why}); "
            "take fewer examples or components, or solver='minibatch' and transform() in parts"
        )


class _Teller:
    """The plan, and then a bar that says which start is running and how much it explains."""

    def __init__(self, verbose: bool, plan: Plan, total: float) -> None:
        self._total = total
        if verbose:
            say(f"NPEFF: {plan}")
        # How many iterations it will be depends on what they find.
        self._bar = Bar(bool(verbose), None, "fit", "iteration", "the decomposition is as it was")

    def __enter__(self) -> Tell:
        self._bar.__enter__()
        return self._tell

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def _tell(self, what: str, iteration: int, loss: float) -> None:
        if what != self._bar.what:
            self._bar.begin(what)
        self._bar.add(iteration - self._bar.at.done, f"explained={1 - loss / self._total:.4f}")
