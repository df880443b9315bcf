"""The layouts of HDF5 data sets that people have: D4RL's, Minari's and robomimic's."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from rrlib.errors import InputError, shown
from rrlib.plans import columns, hdf5, minari_files
from rrlib.plans.hdf5 import fault

VECTORS = "observations", "actions"


@dataclass(frozen=True)
class Layout:
    """Where a layout keeps what, below the group of an episode (or of all of them, D4RL's).

    Attributes:
        name: of the layout.
        keys: our name -> the key in the file.
        goals: keys under which goals may be.
        following: whether there may be an observation after the last action.
    """

    name: str
    keys: dict[str, str]
    goals: tuple[str, ...] = ()
    following: bool = False


D4RL = Layout(
    "D4RL",
    {name: name for name in ("observations", "actions", "rewards", *columns.MARKS)},
    ("infos/goal",),
)
MINARI = Layout(
    "Minari",
    D4RL.keys | {"terminals": "terminations", "timeouts": "truncations"},
    ("infos/goal", "observations/desired_goal"),
    following=True,
)
ROBOMIMIC = Layout(
    "robomimic",
    {"observations": "obs", "actions": "actions", "rewards": "rewards", "terminals": "dones"},
)


@dataclass(frozen=True)
class Wanted:
    """What a file must have.

    Attributes:
        widths: numbers of an observation and of an action; None takes what there is.
        needs: of "rewards" and "goals", those without which the file is of no use.
        observation_keys: of a dictionary of observations, those that are laid side by side.
        filter_key: a list of episodes in robomimic's `mask`; empty takes all episodes.
    """

    widths: tuple[int | None, int | None]
    needs: tuple[str, ...] = ()
    observation_keys: tuple[str, ...] = ()
    filter_key: str = ""


def episodes(path: Path, file: h5py.File, filter_key: str = "") -> tuple[Layout, list[str]]:
    """The layout of a file, and the groups of its episodes in order ("/" for a D4RL file).

    Raises:
        InputError: a list of episodes that is not there, or names one that is not there.
    """
    keys = set(file)  # a link is never followed to see what it leads to
    names = [n for n in keys if re.fullmatch("episode_[0-9]+", n) and "actions" not in keys]
    if names:
        return MINARI, sorted(names, key=lambda name: int(name.removeprefix("episode_")))
    data = None if "actions" in keys else hdf5.entry(path, file, "data")
    names = list(data) if isinstance(data, h5py.Group) else []
    demos = [name for name in names if re.fullmatch("demo_[0-9]+", name)]
    if not demos:
        if filter_key:
            raise InputError(
                f"filter_key={shown(filter_key)} is not allowed: robomimic's files alone have "
                "lists of episodes."
            )
        return D4RL, ["/"]
    demos = sorted(demos, key=lambda name: int(name.removeprefix("demo_")))
    if filter_key:
        listed = hdf5.names(path, file, f"mask/{filter_key}")
        strangers = sorted(set(listed) - set(demos))
        if strangers:
            what = f"lists {shown(strangers[0])} in '/mask/{filter_key}'"
            raise fault(path, what, "a name of its '/data'")
        demos = [name for name in demos if name in listed]
    return ROBOMIMIC, [f"data/{name}" for name in demos]


def look(
    path: Path, group: object, layout: Layout, wanted: Wanted
) -> tuple[dict[str, list[h5py.Dataset]], list[str]]:
    """The arrays of an episode (of the whole of a D4RL file) by our names, checked but not read.

    Observations may be several arrays, to be laid side by side. Also sentences on choices made.

    Raises:
        InputError: a key is missing, or an array has another length or width.
    """
    if not isinstance(group, h5py.Group):
        raise fault(
            path, "has an episode that is no group", "a D4RL-layout, Minari or robomimic file"
        )
    optional = {"rewards"} - set(wanted.needs)
    if layout is not MINARI:
        optional |= {"timeouts"}
    if layout is ROBOMIMIC:
        optional |= {"terminals"}
    found: dict[str, list[h5py.Dataset]] = {}
    said: list[str] = []
    for name, key in layout.keys.items():
        if name in VECTORS:
            wide = wanted.widths[VECTORS.index(name)]
            keys = wanted.observation_keys if name == "observations" else ()
            dictionary = name == "observations" or layout is MINARI
            there, choice = _vectors(path, group, key, wide, keys, dictionary)
            said += choice
        else:
            there = _numbers(path, group, key)
        if there:
            found[name] = there
        elif name not in optional:
            raise lacks(path, group, key)
    length = len(found["actions"][0])
    goals = _goals(path, group, layout, length, "goals" in wanted.needs)
    if goals is not None:
        found["goals"] = [goals]
    for name, arrays in found.items():
        for array in arrays:
            _check_length(path, group, layout, name, len(array), length)
    if not length:
        raise fault(path, f"is empty in group '{group.name}'", "one transition or more")
    return found, said


def lacks(path: Path, group: h5py.Group, key: str) -> InputError:
    """The sentence on a key that is not there."""
    return fault(path, f"lacks the key '{group.name.rstrip('/')}/{key}'", "a file that has it")


def values(path: Path, name: str, found: list[h5py.Dataset], ids: int = 0) -> np.ndarray:
    """Arrays under one of our names, read and laid side by side: float32, or bool for marks.

    Args:
        path: of the file.
        name: ours.
        found: see `look`.
        ids: how many there are, if they are those of a discrete space.
    """
    parts = []
    for one in found:
        read = one[()]
        if name in VECTORS:
            read = columns.vectors(path, one.name, read, ids or 1)
        parts.append(columns.checked(path, one.name, name, read))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def ids(path: Path, name: str, found: list[h5py.Dataset], wanted: int | None) -> int:
    """How many ids there are, where observations or actions [M] are those of a discrete space.

    It is the width that is wanted, or what the data set's card says; 0 where they are no ids.
    """
    if name not in VECTORS or len(found) != 1 or found[0].ndim != 1:
        return 0
    if wanted is not None or found[0].dtype.kind not in "iu":
        return wanted or 0
    try:
        card = json.loads((path.parent / minari_files.CARD).read_text(encoding="utf-8"))
        space = json.loads(card[f"{name.removesuffix('s')}_space"])
        count = space["n"] if space["type"] == "Discrete" and space.get("start", 0) == 0 else 0
        return count if isinstance(count, int) and 0 < count <= columns.MOST_IDS else 0
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0


def _is_group(found: object) -> bool:
    return isinstance(found, h5py.Group)


def _vectors(
    path: Path,
    group: h5py.Group,
    key: str,
    wanted: int | None,
    keys: tuple[str, ...],
    dictionary: bool,
) -> tuple[list[h5py.Dataset], list[str]]:
    """Observations or actions under a key, of the wanted width; sentences on what was chosen.

    Args:
        path, group, key: where.
        wanted: numbers a step.
        keys: of those in a dictionary that are chosen, if it may be one.
        dictionary: whether it may.
    """
    there, said = hdf5.entry(path, group, key), list[str]()
    if there is None:
        return [], said
    if not (dictionary and _is_group(there)):
        if keys:
            raise InputError(
                f"observation_keys={shown(keys)} is not allowed: the observations of "
                f"{shown(str(path), 200)} are one array, and have no keys."
            )
        return [_of_width(path, group, key, wanted)], said
    if keys:
        chosen = list(keys)
    elif "observation" in set(there):
        chosen = ["observation"]
    else:
        chosen = list(_leaves(path, there))
        said.append(
            f"Dataset {shown(str(path), 200)} has {key} in a dictionary: its vectors "
            f"{', '.join(chosen)} are laid side by side, in this order."
        )
    if len(chosen) == 1:
        return [_of_width(path, there, chosen[0], wanted)], said
    found = [_of_width(path, there, name, None) for name in chosen]
    widths = [1 if one.ndim == 1 else one.shape[1] for one in found]
    if not found or wanted not in (None, sum(widths)):
        names = ", ".join(f"{n} {w}" for n, w in zip(chosen, widths, strict=True)) or "nothing"
        what = f"has {sum(widths)} numbers a step in '{there.name}' ({names})"
        raise fault(path, what, f"{wanted or 'one or more'}, see `observation_keys`")
    return found, said


def _of_width(path: Path, group: h5py.Group, key: str, wanted: int | None) -> h5py.Dataset:
    """The array [M, wanted] under a key, or [M] of ids or single numbers."""
    found = hdf5.dataset(path, group, key)
    if found is None:
        raise lacks(path, group, key)
    columns.check_width(path, found.name, found.shape, found.dtype.kind, wanted)
    return found


def _leaves(path: Path, group: h5py.Group, before: str = "") -> Iterator[str]:
    """Keys of the vectors in a dictionary of arrays, in the order of their names."""
    for name in sorted(group):
        one = hdf5.entry(path, group, name)
        if _is_group(one):
            yield from _leaves(path, one, f"{before}{name}/")
        elif isinstance(one, h5py.Dataset) and one.ndim in (1, 2) and one.dtype.kind in "fiub":
            yield f"{before}{name}"


def _numbers(path: Path, group: h5py.Group, key: str) -> list[h5py.Dataset]:
    """The array [M] under a key, which may be a column [M, 1]; empty if there is none."""
    found = hdf5.dataset(path, group, key)
    if found is None:
        return []
    if found.ndim != 1 and not (found.ndim == 2 and found.shape[1:] == (1,)):
        raise fault(path, f"has '{found.name}' of shape {found.shape}", "M")
    return [found]


def _goals(
    path: Path, group: h5py.Group, layout: Layout, length: int, needed: bool
) -> h5py.Dataset | None:
    """Goals [M, 2], if there are such: what others keep under these names need not be a point."""
    found = None
    for key in layout.goals:
        try:
            goals = hdf5.dataset(path, group, key)
            if goals is None:
                continue
            if goals.ndim != 2 or goals.shape[1] != 2:
                raise fault(path, f"has '{goals.name}' of shape {goals.shape}", "M x 2")
            _check_length(path, group, layout, "goals", len(goals), length)
            found = goals
        except InputError:
            if needed:
                raise
    if needed and found is None:
        raise lacks(path, group, layout.goals[0] if layout.goals else "goals")
    return found


def _check_length(
    path: Path, group: h5py.Group, layout: Layout, name: str, length: int, actions: int
) -> None:
    last = layout.following and name in ("observations", "goals")
    if length - actions not in (0, last):
        what = f"has arrays of different lengths, {length} {name} beside {actions} actions"
        raise fault(path, f"{what} in group '{group.name}'", "one length for all")
