"""Trajectories: D4RL-layout HDF5 and Minari in and out, splits, one shared normaliser, windows.

A plan, what a diffuser sees, is ``[..., H, da + do]``: actions first, then observations.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import gymnasium as gym
import h5py
import minari
import numpy as np
import torch
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage

from rrlib.errors import InputError

Plans = TypeVar("Plans", np.ndarray, torch.Tensor)


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Episodes laid end to end, as in D4RL; M counts the transitions of all of them.

    An episode ends where ``terminals | timeouts``; an unfinished last episode counts as one.
    Observation k is the one before action k.
    """

    observations: np.ndarray  # [M, do] float32
    actions: np.ndarray  # [M, da] float32
    rewards: np.ndarray  # [M] float32
    terminals: np.ndarray  # [M] bool
    timeouts: np.ndarray  # [M] bool
    goals: np.ndarray | None = None  # [M, 2] float32, D4RL's infos/goal

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, goals only where there are any."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in named.items() if array is not None}

    @cached_property
    def bounds(self) -> np.ndarray:
        """Start and stop of each episode, int [N, 2]."""
        ends = self.terminals | self.timeouts
        stops = np.flatnonzero(np.append(ends[:-1], True)) + 1
        return np.stack([np.append(0, stops[:-1]), stops], axis=1)

    @property
    def n_episodes(self) -> int:
        """Number of episodes N."""
        return len(self.bounds)

    def take(self, episodes: np.ndarray) -> "Trajectories":
        """The episodes of these indices (int [n]), in that order."""
        bounds = self.bounds[np.asarray(episodes, dtype=int)]
        rows = np.concatenate([np.arange(start, stop) for start, stop in bounds])
        taken = {name: array[rows] for name, array in self.arrays().items()}
        # An unfinished last episode needs an end mark, or it would run into its new neighbour.
        last = np.cumsum(bounds[:, 1] - bounds[:, 0]) - 1
        taken["timeouts"][last] |= ~taken["terminals"][last]
        return Trajectories(**taken)


def digest(trajectories: Trajectories) -> str:
    """The sha256 of all that the trajectories hold."""
    found = hashlib.sha256()
    for array in trajectories.arrays().values():
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()


# Files


def read(path: str | Path, observation_width: int, action_width: int) -> Trajectories:
    """Read a D4RL-layout HDF5 file or a Minari dataset.

    ``path`` is a file, a Minari dataset folder (it holds ``data/main_data.hdf5``), or the id of a
    Minari dataset under MINARI_DATASETS_PATH (by default ``~/.minari/datasets``): nothing is ever
    downloaded. A Minari episode's last observation, which has no action, is dropped; of PointMaze's
    dictionary of observations "observation" is taken, and its "desired_goal" gives the goals.

    Raises InputError if the file is missing, is not HDF5, lacks a key, is empty, has arrays of
    different lengths or a wrong width, or values that are not finite in float32.
    """
    path = Path(path).expanduser()
    main = Path("data", "main_data.hdf5")
    candidates = (path, path / main, _minari_folder() / path / main)
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        allowed = "an HDF5 file, a Minari dataset folder or the id of a Minari dataset kept here"
        raise _fault(path, "is missing", allowed)
    try:
        with h5py.File(found) as file:
            episodes = [name for name in file if name.removeprefix("episode_").isdecimal()]
            episodes.sort(key=lambda name: int(name.removeprefix("episode_")))
            groups = [file[name] for name in episodes] or [file]
            parts = [_read_group(group, found, observation_width, action_width) for group in groups]
    except OSError:
        raise _fault(found, "is not HDF5, or is damaged", "a D4RL-layout or Minari file") from None
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    return Trajectories(**{name: np.concatenate([part[name] for part in parts]) for name in shared})


def _minari_folder() -> Path:
    """Where Minari keeps its datasets; its own function would make the folder as well."""
    default = Path.home() / ".minari" / "datasets"
    return Path(os.environ.get("MINARI_DATASETS_PATH", default))


