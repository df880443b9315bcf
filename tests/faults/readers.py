"""Every reader of the project with a good file of its kind, for the fuzz."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import digests
import h5py
import numpy as np
import small_files
import torch
from mutations import BYTES, Change, edited, edited_within_its_seal
from PIL import Image
from safetensors.torch import save_file
from scoreboard import read as read_results

from rrlib import load_reward
from rrlib.command_line import inputs, networks
from rrlib.images import pictures, pipelines
from rrlib.images.miniature import weights as miniature
from rrlib.images.prompts import read_prompts
from rrlib.images.shards import Shards
from rrlib.lab import results, store
from rrlib.lab.agents import evidence as agents
from rrlib.lab.locomotion import files as locomotion_files
from rrlib.locomotion import actors, robots
from rrlib.mazes import recordings, world
from rrlib.plans import trajectories

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Reader:
    """One kind of file and who reads it.

    Attributes:
        place: of the good file, which a case writes anew.
        read: no arguments, since other code has it read a place; what it found, to be compared.
        cases: how many.
        checked: whether a checksum says what was written, so that no other value may be found.
        changes: what is done to the bytes.
        names: of which a sentence must have one; the file's name, and these.
    """

    place: Path
    read: Callable[[], Any]
    cases: int
    checked: bool = False
    changes: tuple[Change, ...] = tuple(BYTES)
    names: tuple[str, ...] = ()


JSON = (edited, edited, edited, *BYTES[:4])
SEALED = (*(edited_within_its_seal,) * 3, *BYTES[:4])


def readers(folder: Path) -> dict[str, Reader]:
    """Name -> reader; good files are made in `folder`."""
    parts = (data_files, plans, tensors, shipped, pipeline_folders, others)
    found: dict[str, Reader] = {}
    for part in parts:
        place = folder / part.__name__
        place.mkdir(parents=True)
        found |= part(place)
    return found


def data_files(folder: Path) -> dict[str, Reader]:
    """Recorded trajectories in every layout."""
    d4rl = folder / "d4rl.hdf5"
    content = small_files.maze_arrays()
    with h5py.File(d4rl, "w") as file:
        for name, array in content.items():
            file[name] = array
    packed = folder / "packed.hdf5"
    trajectories.write_hdf5(packed, trajectories.read(d4rl, 4, 2))
    found = {
        "D4RL's HDF5": Reader(d4rl, lambda: digests.of(trajectories.read(d4rl, 4, 2)), 800),
        "D4RL's HDF5, of a maze": Reader(
            d4rl, lambda: digests.of(recordings.read(world.load("umaze"), str(d4rl))), 300
        ),
        "packed HDF5": Reader(packed, lambda: digests.of(trajectories.read(packed, 4, 2)), 500),
    }
    for name, make in (("Minari", small_files.minari), ("robomimic", small_files.robomimic)):
        place = make(folder / f"{name.lower()}.hdf5")
        found[name] = Reader(place, lambda p=place: digests.of(trajectories.read(p, 4, 2)), 500)
    archive = small_files.ogbench(folder / "ogbench.npz")
    found["OGBench's npz"] = Reader(
        archive, lambda: digests.of(trajectories.read(archive, 4, 2)), 700
    )
    return found


def plans(folder: Path) -> dict[str, Reader]:
    """Plans [N, H, D] of the command line, in every form."""
    array = np.linspace(-1, 1, 5 * 4 * 3, dtype=np.float32).reshape(5, 4, 3)
    np.save(folder / "plans.npy", array)
    np.savez_compressed(folder / "plans.npz", plans=array)
    save_file({"plans": torch.from_numpy(array)}, folder / "plans.safetensors")
    with h5py.File(folder / "plans.hdf5", "w") as file:
        file["plans"] = array
    paths = sorted(folder.glob("plans.*"))
    return {
        f"plans {path.suffix}": Reader(path, lambda p=path: digests.of(inputs.plans(p)), 250)
        for path in paths
    }


def tensors(folder: Path) -> dict[str, Reader]:
    """Safetensors with a checksum: rewards, shards, checkpoints, robots' models."""
    rewards = small_files.rewards(folder / "mine.safetensors")
    forged = small_files.rewards(folder / "forged.safetensors")
    images = Path(shutil.copy(ROOT / "results/full/images-safe.safetensors", folder))
    models = small_files.robots(folder / "robots.safetensors")
    runs = small_files.shards(folder / "shards")
    shard, record = runs / "shard-00001.safetensors", runs / "comparisons.json"
    checkpoint, train = small_files.checkpoint(folder / "network.safetensors")
    return {
        "rewards": Reader(rewards, lambda: digests.of(load_reward(rewards, name="one")), 700, True),
        "rewards of another author": Reader(
            forged,
            lambda: digests.of(load_reward(forged, name="one")),
            400,
            changes=(small_files.told_otherwise,),
        ),
        "rewards of images": Reader(images, lambda: digests.of(load_reward(images)), 200, True),
        "robots' models": Reader(
            models, lambda: digests.of(locomotion_files.read(models)), 250, True
        ),
        "shards": Reader(shard, lambda: Shards(runs).check(), 300, True, names=(str(runs),)),
        "record of shards": Reader(record, lambda: Shards(runs).record, 200, True, SEALED),
        "checkpoint": Reader(checkpoint, train, 100, True),
    }


