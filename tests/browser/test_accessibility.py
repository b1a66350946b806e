"""The explorer for those who see differently, or use no mouse: an accessibility scan of every panel, dark themes, the keyboard alone."""

from pathlib import Path

import pytest
from browsing import keep_picture, open_page

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
    pytest.fail(f"Tab does not reach {selector}")


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
