"""The per-example Fishers (PEFs) of a set of examples: what extraction gives and the decomposition takes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from npeff_nb import _files
from npeff_nb.fisher.predictions import predicted_classes, probabilities

if TYPE_CHECKING:
    from npeff_nb.fisher.features import FeatureMap
    from npeff_nb.fisher.subject import Subject

KIND = "per-example Fishers"


@dataclass
class PEFs:
    """Fishers F_i = A_iᵀA_i of n examples, each by its k factor rows in d features.

    Attributes
    ----------
    factors : (n, k, d) float32, the rows of A_i before normalisation; zero rows where an example has fewer.
    norms : (n,) float64, ‖F_i‖_F of the *full* Fisher over the parameters that take part, exact whatever features were kept.
    logits : (n, c) float32.
    examples : one row an example, the caller's table.
    parameters : one row a parameter that takes part: ``name``, ``kind``, ``layer``, ``shape``, ``numel`` and ``energy``, its mean share of
        an example's trace (sums to 1).
    classes : names of the c classes.
    feature_map : the coordinates, for ``like=``.
    facts : how this was made: model, versions, seeds, texts cut, share of energy kept.
    subject : the live model with its examples; not saved, None after loading.  A decomposition gets it back with
        :meth:`npeff_nb.NPEFF.attach`.
    """

    factors: np.ndarray
    norms: np.ndarray
    logits: np.ndarray
    examples: pd.DataFrame
    parameters: pd.DataFrame
    classes: list[str]
    feature_map: FeatureMap
    facts: dict[str, Any] = field(default_factory=dict)
    subject: Subject | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.factors)

    def __repr__(self) -> str:
        n, k, d = self.factors.shape
        return (
            f"PEFs({n} examples, {k} factor row{'s' * (k != 1)}, {d} features ({self.feature_map.kind}), "
            f"{len(self.parameters)} parameters with {int(self.parameters['numel'].sum()):,} numbers)"
        )

    @property
    def probabilities(self) -> np.ndarray:
        """softmax(logits), (n, c) float64."""
        return probabilities(self.logits)

    @property
    def predictions(self) -> np.ndarray:
        """Name of the most probable class of each example, (n,)."""
        return predicted_classes(self.logits, self.classes)

    def __getitem__(self, rows: Any) -> PEFs:
        """Some of the examples: a boolean mask, positions or a slice.  The subject stays behind with all of them."""
        rows = np.asarray(rows) if not isinstance(rows, slice) else rows
        if isinstance(rows, np.ndarray) and rows.size == 0 and rows.dtype != bool:
            rows = rows.astype(int)  # numpy makes an empty list one of floats
        if isinstance(rows, np.ndarray) and rows.dtype == bool and rows.shape != (len(self),):
            raise IndexError(f"the mask has shape {rows.shape}; expected ({len(self)},), one value an example")
        where = np.arange(len(self))[rows]
        if where.ndim != 1:
            raise IndexError(f"pefs[{rows!r}] asks for one example; ask for a list of positions, a slice or a mask")
        return PEFs(
            self.factors[where], self.norms[where], self.logits[where], self.examples.iloc[where].reset_index(drop=True),
            self.parameters, self.classes, self.feature_map, self.facts,
            None if self.subject is None else self.subject.restricted(where),
        )  # fmt: skip

    def save(self, path: str | os.PathLike) -> Path:
        """Writes a folder of safetensors and JSON (nothing that runs when it is read)."""
        fm = self.feature_map
        arrays = {"factors": self.factors, "norms": self.norms, "logits": self.logits}
        if fm.basis is not None:
            arrays["basis"] = fm.basis
        facts = self.facts | {"classes": self.classes, "feature_map": feature_map_facts(fm)}
        tables = {"examples": self.examples, "parameters": parameters_to_json(self.parameters)}
        return _files.write_folder(path, KIND, arrays, tables, facts)

    @classmethod
    def load(cls, path: str | os.PathLike) -> PEFs:
        """Reads what :meth:`save` wrote.  The model is not part of it."""
        _, arrays, tables, facts = _files.read_folder(path, KIND)
        feature_map = feature_map_from(facts.pop("feature_map"), arrays.get("basis"))
        return cls(
            arrays["factors"], arrays["norms"], arrays["logits"], tables["examples"], parameters_from_json(tables["parameters"]),
            facts.pop("classes"), feature_map, facts,
        )  # fmt: skip


def feature_map_facts(fm: FeatureMap) -> dict[str, Any]:
    """A feature map as JSON; its basis is kept among the arrays."""
    return {"kind": fm.kind, "names": fm.names, "shapes": [list(s) for s in fm.shapes], "seed": fm.seed, "side": fm.side}


def feature_map_from(facts: dict[str, Any], basis: np.ndarray | None) -> FeatureMap:
    """The other way round."""
    from npeff_nb.fisher.features import FeatureMap

    return FeatureMap(facts["kind"], facts["names"], [tuple(s) for s in facts["shapes"]], facts["seed"], facts["side"], basis)


def parameters_to_json(parameters: pd.DataFrame) -> pd.DataFrame:
    """Shapes as text, since a JSON table has no tuples."""
    return parameters.assign(shape=[" x ".join(map(str, shape)) for shape in parameters["shape"]])


def parameters_from_json(table: pd.DataFrame) -> pd.DataFrame:
    """The other way round."""
    shapes = [tuple(int(x) for x in shape.split(" x ")) if shape else () for shape in table["shape"]]
    return table.assign(shape=shapes).astype({"layer": "Int64"})
