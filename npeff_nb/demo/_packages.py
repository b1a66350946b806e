"""Files that installed packages carry: found without importing the package, so that none of its dependencies is needed."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path


def carried(spec: ModuleSpec | None, name: str) -> Path | None:
    """A file or folder within a package, by what ``importlib.util.find_spec`` says of the package; None where either is missing."""
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((path for folder in folders if (path := Path(folder) / name).exists()), None)
