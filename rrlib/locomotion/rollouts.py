"""Rollouts: a planner drives many robots at once, their physics in worker processes.

All episodes go in lock-step, so that one call of the planner serves them all; an episode that has
ended is asked no more, and the batch shrinks.
"""

import os
from collections.abc import Callable

import numpy as np
import torch

from rrlib.errors import InputError
from rrlib.locomotion import lockstep
from rrlib.locomotion.robots import Environment
from rrlib.locomotion.world import HORIZON
from rrlib.method import guidance as steering
from rrlib.method.denoisers import Denoiser
from rrlib.method.exact import ExactDifference
from rrlib.plans.conditioning import given, hold
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.trajectories import Trajectories
from rrlib.training import derived_seed

# Observations [n, do] and whose they are [n] (numbers of episodes) -> actions [n, k, da].
Planner = Callable[[np.ndarray, np.ndarray], np.ndarray]


def planner(
    base: Denoiser,
    normaliser: Normaliser,
    environment: Environment,
    horizon: int,
    generator: torch.Generator,
    expert: Denoiser | None = None,
    against: Denoiser | None = None,
    **guidance,
) -> Planner:
    """Plans of a diffusion model, steered or not, from the observations at hand.

    Args:
        base: of a network of plans that was trained with `conditioning.control_loss`.
        normaliser: of its plans.
        environment: whose observations and actions they are.
        horizon: H, steps of a plan.
        generator: of all noise.
        expert: steers by the exact difference of its means from the base's; None does not.
        against: whose means are subtracted in the base's place, such as those of another base.
        guidance: of `guidance.denoise`: reward, guidance_scale, stop_step and so on. A tensor of
            scales has one for each episode.

    Returns:
        observations [n, do], episodes [n] -> the actions of one plan each, [n, H, da], in their
        own units.

    Raises:
        InputError: `guidance.denoise` would refuse the guidance.
    """
    difference = {"reward": ExactDifference(against or base, expert)} if expert else {}
    width = environment.width
    # Sampled lazily: this refuses at once what the first plan would be refused for.
    steering.denoise(base, torch.empty(0, horizon, width), generator, **guidance | difference)
    scale = guidance.get("guidance_scale")

    def plan(observations: np.ndarray, episodes: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(observations), width), np.float32)
        rows[:, environment.action :] = observations
        first = torch.from_numpy(normaliser.normalise(rows)[:, environment.action :])
        first = first.to(generator.device)
        model, options = given(base, first), guidance
        if expert:
            pair = given(against, first) if against else model, given(expert, first)
            options = {**guidance, "reward": ExactDifference(*pair)}
        if isinstance(scale, torch.Tensor):
            options = {**options, "guidance_scale": scale[episodes]}  # the sampler moves it
        shape = len(first), horizon, width
        plans = steering.sample(model, shape, generator, keep=hold(first), **options)
        return normaliser.denormalise(plans.cpu().numpy())[..., : environment.action]

    return plan


def check(episodes: int, steps: int, executed: int, workers: int) -> None:
    """Raise InputError unless rollouts of these numbers can be asked for."""
    for name, value, most in (
        ("episodes", episodes, None),
        ("steps", steps, HORIZON),
        ("executed", executed, None),
        ("workers", workers, os.cpu_count()),
    ):
        if value < 1 or (most and value > most):
            allowed = f"1 to {most}" if most else "1 or more"
            raise InputError(f"{name} = {value} is out of range: allowed is {allowed}.")


def play(
    environment: Environment,
    plan: Planner,
    episodes: int,
    seed: int,
    *,
    steps: int = HORIZON,
    executed: int = 1,
    workers: int = 1,
    version: int = 5,
    starts: int | None = None,
) -> Trajectories:
    """Whole episodes of a planner, from starts that depend on the seed alone.

    Args:
        environment: the robot.
        plan: called with the observations of all episodes that go on, float32, and their numbers.
        episodes: how many.
        seed: of the starts; the planner's noise is its own.
        steps: after which an episode ends by timeout.
        executed: actions carried out of each plan before the next is made.
        workers: processes that share the physics; the result does not depend on it.
        version: see `world.simulators`.
        starts: different ones; episode k begins like episode k - starts. None: all differ.

    Raises:
        InputError: a number is out of range, more workers than cores, plans are too short or not
            finite, or a worker process was killed.
    """
    check(episodes, steps, executed, workers)
    distinct = starts or episodes
    owners = np.array_split(np.arange(episodes), min(workers, episodes))
    blocks = [
        (environment, [derived_seed(seed, int(k)) % 2**31 for k in rows % distinct], steps, version)
        for rows in owners
    ]
    with lockstep.served(blocks) as everywhere:
        observations = np.concatenate(everywhere("start"))
        going = np.ones(episodes, dtype=bool)
        while going.any():
            actions = np.zeros((episodes, executed, environment.action), np.float32)
            made = plan(observations[going], np.flatnonzero(going))
            if made.shape[1] < executed:
                raise InputError(
                    f"executed = {executed} is out of range: plans have {made.shape[1]} actions."
                )
            if not np.isfinite(made).all():  # MuJoCo would take no action at all
                raise InputError(
                    "plan: its actions are not finite; a planner of finite plans is needed (a "
                    "smaller weight, if it is steered)."
                )
            actions[going] = np.clip(made[:, :executed], -1, 1)
            mine = ([part[rows] for rows in owners] for part in (going, actions))
            found = zip(*everywhere("step", *mine), strict=True)
            observations, going = (np.concatenate(part) for part in found)
        kept = everywhere("kept")
    columns = zip(*(s for block in kept for episode in block for s in episode), strict=True)
    floats = np.float32, np.float32, np.float32, bool, bool
    return Trajectories(*(np.asarray(c, d) for c, d in zip(columns, floats, strict=True)))
