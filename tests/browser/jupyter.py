"""JupyterLab and Notebook 7 for the browser tests: on loopback, with the settings of nobody, used as a person would."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Page

FRONT_ENDS = {"lab": ("jupyterlab", "lab/tree/{}?reset"), "notebook": ("notebook", "notebooks/{}")}
"""Name -> module that starts it, where it shows a notebook."""


@dataclass
class Server:
    """A running JupyterLab or Notebook 7."""

    front_end: str
    address: str
    folder: Path

    def put(self, name: str, *cells: str) -> str:
        """Writes a notebook with these code cells; returns the address that shows it."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        nbformat.write(notebook, self.folder / f"{name}.ipynb")
        return self.shows(name)

    def copy(self, path: Path) -> str:
        """The same for a notebook that exists."""
        shutil.copy(path, self.folder)
        return self.shows(path.stem)

    def shows(self, name: str) -> str:
        return f"{self.address}/{FRONT_ENDS[self.front_end][1].format(f'{name}.ipynb')}"

    def saved(self, name: str) -> nbformat.NotebookNode:
        return nbformat.read(self.folder / f"{name}.ipynb", 4)


@contextmanager
def serving(front_end: str, folder: Path, longest: float = 120):
    """A server on a free port, without token: it listens on this machine only, and as long as the test runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    notebooks, quiet = folder / "notebooks", folder / "settings" / "@jupyterlab" / "apputils-extension"
    notebooks.mkdir()
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    options = [
        "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", f"--ServerApp.root_dir={notebooks}", "--IdentityProvider.token=",
        "--ServerApp.password=",
    ]  # fmt: skip
    # Settings and runtime files of the person who runs the tests stay out of it.
    home = os.environ | {"JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
                         "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"), "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
                         "IPYTHONDIR": str(folder / "ipython"), "HF_HUB_OFFLINE": "1",
                         # Two threads that wait for each other lose to one, as soon as the browser wants a core too.
                         "OMP_NUM_THREADS": "1"}  # fmt: skip
    log = folder / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen([sys.executable, "-m", FRONT_ENDS[front_end][0], *options], stdout=out, stderr=subprocess.STDOUT, env=home)
        address = f"http://127.0.0.1:{port}"
        try:
            end = time.monotonic() + longest
            while True:
                try:
                    urllib.request.urlopen(f"{address}/api", timeout=2)
                    break
                except OSError:
                    assert server.poll() is None and time.monotonic() < end, log.read_text()
                    time.sleep(0.2)
            yield Server(front_end, address, notebooks)
        finally:
            server.terminate()  # it ends its kernels too
            server.wait(20)


# --------------------------------------------------------------------------------------------------------------------- in the page


def open_notebook(page: Page, address: str, cells: int = 1) -> None:
    """Shows a notebook and waits until its kernel listens: what is asked for before is forgotten."""
    # The page calls the kernel idle before it has asked for one.
    with page.expect_websocket(lambda socket: "/channels" in socket.url, timeout=120_000):
        page.goto(address)
    page.locator(".jp-Notebook .jp-Cell").nth(cells - 1).wait_for(timeout=120_000)
    page.wait_for_timeout(300)
    wait_idle(page)


def wait_idle(page: Page, longest: float = 120) -> None:
    """Until the kernel runs nothing."""
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').first.wait_for(timeout=1000 * longest, state="attached")


def run_all(page: Page, longest: float = 60) -> None:
    """Runs all cells and waits for the last; an error in a cell fails the test."""
    choose(page, "Run", "Run All Cells")
    end = time.monotonic() + longest
    while time.monotonic() < end:
        page.wait_for_timeout(300)
        errors = page.locator('[data-mime-type="application/vnd.jupyter.error"], .jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"]')
        if errors.count() and "Traceback" in errors.first.inner_text():
            pytest.fail(errors.first.inner_text()[-3000:])
        prompts = page.eval_on_selector_all(".jp-CodeCell .jp-InputPrompt", "all => all.map(one => one.textContent)")
        ran = [prompt for prompt in prompts if re.search(r"\d", prompt)]
        if ran and len(ran) == len([p for p in prompts if p.strip()]) and not any("*" in p for p in prompts):
            return
    pytest.fail(f"the cells did not finish within {longest} s")


def run_cell(page: Page, number: int) -> None:
    """Runs one cell and does not wait for it."""
    # Into the editor: a widget below the same cell would keep the focus otherwise.
    page.locator(".jp-Notebook .jp-Cell").nth(number).locator(".cm-content").click()
    page.keyboard.press("Control+Enter")


def choose(page: Page, menu: str, entry: str) -> None:
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.get_by_role("menuitem", name=entry).first.click()


def in_kernel(page: Page, expression: str) -> str:
    """Types an expression into a new last cell, runs it and reads what it printed."""
    last = page.locator(".jp-Notebook .jp-Cell").last
    # Rendered text hides its source; code has it in view, and the widgets of its output are not meant.
    source = last.locator(".cm-content")
    if source.is_visible():
        source.click()
    else:
        last.click(position={"x": 30, "y": 10})
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    page.keyboard.type(f"print('<<', {expression}, '>>')")
    page.keyboard.press("Shift+Enter")
    # Not the cell's own text, in which an expression stands between the marks.
    out = page.locator(".jp-OutputArea-output", has_text=re.compile(r"<< .* >>")).last
    out.wait_for(timeout=60_000)
    found = re.search(r"<< (.*) >>", out.inner_text())
    assert found
    return found.group(1)


def restart(page: Page) -> None:
    """Restarts the kernel and waits until it listens again."""
    choose(page, "Kernel", "Restart Kernel…")
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    page.locator('.jp-Notebook-ExecutionIndicator:not([data-status="idle"])').first.wait_for(state="attached")
    wait_idle(page)


def save(page: Page) -> None:
    """Saves the notebook, outputs and all."""
    choose(page, "File", "Save Notebook")
    page.wait_for_timeout(1000)


def ours(wrong: list[str]) -> list[str]:
    """What went wrong, less what the front ends do wrong by themselves, on an empty notebook too."""
    # Notebook 7.6: its plugin of JupyterLab's settings meets a schema that is not there.
    return [one for one in wrong if "favicon" not in one and "(reading 'schema')" not in one]
