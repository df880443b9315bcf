"""What the files are that commands are given."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rrlib import disk
from rrlib.errors import InputError, shown
from rrlib.method.reward_files import load_reward
from rrlib.method.rewards import RelativeReward
from rrlib.plans import hdf5, npz_files, trajectories
from rrlib.plans.layouts import PlanLayout
from rrlib.plans.trajectories import Trajectories
from rrlib.tensor_files import read_tensors

PLANS = "plans"  # the key of plans in a file of several arrays
HDF5 = ".hdf5", ".h5"
PICTURES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def named(text: str) -> tuple[Path, str | None]:
    """The file and the name of "FILE:NAME", or the file of "FILE"."""
    path, colon, name = text.rpartition(":")
    if colon and not Path(text).exists() and Path(path).exists():
        return Path(path), name
    return Path(text), None


def check_out(path: str) -> None:
    """Raise InputError, before anything slow, unless a file can be written here."""
    folder = next((p for p in Path(path).absolute().parents if p.exists()), Path("/"))
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        found = Path(path).is_dir()
    except OSError as error:
        raise InputError(
            f"--out={shown(path)} is not allowed ({disk.reason(error)}): a file in a folder open "
            "for writing is needed."
        ) from None
    if found:
        raise InputError(f"--out={shown(path)} is not allowed: it is a folder, a file is needed.")


def reward(text: str) -> RelativeReward:
    """The reward of "FILE:NAME" or "FILE"; InputError if there is none, or several."""
    path, name = named(text)
    return load_reward(path, name=name)


def layout(path: str) -> PlanLayout:
    """The layout that a JSON file tells of, as `PlanLayout.about` has it; InputError if none."""
    told = disk.read_json(path)
    try:
        return PlanLayout.of(told)
    except InputError as error:
        raise InputError(f"--layout={shown(path)} is not allowed: {error}") from None


def device(name: str) -> str:
    """The name of a device that is there; InputError of any other."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, ImportError):  # by what the build lacks
        raise InputError(
            f"--device={shown(name)} is not allowed: cpu, or another device that torch finds here, "
            "is needed."
        ) from None
    return name


def plans(path: Path) -> np.ndarray | None:
    """Plans [N, H, D] of a file that holds such; None of any other file.

    Raises:
        InputError: a file of that kind which is damaged, or has no plans.
    """
    found = _plans(path)
    if found is not None and (found.ndim != 3 or not found.size):
        raise InputError(
            f"File '{path}' holds numbers of shape {found.shape}: plans [N, H, D] are needed."
        )
    return found


def _plans(path: Path) -> np.ndarray | None:
    """What a file that may hold plans holds."""
    if not path.is_file():
        return None
    if path.suffix == ".safetensors":
        found = read_tensors(path, allow_unchecked=True)[0]
        if PLANS not in found:
            raise InputError(f"File '{path}' holds no tensor '{PLANS}', which is needed.")
        return found[PLANS].float().numpy()
    if path.suffix == ".npy" or (path.suffix == ".npz" and npz_files.has(path, PLANS)):
        return npz_files.array(path, PLANS)
    if path.suffix in HDF5:
        with hdf5.reading(path) as file:
            array = None if "actions" in set(file) else hdf5.dataset(path, file, PLANS)
            if array is not None:
                hdf5.check_size(path, [array])
                return array[()].astype(np.float32)
    return None


def recorded(
    path: str, layout: PlanLayout, about: Mapping[str, Any], keys: str = "", filter_key: str = ""
) -> Trajectories | np.ndarray:
    """Recorded data of a reward: plans or trajectories, in the reward's own coordinates.

    Args:
        path: of the file, or a Minari id.
        layout: of the reward's data.
        about: what the reward's file says; where it names a maze, positions are checked against its
            walls, and D4RL's are converted.
        keys, filter_key: see `trajectories.read`.

    Raises:
        InputError: a file that cannot be used.
    """
    found = plans(Path(path))
    if found is not None:
        return found
    chosen = tuple(filter(None, keys.split(",")))
    if about.get("maze") and not chosen and not filter_key:
        from rrlib.mazes import recordings, world  # MuJoCo takes seconds

        widths = world.OBSERVATION, world.ACTION
        if str(about["maze"]) in world.LAYOUTS and widths == (layout.observations, layout.actions):
            return recordings.read(world.load(str(about["maze"])), path)
    widths = layout.observations, layout.actions
    return trajectories.read(path, *widths, observation_keys=chosen, filter_key=filter_key)


def pictures(path: Path) -> list[Path]:
    """The pictures in a folder, in the order of their names, or the one picture.

    Raises:
        InputError: there are none.
    """
    found = [path] if path.is_file() else pictures_in(path)
    if not found:
        raise InputError(
            f"FILE={shown(str(path))} is not allowed: a folder with pictures, or a picture, is "
            "needed by a reward of images."
        )
    return found


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder, in the order of their names; none if it is no folder."""
    try:
        found = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.is_file()]
    except OSError:
        found = []
    return sorted(found)
