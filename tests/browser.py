"""A real browser without a window, in which one page shows what one test after another asks for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDED = pytest.mark.skipif(PROGRAM is None, reason="no chromium, chromium-browser or google-chrome on this machine")
ALONE = ["--no-sandbox", "--disable-gpu", "--in-process-gpu"]  # no process that draws for others
ALONE += ["--renderer-process-limit=1", "--disable-site-isolation-trials"]  # nor one for each address


class Pages:
    """Opens pages, notes what they say and ask for, and takes them back.

    A new context costs twice what it costs to show a page, so pages are used again: what a test may have changed of one
    is as in a new one.

    Attributes:
        said: on the console, and errors that nobody caught.
        asked: addresses.
    """

    def __init__(self, browser: Browser) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self._browser = browser
        self._kept: dict[tuple[Any, ...], Page] = {}  # by the options of their contexts
        self._taken: list[Page] = []

    def _say(self, text: str) -> None:
        if "willReadFrequently" not in text:  # advice to tests that look at pixels
            self.said.append(text)

    def _new(self, **options: Any) -> Page:
        context = self._browser.new_context(**options)
        context.on("console", lambda message: self._say(message.text))
        context.on("weberror", lambda error: self._say(str(error.error)))
        context.on("request", lambda request: self.asked.append(request.url))
        return context.new_page()

    def open(
        self,
        url: str,
        scheme: Any = "dark",
        width: int = 1280,
        height: int = 800,
        motion: Any = "no-preference",
        allow: Sequence[str] = (),
        **options: Any,
    ) -> Page:
        """Show what is at an address; ``allow``: permissions, ``options``: of the context."""
        key = tuple(options.items())
        if key not in self._kept:
            self._kept[key] = self._new(**options)
        page = self._kept[key]
        if page in self._taken:
            page = page.context.new_page()
        self._taken.append(page)
        page.context.grant_permissions(allow)
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme, reduced_motion=motion)
        page.goto(url)
        return page

    def take_back(self) -> None:
        """Leave all pages."""
        for page in self._taken:
            page.context.clear_permissions()
            if page in self._kept.values():
                page.unroute_all()
                page.mouse.move(0, 0)
                page.goto("about:blank")
            else:
                page.close()
        self._taken.clear()


@contextmanager
def started() -> Iterator[Pages]:
    """The pages of a browser that runs until the end of the block."""
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=PROGRAM, args=ALONE) as browser:
        yield Pages(browser)
