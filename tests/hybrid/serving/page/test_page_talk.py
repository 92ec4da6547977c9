"""Chats and texts on the page: what is sent, what is shown, and what a stop button stops."""

import json

import httpx
import pytest
from playwright.sync_api import expect

LONG = {"max_tokens": 400, "temperature": 0.8, "seed": 11}
DONE = ".turn.assistant:not([aria-busy])"


def set_parameters(page, **values):
    page.locator("#parameters summary").click()
    for name, value in values.items():
        field = page.locator(f"#field-{name}")
        if name == "format":
            field.select_option(value)
        else:
            field.fill(str(value))


def complete(page, text, **values):
    page.get_by_role("radio", name="Complete").check()
    set_parameters(page, **values)
    page.fill("#prompt", text)
    page.keyboard.press("Control+Enter")


def events(*chunks, done=True):
    texts = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return "".join(texts) + ("data: [DONE]\n\n" if done else "")


def said(text, kind="chat", **more):
    content = {"delta": {"content": text}} if kind == "chat" else {"text": text}
    return {"choices": [{"index": 0, "finish_reason": None, **content, **more}]}


def test_a_text_streams_and_is_the_one_that_the_server_writes(open_page, site):
    page = open_page()
    page.evaluate(
        """() => {
          window.lengths = new Set();
          new MutationObserver(() => {
            const tail = document.querySelector(".continued");
            if (tail) window.lengths.add(tail.textContent.length);
          }).observe(document.getElementById("log"), { childList: true, subtree: true, characterData: true });
        }"""
    )
    complete(page, "def parse_args(", max_tokens=60, temperature=0.7, seed=5)
    answer = page.locator(DONE)
    expect(answer.locator(".sums")).to_contain_text("60 tokens")
    body = {"model": "demo", "prompt": "def parse_args(", "max_tokens": 60, "temperature": 0.7, "seed": 5}
    expected = httpx.post(f"{site.url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
    assert page.locator(".continued").text_content() == "def parse_args(" + expected
    assert len(page.evaluate("[...window.lengths]")) > 5, "it came at once"
    sums = answer.locator(".sums").text_content()
    assert "tokens/s" in sums and "first after" in sums and "cut at the most tokens" in sums
    assert page.locator("#status").text_content() == "The answer is complete."


def test_a_conversation_is_sent_whole_with_what_was_set(open_page):
    sent = []

    def answer(route):
        sent.append(route.request.post_data_json)
        usage = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}}
        route.fulfill(
            content_type="text/event-stream",
            body=": still here\n\n" + events(said("Well"), said(f" {len(sent)}", finish_reason="stop"), usage),
        )

    page = open_page(routes={"**/v1/chat/completions": answer})
    values = {
        "system": "Be brief.", "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1,
        "presence_penalty": 0.2, "frequency_penalty": -0.3, "max_tokens": 17, "seed": 12, "stop": "END\n###",
        "format": "json_schema", "shape": '{"type": "object"}',
    }  # fmt: skip
    set_parameters(page, **values)
    expect(page.locator("#parameters-set")).to_have_text("12 set")
    page.fill("#prompt", "Hello")
    page.keyboard.press("Enter")
    expect(page.locator(DONE)).to_have_count(1)
    page.fill("#prompt", "two\nlines")
    page.keyboard.press("Enter")
    expect(page.locator(DONE)).to_have_count(2)
    numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
    common = {
        "model": "demo", "stream": True, "stream_options": {"include_usage": True}, "stop": ["END", "###"],
        "response_format": schema, **numbers,
    }  # fmt: skip
    first = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    then = [{"role": "assistant", "content": "Well 1"}, {"role": "user", "content": "two\nlines"}]
    assert sent == [{**common, "messages": first}, {**common, "messages": first + then}]
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".body", has_text="Well 3")).to_have_count(1)
    assert sent[2] == sent[1] and page.locator(DONE).count() == 2
    page.reload()
    expect(page.locator("#parameters-set")).to_have_text("12 set")  # they are kept; the conversation is not
    expect(page.locator(".turn")).to_have_count(0)
    page.locator("#parameters summary").click()
    page.get_by_role("button", name="Reset all").click()
    expect(page.locator("#parameters-set")).to_have_text("the model's defaults")


