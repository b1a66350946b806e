"""HDF5 files of decompositions as the reference implementation of NPEFF writes and reads them.

Three kinds, after the files of Fishers (:mod:`npeff_nb.interop.reference_files`) that they were made of.

``LRM``, ``LVRM``
    X_i ≈ Σ_j W_ij g_j g_jᵀ with rows g_j of any length and sign; they differ only in the number of classes, which LVRM leaves open.
``D``
    d_i ≈ Σ_j W_ij h_j with W, H ≥ 0; H dense from the factorisation, sparse from a fit of coefficients.

Components live on the parameters that some Fisher had kept, by address among all p, in the order of the flattened parameters.
Needs h5py, the extra ``interop``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.linalg import solve
from scipy.sparse import csr_array
from sklearn.utils.validation import check_is_fitted

from npeff_nb.interop import _hdf5
from npeff_nb.interop.reference_files import ReferencePEFs

if TYPE_CHECKING:
    from torch import nn

    from npeff_nb.decomposition.factorisation import Factorisation
    from npeff_nb.fisher.pefs import PEFs

SMALLEST_LENGTH = {"LRM": 1e-12, "LVRM": 1e-6}
"""The reference divides an example's rows by √‖F_i‖_F, or by this where that is smaller."""
SAME_PRODUCTS = 1e-3
"""How far projections onto lifted components may lie from the fitted ones: float32 rows leave 1e-5, other Fishers differ by 0.1 and more."""
RIDGE = 1e-12
"""Share of the energy that is added in every direction: fewer examples than were extracted leave some without any."""
LOSSES = ("G_only", "joint")


class RowsOnDisk:
    """A dense matrix of a file that is read one row at a time."""

    def __init__(self, path: Path, name: str, order: np.ndarray, width: int) -> None:
        self.path, self.name, self.order = path, name, order
        self.shape, self.dtype = (len(order), width), np.dtype(np.float32)

    def __getitem__(self, j: int | np.ndarray) -> Any:
        """One row, or the same matrix with its rows in another order."""
        if isinstance(j, np.ndarray):
            return RowsOnDisk(self.path, self.name, self.order[j], self.shape[1])
        with _hdf5.opened(self.path) as file:
            if (now := _hdf5.shape_of(file, self.name, np.float32, 2)) != self.shape:
                raise ValueError(f"{self.name} has shape {now} now, {self.shape} when it was opened: read the decomposition again")
            row = _hdf5.dataset(file, self.name, np.float32, 2, int(self.order[j]))
            _check_entries(self.name, row, self.name == "data/H", int(self.order[j]))
        return row