def _fault(file: Path, fault: str, allowed: str) -> InputError:
    return InputError(f"Dataset '{file}' {fault}: allowed is {allowed}.")


def _read_group(
    group: h5py.Group, file: Path, observation_width: int, action_width: int
) -> dict[str, np.ndarray]:
    """The arrays of a whole D4RL file (the root group) or of one Minari episode, checked."""
    minari = group.name != "/"
    in_dictionary = isinstance(group.get("observations"), h5py.Group)
    places = {  # our name: the key in the file, the shape of an entry
        "observations": (
            "observations/observation" if in_dictionary else "observations",
            (observation_width,),
        ),
        "actions": ("actions", (action_width,)),
        "rewards": ("rewards", ()),
        "terminals": ("terminations" if minari else "terminals", ()),
        "timeouts": ("truncations" if minari else "timeouts", ()),
    }
    for key in ("infos/goal", "observations/desired_goal"):
        if key in group:
            places["goals"] = key, (2,)

    arrays = {name: _read_array(group, file, *place) for name, place in places.items()}
    length = len(arrays["actions"])
    for name, array in arrays.items():
        # Minari keeps the observation after the last action as well.
        extra = (0, 1) if minari and name in ("observations", "goals") else (0,)
        if len(array) - length not in extra:
            fault = f"has arrays of different lengths, {len(array)} {name} beside {length} actions"
            raise _fault(file, f"{fault} in group '{group.name}'", "one length for all")
        arrays[name] = array[:length]
    if length == 0:
        raise _fault(file, f"is empty in group '{group.name}'", "one transition or more")
    for name in ("terminals", "timeouts"):
        arrays[name] = arrays[name].astype(bool)
    arrays["timeouts"][-1] |= minari and not arrays["terminals"][-1]  # one group is one episode
    return arrays


