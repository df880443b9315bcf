"""Trajectories: data files in and out, splits, windows.

A plan, what a diffuser sees, is ``[..., H, da + do]``: actions first, then observations.
"""

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rrlib.errors import InputError, shown, warn
from rrlib.plans import data_files, hdf5, minari_files
from rrlib.plans.hdf5_layouts import Wanted


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Episodes laid end to end, as in D4RL; M counts the transitions of all of them.

    An episode ends where ``terminals | timeouts``; an unfinished last episode counts as one.
    Observation k is the one before action k.
    """

    observations: np.ndarray  # [M, do] float32
    actions: np.ndarray  # [M, da] float32
    rewards: np.ndarray | None  # [M] float32, if they are known
    terminals: np.ndarray  # [M] bool
    timeouts: np.ndarray  # [M] bool
    goals: np.ndarray | None = None  # [M, 2] float32, D4RL's infos/goal

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, those only that there are."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in named.items() if array is not None}

    @cached_property
    def bounds(self) -> np.ndarray:
        """Start and stop of each episode, int [N, 2]."""
        ends = self.terminals | self.timeouts
        if not len(ends):
            return np.zeros((0, 2), dtype=int)
        stops = np.flatnonzero(np.append(ends[:-1], True)) + 1
        return np.stack([np.append(0, stops[:-1]), stops], axis=1)

    @property
    def n_episodes(self) -> int:
        """Number of episodes N."""
        return len(self.bounds)

    def take(self, episodes: np.ndarray) -> "Trajectories":
        """The episodes of these indices (int [n], in that order) or of this mask (bool [N])."""
        chosen = np.asarray(episodes)
        bounds = self.bounds[chosen if chosen.size else chosen.astype(int)]
        lengths = bounds[:, 1] - bounds[:, 0]
        rows = np.repeat(bounds[:, 1] - np.cumsum(lengths), lengths) + np.arange(lengths.sum())
        taken = {name: array[rows] for name, array in self.arrays().items()}
        # An unfinished last episode needs an end mark, or it would run into its new neighbour.
        last = np.cumsum(lengths) - 1
        taken["timeouts"][last] |= ~taken["terminals"][last]
        return Trajectories(**{"rewards": None} | taken)

    def cut_before(self, rows: np.ndarray) -> "Trajectories":
        """The same transitions with an episode that begins at each of these rows (bool [M])."""
        return replace(
            self, timeouts=self.timeouts | (np.append(rows[1:], False) & ~self.terminals)
        )


def digest(trajectories: Trajectories) -> str:
    """The sha256 of all that the trajectories hold."""
    found = hashlib.sha256()
    for array in trajectories.arrays().values():
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


# Files


def read(
    path: str | Path,
    observation_width: int | None = None,
    action_width: int | None = None,
    needs: tuple[str, ...] = (),
    observation_keys: tuple[str, ...] = (),
    filter_key: str = "",
) -> Trajectories:
    """Read somebody's data set: D4RL's HDF5, Minari's, robomimic's, or OGBench's npz.

    Nothing is ever downloaded, and no pickle is ever loaded. What is read of each:

    - *D4RL*: `observations`, `actions`, `terminals`, `timeouts`, and `rewards` and `infos/goal` if
      they are there; marks may be numbers 0 and 1. Where no timeout is marked, episodes end where
      `next_observations` is not the next observation and where `infos/goal` changes.
    - *Minari*, as its DataCollector writes it: a data set's folder (it holds
      ``data/main_data.hdf5``), that ``data`` folder, or the id of a data set under
      MINARI_DATASETS_PATH (by default ``~/.minari/datasets``). An episode's last observation, which
      has no action, is dropped; "desired_goal" gives the goals; ids of a discrete space become rows
      of zeros and a one.
    - *robomimic*: `data/demo_N` with `obs/*` and `actions`; `dones` count at an episode's end.
    - *OGBench*: an npz file of `observations`, `actions` and `terminals`.

    Args:
        path: of the file or folder, or a Minari id.
        observation_width, action_width: do and da; None takes what the file has.
        needs: of "rewards" and "goals", those without which the file is of no use.
        observation_keys: of a dictionary of observations, those to lay side by side, in this order,
            such as robomimic's ("robot0_eef_pos", "object"); none takes "observation" if it is
            there, or else every vector by its name, with a sentence.
        filter_key: one of the lists of episodes in robomimic's `mask`, such as "train".

    What the method never uses may be missing: rewards that are not there, or are not all numbers of
    a million at most, are None, unless `needs` names them, and goals that are no points are None.
    A DataWarning tells of rewards and timeouts.

    Raises InputError if the file is missing, is of no such layout, lacks a key, is empty, keeps
    arrays in other files, is larger than memory or than can be true, has arrays of different
    lengths or a wrong width, values that are not finite or above a million, or a mark that is not
    0 or 1.
    """
    wanted = Wanted((observation_width, action_width), needs, observation_keys, filter_key)
    arrays, remarks = data_files.read(path, wanted)
    unmarked = "timeouts" not in arrays
    found = _of({"timeouts": np.zeros_like(arrays["terminals"])} | arrays)
    if unmarked:
        remarks.append(
            f"Dataset {shown(str(path), 200)} lacks the key '/timeouts': only '/terminals' "
            f"ends an episode, which makes {found.n_episodes}."
        )
    for remark in remarks:
        warn(remark)
    return found


def load(path: Path, observation_width: int, action_width: int) -> Trajectories:
    """What `write_hdf5` has written, without a word on what it was given without."""
    arrays, _ = data_files.read(path, Wanted((observation_width, action_width)))
    return _of(arrays)


def _of(arrays: dict[str, Any]) -> Trajectories:
    """Trajectories of arrays by name; what the method never uses may be missing."""
    return Trajectories(**({"rewards": None} | arrays))  # type: ignore[arg-type]


def write_hdf5(path: str | Path, trajectories: Trajectories) -> None:
    """Write a D4RL-layout HDF5 file, replacing an older one; InputError if it cannot be written.

    Compressed without loss, as D4RL's own files are: goals and marks are nearly all alike.
    """

    def fill(file: h5py.File) -> None:
        for name, array in trajectories.arrays().items():
            place = "infos/goal" if name == "goals" else name
            packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
            file.create_dataset(place, data=array, **(packed if np.size(array) else {}))

    hdf5.write(Path(path), fill)


def write_minari(dataset_id: str, trajectories: Trajectories, description: str) -> Path:
    """Write a dataset that ``minari.load_dataset(dataset_id)`` reads; returns its folder.

    An id is like ``maze/umaze-v0``; the folder lies under MINARI_DATASETS_PATH. Minari wants the
    observation after the last action as well; ours end before it, so the last one is repeated. It
    wants rewards, too: those that are not known are NaN.
    Raises InputError if the id is malformed or taken, or if the folder cannot be written.
    """
    goals, rewards = trajectories.goals, trajectories.rewards
    if rewards is None:
        rewards = np.full(len(trajectories.actions), np.nan, dtype=np.float32)

    def episode(start: int, stop: int) -> dict[str, np.ndarray]:
        rows = np.append(np.arange(start, stop), stop - 1)
        found = {
            "observations": trajectories.observations[rows],
            "actions": trajectories.actions[start:stop],
            "rewards": rewards[start:stop],
            "terminations": trajectories.terminals[start:stop],
            "truncations": trajectories.timeouts[start:stop],
        }
        return found if goals is None else found | {"infos/goal": goals[rows]}

    episodes = (episode(*bounds) for bounds in trajectories.bounds.tolist())
    return minari_files.write(dataset_id, episodes, description)


def check_actions(trajectories: Trajectories, path: str) -> None:
    """Look at the actions of a world that clips them to [-1, 1].

    Up to ten times as large, they are what a policy asked for and never got: a DataWarning.
    Beyond that they are no actions of this world: InputError.
    """
    largest = np.abs(trajectories.actions).max()
    said = f"Dataset {shown(str(path), 200)} has actions of up to {largest:.3g}"
    if largest > 10:
        raise InputError(f"{said}: allowed is -1 to 1.")
    if largest > 1.001:
        warn(
            f"{said}, of which the environment carries out -1 to 1: they are learnt as they stand."
        )


def check_episodes(trajectories: Trajectories, path: str) -> None:
    """Raise InputError on a single episode: one is to be held out, and one to be learnt from."""
    if trajectories.n_episodes < 2:
        raise InputError(
            f"Dataset {shown(str(path), 200)} is one episode of {len(trajectories.actions)} steps: "
            "allowed are 2 episodes or more, their ends marked in '/timeouts'."
        )


# Splits and windows


def split(
    trajectories: Trajectories, fraction: float, seed: int
) -> tuple[Trajectories, Trajectories]:
    """Two disjoint sets of whole episodes: (train, held out), ``fraction`` of them held out.

    Each side gets one episode or more. Raises InputError on fewer than two episodes or a fraction
    outside (0, 1).
    """
    n = trajectories.n_episodes
    if n < 2:
        raise InputError(f"Trajectories of {n} episode cannot be split: allowed are 2 or more.")
    if not 0 < fraction < 1:
        raise InputError(f"fraction = {fraction} is out of range: allowed is 0 < fraction < 1.")
    n_held_out = min(max(round(fraction * n), 1), n - 1)
    order = np.random.default_rng(seed).permutation(n)
    held_out, train = np.sort(order[:n_held_out]), np.sort(order[n_held_out:])
    return trajectories.take(train), trajectories.take(held_out)


def windows(trajectories: Trajectories, horizon: int) -> np.ndarray:
    """Start indices int [n] of all windows of ``horizon`` steps that lie inside one episode.

    An episode shorter than the horizon has one window, from its start, which ``cut`` pads.
    """
    counts = window_counts(trajectories, horizon)
    starts = trajectories.bounds[:, 0]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts, counts) + within


def window_counts(trajectories: Trajectories, horizon: int) -> np.ndarray:
    """How many windows each episode has, int [N]; InputError for a horizon below 1."""
    if horizon < 1:
        raise InputError(f"horizon = {horizon} is out of range: allowed is 1 or more.")
    starts, stops = trajectories.bounds.T
    return np.maximum(stops - starts - horizon + 1, 1)


def cut(trajectories: Trajectories, starts: np.ndarray, horizon: int) -> np.ndarray:
    """Windows float32 [n, horizon, da + do] that begin at ``starts`` (int [n]), actions first.

    Past its episode's end a window is padded by the episode's last observation with action zero:
    the ball stays where it is and nothing is asked of it.
    """
    stops = trajectories.bounds[:, 1]
    stops = stops[np.searchsorted(stops, starts, side="right")]
    steps = np.asarray(starts)[:, None] + np.arange(horizon)  # [n, H]
    rows = np.minimum(steps, stops[:, None] - 1)
    actions = np.where((steps > rows)[..., None], np.float32(0), trajectories.actions[rows])
    return np.concatenate([actions, trajectories.observations[rows]], axis=-1)
