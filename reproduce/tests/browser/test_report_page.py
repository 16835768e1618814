"""The report in a real browser: it opens, filters, zooms, and asks nothing of the network."""

import shutil
from pathlib import Path

import pytest
from toy_paper.paper import PAPER

from gdyn_reproduce.records import load_records
from gdyn_reproduce.report import write_report
from gdyn_reproduce.runs import configure, execute

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (nox -s test-report)"
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH; install your system's package")

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    fig1 = PAPER.figure("fig1")
    for preset in ("quick", "paper"):
        execute(PAPER, fig1, configure(fig1, preset, out=str(out)), preset)
    return write_report(load_records(out), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def browser():
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=[*quiet, "--disable-sync", "--no-first-run"]
        )
        yield browser
        browser.close()


@pytest.fixture(params=SIZES)
def page(request, browser, report):
    width, height = SIZES[request.param]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark")
    page.complaints, page.requests = [], []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda made: page.requests.append(made.url))
    page.goto(report.as_uri())
    yield page
    page.close()


def test_it_opens_silently_and_asks_nothing_of_the_network(page, report):
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [report.as_uri()]


def test_every_picture_loads(page):
    widths = page.eval_on_selector_all("button.picture img", "images => images.map(i => i.naturalWidth)")
    assert len(widths) == 3  # one of the two figures also stands on the paper's card
    assert all(width > 0 for width in widths)


def test_nothing_is_wider_than_the_screen(page):
    long_name = "a_package_of_some_length.experiments.and_a_module_with_a_longer_name_still"
    page.evaluate(f"document.querySelector('.figure p code').textContent = '{long_name}'")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_filters_leave_what_was_asked_for_and_stand_in_the_address(page, report):
    page.select_option("#by-verdict", "fails")
    assert page.locator(".overview tbody tr:visible").count() == 2
    assert page.inner_text("#shown") == "2 claims"
    page.fill("#by-text", "no such claim")
    assert page.locator(".overview tbody tr:visible").count() == 0
    address = page.evaluate("location.href")
    assert address.endswith("#claims?verdict=fails&text=no+such+claim")
    page.goto("about:blank")
    page.goto(address)
    assert page.input_value("#by-text") == "no such claim"
    assert page.locator(".overview tbody tr:visible").count() == 0


def test_every_claim_has_a_link_of_its_own(page, report):
    page.goto(report.as_uri() + "#toy_paper.fig1.rate.quick")
    target = page.locator(":target")
    assert "The value falls to 1/e." in target.inner_text()
    box = target.bounding_box()
    assert 0 <= box["y"] < page.viewport_size["height"]


def test_a_strip_shows_where_the_value_lies(page):
    strip = page.locator("[id='toy_paper.fig1.rate.quick'] svg.strip")
    band, seed = strip.locator(".band").bounding_box(), strip.locator(".seed").first.bounding_box()
    assert band["x"] <= seed["x"] + seed["width"] / 2 <= band["x"] + band["width"]
    assert "holds" in strip.get_attribute("aria-label")
    failing = page.locator("[id='toy_paper.fig1.rises.quick'] svg.strip")
    band, seed = failing.locator(".band").bounding_box(), failing.locator(".seed").first.bounding_box()
    assert seed["x"] + seed["width"] < band["x"]
    height = strip.locator("text").first.bounding_box()["height"]
    assert height >= 9  # pixels; smaller text cannot be read


def test_a_command_is_copied(page):
    button = page.locator("[data-command]").first
    button.click()
    page.wait_for_function("document.querySelector('[data-command]').textContent == 'Copied'")


def test_the_plotted_numbers_are_downloaded(page):
    with page.expect_download() as waiting:
        page.locator("[data-numbers]").first.click()
    download = waiting.value
    assert download.suggested_filename.endswith(".csv")
    lines = Path(download.path()).read_text().splitlines()
    assert lines[0] == "array,index,value"
    assert len(lines) > 10


def test_a_picture_zooms_and_closes_from_the_keyboard(page):
    page.focus("button.picture")
    page.keyboard.press("Enter")
    assert page.locator("dialog[open] img").is_visible()
    before = page.locator("dialog img").bounding_box()["width"]
    page.click("dialog [data-zoom='1.25']")
    assert page.locator("dialog img").bounding_box()["width"] > before
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_every_control_and_picture_has_a_name(page):
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, img, dialog")].filter(e =>
            !(e.ariaLabel || e.textContent.trim() || e.alt || (e.labels || []).length)
        ).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert [item for item in unnamed if not item.startswith('<img alt=""')] == []
