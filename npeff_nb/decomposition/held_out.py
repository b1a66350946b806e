"""Explained variance of examples that took no part in a fit: splits of the examples, and one fit with its two scores."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from npeff_nb.decomposition.factorisation import Factorisation, generator_of
from npeff_nb.decomposition.given import as_rows, given
from npeff_nb.fisher.pefs import PEFs

Groups: TypeAlias = str | list | np.ndarray | pd.Series | None
Split: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Positions of the examples to fit on, and of the ones held out."""


@dataclass(frozen=True)
class Explained:
    """Share of the Fishers that a fit explains: of those fitted on, of those held out; and its components that no example uses."""

    training: float
    held_out: float
    dead: int


def examples_of(X: Any) -> PEFs | np.ndarray:
    """PEFs as they are, all else as rows (n, k, d): what can be asked for some of its examples.

    Raises
    ------
    ValueError
        ``X`` is no Fishers, or has values that are not finite.
    """
    given(X)  # examples are counted as the caller counts them
    return X if isinstance(X, PEFs) else as_rows(X)


def splits(X: PEFs | np.ndarray, held_out: float, number: int, groups: Groups, rng: np.random.Generator) -> list[Split]:
    """Random splits of the examples; a group is on one side as a whole.

    Parameters
    ----------
    held_out : share of the examples that is held out, above 0 and below 1; of groups, so many that it is met as nearly as can be.
    groups : (n,) one value an example, or a column of the PEFs' examples.  By default PEFs with the same ``text`` are a group: a copy of an example
        that was fitted on is not held out.
    """
    if isinstance(held_out, bool) or not isinstance(held_out, Real) or not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out!r}: it must be a share of the examples above 0 and below 1, such as 0.2")
    of_each = _groups(X, groups)
    sizes = np.bincount(of_each)
    if len(sizes) < 2:
        raise ValueError(f"X has {len(X)} examples in {len(sizes)} group: at least two groups are needed, to fit on one and hold out another")
    found = []
    for _ in range(number):
        order = rng.permutation(len(sizes))
        count = 1 + int(np.abs(np.cumsum(sizes[order])[:-1] - held_out * len(X)).argmin())
        out = np.isin(of_each, order[:count])
        found.append((np.flatnonzero(~out), np.flatnonzero(out)))
    return found


def carried(X: PEFs | np.ndarray, every: list[Split]) -> int:
    """Non-zero factor rows of the training part that has the fewest: so many components it can carry."""
    rows = (X.factors if isinstance(X, PEFs) else X).any(axis=2).sum(1)
    return min(int(rows[training].sum()) for training, _ in every)


def check_carried(X: PEFs | np.ndarray, most: int, every: list[Split]) -> None:
    """That every training part has rows for ``most`` components."""
    there = carried(X, every)
    if most > there:
        raise ValueError(
            f"{most} components are more than the examples left to fit on can carry: {min(len(t) for t, _ in every)} of {len(X)}, with {there} "
            f"non-zero factor rows; choose at most {there}, or hold out fewer"
        )


def explained(training: PEFs | np.ndarray, held_out: PEFs | np.ndarray, r: int, seed: int, settings: dict[str, Any]) -> Explained:
    """One fit of ``r`` components, scored on what it was fitted on and on what it was not; for PEFs as shares of the *full* Fishers."""
    npeff = Factorisation(r, random_state=seed, **settings).fit(training)
    return Explained(npeff.explained_variance_, npeff.score(held_out), len(npeff.dead_components_))


def check_count(name: str, value: Any, smallest: int = 1) -> int:
    """``value`` as an int, or an error that says what is allowed."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < smallest:
        raise ValueError(f"{name}={value!r}: it must be a whole number from {smallest} up")
    return int(value)


def check_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings for fits that are to differ by their seed, or an error.

    Raises
    ------
    ValueError
        Components to start from: all fits would begin, and end, at the same place.
    TypeError
        A setting that the estimator does not have, or that is not one of all fits.
    """
    known = set(Factorisation().get_params()) - {"n_components", "random_state"}  # what these fits differ in
    unknown = sorted(set(settings) - known)
    if unknown:
        raise TypeError(f"{', '.join(unknown)}: no such setting of these fits; they take {', '.join(sorted(known))}")
    if not isinstance(settings.get("init", ""), str):
        raise ValueError("init= gives components to start from: here fits begin anew, each with a seed of its own; leave it out")
    return settings


def generator(random_state: Any) -> np.random.Generator:
    """A stream of its own: the examples that coordinates were fitted to are drawn from plain seeds, and must not be the very ones held out."""
    return generator_of(random_state).spawn(1)[0]


def seed(rng: np.random.Generator) -> int:
    """A seed for something that is to depend on nothing that was drawn before or after."""
    return int(rng.integers(2**31))


def _groups(X: PEFs | np.ndarray, groups: Groups) -> np.ndarray:
    if groups is None and isinstance(X, PEFs) and "text" in X.examples.columns:
        texts = X.examples[[c for c in ("text", "text_pair") if c in X.examples.columns]]
        return texts.groupby(list(texts.columns), sort=False, dropna=False).ngroup().to_numpy()
    if groups is None:
        return np.arange(len(X))
    if isinstance(groups, str):
        if not isinstance(X, PEFs) or groups not in X.examples.columns:
            there = ", ".join(map(str, X.examples.columns)) if isinstance(X, PEFs) else "none, since X is an array"
            raise ValueError(f"groups={groups!r} is no column of the examples; they have {there}")
        groups = X.examples[groups]
    values = np.asarray(groups)
    if values.shape != (len(X),):
        raise ValueError(f"groups has shape {values.shape}; expected one value for each of the {len(X)} examples")
    return pd.factorize(values, use_na_sentinel=False)[0]