def shipped(folder: Path) -> dict[str, Reader]:
    """What comes with the book: policies, agents, the miniature, results."""
    policies = Path(shutil.copytree(actors.POLICIES, folder / "policies"))
    actors.POLICIES = policies
    teachers = Path(shutil.copytree(agents.POLICIES, folder / "agents"))
    mini = Path(shutil.copytree(miniature.FOLDER, folder / "miniature"))
    hopper = robots.load("hopper")
    published = folder / "published"
    small_files.result(published)

    def agent() -> Any:
        return digests.of(agents.load_agent("hopper", "extracted", teachers))

    def policy() -> Any:
        return digests.of(actors.load_policies(hopper)), actors.card(hopper)

    def unet() -> Any:
        miniature.load(miniature.BASE, folder=mini)

    def numbers() -> Any:
        return read_results([published / "study.json"])

    stem = "hopper-extracted"
    unets = "pipeline/unet/diffusion_pytorch_model.safetensors"
    return {
        "policies": Reader(policies / "hopper.safetensors", policy, 200, True),
        "policies' card": Reader(policies / "hopper.json", policy, 300, True, JSON),
        "agents": Reader(teachers / f"{stem}.safetensors", agent, 200, True),
        "agents' card": Reader(teachers / f"{stem}.json", agent, 300, True, SEALED),
        "miniature": Reader(mini / unets, unet, 100, True),
        "miniature's card": Reader(mini / "card.json", unet, 200, True, JSON),
        "results": Reader(published / "study.json", numbers, 600, True, SEALED),
    }


def pipeline_folders(folder: Path) -> dict[str, Reader]:
    """Folders of diffusers' form, of other people: nothing in them has a checksum."""
    place = small_files.pipeline(folder / "pipeline")
    plain = small_files.plan_network(folder / "planner")

    def whole() -> Any:
        return digests.of(pipelines.load_pipeline(place))

    def network() -> Any:
        return digests.of(networks.load_denoiser(plain)[0].network)

    found = {}
    for path in sorted(place.rglob("*")):
        if path.is_file():
            name = path.relative_to(place).as_posix()
            changes = JSON if path.suffix == ".json" else tuple(BYTES)
            found[f"pipeline: {name}"] = Reader(
                path, whole, 25, changes=changes, names=(place.name,)
            )
    for path in sorted(plain.rglob("*")):
        if path.is_file():
            changes = JSON if path.suffix == ".json" else tuple(BYTES)
            found[f"network of plans: {path.name}"] = Reader(
                path, network, 120, changes=changes, names=(plain.name,)
            )
    return found


def others(folder: Path) -> dict[str, Reader]:
    """Prompts, pictures, layouts, manifests of artefacts."""
    prompts = folder / "prompts.csv"
    prompts.write_text('id,prompt\n1,"a red, round circle"\n2,blue square\n3,é\n', encoding="utf-8")
    picture = folder / "picture.png"
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(picture)
    layout = folder / "layout.json"
    layout.write_text(json.dumps(small_files.layout().about()), encoding="utf-8")
    recipe, number = small_files.Number(5.0), small_files.Number(6.0)
    for one in (recipe, number):
        store.obtain(one)
    manifest = store.folder(recipe) / store.MANIFEST
    kept = store.folder(number) / "number.safetensors"
    config = folder / "full" / "study.json"
    small_files.result(config.parent)
    results.host.CHECKOUT = folder
    (folder / "results").mkdir()
    (folder / "results" / "full").symlink_to(config.parent)
    return {
        "prompts": Reader(prompts, lambda: read_prompts(prompts), 500),
        "pictures": Reader(
            picture, lambda: [p.tobytes() for p in pictures.pictures([str(picture)])], 400
        ),
        "layout": Reader(layout, lambda: digests.of(inputs.layout(str(layout))), 400, changes=JSON),
        "manifest": Reader(manifest, lambda: store.obtain(recipe), 300, True, JSON),
        "artefact": Reader(kept, lambda: store.obtain(number), 200, True),
        "published number": Reader(
            config, lambda: results.number("study", "share"), 300, True, SEALED
        ),
    }  # fmt: skip
