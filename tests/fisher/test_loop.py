"""The loop over the examples, disturbed: killed, stopped, torn files, full disks, too little memory, numbers that are none, several processes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import twins
from torch import nn

import npeff_nb as nb
from npeff_nb import NPEFF, _files
from npeff_nb._progress import Cancelled
from npeff_nb.fisher import landmarks, loop, workers
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.fisher.measure import Measure
from npeff_nb.fisher.outputs import SequenceClasses
from npeff_nb.fisher.shelf import Folder

N = 90
"""Examples: 64 of them are a sketch's first part, the fewest it takes."""
SETTINGS = {"sketch": {"features": "sketch", "budget": 13 * 36}, "reduced": {"features": "reduced", "budget": 24}, "dense": {"features": "dense"}}
every_kind = pytest.mark.parametrize("kind", SETTINGS)


def make_small(patch=setattr) -> None:
    """Batches of about four examples, shards of eight, a first part of 64: a dozen shards for 90 examples."""
    patch(loop, "SHARD_EXAMPLES", 8)
    patch(loop, "PILOT_BYTES", 1)
    patch(loop, "POSITIONS_A_BATCH", 40)


@pytest.fixture
def small(monkeypatch):
    make_small(monkeypatch.setattr)


@pytest.fixture
def measured(monkeypatch):
    """Rows of every batch that is measured."""
    found: list[list[int]] = []
    call = Measure.__call__

    def watched(self, subject, tape, batch):
        found.append(batch.tolist())
        return call(self, subject, tape, batch)

    monkeypatch.setattr(Measure, "__call__", watched)
    return found


