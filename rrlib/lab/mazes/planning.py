"""Recipes of Maze2D: a reward for planning, of plans that begin where the ball is."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rrlib import training
from rrlib.lab import costs, recipes, store
from rrlib.lab.mazes.experiments import MazeExperiment
from rrlib.lab.mazes.presets import Sizes
from rrlib.lab.mazes.recipes import MazeDiffuser
from rrlib.mazes import driving
from rrlib.mazes.world import ACTION, OBSERVATION
from rrlib.method import extraction
from rrlib.method.comparisons import Comparisons
from rrlib.method.rewards import RelativeReward
from rrlib.plans.conditioning import first_given
from rrlib.plans.rewards import StartReward

AT_ONCE = 1_000  # plans that are drawn together


@dataclass(frozen=True)
class MazePlanningPool:
    """Comparisons of a base and an expert that are told where a plan begins.

    So they plan: `MazePool` compares them on plans that are noised throughout. The plans are half
    the base's and half the expert's: of their data (Algorithm 1), and drawn by the models
    themselves from where episodes begin (as Algorithm 2 draws). A window of data is rarely one
    that begins at rest, and a ball that waits for a plan is.

    They are not kept, see `store`.

    Attributes:
        plans: of the data of each.
        drawn: by each model.

    Raises:
        InputError: they would take more memory than there is, or months.
    """

    base: MazeDiffuser
    expert: MazeDiffuser
    plans: int = 8_000
    drawn: int = 4_000
    seed: int = 0

    def __post_init__(self) -> None:
        costs.check_pool(self._compared, self.base.horizon, OBSERVATION + ACTION)

    @property
    def _compared(self) -> int:
        return 2 * (self.plans + self.drawn)

    def load(self, folder: Path, device: str) -> Comparisons:
        """Let both models draw, then ask both."""
        data = recipes.drawn(self, training.stream(self.seed, "data", device))
        pair = {"base": self.base, "expert": self.expert}
        own = [self._own(half, f"drawn by {name}", device) for name, half in pair.items()]
        plans = [torch.cat(both) for both in zip(data, own, strict=True)]
        return recipes.compared(self, plans, first_given(OBSERVATION), device, self._compared)

    def _own(self, half: MazeDiffuser, use: str, device: str) -> Tensor:
        """Plans [drawn, H, 6] of a model from where the base's training episodes begin."""
        seen = self.base.split().train
        draws = training.stream(self.seed, use, device)
        states = seen.observations[seen.bounds[:, 0]]
        rows = torch.randint(len(states), (self.drawn,), generator=draws, device=device)
        starts = driving.observed(half.split().normaliser, states[rows.cpu().numpy()]).to(device)
        model, horizon = store.obtain(half, device), half.horizon
        parts = starts.split(AT_ONCE)
        return torch.cat([driving.plans_from(model, one, horizon, draws) for one in parts])


@dataclass(frozen=True)
class MazePlanningReward:
    """rho of plans by where they begin (`StartReward`), by Algorithm 1.

    Raises:
        InputError: the fit would take months.
    """

    pool: MazePlanningPool
    hidden: tuple[int, ...] = (512, 256, 128)
    average: int = 4
    steps: int = 3_000
    batch: int = 256
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        row = self.pool.base.horizon // self.average
        each = costs.perceptron_step(self.batch, row, OBSERVATION + ACTION, max(self.hidden), 0)
        costs.check_training(each, self.steps, batch=self.batch)

    def make(self, folder: Path, device: str) -> None:
        """Fit the reward, write `reward.safetensors`."""
        pool = store.obtain(self.pool, device).pool("mean", "mu_base")
        network, file = self.blank().to(device), folder / "reward.safetensors"
        options = {**training.options(self), "batch": self.batch}
        recipes.fitted(network, pool, file, f"reward {self.pool.base.data.maze}", **options)
        save_file(network.state_dict(), file)

    def load(self, folder: Path, device: str) -> RelativeReward:
        """The fitted reward."""
        return recipes.load_reward(self.blank(), folder, device, "mean", "mu_base")

    def blank(self) -> StartReward:
        """The network before training."""
        base = self.pool.base
        unit = extraction.displacement_units(base.blank("cpu"), "mean")
        torch.manual_seed(self.seed)  # after `blank`, which sets a seed of its own
        place = {"observation": OBSERVATION, "positions": (ACTION, ACTION + 1)}
        shape = {"hidden": self.hidden, "average": self.average}
        return StartReward(OBSERVATION + ACTION, base.horizon, unit, **place, **shape)


def reward_for(e: MazeExperiment, size: Sizes) -> MazePlanningReward:
    """The planning reward of an experiment's pair, in a chapter's sizes and reward steps."""
    steps, batch = e.rewards.steps, size.reward_batch
    read = steps * batch  # no more plans than a fit draws; one of its own is read 150 times
    plans, drawn = min(size.plans, read), min(size.drawn, max(read // 150, 1))
    pool = MazePlanningPool(e.base, e.expert, plans, drawn, e.rewards.seeds[0])
    fit = {"batch": batch, "learning_rate": size.reward_rate, "seed": e.rewards.seeds[0]}
    shape = {"hidden": size.planning, "average": size.average}
    return MazePlanningReward(pool, steps=steps, **shape, **fit)
