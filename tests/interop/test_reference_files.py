"""Files of the reference implementation: the layout on disk path by path, what other versions of it wrote, and what damage says."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from npeff_nb.fisher.sparse import SparseDiagonals, SparseRows
from npeff_nb.interop import reference_files
from npeff_nb.interop.reference_files import read, write_d, write_lrm, write_lvrm

P, K = 30, 6
LABELS = [2, 0, -1, 1]
LOGITS = np.array([[0.1, 0.2, 3], [1, 0, 0], [-2.5, 0, 1], [0, 5, 0]])  # float64: the files hold less
NORMS = np.array([0.5, 1.25, 1e-3, 7])

VALUES = (np.arange(24).reshape(4, K) - 11.5).astype(np.float32)
COLUMNS = np.array([[0, 4, 29, 3, 7, 8], [1, 2, 3, 4, 5, 6], [9, 0, 1, 2, 3, 29], [2, 9, 1, 0, 1, 2]])
OFFSETS = np.array([[0, 3, 3, 6], [0, 6, 6, 6], [0, 1, 2, 6], [0, 2, 3, 6]], dtype=np.int32)
SIZES = [[3, 0, 3], [6, 0, 0], [1, 1, 4], [2, 1, 3]]
RANKS = [3, 1, 3, 3]


def make_rows(**changes) -> SparseRows:
    return SparseRows(**{"values": VALUES, "columns": COLUMNS, "offsets": OFFSETS, "size": P} | changes)


def make_diagonals(**changes) -> SparseDiagonals:
    indices = np.random.default_rng(0).permuted(np.tile(np.arange(P), (4, 1)), axis=1)[:, :K]
    values = -np.sort(-np.random.default_rng(1).random((4, K)), axis=1).astype(np.float32)
    return SparseDiagonals(**{"values": values, "indices": indices, "norms": NORMS, "size": P} | changes)


def lrm(path, rows=None, **changes):
    return write_lrm(path, rows or make_rows(), **{"labels": LABELS, "logits": LOGITS, "norms": NORMS} | changes)


def lvrm(path, rows=None, ranks=RANKS, **changes):
    return write_lvrm(path, rows or make_rows(), ranks, **{"labels": LABELS, "logits": LOGITS, "norms": NORMS, "min_prob_class": 0.05} | changes)


def d(path, diagonals=None, **changes):
    return write_d(path, diagonals or make_diagonals(), **{"labels": LABELS, "logits": LOGITS} | changes)


WRITERS = {"LRM": lrm, "LVRM": lvrm, "D": d}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path):
    """A file of each kind."""
    return SimpleNamespace(kind=request.param, path=WRITERS[request.param](tmp_path / "pefs.h5"), write=WRITERS[request.param])


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# What is written


LAYOUTS = {
    "LRM": {
        "data/labels": ("<i4", (4,)),
        "data/logits": ("<f4", (4, 3)),
        "data/values": ("<f4", (4, K)),
        "data/col_offsets": ("<i4", (4, 4)),
        "data/row_indices": ("<i4", (4, K)),
        "data/pef_frobenius_norms": ("<f4", (4,)),
        "data@n_classes": ("<i8", ()),
        "data@n_parameters": ("<i8", ()),
    },
    "LVRM": {
        "data/labels": ("<i4", (4,)),
        "data/logits": ("<f4", (4, 3)),
        "data/values": ("<f4", (4, K)),
        "data/row_indices": ("<i4", (4, K)),
        "data/ranks": ("<i4", (4,)),
        "data/col_sizes": ("<i4", (10,)),
        "data/pef_frobenius_norms": ("<f4", (4,)),
        "data@min_prob_class": ("<f8", ()),
        "data@n_parameters": ("<i8", ()),
    },
    "D": {
        "data/labels": ("<i4", (4,)),
        "data/predicted_logits": ("<f4", (4, 3)),
        "data/dense_fisher_norms": ("<f4", (4,)),
        "data/fisher/values": ("<f4", (4, K)),
        "data/fisher/indices": ("<i4", (4, K)),
        "data/fisher@dense_fisher_size": ("<i4", ()),
    },
}


def test_every_path_type_and_shape_is_the_reference_s(written):
    found = {}

    def note(name, node):
        found.update({f"{name}@{a}": (np.asarray(value).dtype.str, np.shape(value)) for a, value in node.attrs.items()})
        if isinstance(node, h5py.Dataset):
            found[name] = (node.dtype.str, node.shape)
            assert node.chunks is None and node.compression is None and node.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
            assert node.id.get_create_plist().get_external_count() == 0

    with h5py.File(written.path) as file:
        assert not file.attrs
        file.visititems(note)
    assert found == LAYOUTS[written.kind]


def test_the_contents_of_a_file_of_factors(tmp_path):
    with h5py.File(lrm(tmp_path / "a.h5")) as file:
        data = file["data"]
        assert data.attrs["n_classes"] == 3 and data.attrs["n_parameters"] == P
        for name, expected in {"labels": LABELS, "values": VALUES, "col_offsets": OFFSETS, "row_indices": COLUMNS}.items():
            np.testing.assert_array_equal(data[name], expected)
        np.testing.assert_array_equal(data["logits"], LOGITS.astype(np.float32))
        np.testing.assert_array_equal(data["pef_frobenius_norms"], NORMS.astype(np.float32))


def test_sizes_of_a_file_of_variable_rank_follow_one_another_without_the_empty_rows_after_the_rank(tmp_path):
    with h5py.File(lvrm(tmp_path / "a.h5")) as file:
        assert file["data/col_sizes"][:].tolist() == [3, 0, 3, 6, 1, 1, 4, 2, 1, 3]  # of examples 0, 0, 0, 1, 2, 2, 2, 3, 3, 3
        assert file["data/ranks"][:].tolist() == RANKS
        assert file["data"].attrs["min_prob_class"] == 0.05


def test_a_diagonal_s_size_is_four_bytes_and_its_norm_that_of_the_whole(tmp_path):
    with h5py.File(d(tmp_path / "a.h5")) as file:
        assert file["data/fisher"].attrs.get_id("dense_fisher_size").get_storage_size() == 4
        assert file["data/fisher"].attrs["dense_fisher_size"] == P
        np.testing.assert_array_equal(file["data/dense_fisher_norms"], NORMS.astype(np.float32))


def test_an_old_hdf5_can_open_it(written):
    content = written.path.read_bytes()
    assert content[:8] == b"\x89HDF\r\n\x1a\n" and content[8] == 0, "the superblock is newer than HDF5 1.0"


def test_the_same_fishers_give_the_same_bytes(written, tmp_path):
    assert written.write(tmp_path / "again.h5").read_bytes() == written.path.read_bytes()


# There and back


def same_rows(found: SparseRows, expected: SparseRows):
    assert found.size == expected.size
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.columns, expected.columns)
    np.testing.assert_array_equal(found.offsets, expected.offsets)


def test_what_was_written_is_read(written):
    found = read(written.path)
    assert found.kind == written.kind and len(found) == 4
    assert found.labels.tolist() == LABELS and found.labels.dtype == np.int64
    np.testing.assert_array_equal(found.logits, LOGITS.astype(np.float32))
    np.testing.assert_array_equal(found.norms, NORMS.astype(np.float32))
    assert found.logits.dtype == np.float32 and found.norms.dtype == np.float64
    if written.kind == "D":
        expected = make_diagonals()
        assert found.rows is None and found.ranks is None and found.min_prob_class is None
        assert found.diagonals.size == P
        np.testing.assert_array_equal(found.diagonals.values, expected.values)
        np.testing.assert_array_equal(found.diagonals.indices, expected.indices)
        np.testing.assert_array_equal(found.diagonals.norms, NORMS.astype(np.float32))
    else:
        assert found.diagonals is None
        same_rows(found.rows, make_rows())
        assert (None if found.ranks is None else found.ranks.tolist()) == {"LRM": None, "LVRM": RANKS}[written.kind]
        assert found.min_prob_class == {"LRM": None, "LVRM": 0.05}[written.kind]


def test_what_was_read_is_written_to_the_same_bytes(tmp_path, written):
    found = read(written.path)
    about = {"labels": found.labels, "logits": found.logits}
    again = {
        "LRM": lambda path: lrm(path, found.rows, norms=found.norms, **about),
        "LVRM": lambda path: lvrm(path, found.rows, found.ranks, norms=found.norms, min_prob_class=found.min_prob_class, **about),
        "D": lambda path: d(path, found.diagonals, **about),
    }[written.kind](tmp_path / "again.h5")
    assert again.read_bytes() == written.path.read_bytes()


def test_rows_up_to_the_largest_rank_that_there_is(tmp_path):
    """Rows that no example has are not in the file and do not come back."""
    found = read(lvrm(tmp_path / "a.h5", make_rows(offsets=np.pad(OFFSETS, ((0, 0), (0, 2)), mode="edge")), RANKS)).rows
    same_rows(found, make_rows())


# Liberties that files of the reference take


@pytest.fixture
def altered(written):
    """The file, open, to be changed by hand, and read again."""

    def change(**datasets):
        with h5py.File(written.path, "a") as file:
            for name, value in datasets.items():
                path = next(p for p in LAYOUTS[written.kind] if p.endswith("/" + name))
                del file[path]
                if value is not None:
                    file[path] = value
        return written.path

    return SimpleNamespace(kind=written.kind, path=written.path, change=change)


@pytest.mark.parametrize("name", ["logits", "predicted_logits"])
def test_logits_under_either_name(written, name):
    with h5py.File(written.path, "a") as file:
        old = "logits" if "logits" in file["data"] else "predicted_logits"
        if name != old:
            file.move(f"data/{old}", f"data/{name}")
    np.testing.assert_array_equal(read(written.path).logits, LOGITS.astype(np.float32))


@pytest.mark.parametrize("form", [np.int32(P), np.int64(P), np.array([P]), np.array([P], dtype=np.int32), float(P)], ids=repr)
def test_attributes_as_scalars_or_arrays_of_one(written, form):
    with h5py.File(written.path, "a") as file:
        for group, names in {"data": ["n_parameters"], "data/fisher": ["dense_fisher_size"]}.items():
            for name in names:
                if group in file and name in file[group].attrs:
                    del file[group].attrs[name]
                    file[group].attrs[name] = form
        if "n_classes" in file["data"].attrs:
            file["data"].attrs["n_classes"] = np.array([3])
    found = read(written.path)
    assert (found.rows or found.diagonals).size == P


@pytest.mark.parametrize("width", [">i4", "<i8", "<u4"])
def test_whole_numbers_of_any_width(written, width):
    expected = read(written.path)
    with h5py.File(written.path, "a") as file:
        for name in [p for p, (dtype, _) in LAYOUTS[written.kind].items() if dtype == "<i4" and "@" not in p and p != "data/labels"]:
            stored = file[name][:]
            del file[name]
            file[name] = stored.astype(width)
    found = read(written.path)
    for a, b in zip((found.rows or found.diagonals).arrays().values(), (expected.rows or expected.diagonals).arrays().values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_numbers_of_double_precision(written):
    with h5py.File(written.path, "a") as file:
        for name in [p for p, (dtype, _) in LAYOUTS[written.kind].items() if dtype == "<f4"]:
            stored = file[name][:]
            del file[name]
            file[name] = stored.astype(np.float64)
    found = read(written.path)
    assert (found.rows or found.diagonals).values.dtype == np.float32 and found.logits.dtype == np.float32


@pytest.mark.parametrize("sizes", [SIZES, np.pad(SIZES, ((0, 0), (1, 0)))], ids=["alone", "behind a zero"])
def test_offsets_of_the_early_generation(tmp_path, sizes):
    path = lrm(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        del file["data/col_offsets"]
        file["data/col_offsets"] = np.asarray(sizes, dtype=np.int32)
    same_rows(read(path, cumulative_offsets=False).rows, make_rows())
    with pytest.raises(
        ValueError, match=r"a\.h5: data/col_offsets holds the size of each factor row, as early files do: .* cumulative_offsets=False"
    ):
        read(path)


def test_offsets_that_are_cumulative_after_all(tmp_path):
    with pytest.raises(ValueError, match="data/col_offsets does not hold 3 sizes that add up to 6: read it without cumulative_offsets=False"):
        read(lrm(tmp_path / "a.h5"), cumulative_offsets=False)


@pytest.mark.parametrize("kind", ["LRM", "LVRM"])
def test_rows_of_older_files_are_sorted(tmp_path, kind):
    path = WRITERS[kind](tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        for name in ("data/values", "data/row_indices"):
            stored = file[name][:]
            stored[0, 3:] = stored[0, [4, 5, 3]]
            stored[2, 2:] = stored[2, [5, 2, 4, 3]]
            file[name][:] = stored
    same_rows(read(path).rows, make_rows())


def test_a_tail_that_was_never_filled_in_is_named_and_left_out(written):
    """The reference makes room for n examples and leaves zeros where the data set had fewer."""
    with h5py.File(written.path, "a") as file:
        for name in [p for p in LAYOUTS[written.kind] if "@" not in p and p != "data/col_sizes"]:
            file[name][2:] = 0
        if written.kind == "LVRM":
            del file["data/col_sizes"]
            file["data/col_sizes"] = np.array([3, 0, 3, 6], dtype=np.int32)
    with pytest.raises(ValueError, match=r"the last 2 of 4 examples are all zeros: .* read the others with n_examples=2"):
        read(written.path)
    found = read(written.path, n_examples=2)
    assert len(found) == 2 and found.labels.tolist() == LABELS[:2] and found.logits.shape == (2, 3) and found.norms.shape == (2,)
    if written.kind == "D":
        np.testing.assert_array_equal(found.diagonals.indices, make_diagonals().indices[:2])
    else:
        same_rows(found.rows, make_rows().take(np.arange(2)))
    if written.kind == "LVRM":
        assert found.ranks.tolist() == RANKS[:2]


def test_a_file_without_any_example_filled_in(written):
    with h5py.File(written.path, "a") as file:
        for name in [p for p in LAYOUTS[written.kind] if "@" not in p]:
            file[name][:] = 0
    with pytest.raises(ValueError, match=r"the last 4 of 4 examples are all zeros: .* nothing is left to read|sum of data/ranks"):
        read(written.path)


def test_an_example_of_which_the_model_is_certain_is_not_taken_for_a_missing_one(tmp_path):
    rows = make_rows(values=np.concatenate([VALUES[:3], np.zeros((1, K), dtype=np.float32)]))
    assert len(read(lrm(tmp_path / "a.h5", rows, norms=[1, 1, 1, 0]))) == 4


def test_the_first_examples_of_a_whole_file(written):
    found, everything = read(written.path, n_examples=2), read(written.path)
    assert len(found) == 2
    kept, expected = found.rows or found.diagonals, (everything.rows or everything.diagonals).take(np.arange(2))
    np.testing.assert_array_equal(kept.matrix().toarray(), expected.matrix().toarray())


@pytest.mark.parametrize("n", [0, -1])
def test_no_examples_cannot_be_asked_for(written, n):
    with pytest.raises(ValueError, match=rf"n_examples={n}; expected 1 or more, or None for all"):
        read(written.path, n_examples=n)


def test_more_examples_than_there_are(written):
    with pytest.raises(ValueError, match=r"values has 4 examples; expected 5"):
        read(written.path, n_examples=5)


# Files that are something else, or damaged


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.h5 does not exist"):
        read(tmp_path / "none.h5")


def test_another_kind_of_file(tmp_path):
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(ValueError, match=r"text\.h5 is not an HDF5 file, or is damaged .* copy or make it again"):
        read(tmp_path / "text.h5")


def test_a_file_cut_short(written):
    written.path.write_bytes(written.path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"pefs\.h5 is not an HDF5 file, or is damaged .*truncated"):
        read(written.path)


def test_damage_anywhere_is_an_error_in_words_or_harmless(written):
    """Whatever HDF5 trips over, the caller sees one kind of error."""
    whole = written.path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        broken = bytearray(whole)
        for at in rng.integers(0, 3000, size=4):
            broken[at] = rng.integers(256)
        written.path.write_bytes(broken)
        try:
            read(written.path)
        except ValueError as error:
            assert "pefs.h5" in str(error)
            refused += 1
    assert refused > 20


def test_a_decomposition_is_told_from_fishers(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data/W"], file["data/G"] = np.ones((2, 2)), np.ones((2, 2))
    with pytest.raises(ValueError, match="it holds data/W and data/G: a decomposition, not the Fishers that it was made of"):
        read(tmp_path / "a.h5")


def test_a_run_of_variable_rank_that_was_interrupted(tmp_path):
    path = lvrm(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        del file["data/ranks"], file["data/col_sizes"]
    with pytest.raises(
        ValueError, match=r"neither data/fisher/values \(D\) nor data/ranks \(LVRM\) nor data/col_offsets \(LRM\): .* was interrupted"
    ):
        read(path)


SNIFFED = {"data/fisher/values", "data/ranks", "data/col_offsets"}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, layout in LAYOUTS.items() for name in layout if name not in SNIFFED])
def test_whatever_is_missing_is_named(tmp_path, kind, name):
    path = WRITERS[kind](tmp_path / "a.h5")
    place, _, attribute = name.partition("@")
    with h5py.File(path, "a") as file:
        if attribute:
            del file[place].attrs[attribute]
        else:
            del file[name]
    if attribute == "min_prob_class":  # nothing is lost without it
        assert read(path).min_prob_class is None
        return
    words = (
        f"attribute {attribute} of {place} is missing" if attribute else f"it has no {name.replace('predicted_logits', 'logits')}: it is incomplete"
    )
    with pytest.raises(ValueError, match=rf"a\.h5: {words}"):
        read(path)


DAMAGE = {
    "values of text": ("LRM", {"data/values": [b"a"]}, r"data/values holds object of shape \(1,\); expected floating-point numbers in 2 dimensions"),
    "flat values": ("D", {"data/fisher/values": np.ones(4)}, r"data/fisher/values holds float64 of shape \(4,\); expected .* in 2 dimensions"),
    "a group in its place": ("LRM", {"data/values/x": 1}, "it has no data/values: it is incomplete"),
    "fractions for indices": ("LRM", {"data/row_indices": np.ones((4, K))}, "data/row_indices holds float64 .* expected whole numbers in 2 dim"),
    "fewer indices": ("D", {"data/fisher/indices": np.ones((4, 2), int)}, r"data/fisher/indices has shape \(4, 2\); expected \(4, 6\)"),
    "fewer labels": ("LRM", {"data/labels": [1, 2]}, "data/labels has 2 examples; expected 4"),
    "fewer norms": ("D", {"data/dense_fisher_norms": [1.0]}, "data/dense_fisher_norms has 1 examples; expected 4"),
    "no norm": ("LVRM", {"data/pef_frobenius_norms": np.full(4, np.nan)}, "data/pef_frobenius_norms holds a number that is negative or not finite"),
    "foreign index": ("LRM", {"data/row_indices": np.full((4, K), 30)}, "columns of example 0 hold 30; 30 parameters allow 0 to 29"),
    "an index twice": ("LRM", {"data/row_indices": np.full((4, K), 3)}, "columns of example 0 do not rise within a factor row"),
    "offsets for other classes": ("LRM", {"data/col_offsets": OFFSETS[:, 1:]}, "data/col_offsets has 3 columns; expected 4, one more than n_classes"),
    "offsets out of reach": (
        "LRM",
        {"data/col_offsets": OFFSETS.astype(np.int64) * 2**40},
        "data/col_offsets goes from 0 to 6597069766656; expected 0 to 6",
    ),
    "offsets that fall": ("LRM", {"data/col_offsets": OFFSETS[:, [0, 2, 1, 3]]}, r"offsets of example 2 are \[0 2 1 6\]; expected cumulative"),
    "other ranks": ("LVRM", {"data/ranks": [3, 1, 3, 2]}, "data/col_sizes has 10 entries; expected 9, the sum of data/ranks"),
    "rank nought": (
        "LVRM",
        {"data/ranks": [3, 1, 0, 6]},
        "data/ranks says 0 for example 2; expected 1 factor row or more: min_prob_class was too high",
    ),
    "sizes that do not add up": ("LVRM", {"data/ranks": [1, 3, 3, 3]}, r"data/col_sizes of example 0 are \[3\]; expected 6 entries in all"),
    "a diagonal below zero": ("D", {"data/fisher/values": -np.ones((4, K))}, "values go down to -1.0; a diagonal Fisher sums squares"),
    "a fraction of a parameter": ("LRM", {"data@n_parameters": 30.5}, "attribute n_parameters of data is 30.5; expected a whole number from 1 on"),
    "no parameter": ("D", {"data/fisher@dense_fisher_size": 0}, "attribute dense_fisher_size of data/fisher is 0; expected a whole number from 1"),
    "endless parameters": ("D", {"data/fisher@dense_fisher_size": np.inf}, "attribute dense_fisher_size of data/fisher is inf; expected a whole"),
    "a name for a number": ("LRM", {"data@n_classes": "three"}, "attribute n_classes of data is three; expected one number"),
    "two numbers": ("LRM", {"data@n_classes": [3, 3]}, r"attribute n_classes of data is \[3, 3\]; expected one number"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(what, tmp_path):
    kind, changes, words = DAMAGE[what]
    path = WRITERS[kind](tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        for name, value in changes.items():
            place, _, attribute = name.partition("@")
            if attribute:
                file[place].attrs[attribute] = value
                continue
            del file[place if place in file else place.rpartition("/")[0]]
            file[place] = value
    with pytest.raises(ValueError, match=r"a\.h5: " + words):
        read(path)


def test_no_permission_is_not_taken_for_damage(written, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(PermissionError):
        read(written.path)


# What is refused before anything is written


def wide(size, rank=2):
    """Rows of very many parameters, of which next to nothing is kept."""
    offsets = np.pad(np.ones((1, rank), dtype=np.int32), ((0, 0), (1, 0)))
    return SparseRows(np.ones((1, 1), dtype=np.float32), np.array([[size - 1]]), offsets, size)


ONE = {"labels": [0], "logits": [[0.0]], "norms": [1.0]}


def test_more_parameters_than_the_format_can_number_are_refused(tmp_path):
    words = r"2,147,483,648 parameters do not fit: the format counts them in 4-byte integers, so up to 2,147,483,647; leave some out with parameters="
    with pytest.raises(ValueError, match=words):
        write_lrm(tmp_path / "a.h5", wide(2**31, 1), **ONE)
    with pytest.raises(ValueError, match=words):
        write_lvrm(tmp_path / "a.h5", wide(2**31, 1), [1], min_prob_class=0.1, **ONE)
    diagonal = SparseDiagonals(np.ones((1, 1), dtype=np.float32), np.array([[0]]), np.ones(1), 2**31)
    with pytest.raises(ValueError, match=words):
        write_d(tmp_path / "a.h5", diagonal, labels=[0], logits=[[0.0]])
    assert names(tmp_path) == []


def test_the_largest_that_fit_come_back(tmp_path):
    largest = 2**31 - 1
    assert read(write_lrm(tmp_path / "a.h5", wide(largest, 1), **ONE)).rows.columns.tolist() == [[largest - 1]]
    assert read(write_lrm(tmp_path / "b.h5", wide(2**30, 2), **ONE)).rows.size == 2**30
    diagonal = SparseDiagonals(np.ones((1, 1), dtype=np.float32), np.array([[largest - 1]]), np.ones(1), largest)
    assert read(write_d(tmp_path / "c.h5", diagonal, labels=[0], logits=[[0.0]])).diagonals.indices.tolist() == [[largest - 1]]


def test_a_factor_with_more_entries_than_the_reference_can_number_is_refused(tmp_path):
    words = r"2 factor rows of 1,073,741,825 parameters do not fit: .* their 2,147,483,650 entries in 4-byte integers, so up to 2,147,483,648"
    with pytest.raises(ValueError, match=words):
        write_lrm(tmp_path / "a.h5", wide(2**30 + 1), **ONE)
    with pytest.raises(ValueError, match=words):
        write_lvrm(tmp_path / "a.h5", wide(2**30 + 1), [2], min_prob_class=0.1, **ONE)
    # Rows that no example has are not written and do not count.
    assert write_lvrm(tmp_path / "b.h5", wide(2**30 + 1), [1], min_prob_class=0.1, **ONE).exists()
    assert names(tmp_path) == ["b.h5"]


REFUSED = {
    "labels of fewer": ({"labels": [1, 2]}, r"labels have shape \(2,\); expected \(4,\), one entry an example"),
    "labels by name": ({"labels": ["a", "b", "c", "d"]}, "labels are of type <U1; expected whole numbers"),
    "labels as fractions": ({"labels": [0.5] * 4}, "labels are of type float64; expected whole numbers"),
    "labels too large": (
        {"labels": [0, 0, 0, 2**31]},
        "labels hold a number that the format has no room for; expected int32, -2147483648 to 2147483647",
    ),
    "logits of one class without its axis": ({"logits": [1.0] * 4}, r"logits have shape \(4,\); expected \(4, classes\), one entry an example"),
    "logits of fewer": ({"logits": LOGITS[:2]}, r"logits have shape \(2, 3\); expected \(4, classes\)"),
    "logits not a number": ({"logits": LOGITS * np.nan}, "logits hold a number that the format has no room for; expected float32"),
    "logits too large": ({"logits": LOGITS * 1e300}, "logits hold a number that the format has no room for; expected float32"),
    "norms of fewer": ({"norms": NORMS[:2]}, r"norms have shape \(2,\); expected \(4,\)"),
    "norms below zero": ({"norms": -NORMS}, r"norms go down to -7.0; expected Frobenius norms, none below 0"),
    "norms not a number": ({"norms": NORMS * np.nan}, "norms hold a number that the format has no room for; expected float32"),
}


# The norms of diagonals are part of them.
@pytest.mark.parametrize(("kind", "what"), [(kind, what) for kind in WRITERS for what in REFUSED if not (kind == "D" and "norms" in what)])
def test_arrays_that_do_not_belong_together_are_refused(what, kind, tmp_path):
    changes, words = REFUSED[what]
    with pytest.raises(ValueError, match=words):
        WRITERS[kind](tmp_path / "a.h5", **changes)
    assert names(tmp_path) == []


REFUSED_RANKS = {
    "of fewer": ({"ranks": [1]}, r"ranks have shape \(1,\); expected \(4,\)"),
    "too high": ({"ranks": [3, 1, 4, 3]}, "ranks go from 1 to 4; these rows allow 1 to 3"),
    "nought": ({"ranks": [3, 0, 3, 3]}, "ranks go from 0 to 3; these rows allow 1 to 3"),
    "too low": ({"ranks": [3, 1, 2, 3]}, "example 2 has rank 2 and entries in a row after that: raise its rank or leave those entries out"),
    "probability": ({"min_prob_class": 5}, "min_prob_class=5 is no probability; expected 0 to 1"),
}


@pytest.mark.parametrize("what", REFUSED_RANKS)
def test_ranks_that_do_not_fit_the_rows_are_refused(what, tmp_path):
    changes, words = REFUSED_RANKS[what]
    with pytest.raises(ValueError, match=words):
        lvrm(tmp_path / "a.h5", **changes)


# Whole or not at all


@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("older", [False, True])
def test_an_interrupted_write_leaves_what_was_there(written, monkeypatch, stop, older):
    before = written.path.read_bytes()
    if not older:
        written.path.unlink()
    original, calls = h5py.File.create_dataset, []

    def fail_later(self, name, *args, **kwargs):
        calls.append(name)
        if len(calls) == 3:
            raise stop
        return original(self, name, *args, **kwargs)

    monkeypatch.setattr(h5py.File, "create_dataset", fail_later)
    with pytest.raises(type(stop)):
        written.write(written.path)
    assert len(calls) == 3, "it was meant to stop half way"
    assert names(written.path.parent) == (["pefs.h5"] if older else [])
    assert not older or written.path.read_bytes() == before


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
@pytest.mark.parametrize("stop", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=repr)
def test_an_older_file_stays_when_the_new_one_does_not_reach_the_disk(written, monkeypatch, stop, step):
    before = written.path.read_bytes()

    def fail(self, *_):
        assert self.parent.parent == written.path.parent, "it is built elsewhere, perhaps on another file system"
        raise stop

    monkeypatch.setattr(Path, step, fail)
    with pytest.raises(type(stop)):
        written.write(written.path)
    assert names(written.path.parent) == ["pefs.h5"] and written.path.read_bytes() == before


def test_an_older_file_is_replaced(written):
    before = written.path.read_bytes()
    written.write(written.path, labels=[9] * 4)
    assert names(written.path.parent) == ["pefs.h5"] and written.path.read_bytes() != before
    assert read(written.path).labels.tolist() == [9] * 4


@pytest.mark.skipif(sys.platform == "win32", reason="files have no limit there")
def test_a_disk_that_is_full_at_any_point_leaves_nothing(tmp_path):
    """A real limit on the size of files, in a process of its own: HDF5 writing by itself would end that process."""
    code = f"""
