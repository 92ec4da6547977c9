"""Draws docs/page.png: the server's page in Chromium, light and dark side by side, while the demo really generates.

    python scripts/picture_of_page.py [--out docs/page.png]

Serves the demo on the host and the stand-in for a GPU, has a few clients keep it busy, asks the page for a text, and
photographs it once that is there. Fonts are those of the machine: with Inter and JetBrains Mono (Debian:
fonts-inter, fonts-jetbrains-mono) it looks as the page was drawn.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from hybrid.runtime.engine import Engine
from hybrid.serving.app import create_app
from hybrid.serving.run import address_of, bind, make_server
from hybrid.serving.service import EngineService
from hybrid.serving.settings import ServeSettings
from hybrid.stages.opening import open_engine
from profiler.artifacts import format_size, write_atomic

SIZE = {"width": 1280, "height": 860}
MOST_BYTES = 400_000
CROWD = ("class Stack:\n", "import os\n", "for line in lines:\n")
SLOWER = 3.0  # so that a crowd of few is busy for long
WARM = 12_000  # milliseconds of the sparkline's minute
MOST_COLOURS = 192
PROMPT = "def parse_args("


@contextlib.contextmanager
def served(engine: Engine) -> Iterator[str]:
    """The address of a server of the engine."""
    settings = ServeSettings(model_names=("demo",), port=0)
    service = EngineService(engine, settings.queue)
    with bind(settings) as bound:
        server = make_server(create_app(service, settings), service, settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield address_of(bound)
        finally:
            service.close()
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def crowd(url: str) -> Iterator[None]:
    """Clients that ask for one text after the other."""
    stop = threading.Event()

    def ask(prompt: str) -> None:
        body = {"model": "demo", "prompt": prompt, "max_tokens": 300, "temperature": 0.9, "ignore_eos": True}
        with httpx.Client(timeout=600) as client:
            while not stop.is_set():
                client.post(f"{url}/v1/completions", json=body).raise_for_status()

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in CROWD]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def opened(browser: Browser, url: str, scheme: str) -> Page:
    """The page in a colour scheme, connected."""
    context = browser.new_context(viewport=SIZE, color_scheme=scheme, device_scale_factor=1)
    page = context.new_page()
    page.goto(url)
    page.get_by_role("radio", name="Complete").check()
    page.locator("#parameters summary").click()
    for name, value in {"max_tokens": "150", "temperature": "0.6", "seed": "4"}.items():
        page.fill(f"#field-{name}", value)
    page.locator("#parameters summary").click()
    return page


def photographed(page: Page) -> Image.Image:
    """The page with a text that it asked for, while others are written."""
    page.fill("#prompt", PROMPT)
    page.keyboard.press("Control+Enter")
    page.locator(".turn:not([aria-busy])").wait_for()  # so that both have the same text
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def joined(light: Image.Image, dark: Image.Image) -> bytes:
    """Both as one PNG: the upper left of the one and the lower right of the other, parted by a slant."""
    mask = Image.new("L", light.size)
    pixels = mask.load()
    assert pixels is not None
    width, height = light.size
    for y in range(height):
        edge = int(width * 0.5 + (height / 2 - y) * 0.12)
        for x in range(max(0, edge), width):
            pixels[x, y] = 255
    picture = Image.composite(dark, light, mask)
    out = io.BytesIO()
    picture.quantize(MOST_COLOURS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/page.png"))
    parser.add_argument("--apart", action="store_true", help="also write both schemes beside it, whole")
    arguments = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("picture_of_page: Chromium is not installed: apt-get install chromium")
    units = {"vram": 10 << 20, "device": "cpu", "slowdown": {"cpu": SLOWER, "gpu": SLOWER}, "threads": 1}
    with (
        open_engine("demo", mode="predicted", context=512, max_sequences=8, tally=True, **units) as engine,
        served(engine) as url,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        found = {}
        with crowd(url):
            for scheme in ("light", "dark"):
                page = opened(browser, url, scheme)
                page.wait_for_timeout(WARM)
                found[scheme] = photographed(page)
                page.context.close()
        browser.close()
    for scheme, image in found.items() if arguments.apart else ():
        image.save(arguments.out.with_name(f"{arguments.out.stem}-{scheme}.png"))
    picture = joined(found["light"], found["dark"])
    if len(picture) > MOST_BYTES:
        raise SystemExit(f"picture_of_page: the picture came to {format_size(len(picture))}")
    write_atomic(arguments.out, picture)
    print(f"{arguments.out}: {format_size(len(picture))}")


if __name__ == "__main__":
    main()