@dataclass(frozen=True, eq=False)
class ReferenceDecomposition:
    """What a file of the reference holds, and the same for components of unit length.

    Attributes
    ----------
    kind : ``"LRM"``, ``"LVRM"`` or ``"D"``.
    W : (n, r) float32 ≥ 0, as stored: for components as long as they are in ``G``.
    G : (r, m) float32, the components as stored (H of a D file, where none is negative): an array, sparse, or :class:`RowsOnDisk`.  None where a fit
        of coefficients did not repeat them (:meth:`with_components_of`).
    columns : (m,) integer, ascending: which parameters the columns of ``G`` are.
    n_parameters : p.
    n_classes : factor rows an example (LRM), None otherwise.
    losses : ``"G_only"`` and ``"joint"``, float32, as logged (:meth:`corrected_losses`).
    log_loss_frequency : iterations from one logged loss to the next; None where none was logged.
    expanded_from : of an expansion, how many components are the older ones: they come first here, and last in the file.

    Raises
    ------
    ValueError
        When the arrays do not say that.
    """

    kind: Literal["LRM", "LVRM", "D"]
    W: np.ndarray
    G: np.ndarray | csr_array | RowsOnDisk | None
    columns: np.ndarray
    n_parameters: int
    n_classes: int | None = None
    losses: dict[str, np.ndarray] = field(default_factory=dict)
    log_loss_frequency: int | None = None
    expanded_from: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("LRM", "LVRM", "D"):
            raise ValueError(f"kind={self.kind!r} is not known; expected 'LRM', 'LVRM' or 'D'")
        if (self.kind == "LRM") != (self.n_classes is not None):
            raise ValueError(f"n_classes={self.n_classes} in a decomposition of kind {self.kind}; expected a number for LRM and None for the others")
        _check_matrix("W", self.W)
        if self.W.size == 0:
            raise ValueError(f"W has shape {self.W.shape}; expected at least one example and one component")
        for i, row in enumerate(self.W):
            _check_entries("W", row, True, i, f": a fit of coefficients left it unset, read the examples before it with n_examples={i}" if i else "")
        _check_columns(self.columns, self.n_parameters)
        if self.G is not None:
            _check_components("H" if self.kind == "D" else "G", self.G, (self.r, len(self.columns)))
        if isinstance(self.G, csr_array) and self.kind != "D":
            raise ValueError(f"sparse components in a decomposition of kind {self.kind}; only D files hold such: give G.toarray()")
        if unknown := sorted(set(self.losses) - set(LOSSES)):
            raise ValueError(f"losses named {unknown}; expected {' and '.join(LOSSES)}")
        if self.expanded_from is not None and self.kind == "D":
            raise ValueError("expanded_from= of a D file: the reference expands LRM decompositions only")
        if self.expanded_from is not None and not 1 <= self.expanded_from < self.r:
            raise ValueError(f"expanded_from={self.expanded_from} of {self.r} components; expected 1 to {self.r - 1}: an expansion adds at least one")

    def __len__(self) -> int:
        return len(self.W)

    def __repr__(self) -> str:
        n, r = self.W.shape
        return f"ReferenceDecomposition({self.kind}, {n} examples, {r} components over {len(self.columns):,} of {self.n_parameters:,} parameters)"

    @property
    def r(self) -> int:
        """Number of components."""
        return self.W.shape[1]

    @cached_property
    def lengths(self) -> np.ndarray:
        """(r,) float64, ‖g_j‖ of the components as stored.  Read from disk, this is one pass through the file."""
        return np.array([np.linalg.norm(self._stored(j)[1].astype(np.float64)) for j in range(self.r)])

    @cached_property
    def coefficients(self) -> np.ndarray:
        """(n, r) float64, for components of unit length: W_ij ‖g_j‖², or W_ij ‖h_j‖ of a D file."""
        return self.W * (self.lengths if self.kind == "D" else self.lengths**2)

    @cached_property
    def components(self) -> np.ndarray | csr_array:
        """(r, m) float32, each of unit length, zeros where a component is zero; sparse where they are stored so."""
        if isinstance(self.G, csr_array):
            scale = np.repeat(self._inverse_lengths, np.diff(self.G.indptr))
            return csr_array(((self.G.data * scale).astype(np.float32), self.G.indices, self.G.indptr), shape=self.G.shape)
        found = np.empty((self.r, len(self.columns)), dtype=np.float32)
        for j in range(self.r):
            found[j] = self.entries(j)[1]
        return found

    def entries(self, j: int) -> tuple[np.ndarray, np.ndarray]:
        """Component ``j`` at unit length: which of the p parameters (k,), and their values (k,) float32; all others are zero."""
        at, values = self._stored(j)
        length = np.linalg.norm(values.astype(np.float64))
        return self.columns[at], (values / (length or 1.0)).astype(np.float32)

    def component(self, j: int) -> np.ndarray:
        """(p,) float32, component ``j`` at unit length over all parameters."""
        at, values = self.entries(j)
        found = np.zeros(self.n_parameters, dtype=np.float32)
        found[at] = values
        return found

    def with_components_of(self, original: ReferenceDecomposition) -> ReferenceDecomposition:
        """The same coefficients with the components that they were fitted to.

        Raises
        ------
        ValueError
            When ``original`` is of another kind, has other parameters or another number of components, or has them in another order.
        """
        if original.kind != self.kind or original.n_parameters != self.n_parameters or not np.array_equal(original.columns, self.columns):
            raise ValueError(f"{original} keeps other parameters than {self}: coefficients were not fitted to its components")
        if original.expanded_from != self.expanded_from:
            raise ValueError(
                f"the original was read with expanded_from={original.expanded_from} and the coefficients with expanded_from={self.expanded_from}: "
                "their components are in different orders; read both alike"
            )
        return replace(self, G=original.G)

    def corrected_losses(self, pefs: ReferencePEFs) -> dict[str, np.ndarray]:
        """The logged losses as squared errors Σ_i ‖X_i − Σ_j W_ij g_j g_jᵀ‖²_F, float64, by the same names.

        The reference adds T = Σ_i [2 ‖X_i‖² + Σ_y (A_iA_iᵀ)²_yy] where Σ_i ‖X_i‖² belongs, so  true = logged − T + Σ_i ‖X_i‖²  with the very Fishers
        that it factored: on the kept columns, divided by their dense norms.  Float32's rounding of the logged sums stays.

        Raises
        ------
        ValueError
            For an expansion, whose logged losses are wrong in another term as well, which cannot be undone; D files, which log nothing; or Fishers
            that are not the ones it was made of.  A file does not say that it is an expansion: read it with ``expanded_from=``.
        """
        if self.kind == "D":
            raise ValueError("a D file keeps no losses: there is nothing to correct")
        if self.expanded_from is not None:
            raise ValueError(
                "the losses that an expansion logs cannot be corrected: their quadratic term is ⟨WᵀW, S∘S∘S⟩ instead of ⟨WᵀW, S∘S⟩, and the W and G "
                "of each step are not kept"
            )
        rows, k = _unit_rows(self, pefs)
        squares = diagonal = 0.0
        for y in range(k):
            for z in range(y, k):
                products = float(np.square(rows[y::k].multiply(rows[z::k]).sum(axis=1)).sum())  # Σ_i (A_iA_iᵀ)²_yz
                squares += products if y == z else 2 * products
                diagonal += products if y == z else 0.0
        return {name: logged.astype(np.float64) - (squares + diagonal) for name, logged in self.losses.items()}

    @cached_property
    def _inverse_lengths(self) -> np.ndarray:
        return np.divide(1.0, self.lengths, out=np.zeros(self.r), where=self.lengths > 0)

    def _stored(self, j: int) -> tuple[np.ndarray | slice, np.ndarray]:
        """Which columns, and their values in component ``j`` as stored."""
        if isinstance(j, bool) or not isinstance(j, int | np.integer) or not 0 <= j < self.r:
            raise ValueError(f"component {j} does not exist: this decomposition has {self.r} (0 to {self.r - 1}).")
        if self.G is None:
            raise ValueError(
                "this file holds coefficients alone, for components as long as those that they were fitted to: put these back with "
                "with_components_of(original)"
            )
        if isinstance(self.G, csr_array):
            part = slice(*self.G.indptr[j : j + 2])
            return self.G.indices[part], self.G.data[part]
        return slice(None), self.G[j]


