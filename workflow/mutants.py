"""Meant defects, each put into a copy of the tree, and whether a quick test turns red.

mutants.py [--only NAME ...] [--cores N] [--named] [--write]

    --only      those whose names contain one of these words
    --cores     so many at a time
    --named     only the tests that an entry names, not all other quick ones after them
    --write     put what was found into tests/mutants.json, and its table into CONTRIBUTING.md

The defects are in `tests/mutants.yaml`. What is found is kept in `_run/mutants`, by a digest of
rrlib and tests, so a run that was stopped goes on. The checkout is not touched.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import yaml

from rrlib import disk
from rrlib.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
FOUND = ROOT / "tests" / "mutants.json"
KINDS = (
    *("sign", "split", "normaliser", "seed", "units", "off-by-one", "pass-through", "interval"),
    *("mask", "stale", "other"),
)
# They look at the text of the code, or at this list: a defect is to be seen by what it does.
TEXTUAL = tuple(
    f"tests/test_{name}.py" for name in ("recipe_code", "repo", "prose", "quoted", "mutants")
)
START, END = "<!-- mutants: made by workflow/mutants.py -->\n", "<!-- end of mutants -->\n"

Mutant = Mapping[str, object]  # name, kind, find, put, tests


def mutants() -> list[Mutant]:
    """The defects, see `tests/mutants.yaml`."""
    return yaml.safe_load((ROOT / "tests" / "mutants.yaml").read_text(encoding="utf-8"))


def place(root: Path, mutant: Mutant) -> Path:
    """The file of rrlib that a defect goes into; InputError unless its text occurs once in all."""
    counts = {
        path: path.read_text(encoding="utf-8").count(mutant["find"])
        for path in sorted((root / "rrlib").rglob("*.py"))
    }
    there = [path for path, count in counts.items() if count]
    if sum(counts.values()) != 1:
        raise InputError(
            f"mutant '{mutant['name']}': its text occurs {sum(counts.values())} times in rrlib, "
            "and once is needed."
        )
    return there[0]


def mutated(path: Path, mutant: Mutant) -> str:
    """A file's text with the defect."""
    return path.read_text(encoding="utf-8").replace(mutant["find"], mutant["put"])


def mark(mutant: Mutant) -> str:
    """A digest of what is put where: another defect under an old name is another one."""
    return disk.digest([mutant["find"], mutant["put"]])[:12]


def merged(before: Mapping[str, dict], results: Mapping[str, dict]) -> dict[str, dict]:
    """What the file says after a run: of each defect what was found first, and now."""
    after = {}
    for mutant in mutants():
        name, own = mutant["name"], mark(mutant)
        old = before.get(name, {})
        old = old if old.get("mark") == own else {}
        now = results.get(name) or old.get("now")
        if now:
            after[name] = {"mark": own, "first": old.get("first", now), "now": now}
    return after


def table(known: Mapping[str, dict]) -> str:
    """What was found, by kind, in Markdown."""
    kinds = {m["name"]: m["kind"] for m in mutants()}
    lines = ["| kind | defects | caught at first | caught now |", "|---|---|---|---|"]
    for kind in (*KINDS, "all"):
        mine = [known[n] for n, k in kinds.items() if n in known and kind in (k, "all")]
        caught = [sum(one[when]["caught"] for one in mine) for when in ("first", "now")]
        lines.append(f"| {kind} | {len(mine)} | {caught[0]} | {caught[1]} |")
    lost = [name for name, one in known.items() if not one["now"]["caught"]]
    commits = dict.fromkeys(str(one["now"]["commit"])[:8] for one in known.values())
    said = f"Not caught: {'; '.join(lost)}." if lost else "None is left uncaught."
    return "\n".join([*lines, "", f"{said} Found at {', '.join(commits)}."]) + "\n"


def renewed(text: str, known: Mapping[str, dict]) -> str:
    """A page with the table between its marks. Raises ValueError if it has none."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError("the page has no place for the table")
    return f"{before}{START}\n{table(known)}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--named", action="store_true")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    words = asked.only or [""]
    chosen = [m for m in mutants() if any(word in m["name"] for word in words)]
    from mutant_runs import run  # it takes seconds, and the table needs none of it

    results = run(chosen, asked.cores, asked.named)
    caught = sum(one["caught"] for one in results.values())
    print(f"{caught} of {len(results)} caught")
    if asked.write:
        known = merged(disk.read_json(FOUND) if FOUND.exists() else {}, results)
        disk.write_json(FOUND, known)
        page = ROOT / "CONTRIBUTING.md"
        page.write_text(renewed(page.read_text(encoding="utf-8"), known), encoding="utf-8")


if __name__ == "__main__":
    main()
