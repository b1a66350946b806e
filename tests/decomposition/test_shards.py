"""Rows shared out among processes against the same rows in one.

Two and three processes are started (``python test_shards.py FOLDER``, which forks them so that torch is imported once), each of which computes
everything below and leaves it in the folder; the tests put the pieces together and compare them with what one process computes by the same functions.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import twins
from torch import Tensor

from npeff_nb import NPEFF
from npeff_nb.decomposition import given, hals, multiplicative, objective, rows, shards, starts, stiefel
from npeff_nb.decomposition.rows import Stored
from npeff_nb.fisher import workers

NUMBERS = (2, 3)
KINDS = {"rows": shards.RowShards, "columns": shards.ColumnShards}
SHAPES = {
    "plain": (14, 2, 7, 3), "weights": (14, 2, 7, 3), "one row": (9, 1, 5, 2), "zero examples": (15, 3, 8, 4), "larger": (60, 3, 40, 8),
    "revived": (60, 3, 40, 8), "by parts": (20, 2, 12, 4),
}  # fmt: skip
"""n, k, d, r."""
EXACT = 1e-10
"""Sums in another order differ by 1e-16 of their size."""
FITTED = 1e-6
"""Coefficients are fitted to within this (:func:`~npeff_nb.decomposition.coefficients.fit_coefficients`)."""
SINGLE = 2e-5
"""The same for rows that are kept in float32 and multiplied in it."""


@dataclasses.dataclass
class Case:
    """A problem, and which part of it is here."""

    A: np.ndarray
    r: int
    scales: np.ndarray
    weights: np.ndarray
    examples: slice = dataclasses.field(default_factory=lambda: slice(None))
    features: slice = dataclasses.field(default_factory=lambda: slice(None))

    @classmethod
    def make(cls, name: str) -> Case:
        n, k, d, r = SHAPES[name]
        rng = np.random.default_rng(len(name))
        A = rng.standard_normal((n, k, d)) * rng.uniform(0.1, 10, (n, 1, 1))
        if name in {"larger", "revived"}:  # something to find, so that a fit goes a long way
            A += 3 * rng.standard_normal((n, k, r)) * (rng.random((n, 1, r)) < 0.3) @ rng.standard_normal((r, d))
        if name == "zero examples":
            A[::3] = 0
            A[1, :, :2] = 0  # zero to the process that has the first features, and to no other
        if name == "revived":
            A[..., -1] = 0
        norms = np.array([twins.frobenius(a) for a in A])
        scales = 1 / np.sqrt(np.where(norms > 0, norms, 1))
        weights = rng.uniform(0.2, 3, n) if name == "weights" else np.ones(n)
        return cls(A.astype(np.float32) if name == "by parts" else A, r, scales, weights)

    def share(self, how: str, rank: int, number: int) -> Case:
        """Uneven: most for the last process, a single one for another."""
        size = self.A.shape[0 if how == "rows" else 2]
        bounds = [0, 1, size] if number == 2 else [0, size // 3, size // 3 + 1, size]
        here = slice(bounds[rank], bounds[rank + 1])
        return dataclasses.replace(self, **{"examples" if how == "rows" else "features": here})

    def stored(self) -> Stored:
        return Stored(self.A[self.examples][..., self.features], self.scales[self.examples], self.weights[self.examples])

    def mine(self, x: np.ndarray) -> Tensor:
        """Of numbers for all examples, those of the examples here."""
        return torch.from_numpy(x[self.examples].copy())

    def ours(self, H: np.ndarray) -> Tensor:
        """Of directions, the features here."""
        return torch.from_numpy(H[:, self.features].copy())


@contextmanager
def precision(name: str):
    """Rows are held in float64 unless there are too many: for one of the cases, any are."""
    before = rows.CONVERTED_UP_TO, rows.PART
    if name == "by parts":
        rows.CONVERTED_UP_TO, rows.PART = 0, 4 * 2 * 12 * 3
    yield
    rows.CONVERTED_UP_TO, rows.PART = before


# What is computed, by what is known of it: the same everywhere, a number for each example, or for each feature.


def products(A: rows.Rows, case: Case) -> dict[str, Tensor]:
    rng = np.random.default_rng(1)
    n, k, d = case.A.shape
    H_, D_, V_, W_ = rng.standard_normal((case.r, d)), rng.standard_normal((4, d)), rng.standard_normal((n, k, case.r)), rng.random((n, case.r))
    H, D, V, W = case.ours(H_), case.ours(D_), case.mine(V_), case.mine(W_)
    P, Q = A.project(H), A.project(D)
    S = A.inner(H, H, P)
    values = case.mine(rng.permutation(n) / n)
    mass, total = case.mine(rng.random(n) * (rng.random(n) < 0.5)), objective.total_energy(A)
    rng = np.random.default_rng(2)
    draws = [A.draw(mass, rng) for _ in range(20)] + [A.draw(0 * mass, rng) for _ in range(5)]
    M, C, some = A.moment(W), A.inner(H, H, P), (0, 1, n // 2, n - 1)
    return {
        "examples project": P, "features gather": A.gather(V), "same inner": A.inner(H, D, Q), "examples energies": A.energies,
        "same total": total, "same moment": M, "same loss": objective.loss(A, W, H, total),
        "same step": objective.line_minimum(A, W, M, P, P.flip(2), S, C + C.T, S), "features stationary": objective.stationary(A, W, M, P, S),
        "same draws": draws, "same largest": [found for count in (1, 5, n + 3) for found in A.largest(values, count)],
        "features example": torch.cat([A.example(at) for at in some]), "features leading": torch.cat([A.leading(at) for at in some]),
        "examples overlap": torch.stack([A.overlap(at) for at in some], 1),
    }  # fmt: skip


def fits(A: rows.Rows, case: Case, seed: int) -> dict[str, Tensor]:
    found = {}
    total = objective.total_energy(A)

    def keep(name: str, solution: objective.Solution) -> None:
        found.update({
            f"examples {name} W": solution.W, f"features {name} H": solution.H,
            f"same {name} losses": solution.losses, f"same {name} converged": solution.converged,
        })  # fmt: skip

    start = starts.kmeans_pp(A, case.r, np.random.default_rng(seed))
    found["features k-means++"] = start
    keep("hals", hals.hals(A, start, total, max_iter=20))
    keep("hals frozen", hals.hals(A, start, total, frozen=1, max_iter=5))
    for solver in (multiplicative.multiplicative, stiefel.stiefel):
        keep(solver.__name__, solver(A, case.r, total, np.random.default_rng(seed), iterations=6, h_only=4, learning_rate=1e-3))
    return found


def revival(A: rows.Rows, case: Case) -> dict[str, Tensor]:
    """From a start with two components without users: no row has anything in the last feature, and they have nothing else."""
    start = np.random.default_rng(4).standard_normal((case.r, case.A.shape[2]))
    start[:, -1] = 0
    start[[1, 3]] = np.eye(case.A.shape[2])[-1]
    found = hals.hals(A, case.ours(start), objective.total_energy(A), max_iter=20)
    return {"examples revived W": found.W, "features revived H": found.H, "same revived losses": found.losses}


def everything(A: rows.Rows, name: str, case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    found = revival(A, case) if name == "revived" else products(A, case)
    if name not in {"revived", "by parts"}:  # fits in float32 part after a while: their products say all there is
        found |= fits(A, case, seed)
    return {what: np.asarray(value) for what, value in found.items()}


# ------------------------------------------------------------------------------------------------------------------- in each process


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    children = []
    for number in NUMBERS:
        with socket.socket() as some:
            some.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(some.getsockname()[1]), "WORLD_SIZE": str(number)}
        for rank in range(number):
            children.append(os.fork())
            if not children[-1]:
                os.environ |= address | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                one_of_them(folder)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


def one_of_them(folder: Path) -> None:
    """Everything that one process does, and its end."""
    status, found = 1, {}
    signal.alarm(240)  # processes that wait for each other end all the same
    try:
        with workers.launched() as here:
            for how, kind in KINDS.items():
                for name in SHAPES:
                    case = Case.make(name).share(how, here.rank, here.number)
                    with precision(name):
                        # A generator of their own: draws are the first process's.
                        computed = everything(kind(case.stored()), name, case, seed=here.rank)
                    found |= {f"{how}/{name}/{what}": value for what, value in computed.items()}
                given_ = Case.make("zero examples").share(how, here.rank, here.number)
                more = between(how, kind, here.rank, here.number) | as_given(how, given_) | estimated(how, given_)
                found |= {f"{how}/{what}": value for what, value in more.items()}
            np.savez(folder / f"{here.number} {here.rank}.npz", **found)
            errors = {f"{how} {what}": error(how, what, here) for how, whats in WRONG.items() for what in whats}
            (folder / f"{here.number} {here.rank}.json").write_text(json.dumps(errors))
            status = 0
            (folder / f"{here.number} {here.rank} alone.txt").write_text(left_alone(here))
    except BaseException:  # noqa: BLE001 - whatever it is, a forked process must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def between(how: str, kind: type, rank: int, number: int) -> dict[str, np.ndarray]:
    """What processes tell each other beside products: pieces put together and taken apart, many sums, and how much was sent."""
    case = Case.make("larger").share(how, rank, number)
    A = kind(case.stored())
    n, _, d = case.A.shape
    rng = np.random.default_rng(5)
    x, H = rng.standard_normal((n, 3)), rng.standard_normal((3, d))
    off = float(rank)  # numbers of other processes than the first do not count
    share, part = A.share(torch.from_numpy(x + off)), A.part(torch.from_numpy(H + off))
    mine = np.random.default_rng(rank)
    terms = [mine.standard_normal(size) * 10.0 ** mine.integers(-8, 8, size) for size in (1, 2, 7, 100, 4097, 100_003)]
    sums = [shards._summed(torch.from_numpy(x)) for x in terms]
    return {
        "share": float(torch.equal(share, case.mine(x))), "part": float(torch.equal(part, case.ours(H))),
        "everyone": float(torch.equal(A.everyone(share), torch.from_numpy(x))), "whole": float(torch.equal(A.whole(part), torch.from_numpy(H))),
        "sums": torch.cat(sums).numpy(), "sent": sent(A, case),
    }  # fmt: skip


def sent(A: rows.Rows, case: Case) -> np.ndarray:
    """Numbers that one iteration gives to be added up or handed round."""
    counted = [0]
    before = torch.distributed.all_reduce, torch.distributed.broadcast

    def counting(call):
        def counts(x, *arguments):
            counted[0] += x.numel()
            return call(x, *arguments)

        return counts

    torch.distributed.all_reduce, torch.distributed.broadcast = map(counting, before)
    start = starts.kmeans_pp(A, case.r, np.random.default_rng(0))
    counts = []
    for iterations in (2, 4):
        counted[0] = 0
        assert len(hals.hals(A, start, float(len(case.A)), tol=0, max_iter=iterations).losses) == iterations + 2
        counts.append(counted[0])
    torch.distributed.all_reduce, torch.distributed.broadcast = before
    return np.array((counts[1] - counts[0]) / 2)


WRONG = {"rows": ("d", "k", "n"), "columns": ("n", "k", "d", "weights", "norms")}


def as_given(how: str, case: Case) -> dict[str, np.ndarray]:
    """From what a person has in each process: rows of no particular norm."""
    found = given.given(case.A[case.examples][..., case.features], case.weights[case.examples])
    A, total, carried = shards.shared(found, how)
    P = A.project(case.ours(np.ones((1, case.A.shape[2]))))
    return {"given total": np.array([total, carried]), "given energies": A.energies.numpy(), "given project": P.numpy()}


def estimated(how: str | None, case: Case) -> dict[str, np.ndarray]:
    weights = np.random.default_rng(6).uniform(0.5, 2, len(case.A))
    npeff = NPEFF(case.r, shards=how, n_init=2, reduction="none", random_state=0, max_iter=20)
    npeff.fit(case.A[case.examples][..., case.features], sample_weight=weights[case.examples])
    return {
        "examples coefficients": npeff.coefficients_, "examples projections": npeff.projections_, "same components": npeff.components_,
        "same error": np.array([npeff.reconstruction_err_, npeff.explained_variance_, *npeff.restart_losses_]),
    }  # fmt: skip


def error(how: str, what: str, here: workers.Workers) -> str:
    """What every process says when the last one has something else."""
    shape = {"n": 5, "k": 2, "d": 6}
    weights = np.ones(5)
    if here.rank == here.number - 1:
        if (how, what) in {("rows", "n"), ("columns", "d")}:
            shape[what] = 0
        elif what in shape:
            shape[what] += 1
        elif what == "weights":
            weights[3] = 2
    part = Stored(np.ones(list(shape.values())), weights=np.ones(shape["n"]) if what in shape else weights)
    try:
        if what == "norms":
            norms = np.full(5, 1.0 + (here.rank == here.number - 1))
            shards.shared(given.Given(rows=part, total=5.0, carried=10, present=norms > 0, pefs=object(), scales=norms), how)
        else:
            KINDS[how](part)
    except ValueError as refused:
        return str(refused)
    return "taken"


def left_alone(here: workers.Workers) -> str:
    """What the others find when one process is gone."""
    A = shards.RowShards(Stored(np.ones((2, 1, 3))))
    if here.rank == here.number - 1:
        os._exit(0)
    try:
        for _ in range(3):
            A.gather(torch.ones(2, 1, 1, dtype=torch.float64))
    except RuntimeError as found:
        return type(found).__name__
    return "nothing"


# ------------------------------------------------------------------------------------------------------------------- and all together


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("processes cannot be forked on this system")
    folder = tmp_path_factory.mktemp("shards")
    here = Path(__file__)
    # No accelerator: a process that has used one cannot be forked.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here.parents[2])]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, str(here), str(folder)], env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """Arrays by number of processes, rank and name."""
    arrays = {}
    for number in NUMBERS:
        for rank in range(number):
            with np.load(folder / f"{number} {rank}.npz") as file:
                arrays[number, rank] = dict(file)
    return arrays


@pytest.fixture(scope="module")
def alone():
    """What one process computes, by case."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    computed = {}
    for name in SHAPES:
        case = Case.make(name)
        with precision(name):
            computed[name] = everything(case.stored(), name, case)
    torch.set_num_threads(threads)
    return computed