def extract(kind: str, cache=None, n: int = N, model=None, **settings):
    return extract_fishers(model or tiny.bert(), tiny.tokenizer(), tiny.table(n), cache=cache, **{"progress": False} | SETTINGS[kind] | settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def only_result(cache: Path) -> Path:
    (found,) = cache.glob("*.pefs")
    return found


def partial(cache: Path) -> Path:
    (found,) = cache.glob("*.partial")
    return found


def finished_rows(folder: Path) -> set[int]:
    """Examples whose shard lies there whole."""
    found: set[int] = set()
    for path in [*folder.glob("shard-*.safetensors"), *folder.glob("pilot-*.safetensors")]:
        arrays = _files.load_arrays(path)
        if arrays is not None:
            found |= set(arrays["rows"].tolist())
    return found


def stop_after(done: int):
    """A progress function that stops a run when so many examples are done."""

    def tell(now: int, total: int, what: str) -> None:
        if now >= done:
            raise Cancelled("enough")

    return tell


def stopped(kind: str, cache: Path, done: int, **settings) -> Path:
    """A run that was stopped on its way: the folder with its shards."""
    with pytest.raises(Cancelled):
        extract(kind, cache, progress=stop_after(done), **settings)
    return partial(cache)


# ---------------------------------------------------------------------------------------------------------- killed
#
# What follows runs in a process of its own (`python test_loop.py FOLDER`) which imports everything once and then forks: a child a run, so that
# sixty runs can be killed in less time than it takes to import torch ten times.


def child(work) -> int:
    """Process number of a child that does ``work`` and leaves."""
    sys.stdout.flush()
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the child must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def ended(number: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def logged(log: Path) -> None:
    """Every batch that is measured leaves its rows in ``log``, whatever happens afterwards."""
    call, file = Measure.__call__, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def watched(self, subject, tape, batch):
        os.write(file, (json.dumps(batch.tolist()) + "\n").encode())
        return call(self, subject, tape, batch)

    Measure.__call__ = watched  # type: ignore[method-assign]


def killed_after(events: int, counted: Path | None = None) -> None:
    """From the moment when shards are put together: counts calls and returns of functions, and kills this process at one of them."""
    together, leave = loop._together, os._exit
    seen = 0

    def tick(frame, event, argument) -> None:
        nonlocal seen
        seen += 1
        if seen == events:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(*arguments):
        sys.setprofile(tick)
        return together(*arguments)

    def left(status: int) -> None:
        sys.setprofile(None)
        if counted is not None:
            counted.write_text(str(seen))
        leave(status)

    loop._together, os._exit = watched, left


class Lives:
    """Runs that are killed, and what was found of them afterwards."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        folder.mkdir()
        start = time.monotonic()
        assert ended(child(lambda: extract(kind, folder / "whole"))) == 0
        self.life = time.monotonic() - start
        self.expected = contents(only_result(folder / "whole"))

    def run(self, cache: Path, after: float | None = None, step: int | None = None, counted: Path | None = None) -> dict:
        """One run into ``cache``, killed after so many seconds, or at a step of putting together, or not at all."""
        log = cache.with_suffix(".log")
        log.unlink(missing_ok=True)
        before = finished_rows(partial(cache)) if list(cache.glob("*.partial")) else set()
        was_there = bool(list(cache.glob("[!.]*.pefs")))

        def work() -> None:
            logged(log)
            if step is not None or counted is not None:
                killed_after(step or 0, counted)
            extract(self.kind, cache)

        number = child(work)
        if after is not None:
            time.sleep(after)
            os.kill(number, signal.SIGKILL)
        status = ended(number)
        rows = [row for line in log.read_text().splitlines() for row in json.loads(line)] if log.exists() else []
        return {
            "after": after, "step": step, "status": status, "finished": len(before), "was there": was_there, "measured": len(rows),
            "measured again": len(before & set(rows)), "measured twice": len(rows) - len(set(rows)),
        }  # fmt: skip

    def outcome(self, cache: Path) -> dict:
        """After a run that came to its end."""
        found = list(cache.glob("[!.]*.pefs"))
        same = len(found) == 1 and contents(found[0]) == self.expected
        return {"same": same, "left over": sorted(p.name for p in cache.iterdir() if p not in found)}


def killed_at_any_time(lives: Lives, rng: random.Random, kills: int = 20) -> dict:
    """A run is killed after a random time, gone on with, killed again, until it comes to its end; then the next, until so many were killed."""
    runs: list[dict] = []
    outcomes: list[dict] = []
    dead, cache = 0, lives.folder / "0"
    moments = [(i + rng.random()) / kills for i in range(kills)]
    rng.shuffle(moments)
    while len(runs) < 10 * kills:  # a run that ends before its moment is no kill: the next one is given the same moment
        start, fresh = time.monotonic(), not cache.exists()
        runs.append(lives.run(cache, after=lives.life * moments[dead] if dead < kills else None))
        if runs[-1]["status"] == -signal.SIGKILL:
            dead += 1
            continue
        if fresh:  # when the machine has less to do than before, lives are shorter
            lives.life = min(lives.life, time.monotonic() - start)
        outcomes.append(lives.outcome(cache))
        if dead == kills:
            break
        cache = lives.folder / f"{len(outcomes)}"
    return {"runs": runs, "outcomes": outcomes, "kills": dead}


def killed_while_put_together(lives: Lives, rng: random.Random, kills: int = 10) -> dict:
    """All shards are there; killed at steps spread over everything that comes after."""
    model = lives.folder / "shards"
    together = loop._together
    loop._together = lambda *arguments: (_ for _ in ()).throw(Cancelled("all shards are there"))
    with contextlib.suppress(Cancelled):
        extract(lives.kind, model)
    loop._together = together
    shutil.copytree(model, lives.folder / "counted")
    assert lives.run(lives.folder / "counted", counted=lives.folder / "steps")["status"] == 0
    steps = int((lives.folder / "steps").read_text())
    assert steps > 1000
    runs, outcomes = [], []
    for i in range(kills):
        cache = lives.folder / f"step-{i}"
        shutil.copytree(model, cache)
        runs.append(lives.run(cache, step=1 + int(steps * (i + rng.random()) / kills)))
        runs.append(lives.run(cache))
        outcomes.append(lives.outcome(cache))
    return {"runs": runs, "outcomes": outcomes, "kills": sum(run["status"] == -signal.SIGKILL for run in runs)}


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


def together(number: int, work) -> list[int]:
    """Process numbers of so many children that know of each other, as ``torchrun`` starts them."""
    port = free_port()

    def one(rank: int) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(number), "LOCAL_RANK": str(rank)}
        with workers.launched() as here:
            assert (here.rank, here.number) == (rank, number)
            work(rank)

    return [child(lambda rank=rank: one(rank)) for rank in range(number)]


def with_others(lives: Lives) -> dict:
    """The same extraction by two processes; and by two that are killed, gone on with by one."""
    folder = lives.folder

    def run(rank: int, cache: Path) -> None:
        logged(folder / f"{cache.name}-{rank}.log")
        pefs = extract(lives.kind, cache)
        assert len(pefs) == N  # every worker has the result ...
        assert pefs.subject is not None  # ... and the model behind it
        assert np.isfinite(pefs.subject.logits(np.arange(3)).numpy()).all()

    statuses = [ended(number) for number in together(2, lambda rank: run(rank, folder / "two"))]
    logs = [(folder / f"two-{rank}.log").read_text().splitlines() for rank in range(2)]
    shares = [len({row for line in log for row in json.loads(line)}) for log in logs]
    numbers = together(2, lambda rank: run(rank, folder / "killed"))
    time.sleep(lives.life * 0.8)
    for number in numbers:
        os.kill(number, signal.SIGKILL)
    for number in numbers:
        ended(number)
    run_alone = lives.run(folder / "killed")
    return {
        "statuses": statuses,
        "shares": shares,
        "two": lives.outcome(folder / "two"),
        "alone": run_alone,
        "then one": lives.outcome(folder / "killed"),
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    make_small()
    extract("dense", n=8)  # what is imported late is imported now
    rng = random.Random(0)
    found: dict[str, dict] = {"any time": {}, "put together": {}, "others": {}}
    for kind in SETTINGS:
        lives = Lives(kind, folder / kind)
        found["any time"][kind] = killed_at_any_time(lives, rng)
        found["put together"][kind] = killed_while_put_together(lives, rng)
        found["others"][kind] = with_others(lives)
        shutil.rmtree(folder / kind)
    (folder / "found.json").write_text(json.dumps(found, indent=1))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("processes cannot be forked on this system")
    folder = tmp_path_factory.mktemp("killed")
    here = Path(__file__)
    # No accelerator: a process that has used one cannot be forked.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here.parents[2])]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, str(here), str(folder)], env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads((folder / "found.json").read_text())


every_death = pytest.mark.parametrize("death", ["any time", "put together"])


@every_death
@every_kind
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(kind, death, told):
    found = told[death][kind]
    assert all(run["status"] in (0, -signal.SIGKILL) for run in found["runs"]), found["runs"]
    assert all(one["same"] for one in found["outcomes"]), found["outcomes"]
    if death == "any time":
        assert found["kills"] == 20
        # They cover a run's life: some before the first shard, some between shards.
        between = [run["finished"] for run in found["runs"]]
        assert len({finished for finished in between if 0 < finished < N}) >= 3, between
    else:
        assert found["kills"] >= 9


@every_death
@every_kind
def test_what_was_finished_is_not_measured_again(kind, death, told):
    for run in told[death][kind]["runs"]:
        assert not run["measured again"], run
        assert not run["measured twice"], run
        if run["status"] == 0:
            assert run["measured"] == (0 if run["was there"] else N - run["finished"]), run


@every_death
@every_kind
def test_nothing_but_the_result_stays_behind(kind, death, told):
    """Whatever a killed process had begun: half a result can be as large as a whole one."""
    assert [one["left over"] for one in told[death][kind]["outcomes"] if one["left over"]] == []


@every_kind
def test_two_processes_make_the_same_bytes_as_one(kind, told):
    found = told["others"][kind]
    assert found["statuses"] == [0, 0]
    assert found["two"] == {"same": True, "left over": []}
    assert sum(found["shares"]) == N
    assert min(found["shares"]) > N / 4  # both worked
    assert found["alone"]["status"] == 0
    assert not found["alone"]["measured again"]
    assert found["then one"]["same"]


def test_processes_without_a_folder_are_told_to_take_one(monkeypatch):
    monkeypatch.setattr(workers.Workers, "here", classmethod(lambda cls: cls(0, 2)))
    with pytest.raises(ValueError, match="2 processes work together through a folder: give cache="):
        extract("dense", n=8)


# ---------------------------------------------------------------------------------------------------------- files that are not what they were


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an undisturbed run leaves, by kind."""
    patch = pytest.MonkeyPatch()
    make_small(patch.setattr)
    found = {}
    for kind in SETTINGS:
        cache = tmp_path_factory.mktemp(kind)
        extract(kind, cache)
        found[kind] = contents(only_result(cache))
    patch.undo()
    return found


@pytest.fixture(scope="module")
def expected():
    """What an undisturbed run gives, by kind: norms, logits, and all inner products of factor rows."""
    found = {}
    for kind in SETTINGS:
        pefs = extract(kind)
        found[kind] = pefs.norms, pefs.logits, products(pefs)
    return found


def products(pefs) -> np.ndarray:
    rows = pefs.factors.reshape(-1, pefs.factors.shape[2]).astype(np.float64)
    return rows @ rows.T


def assert_as_expected(pefs, expected) -> None:
    """Up to what other batches round otherwise; in a sketch, also up to the principal directions that another first part finds."""
    norms, logits, inner = expected
    np.testing.assert_allclose(pefs.norms, norms, rtol=1e-4)
    np.testing.assert_allclose(pefs.logits, logits, atol=1e-4)
    np.testing.assert_allclose(products(pefs), inner, atol=1e-2 * np.abs(inner).max())


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    at = len(content) * 2 // 3
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


DAMAGES = {"flipped": flipped, "torn": half, "empty": lambda content: b"", "gone": None}


def spoil(path: Path, damage) -> None:
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))


