"""Decompositions of the reference implementation: its files laid out by hand, what they mean against slow twins, and what damage says.

No file of the reference is public, so :func:`by_hand` writes what its programs are known to write, path by path, without the package's own writer.
"""

from __future__ import annotations

import errno
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import tiny
from scipy.sparse import csr_array

from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.sparse import SparseRows
from npeff_nb.interop import reference_decompositions, reference_files
from npeff_nb.interop.reference_decompositions import ReferenceDecomposition, as_factorisation, read_decomposition, write_decomposition, write_npeff
from npeff_nb.interop.reference_files import ReferencePEFs
from npeff_nb.npeff import NPEFF

N, R, M, P = 7, 3, 10, 30
RNG = np.random.default_rng(0)
COLUMNS = np.array([0, 3, 4, 7, 11, 12, 19, 20, 28, 29])
W = RNG.uniform(0, 2, (N, R)).astype(np.float32)
G = (RNG.normal(size=(R, M)) * [[0.1], [1], [30]]).astype(np.float32)
UNITS = G / np.linalg.norm(G, axis=1, keepdims=True)
H = np.where(np.abs(G) > 0.08, np.abs(G), 0).astype(np.float32)
H_ROWS, H_COLUMNS = np.nonzero(H)
G_ONLY, JOINT = np.array([9, 8.5], np.float32), np.array([8, 7, 6.25], np.float32)

LAYOUTS = {
    "LRM": {
        "data/W": W, "data/G": G, "data/new_to_old_col_indices": COLUMNS.astype("<i4"), "data@n_parameters": np.int64(P),
        "data@n_classes": np.int64(3), "losses/G_only": G_ONLY, "losses/joint": JOINT, "losses@log_loss_frequency": np.int64(10),
    },
    "LVRM": {
        "data/W": W, "data/G": G, "data/new_to_old_col_indices": COLUMNS.astype("<i4"), "data@n_parameters": np.int64(P),
        "data@n_classes": np.int64(-1), "losses/G_only": G_ONLY, "losses/joint": JOINT, "losses@log_loss_frequency": np.int64(10),
    },
    "D": {
        "data/W": W, "data/H": H, "data/reduce_kept_indices": COLUMNS.astype("<i4"), "data/reduce_kept_indices@full_dense_size": np.array([P]),
    },
    "sparse D": {
        "data/W": W, "data/H/values": H[H_ROWS, H_COLUMNS], "data/H/row_indices": np.searchsorted(H_ROWS, np.arange(R + 1)).astype("<i8"),
        "data/H/column_indices": H_COLUMNS.astype("<i4"), "data/H@shape": np.array([R, M]),
        "data/reduce_kept_indices": COLUMNS.astype("<i4"), "data/reduce_kept_indices@full_dense_size": np.array([P]),
    },
}  # fmt: skip
"""Every path and attribute of each kind of file: types, widths and shapes as the reference's."""


def by_hand(path, layout):
    """A file as another program writes it; None leaves something out."""
    with h5py.File(path, "w", libver="earliest") as file:
        for name, value in sorted(layout.items(), key=lambda item: "@" in item[0]):
            place, _, attribute = name.partition("@")
            if value is None:
                continue
            if attribute:
                file[place].attrs[attribute] = value
            else:
                file.create_dataset(name, data=value)
    return path


@pytest.fixture(params=LAYOUTS)
def made(request, tmp_path):
    """A file of each kind, by hand."""
    path = by_hand(tmp_path / "a.h5", LAYOUTS[request.param])
    return SimpleNamespace(kind=request.param, path=path, rows=G if "D" not in request.param else H, remake=lambda **given: by_hand(path, given))


def made_with(tmp_path, kind, **changes):
    """A file with other values for what ends in these names."""
    layout = dict(LAYOUTS[kind])
    for name, value in changes.items():
        found = [place for place in layout if place.replace("@", "/").endswith("/" + name)]
        assert len(found) == 1, found
        layout[found[0]] = value
    return by_hand(tmp_path / "a.h5", layout)


def contents(path) -> dict:
    """Everything in a file: bytes, types and shapes."""
    found = {}

    def note(name, node):
        found.update({f"{name}@{a}": (np.asarray(v).dtype.str, np.shape(v), np.asarray(v).tobytes()) for a, v in node.attrs.items()})
        if isinstance(node, h5py.Dataset):
            found[name] = (node.dtype.str, node.shape, node[()].tobytes())
            assert node.chunks is None and node.compression is None

    with h5py.File(path) as file:
        assert not file.attrs
        file.visititems(note)
    return found


def dense(found):
    return found.toarray() if isinstance(found, csr_array) else found


def twin(kind):
    """Unit components and their coefficients by definition: Σ_j W_ij g_j g_jᵀ (D: Σ_j W_ij h_j) stays what it is."""
    rows = (H if "D" in kind else G).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    return rows / lengths[:, None], W.astype(np.float64) * lengths ** (1 if "D" in kind else 2), lengths


# Reading


@pytest.mark.parametrize("lazy", [False, True])
def test_what_lies_there_is_read(made, lazy):
    found = read_decomposition(made.path, lazy=lazy)
    assert found.kind == made.kind.removeprefix("sparse ") and len(found) == N and found.r == R
    assert found.n_parameters == P and found.n_classes == (3 if made.kind == "LRM" else None)
    np.testing.assert_array_equal(found.W, W)
    np.testing.assert_array_equal(found.columns, COLUMNS)
    if "D" in made.kind:
        assert found.losses == {} and found.log_loss_frequency is None
    else:
        assert {name: logged.tolist() for name, logged in found.losses.items()} == {"G_only": G_ONLY.tolist(), "joint": JOINT.tolist()}
        assert found.log_loss_frequency == 10
    assert isinstance(found.components, csr_array) == (made.kind == "sparse D")
    if not lazy:
        np.testing.assert_array_equal(dense(found.G), made.rows)
        assert isinstance(found.G, csr_array) == (made.kind == "sparse D")


@pytest.mark.parametrize("lazy", [False, True])
def test_components_have_unit_length_and_coefficients_what_that_took_away(made, lazy):
    found = read_decomposition(made.path, lazy=lazy)
    units, coefficients, lengths = twin(made.kind)
    np.testing.assert_allclose(found.lengths, lengths, rtol=1e-12)
    np.testing.assert_allclose(found.coefficients, coefficients, rtol=1e-12)
    assert found.components.dtype == np.float32
    np.testing.assert_allclose(dense(found.components), units, rtol=2e-7)  # float32
    if made.kind in ("LRM", "LVRM"):
        before, after = np.einsum("ij,ja,jb->iab", W, G, G), np.einsum("ij,ja,jb->iab", found.coefficients, units, units)
    else:
        before, after = W @ H, found.coefficients @ units
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-4)  # sums of float32 products up to 10³


