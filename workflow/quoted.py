"""Numbers of results files as prose writes them, and the marks that name their files.

    quoted.py            check every page; one line for each number that its file does not have
    quoted.py --write    write them anew

In a chapter's or a page's Markdown a number stands between two comments, which no reader sees:

    <!--full/maze2d:goal_found count-->160 of 160<!--/-->

The first names profile, study, entry of the summary and form. Forms:

    .2      the value with two decimals
    %1      the value times 100 with one decimal, and the sign
    pc0     the same of a value that is in per cent already
    x1      how many times, with one decimal
    count   a share of n cases, n from the same file: "160 of 160"
    h1      seconds of the file's processor time, as hours; the entry's name is "time"
    paper   before another form: the paper's number of that entry
A plus behind a form adds the interval, if there is one: "93.7 % (92.2 to 95.2)".
"""

import argparse
import re
import sys
from pathlib import Path

import nbformat
from normalise import written

from rrlib.lab import results

ROOT = Path(__file__).resolve().parent.parent
MARK = re.compile(
    r"<!--(?P<profile>\w+)/(?P<study>[\w-]+):(?P<name>[\w.]+) (?P<form>[^>]+?)-->"
    r"(?P<text>[^<]*)<!--/-->"
)


def read(profile: str, study: str) -> dict:
    """A published result."""
    return results.read(ROOT / "results" / profile / f"{study}.json")


def entry(result: dict, name: str) -> dict:
    """An entry of a result's summary, with its `value`; "time" is its processor time in seconds."""
    if name == "time":
        return {"value": result["provenance"]["wall_seconds"]}
    found = result["summary"][name]
    return found if isinstance(found, dict) else {"value": found}


def said(result: dict, name: str, form: str) -> str:
    """A number of a result in one of the forms above.

    Raises KeyError for a number that the result does not have, ValueError for another form.
    """
    found = entry(result, name)
    theirs, form = form.startswith("paper "), form.removeprefix("paper ")
    interval, form = form.endswith("+"), form.removesuffix("+")
    value = found["paper"] if theirs else found["value"]
    if form == "count":
        n = entry(result, "n")["value"]
        text = f"{round(value * n)} of {n:.0f}"
        factor, digits = 100, 1
    else:
        factor, digits, sign = _scale(form)
        text = f"{_fixed(factor * value, digits)}{sign}"
    if interval and "ci" in found:
        low, high = (_fixed(factor * end, digits) for end in found["ci"])
        text += f" ({low} to {high}{' %' if form == 'count' else ''})"
    return text


def _scale(form: str) -> tuple[float, int, str]:
    match = re.fullmatch(r"(\.|%|pc|x|h)(\d)", form)
    if not match:
        raise ValueError(f"form {form!r} is none of .2, %1, pc0, x1, h1 and count")
    factor = {"%": 100, "h": 1 / 3600}.get(match[1], 1)
    return factor, int(match[2]), {"%": " %", "pc": " %", "x": " times"}.get(match[1], "")


def _fixed(value: float, digits: int) -> str:
    try:
        return f"{value:,.{digits}f}".replace("-", "−")
    except OverflowError:  # an integer of over 308 digits
        return f"10^{len(str(value)) - 1}"


def renewed(text: str) -> str:
    """The text with every marked number as its file has it."""
    return MARK.sub(lambda m: m[0].replace(f"-->{m['text']}<", f"-->{_of(m)}<"), text)


def _of(mark: re.Match) -> str:
    return said(read(mark["profile"], mark["study"]), mark["name"], mark["form"])


def wrong(text: str) -> list[str]:
    """One line for each marked number that differs from its file."""
    return [f"{m[0]} is {_of(m)!r}" for m in MARK.finditer(text) if _of(m) != m["text"]]


def texts(path: Path) -> list[str]:
    """The Markdown of a page or a notebook, in pieces."""
    if path.suffix == ".md":
        return [path.read_text(encoding="utf-8")]
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "markdown"]


def renew(path: Path) -> None:
    """Write a page or a notebook with its numbers as their files have them."""
    if path.suffix == ".md":
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
        return
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = renewed(cell.source)
    path.write_text(written(notebook), encoding="utf-8")


def pages() -> list[Path]:
    """Every page and chapter of the book, and the README."""
    found = [*ROOT.glob("book/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    return [ROOT / "README.md", *sorted(found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the files' numbers into the text")
    if parser.parse_args().write:
        for path in pages():
            renew(path)
    found = [
        f"{path.name}: {line}" for path in pages() for text in texts(path) for line in wrong(text)
    ]
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
