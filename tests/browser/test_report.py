"""The one-file report, opened from disk in a real browser with the network off."""

import json
import re

import pytest
from browsing import keep_picture, open_page

pytestmark = pytest.mark.browser


@pytest.fixture
def address(demo_run):
    return (demo_run / "report.html").as_uri()


def choose(page, k):
    page.get_by_label(re.compile(rf"^component {k}:")).first.click()


def test_report_opens_offline_and_its_parts_are_linked(address, demo_run):
    with open_page(viewport={"width": 1240, "height": 1200}) as (page, wrong):
        page.context.set_offline(True)
        page.goto(address)
        page.get_by_label("components", exact=True).wait_for()
        choose(page, 1)
        first = page.get_by_label("top examples", exact=True).inner_text()
        choose(page, 3)
        page.wait_for_function("before => document.querySelector('[aria-label=\"top examples\"]').innerText !== before", arg=first)
        keep_picture(page, "report")
        assert wrong == []


def test_strength_changes_the_shown_predictions(address):
    with open_page(viewport={"width": 1240, "height": 1200}) as (page, wrong):
        page.goto(address)
        examples = page.get_by_label("top examples", exact=True)
        examples.wait_for()
        before = examples.inner_text()
        box = page.get_by_label("strength value")
        box.fill("-0.6")
        box.press("Enter")
        page.wait_for_function("before => document.querySelector('[aria-label=\"top examples\"]').innerText !== before", arg=before)
        assert "→" in examples.inner_text()
        assert wrong == []


def test_slider_and_list_work_by_keyboard_alone(address):
    with open_page(viewport={"width": 1240, "height": 1200}) as (page, wrong):
        page.goto(address)
        chosen = page.locator("[aria-label=components] [aria-selected=true], [aria-label=components][aria-selected=true]")
        chosen.first.wait_for()
        page.get_by_label("search", exact=True).focus()
        page.keyboard.press("Tab")
        for _ in range(6):  # through the sorting controls to the list
            if page.evaluate("document.activeElement.closest('[aria-label=components]') !== null"):
                break
            page.keyboard.press("Tab")
        before = chosen.first.get_attribute("aria-label")
        page.keyboard.press("Home")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        after = chosen.first.get_attribute("aria-label")
        page.keyboard.press("End")
        page.keyboard.press("Enter")
        assert len({before, after, chosen.first.get_attribute("aria-label")}) >= 2
        slider = page.get_by_label("strength", exact=True)
        slider.focus()
        at = slider.input_value()
        page.keyboard.press("ArrowLeft")
        assert float(slider.input_value()) < float(at)
        assert wrong == []


@pytest.mark.parametrize("width", [1240, 700, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows(address, width, scheme):
    with open_page(viewport={"width": width, "height": 1000}, color_scheme=scheme) as (page, wrong):
        page.goto(address)
        page.get_by_label("components", exact=True).wait_for()
        keep_picture(page, f"report-{scheme}-{width}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert wrong == []


def test_hostile_text_is_shown_as_text(demo_run, tmp_path):
    import npeff_nb as nb
    from npeff_nb.widgets.page import write_page

    npeff = nb.load(demo_run / "decomposition.npeff")
    evil = "<img src=x onerror=document.title='owned'>"
    top = npeff.top_examples(0, 16)
    npeff.examples.loc[top, "text"] = evil
    npeff.labels[0] = evil
    for row in npeff.profiles[0]["tokens"].values():
        row["words"] = [{"text": evil, "share": 0.5, "space": False}]
    with open_page() as (page, wrong):
        page.goto(write_page(npeff, tmp_path / "evil.html").as_uri())
        page.get_by_text(evil).first.wait_for()
        assert page.title() != "owned" and page.locator("img").count() == 0
        assert wrong == []


def test_search_and_renaming(address):
    with open_page(viewport={"width": 1240, "height": 1200}) as (page, wrong):
        page.goto(address)
        options = page.get_by_label(re.compile(r"^component \d+:"))
        options.first.wait_for()
        everything = options.count()
        page.get_by_label("search", exact=True).fill("no component says this")
        assert options.count() < everything
        page.get_by_label("search", exact=True).fill("")
        options.first.click()
        page.keyboard.press("F2")
        page.keyboard.press("Control+A")
        page.keyboard.type("my own name")
        page.keyboard.press("Enter")
        assert "my own name" in options.first.inner_text()
        assert wrong == []


def test_page_holds_the_figures_of_the_summary(address, demo_run):
    summary = json.loads((demo_run / "summary.json").read_text())
    with open_page() as (page, _):
        page.goto(address)
        page.get_by_label("components", exact=True).wait_for()
        shown = page.locator("body").inner_text()
    assert f"{summary['n_examples']} examples" in shown.replace("\u202f", "").replace("\u00a0", " ")
