"""HDF5 with care: every piece is checked for type and shape before it is read, and a file is written whole or not at all."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

LARGEST_SIZE = 2**31 - 1
"""Most parameters: every index is a 4-byte integer."""


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[Any]:
    """The file, for reading; whatever goes wrong with its content is a ValueError that names it."""
    h5py, path = _h5py(), Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (OSError, KeyError, RuntimeError, TypeError) as error:  # damage comes as any of them
        if isinstance(error, OSError) and error.errno is not None:  # the machine's business: no permission, a broken disk
            raise
        raise ValueError(f"{path} is not an HDF5 file, or is damaged ({error}): copy or make it again") from error


def shape_of(file: Any, name: str, dtype: type, ndim: int) -> tuple[int, ...]:
    """Shape of a dataset that :func:`dataset` would read."""
    return _checked(file, name, dtype, ndim).shape


def dataset(file: Any, name: str, dtype: type, ndim: int, rows: int | slice = slice(None)) -> np.ndarray:
    """Rows of a dataset.  ``np.integer`` stands for whole numbers of the width that the file has."""
    node = _checked(file, name, dtype, ndim)
    with np.errstate(over="ignore", invalid="ignore"):  # float64 out of float32's range turns infinite; callers refuse that
        return node[rows].astype(node.dtype.newbyteorder("=") if dtype is np.integer else dtype, copy=False)


def number(file: Any, place: str, name: str) -> Any:
    """An attribute: a scalar or an array of one."""
    found = np.asarray(file[place].attrs.get(name, []))
    if found.size != 1 or found.dtype.kind not in "iuf":
        raise ValueError(f"attribute {name} of {place} is {found.tolist() if found.size else 'missing'}; expected one number")
    return found.item()


def count(file: Any, place: str, name: str) -> int:
    """An attribute that counts something."""
    found = number(file, place, name)
    if not 1 <= found < 2**63 or found != int(found):
        raise ValueError(f"attribute {name} of {place} is {found}; expected a whole number from 1 on")
    return int(found)


def check_examples(n: int | None) -> None:
    """Refuses ``n_examples`` that cannot be asked for."""
    if n is not None and n < 1:
        raise ValueError(f"n_examples={n}; expected 1 or more, or None for all")


def check_size(size: int, advice: str) -> None:
    """Refuses more parameters than the format can number."""
    if size > LARGEST_SIZE:
        raise ValueError(f"{size:,} parameters do not fit: the format counts them in 4-byte integers, so up to {LARGEST_SIZE:,}; {advice}")


def write(path: str | os.PathLike, arrays: dict[str, np.ndarray], attributes: dict[str, dict[str, Any]]) -> Path:
    """One file, whole or not at all; an older one is replaced only when the new one lies on disk complete."""
    h5py, path, content = _h5py(), Path(path), io.BytesIO()
    # Made in memory: where HDF5 itself meets a full disk it cannot close its file any more, and brings the whole process down (2.0, h5py 3.16).
    # The oldest format there is, since the reference's C++ programs are linked to an HDF5 of their time.
    with h5py.File(content, "w", libver="earliest") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)  # contiguous and not compressed
        for place, given in attributes.items():
            file[place].attrs.update(given)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In a folder beside the target: the rename stays within one file system, and the file gets the permissions of any other.
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        (building / path.name).write_bytes(content.getbuffer())
        (building / path.name).replace(path)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return path


def _checked(file: Any, name: str, dtype: type, ndim: int) -> Any:
    node = file.get(name)
    if not isinstance(node, _h5py().Dataset):
        raise ValueError(f"it has no {name}: it is incomplete, make it again")
    whole = issubclass(dtype, np.integer)
    if node.dtype.kind not in ("iu" if whole else "f") or node.ndim != ndim:
        expected = f"{'whole' if whole else 'floating-point'} numbers in {ndim} dimension{'s' * (ndim != 1)}"
        raise ValueError(f"{name} holds {node.dtype} of shape {node.shape}; expected {expected}")
    if node.size and not node.id.get_storage_size():  # HDF5 reads what was never written as zeros
        raise ValueError(f"{name} of shape {node.shape} was never filled in: the run was interrupted, make it again")
    return node


def _h5py() -> Any:
    try:
        return import_module("h5py")
    except ModuleNotFoundError as error:
        if error.name != "h5py":
            raise
        raise ImportError('files of the reference implementation are HDF5 and need h5py: pip install "npeff-nb[interop]"') from error
