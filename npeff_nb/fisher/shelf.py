"""Where finished shards wait to be put together: in memory, or in a folder from which a run that was killed goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from npeff_nb import _files

Arrays = dict[str, np.ndarray]


class Shelf(Protocol):
    """Named sets of arrays; what is there is whole."""

    def put(self, name: str, arrays: Arrays) -> None:
        """Keeps arrays under a name."""

    def get(self, name: str) -> Arrays | None:
        """What was kept, or None."""

    def drop(self, name: str) -> None:
        """Forgets a name."""

    def clear(self) -> None:
        """Forgets all names."""


class Memory:
    """A shelf for one run."""

    def __init__(self) -> None:
        self._kept: dict[str, Arrays] = {}

    def put(self, name: str, arrays: Arrays) -> None:
        self._kept[name] = arrays

    def get(self, name: str) -> Arrays | None:
        return self._kept.get(name)

    def drop(self, name: str) -> None:
        self._kept.pop(name, None)

    def clear(self) -> None:
        self._kept.clear()


class Folder:
    """A shelf on disk, one file a name.  A file that was torn or changed counts as not there, and is made again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock: Any = None

    def put(self, name: str, arrays: Arrays) -> None:
        _files.save_arrays(self.path / f"{name}.safetensors", arrays)

    def get(self, name: str) -> Arrays | None:
        return _files.load_arrays(self.path / f"{name}.safetensors")

    def drop(self, name: str) -> None:
        (self.path / f"{name}.safetensors").unlink(missing_ok=True)

    def clear(self) -> None:
        for file in self.path.glob("*.safetensors"):
            file.unlink()

    def plan(self, made: dict[str, Any] | None = None) -> dict[str, Any]:
        """The plan under which the shards here were begun; ``made`` is kept where there is none yet."""
        file = self.path / "plan.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(found, dict) and isinstance(found.get("positions"), int) and found["positions"] > 0:
                return found
        except (FileNotFoundError, ValueError):  # none yet, or damaged: shards that were made under another are told by their rows
            pass
        if made is None:
            raise OSError(f"{file} is damaged: remove the folder {self.path} and run the extraction again")
        _files.write_text(file, json.dumps(made, indent=1) + "\n")
        return made

    def lock(self) -> None:
        """For this process alone, until it ends in whatever way.

        Raises
        ------
        BlockingIOError
            When another process is at the same work.
        """
        try:
            import fcntl
        except ImportError:  # not on this system: two runs on one folder then do the same work twice
            return
        self._lock = (self.path / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            self._lock = None
            raise BlockingIOError(f"another process is extracting the same Fishers into {self.path}: wait for it, or give another cache=") from error

    def unlock(self) -> None:
        """Lets others in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def remove(self) -> None:
        """Takes the folder away, once its shards were put together."""
        self.unlock()
        shutil.rmtree(self.path, ignore_errors=True)
