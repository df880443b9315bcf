"""The mazes: PointMaze's own MuJoCo model stepped in batches, and a way-point controller.

There is no physics here: a step is MuJoCo's, on the model that gymnasium-robotics builds.
"Cell units" are (row, column), with (1, 1) the centre of that cell; the simulator's x runs along
the columns, its y against the rows, and both start in the middle of the maze.
"""

import contextlib
import io
import os
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import mujoco
import mujoco.rollout
import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csgraph

from rrlib.errors import InputError
from rrlib.plans.trajectories import Trajectories

with contextlib.redirect_stderr(io.StringIO()):  # it prints news of other environments there
    import gymnasium_robotics
    from gymnasium_robotics.envs.maze import maps
    from gymnasium_robotics.envs.maze.maze_v4 import Maze as PointMazeLayout

LAYOUTS = {
    "open": maps.OPEN,
    "umaze": maps.U_MAZE,
    "medium": maps.MEDIUM_MAZE,
    "large": maps.LARGE_MAZE,
}
# The 8 goals per maze of the paper's experiments, in cell units.
GOALS = {
    "open": ((1, 1), (1, 5), (1.3, 1.7), (2, 3), (2.3, 4.3), (2.7, 3.1), (3, 1), (3, 5)),
    "umaze": ((1, 1), (1, 2), (1, 3), (1.3, 2.7), (2, 3), (3, 1), (3, 2), (3, 3)),
    "medium": ((1, 1), (1, 6), (2, 2), (4, 4), (4, 6), (5, 3), (6, 1), (6, 6)),
    "large": ((1, 1), (1, 10), (3, 6), (3, 8), (5, 2), (5, 4), (7, 1), (7, 10)),
}
OBSERVATION, ACTION = 4, 2  # numbers per step: position and velocity; force
RADIUS = 0.1  # of the ball, in cells
MAX_SPEED = 5.0  # PointMaze clips each velocity component to this before a step
NEAR = 0.45  # PointMaze's sparse reward is 1 within this distance of the target
PAPER_GAINS = (3.0, -0.548)  # the controller's p and d in the paper's data
D4RL_GAINS = (10.0, -1.0)


