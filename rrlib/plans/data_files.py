"""Data sets as files: D4RL's HDF5 layout and Minari's, in and out, as named arrays."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage

from rrlib import disk
from rrlib.errors import InputError, shown
from rrlib.plans import hdf5
from rrlib.plans.hdf5 import fault

MAIN = Path("data", "main_data.hdf5")  # of a Minari dataset's folder
MOST = 1e6  # no reward, position, speed or action is larger than this, only a mistake is


def read(
    path: str | Path, observation_width: int, action_width: int, needs: tuple[str, ...] = ()
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of a file by our names for them, and sentences on what had to be left out.

    Args:
        path: see `trajectories.read`.
        observation_width, action_width: do and da.
        needs: of "rewards" and "goals", those without which the file is of no use.

    Returns:
        `observations` [M, do], `actions` [M, da], `terminals` [M] bool always; `timeouts` [M] bool
        unless a D4RL file lacks them; `rewards` [M] unless they are missing or not all are usable
        numbers; `goals` [M, 2] if there are such. Float32 but for the marks.

    Raises:
        InputError: the file is missing, is not HDF5, lacks a key, is empty, has arrays of different
            lengths or a wrong width, or values that cannot be right.
    """
    found = find(path)
    with hdf5.reading(found) as file:
        groups = [hdf5.entry(found, file, name) for name in _episodes(file)] or [file]
        widths = observation_width, action_width
        parts = [_look(found, group, widths, needs) for group in groups]
        shared = [name for name in parts[0] if all(name in part for part in parts)]
        hdf5.check_size(found, [part[name] for part in parts for name in shared])
        lengths = [len(part["actions"]) for part in parts]
        arrays, remarks = {}, []
        for name in shared:
            try:
                columns = [_values(found, name, part[name]) for part in parts]
            except InputError as error:
                if name in needs or name not in ("rewards", "goals"):
                    raise
                remarks += [_without_rewards(error)] if name == "rewards" else []
                continue
            arrays[name] = np.concatenate([c[:n] for c, n in zip(columns, lengths, strict=True)])
        if "rewards" not in shared:
            lacking = [g for g, part in zip(groups, parts, strict=True) if "rewards" not in part]
            remarks.append(_without_rewards(_lacks(found, lacking[0], "rewards")))
    if groups != [file]:  # Minari: one group is one episode
        last = np.cumsum(lengths) - 1
        arrays["timeouts"][last] |= ~arrays["terminals"][last]
    return arrays, remarks


def find(path: str | Path) -> Path:
    """The HDF5 file that a path or the id of a Minari dataset stands for; InputError if none."""
    file = "a D4RL-layout HDF5 file or the folder of a Minari dataset"
    try:
        place = Path(path).expanduser()
        folders = [place, minari_folder() / place]
        candidates = [place, *(folder / MAIN for folder in folders), place / MAIN.name]
        found = next((candidate for candidate in candidates if candidate.is_file()), None)
        if found is not None:
            return found
        for card in (f / part for f in folders for part in ("data/metadata.json", "metadata.json")):
            if card.is_file() and '"arrow"' in card.read_text(encoding="utf-8", errors="replace"):
                allowed = "its HDF5 form, which Minari makes of data_format='hdf5'"
                raise fault(path, "is a Minari dataset in Arrow form", allowed)
        if place.is_dir():
            raise fault(path, f"is a folder without {MAIN}", file)
        if place.exists():
            raise fault(path, "is neither a file nor a folder", file)
    except (OSError, RuntimeError) as error:
        raise fault(path, f"cannot be looked at ({disk.reason(error)})", file) from None
    raise fault(path, "is missing", f"{file}, or the id of one kept in '{minari_folder()}'")


def minari_folder() -> Path:
    """Where Minari keeps its datasets; its own function would make the folder as well."""
    default = Path.home() / ".minari" / "datasets"
    return Path(os.environ.get("MINARI_DATASETS_PATH", default))


def _episodes(file: h5py.File) -> list[str]:
    """The groups of a Minari file in order; none in a D4RL file, whatever else it may hold."""
    names = [] if "actions" in file else [n for n in file if re.fullmatch("episode_[0-9]+", n)]
    return sorted(names, key=lambda name: int(name.removeprefix("episode_")))


def _look(
    path: Path, group: object, widths: tuple[int, int], needs: tuple[str, ...]
) -> dict[str, h5py.Dataset]:
    """The arrays of a D4RL file (the root group) or of one Minari episode, checked but not read."""
    if not isinstance(group, h5py.Group):
        raise fault(path, "has an episode that is no group", "a D4RL-layout or Minari file")
    minari = group.name != "/"
    in_dictionary = isinstance(hdf5.entry(path, group, "observations"), h5py.Group)
    places = {  # our name: the key in the file, the shape of an entry
        "observations": (
            "observations/observation" if in_dictionary else "observations",
            (widths[0],),
        ),
        "actions": ("actions", (widths[1],)),
        "rewards": ("rewards", ()),
        "terminals": ("terminations" if minari else "terminals", ()),
        "timeouts": ("truncations" if minari else "timeouts", ()),
    }
    optional = {"rewards"} - set(needs) | (set() if minari else {"timeouts"})
    found = {}
    for name, (key, shape) in places.items():
        array = _shaped(path, group, key, shape)
        if array is not None:
            found[name] = array
        elif name not in optional:
            raise _lacks(path, group, key)
    for key in ("infos/goal", "observations/desired_goal"):
        try:  # what others keep under this name need not be a point
            goals = _shaped(path, group, key, (2,))
            if goals is not None:
                _check_length(path, group, "goals", len(goals), len(found["actions"]))
                found["goals"] = goals
        except InputError:
            if "goals" in needs:
                raise
    if "goals" in needs and "goals" not in found:
        raise _lacks(path, group, "infos/goal")
    for name, array in found.items():
        _check_length(path, group, name, len(array), len(found["actions"]))
    if not len(found["actions"]):
        raise fault(path, f"is empty in group '{group.name}'", "one transition or more")
    return found


