"""What the address of a repository turns on, and the parts of the first page."""

import shutil
from pathlib import Path

import build_site
import headline
import nbformat
import picture
import pytest
import yaml
from bs4 import BeautifulSoup
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
ADDRESS = "https://github.com/somebody/made-up"


def test_without_an_address_nothing_is_turned_on():
    config = CONFIG | {"repository": {"url": "", "branch": "main"}}
    assert build_site.configured(config) == config
    assert build_site.cloud(config) == ""


@pytest.mark.book
def test_one_address_turns_on_all_buttons(tmp_path):
    """A book of two pages, built with the settings of this one and a made-up address."""
    site = tmp_path / "site"
    shutil.copytree(ROOT / "book", site / "book", ignore=shutil.ignore_patterns("_generated"))
    told = CONFIG | {"repository": {"url": ADDRESS, "branch": "main"}}
    config = build_site.configured(told)
    (site / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    toc = {"format": "jb-book", "root": "first", "chapters": [{"file": "notebooks/01_one"}]}
    (site / "_toc.yml").write_text(yaml.safe_dump(toc), encoding="utf-8")
    (site / "first.md").write_text(f"# First\n\n{build_site.cloud(told)}", encoding="utf-8")
    cells = [nbformat.v4.new_markdown_cell("# One")]
    (site / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), site / "notebooks" / "01_one.ipynb")
    build_site.build(site, tmp_path / "html")

    def links(name: str) -> set[str]:
        page = (tmp_path / "html" / name).read_text(encoding="utf-8")
        return {a["href"] for a in BeautifulSoup(page, "html.parser").select("a[href]")}

    of_all = {ADDRESS, f"{ADDRESS}/issues/new"}
    path = "main/notebooks/01_one.ipynb"
    hosts = {
        "https://mybinder.org/v2/gh/somebody/made-up/main?urlpath=lab/tree/notebooks/01_one.ipynb",
        f"https://colab.research.google.com/github/somebody/made-up/blob/{path}",
    }
    assert of_all <= {link.partition("?")[0] for link in links("first.html")}
    assert of_all <= {link.partition("?")[0] for link in links("notebooks/01_one.html")}
    assert hosts <= links("notebooks/01_one.html") and not hosts & links("first.html")
    assert f"git clone {ADDRESS} book" in (tmp_path / "html" / "first.html").read_text()


def test_the_first_rows_are_rows_of_the_whole_table():
    first, whole = headline.table(first=True).splitlines(), headline.table().splitlines()
    assert 4 <= len(first) - 2 <= 6
    assert [line for line in whole if line in first] == first


def test_the_film_is_a_chapters_own(tmp_path):
    said = picture.film(ROOT / "notebooks" / "06_maze_rewards.ipynb", tmp_path / "film.webp")
    with Image.open(tmp_path / "film.webp") as film:
        assert film.format == "WEBP" and film.n_frames > 10
    alt, caption = said.split("\n\n")
    assert alt.startswith(":alt: Two maze panels") and "yellow is a high reward" in caption
    with pytest.raises(ValueError, match="shows no film"):
        picture.film(ROOT / "notebooks" / "01_ornstein_uhlenbeck.ipynb", tmp_path / "none.webp")