@pytest.mark.parametrize("damage", [flipped, half, DAMAGES["empty"]], ids=["flipped", "torn", "empty"])
@pytest.mark.parametrize(("kind", "done", "pattern"), [
    ("dense", 60, "shard-0-00002"), ("reduced", 60, "shard-0-00002"), ("sketch", 40, "pilot-0-00001"), ("sketch", 80, "shard-0-00003"),
    ("sketch", 80, "shard-1-00000"), ("sketch", 80, "basis"),
])  # fmt: skip
def test_a_damaged_part_is_made_again(kind, done, pattern, damage, whole, small, measured, tmp_path):
    folder = stopped(kind, tmp_path, done)
    lost = folder / f"{pattern}.safetensors"
    rows = set() if pattern == "basis" else set(_files.load_arrays(lost)["rows"].tolist())
    spoil(lost, damage)
    left = finished_rows(folder)
    assert not left & rows
    measured.clear()
    extract(kind, tmp_path)
    assert contents(only_result(tmp_path)) == whole[kind]
    again = {row for batch in measured for row in batch}
    if pattern != "basis":
        assert again == set(range(N)) - left


PLANS = ["{}", "[3]", '{"positions": 100}', '{"positions": 39}', '{"positions": -3}', '{"positions": "many"}']


@pytest.mark.parametrize(
    ("kind", "damage"),
    [*(("dense", damage) for damage in [*DAMAGES, *PLANS]), *(("sketch", damage) for damage in ("torn", "gone", PLANS[2]))],
)
def test_a_damaged_plan_never_tears_a_result(kind, damage, expected, small, tmp_path):
    """Shards of another plan hold other examples under the same names."""
    folder = stopped(kind, tmp_path, 60)
    spoil(folder / "plan.json", DAMAGES[damage] if damage in DAMAGES else lambda content: damage.encode())
    try:
        pefs = extract(kind, tmp_path)
    except (ValueError, OSError) as error:
        assert "plan" in str(error)  # either is fine
        assert not list(tmp_path.glob("*.pefs"))
    else:
        assert_as_expected(pefs, expected[kind])


