"""One batch measured: everything that is kept of its examples, from one recorded pass."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from npeff_nb import _files
from npeff_nb.fisher.factors import principal_rows, sampling_error
from npeff_nb.fisher.features import FeatureMap
from npeff_nb.fisher.gradients import Tape
from npeff_nb.fisher.landmarks import Landmarks
from npeff_nb.fisher.layers import Use, small_grams
from npeff_nb.fisher.subject import Subject

Arrays = dict[str, np.ndarray]


@dataclass
class Measure:
    """What to keep of a batch.

    Attributes
    ----------
    names, scales : the parameters that take part, and the factor on the gradients of each.
    k : rows of an example, before rotation.
    landmarks : held gradients, for a map that is made of inner products with them.
    diagonal : also sum up the data set's diagonal Fisher.
    diagonal_entries : also keep this many largest entries of each example's diagonal Fisher.
    exact : norms and traces from exact inner products; else from the sketch.
    mask_bad : examples whose numbers are not finite get zero Fishers instead of an error.
    """

    names: list[str]
    scales: list[float]
    feature_map: FeatureMap
    k: int
    landmarks: Landmarks | None = None
    diagonal: bool = False
    diagonal_entries: int = 0
    mask_bad: bool = False
    exact: bool = True
    places: dict[str, int] = field(init=False)
    starts: np.ndarray = field(init=False)  # where each parameter begins in the row of all

    def __post_init__(self) -> None:
        self.places = {name: at for at, name in enumerate(self.names)}
        self.starts = np.concatenate([[0], np.cumsum([o * i for o, i in self.feature_map.shapes])])

    @property
    def size(self) -> int:
        """Parameters in all, p."""
        return int(self.starts[-1])

    def rows(self, rank: float | int | None) -> int:
        """Rows that are kept of an example, after rotation onto ``rank`` axes."""
        return min(rank, self.k) if isinstance(rank, int) else self.k

    def __call__(self, subject: Subject, tape: Tape, batch: np.ndarray) -> tuple[Arrays, Arrays]:
        """Arrays with one row for each of the b examples, and arrays that add up over batches.

        Raises
        ------
        ValueError
            When logits or gradients are not finite and ``mask_bad`` is off; the example is named.
        """
        b, fm = len(batch), self.feature_map
        with subject.gradients(tape, batch, self.mask_bad) as found:
            k, device = found.rows, found.logits.device
            topk = fm.kind == "topk"
            if self.landmarks is not None:
                features = torch.zeros(b * k, self.landmarks.rows, dtype=torch.float64, device=device)
            else:
                features = torch.zeros(b, k, 0 if topk else fm.width, device=device)
            grams = torch.zeros(b, k, k, dtype=torch.float64, device=device)
            traces = torch.zeros(len(self.names), b, dtype=torch.float64, device=device)
            seen = np.zeros(len(self.names))
            entries = Largest(b, fm.rows if topk else 0, device)
            diagonals = Largest(b, self.diagonal_entries, device)
            diagonal, squares = np.zeros(self.size if self.diagonal else 0), torch.zeros(b, dtype=torch.float64, device=device)
            memo: dict = {}
            for name, uses in found.gradients:
                at = self.places[name]
                seen[at] = 1
                for some, few in uses.parts():
                    few = [use.scaled(self.scales[at]).thinned() for use in few]
                    if self.exact:
                        gram = small_grams(few, memo).double()
                        grams[some] += gram
                        traces[at, some] = gram.diagonal(dim1=1, dim2=2).sum(-1)
                    if self.landmarks is None and not topk:
                        seen_as = fm.of_parameter(name, few).float()
                        features[some, :, fm.slot(name)] = seen_as
                        if not self.exact:
                            traces[at, some] = torch.linalg.vecdot(seen_as, seen_as).sum(-1)
                if self.landmarks is None and not topk and not self.diagonal and not self.diagonal_entries:
                    continue
                whole = [use.scaled(self.scales[at]) for use in uses]
                if self.landmarks is not None and name in self.landmarks.uses:
                    features += self.landmarks.products(name, whole)
                if topk:
                    # Also the rows that are zero for this whole batch: every example keeps equally many entries.
                    entries.add(_written([use.padded(self.k) for use in whole]), int(self.starts[at]), self.size)
                if self.diagonal or self.diagonal_entries:
                    of_each = _written(whole).square().sum(1)  # (b, numel)
                    if self.diagonal:
                        diagonal[self.starts[at] : self.starts[at + 1]] += of_each.double().sum(0).cpu().numpy()
                    if self.diagonal_entries:
                        squares += of_each.double().square().sum(1)
                        diagonals.add(of_each[:, None], int(self.starts[at]), self.size)
            chosen, retained, bad, logits = found.chosen, found.retained, found.bad.copy(), found.logits
        features = features.view(b, k, -1)
        if not self.exact:
            grams = (features @ features.transpose(1, 2)).double()
        bad |= ~torch.isfinite(grams).all(2).all(1).cpu().numpy()
        if bad.any():
            if not self.mask_bad:
                raise ValueError(
                    f"gradients are not finite for {int(bad.sum())} of {b} examples in one batch, the first being row {int(batch[bad.argmax()])}, "
                    "although its logits are: check the model's weights, run it in float32, or leave such examples out with on_nan='mask'"
                )
            for tensor in (features, grams, logits):
                tensor[torch.from_numpy(bad)] = 0
            traces[:, torch.from_numpy(bad)] = 0
            if self.diagonal:
                # An example may have shown itself only after some of its parameters were counted: the others are counted again.
                others = batch[~bad]
                diagonal = self(subject, tape, others)[1]["diagonal"] if len(others) else np.zeros(self.size)
        each: Arrays = _files.named("choice", chosen)
        if subject.recipe.draws:
            # Draws that are zero for a whole batch have no row there, and count all the same.
            every = torch.nn.functional.pad(grams, (0, self.k - k, 0, self.k - k))
            each["sampling_error"] = np.where(bad, 0, sampling_error(every, subject.recipe.draws))
        trace = traces.sum(0)
        retained_rows = np.ones(b)
        if subject.recipe.rank is not None:
            turn = principal_rows(grams, subject.recipe.rank)
            if "mixing" in chosen:  # recorded before: the very same rotation
                turn = torch.from_numpy(chosen["mixing"][:, :, :k]).double().to(grams)
            features = (turn.to(features) @ features) if features.shape[2] else features
            grams = turn @ grams @ turn.transpose(1, 2)
            kept = grams.diagonal(dim1=1, dim2=2).sum(-1)
            retained_rows = torch.where(trace > 0, kept / trace.clamp_min(torch.finfo(trace.dtype).tiny), 1.0).cpu().numpy()
            each["choice.mixing"] = _pad(_pad(turn.float().cpu().numpy(), self.rows(subject.recipe.rank), 1), self.k, 2)
        norms = grams.square().sum((1, 2)).sqrt().cpu().numpy()
        each |= {
            "norms": norms, "traces": trace.cpu().numpy(), "logits": logits.float().cpu().numpy(), "retained": retained,
            "retained_rows": retained_rows, "bad": bad.astype(np.uint8),
        }  # fmt: skip
        if fm.kind == "sketch" and self.exact:
            # A sketch is right on average; each example's own Frobenius norm is known exactly, so it is put right.
            sketched = (features @ features.transpose(1, 2)).double().square().sum((1, 2)).sqrt().cpu().numpy()
            right = np.sqrt(np.divide(norms, sketched, out=np.zeros_like(sketched), where=sketched > 0))
            features *= torch.from_numpy(right).to(features)[:, None, None]
        if topk:
            each |= entries.rows(self.size, self.k, bad)
        else:
            each["features"] = _pad(features.cpu().numpy(), self.rows(subject.recipe.rank), 1)
        if self.diagonal_entries:
            each |= diagonals.falling(bad) | {"diagonal.norms": np.where(bad, 0, squares.sqrt().cpu().numpy())}
        share = traces / trace.clamp_min(torch.finfo(trace.dtype).tiny)
        return each, {"energy": share.sum(1).cpu().numpy(), "seen": seen, "diagonal": diagonal}


class Largest:
    """The K entries of largest magnitude of each example, found as its parameters pass by."""

    def __init__(self, n: int, k: int, device: torch.device) -> None:
        self.k = k
        self.values = torch.zeros(n, 0, device=device)
        self.at = torch.zeros(n, 0, dtype=torch.int64, device=device)

    def add(self, rows: Tensor, start: int, size: int) -> None:
        """Entries (n, rows, width) of the parameters from ``start`` on; an entry's place is row · size + parameter."""
        n, k, width = rows.shape
        place = torch.arange(k, device=rows.device)[:, None] * size + start + torch.arange(width, device=rows.device)
        flat = rows.reshape(n, -1).float()
        if flat.shape[1] > self.k:  # most of a layer falls away before it is joined to the others
            top = flat.abs().topk(self.k, dim=1, sorted=False).indices
            flat, places = flat.gather(1, top), place.flatten()[top]
        else:
            places = place.flatten().expand(n, -1)
        self.values, self.at = torch.cat([self.values, flat], 1), torch.cat([self.at, places], 1)
        if self.values.shape[1] > self.k:
            top = self.values.abs().topk(self.k, dim=1, sorted=False).indices
            self.values, self.at = self.values.gather(1, top), self.at.gather(1, top)

    def rows(self, size: int, k: int, bad: np.ndarray) -> Arrays:
        """As factor rows: values, parameters, and where each of k rows begins, in order of place."""
        order = self.at.argsort(dim=1)
        at, values = self.at.gather(1, order), self.values.gather(1, order).cpu().numpy()
        offsets = np.stack([np.searchsorted(row, np.arange(k + 1) * size) for row in at.cpu().numpy()])
        values[bad] = 0
        return {"entry.values": values, "entry.columns": (at % size).cpu().numpy(), "entry.offsets": offsets.astype(np.int32)}

    def falling(self, bad: np.ndarray) -> Arrays:
        """As a diagonal: largest value first."""
        order = self.values.argsort(dim=1, descending=True, stable=True)
        values = self.values.gather(1, order).cpu().numpy()
        values[bad] = 0
        return {"diagonal.values": values, "diagonal.indices": self.at.gather(1, order).cpu().numpy()}


def _written(uses: list[Use]) -> Tensor:
    return torch.stack([use.dense() for use in uses]).sum(0).flatten(2)


def _pad(array: np.ndarray, length: int, axis: int) -> np.ndarray:
    missing = length - array.shape[axis]
    if missing <= 0:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, missing)
    return np.pad(array, widths)
