"""Lesson 1 in a real JupyterLab, run from a clean kernel and used as a person would."""

import re
from pathlib import Path

import pytest
from browsing import keep_picture, open_page
from jupyter import in_kernel, open_notebook, ours, run_all

pytestmark = pytest.mark.browser

LESSON = Path(__file__).parent.parent.parent / "notebooks" / "01_first_look.ipynb"
LONGEST = 900
"""Seconds for all cells: two minutes on two free cores, and continuous integration is not free."""


def test_lesson_in_jupyterlab(lab):
    # Tall, so that the notebook renders all its cells instead of those in view.
    with open_page(viewport={"width": 1440, "height": 9000}) as (page, wrong):
        open_notebook(page, lab.copy(LESSON))
        run_all(page, LONGEST)

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
        assert ours(wrong) == []
