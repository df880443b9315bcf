"""Agents at work: shipped ones are loaded, and play from starts that nothing was chosen by."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from rrlib import disk
from rrlib.errors import InputError
from rrlib.lab.agents.experiments import GOAL, MAZE
from rrlib.lab.agents.worlds import REPEAT
from rrlib.lab.mazes.recipes import LENGTHS
from rrlib.locomotion import robots, rollouts
from rrlib.locomotion import world as locomotion
from rrlib.locomotion.actors import Actor, Policy
from rrlib.mazes import driving, scores
from rrlib.mazes import world as maze

POLICIES = Path(__file__).resolve().parent / "policies"


def shipped() -> dict[str, list[str]]:
    """Teachers whose agents come with the book, by world."""
    found: dict[str, list[str]] = {}
    for path in sorted(POLICIES.glob("*.safetensors")):
        world, teacher = path.stem.split("-")
        found.setdefault(world, []).append(teacher)
    return found


def load_agent(world: str, teacher: str, folder: Path = POLICIES) -> tuple[Policy, dict]:
    """An agent and its card: how it was trained, by whom it was paid.

    Raises:
        InputError: none is shipped, or it is damaged.
    """
    file = folder / f"{world}-{teacher}.safetensors"
    if not file.exists():
        raise InputError(f"No agent '{world}-{teacher}' is shipped: one of `shipped()` is needed.")
    card = disk.read_sealed(file.with_suffix(".json"))
    if disk.sha256(file) != card["sha256"]:
        raise InputError(f"Agent file '{file}' is damaged: one with its card's sha256 is needed.")
    arrays = {name: array.astype(np.float32) for name, array in load_file(file).items()}
    depth = len(arrays) // 2
    return Policy(tuple((arrays[f"kernel.{k}"], arrays[f"bias.{k}"]) for k in range(depth))), card


@dataclass(frozen=True)
class BallsPlayed:
    """What balls did.

    Attributes:
        positions: x y, [n, steps, 2].
        reached: whether each was within PointMaze's 0.45 of the goal at any time, bool [n].
        rests: whether it was there at the end, bool [n].
        scores: D4RL's, float [n].
    """

    positions: np.ndarray
    reached: np.ndarray
    rests: np.ndarray
    scores: np.ndarray


def push_balls(actor: Actor, n: int, seed: int) -> BallsPlayed:
    """Balls of an agent, each force held for `REPEAT` steps, from starts of a seed."""
    world, steps = maze.load(MAZE), LENGTHS[MAZE]
    starts = world.sample(n, np.random.default_rng(seed))

    def policy(observations: Tensor) -> Tensor:
        actions = actor(observations.numpy())
        return torch.from_numpy(actions)[:, None].expand(-1, REPEAT, -1)

    positions = driving.push(world, policy, starts, steps, REPEAT)
    return judged(positions)


def judged(positions: np.ndarray) -> BallsPlayed:
    """What became of balls at positions [n, steps, 2]."""
    world, steps = maze.load(MAZE), positions.shape[1]
    reached = driving.reached(world, positions, GOAL) < steps
    rests = driving.reached(world, positions[:, -1:], GOAL) < 1
    return BallsPlayed(positions, reached, rests, scores.scores(world, positions, GOAL))


def play_robots(name: str, actor: Actor, n: int, seed: int, steps: int) -> np.ndarray:
    """Normalised scores of n episodes of an actor, [n]; the starts are those of planners' too."""
    world = robots.load(name)

    def plan(observations: np.ndarray, episodes: np.ndarray) -> np.ndarray:
        return actor(observations)[:, None]

    return locomotion.scores(world, rollouts.play(world, plan, n, seed, steps=steps))


def at_random(width: int, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """An actor that draws its actions: what chance does."""
    rng = np.random.default_rng(seed)
    return lambda observations: rng.uniform(-1, 1, (len(observations), width)).astype(np.float32)