# ---------------------------------------------------------------------------------------------------------------- files


def read_decomposition(
    path: str | os.PathLike, *, lazy: bool = False, n_examples: int | None = None, expanded_from: int | None = None
) -> ReferenceDecomposition:
    """Reads a decomposition of any of the three kinds.

    Parameters
    ----------
    path : the file.
    lazy : leaves dense components on disk and reads one when it is asked for; the file must stay where it is.
    n_examples : only the first so many.  The reference's fit of coefficients leaves the rest of its last chunk unset (whatever lay in memory).
    expanded_from : of an expansion, the number of components that it began with.  The file has them last; they come first here, with the numbers
        that they had before.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it is no such file, is incomplete or contradicts itself; the message names the file and the place.
    """
    _hdf5.check_examples(n_examples)
    with _hdf5.opened(path) as file:
        found = _read(file, Path(path), lazy, slice(n_examples))
        if n_examples is not None and len(found) < n_examples:
            raise ValueError(f"data/W has {len(found)} examples; n_examples={n_examples} asks for more")
        # Checks the number before rows are moved by it.
        return found if expanded_from is None else _rolled(replace(found, expanded_from=expanded_from), expanded_from)


def write_decomposition(path: str | os.PathLike, decomposition: ReferenceDecomposition) -> Path:
    """Writes a file of its kind, as the reference's own programs write and read it: W and G as stored, components of an expansion in its order.

    The file is in memory once before it is on disk.

    Raises
    ------
    ValueError
        When the format has no room for so many parameters.
    """
    _hdf5.check_size(decomposition.n_parameters, "leave some out with parameters=")
    d = decomposition if decomposition.expanded_from is None else _rolled(decomposition, -decomposition.expanded_from)
    columns = d.columns.astype(np.int32)
    if d.kind == "D":
        arrays: dict[str, Any] = {"data/W": d.W, "data/reduce_kept_indices": columns}
        attributes: dict[str, dict[str, Any]] = {"data/reduce_kept_indices": {"full_dense_size": np.array([d.n_parameters])}}
        if isinstance(d.G, csr_array):
            arrays |= {"data/H/values": d.G.data, "data/H/row_indices": d.G.indptr.astype(np.int64)}
            arrays |= {"data/H/column_indices": d.G.indices.astype(np.int32)}
            attributes["data/H"] = {"shape": np.array(d.G.shape)}
        elif d.G is not None:
            arrays["data/H"] = _dense(d)
        else:
            raise ValueError("a D file holds its components and this decomposition has none: put them back with with_components_of(original)")
        return _hdf5.write(path, arrays, attributes)
    arrays = {"data/W": d.W} | ({} if d.G is None else {"data/G": _dense(d)}) | {"data/new_to_old_col_indices": columns}
    arrays |= {f"losses/{name}": d.losses.get(name, np.zeros(0)).astype(np.float32) for name in LOSSES}
    about = {"n_parameters": int(d.n_parameters), "n_classes": -1 if d.n_classes is None else int(d.n_classes)}
    return _hdf5.write(path, arrays, {"data": about, "losses": {"log_loss_frequency": int(d.log_loss_frequency or 0)}})


