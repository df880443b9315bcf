"""The printed book: every page is in it, formulas are set, answers are open, links lead to it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent.parent
HTML = Path(os.environ.get("RRLIB_HTML", "_build/html")).resolve()
NAMES = ("book/intro", "book/notation", "notebooks/02_existence_uniqueness")
SCRIPT = [sys.executable, str(ROOT / "workflow" / "print_book.py")]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, BeautifulSoup]:
    """The PDF of three pages, and the page that was printed."""
    folder = tmp_path_factory.mktemp("pdf")
    shutil.copytree(HTML, folder / "html")  # what is tested here stays as it was built
    subprocess.run([*SCRIPT, folder / "html", folder / "three.pdf", *NAMES], check=True)
    joined = (folder / "html" / "book" / "joined.html").read_text(encoding="utf-8")
    return (folder / "three.pdf").read_bytes(), BeautifulSoup(joined, "html.parser")


def test_it_has_pages_bookmarks_and_set_formulas(printed):
    """What Chromium writes into a PDF uncompressed: pages, fonts and the titles of bookmarks."""
    pdf, joined = printed
    assert b"/Title (Relative rewards of two diffusion models)" in pdf[:400]
    pages = len(re.findall(rb"/Type /Page\b(?!s)", pdf))
    assert 12 <= pages <= 60
    assert rb"+MathJax_Math-Italic" in pdf and rb"+MathJax_Main-Regular" in pdf
    titles = set(re.findall(rb"/Title \(([^)]*)\)", pdf))
    assert {b"Notation", b"The theorem", b"2. Existence and uniqueness"} <= titles
    assert len(joined.select("article")) == len(NAMES)


def test_what_is_printed_has_no_raw_formula_and_nothing_folded(printed):
    _, joined = printed
    assert "Each has one solution, and" in joined.get_text()  # beside a formula of the theorem
    assert len(joined.select("span.math, div.math")) > 100
    text = BeautifulSoup(str(joined.main), "html.parser")
    for tag in text.select(".math, pre, code"):
        tag.decompose()
    assert "$" not in text.get_text() and "\\" not in text.get_text()
    assert not joined.select("details, button, article script, .headerlink")
    answers = [a for a in joined.select(".admonition") if a.p.get_text(strip=True) == "Answer"]
    assert len(answers) == 3 and all(len(a.get_text()) > 60 for a in answers)
    assert joined.select_one("img[src^='data:image/png']")["alt"].startswith("Two maze panels")


def test_links_lead_to_places_in_it(printed):
    _, joined = printed
    places = {tag["id"] for tag in joined.select("[id]")}
    links = [a["href"] for a in joined.select("main a[href]") if a["href"].startswith("#")]
    assert len(links) > 15 and {link[1:] for link in links} <= places
    others = {a["href"] for a in joined.select("main a[href]")} - set(links)
    assert all(link.startswith("https://") for link in others)


def test_without_chromium_it_says_so(tmp_path):
    done = subprocess.run(
        [*SCRIPT, "--check"], capture_output=True, text=True, env={"PATH": str(tmp_path)}
    )
    assert done.returncode == 1
    assert done.stderr == "Chromium is needed: apt-get install chromium\n"
