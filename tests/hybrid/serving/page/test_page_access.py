"""The page by keyboard, in both colour schemes, on a phone, with a key, and when things go wrong."""

import json

import pytest
from playwright.sync_api import expect

DONE = ".turn.assistant:not([aria-busy])"


def luminance(page, selector, what):
    """Of a computed colour, 0 to 1, as contrast is computed (WCAG 2.2)."""
    red, green, blue = page.evaluate(
        """([selector, what]) => {
          let part = document.querySelector(selector);
          let colour = getComputedStyle(part)[what];
          while (colour === "rgba(0, 0, 0, 0)") {
            part = part.parentElement;
            colour = getComputedStyle(part)[what];
          }
          return colour.match(/[\\d.]+/g).slice(0, 3).map((part) => Number(part) / 255);
        }""",
        [selector, what],
    )
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(page, selector):
    pair = sorted(luminance(page, selector, what) for what in ("color", "backgroundColor"))
    return (pair[1] + 0.05) / (pair[0] + 0.05)


def outlined(page):
    return page.evaluate(
        """() => {
          const style = getComputedStyle(document.activeElement);
          const around = getComputedStyle(document.activeElement.nextElementSibling ?? document.body);
          const composer = getComputedStyle(document.getElementById("composer"));
          const drawn = (style) => style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
          return drawn(style) || (document.activeElement.type === "radio" && drawn(around)) ||
            (document.activeElement.id === "prompt" && composer.boxShadow.includes("2px"));
        }"""
    )