@pytest.mark.parametrize("lazy", [False, True])
def test_a_component_lies_where_its_parameters_are(made, lazy):
    found = read_decomposition(made.path, lazy=lazy)
    for j in range(R):
        expected = np.zeros(P)
        expected[COLUMNS] = twin(made.kind)[0][j]
        assert found.component(j).shape == (P,)
        np.testing.assert_allclose(found.component(j), expected, rtol=2e-7)
        at, values = found.entries(j)
        assert len(at) == (np.count_nonzero(H[j]) if made.kind == "sparse D" else M)
        np.testing.assert_allclose(values, expected[at], rtol=2e-7)


def test_a_component_of_zeros_stays_one(tmp_path):
    """A component that never got users may have died."""
    rows = G * np.array([[1], [0], [1]], dtype=np.float32)
    for kind, name in (("LRM", "G"), ("D", "H")):
        found = read_decomposition(made_with(tmp_path, kind, **{name: np.abs(rows)}))
        assert found.lengths[1] == 0 and not found.components[1].any() and not found.component(1).any() and not found.coefficients[:, 1].any()
    layout = {**LAYOUTS["sparse D"], "data/H/row_indices": np.array([0, 0, 0, len(H_ROWS)]), "data/H/column_indices": np.arange(len(H_ROWS))}
    layout |= {"data/reduce_kept_indices": np.arange(len(H_ROWS), dtype="<i4"), "data/H@shape": np.array([3, len(H_ROWS)])}
    found = read_decomposition(by_hand(tmp_path / "b.h5", layout))
    assert found.lengths[:2].tolist() == [0, 0] and not found.component(1).any() and np.linalg.norm(found.component(2)) == pytest.approx(1)


@pytest.mark.parametrize("j", [3, -1, 0.5, True])
def test_a_component_that_does_not_exist(made, j):
    found = read_decomposition(made.path)
    for ask in (found.component, found.entries):
        with pytest.raises(ValueError, match=rf"component {j} does not exist: this decomposition has 3 \(0 to 2\)."):
            ask(j)


@pytest.mark.parametrize("kind", ["LRM", "LVRM", "D"])
def test_lazily_one_row_is_read_for_one_component(tmp_path, kind, monkeypatch):
    path = by_hand(tmp_path / "a.h5", LAYOUTS[kind])
    asked = []
    original = h5py.Dataset.__getitem__

    def note(self, at, *rest):
        asked.append((self.name, at))
        return original(self, at, *rest)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", note)
    found = read_decomposition(path, lazy=True)
    name = "/data/H" if kind == "D" else "/data/G"
    assert name not in {place for place, _ in asked}
    found.component(2)
    assert [at for place, at in asked if place == name] == [2]
    assert found.coefficients.shape == (N, R)
    assert [at for place, at in asked if place == name] == [2, 0, 1, 2]


def test_a_lazy_file_that_changed_in_the_meantime_is_noticed(tmp_path):
    found = read_decomposition(made_with(tmp_path, "LRM"), lazy=True)
    made_with(tmp_path, "LRM", G=G[:, :4])
    with pytest.raises(ValueError, match=r"a\.h5: data/G has shape \(3, 4\) now, \(3, 10\) when it was opened: read the decomposition again"):
        found.component(0)
    made_with(tmp_path, "LRM", G=np.where(np.arange(M) == 4, np.nan, G).astype(np.float32))
    with pytest.raises(ValueError, match=r"a\.h5: data/G holds nan in row 1; expected finite numbers"):
        found.component(1)
    (tmp_path / "a.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.h5 does not exist"):
        found.component(0)


def test_lazy_in_another_folder(tmp_path, monkeypatch):
    made_with(tmp_path, "LRM")
    monkeypatch.chdir(tmp_path)
    found = read_decomposition("a.h5", lazy=True)
    monkeypatch.chdir("/")
    assert found.component(0).shape == (P,)


@pytest.mark.parametrize("width", [">i4", "<i8", "<u4", "<i4"])
def test_whole_numbers_of_any_width_and_attributes_of_any_form(made, width):
    layout = {name: value.astype(width) if value.dtype.kind in "iu" and "@" not in name else value for name, value in LAYOUTS[made.kind].items()}
    for form in (np.int32(P), np.int64(P), np.array([P]), float(P)):
        for name in ("data@n_parameters", "data/reduce_kept_indices@full_dense_size"):
            if name in layout:
                layout[name] = form
        found = read_decomposition(made.remake(**layout))
        assert found.n_parameters == P and found.columns.tolist() == COLUMNS.tolist()
        np.testing.assert_allclose(dense(found.components), twin(made.kind)[0], rtol=2e-7)


def test_numbers_of_double_precision(made):
    layout = {name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in LAYOUTS[made.kind].items()}
    found = read_decomposition(made.remake(**layout))
    assert found.W.dtype == np.float32 and found.components.dtype == np.float32
    np.testing.assert_array_equal(dense(found.G), made.rows)


# What a fit of coefficients leaves


@pytest.mark.parametrize("kind", ["LRM", "LVRM"])
def test_a_fit_of_coefficients_has_no_losses_and_a_frequency_of_any_value(tmp_path, kind):
    for empty in (np.zeros(0, np.float32), h5py.Empty("f4"), None):
        for frequency in (np.int64(-77), None):
            path = made_with(tmp_path, kind, G_only=empty, joint=empty, log_loss_frequency=frequency if empty is not None else None)
            found = read_decomposition(path)
            assert {name: len(logged) for name, logged in found.losses.items()} == {"G_only": 0, "joint": 0}
            assert found.log_loss_frequency is None


def test_losses_without_a_frequency_are_damage(tmp_path):
    with pytest.raises(ValueError, match=r"a\.h5: attribute log_loss_frequency of losses is -3; expected a whole number from 1 on"):
        read_decomposition(made_with(tmp_path, "LRM", log_loss_frequency=-3))


