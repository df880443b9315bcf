"""Networks, data and training steps of the sizes that the book's mazes have; weights are random.

What a step costs does not depend on what a network has learnt.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional

from rrlib import training
from rrlib.lab.mazes import presets
from rrlib.mazes.world import ACTION, OBSERVATION
from rrlib.method import comparisons, extraction
from rrlib.method.denoisers import Denoiser
from rrlib.method.noise import schedulers
from rrlib.method.pools import Pool
from rrlib.method.rewards import RelativeReward
from rrlib.plans import conditioning
from rrlib.plans.networks import PlanNetwork, temporal_unet
from rrlib.plans.rewards import WindowReward

WIDTH = ACTION + OBSERVATION
SIZES = {"quick": ("small", 32), "full": ("medium", 128), "paper": ("paper", 256)}
# Between the two other U-Nets; the full profile's own planners have none, see `ComponentDiffuser`.
BETWEEN = {"network": "u_net", "channels": (32, 64, 128), "patch": 4, "batch": 32}
MANY = 10**9  # steps of a run that is stopped when enough has been measured


def size_of(name: str) -> tuple[presets.Sizes, int]:
    """Sizes of the networks of a profile, in the U-maze, and its horizon; all with a U-Net."""
    size, horizon = SIZES[name]
    found = presets.sizes(size, "umaze")
    return (found if found.network == "u_net" else replace(found, **BETWEEN)), horizon


def denoiser(name: str, seed: int = 0, device: str = "cpu") -> Denoiser:
    """A maze's diffusion model of a profile."""
    size, _ = size_of(name)
    torch.manual_seed(seed)
    network = PlanNetwork(WIDTH, size.channels, size.patch).to(device)
    return Denoiser(network, schedulers.cosine_scheduler(size.diffusion_steps))


def frozen(model: Denoiser) -> Denoiser:
    """The model as it is when it is asked and not taught."""
    model.network.eval().requires_grad_(False)
    return model


@cache
def pair(name: str) -> tuple[Denoiser, Denoiser]:
    """A base and an expert that differ."""
    base, expert = (frozen(denoiser(name, seed)) for seed in range(2))
    return base, expert


def plans(n: int, horizon: int, device: str = "cpu") -> Tensor:
    """Normalised plans of uniform numbers, [n, H, D]."""
    draws = training.stream(0, "plans", device)
    return 2 * torch.rand(n, horizon, WIDTH, generator=draws, device=device) - 1


def diffuser_steps(
    name: str, horizon: int | None = None, batch: int | None = None, device: str = "cpu"
) -> Iterator:
    """Optimisation steps of a maze's diffuser, as the book takes them, without an end."""
    size, own = size_of(name)
    model, n = denoiser(name, device=device), batch or size.batch
    x0 = plans(4 * n, horizon or own, device)

    def loss(draws: torch.Generator) -> Tensor:
        rows = torch.randint(len(x0), (n,), generator=draws, device=device)
        return conditioning.plan_loss(model, x0[rows], OBSERVATION, draws, size.given)

    options = {"steps": MANY, "learning_rate": size.learning_rate, "seed": 0}
    return training.train(model.network, loss, **options)


def eager_steps(name: str) -> Iterator[None]:
    """The same steps as diffusers' training scripts take them: its model, scheduler and average."""
    size, horizon = size_of(name)
    torch.manual_seed(0)
    network = temporal_unet(
        (WIDTH + 1) * size.patch,
        WIDTH * size.patch,
        size.channels,
        act_fn="mish",
        norm_num_groups=8,
        downsample_each_block=False,
        up_block_types=("UpResnetBlock1D",) * (len(size.channels) - 1),
        mid_block_type="MidResTemporalBlock1D",
        out_block_type="OutConv1DBlock",
    )
    scheduler = DDPMScheduler(
        size.diffusion_steps, beta_schedule="squaredcos_cap_v2", prediction_type="sample"
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=size.learning_rate)
    average = EMAModel(network.parameters(), decay=0.995)
    x0 = plans(4 * size.batch, horizon).unflatten(1, (-1, size.patch)).flatten(2).mT
    marks = torch.zeros(size.batch, size.patch, x0.shape[2])
    while True:
        clean = x0[torch.randint(len(x0), (size.batch,))]
        noise, t = torch.randn_like(clean), torch.randint(size.diffusion_steps, (size.batch,))
        noisy = scheduler.add_noise(clean, noise, t)
        loss = functional.mse_loss(network(torch.cat([noisy, marks], 1), t).sample, clean)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        average.step(network.parameters())
        yield


def product(name: str) -> tuple[Tensor, Tensor]:
    """The factors of the largest matrix product in a profile's U-Net: its widest convolution."""
    size, horizon = size_of(name)
    wide, levels = size.channels[-1], len(size.channels) - 1
    columns = size.batch * (horizon // size.patch >> levels)
    return torch.randn(wide, 5 * wide), torch.randn(5 * wide, columns)


def reward(name: str, seed: int = 0) -> WindowReward:
    """A maze's reward network of a profile."""
    size, _ = size_of(name)
    unit = extraction.displacement_units(pair(name)[0], "mean")
    torch.manual_seed(seed)
    return WindowReward(WIDTH, size.window, unit, size.hidden, average=size.average)


def guide(name: str) -> RelativeReward:
    """Such a reward as it steers."""
    return RelativeReward(reward(name).requires_grad_(False), "mean", "mu_base")


@cache
def pool(name: str) -> Pool:
    """Comparisons that rewards are fitted to, cut as their networks see them."""
    size, horizon = size_of(name)
    data = plans(512, horizon)
    found = comparisons.algorithm1(*pair(name), data, data.flip(0), size=512, seed=0)
    return found.pool("mean", "mu_base").cut(size.window).average(max(size.average, 1))


def reward_steps(name: str, stacked: int = 1) -> Iterator:
    """Optimisation steps of one reward, or of several as one, from the pool, without an end."""
    size, _ = size_of(name)
    networks = [reward(name, seed).averaged() for seed in range(stacked)]
    network: nn.Module = networks[0] if stacked == 1 else training.Stack(networks)
    options = {"steps": MANY, "learning_rate": size.reward_rate, "seed": 0}
    return extraction.fit(network, pool(name), batch=stacked * size.reward_batch, **options)


def literal_steps(name: str, batch: int, at_once: bool) -> Iterator[None]:
    """Optimisation steps of Algorithm 1 as printed: both models are asked anew in every step.

    Args:
        name: of the profile.
        batch: samples of a step.
        at_once: ask for the batch in one call of each model; else the sum runs over the samples one
            by one, as it is written.
    """
    size, horizon = size_of(name)
    network, data = reward(name), plans(512, horizon)
    optimiser = torch.optim.Adam(network.parameters(), lr=size.reward_rate)
    draws = training.stream(0, "literal")
    calls, n = (1, batch) if at_once else (batch, 1)
    while True:
        optimiser.zero_grad()
        for _ in range(calls):
            sides = (*pair(name), data, data.flip(0))
            places = draws, "mean", "mu_base"
            (extraction.literal_loss(network, *sides, n, *places) / calls).backward()
        optimiser.step()
        yield