def test_everything_is_reached_and_used_by_keyboard_alone(open_page):
    page = open_page()
    expect(page.locator("#state")).to_contain_text("idle")
    expect(page.locator("#prompt")).to_be_focused()
    seen = {}  # names by place in the document
    for _ in range(40):
        page.keyboard.press("Tab")
        place, name = page.evaluate(
            """(() => {
              const here = document.activeElement;
              return [[...document.querySelectorAll("*")].indexOf(here), here.id || here.className || here.tagName];
            })()"""
        )
        if name == "BODY":  # between the last part and the first
            continue
        if place in seen:
            break
        seen[place] = name
        assert outlined(page), f"nobody sees that {name} has the focus"
    assert {"skip", "log", "SUMMARY", "prompt", "map", "theme"} <= set(seen.values())
    page.get_by_role("radio", name="Chat").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="Complete")).to_be_checked()
    page.locator("#parameters summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "temperature"  # there is no system prompt for a text
    page.keyboard.type("0")
    page.locator("#field-max_tokens").focus()
    page.keyboard.type("8")
    page.locator("#prompt").focus()
    page.keyboard.type("import os")
    page.keyboard.press("Control+Enter")
    expect(page.locator(DONE).locator(".sums")).to_contain_text("8 tokens")
    page.get_by_role("button", name="Regenerate").focus()
    page.keyboard.press("Space")
    expect(page.locator(DONE).locator(".sums")).to_contain_text("8 tokens")
    expect(page.locator(".turn")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_can_be_read_and_chosen(open_page, scheme):
    page = open_page(color_scheme=scheme)
    expect(page.locator("#state")).to_contain_text("idle")
    dark = scheme == "dark"
    assert (luminance(page, "body", "backgroundColor") < 0.1) == dark
    small = (".model", ".hint", "#token-facts dt", ".purposes", "#state", ".readout")
    for selector in ("body", "#send", ".empty", *small):
        assert contrast(page, selector) >= 4.5, selector
    button = page.locator("#theme")
    expect(button).to_have_accessible_name("Colour scheme: auto; change it")
    button.click()
    assert luminance(page, "body", "backgroundColor") > 0.5
    button.click()
    assert luminance(page, "body", "backgroundColor") < 0.1
    page.reload()
    assert luminance(page, "body", "backgroundColor") < 0.1
    expect(page.locator("#theme")).to_have_accessible_name("Colour scheme: dark; change it")
    page.locator("#theme").click()
    assert (luminance(page, "body", "backgroundColor") < 0.1) == dark


def test_nothing_is_cut_at_the_width_of_a_phone(open_page):
    page = open_page(viewport={"width": 360, "height": 640}, reduced_motion="reduce", has_touch=True)
    expect(page.locator("#state")).to_contain_text("idle")
    page.get_by_role("radio", name="Complete").check()
    page.locator("#parameters summary").click()
    page.fill("#field-max_tokens", "30")
    page.locator("#parameters summary").click()
    page.fill("#prompt", "def a_function_with_a_name_that_is_far_too_long_for_the_line_of_a_phone(")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(DONE).locator(".sums")).to_contain_text("30 tokens")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    wide = page.evaluate(
        """[...document.querySelectorAll("body *")].filter((part) => !part.closest(".unseen, .skip, pre, .fields"))
          .filter((part) => part.getBoundingClientRect().right > 361).map((part) => part.className)"""
    )
    assert wide == []
    expect(page.locator("#send")).to_be_in_viewport()
    page.get_by_role("link", name="Engine").click()
    expect(page.locator("#map")).to_be_in_viewport()
    assert page.evaluate("getComputedStyle(document.querySelector('.turn')).animationName") == "none"


@pytest.mark.parametrize(
    ("status", "headers", "error", "words"),
    [
        (429, {"Retry-After": "7"}, "full", "no room for another request now. Try again in 7 s."),
        (400, {}, "the prompt is too long", "the prompt is too long"),
        (503, {}, "the server is stopping", "takes no requests now: the server is stopping"),
        (500, {}, None, "answered with status 500"),
    ],
)
def test_what_the_server_refuses_is_told_in_words(open_page, status, headers, error, words):
    body = "<html>" if error is None else json.dumps({"error": {"message": error}})

    def refuse(route):
        route.fulfill(status=status, headers=headers, body=body, content_type="application/json")

    page = open_page(routes={"**/v1/chat/completions": refuse})
    page.expected.append("the server responded with a status of")
    page.fill("#prompt", "Hello")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()


def test_what_is_sent_before_the_server_named_its_model_goes_then(open_page):
    held, sent = [], []

    def answer(route):
        sent.append(route.request.post_data_json["messages"])
        route.fulfill(status=400, body="{}", content_type="application/json")

    page = open_page(routes={"**/v1/models": lambda route: held.append(route), "**/v1/chat/completions": answer})
    page.expected.append("the server responded with a status of")
    page.fill("#prompt", "Hello")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    assert not sent
    held[0].continue_()
    expect(page.get_by_role("alert")).to_be_visible()
    assert sent[0][-1]["content"] == "Hello"


def test_a_connection_that_breaks_leaves_what_came(open_page):
    turn = []

    def answer(route):
        turn.append(route.request.post_data_json["messages"])
        if len(turn) == 1:
            route.abort()
        else:
            chunk = {"choices": [{"delta": {"content": "As far as"}, "finish_reason": None}]}
            ending = {"error": {"message": "the engine failed"}} if len(turn) == 2 else None
            body = "".join(f"data: {json.dumps(part)}\n\n" for part in (chunk, ending) if part)
            route.fulfill(content_type="text/event-stream", body=body)

    page = open_page(routes={"**/v1/chat/completions": answer})
    page.expected.append("net::ERR_FAILED")
    for words in ("cannot be reached", "the engine failed", "broke before the answer was complete"):
        page.fill("#prompt", "Hello")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").last).to_contain_text(words)
    assert page.locator(".turn.assistant .body").last.text_content() == "As far as"
    assert [len(messages) for messages in turn] == [1, 1, 3]  # what was never answered is not sent again


def test_a_server_that_is_gone_is_said_to_be(open_page, serving, split_engine, until):
    with serving(split_engine) as running:
        page = open_page(running)
        expect(page.locator("#state")).to_contain_text("idle")
    page.expected += ["net::ERR_", "Failed to load resource"]
    expect(page.locator("#state")).to_contain_text("trying again")
    page.fill("#prompt", "Hello")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(open_page, serving, split_engine):
    with serving(split_engine, api_keys=("a-key-of-ours",)) as running:
        page = open_page(running)
        page.expected.append("the server responded with a status of 401")
        key = page.locator("#key")
        expect(key).to_be_focused()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-form")).to_contain_text("does not accept this API key")
        key.fill("a-key-of-ours")
        page.keyboard.press("Enter")
        expect(key).to_be_hidden()
        expect(page.locator("#state")).to_contain_text("idle")
        page.get_by_role("radio", name="Complete").check()
        page.fill("#prompt", "import ")
        page.locator("#parameters summary").click()
        page.fill("#field-max_tokens", "4")
        page.get_by_role("button", name="Continue").click()
        expect(page.locator(DONE).locator(".sums")).to_contain_text("4 tokens")
        assert page.evaluate("sessionStorage.length") == 1
        assert "a-key-of-ours" not in page.evaluate("JSON.stringify(localStorage)")
        page.reload()
        expect(page.locator("#state")).to_contain_text("idle")
        page.context.close()