@every_kind
@pytest.mark.parametrize("sizes", [(4, 3), (2, 16), (None, 16), (16, None)])
def test_a_run_goes_on_with_another_batch_size(sizes, kind, expected, small, tmp_path):
    """It is no part of what is asked, so the same folder is found: what is there already need not fit what comes now."""
    first, then = sizes
    stopped(kind, tmp_path, 60, batch_size=first)
    assert_as_expected(extract(kind, tmp_path, batch_size=then), expected[kind])


def test_shards_that_are_there_keep_their_coordinates(expected, small, tmp_path, monkeypatch):
    """Eigenvectors of like eigenvalues may come out otherwise on another machine, or with another number of threads."""
    stopped("reduced", tmp_path, 60)
    mixed = landmarks.mixed

    def otherwise(*arguments, **named):
        found = mixed(*arguments, **named)
        turn = np.linalg.qr(np.random.default_rng(0).standard_normal((found.shape[1],) * 2))[0]
        return found @ turn

    monkeypatch.setattr(landmarks, "mixed", otherwise)
    assert_as_expected(extract("reduced", tmp_path), expected["reduced"])


@pytest.mark.parametrize("kind", ["reduced", "sketch"])
def test_parts_in_coordinates_that_are_gone_are_made_again(kind, expected, small, tmp_path, monkeypatch):
    """The directions' file was torn, and found anew they come out otherwise: nothing that was reduced on the old ones may stay."""
    folder = stopped(kind, tmp_path, 80)
    spoil(folder / "basis.safetensors", half)
    turned = {"reduced": (landmarks, "mixed"), "sketch": (loop, "principal_basis")}[kind]
    found_as = getattr(*turned)

    def otherwise(*arguments, **named):
        found = found_as(*arguments, **named)
        turn = np.linalg.qr(np.random.default_rng(0).standard_normal((found.shape[1],) * 2))[0]
        return found @ (torch.from_numpy(turn).to(found) if isinstance(found, torch.Tensor) else turn)

    monkeypatch.setattr(*turned, otherwise)
    assert_as_expected(extract(kind, tmp_path), expected[kind])


def test_a_damaged_result_is_named(small, tmp_path):
    extract("dense", tmp_path)
    spoil(only_result(tmp_path) / "factors.array.safetensors", flipped)
    with pytest.raises(
        ValueError, match=r"factors\.array.safetensors is missing or was changed since it was written: the folder is damaged, make it again"
    ):
        extract("dense", tmp_path)


def test_a_result_that_is_there_is_not_made_again(small, measured, tmp_path):
    first = extract("reduced", tmp_path)
    before, count = contents(only_result(tmp_path)), len(measured)
    again = extract("reduced", tmp_path)
    assert len(measured) == count
    np.testing.assert_array_equal(first.factors, again.factors)
    assert contents(only_result(tmp_path)) == before
    assert again.subject is not None
    extract("reduced", tmp_path, budget=23)  # another question
    assert len(measured) > count
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_finished_run_left_behind_is_taken_away(small, tmp_path):
    """As after a kill between the result and the removal of its shards."""
    folder = stopped("dense", tmp_path, 60)
    shutil.copytree(folder, tmp_path / "aside")
    extract("dense", tmp_path)
    shutil.move(tmp_path / "aside", folder)
    extract("dense", tmp_path)
    assert not folder.exists()


