"""Folders on disk: arrays as safetensors, tables and facts as JSON, each with its hash, written whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

MANIFEST = "manifest.json"
VERSION = 2
"""2: large arrays lie in files of their own (``NAME.array.safetensors``), which are mapped into memory when they are read."""
COPIED_AT_ONCE = 64 * 2**20


def write_folder(
    path: str | os.PathLike,
    kind: str,
    arrays: dict[str, np.ndarray],
    tables: dict[str, pd.DataFrame],
    facts: dict[str, Any],
    mapped: dict[str, np.ndarray | Path] | None = None,
) -> Path:
    """Writes ``path`` as a folder of this project; an older one of the same kind is replaced only when the new one lies on disk complete.

    ``mapped`` arrays get files of their own and are never copied whole; a :class:`~pathlib.Path` names a file that :func:`allocate` made, which is
    moved.

    Raises
    ------
    FileExistsError
        When something else already has that name: it is never overwritten.
    """
    path = Path(path)
    if path.exists() and _kind_of(path) != kind:
        raise FileExistsError(f"{path} already exists and is no saved {kind}: it is left alone; choose another name or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the rename stays within one file system.
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        try:
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, building / "arrays.safetensors")
        except SafetensorError as error:  # a full disk comes in this shape, not as an OSError
            raise OSError(f"{path} could not be written: {error}") from error
        for name, table in tables.items():
            table = table.rename(columns=str)
            (building / f"{name}.json").write_text(table.to_json(orient="table", index=False, double_precision=15), encoding="utf-8")
        for name, value in (mapped or {}).items():
            target = building / f"{name}{MAPPED}"
            if isinstance(value, Path):
                shutil.move(value, target)
            else:
                to = allocate(target, value.shape, value.dtype)
                if not value.size:
                    continue
                step = max(1, COPIED_AT_ONCE // max(1, value[:1].nbytes))
                for at in range(0, len(value), step):
                    to[at : at + step] = value[at : at + step]
                to.flush()
        hashes = {p.name: _hash(p) for p in sorted(building.iterdir())}
        for file in building.iterdir():  # some writers make theirs private
            file.chmod(0o666 & ~_umask())
        rows = {name: len(table) for name, table in tables.items()}
        manifest = {"kind": kind, "version": VERSION, "files": hashes, "rows": rows, "facts": facts}
        (building / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False, default=_plain) + "\n", encoding="utf-8")
        # mkdtemp makes folders private; a result is meant to be read like any other file.
        building.chmod(0o777 & ~_umask())
        _put_in_place(building, path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return path


def read_folder(path: str | os.PathLike, kind: str | None = None) -> tuple[str, dict[str, np.ndarray], dict[str, pd.DataFrame], dict[str, Any]]:
    """Reads what :func:`write_folder` wrote: (kind, arrays, tables, facts).

    Raises
    ------
    FileNotFoundError, ValueError
        When there is nothing, something else, a newer version, or a file that was damaged since it was written.
    """
    found, path = kind_of(path), Path(path)
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if manifest["version"] > VERSION:
        raise ValueError(f"{path} has version {manifest['version']}, this npeff_nb reads up to {VERSION}: update it")
    if kind is not None and found != kind:
        raise ValueError(f"{path} holds {found}, not {kind}")
    for name, expected in manifest["files"].items():
        if Path(name).name != name:
            raise ValueError(f"{path} names a file outside itself ({name!r}): it was not written by npeff_nb")
        if not (path / name).exists() or _hash(path / name) != expected:
            raise ValueError(f"{path / name} is missing or was changed since it was written: the folder is damaged, make it again")
    arrays = load_file(path / "arrays.safetensors")
    arrays |= {name.removesuffix(MAPPED): map_array(path / name) for name in manifest["files"] if name.endswith(MAPPED)}
    tables = {
        Path(name).stem: pd.read_json(io.StringIO((path / name).read_text(encoding="utf-8")), orient="table", precise_float=True)
        for name in manifest["files"]
        if name.endswith(".json")
    }
    for name, table in tables.items():
        if not len(table.columns):  # JSON of a table without columns forgets its rows
            tables[name] = pd.DataFrame(index=range(manifest["rows"][name]))
    return found, arrays, tables, manifest["facts"]


def named(name: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """Several arrays under one name, to be kept beside others: ``key`` becomes ``name.key``."""
    return {f"{name}.{key}": value for key, value in arrays.items()}


def under(name: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """What :func:`named` put there."""
    return {key.removeprefix(f"{name}."): value for key, value in arrays.items() if key.startswith(f"{name}.")}


MAPPED = ".array.safetensors"


def allocate(path: Path, shape: tuple[int, ...], dtype: Any = np.float32) -> np.memmap:
    """A safetensors file of one array of zeros, mapped for writing.

    The library writes arrays that are whole in memory, twice at that; a result may be larger than the memory.  The format is eight bytes of length,
    a JSON header, and the numbers.

    Raises
    ------
    OSError
        When the disk has no room for it; nothing is left behind.
    """
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    header = json.dumps({"it": {"dtype": _TYPES[dtype.name], "shape": list(shape), "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    try:
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            # Room is taken now: writing to a mapped file on a full disk would end the process without a word.
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 8 + len(header), size)
            file.truncate(8 + len(header) + size)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    if not size:
        return np.zeros(shape, dtype)  # type: ignore[return-value]
    return np.memmap(path, dtype=dtype, mode="r+", offset=8 + len(header), shape=shape)


def map_array(path: Path) -> np.ndarray:
    """The one array of a file, mapped for reading: only what is looked at is read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > 2**16:
            raise ValueError(f"{path} has a header of {length} bytes: it was not written by npeff_nb")
        said = json.loads(file.read(length))["it"]
    dtype = next(np.dtype(name) for name, code in _TYPES.items() if code == said["dtype"])
    if 0 in said["shape"]:
        return np.zeros(said["shape"], dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=8 + length, shape=tuple(said["shape"]))


