"""Shared fixtures.  This file also puts tests/ on the path, so that any test can import ``tiny`` and ``twins``."""

from __future__ import annotations

import copy

import pytest
import tiny

from npeff_nb import cli
from npeff_nb.fisher.extract import extract_fishers
from npeff_nb.npeff import NPEFF


@pytest.fixture
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture
def bert():
    """A model of its own for every test: tests may leave it in pieces."""
    return tiny.bert()


@pytest.fixture(scope="session")
def shared():
    """PEFs of a tiny BERT in dense coordinates over the default parameters; tests read it and change nothing."""
    return extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.table(), features="dense", progress=False)


@pytest.fixture(scope="session")
def fitted_once(shared):
    return NPEFF(4, n_init=1, random_state=0).fit(shared)


@pytest.fixture
def npeff(fitted_once):
    """A decomposition of ``shared`` whose table, coefficients, names and profiles are the test's own; the subject behind it is shared."""
    own = copy.copy(fitted_once)
    own.examples = fitted_once.examples.copy()
    own.coefficients_, own.labels, own.notes, own.stars, own.profiles = fitted_once.coefficients_.copy(), {}, {}, set(), {}
    return own


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory):
    """What ``npeff-nb demo`` writes, made once: the whole way on real input, with fewer questions and components."""
    output = tmp_path_factory.mktemp("demo") / "demo"
    assert cli.main(["demo", "--output", str(output), "--examples", "240", "--components", "6", "--quiet"]) == 0
    return output