@pytest.mark.parametrize("lazy", [False, True])
def test_a_file_of_coefficients_alone_gets_its_components_from_the_original(tmp_path, lazy):
    original = read_decomposition(by_hand(tmp_path / "original.h5", LAYOUTS["LRM"]), lazy=lazy)
    alone = read_decomposition(made_with(tmp_path, "LRM", G=None, W=2 * W))
    assert alone.G is None
    words = r"holds coefficients alone, .* put these back with with_components_of\(original\)"
    for ask in (lambda: alone.coefficients, lambda: alone.components, lambda: alone.component(0), lambda: alone.lengths):
        with pytest.raises(ValueError, match=words):
            ask()
    np.testing.assert_allclose(alone.with_components_of(original).coefficients, 2 * original.coefficients, rtol=1e-12)
    again = write_decomposition(tmp_path / "again.h5", alone)
    assert "data/G" not in contents(again) and contents(again) == contents(tmp_path / "a.h5")


def test_components_that_coefficients_were_not_fitted_to_are_refused(tmp_path):
    path = by_hand(tmp_path / "original.h5", LAYOUTS["LRM"])
    original, alone = read_decomposition(path), read_decomposition(made_with(tmp_path, "LRM", G=None))
    others = COLUMNS.copy()
    others[4] = 8
    for changes in ({"columns": others}, {"n_parameters": P + 1}, {"kind": "LVRM", "n_classes": None}):
        with pytest.raises(ValueError, match=r"keeps other parameters than .*: coefficients were not fitted to its components"):
            alone.with_components_of(replace(original, **changes))
    with pytest.raises(ValueError, match=r"original was read with expanded_from=2 and the coefficients with expanded_from=None: .* read both alike"):
        alone.with_components_of(read_decomposition(path, expanded_from=2))
    with pytest.raises(ValueError, match=r"G has shape \(2, 10\); expected \(3, 10\)"):
        alone.with_components_of(replace(original, W=W[:, :2], G=G[:2]))
    expanded = read_decomposition(tmp_path / "a.h5", expanded_from=2).with_components_of(read_decomposition(path, expanded_from=2))
    np.testing.assert_array_equal(expanded.coefficients, read_decomposition(path, expanded_from=2).coefficients)


@pytest.mark.parametrize("left", [np.nan, np.inf, -1e30])
def test_examples_that_a_fit_left_unset_are_named_and_left_out(made, left):
    unset = W.copy()
    unset[5:] = left
    made.remake(**LAYOUTS[made.kind] | {"data/W": unset})
    words = r"W holds \S+ in row 5; expected finite numbers, none below 0: a fit of coefficients left it unset, read .* with n_examples=5"
    with pytest.raises(ValueError, match=r"a\.h5: " + words):
        read_decomposition(made.path)
    found = read_decomposition(made.path, n_examples=5)
    assert len(found) == 5
    np.testing.assert_allclose(found.coefficients, twin(made.kind)[1][:5])


@pytest.mark.parametrize("n", [0, -1])
def test_no_examples_cannot_be_asked_for(made, n):
    with pytest.raises(ValueError, match=rf"n_examples={n}; expected 1 or more, or None for all"):
        read_decomposition(made.path, n_examples=n)


def test_more_examples_than_there_are(made):
    with pytest.raises(ValueError, match=r"data/W has 7 examples; n_examples=8 asks for more"):
        read_decomposition(made.path, n_examples=8)


# Expansions


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("old", [1, 2])
def test_older_components_of_an_expansion_come_first(tmp_path, old, lazy):
    """The file has R − old new ones and then the old."""
    path = made_with(tmp_path, "LRM")
    plain, found = read_decomposition(path), read_decomposition(path, lazy=lazy, expanded_from=old)
    order = [*range(R - old, R), *range(R - old)]
    np.testing.assert_array_equal(found.W, W[:, order])
    np.testing.assert_array_equal(found.components, plain.components[order])
    np.testing.assert_array_equal(found.coefficients, plain.coefficients[:, order])
    np.testing.assert_array_equal(found.component(0), plain.component(R - old))
    again = write_decomposition(tmp_path / "again.h5", found)
    assert again.read_bytes() == write_decomposition(tmp_path / "plain.h5", plain).read_bytes(), "the file's order is new ones first"
    with pytest.raises(ValueError, match=r"losses that an expansion logs cannot be corrected: their quadratic term is ⟨WᵀW, S∘S∘S⟩"):
        found.corrected_losses(some_pefs("LRM")[0])


@pytest.mark.parametrize("old", [0, 3, 4, -1])
def test_an_expansion_that_adds_nothing(tmp_path, old):
    with pytest.raises(ValueError, match=rf"a\.h5: expanded_from={old} of 3 components; expected 1 to 2: an expansion adds at least one"):
        read_decomposition(made_with(tmp_path, "LRM"), expanded_from=old)


def test_a_diagonal_expansion_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="expanded_from= of a D file: the reference expands LRM decompositions only"):
        read_decomposition(made_with(tmp_path, "D"), expanded_from=1)


# Writing


def test_the_layout_that_is_written_is_the_reference_s(made, tmp_path):
    """Type, width, shape and bytes of everything."""
    again = write_decomposition(tmp_path / "again.h5", read_decomposition(made.path))
    assert contents(again) == contents(made.path)
    assert again.read_bytes()[8] == 0, "the superblock is newer than HDF5 1.0"


def test_there_and_back_and_the_same_bytes_again(made, tmp_path):
    first = write_decomposition(tmp_path / "new" / "first.h5", read_decomposition(made.path))
    found = read_decomposition(str(first), lazy=True)
    second = write_decomposition(tmp_path / "second.h5", found)
    assert second.read_bytes() == first.read_bytes()
    np.testing.assert_array_equal(dense(found.components), dense(read_decomposition(made.path).components))
    assert write_decomposition(first, found).read_bytes() == second.read_bytes(), "onto the file that it is read from"


def test_nothing_logged_is_written_as_empty(tmp_path):
    plain = ReferenceDecomposition("LVRM", W, G, COLUMNS, P)
    with h5py.File(write_decomposition(tmp_path / "a.h5", plain)) as file:
        assert file["losses/G_only"].shape == file["losses/joint"].shape == (0,)
        assert file["losses/joint"].dtype == np.float32 and "log_loss_frequency" in file["losses"].attrs
    assert read_decomposition(tmp_path / "a.h5").log_loss_frequency is None


def test_a_full_disk_leaves_what_was_there(made, monkeypatch):
    before = made.path.read_bytes()
    found = read_decomposition(made.path)

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        write_decomposition(made.path, found)
    assert made.path.read_bytes() == before and [p.name for p in made.path.parent.iterdir()] == ["a.h5"]


