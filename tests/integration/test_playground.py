"""The playground in a real Chromium: what a person with a keyboard, a phone or a screen reader gets."""

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from codeparrot.api_keys import ApiKeys
from codeparrot.completion_plan import Served
from tests.integration.conftest import wait_until
from tests.served import NAME, Gate, Server, serving, tiny

PROMPT = "def add(self, name):\n    "
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}

# The ratio of WCAG 2.2, section 1.4.3, of every element that has text of its own, over all backgrounds behind it.
CONTRASTS = """() => {
  const channels = colour => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = rgb => rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || element.closest("script") || !element.checkVisibility() || element.disabled) continue;
    const chain = [];
    for (let node = element; node; node = node.parentElement)
      chain.unshift(channels(getComputedStyle(node).backgroundColor));
    const back = chain.reduce((below, top) => over(top, below), [255, 255, 255]);
    const style = getComputedStyle(element), front = over(channels(style.color), back);
    if (style.color.endsWith(", 0)")) continue;  // the text of the editor, shown by what lies under it
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), `${element.tagName} ${element.className} ${element.textContent.slice(0, 30)}`]);
  }
  return found;
}"""
NAMELESS = """() => [...document.querySelectorAll("button, input, textarea, [role=region]")].filter(element =>
  !(element.labels?.length || element.getAttribute("aria-label") || element.getAttribute("aria-labelledby")
    || element.textContent.trim())).map(element => element.outerHTML)"""


def chromium() -> str | None:
    """The browser that is there, if one is."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CODEPARROT_BROWSER") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = chromium()
    if program is None:
        reason = "no chromium, chromium-browser or google-chrome on the PATH, and CODEPARROT_BROWSER names none"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # which Chromium has for other users only
        running = playwright.chromium.launch(executable_path=program, args=arguments)
        yield running
        running.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return tiny(tmp_path_factory.getbasetemp() / NAME)


@pytest.fixture(scope="module")
def server(served: Served) -> Iterator[Server]:
    with serving(served) as running:
        yield running


@pytest.fixture
def gate(served: Served) -> Iterator[Gate]:
    gate = Gate(served)
    yield gate
    gate.remove()


@pytest.fixture
def options() -> dict[str, Any]:
    """What kind of window it is."""
    return {}


@pytest.fixture
def page(browser: Browser, options: dict[str, Any]) -> Iterator[Page]:
    """A window that complains of nothing: no script failed, and the policy had nothing to refuse."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(60_000)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    expected = ("401", "ERR_CONNECTION_REFUSED")
    assert not [text for text in complaints if not any(word in text for word in expected)]


def opened(page: Page, server: Server) -> Page:
    page.goto(server.url)
    expect(page.get_by_text(NAME, exact=True)).to_be_visible(timeout=60_000)
    return page


def prompt_of(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Code to go on from")


def status(page: Page) -> str:
    return page.get_by_role("status").inner_text()


def test_what_is_typed_is_completed_with_the_keyboard_alone(server: Server, page: Page) -> None:
    expected = server.client().completions.create(
        model=NAME, prompt=PROMPT, max_tokens=30, temperature=0.5, top_p=0.9, seed=4
    )
    opened(page, server)
    page.get_by_label("Seed").fill("4")
    for slider, value in (("Temperature", "0.5"), ("Top-p", "0.9"), ("Most tokens", "30")):
        page.get_by_label(slider).fill(value)
    prompt = prompt_of(page)
    prompt.fill("")
    prompt.press_sequentially("def add(self, name):")
    prompt.press("Enter")  # which indents the next line
    prompt.press("Control+Enter")
    expect(page.get_by_role("status")).to_contain_text("30 tokens in")
    shown = page.locator("#result").text_content()
    assert shown == PROMPT + expected.choices[0].text
    assert "it reached the most tokens" in status(page)
    page.get_by_role("region", name="Completion").press("ArrowRight")
    assert status(page).startswith("Token 1 of 30: ")
    assert 5 <= page.get_by_label("Likeliest tokens at this place").get_by_role("listitem").count() <= 6
    page.keyboard.press("Alt+Enter")
    assert prompt.input_value() == shown
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_tokens_come_one_by_one_and_escape_stops_them(served: Served, gate: Gate, page: Page) -> None:
    with serving(served) as server:
        opened(page, server)
        gate.allow(4)
        page.get_by_role("button", name="Complete").click()
        gate.wait()
        expect(page.locator("#result .token")).to_have_count(4)
        assert "Generating" in status(page)
        page.keyboard.press("Escape")
        expect(page.get_by_role("status")).to_contain_text("you stopped it")
        expect(page.get_by_role("button", name="Complete")).to_be_enabled()
        assert page.locator("#result .token").count() == 4
        wait_until(lambda: server.service.num_open == 0, "an empty server")
        gate.allow(None)


def test_a_server_that_is_away_is_told_of_and_the_text_stays(served: Served, page: Page) -> None:
    with serving(served) as server:
        opened(page, server)
    prompt_of(page).fill("x = ")
    page.get_by_role("button", name="Complete").click()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    assert prompt_of(page).input_value() == "x = "


def test_a_model_that_fails_is_told_of(server: Server, gate: Gate, page: Page) -> None:
    opened(page, server)
    gate.fail(times=1)
    page.get_by_role("button", name="Complete").click()
    expect(page.get_by_role("alert")).to_contain_text("the model failed")


def test_a_key_is_asked_for_where_one_is_needed(served: Served, tmp_path: Path, page: Page) -> None:
    file, key = tmp_path / "keys", secrets.token_hex(16)
    file.write_text(key)
    with serving(served, keys=ApiKeys(file)) as server:
        page.goto(server.url)
        expect(page.get_by_role("alert")).to_contain_text("no API key")
        page.get_by_label("API key").fill(key)
        page.get_by_label("API key").press("Enter")
        expect(page.get_by_text(NAME, exact=True)).to_be_visible()
        page.keyboard.press("Control+Enter")
        expect(page.get_by_role("status")).to_contain_text("tokens in")


@pytest.mark.parametrize("options", [PHONE])
def test_it_fits_on_a_phone(server: Server, page: Page) -> None:
    opened(page, server)
    prompt_of(page).fill("x" * 60 + "\n" + PROMPT)
    page.get_by_role("button", name="Complete").tap()
    expect(page.get_by_role("status")).to_contain_text("tokens")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    small = page.evaluate(
        "[...document.querySelectorAll('button:not([hidden])')].filter(button => button.checkVisibility()"
        " && button.getBoundingClientRect().height < 24).map(button => button.textContent)"
    )
    assert not small  # WCAG 2.2, section 2.5.8


@pytest.mark.parametrize("options", [{"color_scheme": "light"}, {"color_scheme": "dark"}])
def test_everything_can_be_read_and_has_a_name(server: Server, page: Page) -> None:
    opened(page, server)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_contain_text("tokens in")
    page.get_by_role("region", name="Completion").press("End")
    found = page.evaluate(CONTRASTS)
    assert len(found) > 30
    assert not [(round(ratio, 2), what) for ratio, what in found if ratio < 4.5]
    assert page.evaluate(NAMELESS) == []
