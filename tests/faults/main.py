"""Faults on purpose: kills, damaged files, a full disk, a crowd, odd files; one table of what came.

    main.py [--seed N] [--results FOLDER] [--share S] [--only PART]...

Prints one line for each kind of trial, and each fault that was found; with --results it publishes
the table as `faults.json` there. It ends with 1 if anything went wrong. `make faults` calls it.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]  # the checkout that this file is of
sys.path += [str(ROOT / "tests"), str(ROOT / "workflow")]

from rrlib.lab import environment  # noqa: E402, F401 (before torch, which the others load)

# isort: split
import damaged  # noqa: E402
import diffusers  # noqa: E402
import fuzz  # noqa: E402
import kills  # noqa: E402
import machine  # noqa: E402
import transformers  # noqa: E402
from children import called, together  # noqa: E402

from rrlib.lab import results  # noqa: E402

KILLS = 20  # of each of a batch, a chapter and the graph
Row = dict[str, object]


def row(part: str, kind: str, trials: int, right: int, mended: int | None, again: bool) -> Row:
    """One kind of trial; `right` as `summary` says for each part."""
    found = {"part": part, "kind": kind, "trials": trials, "right": right}
    return found | {"mended": mended, "can_be_made_again": again}


def lane(parts: list[str], folder: Path, seed: int, share: float) -> tuple[list[Row], list[str]]:
    """Some parts, one after another, each in a process of its own."""
    rows: list[Row] = []
    faults: list[str] = []
    for part in parts:
        begun = time.monotonic()
        status, found = called(partial(PARTS[part], folder / part, seed, share))
        if status or found is None:
            faults.append(f"{part}: its process ended with {status}")
            continue
        rows, faults = rows + found[0], faults + found[1]
        print(f"{part}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return rows, faults


def _ready(folder: Path) -> Path:
    folder.mkdir()
    os.environ["RRLIB_STORE"] = str(folder / "store")
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    return folder


def _kills(folder: Path, seed: int, share: float) -> tuple[list[Row], list[str]]:
    trials = max(1, round(share * KILLS))
    parts = (kills.batch, kills.chapter, kills.graph)
    found = [part(_ready(folder) / part.__name__, seed, trials) for part in parts[:1]]
    found += [part(folder / part.__name__, seed, trials) for part in parts[1:]]
    return _of_machine("kills", found)


def _machine(folder: Path, seed: int, share: float) -> tuple[list[Row], list[str]]:
    _ready(folder)
    folder.chmod(0o755)
    each = max(1, round(share * 3))
    disks = machine.full_disk(folder / "disk", seed, each)
    rows, faults = _of_machine("full disk", disks)
    for part, call in (("crowd", machine.crowd), ("folder", machine.others_folder)):
        more = _of_machine(part, call(folder / part, seed))
        rows, faults = rows + more[0], faults + more[1]
    return rows, faults


def _of_machine(part: str, found: list[machine.Found]) -> tuple[list[Row], list[str]]:
    rows = [row(part, f.kind, f.trials, f.right, None, True) for f in found]
    return rows, [fault for f in found for fault in f.faults]


def _damaged(folder: Path, seed: int, share: float) -> tuple[list[Row], list[str]]:
    found = damaged.run(_ready(folder), seed, max(1, round(share * 4)))
    rows = [row("damaged", f.kind, f.trials, f.noticed, f.mended, f.again) for f in found]
    return rows, [fault for f in found for fault in f.faults]


def _fuzz(folder: Path, seed: int, share: float) -> tuple[list[Row], list[str]]:
    found = fuzz.run(_ready(folder), seed, share)
    rows = [row("fuzz", f.reader, f.cases, f.refused + f.values, None, True) for f in found]
    return rows, [f"{f.reader}, {fault}" for f in found for fault in f.faults.values()]


PARTS = {"kills": _kills, "machine": _machine, "damaged": _damaged, "fuzz": _fuzz}
LANES = ["kills"], ["fuzz", "damaged", "machine"]
SAID = {  # part -> name of its share, in words
    "kills": ("resumed", "SIGKILL: the run went on to the same results"),
    "damaged": ("noticed", "a damaged file was noticed"),
    "fuzz": ("fuzz", "odd files: one sentence or the right value"),
    "full disk": ("full_disk", "a full disk: one sentence, nothing half written"),
    "crowd": ("crowd", "eight processes want one artefact: made once, the same for all"),
    "folder": ("folder", "a folder of somebody else's: one sentence"),
}


def summary(rows: list[Row]) -> dict[str, object]:
    """Share and number of trials of each part; of damaged files also those made again unasked."""
    found: dict[str, object] = {}
    for part, (name, label) in SAID.items():
        mine = [r for r in rows if r["part"] == part]
        trials = sum(int(str(r["trials"])) for r in mine)
        if not trials:
            continue
        right = sum(int(str(r["right"])) for r in mine)
        found[name] = {"value": right / trials, "bar": ">= 1", "label": f"faults, {label}"}
        found |= {f"{name}_right": right, f"{name}_trials": trials}
    mine = [r for r in rows if r["part"] == "damaged"]
    trials, again, mended = (
        sum(int(str(r[name])) for r in chosen)
        for name, chosen in (
            ("trials", mine),
            ("trials", [r for r in mine if r["can_be_made_again"]]),
            ("mended", mine),
        )
    )
    if trials:
        label = "faults, a damaged file was made again unasked"
        found["mended"] = {"value": mended / trials, "bar": ">= 0.8", "label": label}
        found |= {"mended_right": mended, "mended_can": again}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", default="2", help="of all that is drawn")
    parser.add_argument("--results", default="", help="folder that gets faults.json")
    parser.add_argument("--share", type=float, default=1.0, help="of the trials, for a quick look")
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts alone")
    given = parser.parse_args()
    if not (given.seed.isascii() and given.seed.isdigit() and int(given.seed) < 2**32):
        sys.exit(
            f"SEED={given.seed!r} is not allowed: a whole number from 0 to 2**32 - 1 is needed."
        )
    lanes = [[part for part in lane if part in (given.only or PARTS)] for lane in LANES]
    folder = Path(tempfile.mkdtemp(prefix="rrlib-faults-"))
    folder.chmod(0o755)
    try:
        options = folder, int(given.seed), given.share
        found = together([partial(lane, parts, *options) for parts in lanes if parts])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report([half for _, half in found], given.results, int(given.seed))


def report(found: list, folder: str, seed: int) -> None:
    """Print the table and the faults, and publish them; end with 1 if there are any."""
    rows, faults = ([one for half in found for one in (half or ([], []))[k]] for k in (0, 1))
    faults += ["a part was lost"] * found.count(None)
    for one in rows:
        mended = "" if one["mended"] is None else f", {one['mended']} made again unasked"
        print(f"{one['part']}: {one['kind']}: {one['right']} of {one['trials']}{mended}")
    if os.geteuid() != 0:
        print("folder: not tried, for only root can become another user")
    told = summary(rows)
    for entry in told.values():
        if isinstance(entry, dict):
            print(f"{entry['label']}: {entry['value']:.4f} (bar: {entry['bar']})")
    spent = os.times()
    results.publish(
        folder, "faults", rows=rows, summary=told, parameters={"seed": seed},
        wall_seconds=round(spent.user + spent.system + spent.children_user + spent.children_system),
    )  # fmt: skip
    if faults:
        sys.exit("\n".join([f"{len(faults)} faults:", *faults]))


if __name__ == "__main__":
    main()
