"""Arrays as short plain data: 16-bit integers with a scale for each example, so that logits of an edit fit into a saved file and a page.

A row of numbers of one example is off by at most 1/65534 of its largest, which no picture shows; as text it would take three times the place.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

_LARGEST = 32767


def pack(array: np.ndarray) -> dict[str, Any]:
    """``{"shape", "scale", "data"}`` of an array (m, ...) of finite numbers; ``Packed`` of ``widgets/src/protocol.d.ts``.

    ``data`` is base64 of little-endian int16, example after example; example i is ``scale[i]`` times its integers.
    """
    flat = np.asarray(array, dtype=np.float64).reshape(len(array), -1)
    largest = np.abs(flat).max(1, initial=0.0)
    # Rounded up before it is used: what is read back is exactly what was meant.
    scale = [float(f"{1.0001 * one / _LARGEST:.4e}") if one > 0 else 1.0 for one in largest]
    integers = np.rint(flat / np.asarray(scale)[:, None]).astype("<i2")
    return {"shape": list(np.shape(array)), "scale": scale, "data": base64.b64encode(integers.tobytes()).decode()}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """The array of :func:`pack`, float64."""
    m = packed["shape"][0]
    integers = np.frombuffer(base64.b64decode(packed["data"]), dtype="<i2").reshape(m, -1)
    return (integers * np.asarray(packed["scale"])[:, None]).reshape(packed["shape"])