def assembled(pieces: list[np.ndarray], what: str, how: str) -> np.ndarray:
    """One array from those of all processes.  What each has whole must be the same to the last bit."""
    apart = {"rows": "examples", "columns": "features"}[how]
    if what.startswith(apart):
        return np.concatenate(pieces, axis=0 if how == "rows" else 1)
    for piece in pieces[1:]:
        assert piece.tobytes() == pieces[0].tobytes(), what
    return pieces[0]


every_number = pytest.mark.parametrize("number", NUMBERS)
every_kind = pytest.mark.parametrize("how", KINDS)


@every_number
@every_kind
@pytest.mark.parametrize("name", SHAPES)
def test_the_same_as_in_one_process(name, how, number, found, alone):
    for what, expected in alone[name].items():
        tolerance = SINGLE if name == "by parts" else FITTED if what.endswith((" W", " H")) else EXACT
        together = assembled([found[number, rank][f"{how}/{name}/{what}"] for rank in range(number)], what, how)
        assert together.shape == expected.shape, what
        np.testing.assert_allclose(together, expected, rtol=tolerance, atol=tolerance * max(1.0, np.abs(expected).max()), err_msg=what)


def test_the_fits_compared_go_somewhere(alone):
    """Fits that end where they began would be equal whatever the sums are."""
    for name in ("plain", "larger"):
        assert len(alone[name]["same hals losses"]) > 5
        assert alone[name]["same hals losses"][-1] < 0.9 * alone[name]["same hals losses"][0]
        assert np.abs(alone[name]["examples multiplicative W"]).max() > 0
    case, revived = Case.make("revived"), alone["revived"]
    W, H = revived["examples revived W"], revived["features revived H"]
    assert not case.A[..., -1].any()
    assert np.abs(H[:, -1]).max() < 1e-12  # the two that began there are somewhere else ...
    assert (W.sum(0) > 0.1).all()  # ... and have users