import resource, signal, sys
from pathlib import Path
import numpy as np
from npeff_nb.fisher.sparse import SparseDiagonals
from npeff_nb.interop.reference_files import write_d
n, k = 50, 100
diagonals = SparseDiagonals(np.ones((n, k), np.float32), np.tile(np.arange(k), (n, 1)), np.ones(n), 1000)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (0, 1, 100, 2000, 20_000, 40_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write_d({str(tmp_path / "a.h5")!r}, diagonals, labels=np.zeros(n, int), logits=np.zeros((n, 2)))
    except OSError:
        assert not list(Path({str(tmp_path)!r}).iterdir()), list(Path({str(tmp_path)!r}).iterdir())
    else:
        raise SystemExit(f"limit {{limit}} was not noticed")
print("all refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "all refused\n", "")


def test_nothing_else_is_left_and_others_may_read_it(written):
    (written.path.parent / "plain").write_text("")
    assert names(written.path.parent) == ["pefs.h5", "plain"]
    assert written.path.stat().st_mode == (written.path.parent / "plain").stat().st_mode


def test_folders_on_the_way_are_made(tmp_path):
    assert lrm(tmp_path / "new" / "deep" / "a.h5") == tmp_path / "new" / "deep" / "a.h5"
    assert len(read(str(tmp_path / "new" / "deep" / "a.h5"))) == 4


# Without h5py


def test_without_h5py_the_error_says_what_to_install(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    words = r'need h5py: pip install "npeff-nb\[interop\]"'
    with pytest.raises(ImportError, match=words):
        read(written.path)
    with pytest.raises(ImportError, match=words):
        written.write(written.path)
    assert names(written.path.parent) == ["pefs.h5"]


def test_the_module_itself_needs_neither_h5py_nor_torch():
    code = f"import sys, {reference_files.__name__}; print(sorted({{'h5py', 'torch'}} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_extracted_fishers_go_out_and_come_back(tmp_path, bert, tokenizer):
    """The paper's rows √p_y ∇log p_y, class by class, as the reference keeps them."""
    import tiny

    from npeff_nb.fisher.extract import extract_fishers

    pefs = extract_fishers(bert, tokenizer, tiny.table(6), features="topk", budget=200, diagonal=50, progress=False)
    found = reference_files.read(reference_files.write_pefs(tmp_path / "lrm.h5", pefs))
    assert found.kind == "LRM"
    assert found.rows.rank == 3
    np.testing.assert_array_equal(found.rows.matrix().toarray(), pefs.sparse.matrix().toarray())
    np.testing.assert_allclose(found.norms, pefs.norms, rtol=1e-6)  # float32 on disk
    pefs.sparse = None
    assert reference_files.read(reference_files.write_pefs(tmp_path / "d.h5", pefs)).kind == "D"
    pefs.diagonals = None
    with pytest.raises(ValueError, match="extract with features='topk'"):
        reference_files.write_pefs(tmp_path / "no.h5", pefs)
    assert not (tmp_path / "no.h5").exists()
