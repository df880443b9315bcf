"""What chapters about mazes may be asked for: parameters, sizes of networks, budgets, horizons.

It imports nothing that is slow, so that a chapter can refuse a horizon at once.
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

from rrlib.errors import InputError
from rrlib.lab import parameters as rules
from rrlib.lab.costs import CUDA, Cost

# Seconds that one core takes for a step of a diffuser and of a reward, and at which horizon.
SECONDS = {"small": (0.035, 0.005, 32), "medium": (0.065, 0.005, 128), "paper": (1.7, 0.1, 256)}
NUMBERS = (  # of parameters that not every chapter has
    *("diffuser_steps", "reward_steps", "choices", "balls", "episodes", "transitions", "plans"),
)

PARAMETERS = {  # that several chapters share
    "maze": rules.several_of("open", "umaze", "medium", "large"),
    "n_goals": rules.integer(1, 8),
    "goal": rules.cell(),
    "episodes": rules.integer(20, 500_000),
    "n_seeds": rules.integer(1, 100),
    "size": rules.one_of("small", "medium", "paper"),
    "horizon": rules.integer(4, 4096, multiple_of=4),
    "diffuser_steps": rules.integer(1, 5_000_000),
    "reward_steps": rules.integer(1, 1_000_000),
    "denoising": rules.integer(2, 1000),
    "resamplings": rules.integer(0, 100),
    "dataset_path": rules.existing_file_or_empty(),
    "choices": rules.several_of(
        *("score", "x_t", "literal", "window_1", "window_4", "window_16", "window_64"),
        *("window_all", "strided", "every_step", "leaky_relu", "ends", "scratch", "from_base"),
        alone=("all",),
    ),
}


@dataclass(frozen=True)
class Sizes:
    """Networks and budgets; the fields of `MazeDiffuser`, `MazePool` and `MazeRewards`; and of
    `MazePlanningReward` and its pool.

    Attributes:
        network: "u_net" (`MazeDiffuser`) or "components" (`ComponentDiffuser`, no channels).
        expert_share: optimisation steps of an expert over those of its base.
        from_base: whether an expert begins at the base's weights.
        planning: hidden layers of the reward for planning.
        drawn: plans for it that each model draws.
    """

    network: Literal["u_net", "components"] = "u_net"
    channels: tuple[int, ...] = (16, 32, 64)
    patch: int = 1
    diffusion_steps: int = 50
    batch: int = 32
    learning_rate: float = 2e-3
    given: float = 0.5
    expert_share: float = 0.75
    from_base: bool = True
    plans: int = 10_000
    window: int = 32
    hidden: tuple[int, ...] = (128, 64, 32)
    average: int = 1
    reward_batch: int = 128
    reward_rate: float = 4e-3
    planning: tuple[int, ...] = (128, 64, 32)
    drawn: int = 250


def sizes(size: str, name: str) -> Sizes:
    """Sizes for a maze: "small" (quick), "medium" (full) or "paper" (Tables 2 and 3).

    The medium size has plans of whole ways, and so a perceptron on their components: a U-Net that a
    core can train in some minutes does not learn where the walls of a large maze are.

    Tables 2 and 3 are about rewards; the paper's diffusers are its authors' (three resolutions,
    100 steps of noise, batches of 128, a rate of 2e-4, experts from scratch).
    """
    if size == "small":
        return Sizes()
    if size == "medium":
        diffuser = ("components", (), 1, 50, 512, 2e-3, 0.5, 0.25, False)
        rewards = 8_000, 128, (96, 64, 32), 4, 256, 2e-3
        return Sizes(*diffuser, *rewards, planning=(512, 256, 128), drawn=4_000)
    own = (64, (32,)) if name == "open" else (4, (128, 64, 32))
    diffuser = ("u_net", (32, 128, 256), 1, 100, 128, 2e-4, 0.25, 1.0, False)
    rewards = 100_000, *own, 1, 256, 5e-5
    return Sizes(*diffuser, *rewards, planning=(512, 256, 128), drawn=4_000)


def check_horizon(horizon: int, size: str, *names: str) -> None:
    """Raise InputError unless plans of `horizon` steps fit diffusers and rewards of these mazes."""
    for name in names:
        found = sizes(size, name)
        halved = 2 ** (len(found.channels) - 1) if found.network == "u_net" else 1
        factor = math.lcm(found.window, found.patch * halved)
        if horizon < factor or horizon % factor:
            raise InputError(
                f"horizon={horizon} is not allowed: a multiple of {factor}, which the networks "
                f"of size='{size}' work on, is needed."
            )


def check(chosen: SimpleNamespace) -> None:
    """Raise InputError unless horizon, denoising steps, goals and data file fit every chosen maze.

    Args:
        chosen: a chapter's parameters; it may lack `denoising`, `goal` and `dataset_path`.
    """
    check_horizon(chosen.horizon, chosen.size, *chosen.maze)
    most = min(sizes(chosen.size, name).diffusion_steps for name in chosen.maze)
    if getattr(chosen, "denoising", 2) > most:
        raise InputError(
            f"denoising={chosen.denoising} is not allowed: a number from 2 to {most}, the steps of "
            f"size='{chosen.size}', is needed."
        )
    if hasattr(chosen, "goal"):
        check_data(chosen)


def check_data(chosen: SimpleNamespace) -> None:
    """Raise InputError unless goals and data file fit every chosen maze.

    Args:
        chosen: a chapter's `maze` (names), `n_goals`, `goal` (or None) and `dataset_path` (or "").
    """
    from rrlib.mazes import recordings, world  # MuJoCo takes seconds
    from rrlib.plans import trajectories

    for name in chosen.maze:
        world.goals(world.load(name), chosen.n_goals, chosen.goal)
        if path := chosen.dataset_path:
            trajectories.check_episodes(recordings.read(world.load(name), path), path)


def cost(asked: SimpleNamespace) -> Cost:
    """What a chapter about mazes costs by its parameters; those that it lacks cost nothing.

    Memory is that of a data set, read, normalised and cut, and of a pool of comparisons; time is
    that of diffusers, rewards and balls.
    """
    given = {"n_goals": 8, "n_seeds": 1, "horizon": 128, "size": "medium", "device": "cpu"}
    given |= {"denoising": 50, "resamplings": 0}
    of = SimpleNamespace(**given | dict.fromkeys(NUMBERS, 0) | vars(asked))
    diffuser, reward, horizon = SECONDS[of.size]
    longer = max(1.0, of.horizon / horizon)
    pairs = len(of.maze) * of.n_goals
    seconds = longer * (len(of.maze) + pairs) * of.diffuser_steps * diffuser
    kinds = max(1, 15 if "all" in (of.choices or ()) else len(of.choices or ()))
    seconds += longer * pairs * of.n_seeds * kinds * of.reward_steps * reward
    evaluations = of.denoising * (1 + of.resamplings)
    seconds += pairs * of.balls * evaluations * diffuser  # an episode
    if of.balls:  # the reward for planning, and what each model draws for it
        seconds += longer * pairs * 4 * of.reward_steps * reward
        own = sizes(of.size, of.maze[0])
        drawn = 2 * own.drawn * own.diffusion_steps / own.batch  # batches
        seconds += longer * pairs * drawn * diffuser / 3  # one way of three
    seconds /= 1 if of.device == "cpu" else CUDA
    rows = max(600 * of.episodes, *(int(n) for n in of.transitions or (0,)))
    seconds += (len(of.maze) + pairs) * rows / 2e5  # physics
    plan = 6 * of.horizon * 4
    pool = max(sizes(of.size, name).plans for name in of.maze) if of.reward_steps else 0
    return Cost((rows * 100 + max(4 * pool, 3 * of.plans) * plan) / 1e9, seconds / 3600)
