"""Forty rewards of one maze, eight goals and five seeds, beside Algorithm 1 as printed.

Both sides have the book's own diffusers of a maze. Ours asks them once for a pool for each goal and
fits five rewards as one; the printed algorithm asks them in every step of every reward. It is run
with half and with all of our number of steps, a batch at once, until its reward leaves no more of
the held-out difference open than ours do. What it takes sample by sample, as it is written, is
extrapolated from the time of a sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from rrlib import training
from rrlib.lab import store
from rrlib.lab.mazes import experiments
from rrlib.method import comparisons, extraction
from rrlib.method.pools import Pool

from . import models
from .timing import processor_seconds, seconds

SEEDS = 5  # of a goal; all eight goals cost alike, on both sides
FEW = 4  # samples that are timed one by one


@dataclass(frozen=True)
class Forty:
    """What was found.

    Attributes:
        ratio: processor time of forty rewards by the printed algorithm, sample by sample, over
            ours.
        batched: the same if it asks for a batch at once.
        error: share of the held-out difference that ours leave open, mean of the seeds.
        reached: the printed algorithm's, after the steps that count here.
        steps: of it.
        equal: whether it got as far as ours; if not, the ratios are lower bounds.
    """

    ratio: float
    batched: float
    error: float
    reached: float
    steps: int
    equal: bool


class Case:
    """A pair of the quick profile, its training plans, and a held-out pool."""

    def __init__(self, chosen: SimpleNamespace, steps: int, held_out: int):
        (self.e,) = experiments.experiments(chosen, SEEDS, steps)
        self.recipe, halves = self.e.rewards, (self.e.base, self.e.expert)
        self.pair = [store.obtain(half) for half in halves]
        draws = training.stream(1, "data")
        self.plans = [half.split().draw(self.recipe.pool.plans, draws) for half in halves]
        fresh = [half.split().held_out_plans(held_out, 0)[0] for half in halves]
        self.held_out = self.pool(fresh, held_out, seed=7)

    def pool(self, plans: list[torch.Tensor], size: int, seed: int) -> Pool:
        """Comparisons of some plans, cut for the networks."""
        found = comparisons.algorithm1(*self.pair, *plans, size=size, seed=seed)
        return found.pool("mean", "mu_base").cut(self.recipe.window)

    def error(self, network: nn.Module) -> float:
        """Share of the held-out difference that a reward leaves open, mean over t."""
        explained = extraction.explained(network, self.held_out, self.e.base.diffusion_steps)
        return 1 - float(np.nanmean(explained.numpy()))

    def printed(self, network: nn.Module, steps: int) -> Iterator[training.Progress]:
        """Algorithm 1 as printed, with what all fits here have: weights, annealing, average."""
        recipe = self.recipe
        scale = self.pool(self.plans, 1_000, seed=3).scale(self.e.base.diffusion_steps)
        weights = extraction.step_weights(scale, network.unit)

        def loss(draws: torch.Generator) -> torch.Tensor:
            x0 = comparisons.drawn(*self.plans, recipe.batch, draws)
            x_t, t = comparisons.noised(self.pair[0], x0, draws)
            found = comparisons.asked(*self.pair, x_t, t).pool("mean", "mu_base")
            return extraction.weighed_loss(network, found.x, t, found.target, weights[t])

        options = {"steps": steps, "learning_rate": recipe.learning_rate, "seed": 0}
        return training.train(network, loss, **options)


def chosen(diffuser_steps: int) -> SimpleNamespace:
    """Parameters of chapter 06 for the U-maze and one goal."""
    return SimpleNamespace(
        maze=("umaze",),
        n_goals=1,
        goal=None,
        seed=0,
        episodes=1_000,
        size="small",
        horizon=32,
        diffuser_steps=diffuser_steps,
        dataset_path="",
    )


def ours(case: Case) -> tuple[float, float]:
    """Seconds of one goal's pool and five rewards, and the error that these leave, mean."""
    begun = processor_seconds()
    pool = case.pool(case.plans, case.recipe.pool.plans, seed=0)
    stack = training.Stack([models.reward("quick", seed) for seed in range(SEEDS)])
    options = {"steps": case.recipe.steps, "learning_rate": case.recipe.learning_rate, "seed": 0}
    for _ in extraction.fit(stack, pool, batch=SEEDS * case.recipe.batch, **options):
        pass
    taken = processor_seconds() - begun
    return taken, float(np.mean([case.error(network) for network in stack.members()]))


def measured(diffuser_steps: int, steps: int, held_out: int = 1_000) -> Forty:
    """Both ways for one goal; `steps` are those of our fit, and the most of the printed one.

    A run of the printed algorithm anneals its rate over the steps that it is given, so a run of
    half as many is tried first.
    """
    case = Case(chosen(diffuser_steps), steps, held_out)
    taken, error = ours(case)
    for allowed in (max(1, steps // 2), steps):
        begun, network = processor_seconds(), models.reward("quick")
        for _ in case.printed(network, allowed):
            pass
        batched, reached = processor_seconds() - begun, case.error(network)
        if reached <= error:
            break
    sample = models.literal_steps("quick", FEW, at_once=False)
    next(sample)
    alone = seconds(partial(next, sample)) / FEW * case.recipe.batch * allowed
    ratios = (SEEDS * literal / taken for literal in (alone, batched))
    return Forty(*ratios, error, reached, allowed, reached <= error)
