"""The audit report as a reader meets it: in a browser, from a file, without a network; light, dark, on a phone and on paper.

Playwright comes with the extra `browser`; the browser is that of the system (`apt-get install chromium`). Where either is missing the tests
are skipped, and fail in CI.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.results.report import PAGE
from tests.support.finished import finished_run

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
CONTRAST = """element => {
    const luminance = colour => {
        const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(value => value / 255)
            .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    let behind = element;
    const ground = each => getComputedStyle(each).backgroundColor;
    while (behind.parentElement && /, 0\\)|transparent/.test(ground(behind))) behind = behind.parentElement;
    const [light, dark] = [luminance(getComputedStyle(element).color), luminance(ground(behind))].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
}"""
"""Contrast of an element's text with what is behind it (WCAG 2.2, https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio)."""


def missing(what: str) -> None:
    """Skip, or fail where nobody would see the skip."""
    if os.environ.get("CI"):
        pytest.fail(
            f"{what}, and in CI the report must be looked at: pip install 'mgaa[browser]'; apt-get install chromium"
        )
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        missing("there is no chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report() -> Path:
    """The page of the finished run."""
    return finished_run().parameters.results / PAGE


class Reader:
    """A page that was opened, with what it asked for and what its console said."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(offline=True, **options)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(path.as_uri())


@pytest.fixture
def read(browser: Any, report: Path) -> Iterator[Any]:
    opened: list[Reader] = []

    def start(width: int = 1280, **options: Any) -> Reader:
        opened.append(Reader(browser, report, viewport={"width": width, "height": 900}, **options))
        return opened[-1]

    yield start
    for each in opened:
        each.context.close()


def test_it_opens_without_a_network_asks_for_nothing_and_complains_of_nothing(read: Any, report: Path) -> None:
    reader = read()
    assert [url for url in reader.requests if not url.startswith("data:")] == [report.as_uri()]
    assert reader.said == []


def test_every_section_and_figure_is_there(read: Any) -> None:
    page = read().page
    assert [each.inner_text() for each in page.query_selector_all("h2")] == [
        *("What was done", "Models side by side", "Allocation", "Samples and answers", "Evaluation card", "Ancestry"),
        *("Time and memory", "Environment", "Model card"),
    ]
    drawn = page.eval_on_selector_all(
        "img", "images => images.map(image => image.complete && image.naturalWidth > 100)"
    )
    assert drawn == [True] * 5


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_never_wider_than_the_window_with_all_tables_open(read: Any, width: int) -> None:
    page = read(width).page
    page.eval_on_selector_all("details", "all => all.forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_digest_in_a_sentence_makes_the_page_no_wider_than_a_phone(read: Any) -> None:
    page = read(390).page
    page.eval_on_selector_all("p", "all => all.forEach(each => each.append(' (sha256 ' + '0'.repeat(64) + ')'))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_in_dark(read: Any, scheme: str) -> None:
    page = read(color_scheme=scheme).page
    page.eval_on_selector_all("details", "all => all.forEach(each => each.open = true)")
    texts = "h1, h2, h3, h4, p, td, th, dt, dd, small, li, a, code, pre, caption, summary, mark, .quiet, footer"
    assert min(page.eval_on_selector_all(texts, f"all => all.map({CONTRAST})")) >= 4.5


def test_dark_is_dark_and_light_is_light(read: Any) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light, dark = (read(color_scheme=scheme).page.evaluate(ground) for scheme in ("light", "dark"))
    assert [
        sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) > 384 for colour in (light, dark)
    ] == [
        True,
        False,
    ]


def test_everything_is_reached_by_the_keyboard(read: Any) -> None:
    page = read().page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.focus("summary")
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('details').open")
    wide = "all => all.filter(each => each.scrollWidth > each.clientWidth && each.tabIndex < 0).length"
    assert page.eval_on_selector_all(".scroll, figure, pre, .tree", wide) == 0


def test_a_digest_of_the_tree_opens_the_table_that_has_it_in_full(read: Any) -> None:
    page = read().page
    link = page.locator(".tree a").first
    short = link.inner_text()
    link.click()
    row = page.locator(f"[id='{short}']")
    row.wait_for(state="visible")
    assert short in row.inner_text()


def test_on_paper_it_is_a4_and_holds_the_tables_that_are_folded_on_the_screen(read: Any, tmp_path: Path) -> None:
    page = read(color_scheme="dark").page
    printed = page.pdf(path=str(tmp_path / "report.pdf"), prefer_css_page_size=True)
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") > 4
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("details td").first.is_visible()
