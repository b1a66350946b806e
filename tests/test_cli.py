"""The command, run as a person would, on fewer questions."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tiny

import npeff_nb as nb
from npeff_nb import cli

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
"""Sums in another order are other bytes."""


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


# ------------------------------------------------------------------------------------------------------------------------ extract


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a classifier, its tokenizer and a table, as people have them."""
    folder = tmp_path_factory.mktemp("saved")
    model = tiny.bert()
    model.save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    tiny.table(24).assign(label="LABEL_1").to_csv(folder / "texts.csv", index=False)
    (folder / "texts.txt").write_text("\n".join(tiny.TEXTS) + "\n\n")
    return folder


def test_extract_writes_what_the_function_gives(saved, tmp_path, capsys):
    asked = ["extract", "--model", str(saved / "model"), "--examples", str(saved / "texts.csv"), "--output", str(tmp_path / "my.pefs"), "--quiet"]
    assert cli.main([*asked, "--features", "dense", "--parameters", "attention & layers 0-0", "--batch-size", "5", "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "attention query" in told and "nb.load(" in told
    found = nb.load(tmp_path / "my.pefs")
    table = pd.read_csv(saved / "texts.csv")
    model = tiny.bert()
    expected = nb.extract_fishers(model, tiny.tokenizer(), table, features="dense", parameters="attention & layers 0-0", batch_size=5, progress=False)
    np.testing.assert_allclose(found.factors, expected.factors, atol=1e-6 * np.abs(expected.factors).max())  # another process's rounding
    assert found.attach(model, tiny.tokenizer()).subject is not None
    assert [p.name for p in tmp_path.iterdir()] == ["my.pefs"]  # the folder of work in progress is gone


def test_extract_reads_a_plain_list_and_several_processes_share_it(saved, tmp_path):
    """As torchrun starts them; the bytes are those of one process."""
    asked = ["extract", "--model", str(saved / "model"), "--examples", str(saved / "texts.txt"), "--features", "sketch", "--quiet", "--output"]
    alone = subprocess.run([sys.executable, "-m", "npeff_nb", *asked, str(tmp_path / "one")], capture_output=True, text=True, env=ONE_THREAD)
    assert alone.returncode == 0, alone.stderr
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "npeff_nb"]
    both = subprocess.run([*launcher, *asked, str(tmp_path / "two")], capture_output=True, text=True, env=ONE_THREAD)
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("PEFs(8 examples") == 1
    for name in ("factors.array.safetensors", "arrays.safetensors", "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--examples": "nothing.csv"}, "nothing.csv does not exist"),
        ({"--examples": "texts.xlsx"}, "tables are read from .csv, .tsv, .jsonl, .json, .parquet and .txt"),
        ({"--classes": "many"}, "classes='many': give 'auto', 'all'"),
        ({"--task": "label-words"}, "--task label-words needs --words"),
        ({"--task": "next-token", "--words": "yes no"}, "--words are the classes of --task label-words, not of next-token"),
        ({"--parameters": "nonsense"}, "matches none of the model's"),
    ],
)
def test_extract_says_in_one_line_what_is_wrong(change, words, saved, tmp_path, capsys):
    (saved / "texts.xlsx").touch()
    options = {"--model": str(saved / "model"), "--examples": "texts.csv", "--output": str(tmp_path / "out")} | change
    options["--examples"] = str(saved / options["--examples"])
    flat = [part for key, value in options.items() for part in (key, *(value.split() if key == "--words" else [value]))]
    assert cli.main(["extract", *flat, "--quiet"]) == 1
    error = capsys.readouterr().err
    assert words in error and error.startswith("npeff-nb: ") and "Traceback" not in error
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------------------ fit


def test_fit_writes_what_the_estimator_finds(shared, tmp_path, capsys):
    shared.save(tmp_path / "my.pefs")
    asked = ["fit", str(tmp_path / "my.pefs"), "--output", str(tmp_path / "my.npeff"), "--table", str(tmp_path / "my.csv"), "--components", "3"]
    assert cli.main([*asked, "--seed", "5", "--starts", "2"]) == 0
    told = capsys.readouterr()
    assert "3 components explain" in told.out and "converged" in told.out and "nb.load(" in told.out
    assert "inner products of the rows; at most" in told.out, "the plan is told before it starts"
    found, expected = nb.load(tmp_path / "my.npeff"), nb.NPEFF(3, n_init=2, random_state=5).fit(shared)
    np.testing.assert_array_equal(found.components_, expected.components_)
    assert list(pd.read_csv(tmp_path / "my.csv")["component"]) == [0, 1, 2]


def test_fit_is_shared_by_several_processes(shared, tmp_path):
    """As torchrun starts them; all examples have their coefficients in the end."""
    shared.save(tmp_path / "my.pefs")
    asked = ["fit", str(tmp_path / "my.pefs"), "--components", "3", "--starts", "1", "--tol", "1e-12", "--quiet"]
    asked += ["--output", str(tmp_path / "two")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "npeff_nb"]
    done = subprocess.run([*launcher, *asked], capture_output=True, text=True, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 components explain") == 1
    found, expected = nb.load(tmp_path / "two"), nb.NPEFF(3, n_init=1, tol=1e-12, random_state=0).fit(shared)
    # Processes sum over rows, one process over their inner products: near the minimum both are as near as float32 lets them.
    np.testing.assert_allclose(found.components_, expected.components_, atol=1e-5)
    np.testing.assert_allclose(found.coefficients_, expected.coefficients_, atol=1e-5)
    assert len(found.examples) == len(shared)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--components", "1000"], "n_components=1000 is more than these Fishers can carry"),
        (["--tol", "-1"], "tol=-1.0: it must be a finite number that is not negative"),
        (["--solver", "multiplicative", "--components", "2", "--device", "nowhere"], "device='nowhere' cannot be used here"),
    ],
)
def test_fit_says_in_one_line_what_is_wrong(more, words, shared, tmp_path, capsys):
    shared.save(tmp_path / "my.pefs")
    assert cli.main(["fit", str(tmp_path / "my.pefs"), "--output", str(tmp_path / "out"), "--quiet", *more]) == 1
    error = capsys.readouterr().err
    assert words in error and error.startswith("npeff-nb: ") and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_fit_wants_fishers(fitted_once, tmp_path, capsys):
    fitted_once.save(tmp_path / "it.npeff")
    assert cli.main(["fit", str(tmp_path / "it.npeff"), "--output", str(tmp_path / "out")]) == 1
    assert "holds no Fishers: give the folder that npeff-nb extract wrote" in capsys.readouterr().err