def _check_length(path: Path, group: h5py.Group, name: str, length: int, actions: int) -> None:
    # Minari keeps the observation after the last action as well.
    last = group.name != "/" and name in ("observations", "goals")
    if length - actions not in (0, last):
        what = f"has arrays of different lengths, {length} {name} beside {actions} actions"
        raise fault(path, f"{what} in group '{group.name}'", "one length for all")


def _shaped(path: Path, group: h5py.Group, key: str, shape: tuple[int, ...]) -> h5py.Dataset | None:
    """The array [M, *shape] under a key, or None; single numbers may stand in columns [M, 1]."""
    found = hdf5.dataset(path, group, key)
    if found is None:
        return None
    column = shape == () and found.ndim == 2 and found.shape[1:] == (1,)
    if not found.ndim or (found.shape[1:] != shape and not column):
        allowed = " x ".join(map(str, ("M", *shape)))
        raise fault(path, f"has '{found.name}' of shape {found.shape}", allowed)
    return found


def _values(path: Path, name: str, found: h5py.Dataset) -> np.ndarray:
    """The values as float32 [M, ...], or bool [M] for marks."""
    values = found[()]
    if name in ("rewards", "terminals", "timeouts"):
        values = values.reshape(len(values))
    if name in ("terminals", "timeouts"):
        right, allowed = (values == 0) | (values == 1), "0 or 1"
    else:
        with np.errstate(invalid="ignore"):
            right = np.abs(values, dtype=float) <= MOST
        allowed = f"a number, {MOST:,.0f} at most in size"
    if not right.all():
        place = tuple(np.argwhere(~right)[0].tolist())
        raise fault(path, f"has {values[place]} in '{found.name}' at {place}", allowed)
    return values.astype(bool if allowed == "0 or 1" else np.float32)


def _lacks(path: Path, group: h5py.Group, key: str) -> InputError:
    return fault(path, f"lacks the key '{group.name.rstrip('/')}/{key}'", "a file that has it")


def _without_rewards(error: InputError) -> str:
    said = str(error).rpartition(": allowed is")[0]
    return f"{said}: it is read without rewards, which the method never uses."


def write_minari(
    dataset_id: str, episodes: Iterable[dict[str, np.ndarray]], description: str
) -> Path:
    """Write a dataset that ``minari.load_dataset(dataset_id)`` reads; returns its folder.

    Args:
        dataset_id: like ``maze/umaze-v0``; the folder lies under MINARI_DATASETS_PATH.
        episodes: arrays by Minari's names: observations and infos have one entry more than actions.
        description: of the dataset.

    Raises:
        InputError: the id is malformed or taken, or the folder cannot be written.
    """
    try:
        parse_dataset_id(dataset_id)
    except (TypeError, ValueError):  # TypeError is what Minari raises for an id without a version
        raise InputError(
            f"Minari dataset id {shown(dataset_id)} is malformed: allowed is "
            "(namespace/)name-v(number)."
        ) from None
    folder = minari_folder() / dataset_id
    if os.path.lexists(folder):
        raise InputError(
            f"Minari dataset id {shown(dataset_id)} is taken: allowed is one that "
            f"does not exist in '{folder.parent}'."
        )
    episodes = list(episodes)
    widths = [episodes[0][name].shape[1:] for name in ("observations", "actions")]

    def fill(file: h5py.File) -> None:
        for k, episode in enumerate(episodes):
            group = file.create_group(f"episode_{k}")
            group.attrs["id"], group.attrs["total_steps"] = k, len(episode["actions"])
            for key, array in episode.items():  # Minari makes them so that they can grow
                most = (None, *array.shape[1:])
                group.create_dataset(key, data=array, chunks=True, maxshape=most)

    with disk.atomic(folder) as temporary:
        temporary.mkdir()
        spaces = (gym.spaces.Box(-np.inf, np.inf, width, np.float32) for width in widths)
        storage = MinariStorage.new(temporary / "data", *spaces)
        (temporary / MAIN).write_bytes(hdf5.image(fill))
        storage.update_metadata(
            {
                "dataset_id": dataset_id,
                "minari_version": minari.__version__,
                "author": {"rrlib"},
                "description": description,
                "total_episodes": len(episodes),
                "total_steps": sum(len(episode["actions"]) for episode in episodes),
                "dataset_size": storage.get_size(),
            }
        )
    return folder
