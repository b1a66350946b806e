"""Text from data is inert: hostile strings in every place where data has text, through every panel of the page."""

import json

import pytest
from browsing import keep_picture, open_page

import npeff_nb as nb
from npeff_nb.widgets.page import write_page

pytestmark = pytest.mark.browser

HOSTILE = [
    "<img src=x onerror=window.owned=1>",
    "</script><script>window.owned=1</script>",
    "</style><svg onload=window.owned=1>",
    '" onmouseover="window.owned=1" x="',
    "' onfocus='window.owned=1' autofocus='",
    "javascript:window.owned=1",
    "{{constructor.constructor('window.owned=1')()}}",
    "${window.owned=1}",
    "<!--",
    "]]><x/>",
    "\u202egnp.exe\u202c and \u2066isolated",
    "nul \u0000 inside",
    "lone \ud800 surrogate \udfff",
    "line\u2028separator\u2029paragraph",
    "combining " + "e\u0301\u0323\u0300" * 200,
    "W" * 1_000_000,
    "😀" * 5000,
]


@pytest.fixture
def evil(small):
    """Hostile strings as texts, labels, names, notes, classes, words, parameters and the model's name."""
    npeff = nb.load(small)
    n = len(npeff.examples)
    some = [HOSTILE[i % len(HOSTILE)] for i in range(n)]
    short = [text[:300] for text in some]
    npeff.examples = npeff.examples.assign(text=some, label=short, evil_column=short).rename(columns={"evil_column": HOSTILE[0]})
    npeff.classes = [HOSTILE[c] for c in range(len(npeff.classes))]
    npeff.labels = {k: HOSTILE[k] for k in range(3)}
    npeff.notes = {k: HOSTILE[-1 - k] for k in range(3)}
    npeff.facts = npeff.facts | {"model": HOSTILE[1]}
    for profile in npeff.profiles.values():
        for at, row in enumerate(profile["tokens"].values()):
            row["words"] = [{"text": HOSTILE[(at + i) % len(HOSTILE)], "share": 0.1, "space": True} for i in range(5)]
            row["asides"] = [{"name": HOSTILE[at % len(HOSTILE)][:100], "share": 0.5}]
    return npeff


def test_hostile_text_goes_through_every_panel_as_text(evil, tmp_path):
    with open_page(viewport={"width": 1240, "height": 1000}) as (page, wrong):
        page.goto(write_page(evil, tmp_path / "evil.html").as_uri())
        page.get_by_label("components", exact=True).wait_for()
        for tab in page.get_by_role("tab").all():
            tab.click()
            page.wait_for_timeout(400)
            page.mouse.move(600, 400)
            for field in page.locator(".npeff-explorer :is(button, [tabindex='0'])").all()[:40]:
                if field.is_visible():
                    field.hover(timeout=2000, force=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= 1240
        page.get_by_role("tab").first.click()
        for k in range(4):
            page.locator(f".nx-components [aria-label^='component {k}']").first.click()
            page.locator(".nx-example").first.wait_for()
            page.locator(".nx-example").first.click()
        page.get_by_label("search", exact=True).fill(HOSTILE[0])
        page.wait_for_timeout(400)
        keep_picture(page, "hostile")
        assert page.evaluate("window.owned") is None
        assert page.locator(".npeff-explorer :is(img, script, iframe, style)").count() == 0
        assert wrong == []


def test_hostile_text_survives_the_page_unchanged(evil, tmp_path):
    with open_page() as (page, _):
        page.goto(write_page(evil, tmp_path / "evil.html").as_uri())
        data = json.loads(page.locator("#npeff-data").text_content())
    # What no file in UTF-8 can hold is replaced, everything else is as it was.
    for row, text in enumerate(evil.examples["text"].tolist()[: len(HOSTILE)]):
        assert data["examples"][str(row)]["text"] == text.encode("utf-8", "replace").decode()
