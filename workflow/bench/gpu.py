"""What only a GPU can say; without one these rows are "not measured"."""

from functools import partial
from pathlib import Path

import torch
from time_rollouts import timed

from rrlib import training
from rrlib.lab.locomotion import files
from rrlib.lab.mazes.steps import operations
from rrlib.mazes.world import OBSERVATION
from rrlib.method.denoisers import Denoiser
from rrlib.plans import conditioning

from . import models
from .timing import Against, Row, measured

ROOT = Path(__file__).resolve().parents[2]
ROBOT = ROOT / "results" / "full" / "locomotion-models.safetensors"
ENTRIES = {  # key -> (label, bar)
    "gpu_paper_share": ("GPU: step of a diffuser, paper, of the matrix product's rate", ">= 0.25"),
    "gpu_eight_experts": ("GPU: eight experts one by one over eight together", ">= 6"),
    "gpu_rollout_minutes": ("GPU: 512 Hopper rollouts of 1 000 steps, minutes", "<= 2"),
}


def found(device: str, workers: int, rounds: int = 5) -> dict[str, float]:
    """A number for each of ENTRIES."""
    rates = measured(paper_step(device), rounds, device)
    stacks = measured(experts(device), rounds, device)
    robot = files.read(ROBOT, device)
    seconds = timed(robot, 512, 1_000, 20, workers)["seconds"]
    (share,), (gain,) = ([r.median for r in part.values()] for part in (rates, stacks))
    return {
        "gpu_paper_share": share,
        "gpu_eight_experts": gain,
        "gpu_rollout_minutes": seconds / 60,
    }


def paper_step(device: str, name: str = "paper", side: int = 8_192) -> Row:
    """A step of the paper's diffuser beside a matrix product, in operations a second."""
    square = torch.randn(side, side, device=device)
    ours = partial(next, models.diffuser_steps(name, device=device))
    product = partial(torch.matmul, square, square)
    against = Against("matrix product", product, operations(product), operations(ours))
    return Row("gpu_paper_share", "step of a diffuser, paper", ours, (against,))


def experts(device: str, name: str = "paper", n: int = 8) -> Row:
    """Gradients of n diffusers together beside one by one."""
    size, horizon = models.size_of(name)
    x0 = models.plans(size.batch, horizon, device)
    networks = [models.denoiser(name, seed, device).network for seed in range(n)]
    scheduler = models.denoiser(name).scheduler
    draws = training.stream(0, "experts", device)

    def step(network: torch.nn.Module, copies: int) -> None:
        taught = Denoiser(network, scheduler)
        shown = x0.repeat(copies, 1, 1)
        conditioning.plan_loss(taught, shown, OBSERVATION, draws, size.given).backward()

    together = partial(step, training.Stack(networks).to(device), n)
    against = Against("one by one", partial(step, networks[0], 1), work=1, ours=n)
    return Row("gpu_eight_experts", f"{n} experts together", together, (against,))
