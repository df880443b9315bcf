"""What the machine does to whoever writes: a full disk, a folder of somebody else's, a crowd."""

import os
import random
import resource
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import digests
import numpy as np
import small_files
import small_recipes
import torch
from children import called, together
from judged import ended

from rrlib import disk
from rrlib.lab import results, store
from rrlib.plans import trajectories
from rrlib.plans.trajectories import Trajectories
from rrlib.tensor_files import write_tensors

CROWD = 8
NOBODY = 65534


class Found(NamedTuple):
    """What came of trials of one kind."""

    kind: str
    trials: int
    right: int
    faults: list[str]


def writers() -> dict[str, Callable[[Path], Any]]:
    """Name -> what writes something into a folder."""
    rng = np.random.default_rng(0)
    n = 400
    ends = np.arange(n) % 40 == 39
    data = Trajectories(
        *(rng.normal(size=(n, wide)).astype("f4") for wide in (4, 2)), None, np.zeros(n, bool), ends
    )
    recipes = small_recipes.recipes()

    def minari(folder: Path) -> None:
        os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
        trajectories.write_minari("maze/small-v0", data, "Small.")

    def artefact(recipe: Any, folder: Path) -> None:
        os.environ["RRLIB_STORE"] = str(folder / "store")
        store.obtain(recipe)

    found: dict[str, Callable[[Path], Any]] = {
        "JSON": lambda folder: disk.write_json(folder / "a.json", "x" * 20_000),
        "tensors": lambda folder: write_tensors(folder / "a", {"a": torch.zeros(5_000)}),
        "HDF5": lambda folder: trajectories.write_hdf5(folder / "a.hdf5", data),
        "Minari": minari,
        "rewards": lambda folder: small_files.rewards(folder / "a.safetensors"),
        "numbers": lambda folder: results.publish(
            str(folder / "full"),
            "a",
            rows=[{"x": k} for k in range(300)],
            summary={},
            parameters={},
        ),
        "pipeline": lambda folder: small_files.pipeline(folder / "pipeline"),
        "shards": small_files.shards,
        "checkpoint": lambda folder: small_files.trained(folder / "a", small_files.STEPS),
    }
    names = ("gaussians", "maze base", "robot base", "digits")
    return found | {f"artefact, {name}": partial(artefact, recipes[name]) for name in names}


def full_disk(folder: Path, seed: int, each: int = 3) -> list[Found]:
    """No file may grow beyond some size, as where a disk is full; then there is room again."""
    found = []
    for name, write in writers().items():
        draw, place = random.Random(f"{seed}/{name}"), folder / name
        whole = _written(write, place / "whole")
        largest = max(path.stat().st_size for path in _files(place / "whole"))
        faults = []
        for k in range(each):
            most = draw.randrange(largest)
            if fault := _without_room(write, place / str(k), most, whole):
                faults.append(f"{name}, {most} bytes: {fault}")
        found.append(Found(f"full disk, {name}", each, each - len(faults), faults))
    return found


def _without_room(
    write: Callable[[Path], Any], place: Path, most: int, whole: dict[str, bytes]
) -> str:
    """What is wrong, or "": one sentence, nothing half written, and right once there is room."""
    place.mkdir()

    def limited() -> tuple[str, str]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        return ended(partial(write, place), (str(place),))[:2]

    status, told = called(limited)
    if status:
        return f"ended with {status}"
    if told[0] != "refused" or "File too large" not in told[1]:
        return f"{told[0]}: {told[1]}"
    unfinished = [path for path in _files(place) if ".partial" not in str(path)]
    half = [path for path in unfinished if whole[_name(path, place)] != path.read_bytes()]
    parts = [path for path in place.rglob("*") if path.name.endswith(disk.SUFFIX)]
    if half or parts:
        return f"left {[path.name for path in half + parts]}"
    return "" if _written(write, place) == whole else "other bytes once there is room"


