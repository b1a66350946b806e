"""Coordinates from inner products with some rows: a certified orthonormal reduction that never writes a long row down twice.

For landmark rows R (L, p) of some examples, with Gram G = R Rᵀ = V Λ Vᵀ, the directions Q = Λ^-½ Vᵀ R are orthonormal, and a row a has the
coordinates Q a = Λ^-½ Vᵀ (R a).  So all that is asked of a new row are its inner products with the landmarks, layer by layer, and
those are exact.  With every row a landmark, nothing is lost; with fewer, what a row has outside the span is known from its length, ‖a‖² − ‖Q a‖².

The best directions for unit-norm Fishers are the leading ones of the landmarks' rows scaled to unit-norm Fishers (Nyström's method).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from npeff_nb import _files
from npeff_nb.fisher.batches import ReadyBatches
from npeff_nb.fisher.features import KEPT_ENERGY, KEPT_FEATURES, FeatureMap
from npeff_nb.fisher.gradients import Tape, UnsupportedModule
from npeff_nb.fisher.layers import Outer, Use, Whole, cross_grams
from npeff_nb.fisher.subject import Subject

CUT = 1e-6
"""Directions below this share of the largest eigenvalue are rounding of float32 inner products."""
HELD_BYTES = 4 * 2**30
"""Memory at most for the landmarks' gradients."""


@dataclass
class Landmarks:
    """Gradients of the landmark examples by parameter, as thin as they come, in chunks of a batch each."""

    uses: dict[str, list[list[Use]]]
    rows: int  # landmark rows in all, L
    per_example: int  # rows of one example

    def products(self, name: str, uses: list[Use]) -> Tensor:
        """Inner products of a batch's rows with all landmark rows for one parameter, (b·K, L) float64."""
        return torch.cat([cross_grams(uses, chunk) for chunk in self.uses[name]], 1)


def choose_landmarks(n: int, k: int, rows: int, seed: int) -> np.ndarray:
    """Positions of the examples whose rows are landmarks: enough examples for ``rows`` rows, drawn at random, in order."""
    wanted = min(n, max(1, -(-rows // k)))
    return np.sort(np.random.default_rng(seed).permutation(n)[:wanted])


def record(subject: Subject, chosen: dict[str, np.ndarray], where: np.ndarray) -> dict[str, np.ndarray]:
    """What the landmark examples are, as arrays: their inputs as the model sees them, and what was decided for them."""
    batch = subject.batches.batch(where)
    batch = batch if isinstance(batch, dict) else {"": batch}
    return _files.named("input", {key: value.cpu().numpy() for key, value in batch.items()}) | _files.named("chosen", chosen)


def subject_of(subject: Subject, landmarks: dict[str, np.ndarray]) -> Subject:
    """The landmark examples as a subject of their own, from what :func:`record` kept."""
    inputs = {key: torch.from_numpy(value) for key, value in _files.under("input", landmarks).items()}
    longest = max((value.shape[1] for value in inputs.values() if value.ndim > 1), default=1)
    # Alone where the other examples come alone; without the padding that longer ones gave them.
    size = 1 if subject.batches.batch_size == 1 else max(1, subject.batches.positions // longest)
    batches = ReadyBatches(inputs.get("", inputs), size, trim=True)
    return Subject(subject.model, batches, subject.output, subject.recipe, subject.tokenizer, _files.under("chosen", landmarks))


def gather(subject: Subject, tape: Tape, feature_map: FeatureMap, scales: dict[str, float], k: int) -> Landmarks:
    """Runs the landmark examples once and holds their gradients.

    Raises
    ------
    MemoryError
        When they take more than :data:`HELD_BYTES`.
    """
    own = subject_of(subject, feature_map.landmarks)
    held: dict[str, list[list[Use]]] = {name: [] for name in feature_map.names}
    numbers, examples = 0, 0
    for batch in own.batches.batches():
        with own.gradients(tape, batch, mask_bad=True) as found:
            examples += len(batch)
            finite = torch.from_numpy(~found.bad)
            for name, uses in found.gradients:
                thin = [_thinnest(use.scaled(scales[name]).padded(k)) for use in uses]
                numbers += sum(use.numbers for use in thin)
                held[name].append(thin)
                for use in thin:
                    finite &= use.finite().cpu()
        if not bool(finite.all()):  # the run names such an example, or masks it: here it spans nothing
            for chunks in held.values():
                if chunks:
                    chunks[-1] = [use.without(~finite) for use in chunks[-1]]
        if 4 * numbers > HELD_BYTES:
            raise MemoryError(
                f"the gradients of {examples} of {len(own.batches)} landmark examples take {4 * numbers / 2**30:.1f} GB, more than the "
                f"{HELD_BYTES / 2**30:g} GB they may: give a smaller budget= (landmark rows), or take features='sketch'"
            )
    # A parameter that no landmark uses has no inner products; one that only some use would have them in the wrong places.
    held = {name: chunks for name, chunks in held.items() if chunks}
    for name, chunks in held.items():
        if sum(chunk[0].shape[0] for chunk in chunks) < examples:
            raise UnsupportedModule(f"parameter {name!r} is used for some examples and not for others: leave it out, or take features='sketch'")
    return Landmarks(held, len(own.batches) * k, k)


def mixed(landmarks: Landmarks, exact: bool) -> np.ndarray:
    """The mix M (L, d) float64 with coordinates = inner products · M; ``exact`` keeps every direction that is not rounding."""
    size, k = landmarks.rows, landmarks.per_example
    total = torch.zeros(size, size, dtype=torch.float64)
    for name, chunks in landmarks.uses.items():
        total += torch.cat([landmarks.products(name, chunk) for chunk in chunks]).cpu()
    gram = ((total + total.T) / 2).numpy()
    own = np.stack([gram[at : at + k, at : at + k] for at in range(0, size, k)])
    norms = np.sqrt((own**2).sum((1, 2)))
    unit = np.repeat(1 / np.sqrt(np.where(norms > 0, norms, 1.0)), k)
    import scipy.linalg

    values, vectors = scipy.linalg.eigh(unit[:, None] * gram * unit)
    values, vectors = values[::-1], vectors[:, ::-1]
    if values[0] <= 0:
        return np.zeros((size, 1))
    d = int((values > CUT * values[0]).sum())
    if not exact:
        share = np.cumsum(np.clip(values, 0, None)) / np.clip(values, 0, None).sum()
        d = min(d, KEPT_FEATURES, int((share < KEPT_ENERGY).sum()) + 1)
    vectors = vectors[:, :d] * np.where(vectors[np.abs(vectors[:, :d]).argmax(0), np.arange(d)] < 0, -1.0, 1.0)
    return unit[:, None] * vectors / np.sqrt(values[:d])


def _thinnest(use: Use) -> Use:
    """Written out where that is the smaller."""
    n, k, out, inn = use.shape
    if isinstance(use, Outer) and n * k * out * inn < use.numbers:
        return Whole(use.dense())
    return use.contiguous()
