"""The live view: what the page shows of the engine is what the engine did."""

import re

from playwright.sync_api import expect


def generate(page, tokens):
    """Have the model write, in the background."""
    page.evaluate(
        """(tokens) => {
          fetch("/v1/completions", {
            method: "POST",
            headers: { "Content-Type": "application/json" },
            body: JSON.stringify({ model: "demo", prompt: "import os\\n", max_tokens: tokens, ignore_eos: true }),
          }).then((answer) => answer.text());
        }""",
        tokens,
    )


def colours(page):
    """Of each layer the map's colours at some places, the hottest rows' first."""
    return page.evaluate(
        """() => {
          const canvas = document.getElementById("map");
          const layers = 6;
          const pixels = canvas.getContext("2d");
          return Array.from({ length: layers }, (_, layer) =>
            [0.002, 0.25, 0.5, 0.75, 0.998].map((place) => {
              const y = Math.floor(((layer + 0.5) / layers) * canvas.height);
              return [...pixels.getImageData(Math.floor(place * canvas.width), y, 1, 1).data.slice(0, 3)];
            }));
        }"""
    )


def test_the_map_shows_which_neurons_fire_and_where_they_lie(open_page, until, site, settled):
    page = open_page()
    expect(page.locator("#state")).to_contain_text("idle")
    expect(page.locator("#neurons-shape")).to_have_text("6 layers of 1,024 rows")
    expect(page.locator("#legend li")).to_have_text(["GPU", "RAM", "none to all of them fired"])
    resting = colours(page)
    before = site.service.engine.firing()
    generate(page, 400)
    expect(page.locator("#state")).to_have_text("live, 1 request")
    expect(page.locator("#slots i.running")).to_have_count(1)
    until(page, "Number(document.getElementById('speed').textContent.replace(',', '')) > 0")
    page.wait_for_timeout(1200)  # colours come up to what is new
    firing = site.service.engine.firing()
    shares, shining = firing.shares(before), colours(page)
    for layer, (dim, bright) in enumerate(zip(resting, shining, strict=True)):
        rises = [sum(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in zip(dim, bright, strict=True)]
        places = [min(int(place * shares.shape[1]), shares.shape[1] - 1) for place in (0.002, 0.25, 0.5, 0.75, 0.998)]
        told = [shares[layer, place] for place in places]
        assert rises[told.index(max(told))] > 60
        assert all(rise < 20 for rise, share in zip(rises, told, strict=True) if share == 0)
        for place, (red, _, blue) in zip(places, bright, strict=True):  # on a light page: orange or blue
            assert (red > blue) == (firing.resident[layer, place] == 0)
    facts = dict(zip(*(page.locator(f"#token-facts {part}").all_text_contents() for part in ("dt", "dd")), strict=True))
    assert int(facts["Rows a token, GPU"].replace(",", "")) > 50
    assert int(facts["Rows a token, CPU"].replace(",", "")) > 50
    assert "MiB" in facts["Bytes a token"]
    settled(site.service)
    expect(page.locator("#state")).to_have_text("live, idle")
    expect(page.locator("#speed")).to_have_text("0")
    assert "M" in page.locator("#spark .line").get_attribute("d")


def test_a_cell_says_what_it_is(open_page, until, site):
    page = open_page()
    page.locator("#map").focus()
    readout = page.locator("#map-readout")
    expect(readout).to_have_text("Layer 0, rows 0 to 3, in GPU: 0 % fired")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("ArrowLeft")
    expect(readout).to_contain_text("Layer 1, rows 60 to 63, in ")
    page.keyboard.press("End")
    page.keyboard.press("PageDown")
    page.keyboard.press("ArrowRight")
    expect(readout).to_contain_text("Layer 5, rows 1,020 to 1,023, in RAM")
    page.keyboard.press("Home")
    page.keyboard.press("PageUp")
    generate(page, 300)
    until(page, "/: [1-9].* % fired/.test(document.getElementById('map-readout').textContent)")
    share = float(re.search(r"([\d.]+) % fired", readout.text_content())[1]) / 100
    assert abs(share - site.service.engine.firing().shares()[0, 0]) < 0.35
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 0.5, box["y"] + 3)
    expect(readout).to_contain_text("Layer 0, rows 1,020 to 1,023")
    page.mouse.move(1, 1)
    page.locator("#prompt").focus()
    expect(readout).to_have_text("Point at a cell, or use the arrow keys.")


def test_memory_of_units_and_pages_is_shown(open_page, site):
    page = open_page()
    units = page.locator("#memory .unit-row")
    expect(units).to_have_count(3)
    shown = page.locator("#memory").text_content()
    assert "Host memory" in shown and "of 8.0 MiB" in shown and "neurons" in shown
    widths = page.evaluate(
        "[...document.querySelectorAll('#memory .bar.gpu i')].map((part) => parseFloat(part.style.width))"
    )
    gpu = site.service.engine.machine.units["gpu"]
    assert abs(sum(widths) - 100 * gpu.total / gpu.budget) < 0.5


def test_nobody_looks_while_the_page_is_hidden_or_gone(open_page, until, site):
    live = site.app.state.live
    page = open_page()
    expect(page.locator("#state")).to_have_text("live, idle")
    assert live.viewers == 1
    page.evaluate(
        """() => {
          Object.defineProperty(document, "hidden", { value: true, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    page.wait_for_timeout(200)
    for _ in range(100):
        if not live.viewers:
            break
        page.wait_for_timeout(50)
    assert live.viewers == 0
    looks = live.looks
    page.wait_for_timeout(1300)
    assert live.looks == looks
    page.evaluate(
        """() => {
          Object.defineProperty(document, "hidden", { value: false, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    until(page, "document.getElementById('state').dataset.state === 'live'")
    assert live.viewers == 1
