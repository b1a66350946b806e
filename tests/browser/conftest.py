"""Servers that the tests share, and a small decomposition to look at."""

from __future__ import annotations

import copy

import pytest
from jupyter import serving


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A JupyterLab."""
    with serving("lab", tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="session")
def notebook7(tmp_path_factory):
    """A Notebook 7."""
    with serving("notebook", tmp_path_factory.mktemp("notebook")) as server:
        yield server


@pytest.fixture(scope="session")
def small(fitted_once, tmp_path_factory):
    """A saved decomposition of four components with all profiles, which a kernel opens without torch."""
    own = copy.copy(fitted_once)
    own.labels, own.notes, own.stars, own.profiles = {}, {}, set(), {}
    return own.profile(progress=False).save(tmp_path_factory.mktemp("small") / "small.npeff")
