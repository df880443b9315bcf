"""The diffusers that come with the book are those that its chapters ask for, undamaged."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import ship_diffusers
import yaml

from rrlib.lab import keys, store, toys
from rrlib.lab.images import digits
from rrlib.lab.locomotion import experiments as locomotion_experiments
from rrlib.lab.mazes import experiments as maze_experiments

ROOT = Path(__file__).resolve().parent.parent
PLACES = sorted(path.parent for path in store.SHIPPED.glob("*/*/manifest.json"))
ACCEPTED = json.loads((ROOT / "tests/recipe_code.json").read_text())
MANIFESTS = {place: json.loads((place / store.MANIFEST).read_text()) for place in PLACES}


def named(part) -> Iterator[dict]:
    """A recipe of a manifest and all that it depends on."""
    if isinstance(part, dict):
        if "code_version" in part:
            yield part
        for value in part.values():
            yield from named(value)
    elif isinstance(part, list):
        for value in part:
            yield from named(value)


def test_only_diffusers_are_shipped_and_not_too_much_of_them():
    assert {place.parent.name for place in PLACES} == set(ship_diffusers.KINDS)
    found = [path for path in store.SHIPPED.rglob("*") if path.is_file()]
    assert {path.parent for path in found} == set(PLACES)
    weights = [*ROOT.glob("rrlib/**/*.safetensors"), *ROOT.glob("results/full/*.safetensors")]
    weights += [path for path in found if path.suffix == ".safetensors"]
    assert sum(path.stat().st_size for path in weights) < 40e6


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_a_shipped_diffuser_is_whole_and_of_the_code_as_it_is(place):
    assert store._damage(place) is None
    for part in named(MANIFESTS[place]["recipe"]):
        now = ACCEPTED[part["name"]]["version"]
        assert part["code_version"] == now, f"{part['name']} is of another version: `make ship`"


def chosen(chapter: str) -> SimpleNamespace:
    """The parameters of a chapter as the quick profile runs it."""
    notebook = nbformat.read(ROOT / f"notebooks/{chapter}.ipynb", as_version=4)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    values: dict = {}
    exec(cell.source, values)
    quick = yaml.safe_load((ROOT / "workflow/profiles/quick.yaml").read_text())
    found = SimpleNamespace(**values | quick[chapter])
    for name in ("maze", "environment"):
        if hasattr(found, name):
            setattr(found, name, getattr(found, name).split(","))
    return found


def test_what_the_quick_profile_asks_for_is_there():
    kept = {name: next(iter(MANIFESTS.values()))["versions"][name] for name in ("torch", "mujoco")}
    for name, version in kept.items():
        if not version.startswith(keys.libraries()[name]):
            pytest.skip(f"shipped diffusers are of {name} {version}")
    asked = []
    for chapter in ("05_maze_data", "06_maze_rewards"):
        found = chosen(chapter)
        found.goal = None
        for one in maze_experiments.experiments(found):
            asked += [one.base, one.expert]
    for chapter in ("10_locomotion_data", "11_locomotion_steering"):
        for one in locomotion_experiments.experiments(chosen(chapter), 1):
            asked += [one.base, one.expert]
    for pair in (digits.reward(), toys.reward()):
        asked += [pair.base, pair.expert]
    wanted = {store.SHIPPED / type(one).__name__ / store.key(one) for one in asked}
    assert len(wanted) > 4 and wanted <= set(PLACES)


def test_shipping_takes_a_stores_finished_diffusers_and_nothing_else(tmp_path):
    for name in ("MazeDiffuser/1", "LocomotionDiffuser/2", "MazeData/3", "MazeDiffuser/.4.partial"):
        place = tmp_path / "store" / name
        place.mkdir(parents=True)
        (place / "weights").write_text(name)
        if "partial" not in name:
            (place / store.MANIFEST).write_text("{}")
    (tmp_path / "shipped/MazeDiffuser/old").mkdir(parents=True)
    made = ship_diffusers.ship(tmp_path / "store", tmp_path / "shipped")
    names = sorted(path.relative_to(tmp_path / "shipped").as_posix() for path in made)
    assert names == ["LocomotionDiffuser/2", "MazeDiffuser/1"]
    files = [path for path in (tmp_path / "shipped").rglob("*") if path.is_file()]
    assert len(files) == 4
    with pytest.raises(SystemExit, match="no diffusers"):
        ship_diffusers.ship(tmp_path / "nowhere", tmp_path / "shipped")
