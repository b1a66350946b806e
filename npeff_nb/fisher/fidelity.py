"""How far are kept inner products from the exact ones?  Measured on a random sample of pairs of examples, with the model at hand."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from npeff_nb.fisher import landmarks
from npeff_nb.fisher.completeness import tape_for

if TYPE_CHECKING:
    from npeff_nb.fisher.pefs import PEFs


def inner_product_report(pefs: PEFs, examples: int = 16, seed: int = 0) -> pd.DataFrame:
    """Errors of inner products between factor rows of different examples, and between their Fishers, against exact ones.

    Returns
    -------
    One row for the features as they are ``kept`` and, for a sketch, one for the ``sketch`` before its principal directions; for rows a, b of two
    examples the error is (⟨a, b⟩_kept − ⟨a, b⟩) / (‖a‖ ‖b‖), for Fishers (⟨F_i, F_j⟩_kept − ⟨F_i, F_j⟩) / (‖F_i‖ ‖F_j‖).  Columns: ``rows rms``,
    ``rows max``, ``rows mean`` (the bias), ``Fishers rms``, ``Fishers max``, and ``typical``, the exact cosines' own root mean square, against
    which an error is large or small.

    Raises
    ------
    ValueError
        Without a model (:meth:`~npeff_nb.PEFs.attach`), or with fewer than two Fishers that are not zero.
    """
    subject = pefs.subject
    if subject is None:
        raise ValueError("the exact inner products need the model: call pefs.attach(model, tokenizer) first")
    there = np.flatnonzero(pefs.norms > 0)
    if len(there) < 2 or examples < 2:
        raise ValueError(f"pairs need at least 2 examples: {len(there)} of these Fishers are not zero, and {examples} were asked for")
    where = np.sort(np.random.default_rng(seed).permutation(there)[:examples])
    names, k, fm = list(pefs.parameters["name"]), pefs.factors.shape[1], pefs.feature_map
    tape = tape_for(subject, names, quiet=True)
    sample = replace(fm, landmarks=landmarks.record(subject, subject.choices_of(where), where))
    held = landmarks.gather(subject, tape, sample, dict(zip(names, pefs.parameters["scale"], strict=True)), k)
    size = len(where) * k
    exact = np.zeros((size, size))
    sketch = np.zeros((size, size))
    for name, chunks in held.uses.items():
        exact += torch.cat([held.products(name, chunk) for chunk in chunks]).cpu().numpy()
        if fm.kind == "sketch":
            seen = torch.cat([fm.of_parameter(name, chunk) for chunk in chunks]).flatten(0, 1).double()
            sketch += (seen @ seen.T).cpu().numpy()
    rows = np.asarray(pefs.factors[where], dtype=np.float64).reshape(size, -1)
    found = {"kept": rows @ rows.T} | ({"sketch": sketch} if fm.kind == "sketch" else {})
    return pd.DataFrame([_errors(gram, exact, k) for gram in found.values()], index=list(found))


def _errors(gram: np.ndarray, exact: np.ndarray, k: int) -> dict[str, float]:
    length = np.sqrt(np.clip(np.diag(exact), 0, None))
    scale = np.outer(length, length)
    n = len(exact) // k
    others = (np.kron(1 - np.eye(n), np.ones((k, k))) > 0) & (scale > 0)
    cosine, error = exact[others] / scale[others], (gram - exact)[others] / scale[others]

    def fishers(of_rows: np.ndarray) -> np.ndarray:
        return np.square(of_rows).reshape(n, k, n, k).sum((1, 3))

    norms = np.sqrt(np.diag(fishers(exact)))
    apart = ~np.eye(n, dtype=bool)
    of_fishers = ((fishers(gram) - fishers(exact)) / np.outer(norms, norms))[apart]
    return {
        "rows rms": float(np.sqrt(np.mean(error**2))), "rows max": float(np.abs(error).max()), "rows mean": float(error.mean()),
        "Fishers rms": float(np.sqrt(np.mean(of_fishers**2))), "Fishers max": float(np.abs(of_fishers).max()),
        "typical": float(np.sqrt(np.mean(cosine**2))),
    }  # fmt: skip
