"""Worlds in which agents learn and play, many copies in lock-step."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rrlib.locomotion import robots
from rrlib.locomotion import world as locomotion
from rrlib.mazes import world as maze

REPEAT = 10  # steps of 0.01 s for which a ball's agent holds a force


@dataclass(frozen=True, eq=False)
class Moved:
    """What one step of an agent did to n copies of a world.

    Attributes:
        rows: actions and observations of the world's own steps, [n, k, D].
        own: the world's own reward, summed over them, [n].
        last: observations after the step, [n, do].
        now: the same, but where an episode has ended the first ones of the next.
        fallen, late: whether it ended by itself, or by time, bool [n].
    """

    rows: np.ndarray
    own: np.ndarray
    last: np.ndarray
    now: np.ndarray
    fallen: np.ndarray
    late: np.ndarray


class World(Protocol):
    """n copies of a world."""

    n: int
    widths: tuple[int, int]  # numbers of an action and of an observation

    def reset(self, seed: int) -> np.ndarray:
        """First observations, [n, do]."""

    def step(self, actions: np.ndarray) -> Moved:
        """Carry out actions [n, da] in [-1, 1]."""

    def close(self) -> None:
        """Give the simulators back."""


class Balls:
    """Balls in PointMaze, from starts anywhere; all episodes end by time, together."""

    widths = maze.ACTION, maze.OBSERVATION

    def __init__(self, name: str, goal: tuple[float, float], n: int, length: int):
        self.world, self.n, self.length = maze.load(name), n, length
        self.goal = self.world.to_xy(goal)

    def reset(self, seed: int) -> np.ndarray:
        """First observations, [n, 4]."""
        self.rng = np.random.default_rng(seed)
        return self._begin()

    def _begin(self) -> np.ndarray:
        starts = self.world.to_xy(self.world.sample(self.n, self.rng))
        self.states = np.concatenate([starts, np.zeros((self.n, 2))], 1)
        self.accelerations, self.done = np.zeros((self.n, 2)), 0
        return self.states.astype(np.float32)

    def step(self, actions: np.ndarray) -> Moved:
        """Push for `REPEAT` steps."""
        rows, own = np.empty((self.n, REPEAT, 6), np.float32), np.zeros(self.n, np.float32)
        for k in range(REPEAT):
            rows[:, k] = np.concatenate([actions, self.states], 1)
            moved = maze.step(self.world, self.states, actions, self.accelerations)
            self.states, self.accelerations = moved
            own += np.linalg.norm(self.states[:, :2] - self.goal, axis=1) <= maze.NEAR
        self.done += REPEAT
        last, ended = self.states.astype(np.float32), self.done >= self.length
        now = self._begin() if ended else last
        none = np.zeros(self.n, bool)
        return Moved(rows, own, last, now, none, np.full(self.n, ended))

    def close(self) -> None:
        """Nothing is held."""


class Robots:
    """Walking robots, as Gymnasium has them."""

    def __init__(self, name: str, n: int):
        environment = robots.load(name)
        self.n, self.widths = n, (environment.action, environment.observation)
        self.simulators = locomotion.simulators(environment, n)

    def reset(self, seed: int) -> np.ndarray:
        """First observations, [n, do]."""
        self.observations = self.simulators.reset(seed=seed)[0].astype(np.float32)
        return self.observations

    def step(self, actions: np.ndarray) -> Moved:
        """One step of the simulators."""
        rows = np.concatenate([actions, self.observations], 1).astype(np.float32)[:, None]
        now, own, fallen, late, info = self.simulators.step(actions)
        now = last = now.astype(np.float32)
        if "final_obs" in info:
            last = now.copy()
            for k in np.flatnonzero(info["_final_obs"]):
                last[k] = info["final_obs"][k]
        self.observations = now
        return Moved(rows, own.astype(np.float32), last, now, fallen, late & ~fallen)

    def close(self) -> None:
        """Close the simulators."""
        self.simulators.close()