def _read(file: Any, path: Path, lazy: bool, examples: slice) -> ReferenceDecomposition:
    if "data/W" not in file:
        if "data/fisher/values" in file or "data/values" in file:
            raise ValueError("it holds Fishers, not a decomposition of them: read it with npeff_nb.interop.reference_files.read")
        raise ValueError("it has no data/W: it is another program's, or the run was interrupted, which writes its result at the end")
    W = _hdf5.dataset(file, "data/W", np.float32, 2, examples)
    r = W.shape[1]
    if "data/H" in file or "data/reduce_kept_indices" in file:
        columns = _hdf5.dataset(file, "data/reduce_kept_indices", np.integer, 1)
        p = _hdf5.count(file, "data/reduce_kept_indices", "full_dense_size")
        sparse = "data/H/values" in file
        H = _sparse(file) if sparse else _rows(file, path, "data/H", r, lazy)
        return ReferenceDecomposition("D", W, H, columns, p)
    columns = _hdf5.dataset(file, "data/new_to_old_col_indices", np.integer, 1)
    p, classes = _hdf5.count(file, "data", "n_parameters"), _hdf5.number(file, "data", "n_classes")
    G = _rows(file, path, "data/G", r, lazy) if "data/G" in file else None
    n_classes = None if classes == -1 else _hdf5.count(file, "data", "n_classes")
    losses = {name: _losses(file, f"losses/{name}") for name in LOSSES}
    # Written without a value where nothing was logged.
    frequency = _hdf5.count(file, "losses", "log_loss_frequency") if any(len(logged) for logged in losses.values()) else None
    return ReferenceDecomposition("LVRM" if n_classes is None else "LRM", W, G, columns, p, n_classes, losses, frequency)


def _rows(file: Any, path: Path, name: str, r: int, lazy: bool) -> np.ndarray | RowsOnDisk:
    if not lazy:
        return _hdf5.dataset(file, name, np.float32, 2)
    there, width = _hdf5.shape_of(file, name, np.float32, 2)
    if there != r:
        raise ValueError(f"{name} has {there} rows; expected {r}, one for each column of data/W: it is damaged, make it again")
    return RowsOnDisk(path.resolve(), name, np.arange(r), width)


def _sparse(file: Any) -> csr_array:
    shape = np.asarray(file["data/H"].attrs.get("shape", []))
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or shape.min() < 0:
        raise ValueError(f"attribute shape of data/H is {shape.tolist() if shape.size else 'missing'}; expected two whole numbers")
    values = _hdf5.dataset(file, "data/H/values", np.float32, 1)
    offsets, inside = (_hdf5.dataset(file, f"data/H/{name}", np.int64, 1) for name in ("row_indices", "column_indices"))
    wrong = len(offsets) != shape[0] + 1 or len(inside) != len(values)
    if wrong or offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] != len(values):
        raise ValueError(
            f"data/H of {shape[0]} rows has {len(values)} values, {len(inside)} column indices and {len(offsets)} row offsets up to "
            f"{offsets.max(initial=0)}; expected an index for each value, and offsets from 0 to their number, one more than rows: make it again"
        )
    return csr_array((values, inside, offsets), shape=tuple(map(int, shape)))


