"""What a reward of a maze is worth: its map and peak, and how well it tells base from expert."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rrlib import metrics
from rrlib.mazes.world import Maze
from rrlib.method.rewards import RelativeReward
from rrlib.plans.normalisers import Normaliser


@dataclass(frozen=True)
class Sample:
    """Plans of one kind of behaviour that nothing was trained on.

    Attributes:
        plans: normalised, [n, H, 6].
        owner: the trajectory that each was cut from, [n].
        cells: positions in cell units, [n, H, 2].
    """

    plans: Tensor
    owner: np.ndarray
    cells: np.ndarray

    @classmethod
    def of(cls, world: Maze, normaliser: Normaliser, found: tuple[Tensor, np.ndarray]) -> "Sample":
        """From normalised plans and their owners, as `recipes.Split.held_out_plans` gives them."""
        plans, owner = found
        positions = normaliser.denormalise(plans.numpy())[..., 2:4]
        return cls(plans, owner, world.to_cells(positions))


@dataclass(frozen=True)
class Evidence:
    """One reward, judged.

    Attributes:
        heat: reward at t = 0 over positions of base plans, as `metrics.heat_map`.
        peak: its highest bin, cell units.
        distance: from there to the goal, in cells.
        accuracy, auc: base against expert by the reward of a plan, held out.
        correlation: Spearman's, of the map with the log visit ratio of expert and base.
    """

    heat: np.ndarray
    peak: tuple[float, float]
    distance: float
    accuracy: float
    auc: float
    correlation: float

    @property
    def numbers(self) -> dict[str, float]:
        """All but the map and its peak."""
        names = ("distance", "accuracy", "auc", "correlation")
        return {name: getattr(self, name) for name in names}


def plan_rewards(reward: RelativeReward, plans: Tensor) -> np.ndarray:
    """rho of plans [n, H, 6] at t = 0, [n], computed where the reward is."""
    plans = _beside(reward, plans)
    with torch.no_grad():
        t = torch.zeros(len(plans), dtype=torch.long, device=plans.device)
        return reward(plans, t).cpu().numpy()


def _beside(reward: RelativeReward, plans: Tensor) -> Tensor:
    """Plans on the device of a reward's network."""
    return plans.to(next(reward.network.parameters(), plans).device)


def judge(
    world: Maze,
    goal: tuple[float, float],
    reward: RelativeReward,
    base: Sample,
    expert: Sample,
    seed: int,
) -> Evidence:
    """Map, peak, separability and rank correlation of one reward; see `Evidence`.

    Args:
        world: the maze.
        goal: the expert's, cell units.
        reward: at t = 0.
        base, expert: held-out plans.
        seed: of the split of their trajectories for the logistic regression.
    """
    shape = world.walls.shape
    plans = _beside(reward, base.plans)
    steps = reward.per_step(plans[..., 2:], plans[..., :2]).cpu().numpy()
    heat = metrics.heat_map(base.cells.reshape(-1, 2), steps.ravel(), shape)
    peak = metrics.peak(heat)
    visits = metrics.log_visit_ratio(base.cells.reshape(-1, 2), expert.cells.reshape(-1, 2), shape)
    told = metrics.separability(
        plan_rewards(reward, base.plans),
        plan_rewards(reward, expert.plans),
        base.owner,
        expert.owner,
        seed,
    )
    distance = float(np.hypot(*np.subtract(peak, goal)))
    correlation = metrics.rank_correlation(heat, visits)
    return Evidence(heat, peak, distance, told.accuracy, told.auc, correlation)
