"""Rewards of a maze that differ from the reference by one choice each."""

from dataclasses import replace

from rrlib.lab.mazes.experiments import MazeExperiment
from rrlib.lab.mazes.recipes import MazeRewards

WORDS = {
    "reference": "reference of the choices",
    "score": "target a difference of scores",
    "x_t": "gradient at x_t",
    "literal": "scores at x_t, Eq. 14 to the letter",
    "window_1": "windows of one step",
    "window_4": "windows of 4 steps",
    "window_16": "windows of 16 steps",
    "window_64": "windows of 64 steps",
    "window_all": "the whole plan as one window",
    "strided": "strided windows of 16 steps instead of contiguous ones",
    "every_step": "every step of a window shown, none averaged",
    "leaky_relu": "leaky ReLUs",
    "ends": "first and last observation given to both models",
    "scratch": "expert trained from scratch",
    "from_base": "expert trained from the base's weights",
}
AGAINST = {"strided": "window_16"}  # what a choice is held against, where not the reference


def variants(e: MazeExperiment) -> dict[str, MazeRewards]:
    """The rewards by name, the reference first; those whose windows do not fit the plans lack."""
    r, horizon = e.rewards, e.base.horizon
    short = {f"window_{h}": replace(r, window=h, average=1) for h in (1, 4, 16)}
    apart = replace(e.expert, start=None, steps=e.base.steps)
    found = {
        "reference": r,
        "score": replace(r, target="score"),
        "x_t": replace(r, place="x_t"),
        "literal": replace(r, target="score", place="x_t"),
        **short,
        "window_64": replace(r, window=64),
        "window_all": replace(r, window=horizon),
        "strided": replace(short["window_16"], strided=True),
        "every_step": replace(r, average=1),
        "leaky_relu": replace(r, activation="leaky_relu"),
        "ends": replace(r, pool=replace(r.pool, ends=True)),
        "scratch": replace(r, pool=replace(r.pool, expert=apart)),
        "from_base": replace(r, pool=replace(r.pool, expert=replace(e.expert, start=e.base))),
    }
    return {name: reward for name, reward in found.items() if horizon % reward.window == 0}


def wanted(
    recipes: dict[str, dict[str, MazeRewards]], asked: tuple[str, ...]
) -> tuple[list[str], list[str]]:
    """Names of the choices to compare, the reference first, and of those asked for in vain.

    Args:
        recipes: `variants` of each experiment.
        asked: names, or "all"; what another is held against comes with it.

    A choice that is the reference itself in every experiment is none.
    """
    needed = {*asked, *(AGAINST[name] for name in asked if name in AGAINST)}
    first = next(iter(recipes.values()))
    names = [
        name
        for name in first
        if ("all" in asked or name in needed)
        and any(r[name] != r["reference"] for r in recipes.values())
    ]
    return ["reference", *names], [n for n in asked if n != "all" and n not in names]