def test_more_parameters_than_the_format_can_number(tmp_path):
    words = r"2,147,483,648 parameters do not fit: the format counts them in 4-byte integers, so up to 2,147,483,647"
    with pytest.raises(ValueError, match=words):
        write_decomposition(tmp_path / "a.h5", ReferenceDecomposition("D", W, H, COLUMNS, 2**31))
    largest = ReferenceDecomposition("D", W[:, :1], H[:1, :1] + 1, np.array([2**31 - 2]), 2**31 - 1)
    assert read_decomposition(write_decomposition(tmp_path / "b.h5", largest)).columns.tolist() == [2**31 - 2]


def test_a_diagonal_file_is_not_written_without_components(tmp_path):
    with pytest.raises(
        ValueError, match=r"a D file holds its components and this decomposition has none: put them back with with_components_of\(original\)"
    ):
        write_decomposition(tmp_path / "a.h5", ReferenceDecomposition("D", W, None, COLUMNS, P))
    assert not list(tmp_path.iterdir())


REFUSED = {
    "kind": ({"kind": "MLR"}, "kind='MLR' is not known; expected 'LRM', 'LVRM' or 'D'"),
    "classes of LVRM": ({"kind": "LVRM"}, "n_classes=3 in a decomposition of kind LVRM; expected a number for LRM and None for the others"),
    "no classes": ({"n_classes": None}, "n_classes=None in a decomposition of kind LRM"),
    "coefficients in double precision": ({"W": W.astype(float)}, "W is of type float64; expected float32: convert it with astype"),
    "a list": ({"W": W.tolist()}, "W is of type list; expected float32"),
    "flat coefficients": ({"W": W[0]}, r"W has shape \(3,\); expected two dimensions"),
    "no components": ({"W": W[:, :0], "G": G[:0]}, r"W has shape \(7, 0\); expected at least one example and one component"),
    "no examples": ({"W": W[:0]}, r"W has shape \(0, 3\); expected at least one example"),
    "a coefficient below zero": ({"W": -W}, r"W holds -\S+ in row 0; expected finite numbers, none below 0$"),
    "fewer components": ({"G": G[:2]}, r"G has shape \(2, 10\); expected \(3, 10\): a row for each column of W, a column for each parameter"),
    "fewer columns of G": ({"G": G[:, :4]}, r"G has shape \(3, 4\); expected \(3, 10\)"),
    "endless components": ({"G": G * np.float32(np.inf)}, "G holds -?inf in row 0; expected finite numbers$"),
    "sparse": ({"G": csr_array(G)}, "sparse components in a decomposition of kind LRM; only D files hold such: give G.toarray"),
    "fractions of parameters": ({"columns": COLUMNS / 1}, r"columns are no list of parameters; expected a NumPy array \(m,\) of whole numbers"),
    "columns twice": ({"columns": np.repeat(COLUMNS[::2], 2)}, "columns hold 0 and then 0 at place 1; expected each parameter once, in ascending"),
    "columns that fall": ({"columns": COLUMNS[::-1]}, "columns hold 29 and then 28 at place 1; expected each parameter once, in ascending order"),
    "columns below": ({"columns": COLUMNS - 1}, "columns go from -1 to 28; 30 parameters allow 0 to 29"),
    "columns above": ({"n_parameters": 29}, "columns go from 0 to 29; 29 parameters allow 0 to 28"),
    "other losses": ({"losses": {"third": JOINT}}, r"losses named \['third'\]; expected G_only and joint"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_arrays_that_do_not_belong_together_are_refused(what):
    changes, words = REFUSED[what]
    with pytest.raises(ValueError, match=words):
        ReferenceDecomposition(**{"kind": "LRM", "W": W, "G": G, "columns": COLUMNS, "n_parameters": P, "n_classes": 3} | changes)


# Damage


LRM, D, SPARSE = "LRM", "D", "sparse D"
DAMAGE = {
    "W of text": (LRM, {"W": np.array([b"a"])}, r"data/W holds \|S1 of shape \(1,\); expected floating-point numbers in 2 dimensions"),
    "whole coefficients": (D, {"W": np.ones((7, 3), int)}, r"data/W holds int64 of shape \(7, 3\); expected floating-point numbers in 2 dim"),
    "more components in W": (LRM, {"W": np.ones((7, 4), np.float32)}, r"G has shape \(3, 10\); expected \(4, 10\): a row for each col"),
    "fewer columns": (LRM, {"new_to_old_col_indices": COLUMNS[:5]}, r"G has shape \(3, 10\); expected \(3, 5\)"),
    "fewer columns of H": (D, {"reduce_kept_indices": COLUMNS[:5]}, r"H has shape \(3, 10\); expected \(3, 5\)"),
    "no column": (LRM, {"new_to_old_col_indices": COLUMNS[:0]}, r"columns are no list of parameters; .* m ≥ 1"),
    "columns that fall": (LRM, {"new_to_old_col_indices": COLUMNS[::-1]}, "columns hold 29 and then 28 at place 1; expected each parameter once"),
    "a column twice": (D, {"reduce_kept_indices": COLUMNS // 2 * 2}, "columns hold 28 and then 28 at place 9; expected each parameter once"),
    "a column below zero": (LRM, {"new_to_old_col_indices": COLUMNS - 1}, "columns go from -1 to 28; 30 parameters allow 0 to 29"),
    "a foreign column": (D, {"full_dense_size": 29}, "columns go from 0 to 29; 29 parameters allow 0 to 28"),
    "columns as fractions": (LRM, {"new_to_old_col_indices": COLUMNS / 1}, "data/new_to_old_col_indices holds float64 .* expected whole numbers"),
    "no parameters": (LRM, {"n_parameters": 0}, "attribute n_parameters of data is 0; expected a whole number from 1 on"),
    "parameters missing": (LRM, {"n_parameters": None}, "attribute n_parameters of data is missing; expected one number"),
    "size missing": (D, {"full_dense_size": None}, "attribute full_dense_size of data/reduce_kept_indices is missing; expected one number"),
    "two sizes": (D, {"full_dense_size": np.array([30, 30])}, r"attribute full_dense_size of data/reduce_kept_indices is \[30, 30\]; expected one"),
    "classes missing": (LRM, {"n_classes": None}, "attribute n_classes of data is missing; expected one number"),
    "no classes": (LRM, {"n_classes": 0}, "attribute n_classes of data is 0; expected a whole number from 1 on"),
    "classes below -1": (LRM, {"n_classes": -2}, "attribute n_classes of data is -2; expected a whole number from 1 on"),
    "columns missing": (LRM, {"new_to_old_col_indices": None}, "it has no data/new_to_old_col_indices: it is incomplete, make it again"),
    "indices missing": (D, {"reduce_kept_indices": None, "full_dense_size": None}, "it has no data/reduce_kept_indices: it is incomplete"),
    "H missing": (D, {"H": None}, "it has no data/H: it is incomplete, make it again"),
    "flat losses": (LRM, {"joint": JOINT[None]}, r"losses/joint holds float32 of shape \(1, 3\); expected floating-point numbers in 1 dim"),
    "infinite components": (LRM, {"G": G * np.float32(np.inf)}, "G holds -?inf in row 0; expected finite numbers$"),
    "double precision out of range": (LRM, {"G": G.astype(float) * 1e300}, "G holds -?inf in row 0; expected finite numbers$"),
    "H below zero": (D, {"H": -H - 1}, r"H holds -\S+ in row 0; expected finite numbers, none below 0"),
    "H of no number": (D, {"H": H + np.float32(np.nan)}, "H holds nan in row 0; expected finite numbers, none below 0"),
    "shape missing": (SPARSE, {"shape": None}, "attribute shape of data/H is missing; expected two whole numbers"),
    "shape of three": (SPARSE, {"shape": np.array([3, 10, 1])}, r"attribute shape of data/H is \[3, 10, 1\]; expected two whole numbers"),
    "shape below zero": (SPARSE, {"shape": np.array([3, -10])}, r"attribute shape of data/H is \[3, -10\]; expected two whole numbers"),
    "shape of more rows": (SPARSE, {"shape": np.array([4, 10])}, r"data/H of 4 rows has \d+ values, \d+ column indices and 4 row offsets up to"),
    "shape of fewer columns": (SPARSE, {"shape": np.array([3, 9])}, r"H has shape \(3, 9\); expected \(3, 10\)"),
    "values missing": (SPARSE, {"values": None}, "it has no data/H: it is incomplete, make it again"),
    "fewer values": (SPARSE, {"values": H[H_ROWS, H_COLUMNS][:-1]}, "data/H of 3 rows has .* expected an index for each value"),
    "fewer indices": (SPARSE, {"column_indices": H_COLUMNS[:-1]}, "data/H of 3 rows has .* expected an index for each value"),
    "offsets that end early": (SPARSE, {"row_indices": np.array([0, 1, 2, 3])}, "data/H of 3 rows has .* 4 row offsets up to 3; expected"),
    "offsets that start late": (SPARSE, {"row_indices": np.array([1, 1, 2, len(H_ROWS)])}, "data/H of 3 rows has .* and offsets from 0"),
    "offsets that fall": (SPARSE, {"row_indices": np.array([0, 9, 2, len(H_ROWS)])}, "data/H of 3 rows has .* and offsets from 0"),
    "offsets far away": (SPARSE, {"row_indices": np.array([0, 2**62, 2, len(H_ROWS)])}, "data/H of 3 rows has .* and offsets from 0"),
    "no offsets": (SPARSE, {"row_indices": np.zeros(0, int)}, "data/H of 3 rows has .* 0 row offsets"),
    "indices out of range": (SPARSE, {"column_indices": H_COLUMNS + 1}, "column indices of H go from 0 to 10; 10 columns allow 0 to 9"),
    "indices below zero": (SPARSE, {"column_indices": H_COLUMNS - 1}, "column indices of H go from -1 to 8; 10 columns allow 0 to 9"),
    "indices that fall": (SPARSE, {"column_indices": H_COLUMNS[::-1]}, "column indices of H do not rise within row 0; expected each once"),
    "indices twice": (SPARSE, {"column_indices": H_COLUMNS // 2 * 2}, r"column indices of H do not rise within row \d; expected each once"),
    "values below zero": (SPARSE, {"values": -H[H_ROWS, H_COLUMNS]}, r"H holds -\S+ in row 0; expected finite numbers, none below 0"),
    "values of no number": (SPARSE, {"values": np.where(H_ROWS == 2, np.nan, 1.0)}, "H holds nan in row 2; expected finite numbers, none below 0"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(what, tmp_path):
    kind, changes, words = DAMAGE[what]
    path = made_with(tmp_path, kind, **changes)
    with pytest.raises(ValueError, match=r"a\.h5: " + words):
        read_decomposition(path)


@pytest.mark.parametrize("instead", [np.dtype("f4"), None], ids=["a type", "a group"])
@pytest.mark.parametrize("name", ["data/W", "data/G", "data/new_to_old_col_indices", "losses/joint"])
def test_what_is_no_array_is_as_good_as_missing(tmp_path, name, instead):
    path = made_with(tmp_path, "LRM", **{name.rpartition("/")[2]: None})
    with h5py.File(path, "a") as file:
        if instead is None:
            file.create_group(name)
        else:
            file[name] = instead
    for lazy in (False, True):
        with pytest.raises(ValueError, match=rf"a\.h5: it has no {name}: it is incomplete, make it again"):
            read_decomposition(path, lazy=lazy)


def test_damage_to_rows_left_on_disk_is_named_when_they_are_read(tmp_path):
    found = read_decomposition(made_with(tmp_path, "D", H=np.where(np.arange(3)[:, None] == 1, -1, H).astype(np.float32)), lazy=True)
    assert found.component(0).any()
    with pytest.raises(ValueError, match=r"a\.h5: data/H holds -1\.0 in row 1; expected finite numbers, none below 0"):
        found.component(1)
    words = r"a\.h5: data/G has 3 rows; expected 4, one for each column of data/W"
    with pytest.raises(ValueError, match=words):
        read_decomposition(made_with(tmp_path, "LRM", W=np.ones((7, 4), np.float32)), lazy=True)


def test_what_was_never_filled_in_is_not_read_as_zeros(tmp_path):
    """HDF5 keeps a place for an array that nobody wrote, and reads it as zeros."""
    path = made_with(tmp_path, "LRM")
    with h5py.File(path, "a") as file:
        del file["data/G"]
        file.create_dataset("data/G", (R, M), "<f4")
    for lazy in (False, True):
        with pytest.raises(ValueError, match=r"a\.h5: data/G of shape \(3, 10\) was never filled in: the run was interrupted, make it again"):
            read_decomposition(path, lazy=lazy)


def test_files_that_are_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.h5 does not exist"):
        read_decomposition(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(ValueError, match=r"text\.h5 is not an HDF5 file, or is damaged .* copy or make it again"):
        read_decomposition(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["weights"] = np.ones(3)
    with pytest.raises(ValueError, match=r"other\.h5: it has no data/W: it is another program's, or the run was interrupted"):
        read_decomposition(tmp_path / "other.h5")
    pefs = some_pefs("LRM")[0]
    path = reference_files.write_lrm(tmp_path / "pefs.h5", pefs.rows, labels=pefs.labels, logits=pefs.logits, norms=pefs.norms)
    with pytest.raises(ValueError, match=r"pefs\.h5: it holds Fishers, not a decomposition of them: read it with .*reference_files.read"):
        read_decomposition(path)


def test_the_other_reader_refers_here(made):
    with pytest.raises(ValueError, match="a decomposition, not the Fishers that it was made of"):
        reference_files.read(made.path)


def everything(path, lazy):
    found = read_decomposition(path, lazy=lazy)
    return found.coefficients, dense(found.components), found.columns


def test_a_file_cut_short_anywhere_is_an_error_in_words(made):
    whole = made.path.read_bytes()
    cuts = {0, 1, 7, 8, 9, len(whole) - 1, *np.random.default_rng(1).integers(0, len(whole), 60).tolist()}
    for cut in sorted(cuts):
        made.path.write_bytes(whole[:cut])
        for lazy in (False, True):
            with pytest.raises(ValueError, match=r"a\.h5"):
                everything(made.path, lazy)


@pytest.mark.parametrize("kind", ["LRM", "LVRM", "D"])
def test_a_file_cut_short_after_it_was_opened(tmp_path, kind):
    path = made_with(tmp_path, kind)
    found = read_decomposition(path, lazy=True)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"a\.h5 is not an HDF5 file, or is damaged .*truncated"):
        found.component(0)


def test_damage_anywhere_is_an_error_in_words_or_harmless(made):
    whole, rng, refused = made.path.read_bytes(), np.random.default_rng(0), 0
    for number in range(120):
        broken = bytearray(whole)
        for at in rng.integers(0, len(whole), size=4):
            broken[at] = rng.integers(256)
        made.path.write_bytes(broken)
        try:
            coefficients, components, columns = everything(made.path, lazy=bool(number % 2))
        except ValueError as error:
            assert "a.h5" in str(error) or "holds coefficients alone" in str(error)  # the name of G was hit
            refused += 1
        else:
            assert np.isfinite(coefficients).all() and (coefficients >= 0).all() and components.shape[1] == len(columns)
            assert np.isfinite(components).all() and (np.diff(columns.astype(object)) > 0).all()
    assert refused > 15


def test_without_h5py_the_error_says_what_to_install(made, monkeypatch, tmp_path):
    found = read_decomposition(made.path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    words = r'need h5py: pip install "npeff-nb\[interop\]"'
    with pytest.raises(ImportError, match=words):
        read_decomposition(made.path)
    with pytest.raises(ImportError, match=words):
        write_decomposition(tmp_path / "b.h5", found)
    assert not (tmp_path / "b.h5").exists()


def test_the_module_itself_needs_neither_h5py_nor_torch():
    code = f"import sys, {reference_decompositions.__name__}; print(sorted({{'h5py', 'torch'}} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# Losses


def some_pefs(kind, n=N, seed=0, **changes):
    """Fishers of n examples, as in a file and as dense factors (n, k, P)."""
    rng = np.random.default_rng(seed)
    k, kept = (3, 12) if kind == "LRM" else (4, 12)
    ranks = np.full(n, k) if kind == "LRM" else rng.integers(1, k + 1, n)
    factors, places = np.zeros((n, k, P), np.float32), []
    for i in range(n):
        place = np.sort(rng.choice(ranks[i] * P, kept, replace=False))
        factors[i].reshape(-1)[place] = rng.normal(size=kept)
        places.append(place)
    places = np.array(places)
    offsets = np.stack([np.searchsorted(place, np.arange(k + 1) * P) for place in places]).astype(np.int32)
    values = np.take_along_axis(factors.reshape(n, -1), places, 1)
    # Of the whole Fishers, before entries were dropped.
    norms = (np.linalg.norm(factors @ factors.transpose(0, 2, 1), axis=(1, 2)) * rng.uniform(1, 3, n)).astype(np.float32).astype(np.float64)
    rows = SparseRows(values, places % P, offsets, P)
    logits = rng.normal(size=(n, 3)).astype(np.float32)
    about = {"kind": kind, "labels": np.zeros(n, np.int64), "logits": logits, "norms": norms, "rows": rows}
    return ReferencePEFs(**about | ({"ranks": ranks} if kind == "LVRM" else {}) | changes), factors.astype(np.float64)


def true_loss(A, found):
    """Σ_i ‖A_iᵀA_i − Σ_j W_ij ĝ_j ĝ_jᵀ‖²_F by dense matrices, for rows A (n, k, m) that are normalised already."""
    H = found.G.astype(np.float64)
    return sum(np.linalg.norm(a.T @ a - np.einsum("j,ja,jb->ab", w, H, H)) ** 2 for a, w in zip(A, found.W.astype(np.float64), strict=True))


def logged_loss(A, found):
    """What the reference logs: its trace constant visits every pair of rows, the same one twice included, and doubles it."""
    constant = 0.0
    for a in A:
        for y in range(len(a)):
            constant += (a[y] @ a[y]) ** 2
            for z in range(y + 1):  # also z = y
                constant += 2 * (1 if z == y else 2) * (a[y] @ a[z]) ** 2
    H = found.G.astype(np.float64)
    projected = ((A @ H.T) ** 2).sum(1)
    return constant - 2 * (found.W * projected).sum() + ((found.W.astype(np.float64).T @ found.W) * (H @ H.T) ** 2).sum()


@pytest.mark.parametrize("kind", ["LRM", "LVRM"])
@pytest.mark.parametrize("seed", range(4))
def test_corrected_losses_are_errors(kind, seed):
    """On the kept columns alone, after the division by the dense norms."""
    pefs, factors = some_pefs(kind, seed=seed)
    A = (factors / np.sqrt(pefs.norms)[:, None, None])[:, :, COLUMNS]
    found = ReferenceDecomposition(kind, W / 10, UNITS, COLUMNS, P, 3 if kind == "LRM" else None)
    logged = logged_loss(A, found)
    # float64 here, so that the formula is tested and not the precision of the log.
    found = replace(found, losses={"G_only": np.array([logged, logged + 1]), "joint": np.array([logged - 1])})
    corrected, expected = found.corrected_losses(pefs), true_loss(A, found)
    assert corrected["joint"].dtype == np.float64
    np.testing.assert_allclose(corrected["G_only"], [expected, expected + 1], rtol=1e-6)  # components are float32
    np.testing.assert_allclose(corrected["joint"], [expected - 1], rtol=1e-6)
    assert logged > 1.5 * expected, "the constant was meant to matter"


@pytest.mark.parametrize(("kind", "smallest"), [("LRM", 1e-12), ("LVRM", 1e-6)])
def test_the_smallest_length_that_is_divided_by(kind, smallest):
    pefs, factors = some_pefs(kind, n=2)
    pefs = replace(pefs, norms=np.array([0.0, 0.25 * smallest**2]))
    A = (factors / smallest)[:, :, COLUMNS]
    found = ReferenceDecomposition(kind, W[:2], G, COLUMNS, P, 3 if kind == "LRM" else None, {"joint": np.zeros(1, np.float32)})
    grams = A @ A.transpose(0, 2, 1)
    expected = -((grams**2).sum() + (np.diagonal(grams, axis1=1, axis2=2) ** 2).sum())
    np.testing.assert_allclose(found.corrected_losses(pefs)["joint"], [expected], rtol=1e-6)


def test_nothing_logged_needs_no_correction():
    pefs, _ = some_pefs("LRM")
    found = ReferenceDecomposition("LRM", W, G, COLUMNS, P, 3, {"G_only": np.zeros(0, np.float32), "joint": JOINT})
    assert len(found.corrected_losses(pefs)["G_only"]) == 0 and len(found.corrected_losses(pefs)["joint"]) == 3


FOREIGN = {
    "of another kind": ("LVRM", {}, {}, "these are LVRM Fishers and the decomposition is of kind LRM: give the file that it was made of"),
    "of fewer": ("LRM", {"n": 5}, {}, "5 Fishers for a decomposition of 7 examples: give those that it was made of, the first with n_examples="),
    "of more parameters": ("LRM", {}, {"n_parameters": P + 1}, "Fishers over 30 parameters for a decomposition over 31: they belong to another"),
    "of other classes": ("LRM", {}, {"n_classes": 2}, "Fishers of 3 factor rows for a decomposition with n_classes=2: they belong to another model"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_fishers_that_do_not_belong_to_it_are_refused(what):
    kind, pefs, changes, words = FOREIGN[what]
    found = replace(ReferenceDecomposition("LRM", W, G, COLUMNS, P, 3, {"joint": JOINT}), **changes)
    for ask in (found.corrected_losses, lambda pefs: as_factorisation(found, pefs)):
        with pytest.raises(ValueError, match=words):
            ask(some_pefs(kind, **pefs)[0])


def test_a_diagonal_decomposition_logs_nothing():
    with pytest.raises(ValueError, match="a D file keeps no losses: there is nothing to correct"):
        ReferenceDecomposition("D", W, H, COLUMNS, P).corrected_losses(some_pefs("LRM")[0])


# Ours and theirs


@pytest.mark.parametrize("kind", ["LRM", "LVRM"])
def test_theirs_as_one_of_ours(kind, tmp_path):
    pefs, factors = some_pefs(kind)
    stored, rows = W / 50, G[::-1].copy()  # an order in which the shares rise
    found = as_factorisation(ReferenceDecomposition(kind, stored, rows, COLUMNS, P, 3 if kind == "LRM" else None), pefs)
    A = factors[:, :, COLUMNS] / np.sqrt(pefs.norms)[:, None, None]
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    units, coefficients = rows / lengths[:, None], stored.astype(np.float64) * lengths**2
    numbers = [int(found.labels[k].split()[1]) for k in range(R)]
    assert sorted(numbers) == [0, 1, 2] and numbers != [0, 1, 2]
    np.testing.assert_allclose(found.coefficients_, coefficients[:, numbers], rtol=1e-6)
    cosines = (found.components_ * units[numbers]).sum(1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-6)
    np.testing.assert_allclose(found.projections_, A @ found.components_.T, atol=1e-6)
    # The likeliest class of an LRM file is a row by its number, of an LVRM file the first.
    row = pefs.logits.argmax(1) if kind == "LRM" else np.zeros(N, int)
    assert ((found.coefficients_ * found.projections_[np.arange(N), row]).sum(0) >= 0).all()
    error = sum(
        np.linalg.norm(a.T @ a - np.einsum("j,ja,jb->ab", w, units, units)) ** 2 - np.linalg.norm(a.T @ a) ** 2 + 1
        for a, w in zip(A, coefficients, strict=True)
    )
    assert found.reconstruction_err_ == pytest.approx(error, rel=1e-6)
    assert found.explained_variance_ == pytest.approx(max(0.0, 1 - error / N), rel=1e-5)
    assert found.component_shares_.sum() == pytest.approx(1 - error / N, rel=1e-5) and (np.diff(found.component_shares_) <= 0).all()
    # It is fitted as far as an estimator goes: saved, read, and used on rows over the same columns.
    again = type(found).load(found.save(tmp_path / "ours.npeff"))
    np.testing.assert_array_equal(again.components_, found.components_)
    assert again.labels == found.labels and again.transform(A).shape == (N, R) and again.subject is None and again.examples is None


def test_lazily_it_is_the_same(tmp_path):
    pefs, _ = some_pefs("LRM")
    path = write_decomposition(tmp_path / "a.h5", ReferenceDecomposition("LRM", W, G, COLUMNS, P, 3))
    whole, lazy = (as_factorisation(read_decomposition(path, lazy=lazy), pefs) for lazy in (False, True))
    np.testing.assert_array_equal(whole.components_, lazy.components_)
    np.testing.assert_array_equal(whole.coefficients_, lazy.coefficients_)


def test_fishers_of_nothing_explain_nothing():
    pefs, _ = some_pefs("LRM")
    empty = replace(pefs, rows=replace(pefs.rows, values=np.zeros_like(pefs.rows.values)), norms=np.zeros(N))
    with pytest.raises(ValueError, match="all Fishers are zero on the kept columns: there is nothing that the components could explain"):
        as_factorisation(ReferenceDecomposition("LRM", W, G, COLUMNS, P, 3), empty)


def test_a_diagonal_one_has_no_counterpart():
    with pytest.raises(ValueError, match="a D file says how strongly parameters take part and in no direction"):
        as_factorisation(ReferenceDecomposition("D", W, H, COLUMNS, P), some_pefs("LRM")[0])


def fitted_on(features, model=None, **options):
    pefs = extract_fishers(model or tiny.bert(), tiny.tokenizer(), tiny.table(12), features=features, progress=False, **options)
    return NPEFF(3, n_init=1, random_state=0).fit(pefs), pefs


def flat(npeff, direction):
    return np.concatenate([direction[name].double().numpy().ravel() for name in npeff.parameters["name"]])


def test_ours_on_largest_entries_goes_out_and_comes_back(tmp_path):
    """The very components of the fit: with the file of Fishers beside it, projections and explained variance are those of the fit."""
    npeff, pefs = fitted_on("topk", budget=200)
    found = read_decomposition(write_npeff(tmp_path / "a.h5", npeff, pefs=pefs))
    theirs = reference_files.read(reference_files.write_pefs(tmp_path / "pefs.h5", pefs))
    assert found.kind == "LRM" and found.n_parameters == pefs.sparse.size and found.n_classes == pefs.sparse.rank == 3
    assert set(found.columns) <= set(pefs.sparse.columns.ravel())
    back = as_factorisation(found, theirs)
    order = [int(back.labels[k].split()[1]) for k in range(3)]
    np.testing.assert_allclose(back.coefficients_, npeff.coefficients_[:, order], rtol=1e-5)
    np.testing.assert_allclose(np.abs(back.projections_), np.abs(npeff.projections_[:, :, order]), atol=1e-5)  # float32 rows and files
    assert back.explained_variance_ == pytest.approx(npeff.explained_variance_, rel=1e-4)
    np.testing.assert_allclose(found.lengths, 1, atol=1e-4)


def test_ours_on_some_of_the_examples(tmp_path):
    """Fewer rows than features, so that features of these rows alone have no unique counterpart."""
    _, pefs = fitted_on("topk", budget=200)
    some = pefs[:5]
    npeff = NPEFF(3, n_init=1, random_state=0).fit(some)
    assert some.factors.shape[2] > 15
    found = read_decomposition(write_npeff(tmp_path / "a.h5", npeff, pefs=some))
    rows = some.sparse.matrix().toarray().reshape(5, 3, -1) / np.sqrt(some.norms)[:, None, None]
    H = np.stack([found.component(k) for k in range(3)])
    np.testing.assert_allclose(rows @ H.T, npeff.projections_, atol=1e-5)  # float32 rows and files
    np.testing.assert_allclose(found.lengths, 1, atol=1e-4)


@pytest.mark.parametrize("features", ["dense", "sketch", "gram", "topk"])
def test_ours_on_other_features_is_lifted(tmp_path, features):
    npeff, _ = fitted_on(features, **({"budget": 200} if features == "topk" else {}))
    found = read_decomposition(write_npeff(tmp_path / "a.h5", npeff))
    assert found.n_parameters == npeff.parameters["numel"].sum() and found.n_classes == 3
    np.testing.assert_allclose(found.coefficients, npeff.coefficients_, rtol=1e-5, atol=1e-7)
    for k in range(3):
        # The direction leaves out examples with a fiftieth of the component and says what is left; the rest is float32 and the fit's own tolerance.
        assert flat(npeff, npeff.direction(k)) @ found.component(k) > 0.97


def test_dense_features_and_the_lift_agree_parameter_by_parameter(tmp_path):
    """Also where a layer keeps its weight transposed, as GPT-2's do."""
    npeff, _ = fitted_on("dense", tiny.gpt2_for("ForSequenceClassification"))
    from npeff_nb.directions.lift import direction

    found = read_decomposition(write_npeff(tmp_path / "a.h5", npeff))
    for k in range(3):
        assert flat(npeff, direction(npeff, k, coverage=1.0)) @ found.component(k) > 0.9999  # a stationary point up to the fit's tolerance


@pytest.mark.parametrize("features", ["dense", "gram"])
def test_scaled_parameters_stay_those_of_the_scaled_fishers(tmp_path, features):
    """The same inner products with rows of the same scale, wherever the components come from."""
    npeff, _ = fitted_on(features, scale={"attention": 3.0})
    pefs = extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.table(12), features="dense", scale={"attention": 3.0}, progress=False)
    assert npeff.parameters["scale"].nunique() == 2
    found = read_decomposition(write_npeff(tmp_path / "a.h5", npeff))
    H = np.stack([found.component(k) for k in range(3)])
    rows = pefs.factors / np.sqrt(pefs.norms)[:, None, None]
    np.testing.assert_allclose(rows @ H.T, npeff.projections_, atol=0.01)  # the tolerance at which the fit stopped


def test_parameters_that_no_component_touches_are_left_out(tmp_path):
    npeff, _ = fitted_on("dense", parameters="all")
    found = read_decomposition(write_npeff(tmp_path / "a.h5", npeff, n_classes=2))
    # Of 32 positions the texts reach eleven at most.
    assert len(found.columns) < found.n_parameters and found.G.any(axis=0).all() and found.n_classes == 2


def test_what_cannot_be_written(tmp_path):
    npeff, pefs = fitted_on("topk", budget=200)
    with pytest.raises(ValueError, match=r"these Fishers were extracted with features='dense': pefs= is for features='topk', leave it out"):
        write_npeff(tmp_path / "a.h5", npeff, pefs=fitted_on("dense")[1])
    with pytest.raises(ValueError, match="this NPEFF was fitted on other Fishers: on 12 examples, and these are 5"):
        write_npeff(tmp_path / "a.h5", npeff, pefs=pefs[:5])
    with pytest.raises(ValueError, match=r"was fitted on other Fishers: its projections of these are off by 0\.\d+, not 0.001 at most"):
        write_npeff(tmp_path / "a.h5", npeff, pefs=pefs[::-1])
    array = NPEFF(2, n_init=1, random_state=0).fit(np.random.default_rng(0).normal(size=(8, 2, 5)))
    with pytest.raises(ValueError, match="was fitted on an array: its features are no parameters of a model, and the format numbers parameters"):
        write_npeff(tmp_path / "a.h5", array)
    npeff.subject = None
    with pytest.raises(ValueError, match=r"no model at hand: call npeff\.attach"):
        write_npeff(tmp_path / "a.h5", npeff)
    assert not list(tmp_path.iterdir())
