"""The artefacts of a profile as the nodes of a graph, and one of them made.

    artefact_graph.py plan PROFILE        prints the plan as JSON, see `plan`
    artefact_graph.py make PROFILE KEY    has the store make (or find) the artefact of that key

The Snakefile asks for both where it is given `--config unit=artefact`: on a cluster data sets,
diffusers and rewards are then jobs of their own, and a chapter begins when its own are there.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import nbformat
import yaml

from rrlib.errors import InputError
from rrlib.lab import keys, store
from rrlib.lab.locomotion import experiments as robots
from rrlib.lab.mazes import choices
from rrlib.lab.mazes import experiments as mazes

ROOT = Path(__file__).resolve().parent.parent
FIELDS = "mem_mb", "runtime", "gpu"  # of a kind in resources.yaml


def _mazes(chosen: SimpleNamespace) -> list[Any]:
    found = mazes.experiments(chosen, chosen.n_seeds, chosen.reward_steps)
    return list(mazes.recipes_of(found))


def _diffusers(chosen: SimpleNamespace) -> list[Any]:
    return [half for e in mazes.experiments(chosen) for half in (e.base, e.expert)]


def _small_data(chosen: SimpleNamespace) -> list[Any]:
    sizes = (mazes.of_transitions(chosen, int(n)) for n in chosen.transitions)
    return list(mazes.recipes_of(e for found in sizes for e in found))


def _choices(chosen: SimpleNamespace) -> list[Any]:
    found = mazes.experiments(chosen, chosen.n_seeds, chosen.reward_steps)
    recipes = {e.label: choices.variants(e) for e in found}
    names, _ = choices.wanted(recipes, chosen.choices)
    return [of[name] for of in recipes.values() for name in names]


def _planners(chosen: SimpleNamespace) -> list[Any]:
    return [half for e in robots.experiments(chosen, 1) for half in (e.base, e.expert)]


def _steering(chosen: SimpleNamespace) -> list[Any]:
    found = robots.experiments(chosen, chosen.reward_steps)
    return [x for e in found for x in (e.base, e.expert, e.reward, e.discriminator)]


def _transfer(chosen: SimpleNamespace) -> list[Any]:
    found = robots.experiments(chosen, chosen.reward_steps)
    return [x for e in found for x in (e.base, e.expert, e.reward)]


# What a chapter asks the store for first; what it asks for besides it makes itself.
CHAPTERS: Mapping[str, Callable[[SimpleNamespace], list[Any]]] = {
    "05_maze_data": _diffusers,
    "06_maze_rewards": _mazes,
    "08_small_data": _small_data,
    "09_maze_choices": _choices,
    "10_locomotion_data": _planners,
    "11_locomotion_steering": _steering,
    "12_locomotion_transfer": _transfer,
    "15_using_rewards": _mazes,
}
OWN = {"goal": None, "dataset_path": "", "n_seeds": 1}  # of chapters that lack these parameters


def chosen(chapter: str, given: Mapping[str, Any]) -> SimpleNamespace:
    """The parameters of a chapter as its own second cell accepts them.

    The node where jobs are planned needs no GPU: those where they run are taken to have one.

    Args:
        chapter: name of the notebook.
        given: what the profile sets.

    Raises:
        InputError: a parameter is not allowed.
    """
    notebook = nbformat.read(ROOT / "notebooks" / f"{chapter}.ipynb", as_version=4)
    parameters, check = [c.source for c in notebook.cells if c.cell_type == "code"][:2]
    names: dict[str, Any] = {}
    exec(parameters, names)
    names |= given
    with mock.patch("torch.cuda.device_count", return_value=1):
        exec(check, names)
    return SimpleNamespace(**OWN | vars(names["chosen"]))


def profile(name: str) -> dict[str, dict[str, Any]]:
    """What a profile gives each chapter."""
    file = ROOT / "workflow/profiles" / f"{name}.yaml"
    if not file.exists():
        raise InputError(f"profile='{name}' is unknown: {file} is not there.")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def wanted(name: str) -> dict[str, tuple[list[Any], str]]:
    """Chapter -> the recipes that it asks for first, and the device that they are made on."""
    found = {}
    for chapter, given in profile(name).items():
        if chapter in CHAPTERS:
            asked = chosen(chapter, given or {})
            found[chapter] = list(dict.fromkeys(CHAPTERS[chapter](asked))), asked.device
    return found


def nodes(asked: Iterable[tuple[list[Any], str]]) -> dict[str, tuple[Any, str]]:
    """Key -> recipe and device, of all that is asked for and of all that it is made of."""
    found: dict[str, tuple[Any, str]] = {}
    left = [(recipe, device) for recipes, device in asked for recipe in recipes]
    while left:
        recipe, device = left.pop()
        key = store.key(recipe, device)
        if key not in found:
            found[key] = recipe, device
            left += [(part, device) for part in keys.parts(recipe)]
    return found


def resources(kinds: Iterable[str], name: str) -> dict[str, dict[str, int]]:
    """What a job of each kind asks of a cluster in a profile, from resources.yaml.

    Raises:
        InputError: a kind, or one of its numbers, is not there.
    """
    known = yaml.safe_load((ROOT / "workflow/resources.yaml").read_text(encoding="utf-8"))
    found = {}
    for kind in sorted(set(kinds)):
        row = {field: known.get(name, {}).get(kind, {}).get(field) for field in FIELDS}
        for field, value in row.items():
            if not isinstance(value, int):
                raise InputError(
                    f"workflow/resources.yaml: {name}: {kind}: {field}={value} is not allowed: an "
                    "integer is needed."
                )
        found[kind] = row
    return found


def plan(name: str) -> dict[str, Any]:
    """The graph of a profile.

    Returns:
        artefacts: key -> its `kind`, the keys that it `needs`, and what its job asks for: `mem_mb`,
            `runtime` (minutes), `gpu` (how many).
        chapters: chapter -> the keys that it waits for.
    """
    asked = wanted(name)
    made = nodes(asked.values())
    of = resources((type(recipe).__name__ for recipe, _ in made.values()), name)
    artefacts = {}
    for key, (recipe, device) in sorted(made.items()):
        kind = type(recipe).__name__
        gpu = of[kind]["gpu"] if device.startswith("cuda") else 0
        own = sorted({store.key(part, device) for part in keys.parts(recipe)})
        artefacts[key] = {"kind": kind, "needs": own, **of[kind], "gpu": gpu}
    waits = {c: [store.key(r, device) for r in recipes] for c, (recipes, device) in asked.items()}
    return {"artefacts": artefacts, "chapters": waits}


def make(name: str, key: str) -> None:
    """Have the store make the artefact of a key, unless it has it.

    Raises:
        InputError: the profile has no such artefact, or it cannot be made.
    """
    found = nodes(wanted(name).values())
    if key not in found:
        raise InputError(f"key='{key}' is not allowed: profile '{name}' asks for no such artefact.")
    recipe, device = found[key]
    os.environ["RRLIB_DEVICE"] = device
    store.obtain(recipe, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("do", choices=("plan", "make"))
    parser.add_argument("profile")
    parser.add_argument("key", nargs="?", default="")
    args = parser.parse_args()
    try:
        if args.do == "plan":
            print(json.dumps(plan(args.profile)))
        else:
            make(args.profile, args.key)
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
