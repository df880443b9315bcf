"""The table that the first page and the README share, made of the full run's files.

headline.py [--write]    with --write, put it into README.md between its two marks
"""

import argparse
import re
from pathlib import Path

import yaml
from quoted import read, said

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- headline: made by workflow/headline.py -->\n", "<!-- end of headline -->\n"


def table(first: bool = False) -> str:
    """The table in Markdown; with `first` only the rows that are marked so."""
    rows = yaml.safe_load((ROOT / "workflow" / "headline.yaml").read_text(encoding="utf-8"))
    rows = [row for row in rows if row.get("first") or not first]
    lines = ["| | paper | here, 95 % interval | what differs |", "|---|---|---|---|"]
    for row in rows:
        cells = row["what"], *(_filled(row[name]) for name in ("paper", "here", "differs"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _filled(text: str) -> str:
    """The text with its numbers."""
    pattern = r"\{([\w-]+):([\w.]+) ([^}]+)\}"
    return re.sub(pattern, lambda m: said(read("full", m[1]), m[2], m[3]), text)


def renewed(text: str) -> str:
    """A page with the table between its marks. Raises ValueError if it has none."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError("the page has no place for the table")
    return f"{before}{START}\n{table()}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true")
    readme = ROOT / "README.md"
    if parser.parse_args().write:
        readme.write_text(renewed(readme.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