def _losses(file: Any, name: str) -> np.ndarray:
    """Logged losses; a file that has none says nothing less about the decomposition."""
    node = file.get(name)
    return np.zeros(0, np.float32) if node is None or not getattr(node, "size", True) else _hdf5.dataset(file, name, np.float32, 1)


def _rolled(d: ReferenceDecomposition, by: int) -> ReferenceDecomposition:
    """The last ``by`` components first."""
    order = np.roll(np.arange(d.r), by)
    return replace(d, W=d.W[:, order], G=None if d.G is None else d.G[order])


def _dense(d: ReferenceDecomposition) -> np.ndarray:
    return np.stack([d._stored(j)[1] for j in range(d.r)]) if isinstance(d.G, RowsOnDisk) else d.G  # type: ignore[return-value]


def _check_matrix(name: str, given: Any, shape: tuple[int, int] | None = None) -> None:
    if getattr(given, "dtype", None) != np.float32:
        raise ValueError(f"{name} is of type {getattr(given, 'dtype', type(given).__name__)}; expected float32: convert it with astype")
    if len(given.shape) != 2 or shape not in (None, tuple(given.shape)):
        expected = "two dimensions" if shape is None else f"{shape}: a row for each column of W, a column for each parameter that was kept"
        raise ValueError(f"{name} has shape {tuple(given.shape)}; expected {expected}")


def _check_components(name: str, given: np.ndarray | csr_array | RowsOnDisk, shape: tuple[int, int]) -> None:
    _check_matrix(name, given, shape)
    positive = name == "H"
    if isinstance(given, RowsOnDisk):
        return  # looked at when they are read
    if isinstance(given, np.ndarray):
        for j, row in enumerate(given):
            _check_entries(name, row, positive, j)
        return
    least, most = given.indices.min(initial=0), given.indices.max(initial=0)
    if least < 0 or most >= shape[1]:
        raise ValueError(f"column indices of {name} go from {least} to {most}; {shape[1]:,} columns allow 0 to {shape[1] - 1}")
    for j in range(shape[0]):
        part = slice(*given.indptr[j : j + 2])
        _check_entries(name, given.data[part], positive, j)
        if (np.diff(given.indices[part]) <= 0).any():
            raise ValueError(f"column indices of {name} do not rise within row {j}; expected each once, in ascending order")


def _check_entries(name: str, row: np.ndarray, positive: bool, number: int, advice: str = "") -> None:
    fine = np.isfinite(row) & (row >= 0) if positive else np.isfinite(row)
    if not fine.all():
        raise ValueError(f"{name} holds {row[fine.argmin()]} in row {number}; expected finite numbers{', none below 0' * positive}{advice}")


def _check_columns(columns: np.ndarray, size: int) -> None:
    if not isinstance(columns, np.ndarray) or columns.dtype.kind not in "iu" or columns.ndim != 1 or not columns.size:
        raise ValueError("columns are no list of parameters; expected a NumPy array (m,) of whole numbers with m ≥ 1")
    if columns.min() < 0 or columns.max() >= size:
        raise ValueError(f"columns go from {columns.min()} to {columns.max()}; {size:,} parameters allow 0 to {size - 1}")
    disorder = np.flatnonzero(columns[1:] <= columns[:-1])
    if len(disorder):
        at = disorder[0]
        raise ValueError(f"columns hold {columns[at]} and then {columns[at + 1]} at place {at + 1}; expected each parameter once, in ascending order")


