"""The explorer in Notebook 7: the same widget in another front end."""

import re

import pytest
from browsing import keep_picture, open_page
from jupyter import in_kernel, open_notebook, ours, run_all

pytestmark = pytest.mark.browser


def test_explorer_in_notebook_7(notebook7, small):
    address = notebook7.put("explore", f"import npeff_nb as nb\nexplorer = nb.explore(nb.load({str(small)!r}))\nexplorer")
    with open_page(viewport={"width": 1400, "height": 1600}) as (page, wrong):
        open_notebook(page, address)
        run_all(page)
        root = page.locator(".npeff-explorer")
        examples = root.get_by_label("top examples", exact=True)
        examples.wait_for(timeout=60_000)
        before = examples.inner_text()
        root.get_by_label(re.compile(r"^component 2:")).first.click()
        page.wait_for_function("before => document.querySelector('.npeff-explorer [aria-label=\"top examples\"]').innerText !== before", arg=before)
        assert in_kernel(page, "explorer.component") == "2"
        in_kernel(page, "setattr(explorer, 'component', 1)")
        root.locator('[aria-selected=true][aria-label^="component 1:"]').first.wait_for()
        keep_picture(page, "notebook-7")
        assert ours(wrong) == []
