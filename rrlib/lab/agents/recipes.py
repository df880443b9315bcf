"""Recipes of short windows of behaviour: diffusion models, the reward between them, its rival.

An agent is paid for each step, so what is learned here are windows of a few steps, of one as a
rule: then g(s, a, 0) is the log ratio of how often the expert and the base do `a` in `s`.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rrlib import training
from rrlib.estimators import discriminator
from rrlib.lab import costs, recipes, store
from rrlib.lab.locomotion.recipes import LocomotionData
from rrlib.lab.mazes.recipes import MazeData
from rrlib.lab.recipes import Split
from rrlib.method import extraction
from rrlib.method.comparisons import Comparisons
from rrlib.method.denoisers import Denoiser
from rrlib.method.noise import schedulers
from rrlib.method.pools import Place, Target
from rrlib.method.rewards import RelativeReward
from rrlib.plans import conditioning, normalisers, trajectories
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.perceptron import PlanPerceptron
from rrlib.plans.rewards import WindowReward


@dataclass(frozen=True)
class StepDiffuser:
    """A diffusion model of windows of behaviour, actions and observations, nothing of them given.

    Attributes:
        data: what it learns.
        ruler: data that fixes mean and deviation: the base's and the expert's, for both.
        window: steps that it sees at once.
        hidden, blocks: of the perceptron (`perceptron.PlanPerceptron`).

    Raises:
        InputError: training would take more memory than there is, or months.
    """

    data: MazeData | LocomotionData
    ruler: tuple[MazeData | LocomotionData, ...]
    window: int = 1
    hidden: int = 128
    blocks: int = 1
    diffusion_steps: int = 50
    steps: int = 3_000
    batch: int = 256
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        names = "batch", "hidden", "blocks"
        shape = {name: getattr(self, name) for name in names} | {"horizon": self.window}
        costs.check_training(costs.perceptron_step(**shape, width=23), self.steps, **shape)

    @cached_property
    def normaliser(self) -> Normaliser:
        """Of its windows."""
        return normalisers.standardiser(*(store.obtain(data) for data in self.ruler))

    def split(self) -> Split:
        """Its windows, a tenth of the episodes held out."""
        parts = trajectories.split(store.obtain(self.data), 0.1, self.seed)
        return Split(*parts, self.normaliser, self.window)

    @cached_property
    def widths(self) -> tuple[int, int]:
        """Numbers of an action and of an observation."""
        found = store.obtain(self.data)
        return found.actions.shape[1], found.observations.shape[1]

    def make(self, folder: Path, device: str) -> None:
        """Train the network and write `denoiser.safetensors`."""
        denoiser, split, (_, observation) = self.blank(device), self.split(), self.widths
        file = folder / "denoiser.safetensors"

        def loss(draws: torch.Generator) -> Tensor:
            x0 = split.draw(self.batch, draws)
            return conditioning.plan_loss(denoiser, x0, observation, draws, 0.0)

        recipes.fitted(denoiser.network, loss, file, "diffuser of steps", **training.options(self))
        save_file(denoiser.network.state_dict(), file)

    def load(self, folder: Path, device: str) -> Denoiser:
        """The trained diffusion model."""
        return recipes.load_denoiser(self.blank(device), folder, device)

    def blank(self, device: str) -> Denoiser:
        """The model before training."""
        torch.manual_seed(self.seed)
        shape = sum(self.widths), self.window, self.diffusion_steps
        network = PlanPerceptron(*shape, self.hidden, self.blocks).to(device)
        return Denoiser(network, schedulers.cosine_scheduler(self.diffusion_steps, clip=False))


@dataclass(frozen=True)
class StepPool:
    """Algorithm 1's comparisons of two diffusion models of windows; not kept, see `store`.

    Raises:
        InputError: they would take more memory than there is.
    """

    base: StepDiffuser
    expert: StepDiffuser
    plans: int = 60_000
    seed: int = 0

    def __post_init__(self) -> None:
        costs.check_pool(self.plans, self.base.window, 23)

    def load(self, folder: Path, device: str) -> Comparisons:
        """Ask both models."""
        data = recipes.drawn(self, training.stream(self.seed, "data", device))
        return recipes.compared(self, data, None, device)


@dataclass(frozen=True)
class StepReward:
    """rho of two diffusion models of windows by Algorithm 1; of target "score", in nats.

    Raises:
        InputError: the fit would take months.
    """

    pool: StepPool
    hidden: tuple[int, ...] = (128, 128)
    target: Target = "score"
    place: Place = "x_t"
    steps: int = 3_000
    batch: int = 512
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_fit(self)

    def make(self, folder: Path, device: str) -> None:
        """Fit the reward, write `reward.safetensors`."""
        pool = store.obtain(self.pool, device).pool(self.target, self.place)
        network, file = blank(self.pool.base, self).to(device), folder / "reward.safetensors"
        options = {**training.options(self), "batch": self.batch}
        recipes.fitted(network, pool, file, "reward of steps", **options)
        save_file(network.state_dict(), file)

    def load(self, folder: Path, device: str) -> RelativeReward:
        """The fitted reward."""
        network = blank(self.pool.base, self)
        return recipes.load_reward(network, folder, device, self.target, self.place)


@dataclass(frozen=True)
class StepDiscriminator:
    """The rival: the same network tells the expert's noised windows from the base's.

    Raises:
        InputError: the fit would take months.
    """

    base: StepDiffuser
    expert: StepDiffuser
    hidden: tuple[int, ...] = (128, 128)
    plans: int = 100_000  # of either kind
    steps: int = 3_000
    batch: int = 512
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_fit(self)

    def make(self, folder: Path, device: str) -> None:
        """Train the network, write `reward.safetensors`."""
        network, base = blank(self.base, self).to(device), self.base.blank(device)
        data = recipes.drawn(self, training.stream(self.seed, "data", device))

        def loss(draws: torch.Generator) -> Tensor:
            return discriminator.discriminator_loss(network, base, *data, self.batch, draws)

        file = folder / "reward.safetensors"
        recipes.fitted(network, loss, file, "discriminator of steps", **training.options(self))
        save_file(network.state_dict(), file)

    def load(self, folder: Path, device: str) -> RelativeReward:
        """Its logit as a reward."""
        return recipes.load_reward(blank(self.base, self), folder, device)


def check_fit(recipe: StepReward | StepDiscriminator) -> None:
    """Raise InputError if fitting a recipe's network would take months."""
    wide = max(recipe.hidden, default=1)
    each = costs.perceptron_step(recipe.batch, 1, 23, wide, len(recipe.hidden))
    costs.check_training(each, recipe.steps, batch=recipe.batch)


def blank(base: StepDiffuser, recipe: StepReward | StepDiscriminator) -> WindowReward:
    """The network of a reward of a base's windows before it is fitted."""
    unit = extraction.units(base.blank("cpu"), "score")
    torch.manual_seed(recipe.seed)
    return WindowReward(sum(base.widths), base.window, unit, recipe.hidden)