@dataclass(frozen=True, eq=False)
class Maze:
    """A layout and what follows from it; ``load`` makes it."""

    name: str
    walls: np.ndarray  # [rows, columns] bool

    @cached_property
    def free_cells(self) -> np.ndarray:
        """The cells that are not walls, (row, column), int [n, 2]."""
        return np.argwhere(~self.walls)

    def to_xy(self, cells: ArrayLike) -> np.ndarray:
        """Points [..., 2] from cell units to the simulator's x and y."""
        rows, columns = self.walls.shape
        return np.asarray(cells, dtype=float)[..., ::-1] * (1, -1) + (
            0.5 - columns / 2,
            rows / 2 - 0.5,
        )

    def to_cells(self, xy: np.ndarray) -> np.ndarray:
        """Points [..., 2] from the simulator's x and y to cell units."""
        rows, columns = self.walls.shape
        offsets = (np.asarray(xy, dtype=float) * (1, -1))[..., ::-1]
        return offsets + np.array((rows / 2 - 0.5, columns / 2 - 0.5))

    def clearance(self, cells: np.ndarray) -> np.ndarray:
        """Distance [...] of points [..., 2] (cell units) to the nearest wall; 0 in a wall."""
        offsets = np.abs(np.asarray(cells, dtype=float)[..., None, :] - np.argwhere(self.walls))
        return np.linalg.norm(np.maximum(offsets - 0.5, 0), axis=-1).min(axis=-1)

    def is_free(self, cells: ArrayLike) -> np.ndarray:
        """Whether the ball fits at points [..., 2] (cell units): inside, and off every wall."""
        found = np.asarray(cells, dtype=float)
        inside = ((found > -0.5) & (found < np.array(self.walls.shape) - 0.5)).all(axis=-1)
        return inside & (self.clearance(found) >= RADIUS)

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Points [n, 2] (cell units), uniform over where the ball fits."""
        found = np.empty((0, 2))
        while len(found) < n:
            cells = self.free_cells[rng.integers(len(self.free_cells), size=2 * n)]
            cells = cells + rng.uniform(-0.5, 0.5, size=cells.shape)
            found = np.concatenate([found, cells[self.is_free(cells)]])
        return found[:n]

    @cached_property
    def model(self) -> mujoco.MjModel:
        """PointMaze's MuJoCo model of this maze."""
        point = Path(gymnasium_robotics.__file__).parent / "envs" / "assets" / "point" / "point.xml"
        # Scale and wall height as in PointMazeEnv.
        _, xml = PointMazeLayout.make_maze(str(point), LAYOUTS[self.name], 1, 0.4)
        try:
            spec = mujoco.MjSpec.from_file(xml)
        finally:
            os.remove(xml)
        # A batch gives back no accelerations, but it does give back sensors.
        particle = {"objtype": mujoco.mjtObj.mjOBJ_BODY, "objname": "particle"}
        spec.add_sensor(type=mujoco.mjtSensor.mjSENS_FRAMELINACC, **particle)
        return spec.compile()

    @cached_property
    def data(self) -> mujoco.MjData:
        """Room for one ball at a time, which a batch works in."""
        return mujoco.MjData(self.model)

    @cached_property
    def _next_cells(self) -> np.ndarray:
        """Next cell on a shortest path, flat indices: int [cells (of the target), cells]."""
        index = np.arange(self.walls.size).reshape(self.walls.shape)
        free = ~self.walls
        graph = np.zeros((self.walls.size, self.walls.size), dtype=bool)
        right, down = free[:, :-1] & free[:, 1:], free[:-1] & free[1:]
        graph[index[:, :-1][right], index[:, 1:][right]] = True
        graph[index[:-1][down], index[1:][down]] = True
        # Undirected: the cell before on a way out from the target is the next on the way in.
        _, following = csgraph.shortest_path(
            graph, directed=False, unweighted=True, return_predecessors=True
        )
        return following


@cache
def load(name: str) -> Maze:
    """The maze "open", "umaze", "medium" or "large"; InputError on any other name."""
    if name not in LAYOUTS:
        raise InputError(f"maze = '{name}' is unknown: allowed are {', '.join(LAYOUTS)}.")
    return Maze(name, np.array(LAYOUTS[name]) == 1)


def check_goal(maze: Maze, goal: tuple[float, float]) -> None:
    """Raise InputError unless the ball can rest at ``goal`` (cell units)."""
    if not (np.shape(goal) == (2,) and np.isfinite(goal).all() and maze.is_free(goal)):
        rows, columns = np.array(maze.walls.shape) - 1
        raise InputError(
            f"goal = {goal} is in a wall, within {RADIUS} cells of one, or outside of maze "
            f"'{maze.name}': allowed is a (row, column) in free space, rows 0 to {rows}, columns "
            f"0 to {columns}, for instance {GOALS[maze.name][0]}."
        )


def goals(
    maze: Maze, n: int, own: tuple[float, float] | None = None
) -> tuple[tuple[float, float], ...]:
    """`own` alone, or else the first n of the paper's goals; InputError if one cannot be used."""
    chosen = (own,) if own else GOALS[maze.name][:n]
    for goal in chosen:
        check_goal(maze, goal)
    return chosen