_TYPES = {"float32": "F32", "float64": "F64", "int32": "I32", "int64": "I64"}


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """One file of arrays with their own hash in its header, there whole or not at all."""
    handle, building = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        try:
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, building, metadata={"sha256": _hash_arrays(arrays)})
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error
        Path(building).replace(path)
    except BaseException:
        Path(building).unlink(missing_ok=True)
        raise


def load_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """What :func:`save_arrays` wrote, or None where it is not there or not what was written."""
    try:
        arrays = load_file(path)
        with safe_open(path, framework="numpy") as file:
            expected = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return arrays if expected == _hash_arrays(arrays) else None


def _hash_arrays(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{value.shape}{value.dtype}".encode())
        digest.update(value.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def sweep(path: Path) -> None:
    """Removes what killed writers of ``path`` left half-written beside it; only for who knows that no one else is writing it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)


def kind_of(path: str | os.PathLike) -> str:
    """What a saved folder holds, or an error that says why it cannot be told."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    found = _kind_of(path)
    if found is None:
        raise ValueError(f"{path} is not a folder saved by npeff_nb: it has no readable {MANIFEST}")
    return found


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Writes one text file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, building = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(building).chmod(0o666 & ~_umask())
        Path(building).replace(path)
    except BaseException:
        Path(building).unlink(missing_ok=True)
        raise
    return path


def _put_in_place(new: Path, path: Path) -> None:
    if not path.exists():
        new.replace(path)
        return
    # A folder cannot be replaced in one step: the old one steps aside and comes back if the new one cannot take its place.
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent)) / "it"
    path.replace(old)
    try:
        new.replace(path)
    except BaseException:
        old.replace(path)
        raise
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)


def _kind_of(path: Path) -> str | None:
    try:
        return json.loads((path / MANIFEST).read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be kept as JSON")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
