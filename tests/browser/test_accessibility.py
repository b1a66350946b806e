"""The explorer for those who see differently, or use no mouse: an accessibility scan of every panel, dark themes, the keyboard alone."""

from pathlib import Path

import pytest
from browsing import keep_picture, open_page
from jupyter import in_kernel, open_notebook, ours, run_all

import npeff_nb as nb

pytestmark = pytest.mark.browser

AXE = Path(__file__).parent.parent.parent / "widgets" / "node_modules" / "axe-core" / "axe.min.js"
PANELS = ("Components", "Table", "Heatmap", "Map", "Lab", "My text", "Trace")
SIZE = {"width": 1240, "height": 1100}


@pytest.fixture(scope="module")
def address(small, tmp_path_factory):
    """A saved page of the small decomposition."""
    return nb.explore(nb.load(small)).to_html(tmp_path_factory.mktemp("page") / "small.html").as_uri()


def show(page, panel):
    page.get_by_role("tab", name=panel, exact=True).click()
    page.locator("[role=tabpanel]:not([hidden])").first.wait_for()
    page.wait_for_timeout(200)  # canvases draw in the frames after


def colours(page):
    """Brightness, 0 to 1, of the explorer's paper and ink."""
    return page.eval_on_selector(
        ".npeff-explorer",
        """element => ["backgroundColor", "color"].map(which => {
            const [r, g, b] = getComputedStyle(element)[which].match(/[\\d.]+/g).map(Number);
            return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
        })""",
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_panel(address, scheme):
    assert AXE.exists(), "axe-core is missing: run npm ci in widgets/ (make front does)"
    found = []
    with open_page(viewport=SIZE, color_scheme=scheme) as (page, wrong):
        page.goto(address)
        page.get_by_role("tablist").wait_for()
        page.add_script_tag(path=AXE)
        for panel in PANELS:
            show(page, panel)
            keep_picture(page, f"panel-{panel.lower().replace(' ', '-')}-{scheme}")
            violations = page.evaluate("axe.run(document, { resultTypes: ['violations'] }).then(result => result.violations)")
            found += [
                f"{panel}: {one['impact']} {one['id']}: {one['help']} at {[node['target'] for node in one['nodes']][:4]}"
                for one in violations
                if one["impact"] in {"serious", "critical"}
            ]
        assert wrong == []
    assert found == []


@pytest.mark.parametrize(
    ("attributes", "dark"),
    [
        ({"data-jp-theme-light": "false"}, True),
        ({"data-jp-theme-light": "true"}, False),
        ({"class": "vscode-dark", "data-vscode-theme-kind": "vscode-dark"}, True),
        ({"class": "vscode-light", "data-vscode-theme-kind": "vscode-light"}, False),
        ({"class": "vscode-high-contrast", "data-vscode-theme-kind": "vscode-high-contrast"}, True),
        ({"class": "vscode-high-contrast-light vscode-high-contrast", "data-vscode-theme-kind": "vscode-high-contrast-light"}, False),
    ],
)
def test_notebooks_themes_are_followed_and_changes_too(attributes, dark, address):
    """By the attributes that JupyterLab and VS Code set on body."""
    with open_page(viewport=SIZE) as (page, wrong):
        page.goto(address)
        page.get_by_role("tablist").wait_for()
        assert colours(page)[0] > 0.9
        show(page, "Heatmap")
        before = page.locator("canvas").first.screenshot()
        page.evaluate("attributes => Object.entries(attributes).forEach(([name, value]) => document.body.setAttribute(name, value))", attributes)
        page.wait_for_timeout(300)
        paper, ink = colours(page)
        assert (paper < 0.2 and ink > 0.7) if dark else (paper > 0.9 and ink < 0.3)
        # Canvases have no style sheet: they have to be drawn again.
        assert (page.locator("canvas").first.screenshot() != before) == dark
        assert wrong == []


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def tab_to(page, selector, most=60):
    """Presses Tab until what has the focus matches."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"Tab does not reach {selector} from the tabs")


def go(page, panel, selector):
    """To a tab by arrow keys, then by Tab to a part of its panel."""
    page.locator(".npeff-explorer [role=tab][tabindex='0']").focus()
    press(page, "Home", *["ArrowRight"] * PANELS.index(panel))
    tab_to(page, selector)


def in_panel(page):
    return page.evaluate("() => document.activeElement.closest('[role=tabpanel]:not([hidden])') !== null")


def test_keyboard_reaches_every_panel_and_something_in_it(address):
    with open_page(viewport=SIZE) as (page, wrong):
        page.goto(address)
        page.get_by_role("tablist").wait_for()
        tab_to(page, "[role=tab]")
        for number, panel in enumerate(PANELS):
            if number:
                press(page, "ArrowRight")
            focused = page.locator("[role=tab]:focus")
            assert focused.inner_text() == panel and focused.get_attribute("aria-selected") == "true"
            # One Tab stop for all tabs.
            assert page.locator('[role=tab][tabindex="0"]').count() == 1
            inside = False
            for _ in range(8):  # what stands between the tabs and the panel: search, theme, ...
                page.keyboard.press("Tab")
                inside = inside or in_panel(page)
            assert inside, f"nothing in the panel {panel} can have the focus"
            page.get_by_role("tab", name=panel, exact=True).focus()
        press(page, "Home")
        assert page.locator("[role=tab]:focus").inner_text() == PANELS[0]
        assert wrong == []


def component(page):
    """The component in focus, by the list."""
    chosen = page.locator('[role=listbox][aria-label="components"] [aria-selected=true]')
    return int(chosen.get_attribute("aria-label").removeprefix("component ").split(":")[0])


def test_what_each_panel_is_for_works_by_keys(address):
    with open_page(viewport=SIZE) as (page, wrong):
        page.goto(address)
        page.get_by_role("tablist").wait_for()

        go(page, "Components", "[aria-label='components'] [role=option]")
        seen = [component(page)]
        press(page, "End", "Enter")
        seen.append(component(page))
        press(page, "Home", "Enter")
        assert len({*seen, component(page)}) == 2

        for panel, part, keys in (
            ("Table", "tr[role=row]", ["End", "Enter"]),
            ("Map", "[role=listbox][aria-label='map of components'] [role=option]", ["End", "Enter"]),
        ):
            before = component(page)
            go(page, panel, part)
            press(page, *keys)
            if component(page) == before:
                press(page, "Home", "Enter")
            assert component(page) != before, panel

        go(page, "Heatmap", "[role=application]")
        press(page, "ArrowDown", "ArrowRight", "Enter")
        picked = page.get_by_role("list", name="picked examples", exact=True)
        picked.wait_for()
        assert picked.locator("li").count() >= 1

        go(page, "Lab", "[role=tabpanel]:not([hidden]) input[type=range]")
        value = page.locator("[role=tabpanel]:not([hidden]) input[type=number]").first
        before = value.input_value()
        press(page, "ArrowLeft", "ArrowLeft")
        assert float(value.input_value()) < float(before)
        assert wrong == []


LIVE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
import tiny
import npeff_nb as nb
fishers = nb.extract_fishers(tiny.bert(), tiny.tokenizer(), tiny.table(), features="dense", progress=False)
explorer = nb.explore(nb.NPEFF(4, n_init=1, random_state=0).fit(fishers), panel="text")
explorer
"""


def test_own_text_and_trace_work_by_keys(lab):
    """These two ask a model, so there has to be a kernel."""
    with open_page(viewport={"width": 1300, "height": 2200}) as (page, wrong):
        open_notebook(page, lab.put("keys", LIVE))
        run_all(page)
        page.get_by_label("your text", exact=True).wait_for(timeout=30_000)
        go(page, "My text", "textarea[aria-label='your text']")
        page.keyboard.type("who is the king ?")
        press(page, "Enter")
        page.locator(".nx-ownresult:not([hidden])").wait_for(timeout=30_000)
        tab_to(page, "[aria-label='Trace it through the network']")
        press(page, "Enter")
        trace = page.locator("[role=group][aria-label^='trace; arrow keys']")
        trace.wait_for(timeout=30_000)
        assert page.locator(".npeff-explorer [role=tab][aria-selected=true]").inner_text() == "Trace"
        go(page, "Trace", "[aria-label^='trace; arrow keys']")
        press(page, "ArrowDown")
        page.wait_for_function("() => document.querySelector('.nx-trace .nx-readout').textContent.length > 0")
        assert in_kernel(page, "explorer.panel, explorer.text") == "trace who is the king ?"
        assert ours(wrong) == []
