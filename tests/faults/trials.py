"""The trials, part by part: rows of the table, and a line for each fault."""

import os
import sys
import time
from functools import partial
from pathlib import Path

import damaged
import diffusers
import fuzz
import kills
import machine
import transformers
from children import called, together
from table import Row, row

KILLS = 20  # of each of a batch, a chapter and the graph
Found = tuple[list[Row], list[str]]


def lane(parts: list[str], folder: Path, seed: int, share: float) -> Found:
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


def _kills(folder: Path, seed: int, share: float) -> Found:
    trials = max(1, round(share * KILLS))
    parts = (kills.batch, kills.chapter, kills.graph)
    found = [part(_ready(folder) / part.__name__, seed, trials) for part in parts[:1]]
    found += [part(folder / part.__name__, seed, trials) for part in parts[1:]]
    return _of_machine("kills", found)


def _machine(folder: Path, seed: int, share: float) -> Found:
    _ready(folder)
    folder.chmod(0o755)
    each = max(1, round(share * 3))
    disks = machine.full_disk(folder / "disk", seed, each)
    rows, faults = _of_machine("full disk", disks)
    for part, call in (("crowd", machine.crowd), ("folder", machine.others_folder)):
        more = _of_machine(part, call(folder / part, seed))
        rows, faults = rows + more[0], faults + more[1]
    return rows, faults


def _of_machine(part: str, found: list[machine.Found]) -> Found:
    rows = [row(part, f.kind, f.trials, f.right, None, True) for f in found]
    return rows, [fault for f in found for fault in f.faults]


def _damaged(folder: Path, seed: int, share: float) -> Found:
    found = damaged.run(_ready(folder), seed, max(1, round(share * 4)))
    rows = [row("damaged", f.kind, f.trials, f.noticed, f.mended, f.again) for f in found]
    return rows, [fault for f in found for fault in f.faults]


def _fuzz(folder: Path, seed: int, share: float) -> Found:
    found = fuzz.run(_ready(folder), seed, share)
    rows = [row("fuzz", f.reader, f.cases, f.refused + f.values, None, True) for f in found]
    return rows, [f"{f.reader}, {fault}" for f in found for fault in f.faults.values()]


PARTS = {"kills": _kills, "machine": _machine, "damaged": _damaged, "fuzz": _fuzz}
LANES = ["kills"], ["fuzz", "damaged", "machine"]


def run(parts: list[str], folder: Path, seed: int, share: float) -> Found:
    """All of these parts, in two lanes, for two cores."""
    lanes = [[part for part in lane if part in parts] for lane in LANES]
    calls = [partial(lane, mine, folder, seed, share) for mine in lanes if mine]
    rows: list[Row] = []
    faults: list[str] = []
    for status, found in together(calls):
        rows, faults = (rows + found[0], faults + found[1]) if found else (rows, faults)
        faults += [] if found else [f"a lane ended with {status}"]
    return rows, faults