def _unit_rows(d: ReferenceDecomposition, pefs: ReferencePEFs) -> tuple[csr_array, int]:
    """The factor rows that the reference factored, (n·k, m) float64, and k: on the kept columns, divided by √ of the whole Fishers' norms."""
    if pefs.kind != d.kind or pefs.rows is None:
        raise ValueError(f"these are {pefs.kind} Fishers and the decomposition is of kind {d.kind}: give the file that it was made of")
    if len(pefs) != len(d):
        raise ValueError(f"{len(pefs)} Fishers for a decomposition of {len(d)} examples: give those that it was made of, the first with n_examples=")
    if pefs.rows.size != d.n_parameters:
        raise ValueError(f"Fishers over {pefs.rows.size:,} parameters for a decomposition over {d.n_parameters:,}: they belong to another model")
    if d.n_classes not in (None, pefs.rows.rank):
        raise ValueError(f"Fishers of {pefs.rows.rank} factor rows for a decomposition with n_classes={d.n_classes}: they belong to another model")
    whole = pefs.rows.matrix()
    at = np.searchsorted(d.columns, whole.indices).clip(max=len(d.columns) - 1)
    scale = 1 / np.sqrt(pefs.norms).clip(SMALLEST_LENGTH[d.kind])
    values = whole.data * np.repeat(scale, pefs.rows.values.shape[1])
    values[d.columns[at] != whole.indices] = 0
    rows = csr_array((values, at, whole.indptr), shape=(whole.shape[0], len(d.columns)))
    rows.eliminate_zeros()
    return rows, pefs.rows.rank


# ---------------------------------------------------------------------------------------------------------------- ours and theirs


def write_npeff(
    path: str | os.PathLike, npeff: Factorisation, *, pefs: PEFs | None = None, model: nn.Module | None = None, n_classes: int | None = None
) -> Path:
    """Writes a fitted NPEFF as an LRM file, its components by parameter.

    Where components come from: dense features are parameters already.  Of ``topk`` features, the entries that were kept (``pefs``, those fitted on)
    give the very components of the fit.  From anything else, and from ``topk`` without ``pefs``, each is lifted over all of its examples, which needs
    the model and (n examples) backward passes a component.  Parameters that no component touches are left out.

    Parameters are numbered as in the files of :func:`~npeff_nb.interop.reference_files.write_pefs`: flattened one after the other, in the order of
    ``npeff.parameters``.  Where ``scale=`` was used, components are those of the scaled Fishers, as they are there.

    Parameters
    ----------
    pefs : of ``features="topk"``.
    model : to lift with, where it is not the one of the extraction.
    n_classes : factor rows an example in the files of Fishers that go with it, which the reference compares; by default one for each class.

    Raises
    ------
    ValueError
        When the NPEFF was fitted on an array, which has no parameters; on other Fishers than ``pefs``; or there is no model to lift with.
    """
    check_is_fitted(npeff, "components_")
    if npeff.feature_map is None:
        raise ValueError("this NPEFF was fitted on an array: its features are no parameters of a model, and the format numbers parameters")
    p, W = int(npeff.parameters["numel"].sum()), np.asarray(npeff.coefficients_)
    _hdf5.check_size(p, "leave some out with parameters=")
    if pefs is not None:
        columns, G = _from_entries(npeff, pefs)
    else:
        columns = np.arange(p)
        G = np.asarray(npeff.components_) if npeff.feature_map.kind == "dense" else _lifted(npeff, model, p)
    touched = G.any(axis=0)
    classes = n_classes or (npeff.projections_.shape[1] if npeff.feature_map.kind == "topk" else npeff.logits.shape[1])
    return write_decomposition(
        path, ReferenceDecomposition("LRM", W.astype(np.float32), G[:, touched].astype(np.float32), columns[touched], p, int(classes))
    )


