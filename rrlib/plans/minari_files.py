"""Minari's data sets: where they lie, and how one is written."""

import os
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

MAIN = Path("data", "main_data.hdf5")  # of a Minari dataset's folder
CARD = "metadata.json"  # beside it


def folder() -> Path:
    """Where Minari keeps its datasets; its own function would make the folder as well."""
    default = Path.home() / ".minari" / "datasets"
    return Path(os.environ.get("MINARI_DATASETS_PATH", default))


def write(dataset_id: str, episodes: Iterable[dict[str, np.ndarray]], description: str) -> Path:
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
    place = folder() / dataset_id
    if os.path.lexists(place):
        raise InputError(
            f"Minari dataset id {shown(dataset_id)} is taken: allowed is one that "
            f"does not exist in '{place.parent}'."
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

    with disk.atomic(place) as temporary:
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
    return place
