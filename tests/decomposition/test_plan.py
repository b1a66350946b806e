"""What a fit is going to do, for which sizes, and that it takes no more memory than was said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from npeff_nb.decomposition import rows as rows_module
from npeff_nb.decomposition.minibatch import BATCH
from npeff_nb.decomposition.plan import SMALLEST_BASIS, WORTH_A_BASIS, Plan, physical_memory, plan

FEW = WORTH_A_BASIS * SMALLEST_BASIS
"""Features from which on 64 coordinates are worth finding."""


def planned(n: int, k: int, d: int, r: int, solver: str = "hals", reduction: str | float = "auto") -> Plan:
    return plan(n, k, d, r, solver, reduction, BATCH)


@pytest.mark.parametrize(
    ("sizes", "settings", "form", "size"),
    [
        ((1000, 3, FEW, 8), {}, "rows", FEW),
        ((1000, 3, FEW + 1, 8), {}, "sketch", 64),
        ((1000, 3, 100_000, 8), {}, "sketch", 64),
        ((1000, 3, 100_000, 200), {}, "sketch", 400),
        ((1000, 3, 100_000, 200), {"reduction": "none"}, "rows", 100_000),
        # Fewer rows than a basis has directions: their inner products are all there is.
        ((20, 3, WORTH_A_BASIS * 60 + 1, 8), {}, "gram", 60),
        ((20, 3, WORTH_A_BASIS * 60, 8), {}, "rows", WORTH_A_BASIS * 60),
        ((21, 3, 100_000, 40), {}, "gram", 63),
        ((1000, 3, 10, 8), {"reduction": "gram"}, "gram", 3000),
        ((1000, 3, 10, 8), {"reduction": 0.9}, "basis", 64),
        ((20, 3, 10, 8), {"reduction": 1.0}, "basis", 60),
        ((1000, 3, 100_000, 8), {"solver": "multiplicative"}, "rows", 100_000),
        ((1000, 3, 100_000, 8), {"solver": "stiefel"}, "rows", 100_000),
        ((1000, 3, 100_000, 8), {"solver": "minibatch"}, "mini-batch", BATCH),
    ],
)
def test_which_form_for_which_sizes(sizes, settings, form, size):
    found = planned(*sizes, **settings)
    assert (found.form, found.size) == (form, size)
    assert found.peak_bytes > 0


def test_the_plan_in_words():
    assert planned(1000, 3, 100, 8).why == "over the rows as they are, 3,000 × 100"
    assert planned(1000, 3, 100_000, 8).why == "first in 64 coordinates that sketch 100,000, then over the rows"
    assert planned(1000, 3, 100, 8, reduction=0.9).why == "first in coordinates with 0.9 of the energy, from 64 up, then over the rows"
    assert planned(1000, 3, 100, 8, reduction="gram").why == "over the 3,000 × 3,000 inner products of the rows"
    assert planned(10_000, 3, 100, 8, solver="minibatch").why == "1,024 of 10,000 examples at a time"
    assert str(Plan("rows", 5, 3 * 2**30, "so")) == "so; at most 3 GB of memory beside the Fishers"
    assert str(Plan("rows", 5, 2**20 // 2, "so")) == "so; at most 0.5 MB of memory beside the Fishers"


def test_memory_grows_with_what_it_is_made_of():
    base = planned(10_000, 2, 100, 16).peak_bytes
    assert planned(20_000, 2, 100, 16).peak_bytes > base
    assert planned(10_000, 4, 100, 16).peak_bytes > base
    assert planned(10_000, 2, 200, 16).peak_bytes == base + 8 * (20_000 + 6 * 16) * 100  # rows that are held, and components
    assert planned(10_000, 2, 100, 32).peak_bytes > base
    # Rows that are too many to be held are not copied as a whole: what they take is no more than a part, and a sample for the starts.
    large = planned(10**6, 2, 1000, 16)
    assert large.peak_bytes < 4 * 10**6 * 2 * 1000
    assert planned(2 * 10**6, 2, 1000, 16).peak_bytes < 2 * large.peak_bytes


def test_physical_memory_is_a_number_or_unknown(monkeypatch):
    found = physical_memory()
    assert found is None or found > 2**27
    monkeypatch.setattr(os, "sysconf", lambda name: (_ for _ in ()).throw(ValueError(name)), raising=False)
    assert physical_memory() is None


MEASURED = """
import json, sys
from pathlib import Path
import numpy as np
from npeff_nb import NPEFF
from npeff_nb.decomposition import rows

def memory(what):
    return 1024 * int(Path("/proc/self/status").read_text().split(what + ":")[1].split()[0])

shape, settings, held_up_to = json.loads(sys.argv[1])
rows.CONVERTED_UP_TO = held_up_to
rows.PART = 2**22
draw = np.random.default_rng(0)
npeff = NPEFF(64, n_init=2, max_iter=1, tol=0, random_state=0, **settings)
NPEFF(2, n_init=1, max_iter=1, **settings).fit(draw.standard_normal((300, 1, 64), dtype=np.float32))  # what libraries load when they are first used
X = draw.standard_normal(shape, dtype=np.float32)
before = memory("VmRSS")
npeff.fit(X)
print(json.dumps([npeff.plan_.form, npeff.plan_.peak_bytes, memory("VmHWM") - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the kernel's own account of a process's memory")
@pytest.mark.parametrize(
    ("form", "shape", "settings", "held_up_to"),
    [
        ("rows", (20_000, 1, 100), {"reduction": "none"}, rows_module.CONVERTED_UP_TO),
        ("sketch", (4000, 1, 4000), {}, rows_module.CONVERTED_UP_TO),
        ("basis", (20_000, 1, 400), {"reduction": 0.1}, rows_module.CONVERTED_UP_TO),
        ("gram", (4000, 1, 50), {"reduction": "gram"}, rows_module.CONVERTED_UP_TO),
        ("mini-batch", (20_000, 1, 100), {"solver": "minibatch"}, 0),  # by parts
    ],
)
def test_a_fit_takes_no_more_memory_than_was_said(form, shape, settings, held_up_to):
    """And not a small part of it: a plan that frightens people away is wrong too.  In a process of its own, whose peak is the fit's."""
    given = json.dumps([shape, settings, held_up_to])
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, given], capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    found, stated, measured = json.loads(done.stdout)
    assert found == form
    assert measured <= stated <= 3 * measured