def as_factorisation(decomposition: ReferenceDecomposition, pefs: ReferencePEFs) -> Factorisation:
    """A decomposition of the reference as one of ours, fitted on an array: tables, similarities and pictures of coefficients, but no model behind it.

    Features are the kept parameters, ``decomposition.columns``; ``components_`` is (r, m) float64.  Coefficients are the file's.  Components come in
    the order of the energy that they explain, each named after its number in the file (``labels``), with the sign that makes the likeliest class of
    its users likelier.  How the fit went is not known: ``n_iter_`` is 0 and the one loss is that of the result.

    Parameters
    ----------
    pefs : the Fishers that it was made of (:func:`~npeff_nb.interop.reference_files.read`).

    Raises
    ------
    ValueError
        For a D file, whose components are no directions, or Fishers that do not belong to it.
    """
    from npeff_nb.decomposition.factorisation import Factorisation

    d = decomposition
    if d.kind == "D":
        raise ValueError("a D file says how strongly parameters take part and in no direction: it has no counterpart among factorisations")
    rows, k = _unit_rows(d, pefs)
    if not rows.nnz:
        raise ValueError("all Fishers are zero on the kept columns: there is nothing that the components could explain")
    W, H = d.coefficients, np.asarray(d.components, dtype=np.float64)
    P = (rows @ H.T).reshape(len(d), k, d.r)
    G = (H @ H.T) ** 2
    parts = W * (2 * (P**2).sum(1) - W @ G)  # what disappears with each term; sums to 1 − ‖F̂_i − F̃_i‖²
    order = np.argsort(-parts.sum(0), kind="stable")
    # All rows in the order of the classes, or else the likeliest class first.
    likeliest = pefs.logits.argmax(1) if d.kind == "LRM" and k == pefs.logits.shape[1] else np.zeros(len(d), dtype=int)
    sign = np.where((W * P[np.arange(len(d)), likeliest]).sum(0) < 0, -1.0, 1.0)
    total = float((pefs.norms > 0).sum())

    found: Any = Factorisation(d.r)
    found.coefficients_, found.components_, found.projections_ = W[:, order], (H * sign[:, None])[order], (P * sign)[:, :, order]
    found.n_features_in_ = H.shape[1]
    found.component_shares_, found.example_explained_ = parts.sum(0)[order] / total, np.clip(parts.sum(1), 0.0, 1.0)
    found.reconstruction_err_ = max(0.0, total - float(parts.sum()))
    found.explained_variance_ = float(np.clip(parts.sum() / total, 0.0, 1.0))
    found.losses_, found.restart_losses_, found.n_iter_, found.converged_ = [found.reconstruction_err_], [found.reconstruction_err_], 0, False
    found._adopt(None)
    found.labels = {at: f"component {j} of the file" for at, j in enumerate(order.tolist())}
    return found


def _from_entries(npeff: Factorisation, pefs: PEFs) -> tuple[np.ndarray, np.ndarray]:
    """Columns (m,) and components (r, m) from the entries of ``topk`` Fishers.

    Features C of rows M keep their inner products, so h = Cᵀβ has the counterpart Mᵀβ with β = C (CᵀC)⁻¹ h, for rows of unit length since those of
    examples that the model is sure of are shorter by orders of magnitude.
    """
    if pefs.sparse is None:
        raise ValueError(f"these Fishers were extracted with features={pefs.feature_map.kind!r}: pefs= is for features='topk', leave it out")
    if len(pefs) != len(npeff.coefficients_) or pefs.feature_map.id != npeff.feature_map.id:
        raise ValueError(f"this NPEFF was fitted on other Fishers: on {len(npeff.coefficients_)} examples, and these are {len(pefs)}")
    C = pefs.factors.reshape(-1, pefs.factors.shape[2]).astype(np.float64)
    lengths = np.linalg.norm(C, axis=1)
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    C *= inverse[:, None]
    gram = C.T @ C
    gram[np.diag_indices_from(gram)] += RIDGE * np.trace(gram)
    weights = inverse[:, None] * (C @ solve(gram, npeff.components_.T, assume_a="pos"))
    whole = pefs.sparse.matrix().astype(np.float64)
    columns, at = np.unique(whole.indices, return_inverse=True)
    rows = csr_array((whole.data, at, whole.indptr), shape=(whole.shape[0], len(columns)))
    G = (rows.T @ weights).T
    scale = np.sqrt(np.where(pefs.norms > 0, pefs.norms, 1.0))
    projections = (rows @ G.T).reshape(npeff.projections_.shape) / scale[:, None, None]
    away = float(np.abs(projections - npeff.projections_).max())
    if away > SAME_PRODUCTS:
        raise ValueError(f"this NPEFF was fitted on other Fishers: its projections of these are off by {away:.2g}, not {SAME_PRODUCTS:g} at most")
    return columns, G


def _lifted(npeff: Factorisation, model: nn.Module | None, p: int) -> np.ndarray:
    """(r, p) float32, each component from all examples that make it up, in the coordinates of the Fishers."""
    from npeff_nb.directions.lift import direction

    G = np.empty((len(npeff.components_), p), dtype=np.float32)
    for j, row in enumerate(G):
        found = direction(npeff, j, model, coverage=1.0)
        # A step of s in a parameter is a step of 1 in the scaled one.
        steps = zip(npeff.parameters["name"], npeff.parameters["scale"], strict=True)
        np.concatenate([found[name].double().cpu().numpy().ravel() / scale for name, scale in steps], out=row, casting="same_kind")
        row /= np.linalg.norm(row.astype(np.float64))
    return G
