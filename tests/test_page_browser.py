"""The page in a real browser: it sorts, tells, turns dark, loads nothing and fits a phone.

    INCRS_REPORT=multirun/2026-01-31/10-00-00/report.html pytest -m slow tests/test_page_browser.py

looks at the page of a sweep of yours instead of a made one.  Screenshots lie in pytest's tmp_path.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from incrs.report import main
from tests.test_page import write_sweep

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
BAD = "<script>alert(1)</script>"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser on the PATH: one of {', '.join(BROWSERS)}")
    with driver.sync_playwright() as one:
        found = one.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("INCRS_REPORT")
    if given:
        return Path(given).resolve()
    folder = write_sweep(tmp_path_factory.mktemp("sweep"), data="kuairand-pure")
    assert main([str(folder)]) == 0
    return folder / "report.html"


class Seen:
    """A page that is open, with everything that went wrong on it."""

    def __init__(self, browser: Any, file: Path, width: int, **options: Any):
        self.trouble: list[str] = []
        view = {"width": width, "height": 900}
        self.context = browser.new_context(viewport=view, offline=True, **options)
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("dialog", lambda box: self.trouble.append(f"dialog {box.message}"))
        self.page.on("console", lambda said: self.trouble.append(said.text))
        self.page.on("request", self.ask)
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("#curves-chart .scatterlayer .trace")

    def ask(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.trouble.append(f"request {request.url}")

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.context.close()
        assert kind is not None or not self.trouble


def told(page: Any) -> str:
    """Return what the chart of curves says where the pointer comes to its middle."""
    chart = page.locator("#curves-chart")
    chart.scroll_into_view_if_needed()
    page.wait_for_timeout(200)
    box = chart.bounding_box()
    for step in range(5):
        page.mouse.move(box["x"] + box["width"] / 2 + step, box["y"] + box["height"] / 2)
    page.locator("#tip tr").first.wait_for()
    return str(page.locator("#tip").inner_text())


def column(page: Any, place: int) -> list[float]:
    cells = page.locator(f"#all tbody tr > :nth-child({place})")
    return [float(value) for value in cells.evaluate_all("c => c.map(e => e.dataset.value)")]


def test_a_head_sorts_by_click_and_by_key(browser: Any, report: Path) -> None:
    with Seen(browser, report, 1280) as page:
        names = page.locator("#all thead th").all_text_contents()
        place = names.index("AUC") + 1
        head = page.locator(f"#all thead th:nth-child({place})")
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        assert column(page, place) == sorted(column(page, place), reverse=True)
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        assert column(page, place) == sorted(column(page, place))
        page.locator("#all thead th:first-child button").click()
        assert page.locator("#all th[aria-sort]").count() == 1
        shown = page.locator("#all tbody th").all_text_contents()
        assert shown == sorted(shown)


def test_a_curve_tells_its_numbers_and_shows_differences(browser: Any, report: Path) -> None:
    with Seen(browser, report, 1280) as page:
        assert page.locator("#tip").is_hidden()
        assert "finetune" in told(page)
        page.locator("#as-gap").click()
        assert "finetune" not in told(page)
        lines = page.locator("#curves-chart .scatterlayer .trace")
        before = lines.count()
        page.locator("#legend button").last.click()
        page.wait_for_function(
            f"document.querySelectorAll('#curves-chart .scatterlayer .trace').length < {before}"
        )
        page.locator("#scenario").select_option(index=1)
        assert lines.count()


def test_the_theme_is_the_systems_or_the_switchs_and_print_is_white(
    browser: Any, report: Path, tmp_path: Path
) -> None:
    def paper(page: Any) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    with Seen(browser, report, 1280, color_scheme="dark") as page:
        dark = paper(page)
        assert len(page.pdf(path=tmp_path / "report.pdf", print_background=True)) > 20_000
        assert paper(page) == dark
        page.locator("#theme").click()
        assert paper(page) == "rgb(255, 255, 255)" != dark
        page.reload()
        assert paper(page) == "rgb(255, 255, 255)"


@pytest.mark.parametrize(("width", "mobile"), [(1280, False), (390, True)])
def test_it_fits_its_screen(
    browser: Any, report: Path, tmp_path: Path, width: int, mobile: bool
) -> None:
    with Seen(browser, report, width, is_mobile=mobile, has_touch=mobile) as page:
        for theme in ("light", "dark"):
            assert page.locator("html").get_attribute("data-theme") == theme
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            picture = page.screenshot(path=tmp_path / f"{theme}_{width}.png", full_page=True)
            assert len(picture) > 20_000
            page.locator("#theme").click()
        page.set_viewport_size({"width": min(width, 375), "height": 700})
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= min(width, 375)


def test_names_are_text_in_tables_charts_and_hover(browser: Any, tmp_path: Path) -> None:
    updaters = {"finetune": 0.0, f"{BAD}<b>x</b>": 0.01}
    for k in (1, 2):
        write_sweep(tmp_path, 2, BAD, "<b>m</b>", updaters, (BAD,), settings={"<i>k</i>": k})
    assert main([str(tmp_path)]) == 0
    with Seen(browser, tmp_path / "report.html", 1280) as page:
        assert BAD in page.locator("header").inner_text()
        assert f"{BAD}<b>x</b>" in page.locator("#all").inner_text()
        assert f"scenario {BAD}" in page.locator("#scenario").inner_text()
        assert "<i>k</i>" in page.locator("#settings .xtitle").first.text_content()
        assert f"{BAD}<b>x</b>" in told(page)
