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


def test_lesson_in_jupyterlab(lab, tmp_path):
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
        page.wait_for_function("() => document.querySelector('.npeff-explorer [aria-label=strength]')?.disabled === false", timeout=120_000)
        root.get_by_text("Predictions", exact=False).first.wait_for(timeout=120_000)
        turn(root, "-0.5")
        page.wait_for_function("() => document.querySelector('.npeff-explorer [aria-label=\"top examples\"]').innerText.includes('→')")
        assert float(in_kernel(page, "explorer.strength")) == -0.5
        computed(root)

        # The other way: what Python sets, the page shows.
        in_kernel(page, f"setattr(explorer, 'component', {chosen})")
        page.wait_for_function(
            "k => document.querySelector('.npeff-explorer [aria-label=components]').querySelector('[aria-selected=true]')"
            ".getAttribute('aria-label').startsWith(`component ${k}:`)",
            arg=chosen,
        )
        keep_picture(page, "lesson-1")
        saved = find_name_turn_and_save(page, root, tmp_path)
        assert ours(wrong) == []
    with open_page(viewport={"width": 1240, "height": 1000}) as (page, wrong):
        page.context.set_offline(True)
        page.goto(saved.as_uri())
        page.get_by_label("search", exact=True).fill("counts things")
        page.locator(".nx-components [aria-label*='counts things']").click()
        assert page.get_by_label("star this component").get_attribute("aria-pressed") == "true"
        page.get_by_role("heading", name="counts things").first.wait_for()
        assert wrong == []


def turn(root, strength):
    box = root.get_by_label("strength value")
    box.fill(strength)
    box.press("Enter")


def computed(root):
    """Waits until the picture says that the model was really run."""
    root.locator(".nx-source", has_text="computed").first.wait_for(timeout=120_000)


def find_name_turn_and_save(page, root, folder):
    """A person's path: the component for "how many" questions is found by searching, gets a star and a name, is turned down until half of its
    examples change their prediction, and everything is saved as a page."""
    root.get_by_label("search", exact=True).fill("how many")
    page.wait_for_timeout(1500)  # Python searches the examples' words
    root.get_by_label("search", exact=True).press("Enter")
    root.locator(".nx-title", has_text="how · many").wait_for()
    root.get_by_label("star this component").click()
    page.keyboard.press("Escape")
    root.get_by_label("rename this component").click()
    page.keyboard.press("Control+A")
    page.keyboard.type("counts things")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.npeff-explorer [aria-label=strength]')?.disabled === false", timeout=120_000)
    for strength in ("-0.1", "-0.2", "-0.3", "-0.4", "-0.6"):
        turn(root, strength)
        computed(root)
        page.wait_for_timeout(300)
        if 2 * root.locator(".nx-example .nx-changed").count() >= root.locator(".nx-example").count():
            break
    else:
        pytest.fail("no strength changed half of the examples")
    assert in_kernel(page, "[npeff.labels[explorer.component], explorer.component in npeff.stars]") == "['counts things', True]"
    with page.expect_download(timeout=120_000) as download:
        root.get_by_role("button", name="save all this as a page").click()
    path = folder / "saved.html"
    download.value.save_as(path)
    return path
