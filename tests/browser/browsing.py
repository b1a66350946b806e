"""What the browser tests share: finding Chromium, opening pages, and collecting what must not happen."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

ARTIFACTS = Path(__file__).parent.parent.parent / "artifacts"
NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    assert found, f"no browser among {', '.join(NAMES)}: scripts/need_chromium.sh installs one"
    return found


@contextmanager
def open_page(**options):
    """A fresh page, and the list of what went wrong on it: console errors, exceptions, requests that leave this machine."""
    wrong = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-background-networking"])
        page = browser.new_page(**options)
        page.on("console", lambda message: wrong.append(f"console: {message.text}") if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(f"exception: {error}"))
        page.on(
            "request",
            lambda request: (
                wrong.append(f"request: {request.url}")
                if request.url.startswith("http") and "127.0.0.1" not in request.url and "localhost" not in request.url
                else None
            ),
        )
        try:
            yield page, wrong
        except BaseException:
            keep_picture(page, "failed")
            raise
        finally:
            browser.close()


def keep_picture(page, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=True)
