"""Recipes of locomotion: rewards, their rival, and rollouts that they steer."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor

from rrlib import training
from rrlib.estimators import discriminator
from rrlib.lab import costs, recipes, store
from rrlib.lab.locomotion.recipes import RATES, LocomotionDiffuser, check_training
from rrlib.lab.recipes import Split
from rrlib.locomotion import rollouts
from rrlib.locomotion import world as locomotion
from rrlib.method import extraction
from rrlib.method import guidance as steering
from rrlib.method.comparisons import Comparisons
from rrlib.method.denoisers import Denoiser
from rrlib.method.networks.sums import Rescaled
from rrlib.method.pools import Place, Pool, Target
from rrlib.method.rewards import RelativeReward
from rrlib.plans.conditioning import first_given
from rrlib.plans.perceptron import PlanPotential
from rrlib.plans.rewards import ConditionalReward, PlanValue, WindowReward
from rrlib.plans.trajectories import Trajectories


@dataclass(frozen=True)
class LocomotionPool:
    """Algorithm 1's comparisons of two planners, for all rewards of the pair.

    They are not kept, see `store`.
    A steered robot comes where neither set of data has been, and there the reward must still say
    which way the expert would go. So what is given to the planners is spread beyond the data, and
    rollouts may be compared on, too.

    Attributes:
        base, expert: the planners.
        plans: of each that are drawn, and comparisons.
        spread: given observations get normal noise of a deviation drawn from 0 to this, in the
            normaliser's units, in which data have 1/2; 0 leaves them as they are.
        visited: rollouts; what they did makes a third of the plans, none if there are none.

    Raises:
        InputError: they would take more memory than there is.
    """

    base: LocomotionDiffuser
    expert: LocomotionDiffuser
    plans: int = 20_000
    spread: float = 0.5
    seed: int = 0
    visited: "tuple[LocomotionRollouts, ...]" = ()

    def __post_init__(self) -> None:
        costs.check_pool(self.plans, self.base.horizon, self.base.environment.width)

    def load(self, folder: Path, device: str) -> Comparisons:
        """Ask both models."""
        draws = training.stream(self.seed, "data", device)
        data = recipes.drawn(self, draws)
        width = self.base.environment.observation
        for x0 in data:
            deviation = self.spread * torch.rand(len(x0), 1, generator=draws, device=device)
            noise = torch.randn(len(x0), width, generator=draws, device=device)
            x0[:, 0, -width:] += deviation * noise
        if self.visited:
            done = [run.split(device) for run in self.visited]
            n = self.plans // (2 * len(done))
            data = [torch.cat([x0, *(run.draw(n, draws) for run in done)]) for x0 in data]
        return recipes.compared(self, data, first_given(width), device)


@dataclass(frozen=True)
class LocomotionReward:
    """rho of two planners by Algorithm 1.

    Attributes:
        pool: what it is fitted to.
        hidden, blocks: of the potential (`perceptron.PlanPotential`).
        scalar: a plain perceptron of as many layers and one output instead.
        channels: per resolution, of Diffuser's value function (Table 2) instead; empty for none.
        first_action: weight of the first action's squared error, as in the planners' own loss.

    Raises:
        InputError: the fit would take more memory than there is, or months.
    """

    pool: LocomotionPool
    hidden: int = 512
    blocks: int = 2
    scalar: bool = False
    channels: tuple[int, ...] = ()
    first_action: float = 10.0
    target: Target = "mean"
    place: Place = "mu_base"
    steps: int = 2_000
    batch: int = 256
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_training(self.pool.base.environment, self.pool.base.horizon, self)

    def make(self, folder: Path, device: str) -> None:
        """Fit the reward, write `reward.safetensors`."""
        found, base = store.obtain(self.pool, device), self.pool.base
        pool = found.pool(self.target, self.place)
        scale = torch.ones_like(pool.x[0])
        scale[0, : -base.environment.observation] = self.first_action**0.5
        network, file = self.blank().to(device), folder / "reward.safetensors"
        pool = Pool(pool.x / scale, pool.t, pool.target * scale)
        options = {**training.options(self), "batch": self.batch}
        label = f"reward {base.environment.name}"
        recipes.fitted(Rescaled(network, scale), pool, file, label, **options)
        save_file(network.state_dict(), file)

    def load(self, folder: Path, device: str) -> RelativeReward:
        """The fitted reward."""
        return recipes.load_reward(self.blank(), folder, device, self.target, self.place)

    def blank(self) -> ConditionalReward:
        """The network before training."""
        unit = extraction.displacement_units(self.pool.base.blank("cpu"), self.target)
        return _value(self.pool.base, unit, self)


@dataclass(frozen=True)
class LocomotionDiscriminator:
    """The rival: the same network tells the expert's noised plans from the base's.

    Its logit estimates the log ratio of the densities at x_t, from data alone.

    Raises:
        InputError: the fit would take more memory than there is, or months.
    """

    base: LocomotionDiffuser
    expert: LocomotionDiffuser
    hidden: int = 512
    blocks: int = 2
    scalar: bool = False
    channels: tuple[int, ...] = ()
    plans: int = 20_000  # of either kind
    steps: int = 2_000
    batch: int = 256
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        world = self.base.environment
        check_training(world, self.base.horizon, self)
        costs.check_pool(self.plans, self.base.horizon, world.width)

    def make(self, folder: Path, device: str) -> None:
        """Train the network, write `reward.safetensors`."""
        network, base = self.blank().to(device), self.base.blank(device)
        data = recipes.drawn(self, training.stream(self.seed, "data", device))
        given = first_given(self.base.environment.observation)
        file, label = folder / "reward.safetensors", f"discriminator {self.base.environment.name}"

        def loss(draws: torch.Generator) -> Tensor:
            return discriminator.discriminator_loss(network, base, *data, self.batch, draws, given)

        recipes.fitted(network, loss, file, label, **training.options(self))
        save_file(network.state_dict(), file)

    def load(self, folder: Path, device: str) -> RelativeReward:
        """Its logit as a reward."""
        return recipes.load_reward(self.blank(), folder, device)

    def blank(self) -> ConditionalReward:
        """The network before training."""
        return _value(self.base, extraction.units(self.base.blank("cpu"), "score"), self)


def _value(base: LocomotionDiffuser, unit: Tensor, like) -> ConditionalReward:
    torch.manual_seed(like.seed)
    width = base.environment.width
    if like.channels:
        network = PlanValue(width, unit, like.channels)
    elif like.scalar:
        network = WindowReward(width, base.horizon, unit, (like.hidden,) * 2 * like.blocks)
    else:
        network = PlanPotential(width, base.horizon, unit, like.hidden, like.blocks)
    return ConditionalReward(network, base.environment.observation)


def as_guidance(**how) -> dict:
    """Settings of rollouts by the names that `guidance.denoise` has for them."""
    names = {"weight": "guidance_scale", "until": "stop_step", "onto": "apply_to"}
    names |= {"denoising": "num_inference_steps"}
    return {names.get(name, name): value for name, value in how.items()}


@dataclass(frozen=True)
class LocomotionRollouts:
    """Episodes of a planner, steered or not.

    Attributes:
        base: the planner.
        guide: what steers it: a reward, a discriminator, or another planner, whose exact difference
            from the base is then added; of two planners the second's from the first; None steers
            not.
        weight, place, onto, until: see `guidance.denoise`; the place need not be the reward's own.
            Of several weights each has `episodes`, from the same starts, those of the first before
            those of the second; they share their batches, which costs little more than one.
        denoising: steps of a plan's sampling, see `guidance.denoise`; None takes all.
        executed, episodes, steps, version, seed: see `rollouts.play`.
        workers: processes; the result does not depend on them.

    Raises:
        InputError: the episodes would take more memory than there is, or months.
    """

    base: LocomotionDiffuser
    guide: (
        LocomotionReward
        | LocomotionDiscriminator
        | LocomotionDiffuser
        | tuple[LocomotionDiffuser, LocomotionDiffuser]
        | None
    ) = None
    weight: float | tuple[float, ...] = 1.0
    place: Place | None = None
    onto: steering.ApplyTo = "mean"
    until: int = 0
    denoising: int | None = None
    executed: int = 1
    episodes: int = 16
    steps: int = locomotion.HORIZON
    version: int = 5
    seed: int = 0
    workers: int = field(default=1, compare=False)

    def __post_init__(self) -> None:
        number, world = costs.number, self.base.environment
        played = number(self._episodes) * number(self.steps)
        calls = number(self.denoising or self.base.diffusion_steps)
        # At the sizes of "small" and "medium".
        network = calls * (number(self.steps) * 0.005 + played * 5e6 / 30e9)
        costs.check(
            32 * played * (world.width + 2) / 1e9,
            (played / RATES[world.name] + network) / 3600,
            episodes=self._episodes,
            steps=self.steps,
        )

    @property
    def _episodes(self) -> int:
        return self.episodes * (len(self.weight) if isinstance(self.weight, tuple) else 1)

    def make(self, folder: Path, device: str) -> None:
        """Play and write `returns.safetensors`."""
        made = self.play(device)
        starts, stops = made.bounds.T
        returns = np.add.reduceat(made.rewards, starts, dtype=np.float64)
        save_arrays({"returns": returns, "lengths": stops - starts}, folder / "returns.safetensors")

    def load(self, folder: Path, device: str) -> dict[str, np.ndarray]:
        """`returns` (sums of the raw rewards) and `lengths` of the episodes, [n]."""
        return load_arrays(folder / "returns.safetensors")

    def play(self, device: str = "cpu") -> Trajectories:
        """The episodes themselves, simulated anew."""
        rollouts.check(self.episodes, self.steps, self.executed, self.workers)
        names = "steps", "executed", "workers", "version"
        options = {name: getattr(self, name) for name in names} | {"starts": self.episodes}
        world, plan = self.base.environment, self.planner(device)
        return rollouts.play(world, plan, self._episodes, self.seed, **options)

    def split(self, device: str = "cpu") -> Split:
        """The plans that the episodes carried out, none held out; simulates anew."""
        made = self.play(device)
        return Split(made, made, self.base.normaliser, self.base.horizon)

    def planner(self, device: str = "cpu") -> rollouts.Planner:
        """What makes the plans."""
        weight = self.weight
        if isinstance(weight, tuple):
            weight = torch.tensor(weight).repeat_interleave(self.episodes)
        named = self._steered(device)
        return rollouts.planner(
            store.obtain(self.base, device),
            self.base.normaliser,
            self.base.environment,
            self.base.horizon,
            training.stream(self.seed, "plans", device),
            **named,
            force=True,
            place=self.place,
            **as_guidance(
                weight=weight, onto=self.onto, until=self.until, denoising=self.denoising
            ),
        )

    def _steered(self, device: str) -> dict[str, object]:
        """What `rollouts.planner` takes of the guide."""
        if isinstance(self.guide, tuple):
            against, expert = (store.obtain(planner, device) for planner in self.guide)
            return {"expert": expert, "against": against}
        guide = store.obtain(self.guide, device) if self.guide else None
        return {"expert" if isinstance(guide, Denoiser) else "reward": guide}
