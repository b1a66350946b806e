"""Lesson 1 in a real JupyterLab, run from a clean kernel and used as a person would."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from browsing import keep_picture, open_page

pytestmark = pytest.mark.browser

LESSON = Path(__file__).parent.parent.parent / "notebooks" / "01_first_look.ipynb"
LONGEST = 900
"""Seconds for all cells: two minutes on two free cores, and continuous integration is not free."""


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab on a copy of the lesson, without any cached result."""
    shutil.copy(LESSON, tmp_path / LESSON.name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", f"--ServerApp.root_dir={tmp_path}", "--IdentityProvider.token=",
        "--ServerApp.password=", "--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    # Settings and runtime files of the person who runs the tests stay out of it.
    home = os.environ | {"JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
                         "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"), "HF_HUB_OFFLINE": "1",
                         # Two threads that wait for each other lose to one, as soon as the browser wants a core too.
                         "OMP_NUM_THREADS": "1"}  # fmt: skip
    log = (tmp_path / "lab.log").open("w")
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=subprocess.STDOUT, env=home)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=2)
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "lab.log").read_text()
                time.sleep(0.5)
        yield f"{address}/lab/tree/{LESSON.name}?reset"
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def run_all(page):
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    end = time.time() + LONGEST
    while time.time() < end:
        page.wait_for_timeout(3000)
        prompts = page.eval_on_selector_all(".jp-CodeCell .jp-InputPrompt", "all => all.map(one => one.textContent)")
        ran = [prompt for prompt in prompts if re.search(r"\d", prompt)]
        if len(ran) == len([p for p in prompts if p.strip()]) and prompts and not any("*" in p for p in prompts) and ran:
            return
        errors = page.locator('[data-mime-type="application/vnd.jupyter.error"], .jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"]')
        if errors.count() and "Traceback" in errors.first.inner_text():
            pytest.fail(errors.first.inner_text()[-3000:])
    pytest.fail(f"the cells did not finish within {LONGEST} s")


def in_kernel(page, expression):
    """Types an expression into a new last cell, runs it and reads what it printed."""
    page.keyboard.press("Escape")
    page.locator(".jp-Notebook .jp-Cell").last.click(position={"x": 80, "y": 8})
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    page.keyboard.type(f"print('<<', {expression}, '>>')")
    page.keyboard.press("Shift+Enter")
    # Not the cell's own text, in which an expression stands between the marks.
    out = page.locator(".jp-OutputArea-output", has_text=re.compile(r"<< .* >>")).last
    out.wait_for(timeout=60_000)
    return re.search(r"<< (.*) >>", out.inner_text()).group(1)


def test_lesson_in_jupyterlab(lab):
    # Tall, so that the notebook renders all its cells instead of those in view.
    with open_page(viewport={"width": 1440, "height": 9000}) as (page, wrong):
        page.goto(lab)
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
        page.wait_for_timeout(3000)
        run_all(page)

        root = page.locator(".npeff-explorer").first
        root.wait_for(timeout=60_000)
        examples = root.get_by_label("top examples", exact=True)
        examples.wait_for(timeout=60_000)
        page.wait_for_timeout(1000)
        before = examples.inner_text()
        chosen = int(in_kernel(page, "explorer.component"))
        other = 0 if chosen != 0 else 1

        # A click on a component changes the examples, and the trait in Python.
        root.get_by_label(re.compile(rf"^component {other}:")).first.click()
        page.wait_for_function("before => document.querySelector('.npeff-explorer [aria-label=\"top examples\"]').innerText !== before", arg=before)
        assert int(in_kernel(page, "explorer.component")) == other

        # Its profile is computed live; then a new strength changes the predictions that are shown, and the trait.
        slider = root.get_by_label("strength", exact=True)
        page.wait_for_function("() => document.querySelector('.npeff-explorer [aria-label=strength]')?.disabled === false", timeout=120_000)
        root.get_by_text("Predictions", exact=False).first.wait_for(timeout=120_000)
        before = examples.inner_text()
        slider.fill("-0.5")
        page.wait_for_function("before => document.querySelector('.npeff-explorer [aria-label=\"top examples\"]').innerText !== before", arg=before)
        assert "→" in examples.inner_text()
        assert float(in_kernel(page, "explorer.strength")) == -0.5
        root.get_by_text(re.compile("computed")).first.wait_for(timeout=60_000)

        # The other way: what Python sets, the page shows.
        in_kernel(page, f"setattr(explorer, 'component', {chosen})")
        page.wait_for_function(
            "k => document.querySelector('.npeff-explorer [aria-label=components]').querySelector('[aria-selected=true]')"
            ".getAttribute('aria-label').startsWith(`component ${k}:`)",
            arg=chosen,
        )
        keep_picture(page, "lesson-1")
        assert [w for w in wrong if "favicon" not in w] == []
