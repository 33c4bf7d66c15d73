"""The page, in a real browser."""

import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.runtime.server.dashboard.conftest import KEY, Open
from tests.support.servers import Served, until


def connected(page: Any) -> None:
    page.get_by_text("connected", exact=True).wait_for()


def say(page: Any, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")


def enter(page: Any, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use it").click()


def test_a_chat_streams_and_shows_what_it_took(server: Served, opened: Open):
    page = opened(server)
    connected(page)
    page.get_by_text("Options").click()
    page.get_by_label("Most tokens").fill("5")
    page.get_by_label("Temperature").fill("0")
    say(page, "Hello")
    page.get_by_text("5 tokens, first after").wait_for()
    say(page, "Again")
    page.get_by_text("5 tokens, first after").nth(1).wait_for()
    heard = page.locator(".message.assistant .text").all_text_contents()
    assert len(heard) == 2
    row = page.locator("#journal tr").first
    row.get_by_text("length").wait_for()
    assert row.locator("td").nth(4).text_content() == "5"
    said = [("user", "Hello"), ("assistant", heard[0]), ("user", "Again")]
    chat = [{"role": role, "content": text} for role, text in said]
    assert int(row.locator("td").nth(2).text_content()) == len(server.served.chat.encode(chat, [], {}))


def test_it_loads_nothing_from_elsewhere_and_says_so(server: Served, opened: Open):
    page = opened(server)
    connected(page)
    assert {urlsplit(address).netloc for address in page.addresses} == {urlsplit(server.url).netloc}
    policy = page.request.get(server.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_what_a_model_says_is_text(server: Served, opened: Open):
    page = opened(server)
    connected(page)
    attack = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    choice = {"index": 0, "delta": {"content": attack, "reasoning_content": attack}, "finish_reason": "stop"}
    chunks = f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=chunks, content_type="text/event-stream"))
    say(page, f"repeat {attack}")
    page.locator(".message.assistant .note").wait_for(state="attached")
    assert page.locator(".message.assistant > .text").text_content() == attack
    assert page.locator(".thought .text").text_content() == attack
    assert page.locator(".message.user .text").text_content() == f"repeat {attack}"
    assert page.locator("main img, main script").count() == 0


def test_stop_ends_the_work(server: Served, opened: Open):
    page = opened(server)
    connected(page)
    say(page, "a long one")
    until(lambda: server.engine.counts()["running"] == 1)
    page.keyboard.press("Escape")
    page.get_by_text("stopped", exact=True).wait_for()
    server.idle()
    page.locator("#journal tr").first.get_by_text("cancelled").wait_for()
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".message").count() == 0


def test_an_error_is_shown(server: Served, opened: Open):
    page = opened(server)
    connected(page)
    page.get_by_text("Options").click()
    page.get_by_label("Most tokens").fill("100000")
    say(page, "too long")
    page.get_by_text("the model has 1024 positions").wait_for()


def test_a_key_is_asked_for_and_is_in_no_address(experts_server: Served, opened: Open):
    page = opened(experts_server)
    enter(page, "another one")
    page.get_by_text("This key is wrong.").wait_for()
    enter(page, KEY)
    connected(page)
    say(page, "Hello")
    page.locator("#journal tr").first.wait_for()
    assert all(KEY not in address and "secret" not in address for address in page.addresses)
    page.reload()
    connected(page)


def test_it_shows_memory_experts_and_settings(experts_server: Served, opened: Open):
    page = opened(experts_server)
    enter(page, KEY)
    connected(page)
    meter = page.get_by_role("meter", name="host: experts")
    assert 0 < int(meter.get_attribute("aria-valuenow")) <= int(meter.get_attribute("aria-valuemax"))
    say(page, "Hello")
    page.locator("#layers td").nth(2).filter(has_text=",").wait_for(state="attached")
    layers = page.locator("#layers tr").count()
    assert layers == experts_server.served.model.config.num_hidden_layers
    size = page.locator("#heat").evaluate("canvas => [canvas.width, canvas.height]")
    assert size == [8 * experts_server.served.model.config.num_experts, 10 * layers]
    assert page.locator("#settings-list").text_content() == "servebatchexactrows8"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(server: Served, opened: Open, scheme: str):
    page = opened(server, color_scheme=scheme, viewport={"width": 360, "height": 740})
    connected(page)
    page.get_by_text("Options").click()
    found = Axe().run(page).response["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is wider than a phone"


def test_colours_can_be_chosen(server: Served, opened: Open):
    page = opened(server, color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_label("Colours").select_option("dark")
    dark = page.evaluate(ground)
    page.reload()
    assert page.evaluate(ground) == dark != light
    page.emulate_media(color_scheme="dark")
    page.get_by_label("Colours").select_option("light")
    assert page.evaluate(ground) == light


def test_the_keyboard_reaches_the_chat_at_once(server: Served, opened: Open):
    page = opened(server)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#prompt"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") in ("prompt", "send")
