"""D4RL's normalised score of Maze2D, beside the share of balls that arrive."""

import numpy as np
from numpy.typing import ArrayLike

from rrlib.errors import InputError
from rrlib.mazes.world import Maze

# Of d4rl/infos.py, `maze2d-open-v0` and the `-v1` of the others: returns that score 0 and 100, of
# random actions and of a way-point controller that is slower than ours (157 in the U-maze).
REFERENCES = {
    "open": (0.01, 20.66),
    "umaze": (23.85, 161.86),
    "medium": (13.13, 277.39),
    "large": (6.7, 273.99),
}
# Of d4rl/pointmaze: steps of an episode, which goes on at the goal, and how near that is.
STEPS = {"open": 150, "umaze": 300, "medium": 600, "large": 800}
AT_GOAL = 0.5


def normalised_score(maze: str, returns: ArrayLike) -> np.ndarray:
    """D4RL's score of returns (steps at the goal in an episode): 0 is random, 100 its controller.

    The references are of D4RL's own goal in each maze and of its own starts; who is faster than
    its controller scores more than 100.

    Raises:
        InputError: a maze that D4RL has no reference for.

    >>> normalised_score("umaze", [23.85, 161.86]).round(6).tolist()
    [0.0, 100.0]
    """
    if maze not in REFERENCES:
        known = ", ".join(REFERENCES)
        raise InputError(f"maze='{maze}' is not allowed: D4RL scores {known}.")
    lowest, highest = REFERENCES[maze]
    return 100 * (np.asarray(returns, dtype=float) - lowest) / (highest - lowest)


def scores(world: Maze, positions: np.ndarray, goal: tuple[float, float]) -> np.ndarray:
    """D4RL's normalised score of each ball, [n].

    Args:
        world: the maze.
        positions: x y after each step, [n, steps, 2], in the simulator's units; as many steps as
            D4RL's episodes have.
        goal: cell units.

    Raises:
        InputError: episodes of another length, or see `normalised_score`.
    """
    steps = STEPS.get(world.name)
    if np.ndim(positions) != 3 or positions.shape[1:] != (steps, 2):
        raise InputError(
            f"positions of shape {np.shape(positions)} are not allowed: [n, {steps}, 2], D4RL's "
            f"episodes of maze '{world.name}', are needed."
        )
    distances = np.linalg.norm(positions - world.to_xy(goal), axis=-1)
    return normalised_score(world.name, (distances <= AT_GOAL).sum(1))
