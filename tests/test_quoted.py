"""Numbers in prose are those of the results files, and no Answer has one that nothing holds."""

import re
from pathlib import Path

import nbformat
import pytest
import quoted

ROOT = Path(__file__).resolve().parent.parent
# The chapters of trained models whose full run the book publishes.
FULL = sorted(
    path
    for path in (ROOT / "notebooks").glob("*.ipynb")
    if "beside_full" in path.read_text(encoding="utf-8")
)
MARK = "<!--{}/{}:{} {}-->{}<!--/-->"


@pytest.mark.parametrize("path", quoted.pages(), ids=lambda path: path.stem)
def test_marked_numbers_are_those_of_their_files(path):
    assert [line for text in quoted.texts(path) for line in quoted.wrong(text)] == []


def answer(path: Path) -> str:
    """The Answer of a chapter without marked numbers, addresses, code and formulas."""
    first = nbformat.read(path, as_version=4).cells[0].source
    text = quoted.MARK.sub("", first.partition("**Answer.**")[2])
    return re.sub(r"\{\w+\}`[^`]*`|`[^`]*`|\$[^$]*\$", "", text)


def test_the_chapters_with_a_full_run():
    assert [path.stem[:2] for path in FULL][:10] == [f"{k:02}" for k in range(5, 15)]


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_an_answer_names_the_full_run_and_has_no_number_of_its_own(path):
    text = answer(path)
    assert re.search(r"\bfull run\b", text)
    names = re.sub(r"D4RL|Algorithm \d", "", text)
    assert not re.findall(r"\S*\d\S*", names)
    assert len(quoted.MARK.findall(nbformat.read(path, as_version=4).cells[0].source)) >= 2


@pytest.mark.parametrize("name", ["README.md", "book/ledger.md", "notebooks/05_maze_data.ipynb"])
def test_what_the_full_run_missed_is_said(name):
    """The share of positions drawn inside walls, where chapter 05 asks for a twentieth."""
    marks = [m for text in quoted.texts(ROOT / name) for m in quoted.MARK.finditer(text)]
    assert ("maze2d-diffusers", "walls") in {(m["study"], m["name"]) for m in marks}


@pytest.fixture
def results(monkeypatch, tmp_path):
    """Files of another book."""
    from rrlib.lab.results import publish

    summary = {
        "found": {"value": 0.9375, "ci": [0.9, 0.98], "paper": 0.7812},
        "gain": {"value": -34.7, "ci": [-40.8, -27.1], "paper": 9.6},
        "n": 160,
    }
    publish(
        str(tmp_path / "results/full"),
        "maze",
        rows=[],
        summary=summary,
        parameters={},
        wall_seconds=9000.0,
    )
    monkeypatch.setattr(quoted, "ROOT", tmp_path)


@pytest.mark.parametrize(
    ("name", "form", "text"),
    [
        ("found", "%1", "93.8 %"),
        ("found", "%1+", "93.8 % (90.0 to 98.0)"),
        ("found", "paper %1", "78.1 %"),
        ("found", "count", "150 of 160"),
        ("found", "count+", "150 of 160 (90.0 to 98.0 %)"),
        ("found", ".3", "0.938"),
        ("gain", "pc0+", "−35 % (−41 to −27)"),
        ("gain", "paper pc1", "9.6 %"),
        ("time", "h1", "2.5"),
        ("n", ".0", "160"),
    ],
)
def test_forms(results, name, form, text):
    assert quoted.said(quoted.read("full", "maze"), name, form) == text


def test_a_number_that_has_moved_is_named_and_written_anew(results):
    right = MARK.format("full", "maze", "found", "%1", "93.8 %")
    old = right.replace("93.8", "93.7")
    said = quoted.wrong(f"so {right}, and {old}.")
    assert len(said) == 1 and said[0].endswith(" is '93.8 %'")
    assert quoted.renewed(f"so {old}.") == f"so {right}."
    with pytest.raises(KeyError):
        quoted.wrong(old.replace("found", "lost"))
    with pytest.raises(ValueError, match="form"):
        quoted.wrong(old.replace("%1", "#1"))
