"""Recorded data of the mazes, the simulator's or D4RL's, in the simulator's coordinates."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from rrlib.errors import InputError, shown, warn
from rrlib.mazes.world import ACTION, OBSERVATION, RADIUS, Maze
from rrlib.plans import trajectories
from rrlib.plans.trajectories import Trajectories

# What to add to positions of D4RL's files to get (row, column): its ball's body lies 0.2 off the
# centre of the cell that it is placed in, and its observations leave that out.
D4RL_SHIFTS = (0.0, 0.2)


def read(maze: Maze, path: str | Path) -> Trajectories:
    """Trajectories of this maze from a data file of any layout that `trajectories.read` takes.

    Files of D4RL's maze2d have positions in cells, (row, column), and not in the simulator's
    metres. They are recognised by where their walls are: in metres positions would lie in walls,
    in cells none does. They are converted, velocities, actions and goals alike.
    Where a position jumps, a new episode begins, whatever the file's marks say: no window may run
    across a reset. A DataWarning tells of either, as of what `trajectories.read` had to leave out.

    Raises InputError if it cannot be read, if positions lie in walls, or if actions are far outside
    of [-1, 1].
    """
    found = trajectories.read(path, OBSERVATION, ACTION)
    said = f"Dataset {shown(str(path), 200)}"
    inside = _in_free_cells(maze, maze.to_cells(found.observations[:, :2]))
    if not inside.all():
        shift = _d4rl_shift(maze, found.observations[:, :2].astype(float))
        if shift is None:
            raise InputError(
                f"{said} does not fit maze='{maze.name}': {np.mean(~inside):.0%} of its "
                "positions lie in walls; all must be in free space, with (0, 0) the maze's centre."
            )
        rows, columns = maze.walls.shape
        warn(
            f"{said} has positions as D4RL's maze2d has them, (row, column) of cells: they become "
            f"x = column {shift + 0.5 - columns / 2:+g} and y = {rows / 2 - 0.5 - shift:g} - row, "
            "and velocities, actions and goals are turned alike."
        )
        found = from_d4rl(maze, found, shift)
    trajectories.check_actions(found, str(path))
    marked = found.n_episodes
    found = found.cut_before(_resets(found))
    if found.n_episodes > marked:
        warn(
            f"{said} holds more episodes than the {marked} that it marks: its positions jump in "
            f"between, and it is cut there, into {found.n_episodes}."
        )
    return found


def from_d4rl(maze: Maze, data: Trajectories, shift: float = D4RL_SHIFTS[-1]) -> Trajectories:
    """D4RL's maze2d data in the simulator's coordinates.

    Args:
        maze: theirs.
        data: observations (row, column, their velocities) [M, 4], actions along rows and columns.
        shift: what to add to positions to get cell units; 0.2 is right for D4RL's own files, whose
            ball lies 0.2 off the centre of the cell that its observation names.
    """

    def turned(vectors: np.ndarray) -> np.ndarray:
        return vectors[:, ::-1] * np.array([1, -1], np.float32)

    def placed(cells: np.ndarray) -> np.ndarray:
        return maze.to_xy(cells.astype(float) + shift).astype(np.float32)

    positions, velocities = np.split(data.observations, 2, axis=1)
    return replace(
        data,
        observations=np.concatenate([placed(positions), turned(velocities)], axis=1),
        actions=turned(data.actions),
        goals=None if data.goals is None else placed(data.goals),
    )


def _d4rl_shift(maze: Maze, positions: np.ndarray) -> float | None:
    """What to add to positions [n, 2] to get (row, column), if they are cells; else None.

    A ball does not come nearer to a wall than its radius, but for the softness of contacts.
    """
    some = positions[:: -(-len(positions) // 50_000)]  # distances to all walls take room
    shares = {
        shift: float((maze.clearance(some + shift) >= RADIUS - 0.05).mean())
        for shift in D4RL_SHIFTS
        if _in_free_cells(maze, positions + shift).all()
    }
    return max(shares, key=lambda shift: shares[shift]) if shares else None


def _in_free_cells(maze: Maze, cells: np.ndarray) -> np.ndarray:
    """Whether the nearest cell to points [n, 2] (cell units) is inside and no wall, bool [n]."""
    nearest, last = np.rint(cells).astype(int), np.array(maze.walls.shape) - 1
    inside = ((nearest >= 0) & (nearest <= last)).all(1)
    return inside & ~maze.walls[tuple(nearest.clip(0, last).T)]


def _resets(data: Trajectories) -> np.ndarray:
    """Before which rows the ball was set down elsewhere though no episode ends there, bool [M].

    A step of PointMaze moves it by 0.05 at most along each axis; recordings of longer steps by
    more, but most of them by about the same. Some resets set it down nearby, and are not seen; but
    if all that are seen lie at multiples of one length, every episode has that length.
    """
    positions = data.observations[:, :2].astype(float)
    moves = np.abs(np.diff(positions, axis=0, prepend=positions[:1])).max(axis=1)
    jumps = moves > max(2 * 0.05, 4 * np.quantile(moves, 0.95))
    rows = np.flatnonzero(jumps)
    if np.isin(rows, data.bounds[:, 0]).all():
        return np.zeros_like(jumps)
    length = np.gcd.reduce(rows)
    if len(rows) >= 3 and length >= 10:  # which three rows have in common by chance in 1 % of cases
        jumps[length::length] = True
    return jumps