def test_a_real_chat_answers_and_is_cleared(open_page):
    page = open_page()
    set_parameters(page, max_tokens=12, seed=1)
    page.fill("#prompt", "What is a list?")
    page.keyboard.press("Enter")
    expect(page.locator(DONE).locator(".sums")).to_contain_text("tokens")
    assert page.locator(".turn.user .body").text_content() == "What is a list?"
    assert page.locator("#prompt").input_value() == ""
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator(".empty")).to_be_visible()


@pytest.mark.parametrize("how", ["button", "key", "leaving"])
def test_what_is_stopped_is_not_computed_any_more(open_page, until, site, settled, how):
    page = open_page()
    before = site.service.engine.ledger.decode.tokens
    complete(page, "class Stack:\n", **LONG)
    until(page, "document.querySelector('.continued .tail')?.textContent.length > 10")
    assert site.service.outstanding == 1
    if how == "leaving":
        page.goto("about:blank")
        page.expected.append("asked for about:blank")
    else:
        stop = page.get_by_role("button", name="Stop")
        stop.click() if how == "button" else page.keyboard.press("Escape")
        expect(page.locator(DONE).locator(".sums")).to_contain_text("stopped after")
        expect(stop).to_be_hidden()
        assert page.evaluate("document.activeElement.id") == "prompt"
    load = settled(site.service)
    assert load.running == load.waiting == 0
    assert site.service.engine.ledger.decode.tokens - before < LONG["max_tokens"] - 10


def test_what_a_model_writes_is_never_markup(open_page, until):
    text = (
        "# Title\nSome **bold** and `a < b` <img src=x onerror=alert(1)>\n\n```html\n<script>alert(1)</script>\n```\n"
        "<style>body { display: none }</style> 2 * 3 * 4 and ~~~ done\n\n```py\nopen_fence = True"
    )

    def answer(route):
        pieces = [said(text[at : at + 5]) for at in range(0, len(text), 5)]
        route.fulfill(content_type="text/event-stream", body=events(*pieces))

    page = open_page(routes={"**/v1/chat/completions": answer})
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.fill("#prompt", "<b>bold?</b>")
    page.keyboard.press("Enter")
    body = page.locator(DONE).locator(".body")
    expect(body.locator("pre")).to_have_count(2)
    assert body.locator("pre").all_text_contents() == ["<script>alert(1)</script>", "open_fence = True"]
    assert body.locator("strong").all_text_contents() == ["Title", "bold"]
    assert body.locator(".plain code").all_text_contents() == ["a < b"]
    assert body.locator("img, script, style, em").count() == 0
    assert "<img src=x onerror=alert(1)>" in body.text_content()
    assert page.locator(".turn.user .body").text_content() == "<b>bold?</b>"
    body.get_by_role("button", name="Copy").first.click()
    expect(body.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "<script>alert(1)</script>"
    page.locator(".foot").get_by_role("button", name="Copy").click()
    until(page, "navigator.clipboard.readText().then((text) => text.startsWith('# Title'))")
    assert page.evaluate("navigator.clipboard.readText()") == text


def test_a_parameter_that_is_wrong_is_told_and_nothing_is_sent(open_page):
    page = open_page(routes={"**/v1/**completions": lambda route: pytest.fail("it was sent")})
    for name, values, told in (
        ("shape", {"format": "json_schema", "shape": "{nonsense"}, "not JSON"),
        ("temperature", {"format": "", "temperature": 3}, ""),
    ):
        set_parameters(page, **values)
        page.locator("#parameters summary").click()
        page.fill("#prompt", "Hello")
        page.keyboard.press("Enter")
        expect(page.locator(f"#field-{name}")).to_be_focused()
        expect(page.locator(f"#field-{name}")).to_have_attribute("aria-invalid", "true")
        expect(page.locator(f"#field-{name}-wrong")).to_contain_text(told)
        assert page.locator(".turn").count() == 0
        page.locator("#parameters summary").click()
