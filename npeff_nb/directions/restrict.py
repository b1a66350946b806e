"""Where an edit lives: a direction cut down to some layers or kinds of matrix, and how much of its effect each of them carries.

A part keeps the very numbers it has in the whole direction and is *not* brought back to unit norm: the parts add up to the direction, so that at one
strength each of them is a piece of one and the same edit.  Their KLs do not add up; each part also meets what the others changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch import nn

from npeff_nb.directions.lift import Direction, direction, norm, subject_of
from npeff_nb.directions.perturb import edited_logits, kl
from npeff_nb.fisher.parameters import choose_parameters

if TYPE_CHECKING:
    from npeff_nb.decomposition.factorisation import Factorisation

N_TOP = 32
"""Top examples of a component on which its parts are judged, as many as in its profile."""
BY = ("layer", "kind", "name")


def restricted(whole: Direction, parameters: str | list[str], model: nn.Module) -> Direction:
    """The part of a direction that lies in some of its parameters, unchanged there: its norm is the root of its share of the energy.

    Parameters
    ----------
    parameters : as in :func:`npeff_nb.extract_fishers`: a pattern on the names, a kind, a range of layers, joined by ``&`` and turned round by ``!``,
        or a list of these (:func:`npeff_nb.fisher.parameters.choose_parameters`).

    Raises
    ------
    ValueError
        When nothing of the direction is left.
    """
    wanted = set(choose_parameters(model, parameters)["name"])
    found = Direction({name: value for name, value in whole.items() if name in wanted})
    if not found:
        raise ValueError(
            f"parameters={parameters!r} keeps none of the {len(whole)} parameters that this direction moves, such as {next(iter(whole), 'none')!r}"
        )
    # Exact where the whole is the component's own direction: ⟨part, whole⟩ = ‖part‖².
    found.cosine, found.examples = whole.cosine * norm(found) / norm(whole), whole.examples
    return found


def shares_of_effect(
    npeff: Factorisation, k: int, strength: float, by: str = "layer", rows: np.ndarray | None = None, whole: Direction | None = None
) -> pd.DataFrame:
    """How much of a component's edit each layer, kind of matrix or single parameter carries: one row a part, and a last one for ``all``.

    Parameters
    ----------
    strength : of the whole direction; the parts are moved by the same numbers as within it.
    by : ``"layer"``, ``"kind"`` or ``"name"``.
    rows : examples to judge on; by default the component's :data:`N_TOP` top examples.
    whole : the component's direction, where it is at hand already.

    Returns
    -------
    DataFrame with ``part`` (as ``parameters=`` understands it, but for ``no layer``), ``parameters``, how many of them; ``energy``, the part's share
    of ‖direction‖²; ``kl_alone``, mean KL(edited ‖ original) in nats on the rows when this part alone is moved, and ``kl_without``, when
    everything else is.  The two differ where parts work together: a part with little of either adds nothing, one with much ``kl_alone`` whose loss is
    hardly felt has others beside it that do the same.

    Raises
    ------
    ValueError
        When there is no such component or grouping, no model, or no example to judge on.
    """
    k = npeff.check_component(k)
    if by not in BY:
        raise ValueError(f"by={by!r}: parts are made by {', '.join(map(repr, BY))}")
    subject = subject_of(npeff)
    rows = npeff.top_examples(k, N_TOP) if rows is None else np.asarray(rows)
    if not len(rows):
        raise ValueError(f"component {k} has no example to judge its parts on: no example uses it, or rows= is empty")
    whole = direction(npeff, k) if whole is None else whole
    original = subject.logits(rows).numpy()

    def mean_kl(names: list[str]) -> float:
        part = {name: whole[name] for name in names}
        return float(kl(edited_logits(subject, part, [strength], rows)[0], original, npeff.family).mean())

    table = npeff.parameters.set_index("name", drop=False).loc[list(whole)].reset_index(drop=True)
    table["energy"] = [norm({name: value}) ** 2 for name, value in whole.items()]
    layers = table["layer"].map(lambda layer: "no layer" if pd.isna(layer) else f"layer {layer}")
    found = [
        {
            "part": part, "parameters": len(own), "energy": own["energy"].sum() / table["energy"].sum(), "kl_alone": mean_kl(list(own["name"])),
            "kl_without": mean_kl(list(table["name"].drop(own.index))),
        }
        for part, own in [*table.groupby(layers if by == "layer" else by, sort=False), ("all", table)]
    ]  # fmt: skip
    return pd.DataFrame(found)
