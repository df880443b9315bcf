"""Short plans of one number whose log ratio is known, and small U-Nets that learn them."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from diffusers import DDPMScheduler
from safetensors.torch import save_file
from torch import Tensor

from rrlib import training
from rrlib.errors import check_one_of
from rrlib.lab import recipes, store
from rrlib.method import comparisons, extraction
from rrlib.method.denoisers import Denoiser
from rrlib.method.pools import Place, Target
from rrlib.method.rewards import RelativeReward
from rrlib.plans.networks import PlanNetwork
from rrlib.plans.rewards import WindowReward
from rrlib.theory import sde

HORIZON = 16
Side = Literal["base", "expert"]


@cache
def mixture(side: Side) -> sde.GaussianMixture:
    """Plans of 16 steps of one number: bundles of rough lines around curves, in closed form.

    The base bends up or down, early or late, all alike; the expert bends up, a little further, and
    mostly late.
    """
    time = torch.linspace(0, 1, HORIZON, dtype=torch.float64)
    early, late = 1 - (1 - time) ** 2, time**2
    rough = 0.09 * (-(time[:, None] - time).abs() * 3).exp()
    check_one_of("side", side, Side)
    if side == "base":
        means, weights = [early, late, -early, -late], [0.25] * 4
    else:
        means, weights = [1.2 * late, 1.2 * early], [0.7, 0.3]
    covariances = rough.expand(len(means), HORIZON, HORIZON)
    return sde.GaussianMixture(
        torch.tensor(weights, dtype=torch.float64), torch.stack(means), covariances
    )


def plans(side: Side, n: int, generator: torch.Generator) -> Tensor:
    """n plans of a side, [n, 16, 1]."""
    return mixture(side).sample(n, generator).float()[..., None]


def log_ratio(x: Tensor) -> Tensor:
    """The true log p_expert - log p_base of plans [B, 16, 1], [B]."""
    clean = torch.ones(len(x), dtype=torch.float64)
    return sde.log_ratio(mixture("base"), mixture("expert"), x[..., 0].double(), clean)


@dataclass(frozen=True)
class ToyDiffuser:
    """A small temporal U-Net, epsilon of 100 steps, that learns one side's plans.

    Attributes:
        side: whose plans.
        samples: of them.
        channels: of the U-Net, per resolution.
        steps, batch, learning_rate, seed: see `training.train`.
    """

    side: Side
    samples: int = 20_000
    channels: tuple[int, ...] = (16, 32)
    steps: int = 2_500
    batch: int = 64
    learning_rate: float = 2e-3
    seed: int = 0

    def data(self) -> Tensor:
        """What it learns, [samples, 16, 1]."""
        return plans(self.side, self.samples, training.stream(self.seed, f"toy {self.side}"))

    def make(self, folder: Path, device: str) -> None:
        """Train it, write `denoiser.safetensors`."""
        model, data = self.blank(device), self.data().to(device)
        file = folder / "denoiser.safetensors"

        def loss(draws: torch.Generator) -> Tensor:
            rows = torch.randint(len(data), (self.batch,), generator=draws, device=device)
            t = torch.randint(model.steps, (self.batch,), generator=draws, device=device)
            noise = torch.randn(len(rows), HORIZON, 1, generator=draws, device=device)
            x_t = model.scheduler.add_noise(data[rows], noise, t)
            return (model.predict(x_t, t) - noise).square().mean()

        options = training.options(self)
        recipes.fitted(model.network, loss, file, f"toy diffuser, {self.side}", **options)
        save_file(model.network.state_dict(), file)

    def load(self, folder: Path, device: str) -> Denoiser:
        """The trained model."""
        return recipes.load_denoiser(self.blank(device), folder, device)

    def blank(self, device: str) -> Denoiser:
        """Before training."""
        torch.manual_seed(self.seed)
        scheduler = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=False)
        return Denoiser(PlanNetwork(1, self.channels).to(device), scheduler)


@dataclass(frozen=True)
class ToyReward:
    """What the expert prefers, by `RelativeReward.fit` in its own settings but for those named."""

    base: ToyDiffuser
    expert: ToyDiffuser
    pool: int = 10_000
    target: Target = "score"
    place: Place = "x_t"
    steps: int = 1_500
    batch: int = 512
    learning_rate: float = 1e-3
    seed: int = 0

    def make(self, folder: Path, device: str) -> None:
        """Compare and fit, write `reward.safetensors`."""
        pair = (self.base, self.expert)
        models = [store.obtain(half, device) for half in pair]
        data = [half.data().to(device) for half in pair]
        found = comparisons.algorithm1(*models, *data, size=self.pool, seed=self.seed, batch=2_000)
        network, file = self._network().to(device), folder / "reward.safetensors"
        pool, options = found.pool(self.target, self.place), training.options(self)
        recipes.fitted(network, pool, file, "toy reward", **options, batch=self.batch)
        save_file(network.state_dict(), file)

    def load(self, folder: Path, device: str) -> RelativeReward:
        """The fitted reward."""
        return recipes.load_reward(self._network(), folder, device, self.target, self.place)

    def _network(self) -> WindowReward:
        unit = extraction.units(self.base.blank("cpu"), self.target)
        torch.manual_seed(self.seed)  # after `blank`, which sets a seed of its own
        return WindowReward(1, HORIZON, unit)


def reward() -> ToyReward:
    """The reward of the book's pair."""
    return ToyReward(ToyDiffuser("base"), ToyDiffuser("expert"))
