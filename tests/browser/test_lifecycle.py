"""Explorers in the life of a notebook: several on a page, a kernel that restarts, is interrupted, or is gone when it is reopened."""

import json
import re

import pytest
from browsing import keep_picture, open_page
from jupyter import choose, in_kernel, open_notebook, ours, restart, run_all, run_cell, save, wait_idle

pytestmark = pytest.mark.browser

SIZE = {"width": 1300, "height": 2600}


@pytest.fixture
def opening(small):
    """The code of a cell that shows an explorer under the name ``explorer``."""
    return f"import npeff_nb as nb\nexplorer = nb.explore(nb.load({str(small)!r}))\nexplorer"


def choose_component(root, k):
    root.get_by_label(re.compile(rf"^component {k}:")).first.click()


def expect_component(root, k):
    root.locator(f'[role=option][aria-selected=true][aria-label^="component {k}:"]').wait_for()
    root.get_by_label("top examples", exact=True).wait_for()


def test_two_explorers_are_independent_and_two_views_of_one_are_linked(lab, opening):
    address = lab.put("two", opening, opening.replace("explorer", "other"), "explorer")
    with open_page(viewport={"width": 1300, "height": 4200}) as (page, wrong):
        open_notebook(page, address, cells=3)
        run_all(page)
        first, other, again = (page.locator(".npeff-explorer").nth(i) for i in range(3))
        for root in (first, other, again):
            expect_component(root, 0)
        choose_component(first, 2)
        expect_component(again, 2)
        expect_component(other, 0)
        choose_component(other, 1)
        expect_component(first, 2)
        # The other tab is shown in both views of the same explorer.
        again.get_by_role("tab", name="Table", exact=True).click()
        first.locator('[role=tab][aria-selected=true]:has-text("Table")').wait_for()
        other.locator('[role=tab][aria-selected=true]:has-text("Components")').wait_for()
        ids = page.eval_on_selector_all(".npeff-explorer [id]", "all => all.map(one => one.id)")
        assert ids and len(set(ids)) == len(ids)
        assert in_kernel(page, "explorer.component, other.component, explorer.panel, other.panel") == "2 1 table components"
        assert ours(wrong) == []


def test_kernel_restarts_and_the_cell_is_run_again(lab, opening):
    with open_page(viewport=SIZE) as (page, wrong):
        open_notebook(page, lab.put("restarted", opening))
        run_all(page)
        root = page.locator(".npeff-explorer")
        expect_component(root, 0)
        restart(page)
        # The picture stays; what is asked says in place that nobody answers, and asks again when told to.
        choose_component(root, 2)
        failed = root.locator(".nx-failed").first
        failed.wait_for()
        failed.get_by_role("button", name=re.compile("^retry")).click()
        failed.wait_for()
        keep_picture(page, "kernel-restarted")
        run_cell(page, 0)
        page.wait_for_function("() => document.querySelectorAll('.npeff-explorer .nx-failed').length === 0")
        expect_component(page.locator(".npeff-explorer"), 0)
        choose_component(page.locator(".npeff-explorer"), 1)
        expect_component(page.locator(".npeff-explorer"), 1)
        assert in_kernel(page, "explorer.component") == "1"
        assert ours(wrong) == []


@pytest.fixture
def keeping_state(lab):
    """Lab writes the widgets' state into the notebook, as VS Code and nbclient do without being asked."""
    folder = lab.folder.parent / "settings" / "@jupyter-widgets" / "jupyterlab-manager"
    folder.mkdir(parents=True)
    setting = folder / "plugin.jupyterlab-settings"
    setting.write_text('{"saveState": true}')
    yield
    setting.unlink()


def test_reopened_notebook_shows_the_last_state(lab, opening, keeping_state):
    address = lab.put("reopened", opening)
    with open_page(viewport=SIZE) as (page, wrong):
        open_notebook(page, address)
        run_all(page)
        root = page.locator(".npeff-explorer")
        expect_component(root, 0)
        choose_component(root, 2)
        expect_component(root, 2)
        page.wait_for_timeout(500)
        save(page)
        saved = lab.saved("reopened")
        # What is shown where no script runs is beside it.
        assert "<table>" in saved.cells[0].outputs[0].data["text/html"]
        assert len(json.dumps(saved)) < 500_000
        # The kernel lives on: so does the explorer.
        address = address.removesuffix("?reset")
        open_notebook(page, address)
        expect_component(root, 2)
        choose_component(root, 1)
        expect_component(root, 1)
        assert in_kernel(page, "explorer.component") == "1"
        # The kernel is gone: the last state that was saved, and what is asked says so.
        choose(page, "Kernel", "Shut Down Kernel")
        page.wait_for_timeout(1000)
        open_notebook(page, address)
        root.locator('[role=option][aria-selected=true][aria-label^="component 2:"]').wait_for()
        choose_component(root, 3)
        root.get_by_text(re.compile("no answer yet: .*not running")).first.wait_for(timeout=15_000)
        keep_picture(page, "kernel-gone")
        root.get_by_role("button", name=re.compile("^cancel")).first.click()
        root.get_by_role("button", name=re.compile("^retry")).first.wait_for()
        run_cell(page, 0)
        page.locator(".npeff-explorer .nx-status").wait_for(state="detached")
        expect_component(page.locator(".npeff-explorer"), 0)
        assert ours(wrong) == []


SLOW = """
import time
from npeff_nb.widgets import desk
quick = desk.QUICK["component"]
def slow(*arguments):
    time.sleep(60)
    return quick(*arguments)
desk.QUICK["component"] = slow
explorer.component = 1
"""


def test_kernel_is_interrupted_during_a_request(lab, opening):
    with open_page(viewport=SIZE) as (page, wrong):
        open_notebook(page, lab.put("interrupted", opening, SLOW, "desk.QUICK['component'] = quick"), cells=3)
        run_cell(page, 0)
        root = page.locator(".npeff-explorer")
        expect_component(root, 0)
        # What a cell sets, the page asks about; the answer is worked out where the cells are.
        run_cell(page, 1)
        root.locator(".nx-status").first.wait_for()
        page.wait_for_timeout(1500)
        choose(page, "Kernel", "Interrupt Kernel")
        failed = root.locator(".nx-failed").first
        failed.wait_for(timeout=10_000)
        keep_picture(page, "kernel-interrupted")
        run_cell(page, 2)
        wait_idle(page)
        failed.get_by_role("button", name=re.compile("^retry")).click()
        expect_component(root, 1)
        root.locator(".nx-failed").first.wait_for(state="detached")
        assert ours(wrong) == []