@every_number
@every_kind
def test_pieces_come_together_and_apart(how, number, found):
    for rank in range(number):
        for what in ("share", "part", "everyone", "whole"):
            assert found[number, rank][f"{how}/{what}"] == 1, what


@every_number
def test_sums_are_the_same_bytes_everywhere(number, found):
    """What keeps decisions alike rests on it; terms of very different size would show any other order of adding up."""
    first = found[number, 0]["rows/sums"]
    for rank in range(1, number):
        assert found[number, rank]["rows/sums"].tobytes() == first.tobytes()


@every_kind
@every_number
def test_no_more_is_sent_than_was_said(how, number, found):
    n, k, d, r = SHAPES["larger"]
    large = r * d if how == "rows" else n * k * r
    for rank in range(number):
        assert large <= found[number, rank][f"{how}/sent"] <= large + 6 * r * r + 3 * r


@every_kind
@every_number
def test_what_a_person_has_is_put_to_unit_norm_as_a_whole(how, number, found):
    case = Case.make("zero examples")
    pieces = [{what: found[number, rank][f"{how}/given {what}"] for what in ("total", "energies", "project")} for rank in range(number)]
    present = case.A.any((1, 2))
    for piece in pieces:
        np.testing.assert_array_equal(piece["total"], [present.sum(), case.A.any(2).sum()])
    np.testing.assert_allclose(assembled([p["energies"] for p in pieces], "examples", how), present, atol=1e-12)
    projected = case.stored().project(torch.ones(1, case.A.shape[2], dtype=torch.float64)).numpy()
    np.testing.assert_allclose(assembled([p["project"] for p in pieces], "examples", how), projected, atol=1e-12)


