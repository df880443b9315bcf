"""SIGKILL at random moments of a batch, a chapter and the graph; then the same again, to the end.

A batch is killed at an event, counted: a file that is opened, renamed or deleted, or a step of a
training. So its moments are the same on every machine. Chapters and the graph are killed after a
share of the time that they take undisturbed.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import small_recipes
from chapters import SMALL, checkout, written
from children import called
from machine import Found
from normalise import normalise

from rrlib import disk, training
from rrlib.lab import store
from rrlib.lab.recipes import GaussianReward
from rrlib.theory import examples

ROOT = Path(__file__).resolve().parents[2]
# Each event is a moment in which a folder is half of something.
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.utime"}
PATIENCE = 1800  # seconds that nothing takes


def batch(folder: Path, seed: int, trials: int) -> Found:
    """Simulated data, trainings, one of them with a checkpoint, and comparisons, by the store."""
    training_alone = GaussianReward(examples.base(), examples.expert(), **SMALL)
    recipes = [training_alone, small_recipes.recipes()["maze rewards"]]

    def run(place: Path, at: int = -1) -> int:
        os.environ["RRLIB_STORE"] = str(place)
        count = 0

        def counted(event: str, arguments: Any = ()) -> None:
            nonlocal count
            if event == "step" or (event in EVENTS and str(place) in str(arguments)):
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        stream = training.stream

        def step(*arguments: Any) -> Any:
            counted("step")
            return stream(*arguments)

        training.stream = step
        sys.addaudithook(counted)
        store.obtain_all(recipes)
        return count

    status, events = called(partial(run, folder / "whole"))
    assert status == 0, status
    wanted, draw, faults = _sums(folder / "whole"), random.Random(f"{seed}/batch"), []
    for k in range(trials):
        place, at = folder / str(k), draw.randrange(1, events + 1)
        killed, _ = called(partial(run, place, at))
        again, _ = called(partial(run, place))
        if (killed, again) != (-signal.SIGKILL, 0) or _sums(place) != wanted:
            faults.append(f"batch, event {at} of {events}: {killed}, {again}")
        shutil.rmtree(place)
    return Found("killed: a batch of the store", trials, trials - len(faults), faults)


def _sums(place: Path) -> dict[str, str]:
    """Of each file of every artefact, without manifests, which tell when they were made."""
    found = [p for p in sorted(place.rglob("*")) if p.is_file() and p.suffix != ".lock"]
    kept = [p for p in found if p.name != store.MANIFEST]
    return {p.relative_to(place).as_posix(): disk.sha256(p) for p in kept}


def chapter(folder: Path, seed: int, trials: int) -> Found:
    """A chapter that papermill runs; papermill is killed."""
    source = written(folder / "chapter.ipynb", "killed-chapter", 0)

    def command(place: Path) -> list[str]:
        given = ["-p", "store", str(place / "store"), "-p", "results", str(place / "results")]
        out = str(place / "out.ipynb")
        return [sys.executable, "-m", "papermill", str(source), out, *given]

    def made(place: Path) -> list[Any]:
        executed = [_printed(place / "out.ipynb"), _numbers(place / "results")]
        return [*executed, _sums(place / "store")]

    return _killed("chapter", folder, random.Random(f"{seed}/chapter"), trials, command, made)


def graph(folder: Path, seed: int, trials: int) -> Found:
    """Two chapters and a page of their numbers in Snakemake's graph; run.py alone is killed."""

    def command(place: Path) -> list[str]:
        if not place.joinpath("workflow").exists():
            checkout(place)
        return [sys.executable, str(place / "workflow" / "run.py"), "quick"]

    def made(place: Path) -> list[Any]:
        run = place / "_run" / "quick"
        executed = [_printed(path) for path in sorted(run.glob("notebooks/*.ipynb"))]
        page = (place / "_build" / "html" / "index.html").read_text()
        return [*executed, page, _numbers(run / "results" / "quick"), _sums(place / "store")]

    return _killed("graph", folder, random.Random(f"{seed}/graph"), trials, command, made)


def _killed(
    kind: str,
    folder: Path,
    draw: random.Random,
    trials: int,
    command: Callable[[Path], list[str]],
    made: Callable[[Path], list[Any]],
) -> Found:
    """Run a command undisturbed; then kill it at random moments, and run it again each time."""
    begun = time.monotonic()
    (folder / "whole").mkdir(parents=True)
    said = _to_its_end(command(folder / "whole"), folder / "whole")
    assert said == "", said
    took, wanted, faults = time.monotonic() - begun, made(folder / "whole"), []
    for k in range(trials):
        place, after = folder / str(k), draw.uniform(0, took)
        place.mkdir()
        process = _started(command(place), place)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        said = _to_its_end(command(place), place)
        if said or made(place) != wanted:
            faults.append(f"{kind}, after {after:.1f} of {took:.1f} s: {said or 'other results'}")
        shutil.rmtree(place, ignore_errors=True)
    return Found(f"killed: {kind}", trials, trials - len(faults), faults)


def _started(command: list[str], place: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RRLIB_STORE": str(place / "store")}
    with (place / "log").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=place)


def _to_its_end(command: list[str], place: Path) -> str:
    """Run, again where what was killed has not quite ended; what it said if it failed."""
    for _ in range(60):
        process = _started(command, place)
        status, said = process.wait(PATIENCE), (place / "log").read_text()
        if status == 0 or "another run is under way" not in said:
            return "" if status == 0 else said[-400:]
        time.sleep(1)
    return said


def _printed(path: Path) -> list[Any]:
    """What an executed chapter shows, without the card at its end."""
    cells = normalise(nbformat.read(path, as_version=4)).cells
    return [
        cell.get("outputs")
        for cell in cells
        if "nbval-ignore-output" not in cell.metadata.get("tags", [])
    ]


def _numbers(folder: Path) -> dict[str, Any]:
    found = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {name: (result["rows"], result["summary"]) for name, result in found.items()}
