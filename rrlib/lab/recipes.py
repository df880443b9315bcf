"""What the chapters make: frozen dataclasses that tie a world, a network and a training together.

Each is a recipe of `store`: ``store.obtain(recipe)`` makes it once and loads it ever after.
Here is what the worlds' recipes share, and the recipe of the world that needs no data.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rrlib import training
from rrlib.errors import InputError, check_one_of
from rrlib.estimators import discriminator
from rrlib.lab import store
from rrlib.method import comparisons, extraction
from rrlib.method.comparisons import Comparisons, Condition
from rrlib.method.denoisers import Denoiser
from rrlib.method.noise import schedulers
from rrlib.method.pools import Place, Pool, Target
from rrlib.method.rewards import RelativeReward
from rrlib.plans import trajectories
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.rewards import WindowReward
from rrlib.plans.trajectories import Trajectories
from rrlib.plans.windows import Windows
from rrlib.theory import sde
from rrlib.theory.sde import GaussianMixture

Method = Literal["algorithm1", "algorithm2", "discriminator"]


@dataclass(frozen=True, eq=False)
class GaussianReward:
    """rho of two Gaussian mixtures in d dimensions (chapter 04).

    Algorithm 1 and 2 see the exact scores, the discriminator sees samples only.
    """

    base: GaussianMixture
    expert: GaussianMixture
    method: Method = "algorithm1"
    diffusion_steps: int = 100
    samples: int = 20_000  # x_0 drawn from each mixture; Algorithm 2 needs none
    pool: int = 100_000  # comparisons; the discriminator draws afresh in each step
    hidden: tuple[int, ...] = (128, 128, 128)
    steps: int = 1_500
    batch: int = 512
    learning_rate: float = 3e-3
    target: Target = "score"
    place: Place = "x_t"
    error: Tensor | None = None  # A [d, d]: `sde.turned_score` by A is added to the expert's score
    seed: int = 0

    def __post_init__(self):
        check_one_of("method", self.method, Method)

    def pair(self) -> tuple[Denoiser, Denoiser]:
        """The two diffusion models, exact but for the `error`."""
        scheduler = schedulers.cosine_scheduler(self.diffusion_steps, clip=False)
        base, expert = self.base.denoiser(scheduler), self.expert.denoiser(scheduler)
        if self.error is None:
            return base, expert
        error = sde.turned_score(sde.halves(self.base, self.expert), self.error)

        def score(x: Tensor, abar: Tensor) -> Tensor:
            return self.expert.score(x, abar) + error(x, abar)

        return base, sde.score_denoiser(score, scheduler)

    def comparisons(self, size: int, seed: int) -> Pool:
        """A pool of `size` comparisons in float64 (Algorithm 2: of size / T runs of T steps)."""
        base, expert = self.pair()
        if self.method == "algorithm2":
            shape, runs = self.base.means.shape[1:], size // self.diffusion_steps
            found = comparisons.algorithm2(
                base, expert, shape, runs=runs, seed=seed, dtype=torch.float64
            )
        else:
            found = comparisons.algorithm1(
                base, expert, *self._data(), size=size, seed=seed, batch=20_000
            )
        return found.pool(self.target, self.place)

    def make(self, folder: Path, device: str) -> None:
        """Fit rho, write `reward.safetensors`."""
        network, file = self._network().to(device), folder / "reward.safetensors"
        options = training.options(self)
        if self.method == "discriminator":
            base, _ = self.pair()
            data = [x0.float().to(device) for x0 in self._data()]

            def loss(draws: torch.Generator) -> Tensor:
                return discriminator.discriminator_loss(network, base, *data, self.batch, draws)

            fitted(network, loss, file, "discriminator on Gaussians", **options)
        else:
            pool = self.comparisons(self.pool, self.seed)
            # Targets are differences of nearly equal numbers at large t, hence float64 until here.
            pool = Pool(pool.x.float(), pool.t, pool.target.float(), pool.kind).to(device)
            fitted(network, pool, file, "reward on Gaussians", **options, batch=self.batch)
        save_file(network.state_dict(), file)

    def load(self, folder: Path, device: str) -> RelativeReward:
        """The fitted reward."""
        return load_reward(self._network(), folder, device, self.target, self.place)

    def _data(self) -> tuple[Tensor, Tensor]:
        draws = training.stream(self.seed, "data")
        return self.base.sample(self.samples, draws), self.expert.sample(self.samples, draws)

    def _network(self) -> WindowReward:
        torch.manual_seed(self.seed)
        unit = extraction.units(self.pair()[0], self.target)
        return WindowReward(self.base.means.shape[1], 1, unit, self.hidden)


@dataclass(frozen=True, eq=False)
class Split:
    """Plans of one data set, split by trajectory before anything is learnt.

    Attributes:
        train, held_out: trajectories.
        normaliser: shared by base and expert.
        horizon: steps of a plan.
        served: device -> the training data there; filled as they are drawn from.
    """

    train: Trajectories
    held_out: Trajectories
    normaliser: Normaliser
    horizon: int
    served: dict[str, Windows] = field(default_factory=dict, repr=False)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n training plans, normalised, [n, H, D], on the generator's device."""
        device = str(generator.device)
        if device not in self.served:
            of = self.train, self.normaliser, self.horizon
            self.served[device] = Windows.of(*of, device)
        return self.served[device].draw(n, generator)

    def held_out_plans(self, n: int, seed: int) -> tuple[Tensor, np.ndarray]:
        """n held-out plans, normalised, [n, H, D], and the trajectory of each, [n]."""
        starts = trajectories.windows(self.held_out, self.horizon)
        rows = np.random.default_rng(seed).choice(len(starts), n, replace=n > len(starts))
        plans = trajectories.cut(self.held_out, starts[rows], self.horizon)
        owner = np.searchsorted(self.held_out.bounds[:, 1], starts[rows], side="right")
        return torch.from_numpy(self.normaliser.normalise(plans)), owner


