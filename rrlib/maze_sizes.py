"""Sizes of networks and budgets for mazes, what they cost, and the horizons that fit them.

It imports nothing that is slow, so that a chapter can refuse a horizon at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rrlib import costs
from rrlib.costs import Cost, counted
from rrlib.errors import InputError

# Steps of an episode: 99 in 100 balls have arrived after half of it (2/3 in the large maze).
LENGTHS = {"open": 300, "umaze": 300, "medium": 500, "large": 600}
WIDTH = 6  # numbers per step of a plan


@dataclass(frozen=True)
class Sizes:
    """Networks and budgets; the fields of `MazeDiffuser`, `MazePool` and `MazeRewards`.

    Attributes:
        expert_share: optimisation steps of an expert over those of its base.
        from_base: whether an expert begins at the base's weights.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    patch: int = 1
    diffusion_steps: int = 50
    batch: int = 32
    learning_rate: float = 2e-3
    given: float = 0.5
    expert_share: float = 0.75
    from_base: bool = True
    plans: int = 20_000
    window: int = 32
    hidden: tuple[int, ...] = (128, 64, 32)
    average: int = 1
    reward_batch: int = 256
    reward_rate: float = 2e-3


def sizes(size: str, name: str) -> Sizes:
    """Sizes for a maze: "small" (quick), "medium" (full) or "paper" (Tables 2 and 3).

    Tables 2 and 3 are about rewards; the paper's diffusers are its authors' (three resolutions,
    100 steps of noise, batches of 128, a rate of 2e-4, experts from scratch).
    """
    if size == "small":
        return Sizes()
    if size == "medium":
        return Sizes((32, 64, 128), 4, 50, 32, 2e-3, 0.25, 0.5, True, 8_000, 128, (96, 64, 32), 4)
    own = (64, (32,)) if name == "open" else (4, (128, 64, 32))
    diffuser = ((32, 128, 256), 1, 100, 128, 2e-4, 0.25, 1.0, False)
    return Sizes(*diffuser, 100_000, *own, reward_batch=256, reward_rate=5e-5)


def check_horizon(horizon: int, size: str, *names: str) -> None:
    """Raise InputError unless plans of `horizon` steps fit diffusers and rewards of these mazes."""
    for name in names:
        found = sizes(size, name)
        factor = math.lcm(found.window, found.patch * 2 ** (len(found.channels) - 1))
        if horizon < factor or horizon % factor:
            raise InputError(
                f"horizon={horizon} is not allowed: a multiple of {factor}, which the networks "
                f"of size='{size}' work on, is needed."
            )


# What it takes, by rates of one core: MuJoCo with the controller makes 150 000 steps a second; a
# training step of the U-Net is 100 x batch x steps x (widest channels)^2 operations, 60e9 a second,
# and 17 ms of its own; one of a reward takes 4 ms. A step of data is 100 bytes while it is written.


def data_cost(episodes: int, length: int) -> Cost:
    """Of a set of `episodes` episodes of `length` steps."""
    steps = counted(episodes) * counted(length)
    return Cost(100 * steps, steps / 150_000)


def diffuser_cost(
    horizon: int, channels: Sequence[int], patch: int, batch: int, steps: int
) -> Cost:
    """Of `steps` optimisation steps of a diffuser (see `maze_recipes.MazeDiffuser`)."""
    rows = counted(batch) * counted(horizon) / patch
    wide = counted(max(channels))
    each = 0.017 + 100 * rows * wide**2 / 60e9
    return Cost(rows * wide * 240, counted(steps) * each)


def pool_cost(plans: int, horizon: int, channels: Sequence[int], patch: int) -> Cost:
    """Of a pool of `plans` comparisons: two models are asked about each, a third of a step."""
    asked = diffuser_cost(horizon, channels, patch, 256, 1)
    seconds = 2 * counted(plans) / 256 * asked.seconds / 3
    return Cost(counted(plans) * counted(horizon) * 4 * WIDTH * 8 + asked.size, seconds)


def rewards_cost(steps: int, batch: int, n: int) -> Cost:
    """Of n rewards fitted to a pool, `batch` windows of each a step."""
    return Cost(seconds=counted(steps) * counted(n) * 0.004 * counted(batch) / 256)


def cost(
    size: str,
    names: Sequence[str],
    *,
    episodes: int,
    horizon: int,
    diffuser_steps: int,
    n_goals: int = 1,
    n_seeds: int = 1,
    reward_steps: int = 0,
    device: str = "cpu",
) -> Cost:
    """What the parameters of a maze chapter would take; see `maze_experiments.experiments`.

    Data come from one core whatever the device, networks are some 100 times as fast on a GPU.
    """
    found = Cost()
    for name in names:
        own = sizes(size, name)
        data = data_cost(episodes, LENGTHS[name]).times(1 + n_goals)
        diffuser = diffuser_cost(horizon, own.channels, own.patch, own.batch, diffuser_steps)
        pool = pool_cost(own.plans, horizon, own.channels, own.patch)
        rewards = rewards_cost(reward_steps, own.reward_batch, n_seeds)
        networks = diffuser + (Cost(diffuser.size, diffuser.seconds * own.expert_share)).times(
            n_goals
        )
        networks += (pool + rewards).times(n_goals)
        found += data + Cost(
            networks.size, networks.seconds / (costs.GPU if device != "cpu" else 1)
        )
    return found
