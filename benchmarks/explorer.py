"""The explorer at size, in a real JupyterLab and Chromium: what is sent, how long a picture takes, how it moves, what it keeps.

``python benchmarks/explorer.py``

Opens an invented decomposition (benchmarks/large.py) of 100 000 examples and 512 components and prints a table.  Takes about three minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import large
from playwright.sync_api import CDPSession, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "browser"))

from browsing import chromium
from jupyter import in_kernel, open_notebook, run_all, serving

CHOICES, ACTIONS, SECONDS = 30, 200, 3
FIRST_EXAMPLE = """
new MutationObserver((_, seen) => {
  if (document.querySelector('.npeff-explorer .nx-example')) { window.firstPicture = Date.now(); seen.disconnect(); }
}).observe(document, { childList: true, subtree: true });
"""
CHOOSE = """async (component) => {
  const root = document.querySelector('.npeff-explorer'), list = root.querySelector('[aria-label="top examples"]');
  const before = list.innerText, begin = performance.now();
  root.querySelector(`.nx-components [aria-label^="component ${component}:"]`).click();
  while (list.innerText === before || !list.querySelector('.nx-example')) {
    if (performance.now() - begin > 20000) throw new Error(`no new examples for component ${component}`);
    await new Promise(requestAnimationFrame);
  }
  return performance.now() - begin;
}"""
MOVE = """async ([how, seconds]) => {
  const canvas = document.querySelector('.npeff-explorer .nx-heat canvas'), box = canvas.getBoundingClientRect();
  const at = { bubbles: true, cancelable: true, pointerId: 1, isPrimary: true, button: 0, buttons: 1, clientY: box.top + 100 };
  const begin = performance.now();
  let frames = 0, last = begin, worst = 0;
  if (how === 'pan') canvas.dispatchEvent(new PointerEvent('pointerdown', { ...at, clientX: box.left + box.width / 2 }));
  while (performance.now() - begin < 1000 * seconds) {
    const phase = (performance.now() - begin) / 500;
    const clientX = box.left + box.width * (0.5 + 0.4 * Math.sin(phase));
    if (how === 'pan') canvas.dispatchEvent(new PointerEvent('pointermove', { ...at, clientX }));
    else canvas.dispatchEvent(new WheelEvent('wheel', { ...at, clientX, deltaY: 40 * Math.cos(phase) }));
    const now = await new Promise(requestAnimationFrame);
    worst = Math.max(worst, now - last);
    last = now;
    frames += 1;
  }
  if (how === 'pan') canvas.dispatchEvent(new PointerEvent('pointerup', { ...at, buttons: 0, clientX: box.left + box.width / 2 }));
  return { rate: 1000 * frames / (performance.now() - begin), worst };
}"""


def cells(path: Path) -> list[str]:
    """Of the notebook: the state that is sent is counted, and the memory before and after."""
    return [
        "import gc, json, time\n"
        "import npeff_nb as nb, pandas, sklearn.manifold\n"
        "from npeff_nb.widgets import explorer as _\n"
        "def resident(): gc.collect(); return 4096 * int(open('/proc/self/statm').read().split()[1])\n"
        "before = resident()",
        f"npeff = nb.load({str(path)!r})\nexplorer = nb.explore(npeff)\nopened = time.time()\nexplorer",
        "def said():\n"
        "    state = explorer.get_state()\n"
        "    data = {name: value for name, value in state.items() if name not in {'_esm', '_css'}}\n"
        "    return json.dumps({'opened': opened, 'state': len(json.dumps(data, default=str)), 'saved': len(json.dumps(state, default=str))})",
    ]


def measure(page: Page, devtools: CDPSession, components: int) -> dict[str, Any]:
    """What can be seen from the page."""
    found: dict[str, Any] = {}
    numbers = random.Random(0).sample(range(1, components), CHOICES)
    times = [page.evaluate(CHOOSE, k) for k in numbers]
    found["choose"], found["choose_worst"] = statistics.median(times), max(times)
    page.locator(".npeff-explorer").get_by_role("tab", name="Heatmap").click()
    page.locator(".npeff-explorer .nx-heat canvas").wait_for()
    page.wait_for_timeout(1500)
    for how in ("zoom", "pan"):
        found[how] = page.evaluate(MOVE, [how, SECONDS])
    act(page, ACTIONS // 4, components, seed=1)  # what is kept on purpose is kept by then
    begin = held(page, devtools)
    act(page, ACTIONS, components, seed=2)
    found["heap"] = {"before": begin, "after": held(page, devtools)}
    return found


def act(page: Page, times: int, components: int, seed: int) -> None:
    """Things that a person might do, at random."""
    rng = random.Random(seed)
    for _ in range(times):
        what = rng.choice(["component", "component", "tab", "search", "pick", "sort", "zoom"])
        if what == "tab":
            page.locator(".npeff-explorer").get_by_role("tab").nth(rng.randrange(4)).click()
        elif what == "search":
            page.locator(".npeff-explorer").get_by_label("search", exact=True).fill(rng.choice(["how many", "river", ""]))
        elif what == "zoom" and page.locator(".nx-heat canvas").is_visible():
            page.evaluate(MOVE, ["zoom", 0.1])
        else:
            page.locator(".npeff-explorer").get_by_role("tab").nth(0).click()
            if what == "pick":
                page.locator(".nx-example").nth(rng.randrange(3)).click()
            elif what == "sort":
                page.get_by_label("sort components").select_option(rng.choice(["share", "number", "name", "purity"]))
            else:
                options = page.locator(".nx-components .nx-component")
                if options.count():
                    options.nth(rng.randrange(min(components, options.count()))).click()


def held(page: Page, devtools: CDPSession) -> dict[str, float]:
    """What the page holds after the garbage has been collected, in one state: the first tab, nothing picked, nothing searched."""
    root = page.locator(".npeff-explorer")
    root.get_by_role("tab").nth(0).click()
    root.get_by_label("search", exact=True).fill("")
    if root.get_by_label("clear picked examples").is_visible():
        root.get_by_label("clear picked examples").click()
    root.locator(".nx-components .nx-component").nth(0).click()
    page.wait_for_timeout(1000)
    for _ in range(3):
        devtools.send("HeapProfiler.collectGarbage")
        time.sleep(0.3)
    metrics = {metric["name"]: metric["value"] for metric in devtools.send("Performance.getMetrics")["metrics"]}
    return {"megabytes": metrics["JSHeapUsedSize"] / 1e6, "nodes": metrics["Nodes"], "listeners": metrics["JSEventListeners"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--components", type=int, default=512)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = large.make(root / "large.npeff", given.examples, given.components)
        size = sum(file.stat().st_size for file in path.iterdir())
        with serving("lab", root) as server, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1500, "height": 1100})
            page.add_init_script(FIRST_EXAMPLE)
            open_notebook(page, server.put("large", *cells(path)))
            run_all(page)
            page.wait_for_function("window.firstPicture")
            first = page.evaluate("window.firstPicture") / 1000
            said = json.loads(in_kernel(page, "said()"))
            devtools = page.context.new_cdp_session(page)
            devtools.send("Performance.enable")
            found = measure(page, devtools, given.components)
            added = int(in_kernel(page, "resident() - before"))
            browser.close()
    heap = found["heap"]
    rows = [
        ("state sent at the start", f"{said['state'] / 1e3:.0f} kB", "300 kB"),
        ("first picture after the comm opens", f"{first - said['opened']:.2f} s", "1.5 s"),
        ("choosing a component, to new examples", f"{found['choose']:.0f} ms (slowest of {CHOICES}: {found['choose_worst']:.0f})", "150 ms"),
        ("heatmap, zooming", f"{found['zoom']['rate']:.0f} frames/s", "50"),
        ("heatmap, panning", f"{found['pan']['rate']:.0f} frames/s", "50"),
        ("kernel memory added, by the decomposition's files", f"{added / size:.2f} × {size / 1e6:.0f} MB", "1.2 ×"),
        (f"page's heap over {ACTIONS} random actions", " → ".join(f"{heap[at]['megabytes']:.1f} MB" for at in ("before", "after")), "flat"),
        ("… DOM nodes", " → ".join(f"{heap[at]['nodes']:.0f}" for at in ("before", "after")), "flat"),
        ("… event listeners", " → ".join(f"{heap[at]['listeners']:.0f}" for at in ("before", "after")), "flat"),
        ("five explorers in a saved notebook", f"{5 * said['saved'] / 1e6:.2f} MB", "2.5 MB"),
    ]
    print(f"{given.examples} examples × {given.components} components\n\n| | measured | target |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