def test_another_process_at_the_same_work_is_left_alone(small, tmp_path):
    folder = stopped("dense", tmp_path, 40)
    other = Folder(folder)
    other.lock()
    before = contents(folder)
    with pytest.raises(BlockingIOError, match=r"another process is extracting the same Fishers into .*partial: wait for it, or give another cache="):
        extract("dense", tmp_path)
    assert contents(folder) == before
    extract("dense", tmp_path, budget=None, diagonal=True)  # other work is none of its business
    other.unlock()
    extract("dense", tmp_path)


# ---------------------------------------------------------------------------------------------------------- disks


def full(*arguments, **named):
    raise OSError(errno.ENOSPC, "No space left on device")


def from_call(number: int, then, call):
    """``call``, and from its ``number``-th time on ``then``."""
    times = []

    def either(*arguments, **named):
        times.append(1)
        return (then if len(times) >= number else call)(*arguments, **named)

    return either


@pytest.mark.parametrize("where", ["a shard", "the last shard", "putting together", "the result", "the plan"])
@pytest.mark.parametrize("kind", ["sketch", "dense"])
def test_a_full_disk_is_one_clear_error_and_loses_nothing(kind, where, whole, small, measured, tmp_path, monkeypatch):
    older = tmp_path / "older.pefs"
    extract("dense", n=5).save(older)
    before = contents(older)
    shards = -(-N // 8)
    if where == "putting together":
        if not hasattr(os, "posix_fallocate"):
            pytest.skip("room cannot be asked for on this system")
        monkeypatch.setattr(os, "posix_fallocate", full)
    elif where == "the plan":
        monkeypatch.setattr(_files.os, "fdopen", full)
    elif where == "the result":
        call = _files.write_folder
        monkeypatch.setattr(
            "npeff_nb.fisher.pefs._files.write_folder", lambda *a, **k: (monkeypatch.setattr(_files, "save_file", full), call(*a, **k))[1]
        )
    else:
        monkeypatch.setattr(_files, "save_file", from_call(3 if where == "a shard" else shards - 1, full, _files.save_file))
    measured.clear()
    with pytest.raises(OSError, match=r"No space left on device") as error:
        extract(kind, tmp_path)
    assert not isinstance(error.value, ValueError)
    assert contents(older) == before
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".pefs" and not p.name.startswith(".")] == ["older.pefs"]
    assert not list(tmp_path.glob(".*"))
    finished = finished_rows(partial(tmp_path))
    assert bool(finished) == (where != "the plan")
    monkeypatch.undo()
    make_small(monkeypatch.setattr)
    shutil.move(older, tmp_path.parent / f"{tmp_path.name}-older")
    extract(kind, tmp_path)
    assert contents(only_result(tmp_path)) == whole[kind]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on files here")
def test_a_disk_that_takes_no_more_really(small, tmp_path):
    """As told by the system itself, in the middle of a file: not a simulated error."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))  # a shard has 8 · 2 · 3840 numbers of four bytes; the factors of all 2.7 MB
    try:
        with pytest.raises(OSError, match=r"[Ff]ile too large"):
            extract("dense", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("*.pefs"))
    assert [p for p in partial(tmp_path).iterdir() if "building" in p.name or p.name.startswith(".")] == []
    assert finished_rows(partial(tmp_path)) == set(range(N))
    assert len(extract("dense", tmp_path)) == N


@pytest.mark.parametrize("at", ["mkdir", "mkstemp"])
def test_a_folder_that_may_not_be_written(at, small, tmp_path, monkeypatch):
    def refused(*arguments, **named):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Path if at == "mkdir" else _files.tempfile, at, refused)
    with pytest.raises(PermissionError, match="Permission denied"):
        extract("dense", tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.pefs"))


# ---------------------------------------------------------------------------------------------------------- memory


@pytest.fixture
def room(monkeypatch):
    """Batches of more positions than ``room["for"]`` do not fit, as torch's own allocators say it."""
    asked = {"for": 10**9, "error": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "fitted": [], "failed": []}
    call = Measure.__call__

    def limited(self, subject, tape, batch):
        cost = len(batch) * int(subject.batches.lengths[batch].max())
        asked["failed" if cost > asked["for"] else "fitted"].append(batch.tolist())
        if cost > asked["for"]:
            raise asked["error"]
        return call(self, subject, tape, batch)

    monkeypatch.setattr(Measure, "__call__", limited)
    return asked


OUT_OF_MEMORY = {
    "accelerator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "torch on a processor": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."
    ),
    "torch on Windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    "numpy": MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,) and data type float64"),
    "python": MemoryError(),
}


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY.keys())
def test_a_batch_that_does_not_fit_is_halved(error, room):
    """Batches of 16 examples of up to ten tokens, room for 30."""
    expected = extract("dense", batch_size=16)
    room |= {"for": 30, "error": error}
    room["fitted"].clear()
    found = extract("dense", batch_size=16)
    np.testing.assert_allclose(found.factors, expected.factors, atol=1e-5 * np.abs(expected.factors).max())
    np.testing.assert_allclose(found.norms, expected.norms, rtol=1e-5)
    assert found.examples.equals(expected.examples)
    assert sorted(row for batch in room["fitted"] for row in batch) == list(range(N))
    # What did not fit once is not tried again: 160, 80, 40 positions, and then only what is at most half of that.
    assert len(room["failed"]) <= 4


