"""Data sets as files, of the layouts that people have, as named arrays."""

from pathlib import Path

import h5py
import numpy as np

from rrlib import disk
from rrlib.errors import InputError, shown
from rrlib.plans import columns, hdf5, hdf5_layouts, minari_files, npz_files
from rrlib.plans.hdf5 import fault
from rrlib.plans.hdf5_layouts import D4RL, VECTORS, Layout, Wanted
from rrlib.plans.minari_files import MAIN

MOST_ENDS = 0.1  # of the steps; what differs more often, such as a goal that moves, is no end
Found = tuple[dict[str, np.ndarray], list[str]]


def read(path: str | Path, wanted: Wanted) -> Found:
    """The arrays of a file by our names for them, and sentences on what had to be left out.

    Args:
        path: see `trajectories.read`.
        wanted: what it must have.

    Returns:
        `observations` [M, do], `actions` [M, da], `terminals` [M] bool always; `timeouts` [M] bool
        unless nothing tells of them; `rewards` [M] unless they are missing or not all are usable
        numbers; `goals` [M, 2] if there are such. Float32 but for the marks.

    Raises:
        InputError: the file is missing, is of no known layout, lacks a key, is empty, has arrays of
            different lengths or a wrong width, or values that cannot be right.
    """
    found = find(path)
    if found.suffix == ".npz":
        if wanted.observation_keys or wanted.filter_key:
            raise fault(found, "is OGBench's, of one array of observations", "no further key")
        arrays = npz_files.read_trajectories(found, wanted)
        return {"timeouts": np.zeros_like(arrays["terminals"])} | arrays, []
    with hdf5.reading(found) as file:
        layout, names = hdf5_layouts.episodes(found, file, wanted.filter_key)
        groups = [file if name == "/" else hdf5.entry(found, file, name) for name in names]
        return _read(found, groups, layout, wanted)


def _read(path: Path, groups: list[h5py.Group], layout: Layout, wanted: Wanted) -> Found:
    """The episodes of an HDF5 file, end to end; see `read`."""
    looked = [hdf5_layouts.look(path, group, layout, wanted) for group in groups]
    parts, remarks = [part for part, _ in looked], list(looked[0][1])
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    hdf5.check_size(path, [one for part in parts for name in shared for one in part[name]])
    lengths = [len(part["actions"][0]) for part in parts]
    arrays: dict[str, np.ndarray] = {}
    for name in shared:
        wide = wanted.widths[VECTORS.index(name)] if name in VECTORS else None
        try:
            ids = hdf5_layouts.ids(path, name, parts[0][name], wide)
            read = [hdf5_layouts.values(path, name, part[name], ids) for part in parts]
        except InputError as error:
            if name in wanted.needs or name not in ("rewards", "goals"):
                raise
            remarks += [_without_rewards(error)] if name == "rewards" else []
            continue
        widths = {one.shape[1:] for one in read}
        if len(widths) > 1:
            what = f"has {name} of different widths in its episodes"
            raise fault(path, what, "one width for all")
        parts_of = [one[:n] for one, n in zip(read, lengths, strict=True)]
        arrays[name] = np.concatenate(parts_of) if len(parts_of) > 1 else parts_of[0]
    if "rewards" not in shared:
        lacking = [g for g, part in zip(groups, parts, strict=True) if "rewards" not in part]
        remarks.append(_without_rewards(hdf5_layouts.lacks(path, lacking[0], "rewards")))
    if layout is D4RL:
        remarks += _derive_timeouts(path, groups[0], arrays)
    else:  # one group is one episode
        _end_episodes(arrays, np.cumsum(lengths) - 1, layout)
    return arrays, remarks


def _end_episodes(arrays: dict[str, np.ndarray], last: np.ndarray, layout: Layout) -> None:
    """Mark the last step of each episode; robomimic's `dones` may mark success before it."""
    none = np.zeros(len(arrays["actions"]), dtype=bool)
    if layout is hdf5_layouts.ROBOMIMIC:
        is_last = none.copy()
        is_last[last] = True
        arrays["terminals"] = arrays.get("terminals", none) & is_last
    arrays.setdefault("timeouts", none)
    arrays["timeouts"][last] |= ~arrays["terminals"][last]


def _derive_timeouts(path: Path, file: h5py.Group, arrays: dict[str, np.ndarray]) -> list[str]:
    """Find the ends of episodes that no mark tells of, in place; a sentence on what was found.

    An episode ends where the observation that followed, D4RL's `next_observations`, is not the next
    one, and where the goal changes.
    """
    marked = arrays.get("timeouts", np.zeros(0, dtype=bool)).any() or arrays["terminals"].any()
    if "timeouts" in arrays and marked:
        return []
    ends, told = np.zeros(len(arrays["terminals"]), dtype=bool), []
    for words, found in _evidence(path, file, arrays).items():
        if found.any() and found.mean() <= MOST_ENDS:
            ends[:-1] |= found
            told.append(words)
    ends &= ~arrays["terminals"]
    if not ends.any():
        return []
    lacking = "has no mark in" if "timeouts" in arrays else "lacks the key"
    arrays["timeouts"] = ends
    n = int((ends | arrays["terminals"])[:-1].sum()) + 1
    return [
        f"Dataset {shown(str(path), 200)} {lacking} '/timeouts': an episode ends where "
        f"{' or '.join(told)}, which makes {n}."
    ]


def _evidence(path: Path, file: h5py.Group, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What may tell of an episode's end, and after which steps it does, bool [M - 1]."""
    found = {}
    following = _following(path, file, arrays["observations"].shape)
    if following is not None:
        gaps = np.abs(following[:-1] - arrays["observations"][1:])
        apart = (gaps > 1e-5 * (1 + np.abs(following[:-1]))).any(axis=1)
        found["'/next_observations' is not the next observation"] = apart
    if "goals" in arrays:
        found["'/infos/goal' changes"] = (arrays["goals"][1:] != arrays["goals"][:-1]).any(axis=1)
    return found


def _following(path: Path, file: h5py.Group, shape: tuple[int, ...]) -> np.ndarray | None:
    """D4RL's `next_observations`, if they are such."""
    try:
        found = hdf5.dataset(path, file, "next_observations")
        if found is None or found.shape != shape:
            return None
        hdf5.check_size(path, [found])
        return columns.checked(path, found.name, "observations", found[()])
    except InputError:  # what others keep under this name is their own affair
        return None


def find(path: str | Path) -> Path:
    """The file that a path or the id of a Minari dataset stands for; InputError if none."""
    file = "a D4RL-layout HDF5 file, robomimic's, OGBench's npz or a Minari dataset's folder"
    try:
        place = Path(path).expanduser()
        folders = [place, minari_files.folder() / place]
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
    raise fault(path, "is missing", f"{file}, or the id of one kept in '{minari_files.folder()}'")


def _without_rewards(error: InputError) -> str:
    said = str(error).rpartition(": allowed is")[0]
    return f"{said}: it is read without rewards, which the method never uses."
