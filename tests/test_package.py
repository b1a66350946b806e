"""What a person gets who installs the wheel and nothing else."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STATIC = {"explorer.js", "explorer.css", "page.js", "page.html", "compare.js", "compare_page.js", "progress.js", "progress.css"}


def test_import_is_without_torch():
    code = "import sys, npeff_nb; print(sorted({'torch', 'transformers', 'sklearn', 'plotly'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_unknown_name_says_what_there_is():
    import npeff_nb

    with pytest.raises(AttributeError, match=r"npeff_nb has no 'expolre'; it has .*explore"):
        _ = npeff_nb.expolre


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)], check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_wheel_holds_the_front_end_and_the_adapter(wheel):
    inside = zipfile.ZipFile(wheel).namelist()
    assert {f"npeff_nb/widgets/static/{name}" for name in STATIC} <= set(inside)
    assert {"npeff_nb/demo/adapter/adapter.json", "npeff_nb/demo/adapter/adapter.safetensors"} <= set(inside)
    assert not [name for name in inside if "node_modules" in name or name.startswith("tests/")]


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """A new environment with the wheel and what it asks for: no torch, no transformers."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", str(ROOT / "constraints.txt"), str(wheel)]
    subprocess.run(command, check=True)
    return python


def in_clean(python, code, cwd):
    return subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=cwd)


def test_saved_result_opens_without_torch(clean, demo_run, tmp_path):
    """The viewer's promise: table, widget and page from a saved folder on a machine that cannot run a model."""
    code = f"""
import importlib.util, json, sys
assert importlib.util.find_spec("torch") is None
import npeff_nb as nb
npeff = nb.load({str(demo_run / "decomposition.npeff")!r})
explorer = nb.explore(npeff, component=2)
page = explorer.to_html("page.html")
figure = explorer.parameter_map()
explorer.on_msg(print)
print(json.dumps({{"rows": len(npeff.component_table()), "live": explorer.overview["live"], "bytes": page.stat().st_size,
                  "figure": figure.data[0].type, "where": nb.__file__}}))
"""
    done = in_clean(clean, code, tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["rows"] == 6 and said["live"] is False and said["bytes"] > 50_000 and said["figure"] == "heatmap"
    assert not Path(said["where"]).is_relative_to(ROOT)


@pytest.mark.parametrize("name", ["extract_fishers", "load_demo()"])
def test_without_torch_the_error_says_what_to_install(clean, name, tmp_path):
    done = in_clean(clean, f"import npeff_nb as nb; nb.{name}", tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith('needs torch and transformers: pip install "npeff-nb[torch]"')