def test_an_example_that_alone_does_not_fit_is_named(room):
    room["for"] = 6
    words = r"example \d+ alone does not fit into memory \((7|8|9|10) positions\): choose fewer parameters=, fewer classes=, or a smaller budget="
    with pytest.raises(MemoryError, match=words) as error:
        extract("dense", batch_size=16)
    assert isinstance(error.value.__cause__, torch.OutOfMemoryError)


def test_another_error_is_not_taken_for_too_little_memory(room):
    room |= {"for": 30, "error": RuntimeError("mat1 and mat2 shapes cannot be multiplied")}
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        extract("dense", batch_size=16)
    assert len(room["failed"]) == 1


def test_a_result_on_disk_is_put_together_there(tmp_path):
    """40 shards of 100 examples: what is held at once is a shard, not the result."""
    n, k, d = 4000, 2, 300
    shelf, order = Folder(tmp_path / "x.partial"), np.random.default_rng(0).permutation(n)
    names = [f"shard-0-{i:05d}" for i in range(40)]
    for i, name in enumerate(names):
        rows = order[100 * i : 100 * (i + 1)]
        features = np.broadcast_to(rows[:, None, None], (100, k, d)).astype(np.float32)
        shelf.put(
            name,
            {"rows": rows, "each.features": features, "each.norms": rows.astype(float), "sum.kept": np.array([1.0]), "sum.diagonal": np.zeros(0)},
        )
    del features
    tracemalloc.start()
    try:
        shards = [(name, [order[100 * i : 100 * (i + 1)]]) for i, name in enumerate(names)]
        result = loop._together(n, shards, shelf, measure=None)  # type: ignore[arg-type] - asked only for sparse results
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(result.factors, Path)
    assert peak < 0.2 * (4 * n * k * d), peak  # 9.6 MB in all, 0.24 MB a shard
    factors = _files.map_array(result.factors)
    np.testing.assert_array_equal(factors, np.broadcast_to(np.arange(n)[:, None, None], (n, k, d)))
    np.testing.assert_array_equal(result.each["norms"], np.arange(n))
    assert result.sums["kept"] == 40


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(60, 50), nn.Linear(50, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.first(x)))


def test_memory_does_not_grow_with_the_examples(tmp_path, monkeypatch):
    """Twice the examples, the same memory: factors of 300 and of 600 examples take 3.7 and 7.3 MB."""
    monkeypatch.setattr(loop, "SHARD_EXAMPLES", 32)
    model, peaks = tiny.seeded(Wide), {}
    for n in (300, 600):
        inputs = torch.randn(n, 60, generator=torch.Generator().manual_seed(0))
        tracemalloc.start()
        try:
            pefs = extract_fishers(model, logits=tiny.plain_logits, inputs=inputs, features="dense", cache=tmp_path, progress=False)
            peaks[n] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert isinstance(pefs.factors, np.memmap)
    assert pefs.factors.nbytes > 7e6
    assert peaks[600] - peaks[300] < 0.15 * pefs.factors.nbytes / 2, peaks


# ---------------------------------------------------------------------------------------------------------- numbers that are none


