"""The HTML of the committed chapters: complete, described, and readable without a network."""

import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup
from build_site import pages

pytestmark = pytest.mark.book

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("book")
    command = [sys.executable, str(ROOT / "workflow" / "build_site.py")]
    command += ["--notebooks", str(ROOT / "notebooks"), "--results", str(ROOT / "results")]
    command += ["--work", str(work), "--html", str(work / "html")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return work / "html"


@pytest.fixture(scope="module")
def soups(html: Path) -> dict[Path, BeautifulSoup]:
    pages = {
        path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for path in sorted(html.rglob("*.html"))
        if "_static" not in path.parts
    }
    return {path: soup for path, soup in pages.items() if not soup.select("meta[http-equiv]")}


def test_old_addresses_lead_to_pages(html):
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    found = config["sphinx"]["config"]["redirects"]
    assert len(found) == 9
    for old, new in found.items():
        page = BeautifulSoup((html / f"{old}.html").read_text(encoding="utf-8"), "html.parser")
        assert new in page.select_one("meta[http-equiv=refresh]")["content"]
        assert (html / "notebooks" / new).exists()


def test_every_page_of_the_table_of_contents_is_there(html):
    assert (html / "index.html").exists()
    for page in pages(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))):
        assert (html / f"{page}.html").exists(), page


def test_every_figure_has_alternative_text_and_a_caption(soups):
    seen = 0
    for path, soup in soups.items():
        for image in soup.select("article img"):
            seen += 1
            alt = image.get("alt", "").strip()
            # Without a text of its own an image gets its file's name.
            assert alt and not alt.endswith((".png", ".svg", ".webp")), f"{path.name}: {image}"
            caption = image.find_parent("figure").find("figcaption")
            assert caption and caption.get_text(strip=True), f"{path.name}: {alt}"
    assert seen


def test_tables_are_drawn_as_tables(soups):
    for path, soup in soups.items():
        for paragraph in soup.select("article p"):
            assert not paragraph.get_text().startswith("|"), f"{path.name}: {paragraph}"
        if path.parent.name == "notebooks":  # each ends in its card
            assert any("made with" in table.get_text() for table in soup.select("article table"))


def test_nothing_is_loaded_from_a_network(soups):
    for path, soup in soups.items():
        for element in soup.find_all(["script", "link", "img", "iframe", "video", "source"]):
            url = element.get("src") or element.get("href") or ""
            assert not urlsplit(url).netloc, f"{path.name}: {element}"
            if url and not url.startswith("data:"):
                assert (path.parent / urlsplit(url).path).exists(), f"{path.name}: {url}"


def test_formulas_are_drawn_by_a_local_script(soups):
    for path, soup in soups.items():
        if soup.select(".math"):
            scripts = [script.get("src") or "" for script in soup.find_all("script")]
            assert any("_static/mathjax/" in script for script in scripts), path.name
