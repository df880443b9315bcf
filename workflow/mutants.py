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
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import yaml

from rrlib import disk
from rrlib.errors import InputError
from rrlib.lab import environment

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
PATIENCE = 7200  # seconds; a defect that never ends is seen, too

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


def copied(folder: Path) -> None:
    """The files of the checkout, as they are, in an empty folder."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def red(folder: Path, tests: Sequence[str]) -> str:
    """The first quick test that fails in a copy of the tree; empty if none does.

    Raises:
        InputError: pytest itself fails, such as over a test that is not there.
    """
    ignored = [f"--ignore={name}" for name in TEXTUAL]
    options = ["-q", "-x", "-n", "0", "--tb=no", "-rfE", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "-m", "not slow and not book"]
    outside = {"PYTHONPATH": str(folder), "RRLIB_FRESH": ""}
    try:
        done = subprocess.run(
            [*command, *ignored, *tests],
            cwd=folder,
            env=os.environ | outside,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return "a test that does not end"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode == 0 or (done.returncode == 1 and failed):
        return failed[1] if failed else ""
    raise InputError(f"pytest ended with {done.returncode}: {done.stdout[-1500:]}{done.stderr}")


def found(mutant: Mutant, folder: Path, named: bool) -> dict[str, object]:
    """What becomes of a defect in a copy of the tree, which is then as before.

    Returns:
        caught; by, the first test that failed; against, "named" tests or "all" quick ones.
    """
    path = place(folder, mutant)
    whole = path.read_bytes()
    path.write_text(mutated(path, mutant), encoding="utf-8")
    try:
        by, against = red(folder, mutant["tests"]), "named"
        if not by and not named:
            by, against = red(folder, ["tests"]), "all"
    finally:
        path.write_bytes(whole)
    return {"caught": bool(by), "by": by, "against": against}


def state() -> str:
    """A digest of rrlib and tests, but for what was found before."""
    digest = hashlib.sha256()
    for path in sorted(path for part in ("rrlib", "tests") for path in (ROOT / part).rglob("*")):
        if path.is_file() and path != FOUND and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(ROOT)}\0{disk.sha256(path)}\n".encode())
    return digest.hexdigest()[:16]


def run(chosen: Iterable[Mutant], cores: int, named: bool) -> dict[str, dict]:
    """Name -> what was found, now or by an earlier run of the same tree."""
    kept, commit = ROOT / "_run" / "mutants" / state(), environment.commit()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(cores) as pool:
        folders: SimpleQueue[Path] = SimpleQueue()
        for core in range(cores):
            copied(Path(scratch) / str(core))
            folders.put(Path(scratch) / str(core))
        unharmed(folders, chosen := list(chosen))
        each = partial(_one, folders=folders, kept=kept, named=named, commit=commit)
        return dict(zip([m["name"] for m in chosen], pool.map(each, chosen), strict=True))


def unharmed(folders: "SimpleQueue[Path]", chosen: Sequence[Mutant]) -> None:
    """Raise InputError unless the tests that are named first pass on the tree as it is."""
    folder = folders.get()
    files = sorted({test for mutant in chosen for test in mutant["tests"]})
    if files and (failed := red(folder, files)):
        raise InputError(f"'{failed}' fails without any defect: a tree that passes is needed.")
    folders.put(folder)


def _one(mutant: Mutant, folders: "SimpleQueue[Path]", kept: Path, named: bool, commit) -> dict:
    file = kept / f"{mark(mutant)}.json"
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if named or before["caught"] or before["against"] == "all":
            return before
    folder = folders.get()
    try:
        result = found(mutant, folder, named) | {"commit": commit}
    finally:
        folders.put(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    disk.write_json(file, result)
    print(f"{result['by'] or 'NOT CAUGHT'}: {mutant['name']}", flush=True)
    return result


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