class Brittle(nn.Module):
    """Where the first input is 77 the logits are NaN; where it is 78 they are finite, and their gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        x, which = torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], 1), x[:, 0]
        h = self.first(x)
        fine = (which != 78).to(h)
        size = (h.square().sum(1) * fine).sqrt()  # √0 has no slope
        z = self.out(torch.tanh(h)) + torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 3) * size[:, None]
        return torch.where((which == 77)[:, None], torch.nan, z)


BAD = {"logits": 77.0, "gradients": 78.0}
PLACES = {"first": 0, "in the middle": 7, "last": 14}
FEATURES = {"dense": {"features": "dense"}, "sketch": {"features": "sketch", "budget": 20}, "reduced": {"features": "reduced", "budget": 8},
            "gram": {"features": "gram"}, "topk": {"features": "topk", "budget": 30}}  # fmt: skip
every_bad = pytest.mark.parametrize("bad", BAD)
every_place = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
every_feature = pytest.mark.parametrize("features", FEATURES)


def brittle(bad: str | None, place: int, **settings):
    inputs = torch.randn(15, 5, generator=torch.Generator().manual_seed(1))
    if bad is None:
        inputs = torch.cat([inputs[:place], inputs[place + 1 :]])
    else:
        inputs[place, 0] = BAD[bad]
    return extract_fishers(
        tiny.seeded(Brittle), logits=tiny.plain_logits, inputs=inputs, parameters="all", **{"batch_size": 4, "progress": False} | settings
    )


@every_place
@every_bad
@every_feature
def test_numbers_that_are_none_are_named(features, bad, place):
    words = {"logits": "logits that are not finite for 1 of", "gradients": "gradients are not finite for 1 of"}[bad]
    with pytest.raises(ValueError, match=rf"{words} \d+ examples in one batch, the first being row {place}\b.*on_nan='mask'"):
        brittle(bad, place, **FEATURES[features])


@every_place
@every_bad
@every_feature
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numbers_that_are_none_can_be_masked(features, bad, place):
    """Such an example has a zero Fisher; all others are as if it were not there."""
    found, without = (
        brittle(bad, place, on_nan="mask", diagonal=True, **FEATURES[features]),
        brittle(None, place, diagonal=True, **FEATURES[features]),
    )
    others = np.delete(np.arange(15), place)
    table = found.to_frame()
    assert np.flatnonzero(table["masked"]).tolist() == [place]
    assert "masked" not in without.to_frame()
    assert (found.norms[place], found.traces[place]) == (0, 0)
    assert not found.factors[place].any()
    for name in ("factors", "logits", "norms", "traces"):
        assert np.isfinite(getattr(found, name)).all(), name
    np.testing.assert_allclose(found.norms[others], without.norms, rtol=1e-5)
    np.testing.assert_allclose(found.traces[others], without.traces, rtol=1e-5)
    np.testing.assert_allclose(found.logits[others], without.logits, atol=1e-5)
    np.testing.assert_allclose(found.parameters["energy"], without.parameters["energy"], rtol=1e-5)
    np.testing.assert_allclose(found.diagonal * 15, without.diagonal * 14, rtol=1e-4, atol=1e-6 * np.abs(without.diagonal).max())
    if features in ("dense", "gram", "topk"):  # elsewhere the directions come from other examples
        rows, expected = (x.reshape(28, -1) if features != "topk" else x.reshape(42, -1) for x in (found.factors[others], without.factors))
        np.testing.assert_allclose(rows @ rows.T, expected @ expected.T, atol=1e-4 * np.abs(expected @ expected.T).max())
    else:
        assert found.facts["energy_kept"] > 0.5
    npeff = NPEFF(2, n_init=1, random_state=0).fit(found)
    assert not npeff.coefficients_[place].any()
    assert np.isfinite(npeff.components_).all()
    assert (npeff.coefficients_ @ np.ones(2))[others].all()


@every_bad
def test_a_mask_where_nothing_is_wrong_changes_nothing(bad):
    plain, masked = brittle(None, 3, features="dense"), brittle(None, 3, features="dense", on_nan="mask")
    np.testing.assert_array_equal(plain.factors, masked.factors)
    assert "masked" not in masked.to_frame()


@pytest.mark.parametrize("diagonal", [3, 100])
def test_a_masked_example_s_own_diagonal_is_zero(diagonal):
    for bad in BAD:
        found, without = brittle(bad, 7, on_nan="mask", diagonal=diagonal), brittle(None, 7, diagonal=diagonal)
        assert not found.diagonals.values[7].any()
        assert found.diagonals.norms[7] == 0
        np.testing.assert_allclose(np.delete(found.diagonals.norms, 7), without.diagonals.norms, rtol=1e-5)


def test_nothing_but_masked_examples_is_said_so():
    inputs = torch.full((4, 5), 77.0)
    with pytest.raises(ValueError, match=r"all 4 Fishers are zero: .* \(4 were masked because their numbers were not finite\)"):
        extract_fishers(tiny.seeded(Brittle), logits=tiny.plain_logits, inputs=inputs, on_nan="mask", progress=False)


class BrittleAndTied(nn.Module):
    """As :class:`Brittle`, with a table that is read out by a function: a use that is found by a look at one example."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle = nn.Embedding(7, 5), nn.Linear(5, 5)

    def forward(self, ids):
        h = self.middle(self.table(ids)).mean(1)
        fine = (ids[:, 0] != 5).to(h)
        size = (h.square().sum(1) * fine).sqrt()
        z = (
            torch.nn.functional.linear(torch.tanh(h), self.table.weight)
            + torch.nn.functional.one_hot(torch.zeros(len(ids), dtype=torch.long), 7) * size[:, None]
        )
        return torch.where((ids[:, 0] == 6)[:, None], torch.nan, z)


@pytest.mark.filterwarnings("ignore:no formula for")
@pytest.mark.parametrize("first_token", [6, 5], ids=["logits", "gradients"])
def test_a_masked_example_does_not_hide_how_parameters_are_used(first_token):
    ids = torch.tensor([[1, 2, 2], [0, 6, 3], [4, 4, 4], [3, 0, 1], [first_token, 1, 1]])
    model = tiny.seeded(BrittleAndTied)
    found = extract_fishers(model, logits=tiny.plain_logits, inputs=ids, parameters="all", features="dense", on_nan="mask", progress=False)
    for i in range(4):
        expected = twins.fisher_rows(model, tiny.plain_logits, ids[i : i + 1], list(found.parameters["name"]))
        assert twins.relative_distance(found.factors[i], expected) < 1e-5


