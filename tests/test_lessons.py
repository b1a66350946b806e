"""The lessons' own code, from first to last cell in a fresh kernel; lesson 1 is also used by hand in a real JupyterLab (tests/browser)."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

LESSONS = Path(__file__).parent.parent / "notebooks"
LONGEST = 900
"""Seconds for one cell: nobody waits that long, and continuous integration is not free."""


def run(name: str, folder: Path, **smaller: str) -> str:
    """All that a lesson prints, with some of its numbers made smaller."""
    lesson = nbformat.read(LESSONS / name, as_version=4)
    for cell in lesson.cells:
        for written, instead in smaller.values():
            cell.source = cell.source.replace(written, instead)
    NotebookClient(lesson, timeout=LONGEST, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    printed = [output.get("text", "") or output.get("data", {}).get("text/plain", "") for cell in lesson.cells for output in cell.get("outputs", [])]
    return "\n".join(printed)


def test_turning_a_strategy_down_and_inside_the_network(tmp_path, monkeypatch):
    """Fewer questions than in the lessons; both find the same Fishers beside them."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    smaller = {"questions": ("demo.sample(2000)", "demo.sample(500)"), "components": ("n_components=32", "n_components=16")}
    told = run("02_turning_a_strategy_down.ipynb", tmp_path, **smaller, grid=("strengths = [0.1, 0.2, 0.3, 0.6]", "strengths = [0.1, 0.3]"))
    moved = re.search(r"inside the block (\d+) parameters differ; afterwards all are the same to the bit: (\w+)", told)
    assert int(moved[1]) > 30 and moved[2] == "True"
    down, up = (float(x) for x in re.search(r"from ([+-][\d.]+) to ([+-](?:[\d.]+|inf))", told).groups())
    assert -0.6 < down < 0 < up
    told = run("03_inside_the_network.ipynb", tmp_path, **smaller)
    assert "[CLS]" in told and re.search(r"[\d,]+ edges", told)
    checks = re.search(r"a real step of 0\.001\n((?:[A-Z]+ +.*\n?)+)", told)[1]
    for line in checks.strip().splitlines():
        introduced, derivative, step = (float(x) for x in line.split()[1:])
        assert abs(introduced - derivative) <= 2e-3 and abs(step - derivative) <= 0.05 * max(1, abs(derivative)), line


def test_the_language_model(tmp_path, monkeypatch):
    """Fewer prompts than in the lesson: each costs seconds."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    told = run(
        "04_language_model.ipynb",
        tmp_path,
        prompts=("load_language_demo(n=200)", "load_language_demo(n=16)"),
        components=("n_components=8", "n_components=4"),
        next_tokens=("head(16)", "head(2)"),
    )
    assert "The critic's opinion of the movie is" in told
    assert "PEFs(16 examples, 1 factor row," in told
    assert "4 components explain" in told
    right = int(re.search(r"right: (\d+)% of 16", told)[1])
    assert right > 60
    mean, least = (int(x) for x in re.search(r"retained: (\d+)% of the trace on average, (\d+)% at least", told).groups())
    assert 50 < least <= mean < 100
    assert max(float(x) for x in re.findall(r"largest memory so far: ([\d.]+) GB", told)) < 8


def test_every_lesson_has_no_output_and_no_path_of_a_machine():
    """What a lesson shows is made by who reads it."""
    for path in LESSONS.glob("*.ipynb"):
        lesson = nbformat.read(path, as_version=4)
        assert not any(cell.get("outputs") for cell in lesson.cells), path.name
        assert "/home/" not in path.read_text(encoding="utf-8")
