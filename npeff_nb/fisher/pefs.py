"""The per-example Fishers (PEFs) of a set of examples: what extraction gives and the decomposition takes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from npeff_nb import _files
from npeff_nb.fisher.features import FeatureMap
from npeff_nb.fisher.predictions import gold_labels, predictions_of, probabilities, probability_of_prediction
from npeff_nb.fisher.sparse import SparseDiagonals, SparseRows

if TYPE_CHECKING:
    from torch import nn

    from npeff_nb.fisher.outputs import Output
    from npeff_nb.fisher.subject import Subject

KIND = "per-example Fishers"


@dataclass
class PEFs:
    """Fishers F_i = A_iᵀA_i of n examples, each by its k factor rows in d features.

    Attributes
    ----------
    factors : (n, k, d) float32, the rows of A_i before normalisation; zero rows where an example has fewer.  Mapped from disk after loading.
    norms : (n,) float64, ‖F_i‖_F of the *full* Fisher over the parameters that take part, exact whatever features were kept.
    logits : (n, c) float32, of the prediction that was decomposed: with few classes kept, of these and *anything else*.
    examples : one row an example, the caller's table.
    parameters : one row a parameter that takes part: ``name``, ``kind``, ``layer``, ``shape``, ``numel``, ``scale`` and ``energy``, its mean share of
        an example's trace (sums to 1).
    classes : names of the c classes.
    feature_map : the coordinates, for ``like=``.
    facts : how this was made: model, versions, seeds, what was asked, texts cut, share of energy kept.
    traces : (n,) float64, tr F_i, exact.
    choices : what was decided for single examples, (n, ·) each: ``outcomes`` kept apart, ``labels`` drawn, the rotation of the rows (``mixing``).
    columns : further numbers an example has, for :meth:`to_frame`.
    sparse : with ``features="topk"``, the kept entries of each factor.
    diagonal : with ``diagonal=``, the data set's diagonal Fisher (p,), in the order of ``parameters``.
    diagonals : with ``diagonal=K``, the K largest entries of each example's diagonal Fisher.
    subject : the live model with its examples; not saved, None after loading.  :meth:`attach` gives it back.
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
    traces: np.ndarray | None = None
    choices: dict[str, np.ndarray] = field(default_factory=dict)
    columns: pd.DataFrame | None = None
    sparse: SparseRows | None = None
    diagonal: np.ndarray | None = None
    diagonals: SparseDiagonals | None = None

    def __len__(self) -> int:
        return len(self.factors)

    def __repr__(self) -> str:
        n, k, d = self.factors.shape
        return (
            f"PEFs({n} examples, {k} factor row{'s' * (k != 1)}, {d} features ({self.feature_map.kind}), "
            f"{len(self.parameters)} parameters with {int(self.parameters['numel'].sum()):,} numbers)"
        )

    @property
    def family(self) -> str:
        """``"categorical"`` or ``"bernoulli"`` (:class:`npeff_nb.fisher.factors.Recipe`)."""
        return self.facts.get("recipe", {}).get("family", "categorical")

    @property
    def probabilities(self) -> np.ndarray:
        """(n, c) float64, of the prediction that was decomposed."""
        return probabilities(self.logits, self.family)

    @property
    def predictions(self) -> np.ndarray:
        """Name of the most probable class of each example, (n,)."""
        found = predictions_of(self)
        assert found is not None, "Fishers always come with logits"
        return found

    # ---------------------------------------------------------------------------------------------------------------- looking

    def to_frame(self) -> pd.DataFrame:
        """The examples' table with what extraction found out about each.

        Adds ``prediction``; ``probability`` of it; ``correct``, where the column ``label`` speaks of the model's classes; ``norm`` ‖F_i‖_F;
        ``trace``; ``kept``, the share of the trace that lies within the features; and, where they say something, ``retained_trace`` (share of the
        trace over the logits that the kept classes carry), ``retained_rows`` (share of the trace that the kept rows carry), ``sampling_error``
        (relative standard error of drawn labels) and ``masked`` (numbers were not finite).  A column of the caller's that has one of these names
        keeps it.
        """
        found: dict[str, Any] = {"prediction": self.predictions, "probability": probability_of_prediction(self)}
        gold = gold_labels(self.examples, self.classes)
        if gold is not None:
            found["correct"] = gold == self.predictions
        found |= {"norm": self.norms} | ({} if self.traces is None else {"trace": self.traces})
        found |= {} if self.columns is None else {name: self.columns[name].to_numpy() for name in self.columns}
        return self.examples.assign(**{name: value for name, value in found.items() if name not in self.examples.columns})

    def parameter_energy(self) -> pd.DataFrame:
        """Who owns the energy: ``layer``, ``kind``, ``share`` of the trace of the average unit-trace Fisher, ``numel``; largest share first.

        One group can own nearly all of it, and then every component is a statement about that group: look here first.
        """
        table = self.parameters.assign(layer=self.parameters["layer"].astype("Int64"))
        found = table.groupby(["layer", "kind"], dropna=False, as_index=False)[["energy", "numel"]].sum().rename(columns={"energy": "share"})
        return found.sort_values("share", ascending=False, kind="stable", ignore_index=True)[["layer", "kind", "share", "numel"]]

    def inner_product_report(self, examples: int = 16, seed: int = 0) -> pd.DataFrame:
        """Errors of the kept inner products on a random sample of pairs.  See :func:`npeff_nb.fisher.fidelity.inner_product_report`."""
        from npeff_nb.fisher.fidelity import inner_product_report

        return inner_product_report(self, examples, seed)

    def diagonal_by_name(self) -> dict[str, np.ndarray]:
        """The data set's diagonal Fisher, (1/n) Σ_i diag F_i, as arrays in the parameters' own shapes.

        Raises
        ------
        ValueError
            When it was not asked for with ``diagonal=``.
        """
        if self.diagonal is None:
            raise ValueError("no diagonal Fisher was kept: extract with diagonal=True (or a number of entries an example)")
        ends = np.cumsum(self.parameters["numel"])
        parts = np.split(self.diagonal, ends[:-1])
        return {name: part.reshape(shape) for name, shape, part in zip(self.parameters["name"], self.parameters["shape"], parts, strict=True)}

    # ---------------------------------------------------------------------------------------------------------------- choosing and joining

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
        factors = self.factors[rows if isinstance(rows, slice) else where]  # a slice of a mapped file stays on disk
        return PEFs(
            factors, self.norms[where], self.logits[where], self.examples.iloc[where].reset_index(drop=True),
            self.parameters, self.classes, self.feature_map, self.facts,
            None if self.subject is None else self.subject.restricted(where),
            None if self.traces is None else self.traces[where],
            {key: value[where] for key, value in self.choices.items()},
            None if self.columns is None else self.columns.iloc[where].reset_index(drop=True),
            None if self.sparse is None else self.sparse.take(where),
            self.diagonal,
            None if self.diagonals is None else self.diagonals.take(where),
        )  # fmt: skip

    def filter(self, condition: str) -> PEFs:
        """The examples for which a condition on :meth:`to_frame`'s columns holds: ``pefs.filter("correct == False and norm > 1")``.

        Raises
        ------
        ValueError
            When the condition cannot be read, or is about a column that is not there; the message names the columns.
        """
        table = self.to_frame().reset_index(drop=True)
        try:
            kept = table.query(condition, engine="python")
        except Exception as error:  # pandas raises whatever the expression runs into
            raise ValueError(
                f"{condition!r} is no condition on these examples ({error}); their columns are {', '.join(map(str, table.columns))}"
            ) from error
        return self[kept.index.to_numpy()]

    @classmethod
    def concatenate(cls, parts: Sequence[PEFs]) -> PEFs:
        """Fishers of several extractions in the same coordinates, one after the other.  The model is not part of the result.

        Raises
        ------
        ValueError
            When they have other coordinates, classes or rows; extract the later ones with ``like=`` the first.
        """
        if not parts:
            raise ValueError("nothing to concatenate: give at least one PEFs")
        first = parts[0]
        for number, other in enumerate(parts[1:], 1):
            if other.feature_map.id != first.feature_map.id:
                raise ValueError(f"part {number} has other coordinates than part 0: extract it with nb.extract_fishers(..., like=parts[0])")
            if (
                other.classes != first.classes
                or other.factors.shape[1:] != first.factors.shape[1:]
                or other.facts.get("recipe") != first.facts.get("recipe")
            ):
                raise ValueError(
                    f"part {number} predicts {len(other.classes)} classes in {other.factors.shape[1]} rows, part 0 {len(first.classes)} in "
                    f"{first.factors.shape[1]}: extract it with the same output= and classes="
                )

        def join(values: list[Any]) -> Any:
            return None if any(v is None for v in values) else np.concatenate(values)

        names = {key: name for part in parts for key, name in part.facts.get("outcome_names", {}).items()}
        facts = first.facts | ({"outcome_names": names} if names else {}) | {"texts_cut": sum(part.facts.get("texts_cut", 0) for part in parts)}
        columns = None if any(p.columns is None for p in parts) else pd.concat([p.columns for p in parts], ignore_index=True)
        if columns is not None and "masked" in columns:
            columns["masked"] = columns["masked"].eq(True)
        if "inner_product_bound" in first.facts:
            facts["inner_product_bound"] = max(p.facts["inner_product_bound"] for p in parts)
        if columns is not None and first.traces is not None:
            norms, traces = np.concatenate([p.norms for p in parts]), np.concatenate([p.traces for p in parts])
            weight = np.divide(traces, norms, out=np.zeros_like(norms), where=norms > 0) * columns.get("retained_rows", 1.0)
            facts["energy_kept"] = float((columns["kept"] * weight).sum() / weight.sum()) if len(parts) > 1 and weight.sum() else facts["energy_kept"]
        weight = np.array([len(p) for p in parts]) / sum(len(p) for p in parts)
        energy = sum(w * p.parameters["energy"].to_numpy() for w, p in zip(weight, parts, strict=True))
        diagonal = (
            None if any(p.diagonal is None for p in parts) else sum(w * p.diagonal for w, p in zip(weight, parts, strict=True)).astype(np.float32)
        )
        return cls(
            np.concatenate([p.factors for p in parts]), np.concatenate([p.norms for p in parts]), np.concatenate([p.logits for p in parts]),
            pd.concat([p.examples for p in parts], ignore_index=True), first.parameters.assign(energy=energy), first.classes, first.feature_map,
            facts, None, join([p.traces for p in parts]), {key: np.concatenate([p.choices[key] for p in parts]) for key in first.choices}, columns,
            SparseRows.joined([p.sparse for p in parts if p.sparse]) if all(p.sparse for p in parts) else None,
            diagonal,
            SparseDiagonals.joined([p.diagonals for p in parts if p.diagonals]) if all(p.diagonals for p in parts) else None,
        )  # fmt: skip

    # ---------------------------------------------------------------------------------------------------------------- the model behind it

    def attach(self, model: nn.Module, tokenizer: Any = None, *, output: Output | None = None, logits: Any = None, inputs: Any = None) -> Self:
        """Gives loaded Fishers their model back.  Returns self.

        Warns when it is not the model of the extraction, naming what differs; the Fishers themselves do not change.

        Raises
        ------
        ValueError
            When the model lacks one of the parameters, or has it in another shape.
        """
        from npeff_nb.fisher.reattach import subject_again

        self.subject = subject_again(self, model, tokenizer, output, logits, inputs)
        return self

    # ---------------------------------------------------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike, factors: Path | None = None) -> Path:
        """Writes a folder of safetensors and JSON (nothing that runs when it is read).

        ``factors`` names a file in which an extraction has put them already (:func:`npeff_nb._files.allocate`).
        """
        arrays = {"norms": self.norms, "logits": self.logits} | self.feature_map.arrays()
        arrays |= _files.named("choices", self.choices)
        arrays |= {} if self.traces is None else {"traces": self.traces}
        arrays |= {} if self.sparse is None else _files.named("sparse", self.sparse.arrays())
        arrays |= {} if self.diagonals is None else _files.named("diagonals", self.diagonals.arrays())
        facts = self.facts | {"classes": self.classes, "feature_map": self.feature_map.to_json()}
        tables = {"examples": self.examples, "parameters": parameters_to_json(self.parameters)}
        tables |= {} if self.columns is None else {"columns": self.columns}
        mapped: dict[str, np.ndarray | Path] = {"factors": factors or np.asarray(self.factors, dtype=np.float32)}
        mapped |= {} if self.diagonal is None else {"diagonal": self.diagonal}
        return _files.write_folder(path, KIND, arrays, tables, facts, mapped)

    @classmethod
    def load(cls, path: str | os.PathLike) -> PEFs:
        """Reads what :meth:`save` wrote.  The model is not part of it."""
        _, arrays, tables, facts = _files.read_folder(path, KIND)
        sparse, diagonals = _files.under("sparse", arrays), _files.under("diagonals", arrays)
        feature_map = FeatureMap.from_json(facts.pop("feature_map"), arrays)
        parameters = parameters_from_json(tables["parameters"])
        size = int(parameters["numel"].sum())
        return cls(
            arrays["factors"], arrays["norms"], arrays["logits"], tables["examples"], parameters, facts.pop("classes"), feature_map, facts, None,
            arrays.get("traces"), _files.under("choices", arrays), tables.get("columns"),
            SparseRows.from_arrays(sparse, size) if sparse else None, arrays.get("diagonal"),
            SparseDiagonals.from_arrays(diagonals, size) if diagonals else None,
        )  # fmt: skip


def parameters_to_json(parameters: pd.DataFrame) -> pd.DataFrame:
    """Shapes as text, since a JSON table has no tuples."""
    return parameters.assign(shape=[" x ".join(map(str, shape)) for shape in parameters["shape"]])


def parameters_from_json(table: pd.DataFrame) -> pd.DataFrame:
    """The other way round."""
    shapes = [tuple(int(x) for x in shape.split(" x ")) if shape else () for shape in table["shape"]]
    table = table if "scale" in table.columns else table.assign(scale=1.0)  # version 1 knew no scales
    return table.assign(shape=shapes).astype({"layer": "Int64"})


def warn_of(differences: list[str], what: str, stacklevel: int = 3) -> None:
    """One warning that names what differs between the model of an extraction and another."""
    if differences:
        warnings.warn(f"this is not the model that {what} were taken from: {'; '.join(differences)}", stacklevel=stacklevel)