def poisoned(model, batch):
    """NaN for texts that contain *where*."""
    z = SequenceClasses().logits(model, batch)
    where = tiny.tokenizer().convert_tokens_to_ids("where")
    return torch.where(batch["input_ids"].eq(where).any(1, keepdim=True), torch.nan, z)


def test_edits_are_judged_without_masked_examples():
    table = tiny.table(40)
    bad = np.flatnonzero(table["text"].str.contains("where"))
    assert 0 < len(bad) < 20
    pefs = extract_fishers(tiny.bert(), tiny.tokenizer(), table, logits=poisoned, on_nan="mask", features="dense", progress=False)
    assert np.flatnonzero(pefs.to_frame()["masked"]).tolist() == bad.tolist()
    npeff = NPEFF(3, n_init=1, random_state=0).fit(pefs)
    npeff.profile(progress=False)
    for profile in npeff.profiles.values():
        edit = profile["edit"]
        assert not set(bad.tolist()) & {*edit["top"], *edit["baseline"], *edit["shown"]}
        assert np.isfinite([*edit["kl_top"], *edit["kl_baseline"], *edit["kl_random"]]).all()
        assert len(edit["baseline"]) > 5
    assert len(npeff.component_table()) == 3


def test_masked_examples_are_saved_as_such(tmp_path):
    found = brittle("logits", 7, on_nan="mask", features="dense")
    back = nb.load(found.save(tmp_path / "x.pefs"))
    pd.testing.assert_frame_equal(back.to_frame(), found.to_frame(), check_dtype=False)
    assert len(found.filter("masked == False")) == 14


# ---------------------------------------------------------------------------------------------------------- progress, and stopping


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("kind", ["sketch", "reduced", "dense", "topk"])
def test_progress_is_told_up_to_the_end(kind, on_disk, small, tmp_path):
    told: list[tuple[int, int, str]] = []
    settings = SETTINGS.get(kind, {"features": "topk", "budget": 9})
    extract_fishers(
        tiny.bert(), tiny.tokenizer(), tiny.table(N), cache=tmp_path if on_disk else None, progress=lambda *now: told.append(now), **settings
    )
    done = [now for now, _, _ in told]
    assert done[0] == 0
    assert done[-1] == N
    assert done == sorted(done)
    assert len(set(done)) > 10
    assert {total for _, total, _ in told} == {N}
    assert {what for _, _, what in told} == {f"Fishers ({kind})"}


@pytest.mark.parametrize("on_disk", [False, True])
@every_kind
def test_a_run_can_be_told_to_stop(kind, on_disk, whole, small, measured, tmp_path):
    model = tiny.bert()
    before = twins.state(model)
    with pytest.raises(Cancelled):
        extract(kind, tmp_path if on_disk else None, model=model, progress=stop_after(70))
    twins.assert_untouched(model, before)
    if not on_disk:
        assert not list(tmp_path.iterdir())
        return
    finished = finished_rows(partial(tmp_path))
    assert len(finished) >= 70 - 12
    measured.clear()
    told: list[int] = []
    extract(kind, tmp_path, model=model, progress=lambda now, total, what: told.append(now))
    assert sorted(row for batch in measured for row in batch) == sorted(set(range(N)) - finished)
    assert told[-1] == N
    assert contents(only_result(tmp_path)) == whole[kind]


@every_kind
def test_an_interrupt_inside_a_batch(kind, whole, small, measured, tmp_path, monkeypatch):
    """Ctrl-C in the middle of the network."""
    model = tiny.bert()
    before = twins.state(model)
    middle = type(model.bert.encoder.layer[1])
    forward = middle.forward
    monkeypatch.setattr(middle, "forward", lambda *a, **k: _interrupt() if len(measured) == 13 else forward(*a, **k))
    with pytest.raises(KeyboardInterrupt):
        extract(kind, tmp_path, model=model)
    twins.assert_untouched(model, before)
    finished = finished_rows(partial(tmp_path))
    assert finished
    monkeypatch.undo()
    make_small(monkeypatch.setattr)
    found: list[int] = []
    call = Measure.__call__
    monkeypatch.setattr(Measure, "__call__", lambda self, subject, tape, batch: (found.extend(batch.tolist()), call(self, subject, tape, batch))[1])
    extract(kind, tmp_path, model=model)
    assert sorted(found) == sorted(set(range(N)) - finished)
    assert contents(only_result(tmp_path)) == whole[kind]


def _interrupt():
    raise KeyboardInterrupt


if __name__ == "__main__":
    main(Path(sys.argv[1]))
