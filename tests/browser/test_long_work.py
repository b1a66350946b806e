"""Long work in a notebook: the bar, the time left, Cancel while the cell runs, and what remains in the saved notebook."""

import re
from pathlib import Path

import pytest
from browsing import keep_picture, open_page
from jupyter import choose, open_notebook, ours, run_cell, save, wait_idle

pytestmark = pytest.mark.browser

TESTS = Path(__file__).parent.parent
EXTRACTION = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import tiny
import npeff_nb as nb
table = tiny.table(20_000)  # a minute of work: Cancel ends it earlier
fishers = nb.extract_fishers(tiny.bert(), tiny.tokenizer(), table, features="dense", parameters="all", cache="fishers", batch_size=4)
"""
STEPS = """
import time
from npeff_nb._progress import Bar
with Bar(True, {total}, "steps", "step") as bar:
    for _ in range({total}):
        time.sleep(0.1)
        bar.add(1)
"""


def last_words(page, number):
    """What stands below a cell when its work is over."""
    out = page.locator(".jp-Notebook .jp-Cell").nth(number).locator(".jp-OutputArea-output")
    out.filter(has_text=re.compile(" in | after ")).first.wait_for(timeout=20_000)
    return out.first.inner_text().strip()


def test_extraction_is_cancelled_while_its_cell_runs(lab):
    with open_page(viewport={"width": 1200, "height": 1000}) as (page, wrong):
        open_notebook(page, lab.put("cancel", EXTRACTION))
        run_cell(page, 0)
        bar = page.get_by_role("progressbar", name="Fishers (dense)")
        bar.wait_for(timeout=60_000)
        page.wait_for_function("() => Number(document.querySelector('.npeff-progress [role=progressbar]').getAttribute('aria-valuenow')) > 300")
        said = bar.get_attribute("aria-valuetext")
        assert re.fullmatch(r"\d+ of 20000 examples · (\d+ min )?\d+ s left", said)
        assert page.locator(".npeff-progress").count() == 1 and page.get_by_text("ex/s").count() == 0
        keep_picture(page, "long-work")
        # By keyboard: the button is a real one.
        page.get_by_role("button", name="cancel Fishers (dense)").focus()
        page.keyboard.press("Enter")
        assert re.fullmatch(r"Fishers \(dense\): cancelled after \d+ of 20000 examples, (\d+ min )?\d+ s", last_words(page, 0))
        wait_idle(page)
        cell = page.locator(".jp-Notebook .jp-Cell").first
        error = cell.locator('[data-mime-type="application/vnd.jupyter.error"], [data-mime-type="application/vnd.jupyter.stderr"]').first.inner_text()
        assert re.fullmatch(r"Cancelled: \d+ of 20000 examples done; the same call with this cache= goes on from there", error.strip())
        save(page)
        first = lab.saved("cancel").cells[0].outputs[0]
        assert set(first.data) == {"text/plain", "text/html"} and len(str(first)) < 600
        # What was finished is taken from the cache, at once.
        finished = int(re.match(r"Cancelled: (\d+)", error.strip()).group(1))
        page.locator(".npeff-progress").wait_for(state="detached")
        run_cell(page, 0)
        again = page.get_by_role("progressbar", name="Fishers (dense)")
        again.wait_for(timeout=20_000)
        page.wait_for_function(
            "kept => Number(document.querySelector('.npeff-progress [role=progressbar]').getAttribute('aria-valuenow')) >= kept",
            arg=finished - 256,  # a shard at most is lost
            timeout=5_000,
        )
        page.get_by_role("button", name="cancel Fishers (dense)").click()
        wait_idle(page)
        assert ours(wrong) == []


@pytest.mark.parametrize("front_end", ["lab", "notebook7"])
def test_work_ends_with_a_line_or_is_interrupted(front_end, request):
    server = request.getfixturevalue(front_end)
    with open_page(viewport={"width": 1200, "height": 1000}) as (page, wrong):
        open_notebook(page, server.put("steps", STEPS.format(total=25), STEPS.format(total=900)), cells=2)
        run_cell(page, 0)
        page.get_by_role("progressbar", name="steps").wait_for(timeout=60_000)
        assert re.fullmatch(r"steps: 25 steps in \d+ s", last_words(page, 0))
        assert page.locator(".npeff-progress").count() == 0
        run_cell(page, 1)
        page.get_by_role("progressbar", name="steps").wait_for()
        choose(page, "Kernel", "Interrupt Kernel")
        assert re.fullmatch(r"steps: cancelled after \d+ of 900 steps, [\d.]+ s", last_words(page, 1))
        assert ours(wrong) == []
