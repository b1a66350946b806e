"""The loop over the examples: batches into shards, shards onto a shelf, the shelf into one result.

The examples are cut into shards before anything is computed, and a shard depends on nothing but its own examples and the coordinates; so it does
not matter who computes it, in what order, or after how many interruptions.  A sketch's coordinates are not known at first: a random first part of
the examples is then kept unreduced, the principal directions are found on it, and everything after is reduced as it comes.  Memory does not grow
with n beyond the result, and a result on disk is put together there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npeff_nb import _files
from npeff_nb._progress import Bar, Progress
from npeff_nb.fisher.batches import POSITIONS_A_BATCH
from npeff_nb.fisher.features import principal_basis
from npeff_nb.fisher.gradients import Tape
from npeff_nb.fisher.measure import Arrays, Measure
from npeff_nb.fisher.shelf import Folder, Memory, Shelf
from npeff_nb.fisher.sparse import SparseDiagonals, SparseRows, exact_coordinates
from npeff_nb.fisher.subject import Subject
from npeff_nb.fisher.workers import Workers

SHARD_EXAMPLES = 256
"""Examples that are lost at most when a run is killed ..."""
SHARD_POSITIONS = 8192
"""... and their positions: a minute or two of a language model on a CPU."""
PILOT_BYTES = 224 * 2**20
"""Unreduced sketches held at once while the principal directions are found; memory does not grow with n beyond it."""
PILOT_SEED = 0
TAPE_BYTES = 2**30
"""What one batch's activations and their gradients may take: limits a batch's positions where there are many rows or wide layers."""
GAIN = 1.05
"""On an accelerator a batch is doubled as long as that makes it faster by this factor."""


@dataclass
class Result:
    """What a run found, in the order of the examples."""

    factors: np.ndarray | Path  # (n, rows, d) float32, or the file that holds them
    each: Arrays
    sums: Arrays
    sparse: SparseRows | None = None
    diagonals: SparseDiagonals | None = None


def run(subject: Subject, tape: Tape, measure: Measure, shelf: Shelf, workers: Workers, progress: bool | Progress) -> Result:
    """Measures all examples of the subject that are not on the shelf yet, and puts them together.

    Among several workers each takes its share, and the first one puts together; the others return a result without arrays.
    """
    n = len(subject.batches)
    fm = measure.feature_map
    pilot = None
    if fm.kind == "sketch" and fm.basis is None:
        size = min(n, max(64, PILOT_BYTES // (4 * measure.k * fm.width)))
        pilot = np.sort(np.random.default_rng(PILOT_SEED).permutation(n)[:size])
    parts = [np.arange(n)] if pilot is None else [pilot, np.setdiff1d(np.arange(n), pilot)]
    shards = [(f"shard-{p}-{i:05d}", batches) for p, part in enumerate(parts) for i, batches in enumerate(_shards(subject, part))]
    first = [s for s in shards if s[0].startswith("shard-0-")] if pilot is not None else []
    worker = _Worker(subject, tape, measure)
    # The first worker's own share stands for everybody's.
    mine = [batches for part in (first, shards[len(first) :]) for number, (_, batches) in enumerate(part) if number % workers.number == 0]
    kept = "with cache= they would be kept" if isinstance(shelf, Memory) else "the same call with this cache= goes on from there"
    total = sum(len(b) for batches in mine for b in batches)
    with Bar(progress if workers.leads else False, total, f"Fishers ({fm.kind})", "example", kept) as bar:
        if first:
            _first_part(first, [name for name, _ in shards[len(first) :]], worker, shelf, workers, bar)
        for number, (name, batches) in enumerate(shards[len(first) :]):
            if number % workers.number == workers.rank:
                if _finished(shelf, name, batches) is None:
                    shelf.put(name, worker.shard(batches, bar))
                else:
                    bar.add(sum(map(len, batches)))
        workers.wait()
    if not workers.leads:
        return Result(np.zeros((0, 0, 0), np.float32), {}, {})
    return _together(n, shards, shelf, measure)


def _finished(shelf: Shelf, name: str, batches: list[np.ndarray]) -> Arrays | None:
    """A shard from the shelf, if it is there and of these very examples."""
    arrays = shelf.get(name)
    return None if arrays is None or not np.array_equal(arrays["rows"], np.concatenate(batches)) else arrays


def _shards(subject: Subject, part: np.ndarray) -> list[list[np.ndarray]]:
    """Batches grouped into shards.  Batches are made from examples of like length, so a shard's examples lie all over the table."""
    found: list[list[np.ndarray]] = []
    examples = positions = 0
    for batch in subject.batches.batches(part) if len(part) else []:
        if not found or examples >= SHARD_EXAMPLES or positions >= SHARD_POSITIONS:
            found.append([])
            examples = positions = 0
        found[-1].append(batch)
        examples += len(batch)
        positions += int(subject.batches.lengths[batch].sum())
    return found


