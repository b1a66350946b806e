"""The command, run as a person would, on fewer questions."""

import json
import subprocess
import sys

import pandas as pd
import pytest

import npeff_nb as nb
from npeff_nb import cli


def test_demo_writes_everything_that_it_promises(demo_run):
    assert {p.name for p in demo_run.iterdir()} == {"report.html", "components.csv", "decomposition.npeff", "summary.json"}
    summary = json.loads((demo_run / "summary.json").read_text())
    assert summary["n_examples"] == 240 and summary["n_components"] == 6
    assert 0 < summary["explained_variance"] < 1
    assert set(summary["kl_ratio"]) == {str(k) for k in range(6)}
    assert all(set(signs) == {"+", "-"} for signs in summary["kl_ratio"].values())
    assert set(summary["seconds"]) == {"load", "extract", "fit", "profile", "write"}
    table = pd.read_csv(demo_run / "components.csv")
    assert list(table["component"]) == list(range(6))


def test_demo_components_beat_chance_and_random_directions(demo_run):
    """Not a figure to quote (so few questions): only that the whole way through carries signal, and in the right direction."""
    summary = json.loads((demo_run / "summary.json").read_text())
    fine, edit = summary["fine_labels"], summary["edit"]
    assert fine["mean_purity"] > fine["mean_expected_from_coarse"]
    assert edit["median_kl_ratio"]["-"] > 1 > edit["median_kl_ratio_random"]["-"]
    assert edit["median_kl_top"]["-"] > 100 * edit["median_kl_top_random"]["-"]


def test_demo_decomposition_opens_again(demo_run):
    npeff = nb.load(demo_run / "decomposition.npeff")
    assert npeff.coefficients_.shape == (240, 6)
    assert set(npeff.profiles) == set(range(6))
    pd.testing.assert_series_equal(npeff.component_table()["name"], pd.read_csv(demo_run / "components.csv")["name"], check_dtype=False)


def test_component_numbers_that_make_no_sense_are_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", "--output", "x", "--components", "0"])
    assert ended.value.code == 2 and "0 is not a positive number" in capsys.readouterr().err


def test_failure_is_one_line_and_leaves_nothing(tmp_path, capsys):
    output = tmp_path / "out"
    assert cli.main(["demo", "--output", str(output), "--examples", "3", "--components", "40", "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("npeff-nb: n_components=40 is more than these Fishers can carry: 3 examples have") and error.count("\n") == 1
    assert list(output.iterdir()) == []


def test_output_that_is_a_file_is_refused(tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert cli.main(["demo", "--output", str(taken), "--examples", "3"]) == 1
    assert "taken" in capsys.readouterr().err and taken.read_text() == "mine"


def test_interrupt_ends_with_its_own_status(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("npeff_nb.demo.run.run_demo", interrupted)
    assert cli.main(["demo", "--output", "x"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_help_and_version_come_without_torch():
    code = "import sys; from npeff_nb import cli; cli.main(['--version'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == nb.__version__