def step(
    maze: Maze, states: np.ndarray, actions: np.ndarray, accelerations: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One step of 0.01 s of n balls, as PointMaze makes it: the next states and accelerations.

    States are (x, y, vx, vy), float64 [n, 4]. Actions [n, 2] are clipped to [-1, 1] and, before the
    step, each velocity to [-5, 5]. Accelerations [n, 2] are those of the step before, zeros at
    first: MuJoCo's search for contact forces starts from them, and from elsewhere it stops at
    forces that move the ball by 1e-7 more or less.
    """
    full = np.zeros((len(states), 5))  # MuJoCo's state: time, positions, velocities
    full[:, 1:3] = states[:, :2]
    np.clip(states[:, 2:], -MAX_SPEED, MAX_SPEED, out=full[:, 3:])
    following, sensors = mujoco.rollout.rollout(
        maze.model,
        maze.data,
        full,
        np.clip(actions, -1, 1, dtype=float)[:, None],
        initial_warmstart=accelerations,
    )
    return following[:, 0, 1:], sensors[:, 0, :2]


def control(
    maze: Maze, states: np.ndarray, targets: np.ndarray, gains: tuple[float, float] = PAPER_GAINS
) -> np.ndarray:
    """The way-point controller: actions [n, 2] for states [n, 4] and targets [n, 2] (x and y).

    It has no memory: action = clip(p (aim - position) + d velocity, -1, 1), where the aim is the
    centre of the next cell on a shortest path to the target's cell, or, in that cell or within 0.2
    of the target, the target. (By cells alone, a ball held at a target beside a cell's border would
    be sent to a centre each time it strays over the border, and never rest.)
    """
    columns = maze.walls.shape[1]
    cells = np.floor(maze.to_cells(states[:, :2]) + 0.5).astype(int) @ (columns, 1)
    target_cells = np.floor(maze.to_cells(targets) + 0.5).astype(int) @ (columns, 1)
    following = maze._next_cells[target_cells, cells]
    centres = maze.to_xy(np.stack(np.divmod(following, columns), axis=-1))
    to_target = targets - states[:, :2]
    direct = (cells == target_cells) | ((to_target**2).sum(axis=1) < 0.2**2)
    aims = np.where(direct[:, None], targets, centres)
    p, d = gains
    return np.clip(p * (aims - states[:, :2]) + d * states[:, 2:], -1, 1)


def make_trajectories(
    maze: Maze,
    episodes: int,
    steps: int,
    goal: tuple[float, float] | None = None,
    seed: int = 0,
    gains: tuple[float, float] = PAPER_GAINS,
) -> Trajectories:
    """Episodes of ``steps`` steps from starts uniform over free space, all stepped at once.

    The target is ``goal`` (cell units; an expert's data) or drawn uniformly per episode (a base's).
    Arrived, the ball is held there by the same controller, so that resting is real physics; the
    paper stops within 0.3 cells and repeats the last observation. Rewards are PointMaze's sparse
    ones: 1 where the step ends within 0.45 of the target. Every episode ends by timeout.

    Raises InputError on counts below one and on a goal where the ball cannot be.
    """
    for name, value in (("episodes", episodes), ("steps", steps)):
        if value < 1:
            raise InputError(f"{name} = {value} is out of range: allowed is 1 or more.")
    if goal is not None:
        check_goal(maze, goal)
    rng = np.random.default_rng(seed)
    starts = maze.to_xy(maze.sample(episodes, rng))
    states = np.concatenate([starts, np.zeros((episodes, 2))], axis=1)
    accelerations = np.zeros((episodes, 2))
    targets = maze.to_xy(maze.sample(episodes, rng) if goal is None else [goal] * episodes)

    observations = np.empty((episodes, steps, 4), dtype=np.float32)
    actions = np.empty((episodes, steps, 2), dtype=np.float32)
    rewards = np.empty((episodes, steps), dtype=np.float32)
    for k in range(steps):
        observations[:, k] = states
        actions[:, k] = chosen = control(maze, states, targets, gains)
        states, accelerations = step(maze, states, chosen, accelerations)
        rewards[:, k] = np.linalg.norm(states[:, :2] - targets, axis=1) <= NEAR
    timeouts = np.zeros((episodes, steps), dtype=bool)
    timeouts[:, -1] = True
    return Trajectories(
        observations.reshape(-1, 4),
        actions.reshape(-1, 2),
        rewards.ravel(),
        np.zeros(episodes * steps, dtype=bool),
        timeouts.ravel(),
        np.repeat(targets, steps, axis=0).astype(np.float32),
    )
