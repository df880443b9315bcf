"""What a run would take: the refusals, and the estimates against what is known."""

import math
from dataclasses import replace

import pytest

from rrlib import costs, locomotion_sizes, maze_sizes
from rrlib.costs import Cost
from rrlib.errors import InputError
from rrlib.locomotion_recipes import LocomotionData, LocomotionDiffuser
from rrlib.locomotion_rewards import (
    LocomotionDiscriminator,
    LocomotionPool,
    LocomotionReward,
    LocomotionRollouts,
)
from rrlib.maze_recipes import MazeData, MazeDiffuser, MazePool, MazeRewards

GB, HOUR, DAY = 1e9, 3_600, 86_400
MAZE = MazeData("open", episodes=20)
MODEL = MazeDiffuser(MAZE, MAZE)
ROBOT = LocomotionData("hopper", "random", 2_000)
PLANNER = LocomotionDiffuser(ROBOT, (ROBOT,))
ROBOT_POOL = LocomotionPool(PLANNER, PLANNER)


@pytest.fixture(autouse=True)
def sixteen_gigabytes(monkeypatch):
    monkeypatch.setattr(costs, "memory", lambda: 16 * GB)


@pytest.mark.parametrize("value", [10**9, 10**400])
@pytest.mark.parametrize(
    ("recipe", "field"),
    [
        (MAZE, "episodes"),
        (MAZE, "length"),
        (MODEL, "horizon"),
        (MODEL, "steps"),
        (MODEL, "batch"),
        (MazePool(MODEL, MODEL), "plans"),
        (MazeRewards(MazePool(MODEL, MODEL)), "steps"),
        (MazeRewards(MazePool(MODEL, MODEL)), "batch"),
        (ROBOT, "transitions"),
        (PLANNER, "horizon"),
        (PLANNER, "steps"),
        (PLANNER, "batch"),
        (PLANNER, "hidden"),
        (replace(PLANNER, channels=(32, 64)), "batch"),
        (ROBOT_POOL, "plans"),
        (LocomotionReward(ROBOT_POOL), "steps"),
        (LocomotionReward(ROBOT_POOL), "hidden"),
        (LocomotionDiscriminator(PLANNER, PLANNER), "batch"),
        (LocomotionDiscriminator(PLANNER, PLANNER), "plans"),
        (LocomotionRollouts(PLANNER), "episodes"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_recipe_of_huge_numbers_is_refused_with_what_it_would_cost(recipe, field, value):
    if field == "length":
        recipe = replace(recipe, episodes=10_000)
    with pytest.raises(InputError) as refused:
        replace(recipe, **{field: value})
    text = str(refused.value)
    assert f"{field}={value}"[:30] in text and "would take about" in text and "16 GB" in text
    assert text.count(". ") == 0 and text.endswith(".") and len(text) < 600


def test_a_plan_of_a_million_steps_is_refused():
    with pytest.raises(
        InputError, match=r"horizon=1000000, .* would take about 4\d\d GB of memory"
    ):
        replace(MODEL, horizon=10**6)


def test_several_weights_play_that_many_episodes():
    LocomotionRollouts(PLANNER, episodes=20_000, weight=1.0)
    with pytest.raises(InputError, match="episodes=20000"):
        LocomotionRollouts(PLANNER, episodes=20_000, weight=(1.0,) * 1_000)


def maze_cost(profile_size, **changes):
    chosen = {"episodes": 3_000, "horizon": 128, "diffuser_steps": 8_000, "reward_steps": 3_000}
    chosen |= {"n_goals": 8, "n_seeds": 5} | changes
    return maze_sizes.cost(profile_size, tuple(maze_sizes.LENGTHS), **chosen)


def test_the_full_grid_costs_what_it_took():
    """`results/full/maze2d.json` of November 2026: 3.1 hours of one core, 0.93 GB."""
    found = maze_cost("medium")
    assert 3.1 / 3 < found.seconds / HOUR < 3.1 * 3
    assert 0.93 / 3 < found.size / GB < 0.93 * 3


def test_the_papers_grid_costs_what_the_paper_says_on_its_gpu_and_is_refused_on_a_core(monkeypatch):
    """36 diffusers of half a million steps at 24 h a million, 160 rewards at 2 h: 31 days."""
    monkeypatch.setattr(costs, "GPU", 30.0)  # the paper's own
    paper = {"episodes": 33_334, "horizon": 256, "diffuser_steps": 500_000}
    paper |= {"reward_steps": 100_000}
    found = maze_cost("paper", **paper, device="cuda")
    assert 31 / 3 < found.seconds / DAY < 31 * 3
    costs.check(found, size="paper")
    with pytest.raises(
        InputError, match=r"size='paper' would take about 8\.\d+ GB of memory and 2"
    ):
        costs.check(maze_cost("paper", **paper), size="paper")


@pytest.mark.parametrize(
    "changes", [{"episodes": 10**9}, {"horizon": 10**6}, {"diffuser_steps": 10**9}], ids=str
)
def test_what_a_maze_chapter_could_never_end_is_too_much(changes):
    with pytest.raises(InputError, match="would take about"):
        costs.check(maze_cost("small", **changes), **changes)


def robot_cost(**changes):
    chosen = {"transitions": 20_000, "diffuser_steps": 3_000, "reward_steps": 3_000}
    chosen |= {"episodes": 16, "plays": 10} | changes
    return locomotion_sizes.cost("small", ("hopper", "walker2d"), **chosen)


def test_a_quick_locomotion_chapter_takes_minutes_and_every_number_counts():
    found = robot_cost()
    assert 5 * 60 < found.seconds < 2 * HOUR and found.size < 4 * GB
    for changes in (
        *({name: 10**9} for name in ("transitions", "diffuser_steps", "reward_steps", "episodes")),
        {"n_seeds": 10**6},
        {"plays": 10**6},
    ):
        with pytest.raises(InputError, match="would take about"):
            costs.check(robot_cost(**changes), **changes)
    assert robot_cost(n_seeds=2).seconds > 1.5 * found.seconds
    assert robot_cost(denoising=20).seconds > found.seconds
    assert robot_cost(device="cuda").seconds < found.seconds


def test_costs_add_up():
    one, other = Cost(3.0, 10.0), Cost(5.0, 2.0)
    assert one + other == costs.total([one, other]) == Cost(5.0, 12.0)
    assert one.times(3) == Cost(3.0, 30.0)
    assert math.isfinite(one.times(10**400).seconds)


@pytest.mark.parametrize(
    ("cost", "words"),
    [
        (Cost(17 * GB, 1), "17 GB of memory and 0.0167 minutes"),
        (Cost(3e12, 3 * HOUR), "3 TB of memory and 3 hours"),
        (Cost(2e6, 400 * DAY), "2 MB of memory and 1.1 years"),
        (Cost(1e30, 1e30), "over a million EB of memory and over a million years"),
    ],
    ids=str,
)
def test_the_sentence(cost, words):
    with pytest.raises(InputError) as refused:
        costs.check(cost, episodes=7)
    assert str(refused.value) == (
        f"episodes=7 would take about {words} of one core or GPU: allowed is what needs at most "
        "16 GB, the memory of this machine, and 40 days."
    )
    costs.check(Cost(16 * GB, 40 * DAY), episodes=7)


def test_memory_is_this_machines(monkeypatch):
    monkeypatch.undo()
    assert 1e8 < costs.memory() < 1e14
