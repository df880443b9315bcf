"""Recipes of huge numbers are refused when they are made, with what they would cost."""

from dataclasses import replace

import pytest

from rrlib.errors import InputError
from rrlib.lab import costs
from rrlib.lab.locomotion.recipes import LocomotionData, LocomotionDiffuser
from rrlib.lab.locomotion.rewards import (
    LocomotionDiscriminator,
    LocomotionPool,
    LocomotionReward,
    LocomotionRollouts,
)
from rrlib.lab.mazes.recipes import MazeData, MazeDiffuser, MazePool, MazeRewards

MAZE = MazeData("open", episodes=10_000)
MODEL = MazeDiffuser(MAZE, MAZE)
REWARDS = MazeRewards(MazePool(MODEL, MODEL))
ROBOT = LocomotionData("hopper", "random", 2_000)
PLANNER = LocomotionDiffuser(ROBOT, (ROBOT,))
POOL = LocomotionPool(PLANNER, PLANNER)


@pytest.fixture(autouse=True)
def sixteen_gigabytes(monkeypatch):
    monkeypatch.setattr(costs, "memory", lambda: 16.0)


@pytest.mark.parametrize("value", [10**9, 10**400])
@pytest.mark.parametrize(
    ("recipe", "field"),
    [
        *((MAZE, name) for name in ("episodes", "length")),
        *((MODEL, name) for name in ("horizon", "steps", "batch")),
        (MazePool(MODEL, MODEL), "plans"),
        *((REWARDS, name) for name in ("steps", "batch")),
        (ROBOT, "transitions"),
        *((PLANNER, name) for name in ("horizon", "steps", "batch", "hidden", "blocks")),
        *((replace(PLANNER, channels=(32, 64)), name) for name in ("batch", "horizon", "steps")),
        (POOL, "plans"),
        *((LocomotionReward(POOL), name) for name in ("steps", "batch", "hidden")),
        *((LocomotionDiscriminator(PLANNER, PLANNER), name) for name in ("steps", "plans")),
        (LocomotionRollouts(PLANNER), "episodes"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_recipe_of_huge_numbers_is_refused_with_what_it_would_cost(recipe, field, value):
    with pytest.raises(InputError) as refused:
        replace(recipe, **{field: value})
    text = str(refused.value)
    assert f"{field}={value}"[:30] in text
    assert " would take about " in text and ("16 GB" in text or "days are the most" in text)
    assert ". " not in text and text.endswith(").") and len(text) < 400


def test_a_plan_of_a_million_steps_is_refused():
    words = (
        r"^batch=32, horizon=1000000, .* would take about 490 GB of memory .* 16 GB of memory\)\.$"
    )
    with pytest.raises(InputError, match=words):
        replace(MODEL, horizon=10**6)


def test_several_weights_play_that_many_episodes():
    LocomotionRollouts(PLANNER, episodes=20_000)
    with pytest.raises(InputError, match=r"^episodes=20000000, steps=1000 would take about"):
        LocomotionRollouts(PLANNER, episodes=20_000, weight=(1.0,) * 1_000)
    shallow = LocomotionRollouts(PLANNER, episodes=20_000, denoising=2)
    with pytest.raises(InputError, match="days are the most"):
        replace(shallow, denoising=2_000)


def test_estimates_are_those_of_steps_that_were_timed():
    """Milliseconds on one core, from before the project began, and operations per step."""
    for channels, horizon, measured in (
        ((16, 32, 64), 32, 24),
        ((16, 32, 64), 128, 53),
        ((32, 64, 128), 128, 129),
        ((32, 128, 256), 256, 690),
    ):
        found = 3.6e6 * costs.u_net_step(32, horizon, channels).hours
        assert measured / 1.5 < found < measured * 1.5
    patched = costs.u_net_step(32, 128, (32, 64, 128), 4)
    assert patched == costs.u_net_step(32, 32, (32, 64, 128))


def test_the_papers_own_recipes_are_not_refused():
    data = MazeData("large", episodes=33_334, length=600)
    model = MazeDiffuser(data, data, 256, (32, 128, 256), 1, 100, 500_000, 128)
    MazeRewards(MazePool(model, model, 100_000), 4, steps=100_000, batch=256)
    robot = LocomotionData("walker2d", "random", 1_000_000)
    planner = LocomotionDiffuser(robot, (robot,), channels=(32, 64, 128, 256), steps=10**6)
    LocomotionReward(LocomotionPool(planner, planner, 400_000), channels=(64, 64, 128, 128))
    LocomotionRollouts(planner, episodes=512, weight=(0.5, 1.0, 2.0))