Lesson = Pool | Callable[[torch.Generator], Tensor]


def fitted(network: nn.Module, lesson: Lesson, file: Path, label: str, **options) -> None:
    """Train a network to the end, with checkpoints.

    Args:
        network: changed in place, not written.
        lesson: a pool for `extraction.fit`, or a loss for `training.train`.
        file: what the recipe will write; the checkpoint has its name.
        label: of the progress bar.
        options: of the fit or the training.
    """
    fit = extraction.fit if isinstance(lesson, Pool) else training.train
    checkpoint = store.checkpoints(file.parent) / file.name
    training.finish(fit(network, lesson, **options, checkpoint=checkpoint), label)


def recorded(read: Callable[[str], Trajectories], path: str) -> tuple[str, str]:
    """Digest and full path of a data file as it is now, for a recipe of it."""
    path = str(Path(path).expanduser())
    return trajectories.digest(read(path)), path


def keep(recipe, found: Trajectories, folder: Path) -> None:
    """Copy what a recipe's data file holds into `trajectories.hdf5`.

    Raises:
        InputError: it is not what the recipe has the digest of.
    """
    if trajectories.digest(found) != recipe.sha256:
        raise InputError(f"Dataset '{recipe.path}' has changed since this run began.")
    trajectories.write_hdf5(folder / "trajectories.hdf5", found)


def drawn(recipe, draws: torch.Generator) -> list[Tensor]:
    """`plans` training plans of a recipe's `base` and of its `expert`, each [n, H, D]."""
    return [half.split().draw(recipe.plans, draws) for half in (recipe.base, recipe.expert)]


def compared(
    recipe, data: list[Tensor], condition: Condition | None, device: str, n: int | None = None
) -> Comparisons:
    """What a recipe's `base` and `expert` say of n (or the recipe's `plans`) plans of both."""
    pair = [store.obtain(half, device) for half in (recipe.base, recipe.expert)]
    options = {"size": n or recipe.plans, "seed": recipe.seed, "condition": condition}
    return comparisons.algorithm1(*pair, *data, **options)


def load_network(network: nn.Module, file: Path, device: str) -> nn.Module:
    """The network with a file's weights, frozen, on a device."""
    network.load_state_dict(load_file(file))
    return network.to(device).eval().requires_grad_(False)


def load_reward(
    network: nn.Module,
    folder: Path,
    device: str,
    target: Target = "score",
    place: Place = "x_t",
) -> RelativeReward:
    """The reward with the weights of a folder's `reward.safetensors`, frozen, on a device."""
    network = load_network(network, folder / "reward.safetensors", device)
    return RelativeReward(network, target, place)


def load_denoiser(denoiser: Denoiser, folder: Path, device: str) -> Denoiser:
    """The model with the weights of a folder's `denoiser.safetensors`, frozen, on a device."""
    load_network(denoiser.network, folder / "denoiser.safetensors", device)
    return denoiser
