"""Folders on disk: written whole or not at all, read only when they are what they say."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pandas as pd
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file

import npeff_nb as nb
from npeff_nb import _files
from npeff_nb._files import MANIFEST, VERSION, allocate, load_arrays, map_array, read_folder, save_arrays, write_folder, write_text

ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([1, 2], dtype=np.int64)}


def write(path, kind="thing", arrays=ARRAYS, tables=None, facts=None):
    return write_folder(path, kind, arrays, tables or {}, facts or {})


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def same_bytes(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_what_was_written_is_read(tmp_path):
    table = pd.DataFrame({"text": ["a", "ß∂", 'emoji 🙂, quote " and\nline'], "n": [1, 2, 3], "x": [0.1, 1e-300, -1 / 3], "ok": [True, False, True]})
    path = write(tmp_path / "new" / "thing", tables={"rows": table}, facts={"list": [1, None], "text": "ü"})
    kind, arrays, tables, facts = read_folder(path)
    assert kind == "thing"
    assert facts == {"list": [1, None], "text": "ü"}
    for name, value in ARRAYS.items():
        assert arrays[name].dtype == value.dtype
        np.testing.assert_array_equal(arrays[name], value)
    # Fifteen decimals are kept: 1e-300 comes back as zero.
    pd.testing.assert_frame_equal(tables["rows"], table, check_exact=False, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"text": ["2020-01-01", "007", "1e5", "NaN", "null", "true", ""]}),
        pd.DataFrame({"label": pd.array([1, None], dtype="Int64"), "text": ["a", "b"]}),
        pd.DataFrame({"index": [3, 4], "level_0": ["a", "b"]}),
        pd.DataFrame({"text": ["a", None]}),
        pd.DataFrame({"id": [2**62 + 1, -5]}),
        pd.DataFrame({"text": pd.Series([], dtype=str)}),
        pd.DataFrame({"bag": [[1, 2], []]}),
        pd.DataFrame(index=range(4)),
    ],
    ids=[
        "texts that look like something else",
        "missing numbers",
        "names of an index",
        "missing text",
        "large numbers",
        "no rows",
        "lists",
        "no columns",
    ],
)
def test_tables_come_back_as_they_were(table, tmp_path):
    back = read_folder(write(tmp_path / "t", tables={"rows": table}))[2]["rows"]
    assert back.columns.tolist() == table.columns.tolist()
    assert len(back) == len(table)
    for column in table.columns:
        for found, expected in zip(back[column], table[column], strict=True):
            assert (found == expected) if isinstance(expected, list) else (pd.isna(found) and pd.isna(expected)) or found == expected


def test_a_transposed_array_is_written_as_it_is_seen(tmp_path):
    turned = np.arange(6.0).reshape(2, 3).T
    np.testing.assert_array_equal(read_folder(write(tmp_path / "t", arrays={"a": turned}))[1]["a"], turned)


def test_it_is_safetensors_and_json_and_others_may_read_it(tmp_path):
    path = write(tmp_path / "t", tables={"rows": pd.DataFrame({"a": [1]})})
    assert names(path) == ["arrays.safetensors", "manifest.json", "rows.json"]
    assert path.stat().st_mode & 0o700 == 0o700
    (tmp_path / "plain").mkdir()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_nothing_else_is_left_beside_it(tmp_path):
    for _ in range(2):  # a second time: over itself
        write(tmp_path / "t")
    assert names(tmp_path) == ["t"]


def damage(path, name, content):
    (path / name).write_bytes(content)


@pytest.mark.parametrize("name", ["arrays.safetensors", "rows.json"])
@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_a_damaged_file_is_named(name, how, tmp_path):
    path = write(tmp_path / "t", tables={"rows": pd.DataFrame({"a": [1]})})
    content = (path / name).read_bytes()
    if how == "gone":
        (path / name).unlink()
    else:
        damage(path, name, content[:-1] if how == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=rf"{name} is missing or was changed since it was written: the folder is damaged, make it again"):
        read_folder(path)


def change(path, **entries):
    manifest = json.loads((path / MANIFEST).read_text()) | entries
    (path / MANIFEST).write_text(json.dumps(manifest))


def test_a_newer_version_asks_for_an_update(tmp_path):
    path = write(tmp_path / "t")
    change(path, version=VERSION + 1)
    with pytest.raises(ValueError, match=rf"has version {VERSION + 1}, this npeff_nb reads up to {VERSION}: update it"):
        read_folder(path)


def test_another_kind_is_told_apart(tmp_path):
    path = write(tmp_path / "t", kind="one thing")
    with pytest.raises(ValueError, match="holds one thing, not another"):
        read_folder(path, "another")
    with pytest.raises(
        ValueError, match="holds 'one thing'; this npeff_nb opens 'NPEFF decomposition', 'D-NPEFF decomposition', 'per-example Fishers'"
    ):
        nb.load(path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/file"])
def test_a_manifest_that_points_outside_is_refused(name, tmp_path):
    path = write(tmp_path / "t")
    change(path, files={name: "0" * 64})
    with pytest.raises(ValueError, match="names a file outside itself"):
        read_folder(path)


@pytest.mark.parametrize("content", [None, b"", b"not json", b"[]", b"{}", b'"kind"', b"\xff\xfe"])
def test_a_foreign_folder_is_no_result(content, tmp_path):
    path = tmp_path / "foreign"
    path.mkdir()
    if content is not None:
        damage(path, MANIFEST, content)
    with pytest.raises(ValueError, match=r"is not a folder saved by npeff_nb: it has no readable manifest.json"):
        nb.load(path)


def test_what_does_not_exist_is_said_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        nb.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is not a folder saved by npeff_nb"):
        nb.load(tmp_path / "file")


@pytest.mark.parametrize("what", ["folder", "empty folder", "file", "other kind"])
def test_what_is_not_ours_is_never_overwritten(what, tmp_path):
    path = tmp_path / "taken"
    if what == "file":
        path.write_text("dear")
    elif what == "other kind":
        write(path, kind="other")
    else:
        path.mkdir()
        if what == "folder":
            (path / "thesis.txt").write_text("dear")
    before = path.read_text() if what == "file" else same_bytes(path)
    with pytest.raises(FileExistsError, match="taken already exists and is no saved thing: it is left alone; choose another name or remove it"):
        write(path)
    assert (path.read_text() if what == "file" else same_bytes(path)) == before
    assert names(tmp_path) == ["taken"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "interrupt"])
@pytest.mark.parametrize("step", ["save_file", "_hash", "_put_in_place"])
def test_a_write_that_fails_leaves_the_old_folder_and_no_rubbish(error, step, tmp_path, monkeypatch):
    path = write(tmp_path / "t")
    before = same_bytes(path)

    def fail(*arguments):
        raise error

    monkeypatch.setattr(_files, step, fail)
    with pytest.raises(type(error)):
        write(path, arrays={"a": np.zeros(9)})
    assert same_bytes(path) == before
    assert names(tmp_path) == ["t"]
    monkeypatch.undo()
    assert read_folder(path)[0] == "thing"


def test_a_replacement_that_fails_at_the_last_step_brings_the_old_folder_back(tmp_path, monkeypatch):
    path = write(tmp_path / "t")
    before, replace = same_bytes(path), os.replace

    def fail(source, target):
        if target == path and "old" not in str(source):
            raise OSError(errno.EIO, "Input/output error")
        return replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write(path, arrays={"a": np.zeros(9)})
    assert same_bytes(path) == before
    assert names(tmp_path) == ["t"]


def test_a_first_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_files, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "t")
    assert names(tmp_path) == []


def test_facts_that_json_does_not_know_fail_before_anything_is_replaced(tmp_path):
    path = write(tmp_path / "t", facts={"good": 1})
    for bad in (float("nan"), object()):
        with pytest.raises((ValueError, TypeError)):
            write(path, facts={"bad": bad})
    assert read_folder(path)[3] == {"good": 1}
    assert names(tmp_path) == ["t"]


def test_a_failing_save_of_a_result_leaves_the_old_one(shared, tmp_path, monkeypatch):
    path = shared.save(tmp_path / "x.pefs")
    monkeypatch.setattr(_files, "save_file", lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        shared[:3].save(path)
    monkeypatch.undo()
    assert len(nb.load(path)) == len(shared)
    assert names(tmp_path) == ["x.pefs"]


def test_a_full_disk_is_said_in_one_sentence(tmp_path, monkeypatch):
    """safetensors reports it in an exception of its own, which nobody who catches OSError would see."""
    full = SafetensorError("I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(_files, "save_file", lambda *a: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match=r"t could not be written: I/O error: No space left on device"):
        write(tmp_path / "t")
    assert names(tmp_path) == []


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write_text(tmp_path / "deep" / "page.html", "first ü")
    assert path.read_text(encoding="utf-8") == "first ü"
    (tmp_path / "deep" / "plain").write_text("x")
    assert path.stat().st_mode == (tmp_path / "deep" / "plain").stat().st_mode
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "second")
    assert path.read_text(encoding="utf-8") == "first ü"
    assert names(tmp_path / "deep") == ["page.html", "plain"]


# ------------------------------------------------------------------------------------------------------------------- arrays in files of their own

needs_fallocate = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be asked for on this system")


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (0, 3), (2, 0)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
def test_an_array_is_made_on_disk_and_is_safetensors(shape, dtype, tmp_path):
    made = allocate(tmp_path / "x", shape, dtype)
    assert (made.shape, made.dtype) == (shape, np.dtype(dtype))
    assert not made.any()
    made[...] = np.arange(made.size).reshape(shape)
    if made.size:
        made.flush()
    expected = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    for found in (map_array(tmp_path / "x"), load_file(tmp_path / "x")["it"]):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_a_mapped_array_is_only_looked_at(tmp_path):
    allocate(tmp_path / "x", (4, 5))[...] = 1
    found = map_array(tmp_path / "x")
    assert isinstance(found, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 2


@needs_fallocate
def test_there_is_room_or_nothing(tmp_path, monkeypatch):
    """Writing to a mapped file on a full disk would end the process without a word."""
    with pytest.raises(OSError, match=r"No space left|too large"):
        allocate(tmp_path / "x", (2**50,))  # four million gigabytes
    assert names(tmp_path) == []

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device"):
        allocate(tmp_path / "x", (7,))
    assert names(tmp_path) == []


def test_a_file_that_says_too_much_of_itself_is_not_ours(tmp_path):
    (tmp_path / "x").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match=f"x has a header of {2**40} bytes: it was not written by npeff_nb"):
        map_array(tmp_path / "x")


@pytest.mark.parametrize("at_once", [1, 100, 10**9])
def test_large_arrays_get_files_of_their_own(at_once, tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "COPIED_AT_ONCE", at_once)
    big, turned = np.arange(60, dtype=np.float32).reshape(10, 6), np.arange(12.0).reshape(3, 4).T
    made = allocate(tmp_path / "made", (3, 2))
    made[...] = 7
    made.flush()
    path = write_folder(tmp_path / "t", "thing", ARRAYS, {}, {}, {"big": big, "turned": turned, "moved": tmp_path / "made", "none": np.zeros((0, 4))})
    assert names(path) == ["arrays.safetensors", "big.array.safetensors", "manifest.json", "moved.array.safetensors", "none.array.safetensors",
                           "turned.array.safetensors"]  # fmt: skip
    assert names(tmp_path) == ["t"]  # what was made beforehand was moved
    arrays = read_folder(path)[1]
    assert isinstance(arrays["big"], np.memmap)
    for name, value in (ARRAYS | {"big": big, "turned": turned, "moved": np.full((3, 2), 7, np.float32), "none": np.zeros((0, 4))}).items():
        assert arrays[name].dtype == value.dtype
        np.testing.assert_array_equal(arrays[name], value)
    content = (path / "big.array.safetensors").read_bytes()
    damage(path, "big.array.safetensors", content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"big\.array\.safetensors is missing or was changed since it was written"):
        read_folder(path)


@needs_fallocate
def test_no_room_for_a_large_array_leaves_the_old_folder(tmp_path, monkeypatch):
    path = write(tmp_path / "t")
    before = same_bytes(path)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_folder(path, "thing", ARRAYS, {}, {}, {"big": np.ones((9, 9))})
    assert same_bytes(path) == before
    assert names(tmp_path) == ["t"]


# ------------------------------------------------------------------------------------------------------ one file of arrays, whole or not there

SOME = {
    "rows": np.array([3, 1, 2]),
    "x": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4),
    "one": np.array([2.5]),
    "flags": np.array([0, 1, 1], np.uint8),
}


def test_a_file_of_arrays_is_read_as_it_was_written(tmp_path):
    save_arrays(tmp_path / "x", SOME | {"turned": SOME["x"].T})
    found = load_arrays(tmp_path / "x")
    assert found.keys() == {*SOME, "turned"}
    for name, value in (SOME | {"turned": SOME["x"].T}).items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
    assert names(tmp_path) == ["x"]
    assert load_arrays(tmp_path / "y") is None


def test_a_changed_byte_anywhere_is_noticed(tmp_path):
    """Nothing that was not written is ever taken for what was; a header's blanks may change."""
    save_arrays(tmp_path / "x", SOME)
    content = (tmp_path / "x").read_bytes()
    noticed = 0
    for at in range(len(content)):
        for mask in (0x01, 0x20, 0xFF):
            (tmp_path / "x").write_bytes(content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :])
            found = load_arrays(tmp_path / "x")
            noticed += found is None
            if found is not None:
                assert all(np.array_equal(found[name], value) and found[name].dtype == value.dtype for name, value in SOME.items())
    assert noticed > 2.8 * len(content)


@pytest.mark.parametrize("length", [0, 4, 8, 100, -30, -1])
def test_a_torn_file_of_arrays_is_not_there(length, tmp_path):
    save_arrays(tmp_path / "x", SOME)
    content = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(content[:length])
    assert load_arrays(tmp_path / "x") is None
    (tmp_path / "x").write_bytes(content + b"more")
    assert load_arrays(tmp_path / "x") is None


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), SafetensorError("No space left on device")])
def test_arrays_that_cannot_be_written_leave_what_was_there(error, tmp_path, monkeypatch):
    save_arrays(tmp_path / "x", SOME)
    before = same_bytes(tmp_path)

    def fail(*arguments, **named):
        raise error

    monkeypatch.setattr(_files, "save_file", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OSError, match=r"No space left|^$"):
        save_arrays(tmp_path / "x", {"other": np.zeros(3)})
    assert same_bytes(tmp_path) == before