class _Worker:
    """Measures shards; a batch that does not fit into memory is halved, and from then on so are all as large."""

    def __init__(self, subject: Subject, tape: Tape, measure: Measure) -> None:
        self.subject, self.tape, self.measure = subject, tape, measure
        self.fits = np.inf
        self.basis: Tensor | None = None

    def shard(self, batches: list[np.ndarray], bar: Bar, reduce: bool = True) -> Arrays:
        """Arrays of a shard: ``rows``, ``each.*`` with one row an example, ``sum.*``."""
        found: list[tuple[np.ndarray, Arrays, Arrays]] = []
        for batch in batches:
            for some, each, sums in self._batch(batch):
                found.append((some, *self.reduced(each, sums)) if reduce else (some, each, sums))
            bar.add(len(batch))
        arrays: Arrays = {"rows": np.concatenate([rows for rows, _, _ in found])}
        arrays |= {f"each.{key}": np.concatenate([each[key] for _, each, _ in found]) for key in found[0][1]}
        return arrays | {f"sum.{key}": np.stack([sums[key] for _, _, sums in found]).sum(0) for key in found[0][2]}

    def _batch(self, batch: np.ndarray) -> list[tuple[np.ndarray, Arrays, Arrays]]:
        cost = len(batch) * int(self.subject.batches.lengths[batch].max())
        if len(batch) > 1 and cost > self.fits:
            return self._batch(batch[: len(batch) // 2]) + self._batch(batch[len(batch) // 2 :])
        try:
            return [(batch, *self.measure(self.subject, self.tape, batch))]
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(batch) == 1:
                raise MemoryError(
                    f"example {int(batch[0])} alone does not fit into memory ({int(self.subject.batches.lengths[batch[0]])} positions): choose fewer "
                    "parameters=, fewer classes=, or a smaller budget="
                ) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.fits = cost // 2
        return self._batch(batch)

    def reduced(self, each: Arrays, sums: Arrays) -> tuple[Arrays, Arrays]:
        """Features on the basis, where there is one, with the energy that this keeps of unit-norm Fishers."""
        fm = self.measure.feature_map
        if "features" not in each:
            return each, sums
        features = torch.from_numpy(each["features"]).to(self.subject.device)  # the product is worth the way back to an accelerator
        there = _squares(features) if fm.kind == "sketch" else each["traces"] * each["retained_rows"]
        if fm.basis is not None:
            if self.basis is None:
                self.basis = torch.from_numpy(np.array(fm.basis)).to(features)
            features = features @ self.basis
        kept = _squares(features)
        each = each | {"features": features.float().cpu().numpy(), "kept": kept}
        return each, sums | _energy(kept, there, each["norms"])


def _energy(kept: np.ndarray, there: np.ndarray, norms: np.ndarray) -> Arrays:
    """Traces (n,) within the features and in all, summed over Fishers of unit norm."""
    weight = np.divide(1.0, norms, out=np.zeros(len(norms)), where=norms > 0)
    return {"kept": np.array([(kept * weight).sum()]), "there": np.array([(there * weight).sum()])}


def _squares(features: Tensor) -> np.ndarray:
    """Σ of squares of each example, in one reading of features that may be a hundred thousand wide."""
    flat = features.flatten(1)
    return torch.linalg.vecdot(flat, flat).double().cpu().numpy()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch's allocators have several ways to say it."""
    said = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "out of memory" in said
        or "can't allocate memory" in said
        or "not enough memory" in said
    )


def _raw(name: str) -> str:
    """Under what name a shard of the first part waits for its reduction."""
    return name.replace("shard", "pilot")


def _first_part(shards: list[tuple[str, list[np.ndarray]]], others: list[str], worker: _Worker, shelf: Shelf, workers: Workers, bar: Bar) -> None:
    """Unreduced sketches of the first part, the principal directions on them, then the same examples on these; ``others`` come afterwards."""
    fm = worker.measure.feature_map
    rows = np.sort(np.concatenate([row for _, batches in shards for row in batches]))
    held: Tensor | None = None
    norms = np.zeros(len(rows))

    def hold(arrays: Arrays) -> Arrays:
        """Features move to where all of them are, and out of the shard."""
        nonlocal held
        features = arrays["each.features"]
        if held is None:
            held = torch.empty(len(rows), *features.shape[1:])
        at = np.searchsorted(rows, arrays["rows"])
        held[at], norms[at] = torch.from_numpy(features), arrays["each.norms"]
        return {key: value for key, value in arrays.items() if key != "each.features"}

    for number, (name, batches) in enumerate(shards):
        if number % workers.number != workers.rank:
            continue
        raw = _raw(name)
        if _finished(shelf, name, batches) is not None or _finished(shelf, raw, batches) is not None:
            bar.add(sum(map(len, batches)))
            continue
        arrays = worker.shard(batches, bar, reduce=False)
        shelf.put(raw, hold(arrays) if isinstance(shelf, Memory) else arrays)
    workers.wait()
    if workers.leads:
        known = shelf.get("basis")
        if known is None:
            # What was reduced with a basis that is gone is made again: found anew it may come out otherwise.
            for name in others:
                shelf.drop(name)
            for name, batches in shards:
                shelf.drop(name)
                unreduced = _finished(shelf, _raw(name), batches)
                if unreduced is None:
                    unreduced = worker.shard(batches, Bar(False, 0, "", ""), reduce=False)
                    shelf.put(_raw(name), unreduced)
                if "each.features" in unreduced:  # else they were held when they were made
                    hold(unreduced)
            assert held is not None, "the first part is never empty"
            # Each example's Fisher counts as one of unit norm. Scaled in place and back: a copy would double the peak.
            unit = torch.from_numpy(np.sqrt(np.where(norms > 0, norms, 1.0))).float()[:, None, None]
            basis = principal_basis(held.div_(unit).flatten(0, 1)).numpy()
            held.mul_(unit)
            known = {"basis": basis}
            shelf.put("basis", known)
        fm.basis = known["basis"]
        for name, batches in shards:
            raw = _raw(name)
            if _finished(shelf, name, batches) is None:
                waiting = shelf.get(raw)
                assert waiting is not None, "a shard of the first part is there reduced or unreduced"
                shelf.put(name, _reduce_shard(worker, waiting, held, rows))
            shelf.drop(raw)
    workers.wait()
    if not workers.leads:
        found = shelf.get("basis")
        assert found is not None, "the first worker has put the basis on the shelf"
        fm.basis = found["basis"]


def _reduce_shard(worker: _Worker, arrays: Arrays, held: Tensor | None, rows: np.ndarray) -> Arrays:
    where, sums, whole = arrays["rows"], _files.under("sum", arrays), _files.under("each", arrays)
    parts, added = [], []
    for at in range(0, len(where), 32):
        part = slice(at, at + 32)
        each = {key: value[part] for key, value in whole.items()}
        if "features" not in each:
            assert held is not None, "features that left their shard are held"
            each["features"] = held[np.searchsorted(rows, where[part])].numpy()
        each, more = worker.reduced(each, {})
        parts.append(each)
        added.append(more)
    total = sums | {key: np.sum([more[key] for more in added], axis=0) for key in added[0]}
    together = {key: np.concatenate([each[key] for each in parts]) for key in parts[0]}
    return {"rows": where} | _files.named("each", together) | _files.named("sum", total)


def _together(n: int, shards: list[tuple[str, list[np.ndarray]]], shelf: Shelf, measure: Measure) -> Result:
    """One set of arrays from all shards, in the order of the examples; the factors of a run on disk in a mapped file."""
    each: Arrays = {}
    sums: Arrays = {}
    factors: np.ndarray | None = None
    file: Path | None = None
    for name, batches in shards:
        arrays = _finished(shelf, name, batches)
        if arrays is None:
            raise OSError(f"{name} was damaged after it was written: run the extraction again, only this part is computed anew")
        rows = arrays["rows"]
        for key, value in arrays.items():
            if key == "each.features":
                if factors is None and isinstance(shelf, Folder):
                    file = shelf.path / "factors.building"
                    factors = _files.allocate(file, (n, *value.shape[1:]))
                elif factors is None:
                    factors = np.zeros((n, *value.shape[1:]), np.float32)
                assert factors is not None, "allocated just now"
                factors[rows] = value
            elif key.startswith("each."):
                own = each.setdefault(key.removeprefix("each."), np.zeros((n, *value.shape[1:]), value.dtype))
                own[rows] = value
            elif key.startswith("sum."):
                kept = sums.setdefault(key.removeprefix("sum."), np.zeros(value.shape))
                kept += value
        if isinstance(shelf, Memory):
            shelf.drop(name)
    result = Result(np.zeros((n, 1, 0), np.float32) if factors is None else factors, each, sums)
    if file is not None and isinstance(factors, np.memmap):
        factors.flush()
        result.factors = file
    if "entry.values" in each:
        result.sparse = SparseRows(each.pop("entry.values"), each.pop("entry.columns"), each.pop("entry.offsets"), measure.size)
        result.factors = exact_coordinates(result.sparse.matrix()).reshape(n, result.sparse.rank, -1)
        each["kept"] = np.square(result.factors.astype(np.float64)).sum((1, 2))
        sums |= _energy(each["kept"], each["traces"] * each["retained_rows"], each["norms"])
    if "diagonal.values" in each:
        result.diagonals = SparseDiagonals(each.pop("diagonal.values"), each.pop("diagonal.indices"), each.pop("diagonal.norms"), measure.size)
    return result


# ------------------------------------------------------------------------------------------------------------------------ how much at once


def positions_a_batch(subject: Subject, tape: Tape, measure: Measure) -> int:
    """Positions (tokens, padding included) of a batch: as many as keep the tape small.

    On an accelerator it is doubled, by trying, as long as that makes it faster.
    """
    wide = sum(i + measure.k * o for o, i in measure.feature_map.shapes)
    most = max(1, TAPE_BYTES // (4 * wide))
    if subject.device.type == "cpu":  # throughput is flat from a few hundred positions on
        return min(POSITIONS_A_BATCH, most)
    lengths = subject.batches.lengths
    longest = np.argsort(-lengths, kind="stable")
    best, best_rate, positions = POSITIONS_A_BATCH, 0.0, POSITIONS_A_BATCH
    while True:
        count = max(1, positions // int(lengths[longest[0]]))
        try:
            for _ in range(2):  # the first of each size pays for what is set up once
                start = time.perf_counter()
                measure(subject, tape, longest[:count])
                taken = time.perf_counter() - start
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            return max(1, best // 2)
        rate = min(count, len(longest)) / taken
        if rate < GAIN * best_rate or count >= len(longest):
            return positions if rate > best_rate else best
        best, best_rate, positions = positions, rate, 2 * positions