def _written(write: Callable[[Path], Any], place: Path) -> dict[str, bytes]:
    """The files that a child writes into a folder."""
    place.mkdir(parents=True, exist_ok=True)
    status, end = called(lambda: ended(partial(write, place), (str(place),))[:2])
    assert status == 0 and end[0] == "value", (status, end)
    return {_name(path, place): path.read_bytes() for path in _files(place)}


def _files(place: Path) -> list[Path]:
    """All that is whole there: no lock, and no manifest, which tells when it was made."""
    found = [path for path in sorted(place.rglob("*")) if path.is_file()]
    return [p for p in found if p.suffix != ".lock" and p.name != store.MANIFEST]


def _name(path: Path, place: Path) -> str:
    return path.relative_to(place).as_posix()


def crowd(folder: Path, seed: int) -> list[Found]:
    """Eight processes want one artefact that is not there: one makes it, all get the same."""
    recipes = small_recipes.recipes()
    found = []
    for name in ("gaussians", "maze rewards", "robot reward", "image reward", "digits reward"):
        place, recipe = folder / name, recipes[name]
        place.mkdir(parents=True)
        os.environ["RRLIB_STORE"] = str(place / "store")
        ends = together([partial(_wanted, recipe, place / "made")] * CROWD)
        answers = [said for _, said in ends]
        made = (place / "made").read_text().splitlines()
        faults = []
        if len(set(answers)) != 1 or None in answers:
            faults.append(f"{name}: {set(answers)}")
        if len(made) != len(set(made)):
            faults.append(f"{name}: made twice, {sorted(made)}")
        found.append(Found(f"eight at once, {name}", CROWD, 0 if faults else CROWD, faults))
    return found


def _wanted(recipe: Any, log: Path) -> str:
    """What a process finds, the bytes of the artefact among it; `log` gets a line for each made."""
    make = store._make

    def logged(one: Any, place: Path, device: str) -> None:
        with log.open("a") as file:  # one short line is written at once
            file.write(f"{type(one).__name__}/{place.name}\n")
        make(one, place, device)

    store._make = logged
    end = ended(lambda: digests.of(store.obtain(recipe)), ("",))
    found = sorted(store.folder(recipe).glob("*"))  # none, if it was not made
    sums = {path.name: disk.sha256(path) for path in found}
    return f"{end.kind} {end.value} {end.said} {sums}"


def others_folder(folder: Path, seed: int) -> list[Found]:
    """Folders that another user may read and not write; [] unless we are root."""
    if os.geteuid() != 0:
        return []
    found = []
    for name, write in writers().items():
        place = folder / name
        place.mkdir(parents=True)
        for parent in [place, *place.parents]:
            if parent.stat().st_mode & 0o005 != 0o005 and parent.is_relative_to(folder):
                parent.chmod(0o755)
        fault = _as_nobody(partial(write, place), place)
        if not fault and any(place.iterdir()):
            fault = f"left {list(place.iterdir())}"
        found.append(
            Found(f"somebody else's folder, {name}", 1, int(not fault), [fault] if fault else [])
        )
    found.append(_read_by_nobody(folder / "read"))
    shutil.rmtree(folder)
    return found


def _as_nobody(call: Callable[[], Any], place: Path) -> str:
    def other() -> tuple[str, str]:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return ended(call, (str(place),))[:2]

    status, told = called(other)
    if status:
        return f"{place.name}: ended with {status}"
    clear = told[0] == "refused" and "Permission denied" in told[1]
    return "" if clear else f"{place.name}: {told[0]}: {told[1]}"


def _read_by_nobody(place: Path) -> Found:
    """An artefact in a store that is for reading only is read."""
    place.mkdir()
    os.environ["RRLIB_STORE"] = str(place / "store")
    recipe = small_files.Number(2.5)
    store.obtain(recipe)

    def other() -> float:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return store.obtain(recipe)

    status, value = called(other)
    right = (status, value) == (0, 2.5)
    return Found("a store for reading, read", 1, int(right), [] if right else [f"{status} {value}"])