@every_kind
@every_number
def test_the_estimator_finds_the_same(how, number, found):
    for what, expected in estimated(None, Case.make("zero examples")).items():
        together = assembled([found[number, rank][f"{how}/{what}"] for rank in range(number)], what, how)
        np.testing.assert_allclose(together, expected, atol=FITTED, err_msg=what)


@every_number
def test_parts_that_do_not_fit_are_refused_everywhere(number, folder):
    last = number - 1
    alike = "when the examples are shared out, all need the same features in the same order and as many factor rows (zero rows fill up)"
    first = "process 0 has 5 examples of 2 factor rows over 6 features"
    expected = {
        "rows d": f"process {last} has 5 examples of 2 factor rows over 7 features, {first}: {alike}",
        "rows k": f"process {last} has 5 examples of 3 factor rows over 6 features, {first}: {alike}",
        "rows n": f"process {last} of {number} has 0 examples of 2 factor rows over 6 features: give each some of them, or start fewer processes",
        "columns n": f"process {last} has 6 examples of 2 factor rows over 6 features, {first}",
        "columns k": "with as many factor rows",
        "columns d": f"process {last} of {number} has 5 examples of 2 factor rows over 0 features",
        "columns weights": f"process {last} has other weights of the examples than process 0: give all processes the same, in the same order",
        "columns norms": f"process {last} has other norms of the whole Fishers than process 0",
    }
    for rank in range(number):
        said = json.loads((folder / f"{number} {rank}.json").read_text())
        assert set(said) == set(expected)
        for what, words in expected.items():
            assert words in said[what]


@every_number
def test_a_process_that_is_gone_is_noticed(number, folder):
    for rank in range(number - 1):
        assert "Error" in (folder / f"{number} {rank} alone.txt").read_text()


def test_alone_shards_are_the_rows_themselves():
    """Without ``torch.distributed``: the same program works in one process."""
    case = Case.make("weights")
    expected = everything(case.stored(), "weights", case)
    for kind in KINDS.values():
        for what, value in everything(kind(case.stored()), "weights", case).items():
            np.testing.assert_array_equal(value, expected[what], err_msg=what)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
