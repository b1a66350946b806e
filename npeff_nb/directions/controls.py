"""Directions that a component is held against: each is a cheaper explanation of what its edit does.

``random``
    Gaussian noise of the same length (:func:`~npeff_nb.directions.lift.random_direction`): is it more than moving at all?  Weak: nearly all
    directions of a large model do next to nothing.
``combination``
    The component's own gradients with random weights: is it how they are put together, or would anything made of these examples do?
``kmeans``
    The centroid of a cluster of unit gradients: would clustering have found it?
``other``
    Another component: is it this one, or any?

Each is a unit-norm :class:`~npeff_nb.directions.lift.Direction` over the decomposition's parameters, and equal seeds give equal ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans

from npeff_nb.decomposition.factorisation import Factorisation
from npeff_nb.directions.lift import COVERAGE, Direction, combined, direction, norm, random_direction, subject_of, support
from npeff_nb.fisher.factors import Recipe
from npeff_nb.fisher.pefs import PEFs

KINDS = ("random", "combination", "kmeans", "other")
STARTS = 4
"""Starts of k-means, as many as a decomposition takes."""


def random_combination(npeff: Factorisation, k: int, seed: int = 0, coverage: float = COVERAGE) -> Direction:
    """Σ ω_iy · (unit-norm factor row iy), ω ~ N(0, 1), over the examples and rows that make up component ``k``.

    Parameters
    ----------
    coverage : as for :func:`~npeff_nb.directions.lift.direction`, so that the very same examples take part.
    """
    k = npeff.check_component(k)
    theta = npeff.row_weights(k)
    rows, _ = support(theta, npeff.projections_[:, :, k], coverage)
    drawn = np.random.default_rng([seed, k]).standard_normal(theta[rows].shape)
    return _lifted(npeff, rows, np.where(theta[rows] != 0, drawn, 0.0))


def other_component(npeff: Factorisation, k: int) -> int:
    """The component whose direction is most similar to that of ``k`` by |cosine|, among those that examples use.

    Raises
    ------
    ValueError
        When there is no other one.
    """
    k = npeff.check_component(k)
    cosines = np.abs(npeff.components_ @ npeff.components_[k])
    cosines[k] = cosines[npeff.dead_components_] = -1.0
    best = int(cosines.argmax())
    if cosines[best] < 0:
        raise ValueError(f"component {k} is the only one that examples use: there is no other to hold it against")
    return best


@dataclass(frozen=True)
class Clusters:
    """Unit gradients g_i of n examples in m clusters.

    Attributes
    ----------
    labels : (n,) number of each example's cluster; −1 where an example has no gradient.
    weights : (n, k), g_i = Σ_y weights_iy · (unit-norm factor row iy).
    centroids : (m, d), the mean of each cluster's g_i in the features' coordinates.
    """

    labels: np.ndarray
    weights: np.ndarray
    centroids: np.ndarray

    def lifted(self, npeff: Factorisation, number: int) -> Direction:
        """The centroid of one cluster in parameter space; + makes the predictions of its examples likelier."""
        rows = np.flatnonzero(self.labels == number)
        return _lifted(npeff, rows, self.weights[rows])

    def nearest(self, component: np.ndarray) -> int:
        """The cluster whose centroid is most similar to ``component`` (d,) by |cosine|."""
        lengths = np.linalg.norm(self.centroids, axis=1)
        return int((np.abs(self.centroids @ component) / np.maximum(lengths, np.finfo(float).tiny)).argmax())


def clusters(fishers: PEFs, npeff: Factorisation, n_clusters: int, seed: int = 0) -> Clusters:
    """k-means of the examples' unit gradients ∇log p(ŷ) / ‖∇log p(ŷ)‖ of the class ŷ that is predicted.

    The gradient of the prediction, and not the Fisher's leading direction: it is what people cluster who have no Fisher, and it has a sign, without
    which a mean says nothing.  For the usual rows it is the first one, row_1 ∝ e_ŷ − p (:mod:`npeff_nb.fisher.factors`); of a Fisher of single
    labels, the gradient of that label.  Only inner products count, so the features that were kept serve as coordinates.

    Parameters
    ----------
    fishers : the PEFs that ``npeff`` was fitted on: a decomposition does not keep their rows.

    Raises
    ------
    ValueError
        Other Fishers than those, or more clusters than examples with a gradient.
    """
    _check_fishers(fishers, npeff)
    weights = _prediction_weights(fishers)
    scale = np.sqrt(np.where(npeff.norms > 0, npeff.norms, 1.0))
    gradients = np.einsum("nk,nkd->nd", (weights / scale[:, None]).astype(np.float32), fishers.factors)
    lengths = np.linalg.norm(gradients, axis=1)
    there = np.flatnonzero((lengths > 0) & (npeff.norms > 0))
    if not 1 <= n_clusters <= len(there):
        raise ValueError(f"n_clusters={n_clusters}: {len(there)} examples have a gradient; choose from 1 to {len(there)}")
    unit = gradients[there] / lengths[there, None]
    found = KMeans(n_clusters, n_init=STARTS, random_state=seed).fit(unit)
    labels = np.full(len(fishers), -1)
    labels[there] = found.labels_
    weights[there] /= lengths[there, None]
    return Clusters(labels, weights, found.cluster_centers_.astype(np.float64))


def kmeans_directions(fishers: PEFs, npeff: Factorisation, n_clusters: int, seed: int = 0) -> list[Direction]:
    """All centroids of :func:`clusters` in parameter space.  Each takes as much memory as the parameters that took part."""
    found = clusters(fishers, npeff, n_clusters, seed)
    return [found.lifted(npeff, number) for number in range(n_clusters)]


def control(npeff: Factorisation, k: int, kind: str | int, like: Direction, found: Clusters | None = None, seed: int = 0) -> Direction:
    """One of :data:`KINDS`, or the component with that number, as a control of component ``k``.

    It is over the parameters of ``like``, the component's direction or a part of it, as long as it, and turned to its side, so that signs can be
    compared: + for one is + for the other.  ``found`` is needed for ``"kmeans"``, of which the centroid most similar to the component is taken.
    """
    if kind == "random":
        made = random_direction(like, _one_seed(seed, k))
    elif kind == "combination":
        made = random_combination(npeff, k, seed)
    elif kind == "kmeans":
        assert found is not None, "k-means directions come from clusters"
        made = found.lifted(npeff, found.nearest(npeff.components_[k]))
    else:
        made = direction(npeff, other_component(npeff, k) if kind == "other" else npeff.check_component(int(kind)))
    kept = Direction({name: made[name] for name in like if name in made})
    length, along = norm(kept), sum(float((value.double() * like[name]).sum()) for name, value in kept.items())
    if length == 0:
        raise ValueError(f"the control {kind!r} of component {k} is zero over the parameters of the direction that it is held against")
    for value in kept.values():
        value *= (-1 if along < 0 else 1) * norm(like) / length
    kept.examples = made.examples
    return kept


def _one_seed(*numbers: int) -> int:
    """One seed of several, so that neighbouring ones have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _lifted(npeff: Factorisation, rows: np.ndarray, weights: np.ndarray) -> Direction:
    found, length = combined(npeff, subject_of(npeff), rows, weights)
    if not np.isfinite(length) or length == 0:
        raise ValueError(f"the gradients of {len(rows)} examples add up to length {length}: they give no direction")
    return found