def _read_array(group: h5py.Group, file: Path, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """A finite float32 array [M, *shape]."""
    name = f"'{group.name.rstrip('/')}/{key}'"
    found = group.get(key)
    if not isinstance(found, h5py.Dataset):
        raise _fault(file, f"lacks the key {name}", "a file that has it")
    if found.shape[1:] != shape or found.ndim == 0:
        allowed = " x ".join(map(str, ("M", *shape)))
        raise _fault(file, f"has {name} of shape {found.shape}", allowed)
    if found.dtype.kind not in "fiub":
        raise _fault(file, f"has {name} of type {found.dtype}", "numbers")
    values = found[()]
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is told below
        floats = values.astype(np.float32)
    if not np.isfinite(floats).all():
        place = tuple(np.argwhere(~np.isfinite(floats))[0].tolist())
        raise _fault(file, f"has {values[place]} in {name} at {place}", "a finite float32")
    return floats


def write_hdf5(path: str | Path, trajectories: Trajectories) -> None:
    """Write a D4RL-layout HDF5 file, replacing an older one; InputError if it cannot be written."""

    def fill(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            for name, array in trajectories.arrays().items():
                file["infos/goal" if name == "goals" else name] = array

    _write(Path(path), fill)


def write_minari(dataset_id: str, trajectories: Trajectories, description: str) -> Path:
    """Write a dataset that ``minari.load_dataset(dataset_id)`` reads; returns its folder.

    An id is like ``maze/umaze-v0``; the folder lies under MINARI_DATASETS_PATH. Minari wants the
    observation after the last action as well; ours end before it, so the last one is repeated.
    Raises InputError if the id is malformed or taken, or if the folder cannot be written.
    """
    try:
        parse_dataset_id(dataset_id)
    except (TypeError, ValueError):  # TypeError is what Minari raises for an id without a version
        raise InputError(
            f"Minari dataset id '{dataset_id}' is malformed: allowed is (namespace/)name-v(number)."
        ) from None
    folder = _minari_folder() / dataset_id
    if folder.exists():
        raise InputError(
            f"Minari dataset id '{dataset_id}' is taken: allowed is one that "
            f"does not exist in '{folder.parent}'."
        )

    def episode(start: int, stop: int) -> EpisodeBuffer:
        rows = np.append(np.arange(start, stop), stop - 1)
        goals = trajectories.goals
        return EpisodeBuffer(
            observations=trajectories.observations[rows],
            actions=trajectories.actions[start:stop],
            rewards=trajectories.rewards[start:stop],
            terminations=trajectories.terminals[start:stop],
            truncations=trajectories.timeouts[start:stop],
            infos=None if goals is None else {"goal": goals[rows]},
        )

    def fill(temporary: Path) -> None:
        temporary.mkdir()
        widths = trajectories.observations.shape[1:], trajectories.actions.shape[1:]
        spaces = (gym.spaces.Box(-np.inf, np.inf, width, np.float32) for width in widths)
        storage = MinariStorage.new(temporary / "data", *spaces)
        storage.update_metadata(
            {
                "dataset_id": dataset_id,
                "minari_version": minari.__version__,
                "author": {"rrlib"},
                "description": description,
            }
        )
        storage.update_episodes(episode(*bounds) for bounds in trajectories.bounds.tolist())

    _write(folder, fill)
    return folder


def _write(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary file or folder beside ``path``, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"'{path}' cannot be written ({error.strerror or error}): allowed is a "
            "path in a folder open for writing."
        ) from None
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        elif temporary.exists():
            temporary.unlink()


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
    if horizon < 1:
        raise InputError(f"horizon = {horizon} is out of range: allowed is 1 or more.")
    starts, stops = trajectories.bounds.T
    counts = np.maximum(stops - starts - horizon + 1, 1)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts, counts) + within


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


# Normaliser


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Min-max to [-1, 1] per coordinate of a plan (actions, then observations).

    A coordinate that never varies goes to 0, shifted but not scaled, so it comes back unharmed.
    """

    low: np.ndarray  # [da + do] float32
    high: np.ndarray  # [da + do] float32

    @classmethod
    def fit(cls, *sets: Trajectories) -> "Normaliser":
        """One normaliser for all the sets given: base and expert must share it."""
        lows = [np.concatenate([s.actions.min(0), s.observations.min(0)]) for s in sets]
        highs = [np.concatenate([s.actions.max(0), s.observations.max(0)]) for s in sets]
        return cls(np.min(lows, axis=0), np.max(highs, axis=0))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Named arrays, as safetensors keeps them; ``Normaliser(**arrays)`` is the way back."""
        return {"low": self.low, "high": self.high}

    def normalise(self, plans: Plans) -> Plans:
        """Plans [..., da + do] (an array or a tensor) from their own units to [-1, 1]."""
        centre, half = self._centre_and_half(plans)
        return (plans - centre) / half

    def denormalise(self, plans: Plans) -> Plans:
        """Plans [..., da + do] (an array or a tensor) from [-1, 1] to their own units."""
        centre, half = self._centre_and_half(plans)
        return plans * half + centre

    def _centre_and_half(self, plans: np.ndarray | torch.Tensor):
        centre, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        half = np.where(half > 0, half, np.float32(1))
        if isinstance(plans, torch.Tensor):
            return torch.from_numpy(centre).to(plans), torch.from_numpy(half).to(plans)
        return centre, half


def standardiser(*sets: Trajectories) -> Normaliser:
    """One normaliser for all the sets: every coordinate gets mean 0 and deviation 1/2.

    Each set counts the same, however long. Where a few extreme values would stretch a min-max range
    (a robot that falls), this keeps the common ones apart; nothing is bounded then.
    """
    rows = [np.concatenate([s.actions, s.observations], 1).astype(float) for s in sets]
    centre = np.mean([r.mean(0) for r in rows], axis=0)
    variance = np.mean([((r - centre) ** 2).mean(0) for r in rows], axis=0)
    low, high = (centre + side * 2 * np.sqrt(variance) for side in (-1, 1))
    return Normaliser(low.astype(np.float32), high.astype(np.float32))
