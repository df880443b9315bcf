"""Print a built book to one PDF with page numbers and bookmarks, by Chromium: no LaTeX is needed.

    print_book.py --check
    print_book.py [HTML [OUTPUT [PAGE...]]]

With --check only whether there is a Chromium is looked at; without one either ends in a sentence.
All pages of the table of contents are put behind one another in one page, or those that are named
("book/intro"). Answers are open there, folded code is left out, a film is its last frame.
"""

import argparse
import base64
import functools
import http.server
import io
import posixpath
import shutil
import sys
import threading
from pathlib import Path
from urllib.parse import urldefrag

import yaml
from bs4 import BeautifulSoup, Tag
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
JOINED = "book/joined.html"  # beside the pages, so that their relative addresses hold
FOLDED = "a.headerlink, details.hide, .prev-next-footer, footer, button, script"
STYLE = """
@page { size: A4; margin: 16mm 15mm 18mm; }
html { font-size: 10pt; }
body, article { display: block; margin: 0; padding: 0; }
article { break-before: page; }
article:first-of-type { break-before: auto; }
h1, h2, h3 { break-after: avoid; }
figure, tr, .cell_output, .admonition, mjx-container { break-inside: avoid; }
.admonition:has(table, figure) { break-inside: auto; }
pre, code { white-space: pre-wrap; overflow-wrap: anywhere; }
div.highlight pre { font-size: 7.5pt; }
table { font-size: 8pt; overflow-wrap: anywhere; }
img { max-width: 100%; max-height: 230mm; }
"""
FOOTER = "<p style='width: 100%; text-align: center; font-size: 8px' class='pageNumber'></p>"


def joined(html: Path, names: list[str]) -> str:
    """One page of these, in order, with the settings of formulas of the first that has some."""
    soups = {
        name: BeautifulSoup((html / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
        for name in names
    }
    head = next((s for s in soups.values() if s.select_one(".math")), soups[names[0]]).head
    for script in head.find_all("script"):
        if not any(kept in str(script).lower() for kept in ("mathjax", "gaussians")):
            script.decompose()
    head.title.string = soups[names[0]].h1.find(string=True)
    articles = [_article(html, name, soup, set(names)) for name, soup in soups.items()]
    style = f"<style>{STYLE}</style></head>"
    start = f"<!doctype html>\n<html lang='en' data-theme='light'>{head}".replace("</head>", style)
    return (
        f"{start}<body><main class='bd-content'>{''.join(map(str, articles))}</main></body></html>"
    )


def _article(html: Path, name: str, soup: BeautifulSoup, names: set[str]) -> Tag:
    """A page's text under names of its own, with links to the other pages' places."""
    article = soup.article
    for folded in article.select(FOLDED):
        folded.decompose()
    article["id"] = _place(name, "")
    for tag in article.select("[id]"):
        tag["id"] = _place(name, tag["id"])
    for link in article.select("a[href]"):
        path, place = urldefrag(link["href"])
        if ":" in path.split("/")[0]:
            continue
        led = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
        if led.removesuffix(".html") in names:
            link["href"] = f"#{_place(led.removesuffix('.html'), place)}"
        else:
            del link["href"]
    for image in article.select("img"):
        if "webp" in image["src"][:40] or image["src"].endswith(".webp"):
            image["src"] = _last_frame((html / name).parent, image["src"])
    return article


def _place(name: str, place: str) -> str:
    return f"{name.replace('/', '-')}--{place}"


def _last_frame(folder: Path, source: str) -> str:
    """The end of a film, as an image in the page."""
    inside = source.startswith("data:")
    film = base64.b64decode(source.partition(",")[2]) if inside else (folder / source).read_bytes()
    kept = io.BytesIO()
    with Image.open(io.BytesIO(film)) as frames:
        frames.seek(frames.n_frames - 1)
        frames.convert("RGB").save(kept, "PNG")
    return f"data:image/png;base64,{base64.b64encode(kept.getvalue()).decode()}"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that keeps no log; fonts of formulas cannot be read from a file's address."""

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def print_book(html: Path, output: Path, names: list[str]) -> None:
    """Print the pages `names` of the built book `html`; their joined page stays beside them."""
    from playwright.sync_api import sync_playwright

    (html / JOINED).write_text(joined(html, names), encoding="utf-8")
    handler = functools.partial(Quiet, directory=str(html))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    output.parent.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page()
        page.set_default_timeout(600_000)  # of a thousand formulas, on a machine with other work
        page.goto(f"http://127.0.0.1:{server.server_port}/{JOINED}", wait_until="load")
        page.evaluate("() => window.MathJax ? MathJax.startup.promise.then(() => 1) : 1")
        page.evaluate("() => document.fonts.ready.then(() => 1)")
        page.pdf(
            path=output,
            prefer_css_page_size=True,
            print_background=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=FOOTER,
            outline=True,
            tagged=True,
        )
        browser.close()
    server.shutdown()
    server.server_close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("html", type=Path, nargs="?", default=ROOT / "_run" / "pages" / "html")
    parser.add_argument("output", type=Path, nargs="?", default=ROOT / "_build" / "book.pdf")
    parser.add_argument("pages", nargs="*")
    args = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("Chromium is needed: apt-get install chromium")
    if args.check:
        return
    from build_site import pages  # it takes seconds to load what draws

    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    print_book(args.html.resolve(), args.output.resolve(), args.pages or pages(toc))


if __name__ == "__main__":
    main()
