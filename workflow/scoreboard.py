"""The scoreboard: the paper's figures and tables beside ours, then all numbers, by chapter.

    scoreboard.py OUTPUT RESULT...

Each RESULT is a JSON file as `rrlib.lab.results.publish` writes it; `paper.yaml` says which of
their numbers belong to what in the paper.
"""

import argparse
from pathlib import Path

import yaml
from chapter_tables import PROFILES, Results, alike, chapter_of, chapters, line, place, plain, stale
from quoted import entry, said

from rrlib.lab.results import meets
from rrlib.lab.results import read as read_result

ROOT = Path(__file__).resolve().parent.parent


def page(results: list[dict]) -> str:
    """The generated part of the page; one sentence if there is nothing to show."""
    if not results:
        return "No results have been published yet.\n"
    found = {(result["study"], result["profile"]): result for result in results}
    below = chapters(found)
    return f"{paper_table(found, below)}\n## All numbers, by chapter\n\n{below}"


def paper_table(found: Results, below: str) -> str:
    """One row for each figure and table of the paper and each accuracy in its text.

    below: the chapters' tables, to which rows lead.
    """
    lines = ["| in the paper, here in chapter | paper | full | quick | how comparable | again |"]
    lines.append("|---" * 6 + "|")
    for row in yaml.safe_load((ROOT / "workflow" / "paper.yaml").read_text(encoding="utf-8")):
        ours = [_cell(found, row, profile) for profile in PROFILES]
        chapter = f"{{doc}}`{row['chapter'][:2]} </notebooks/{row['chapter']}>`"
        what = f"**{plain(row['item'])}**, {plain(row['what'])} ({chapter})"
        led = place(chapter_of(row.get("study", "")) or "")
        again = f"{{ref}}`how <{led}>`" if f"({led})=" in below else "–"
        cells = [what, *map(plain, [row["paper"], *ours, row["comparable"]]), again]
        lines.append(line(cells))
    return "\n".join(lines) + "\n"


def _cell(found: Results, row: dict, profile: str) -> str:
    """What a profile measured of a row of the paper."""
    if "study" not in row:
        return "–"
    result = found.get((row["study"], profile))
    if result is None and profile == "full" and alike(row["chapter"]):
        return "as quick"
    if result is None or row["name"] not in result["summary"]:
        return "not measured"
    ours = entry(result, row["name"])
    if ours["value"] is None:
        return "not measured"
    missed = "bar" in ours and not meets(ours["value"], ours["bar"])
    marks = " (missed)" * missed + " (stale)" * bool(stale(result))
    return said(result, row["name"], row["form"]) + marks


def read(paths: list[Path]) -> list[dict]:
    """The results in these files. Of two with one study and profile the later one counts.

    Raises InputError, naming the file, for one that is damaged or not of the published form.
    """
    found = {}
    for path in paths:
        result = read_result(path)
        found[result["study"], result["profile"]] = result
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("results", nargs="*", type=Path)
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(page(read(args.results)), encoding="utf-8")


if __name__ == "__main__":
    main()
