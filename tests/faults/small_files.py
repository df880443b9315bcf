"""A good, small file of every kind that the project reads or writes."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import test_command_line
import test_data_files
import test_data_layouts
import tiny_pipelines
import torch
from mutations import edited
from safetensors.torch import load_file, save_file
from test_locomotion_files import CHOSEN, HOW
from test_reward_files import rewards as some_rewards
from test_shards import OPTIONS, PAIR, PROMPTS

from rrlib import save_rewards, training
from rrlib.images import comparisons, pipelines
from rrlib.lab import results
from rrlib.lab.locomotion import experiments, presets
from rrlib.lab.locomotion import files as locomotion_files
from rrlib.plans.layouts import PlanLayout
from rrlib.plans.normalisers import Normaliser
from rrlib.tensor_files import read_tensors, write_tensors

STEPS = 30  # of the training that a checkpoint is of


@dataclass(frozen=True)
class Number:
    """A recipe that is made at once."""

    value: float = 1.0
    seed: int = 7

    def make(self, folder: Path, device: str) -> None:
        save_file({"value": torch.tensor(self.value)}, folder / "number.safetensors")

    def load(self, folder: Path, device: str) -> float:
        return float(load_file(folder / "number.safetensors")["value"])


def maze_arrays() -> dict[str, np.ndarray]:
    """Of four short episodes, by D4RL's names."""
    return {
        name: array[: 4 * test_data_files.T] for name, array in test_data_files.arrays().items()
    }


def minari(path: Path) -> Path:
    """Minari's main file, two episodes."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for k, n in enumerate((5, 7)):
            group = file.create_group(f"episode_{k}")
            group.attrs["id"], group.attrs["total_steps"] = k, n
            for key, array in {
                "observations": rng.normal(size=(n + 1, 4)).astype("f4"),
                "actions": rng.uniform(-1, 1, (n, 2)).astype("f4"),
                "rewards": np.zeros(n, "f4"),
                "terminations": np.zeros(n, bool),
                "truncations": np.arange(n) == n - 1,
            }.items():
                group.create_dataset(key, data=array, chunks=True)
    return path


def robomimic(path: Path) -> Path:
    """Two demonstrations, one part of observations."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for k, n in enumerate((5, 7)):
            group = file.create_group(f"data/demo_{k}")
            group["obs/all"] = rng.normal(size=(n, 4)).astype("f4")
            group["actions"] = rng.uniform(-1, 1, (n, 2))
            group["dones"] = (np.arange(n) == n - 1).astype("i8")
    return path


def ogbench(path: Path) -> Path:
    """Three trajectories, observations of 4 numbers."""
    found = test_data_layouts.ogbench(path)
    test_data_layouts.ogbench(path, observations=found["observations"][:, :4])
    return path


def rewards(path: Path) -> Path:
    """A reward "one" and another."""
    one, other = some_rewards().values()
    save_rewards(path, {"one": one, "other": other}, {"one": layout().about(), "other": {}})
    return path


def told_otherwise(content: bytes, draw: random.Random) -> bytes:
    """A rewards file whose text is another and whose checksum is right: of another author."""
    with mock.patch("rrlib.disk._sync"):  # it need not outlive a power cut
        place = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") / f"{draw.random()}"
        place.write_bytes(content)
        tensors, texts = read_tensors(place)
        text = edited(texts["rewards"].encode(), draw).decode()
        write_tensors(place, tensors, texts | {"rewards": text})
        found = place.read_bytes()
        place.unlink()
    return found


def layout() -> PlanLayout:
    """One action and two observations, eight steps."""
    return PlanLayout(Normaliser(np.float32([-1, 0, 0]), np.float32([1, 2, 3])), 1, 2, horizon=8)


def robots(path: Path) -> Path:
    """Planners of the hopper with their reward, untrained but for a few steps."""
    network = {"hidden": 16, "blocks": 1, "batch": 16, "learning_rate": 2e-3}
    small = presets.Sizes(8, 5, network, 10, 10, network)
    with mock.patch.object(experiments, "sizes", lambda *_: small):
        (e,) = experiments.experiments(CHOSEN, 20)
    locomotion_files.write(path, e, CHOSEN, **HOW)
    return path


def shards(folder: Path) -> Path:
    """Comparisons of two samplers, three shards and their record."""
    folder.mkdir(exist_ok=True)
    list(comparisons.generate(folder, *PAIR, PROMPTS, **OPTIONS))
    return folder


def checkpoint(path: Path) -> tuple[Path, Callable[[], list[float]]]:
    """A checkpoint of half a training, and what goes on from it: its final weights."""
    trained(path, STEPS // 2)
    content = path.read_bytes()

    def finish() -> list[float]:
        found = trained(path, STEPS)
        path.write_bytes(content)  # it has moved on
        return found

    return path, finish


def trained(path: Path, steps: int) -> list[float]:
    """The weights of a small network after so many steps, with a checkpoint every five."""
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1)

    def loss(draws: torch.Generator) -> torch.Tensor:
        return (network(torch.randn(4, 2, generator=draws)) - 1).square().mean()

    options = {"learning_rate": 0.1, "seed": 0, "checkpoint": path, "every": 5}
    for progress in training.train(network, loss, steps=STEPS, **options):
        if progress.step == steps < STEPS:
            break
    return network.weight.flatten().tolist()


def result(folder: Path) -> Path:
    """A published study."""
    summary = {"share": {"value": 0.9375, "ci": [0.92, 0.95], "bar": ">= 0.9", "label": "a share"}}
    rows = [{"seed": seed, "found": True, "maze": "umaze", "score": 0.5 + seed} for seed in (0, 1)]
    results.publish(str(folder), "study", rows=rows, summary=summary, parameters={"seed": 0})
    return folder / "study.json"


def pipeline(folder: Path) -> Path:
    """A tiny Stable Diffusion."""
    pipelines.save_pipeline(tiny_pipelines.stable_diffusion(0), folder)
    return folder


def plan_network(folder: Path) -> Path:
    """A tiny UNet1DModel and its scheduler."""
    return Path(test_command_line.planner(folder, 0.0))
