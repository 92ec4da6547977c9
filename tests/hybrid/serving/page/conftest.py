"""The page in headless Chromium, of a server whose model lies on the host and on the stand-in for a GPU.

`site` is that server: its units are slowed, so that an answer takes seconds. `open_page(running=site, **options)` opens
the page in a context of its own; when the test ends, it fails if the page asked another host for anything, wrote an
error to the console, or raised one; what a test expects to fail it adds to `page.expected`. `until(page, expression)`
waits for what the page's own policy lets nobody evaluate within it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from hybrid.runtime.engine import Engine
from hybrid.stages.opening import open_engine

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
PATIENCE = 60_000.0  # milliseconds, for a machine that stands still for a while
SLOWER = 12.0
OpenPage = Callable[..., Page]
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("the page is tested in Chromium, which is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        # Containers in which tests run as root have no sandbox of the kernel's, nor much shared memory.
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture(scope="session")
def split_engine(demo: Path) -> Iterator[Engine]:
    """The demo on two units, both slowed, telling which neurons fire."""
    units = {"vram": 8 << 20, "device": "cpu", "slowdown": {"cpu": SLOWER, "gpu": SLOWER}, "threads": 1}
    with open_engine(demo, mode="predicted", context=512, max_sequences=3, tally=True, **units) as engine:
        yield engine


@pytest.fixture(scope="session")
def site(serving: Any, split_engine: Engine) -> Iterator[Any]:
    with serving(split_engine, queue=2, keep_alive_seconds=0.3) as running:
        yield running


@pytest.fixture
def open_page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[OpenPage]:
    opened: list[tuple[Page, str]] = []
    problems: list[str] = []

    def watch(page: Page, url: str) -> None:
        page.on("request", lambda r: None if r.url.startswith(url) else problems.append(f"asked for {r.url}"))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))

    def open_one(running: Any = None, *, routes: Any = None, **options: Any) -> Page:
        url = (running or request.getfixturevalue("site")).url
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "locale": "en", **options})
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.expected = []  # type: ignore[attr-defined]
        watch(page, url)
        for pattern, handler in (routes or {}).items():
            page.route(pattern, handler)
        page.goto(url)
        opened.append((page, url))
        return page

    yield open_one
    expected = [text for page, _ in opened for text in page.expected]  # type: ignore[attr-defined]
    for page, _ in opened:
        page.context.close()
    assert not [problem for problem in problems if not any(text in problem for text in expected)]


@pytest.fixture(scope="session")
def until() -> Callable[[Page, str], None]:
    def wait(page: Page, expression: str) -> None:
        deadline = time.monotonic() + PATIENCE / 1000
        while not page.evaluate(expression):
            assert time.monotonic() < deadline, f"it never came to {expression}"
            page.wait_for_timeout(20)

    return wait
