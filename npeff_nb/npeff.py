"""NPEFF as people use it: the factorisation, and what the later rooms make of its components.

Stands after those rooms and before the pictures, so that no room needs to know one that comes after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from npeff_nb.decomposition.factorisation import Factorisation
from npeff_nb.explain.describe import component_table

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from npeff_nb.directions.lift import Direction
    from npeff_nb.directions.perturb import Edit
    from npeff_nb.directions.trace import Trace


class NPEFF(Factorisation):  # noqa: D101 - documented where its parameters are
    __doc__ = Factorisation.__doc__

    def component_table(self, **options: Any) -> pd.DataFrame:
        """One row a component: label, shares, users, what its top examples have in common.  See :func:`npeff_nb.explain.describe.component_table`."""
        check_is_fitted(self, "components_")
        return component_table(self, **options)

    def direction(self, k: int, model: nn.Module | None = None) -> Direction:
        """Component ``k`` in parameter space: parameter name -> tensor, unit L2 norm over all.  See :func:`npeff_nb.directions.lift.direction`."""
        from npeff_nb.directions.lift import direction

        return direction(self, k, model)

    def perturb(self, k: int, strength: float) -> Edit:
        """The model of the decomposition moved along component ``k`` inside a ``with`` block: negative turns the component down.

        See :func:`npeff_nb.directions.perturb.perturb`, which takes any model and direction.
        """
        from npeff_nb.directions.lift import subject_of
        from npeff_nb.directions.perturb import perturb

        return perturb(subject_of(self).model, self.direction(k), strength)

    def sweep(self, components: Iterable[int] | None = None, strengths: Iterable[float] | None = None, **options: Any) -> pd.DataFrame:
        """Components and controls as edits of several strengths and both signs, judged example by example.

        See :func:`npeff_nb.directions.sweeps.sweep`, and :mod:`nb.sweeps <npeff_nb.directions.sweeps>` for what reads the table.
        """
        from npeff_nb.directions.sweeps import STRENGTHS, sweep

        check_is_fitted(self, "components_")
        return sweep(self, components, STRENGTHS if strengths is None else strengths, **options)

    def trace(self, k: int, example: int | str | tuple[str, str], **options: Any) -> Trace:
        """Where component ``k`` enters the network and how it reaches the logits of one example.  See :func:`npeff_nb.directions.trace.trace`."""
        from npeff_nb.directions.trace import trace

        check_is_fitted(self, "components_")
        return trace(self, k, example, **options)

    def profile(self, components: int | Iterable[int] | None = None, progress: bool = True) -> Self:
        """Computes and keeps what pictures of components show: direction, layers, token shares, edits.  All components by default; returns self.

        See :func:`npeff_nb.explain.profile.profile`.
        """
        from npeff_nb.explain.profile import profile_all

        check_is_fitted(self, "components_")
        profile_all(self, [components] if isinstance(components, (int, np.integer)) else components, progress)
        return self
