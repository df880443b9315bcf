"""Every page of the built book in a real browser: quiet, self-contained, legible, reachable.

Its own target, `make test-book`, for it needs Chromium: `pytest` alone does not come here.
"""

import functools
import http.server
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urldefrag

import numpy as np
import pytest
from axe_playwright_python.base import AXE_SCRIPT
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, Page, sync_playwright
from scipy.stats import norm

HTML = Path(os.environ.get("RRLIB_HTML", "_build/html")).resolve()
PAGES = sorted(
    path.relative_to(HTML).as_posix()
    for path in HTML.rglob("*.html")
    if "_static" not in path.parts
    and path.name != "search.html"  # the theme's own; searched below
    and "http-equiv" not in path.read_text(encoding="utf-8")[:400]
)
WIDTHS = (1280, 390)  # a laptop's and a phone's, CSS pixels
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
READY = """() => !window.MathJax || document.querySelector("mjx-container") !== null
    || !document.querySelector(".math")"""
# A page hears of its new width before the frame after the next.
FRAME = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
# Typeset formulas hold no text of their own, and code may hold a backslash.
TEXT = """() => {
    const copy = document.querySelector("article").cloneNode(true);
    copy.querySelectorAll("pre, code, script, mjx-container, .math").forEach(one => one.remove());
    return copy.textContent;
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that keeps no log."""

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(HTML))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=options)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    made = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
    made.set_default_timeout(120_000)  # a machine with other work is slow, not wrong
    yield made
    made.close()


def settled(page: Page, url: str) -> Page:
    """The page, loaded, its formulas typeset."""
    page.goto(url, wait_until="load")
    page.wait_for_function(READY)
    return page


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_quiet_legible_and_alone(page, address, name):
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    settled(page, address + name)
    assert not said
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []

    assert not re.search(r"\\[a-zA-Z]{2,}|\$\$|\\[()\[\]]", page.evaluate(TEXT))
    blank = "[...document.images].filter(image => !image.naturalWidth).map(image => image.src)"
    assert page.evaluate(blank) == []

    page.evaluate(AXE_SCRIPT)
    for theme in ("light", "dark"):
        page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            page.evaluate(FRAME)
            wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wide <= 0, f"{theme}, {width} px: {wide} px too wide"
        found = page.evaluate("axe.run('article', {resultTypes: ['violations'], preload: false})")
        assert [
            (v["id"], node["html"][:160])
            for v in found["violations"]
            if v["impact"] in ("serious", "critical")
            for node in v["nodes"]
        ] == [], theme


def test_pages_are_small(browser, address):
    """All that a page asks for, with nothing cached, in bytes."""
    sizes = {}
    for name in PAGES:
        context = browser.new_context()
        page, found = context.new_page(), []
        page.on("response", lambda response, found=found: found.append(response))
        settled(page, address + name)
        page.wait_for_load_state("networkidle")
        sizes[name] = sum(len(response.body()) for response in found if response.ok)
        context.close()
    assert sizes["book/intro.html"] <= 1.5e6
    assert max(sizes.values()) <= 3e6, max(sizes.items(), key=lambda item: item[1])


def test_links_lead_to_pages_and_places_that_exist():
    soups = {
        name: BeautifulSoup((HTML / name).read_text(encoding="utf-8"), "html.parser")
        for name in PAGES
    }
    places = {name: {tag["id"] for tag in soup.select("[id]")} for name, soup in soups.items()}
    for name, soup in soups.items():
        for link in soup.select("article a[href]"):
            path, place = urldefrag(link["href"])
            if ":" in path.split("/")[0]:
                continue
            led = (HTML / name).parent / path if path else HTML / name
            assert led.exists(), f"{name}: {link['href']}"
            target = led.resolve().relative_to(HTML).as_posix()
            if place and target in places:
                assert place in places[target], f"{name}: {link['href']}"


def test_search_finds_a_chapter(page, address):
    page.goto(f"{address}search.html?q=conservative", wait_until="load")
    page.wait_for_selector("#search-results li a")
    found = page.eval_on_selector_all("#search-results li a", "links => links.map(a => a.href)")
    assert any("03_conservative_projection" in link for link in found)