def _prediction_weights(fishers: PEFs) -> np.ndarray:
    """(n, k) weights on the factor rows, before normalisation, that add up to a positive multiple of ∇log p(ŷ)."""
    recipe = Recipe.from_json(fishers.facts["recipe"]) if "recipe" in fishers.facts else Recipe()
    n, k = fishers.factors.shape[:2]
    mixing = fishers.choices.get("mixing")
    found = np.zeros((n, k if mixing is None else mixing.shape[2]))
    if recipe.fisher == "true" and recipe.family == "bernoulli":
        # row_l = √(p_l(1−p_l)) ∇z_l and ∇log p(ŷ) = Σ_l (ŷ_l − p_l) ∇z_l.
        z = fishers.logits.astype(np.float64)
        found[:, : z.shape[1]] = np.sign(z) * np.exp(-np.abs(z) / 2)
    elif recipe.rows == "classes":
        found[np.arange(n), fishers.logits.argmax(1)] = 1.0
    else:  # the first of the reduced rows, or the only one
        found[:, 0] = 1.0
    # Rows turned onto an example's principal axes: turned back, as far as they were kept.
    return found if mixing is None else np.einsum("nqk,nk->nq", mixing, found)


def _check_fishers(fishers: PEFs, npeff: Factorisation) -> None:
    if npeff.examples is None:
        raise ValueError("this decomposition was fitted on an array; fit it on the result of nb.extract_fishers to lift directions")
    if not isinstance(fishers, PEFs):
        raise ValueError(f"fishers is a {type(fishers).__name__}; k-means needs the PEFs that the decomposition was fitted on")
    if len(fishers) != len(npeff.coefficients_) or not np.array_equal(fishers.logits, npeff.logits, equal_nan=True):
        raise ValueError(
            f"fishers are not the {len(npeff.coefficients_)} that this decomposition was fitted on "
            f"({len(fishers)} examples{'' if len(fishers) != len(npeff.coefficients_) else ' with other predictions'}): give those"
        )
    if fishers.feature_map.id != npeff.feature_map.id:
        raise ValueError("fishers have other coordinates than the ones fitted on: give the PEFs that the decomposition was fitted on")
