"""Time the shipped Hopper's guided rollouts: how long, and what of it is physics.

    time_rollouts.py [--device cuda] [--workers 16] [--episodes 512] [--steps 1000] [--results DIR]

Defaults are the paper's: 512 rollouts, 20 denoising steps, every one of them steered. On a GPU the
minutes are published; a CPU's say nothing to anyone else, so of them only shares and counts are.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rrlib.errors import InputError
from rrlib.lab import parameters as rules
from rrlib.lab import results
from rrlib.lab.locomotion import files as locomotion_files
from rrlib.locomotion import rollouts
from rrlib.locomotion import world as locomotion

MODELS = Path(__file__).resolve().parent.parent / "results/full/locomotion-models.safetensors"


class Operators(TorchDispatchMode):
    """Counts calls of torch's operators, and the floating-point operations of matrix products."""

    calls, flops = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.calls += 1
        if formula := flop_registry.get(func.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=found)
        return found


def timed(
    shipped: locomotion_files.Shipped, episodes: int, steps: int, denoising: int, workers: int
) -> dict[str, float]:
    """Play steered rollouts and say what they took.

    Args:
        shipped: planners and reward.
        episodes, steps, workers: see `rollouts.play`.
        denoising: steps of a plan's sampling.

    Returns:
        `seconds`; `physics`, the share that is no planning; `gflop` and `operators` (torch's, each
        a kernel or more on a GPU) of one batch of plans; `score`.
    """
    plan = shipped.planner("steered", 0, num_inference_steps=denoising)
    start = locomotion.simulators(shipped.world, 1, 5).envs[0].reset(seed=0)[0]
    batch = np.tile(start.astype(np.float32), (episodes, 1))
    with Operators() as operators:
        plan(batch, np.arange(episodes))
    planning = 0.0

    def clocked(observations: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        nonlocal planning
        begun = time.perf_counter()
        actions = plan(observations, numbers)
        planning += time.perf_counter() - begun
        return actions

    begun = time.perf_counter()
    made = rollouts.play(shipped.world, clocked, episodes, 0, steps=steps, workers=workers)
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "physics": 1 - planning / seconds,
        "gflop": operators.flops / 1e9,
        "operators": float(operators.calls),
        "score": float(locomotion.scores(shipped.world, made).mean()),
    }


def summary(found: dict[str, float], device: str, whole: bool) -> dict[str, object]:
    """What is published: of a CPU, or of rollouts that are cut short, no time."""
    kept = {name: value for name, value in found.items() if name not in ("seconds", "score")}
    if device != "cpu" and whole:
        label = "512 guided Hopper rollouts of 1 000 steps, 20 denoising steps, minutes"
        minutes = {"value": found["seconds"] / 60, "paper": 60, "bar": "<= 2", "label": label}
        kept |= {"minutes": minutes, "score": found["score"]}
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="where plans are made")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="physics processes")
    parser.add_argument("--episodes", type=int, default=512)
    parser.add_argument("--steps", type=int, default=locomotion.HORIZON)
    parser.add_argument("--denoising", type=int, default=20)
    parser.add_argument("--results", default="", help="folder that gets rollout-speed.json")
    given = vars(parser.parse_args())
    try:
        chosen = rules.check(
            given,
            device=rules.device(),
            workers=rules.integer(1, os.cpu_count()),
            episodes=rules.integer(1, 100_000),
            steps=rules.integer(1, locomotion.HORIZON),
            denoising=rules.integer(2, 1000),
            results=rules.writable_folder(),
        )
        asked = chosen.episodes, chosen.steps, chosen.denoising
        found = timed(locomotion_files.read(MODELS, chosen.device), *asked, chosen.workers)
    except InputError as error:
        sys.exit(str(error))
    for name, value in found.items():
        print(f"{name}: {value:.4g}")
    told = summary(found, chosen.device, asked == (512, locomotion.HORIZON, 20))
    results.publish(chosen.results, "rollout-speed", rows=[], summary=told, parameters=chosen)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