def test_a_film_can_be_stopped(page, browser, address):
    settled(page, f"{address}notebooks/06_maze_rewards.html")
    film, button = (
        page.locator("figure > img[src^='data:image/webp']"),
        page.locator("figure button"),
    )
    assert film.is_visible() and button.text_content() == "Stop the film"
    button.click()
    assert not film.is_visible() and page.locator("figure > canvas").is_visible()
    assert button.text_content() == "Play the film"
    button.click()
    assert film.is_visible()
    calm = browser.new_page(reduced_motion="reduce")
    settled(calm, f"{address}notebooks/06_maze_rewards.html")
    assert calm.locator("figure > canvas").is_visible()
    calm.close()


def test_the_first_page_says_it_in_one_screen(page, address):
    """Of a small laptop: picture, film, the table's first rows and the doors; on a phone no tiny
    picture."""
    page.set_viewport_size({"width": 1280, "height": 800})
    settled(page, f"{address}book/intro.html")
    screen = page.locator(".first-screen")
    assert screen.locator("img").count() == 2 and screen.locator("tbody tr").count() >= 4
    assert screen.locator("dt a").all_text_contents() == ["Read", "Run it again", "Use it"]
    box = screen.bounding_box()
    assert box["y"] > 0 and box["y"] + box["height"] <= 800
    assert not page.get_by_text("49 days of a P40 GPU").is_visible()
    page.get_by_text("All rows of the table").click()
    assert page.get_by_text("49 days of a P40 GPU").is_visible()
    page.set_viewport_size({"width": 390, "height": 800})
    page.evaluate(FRAME)
    assert page.locator("img.wide").bounding_box()["width"] > 700


@pytest.mark.parametrize("name", ["book/intro", "notebooks/06_maze_rewards"])
def test_a_figure_keeps_its_colours_in_the_dark(page, address, name):
    """It stands undimmed on a white card: what is drawn in black stays to be seen."""
    settled(page, f"{address}{name}.html")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    shown = page.eval_on_selector_all(
        "article figure img",
        "all => all.map(getComputedStyle).map(s => [s.filter, s.backgroundColor])",
    )
    assert len(shown) > 1 and set(map(tuple, shown)) == {("none", "rgb(255, 255, 255)")}


def test_a_link_to_a_folded_box_opens_it(page, address):
    settled(page, f"{address}book/scoreboard.html")
    table = page.locator("#numbers-of-06 ~ *, #numbers-of-06").get_by_text("run again by").first
    assert not table.is_visible()
    page.get_by_role("link", name="how", exact=True).first.click()
    table.wait_for(state="visible")


def test_the_gaussians_of_the_page_are_the_ones_of_the_formulas(page, address):
    """The reward against SciPy's densities; the steered base at w = 1 against the expert."""
    settled(page, f"{address}book/play.html")
    x, t = np.linspace(-3, 3, 7), 40
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.12, 100))[t]
    scale, rest = np.sqrt(alpha_bar), 1 - alpha_bar
    expert, base = norm(1.5 * scale, np.sqrt(0.25 * alpha_bar + rest)), norm(0, 1)
    shown = page.evaluate("([xs, t]) => xs.map(x => Gaussians.reward(x, t))", [x.tolist(), t])
    np.testing.assert_allclose(shown, expert.logpdf(x) - base.logpdf(x), atol=1e-10)

    page.locator("[data-set=t]").fill("0")
    page.locator("[data-set=w]").fill("1")
    read = {
        (kind, name): float(page.locator(f"[data-{kind}={name}]").text_content())
        for kind in ("mean", "deviation")
        for name in ("expert", "steered", "product")
    }
    for kind in ("mean", "deviation"):
        assert abs(read[kind, "steered"] - read[kind, "expert"]) < 0.05
        assert read[kind, "product"] == read[kind, "expert"]
    page.locator("[data-set=w]").fill("3")
    assert page.locator("output[data-of=w]").text_content() == "w = 3.0"
    steered, product = (
        float(page.locator(f"[data-deviation={name}]").text_content())
        for name in ("steered", "product")
    )
    assert steered < 0.9 * product  # the right slope at each level is not the product at the end


def test_the_test_sees_a_bad_page(page, tmp_path, address):
    """What it looks for is what it finds: an image without alt text, grey on grey, too wide."""
    page.set_content(
        "<article><img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>"
        "<p style='color:#aaa;background:#bbb;width:3000px'>grey</p></article>"
    )
    page.evaluate(AXE_SCRIPT)
    found = page.evaluate("axe.run('article', {resultTypes: ['violations'], preload: false})")
    assert {"image-alt", "color-contrast"} <= {violation["id"] for violation in found["violations"]}
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") > 0
