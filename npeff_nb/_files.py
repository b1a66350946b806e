"""Folders on disk: arrays as safetensors, tables and facts as JSON, each with its hash, written whole or not at all."""

from __future__ import annotations

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
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

MANIFEST = "manifest.json"
VERSION = 1


def write_folder(path: str | os.PathLike, kind: str, arrays: dict[str, np.ndarray], tables: dict[str, pd.DataFrame], facts: dict[str, Any]) -> Path:
    """Writes ``path`` as a folder of this project; an older one of the same kind is replaced only when the new one lies on disk complete.

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
        hashes = {p.name: _hash(p) for p in sorted(building.iterdir())}
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
    tables = {
        Path(name).stem: pd.read_json(io.StringIO((path / name).read_text(encoding="utf-8")), orient="table", precise_float=True)
        for name in manifest["files"]
        if name.endswith(".json")
    }
    for name, table in tables.items():
        if not len(table.columns):  # JSON of a table without columns forgets its rows
            tables[name] = pd.DataFrame(index=range(manifest["rows"][name]))
    return found, arrays, tables, manifest["facts"]


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
