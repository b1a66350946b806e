"""``nb.load``: whatever a folder saved by this project holds."""

from __future__ import annotations

import os
from typing import Any

from npeff_nb import _files


def load(path: str | os.PathLike) -> Any:
    """Opens a folder that ``.save`` wrote: an :class:`~npeff_nb.NPEFF`, a :class:`~npeff_nb.DNPEFF` or :class:`~npeff_nb.PEFs`.

    Reads safetensors and JSON only.

    Raises
    ------
    FileNotFoundError, ValueError
        Nothing there, something else, a newer version, or a damaged file.
    """
    from npeff_nb.decomposition import diagonal, factorisation
    from npeff_nb.fisher import pefs
    from npeff_nb.npeff import NPEFF

    kinds: dict[str, Any] = {factorisation.KIND: NPEFF, diagonal.KIND: diagonal.DNPEFF, pefs.KIND: pefs.PEFs}
    kind = _files.kind_of(path)
    if kind not in kinds:
        raise ValueError(f"{path} holds {kind!r}; this npeff_nb opens {', '.join(map(repr, kinds))}")
    return kinds[kind].load(path)
