"""What the tests of the report need to look at it; without it they are skipped, with the reason."""

from __future__ import annotations

import shutil

import pytest

UNSEEN = "the report is not looked at"
playwright = pytest.importorskip(
    "playwright.sync_api", reason=f"{UNSEEN}: playwright is not installed"
)
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=f"{UNSEEN}: no axe")
MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason=f"{UNSEEN}: there is no chromium"),
]
