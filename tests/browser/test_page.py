"""The page as a reader has it: opened from disk in Chromium, offline, narrow and wide, light and dark, printed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser.chromium import find_chromium
from playwright.sync_api import Browser, Page, sync_playwright
from support.analysis_fixtures import demo_runs, write_store

from analysis.report.build import write_report
from analysis.report.page import Choice
from analysis.store import open_store

pytestmark = [pytest.mark.browser, pytest.mark.slow]
WIDTHS = (390, 1280, 1920)
A4_PX = 718
"""What is between margins of 10 mm, at 96 pixels an inch."""

WIDER = """() => [...document.querySelectorAll('body *')].filter(element => {
  if (element.closest('svg, .skip') || element.parentElement.closest('.scroll, nav')) return false
  const own = element.getBoundingClientRect(), outer = element.parentElement.getBoundingClientRect()
  return own.width > outer.width + 1 || own.right > innerWidth + 1 || own.left < -1
}).map(element => element.outerHTML.slice(0, 120))"""
"""Elements wider than what contains them, or beyond the window, but for what may be scrolled."""

COLLIDING = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect()
  if (!frame.width) return []
  const texts = [...svg.querySelectorAll('text')].filter(text => text.textContent.trim())
  const boxes = texts.map(text => [text.textContent, text.getBoundingClientRect()])
  const beyond = boxes.filter(([, box]) => box.left < frame.left - 1 || box.right > frame.right + 1
    || box.top < frame.top - 1 || box.bottom > frame.bottom + 1).map(([text]) => `${text} leaves its figure`)
  const over = boxes.flatMap(([text, one], i) => boxes.slice(i + 1).filter(([, other]) =>
    one.left < other.right - 1 && other.left < one.right - 1 && one.top < other.bottom - 2 && other.top < one.bottom - 2
  ).map(([other]) => `${text} lies over ${other}`))
  return [...beyond, ...over].map(problem => `${svg.parentElement.parentElement.id}: ${problem}`)
})"""
"""Texts of figures that leave them or lie over another."""

HIDDEN = """() => [...document.querySelectorAll('details > :not(summary)')]
  .filter(element => !element.checkVisibility() || !element.getBoundingClientRect().height)
  .map(element => element.outerHTML.slice(0, 120))"""
"""What is folded away."""

FOCUSED = """() => {
  const element = document.activeElement, box = element.getBoundingClientRect()
  const order = [...document.querySelectorAll('a, summary, [tabindex="0"]')].indexOf(element)
  return [order, box.width > 0 && box.left >= 0 && getComputedStyle(element).outlineStyle !== 'none', element.className]
}"""
"""Of the element that has the keyboard: its place in the page, whether it is seen to have it, and its class."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium found: `make test-browser` installs one")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a report with gates, weaknesses, lost runs and folds."""
    folder = tmp_path_factory.mktemp("page")
    gates = [{"name": "sane", "kind": "non_inferior", "of": "block:noise", "margin": "5%"}]
    write_store(folder / "store", demo_runs(), unstarted=1, spec={"version": 1, "name": "demo", "gates": gates})
    view = open_store(folder / "store").sweep("demo")
    choice = Choice(("effective_rank", "entropy"), projections=("q", "up"))
    return write_report(view, folder / "report", choice).page.as_uri()


@pytest.fixture(scope="module", params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    """The page in one colour scheme; it ends with what the browser complained of, which is nothing."""
    context = browser.new_context(color_scheme=request.param, offline=True)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda sent: None if sent.url.startswith(("file:", "data:")) else complaints.append(sent.url))
    page.goto(address)
    yield page
    context.close()
    assert complaints == []


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_its_container(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate(WIDER) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    table = page.locator(".fits table").bounding_box()
    assert table is not None
    assert table["x"] + table["width"] <= width


def test_the_answer_is_on_the_first_screen(page: Page) -> None:
    page.set_viewport_size({"width": 1280, "height": 800})
    for shown in (".answer", ".fits table", ".gates", "#answer figure svg", ".warnings"):
        box = page.locator(shown).first.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= 800, shown


def test_texts_of_figures_are_in_the_font_they_were_measured_in_and_apart(page: Page) -> None:
    page.set_viewport_size({"width": 1280, "height": 800})
    faces = page.evaluate("[...document.fonts].map(face => [face.family, face.status])")
    assert {tuple(face) for face in faces} == {("Report Roboto", "loaded")}
    assert page.evaluate(COLLIDING) == []


@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious_or_moderate(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    worst = [(one["impact"], one["id"], [n["target"] for n in one["nodes"][:3]]) for one in found]
    assert [one for one in worst if one[0] in ("critical", "serious", "moderate")] == []


def test_the_keyboard_goes_through_the_page_in_its_order(page: Page) -> None:
    page.set_viewport_size({"width": 1280, "height": 800})
    page.reload()
    order = []
    for _ in range(page.locator("nav a").count() + 8):
        page.keyboard.press("Tab")
        place, is_seen, name = page.evaluate(FOCUSED)
        assert is_seen, (place, name)
        order.append(place)
    assert order == sorted(set(order))
    assert order[0] == 0
    page.reload()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "answer"
    folded = page.query_selector("details.fold:not([open]) > summary")
    assert folded is not None
    folded.press("Enter")
    assert folded.evaluate("summary => summary.parentElement.open")
    folded.press("Enter")


def test_print_loses_nothing(page: Page) -> None:
    page.set_viewport_size({"width": A4_PX, "height": 1000})
    assert page.evaluate(HIDDEN) != []
    page.emulate_media(media="print")
    assert page.evaluate(HIDDEN) == []
    assert page.evaluate(WIDER) == []
    clipped = (
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.ariaLabel)"
    )
    assert page.evaluate(clipped) == []
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="screen")
