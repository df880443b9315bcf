"""Parameters and sizes of the locomotion chapters, apart from everything slow to import."""

import os
from dataclasses import dataclass
from types import SimpleNamespace

from rrlib.errors import InputError
from rrlib.lab import parameters as rules
from rrlib.lab.costs import CUDA, Cost

KINDS = "random", "medium", "medium-replay"  # of data that a base may have

# What the chapters' parameters may be; their meaning stands beside each in the chapters.
PLANNERS = {  # of every chapter
    "environment": rules.several_of("halfcheetah", "hopper", "walker2d"),
    "base_kind": rules.one_of(*KINDS),
    "transitions": rules.integer(5000, 20_000_000),
    "size": rules.one_of("small", "medium", "paper"),
    "diffuser_steps": rules.integer(1, 10_000_000),
    "n_seeds": rules.integer(1, 100),
    "episodes": rules.integer(2, 10_000),
    "steps": rules.integer(10, 1000),
    "executed": rules.integer(1, 1000),
    "denoising": rules.integer(2, 1000),
    "version": rules.integer(4, 5),
    "workers": rules.integer(1, os.cpu_count()),
    "base_path": rules.existing_file_or_empty(),
    "expert_path": rules.existing_file_or_empty(),
    **rules.shared(),
}
STEERING = PLANNERS | {  # of those that steer
    "search": rules.integer(2, 10_000),
    "reward_steps": rules.integer(1, 1_000_000),
    "rounds": rules.integer(0, 10),
    "weights": rules.several_numbers(0.0, 1000.0),
    "untils": rules.several_numbers(0, 999, whole=True),
}
OTHER_KINDS = rules.several_of(*KINDS)
METHODS = rules.several_of("unspread", "short", "score", "scalar", "wide", alone=("none", "all"))

# Seconds that one core takes for a step of training, and to denoise one plan once.
SECONDS = {"small": (0.003, 5e-5), "medium": (0.012, 2e-4), "paper": (0.1, 7e-3)}


@dataclass(frozen=True)
class Sizes:
    """Networks and budgets; the fields of the recipes in `recipes` and `rewards`.

    Attributes:
        horizon: steps of a plan.
        diffusion_steps: T.
        diffuser: of both diffusers.
        plans: shown to the discriminator, of either kind.
        comparisons: of the pool that the reward is fitted to.
        value: of reward and discriminator.
    """

    horizon: int
    diffusion_steps: int
    diffuser: dict
    plans: int
    comparisons: int
    value: dict


def sizes(size: str, name: str) -> Sizes:
    """Sizes for an environment: "small" (quick), "medium" (full) or "paper" (Tables 2 and 3).

    Diffuser's horizon for HalfCheetah is 4, for the others 32. The diffusers of "paper" are
    Diffuser's own but for HalfCheetah's attention, which `networks.PlanNetwork` lacks.
    """
    short = name == "halfcheetah"
    horizon = 4 if short else 32
    if size == "paper":
        channels = (32, 128, 256) if short else (32, 64, 128, 256)
        diffuser = {"channels": channels, "batch": 32, "learning_rate": 2e-4}
        value = {"channels": (64, 64, 128, 128), "batch": 128, "learning_rate": 2e-4}
        return Sizes(horizon, 20, diffuser, 200_000, 400_000, value)
    if size == "medium":
        network = {"hidden": 256, "blocks": 2, "batch": 256}
        comparisons = 800_000 if short else 300_000
        value = network | {"learning_rate": 2e-3}
        return Sizes(horizon, 20, network, 100_000, comparisons, value)
    network = {"hidden": 128, "blocks": 2, "batch": 128, "learning_rate": 2e-3}
    return Sizes(horizon, 10, network, 60_000, 60_000, network)


def check(chosen: SimpleNamespace) -> None:
    """Raise InputError unless plans of the environments and the size, and the data, allow it.

    Args:
        chosen: checked parameters `environment` (names), `size`, `executed` (actions carried out
            of a plan, at most its horizon), `denoising` (steps of its sampling, 2 to T), and, where
            a chapter has it, `untils` (steps of the schedule down to which plans are steered);
            `base_path` and `expert_path`, see `check_data`.
    """
    executed, denoising = chosen.executed, chosen.denoising
    for name in chosen.environment:
        found = sizes(chosen.size, name)
        last = found.diffusion_steps - 1
        if executed > found.horizon:
            raise InputError(
                f"executed={executed} is not allowed: a plan of environment = '{name}' has "
                f"{found.horizon} actions."
            )
        if not 2 <= denoising <= last + 1:
            raise InputError(
                f"denoising={denoising} is not allowed: a number from 2 to {last + 1}, the steps "
                f"of size = '{chosen.size}', is needed."
            )
        for until in getattr(chosen, "untils", ()):
            if until > last:
                raise InputError(
                    f"untils={until} is not allowed: steps from 0 to {last}, the last of "
                    f"size = '{chosen.size}', are needed."
                )
    check_data(chosen)


def check_data(chosen: SimpleNamespace) -> None:
    """Raise InputError unless the data that a chapter's parameters ask for can be had.

    Args:
        chosen: checked parameters `environment` (names), `base_path` and `expert_path`.
    """
    from rrlib.locomotion import actors, robots, world  # MuJoCo takes seconds
    from rrlib.plans import trajectories

    paths = [path for path in (chosen.base_path, chosen.expert_path) if path]
    if paths and len(chosen.environment) > 1:
        raise InputError(
            f"environment = {','.join(chosen.environment)} is not allowed with a data file of "
            "one: name one environment."
        )
    for name in chosen.environment:
        for path in paths:
            trajectories.check_episodes(world.read(robots.load(name), path), path)
        if len(paths) < 2:
            actors.check_version(robots.load(name))


def cost(asked: SimpleNamespace) -> Cost:
    """What a chapter about robots costs by its parameters; those that it lacks cost nothing.

    Memory is that of a data set and of a batch of plans; time is that of training, of rollouts, and
    of the search, in which every scale and last step is tried with every method.
    """
    lacking = dict.fromkeys(("reward_steps", "search", "rounds"), 0)
    of = SimpleNamespace(**lacking | {"weights": (), "untils": (), "kinds": ()} | vars(asked))
    step, denoise = SECONDS[of.size]
    pairs = len(of.environment) * of.n_seeds
    fits = 2 * of.diffuser_steps + (4 + of.rounds) * of.reward_steps
    tried = of.search * len(of.weights) * len(of.untils) * 9
    played = (12 + len(of.kinds)) * of.episodes + tried
    plans = played * of.steps / of.executed * of.denoising
    seconds = pairs * (fits * step + plans * denoise) / (1 if of.device == "cpu" else CUDA)
    seconds += pairs * (2 * of.transitions + played * of.steps) / 5e3  # physics
    longest = max(sizes(of.size, name).horizon for name in of.environment)
    numbers = 24 * (4 * of.transitions + of.episodes * (4 * of.steps + 2000 * longest))
    return Cost(4 * numbers / 1e9, seconds / 3600)
