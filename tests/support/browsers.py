"""A real browser without a window."""

import os
import shutil
from collections.abc import Iterator

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str:
    """The program. Skips the test where there is none, unless NEEDS_BROWSER is set."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        said = f"no browser: none of {', '.join(NAMES)} is installed"
        (pytest.fail if "NEEDS_BROWSER" in os.environ else pytest.skip)(said)
    return found


def run_browser() -> Iterator[object]:
    """A browser that playwright drives."""
    path = find_browser()
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        # As root, as in containers, it has no sandbox of its own.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()
