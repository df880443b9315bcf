"""Rows of plans: diffuser steps, pools, reward steps, sampling, scoring."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from rrlib.lab.mazes.steps import operations
from rrlib.method import comparisons, guidance, reward_files, rewards

from . import models
from .growth import Growth
from .timing import Against, Call, Row

ROOT = Path(__file__).resolve().parents[2]
REWARDS = ROOT / "results" / "full" / "maze2d-rewards.safetensors"
PRINTED = "Algorithm 1 as printed, sample by sample"
BATCHED = "Algorithm 1 as printed, a batch at once"


def step_of(run) -> Call:
    """The next step of a run that has no end."""
    return partial(next, run)


def diffuser(name: str) -> Row:
    """A training step of a diffuser beside diffusers' own, and beside a matrix product."""
    left, right = models.product(name)
    ours, eager = (step_of(make(name)) for make in (models.diffuser_steps, models.eager_steps))
    product = partial(torch.matmul, left, right)
    bars = {"quick": (">= 2", None), "paper": (None, ">= 0.75")}.get(name, (None, None))
    against = (
        Against("diffusers' UNet1DModel, Adam, EMAModel", eager, bar=bars[0]),
        Against(
            "operations a second of a matrix product",
            product,
            work=operations(product),
            ours=operations(ours),
            bar=bars[1],
        ),
    )
    return Row(f"diffuser_{name}", f"step of a diffuser, {name}", ours, against)


def pool(name: str, size: int = 256, few: int = 4) -> Row:
    """Comparisons of a pair, in batches, beside one by one."""
    sides = models.pair(name)
    data = models.plans(size, models.size_of(name)[1])
    compare = partial(comparisons.algorithm1, *sides, data, data.flip(0), seed=0)
    literal = partial(compare, size=few, batch=1)
    against = Against(PRINTED, literal, work=few, ours=size)
    return Row(f"pool_{name}", f"comparisons, {name}", partial(compare, size=size), (against,))


def reward_step(name: str, few: int = 4) -> Row:
    """A step of a reward's fit from the pool, beside asking both models in every step."""
    batch = models.size_of(name)[0].reward_batch
    one_by_one = models.literal_steps(name, few, at_once=False)
    at_once = models.literal_steps(name, batch, at_once=True)
    against = (
        Against(PRINTED, step_of(one_by_one), work=few, ours=batch),
        Against(BATCHED, step_of(at_once)),
    )
    ours = step_of(models.reward_steps(name))
    return Row(f"reward_{name}", f"step of a reward, {name}", ours, against)


def stacked(name: str, n: int = 40) -> Row:
    """A step of n rewards as one beside n steps."""
    one, ours = (step_of(models.reward_steps(name, stacked=k)) for k in (1, n))
    against = Against(f"{n} steps, one reward each", one, work=1, ours=n)
    return Row(f"stacked_{name}", f"step of {n} rewards stacked, {name}", ours, (against,))


def sampling(name: str, n: int = 64, few: int = 2, steps: int = 10) -> Row:
    """Guided plans, in a batch, beside one by one and beside plans that nothing guides."""
    base, horizon = models.pair(name)[0], models.size_of(name)[1]

    def drawn(count: int, **options) -> None:
        shape = count, horizon, models.WIDTH
        guidance.sample(base, shape, seed=0, num_inference_steps=steps, **options)

    reward = {"reward": models.guide(name)}
    against = (
        Against("the same, plan by plan", partial(_each, few, partial(drawn, 1, **reward)), few, n),
        Against("plans that nothing guides", partial(drawn, n)),
    )
    return Row(f"sampling_{name}", f"guided plans, {name}", partial(drawn, n, **reward), against)


def _each(n: int, call: Call) -> None:
    for _ in range(n):
        call()


def shipped(n: int) -> tuple[rewards.RelativeReward, np.ndarray]:
    """One of the book's rewards of the U-maze, and n plans in its own units, [n, H, D]."""
    found = reward_files.load_rewards(REWARDS)
    reward = next(reward for reward, about in found.values() if about["maze"] == "umaze")
    low, high = (np.array(reward.about[key], np.float32) for key in ("low", "high"))
    shape = n, reward.about["horizon"], len(low)
    return reward, np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)


def scoring(n: int = 10_000, few: int = 20) -> Row:
    """Recorded plans scored in one go beside one by one."""
    reward, recorded = shipped(n)

    def one_by_one() -> None:
        for plan in recorded[:few]:
            reward.score(plan[None])

    against = Against("plan by plan", one_by_one, work=few, ours=n)
    name, ours = "plans scored by a reward of the book", lambda: reward.score(recorded)
    return Row("scoring", name, ours, (against,))


def growths() -> list[Growth]:
    """How steps and samples grow."""

    def diffuser_of(**at: int) -> Callable:
        return step_of(models.diffuser_steps("quick", **at))

    return [
        Growth(
            "diffuser_horizon",
            "step of a diffuser, quick",
            "horizon",
            (32, 64, 128, 256),
            lambda n: diffuser_of(horizon=n),
        ),
        Growth(
            "diffuser_batch",
            "step of a diffuser, quick",
            "batch",
            (8, 16, 32, 64, 128),
            lambda n: diffuser_of(batch=n),
        ),
        Growth(
            "rewards_models",
            "step of rewards stacked, quick",
            "models",
            (1, 5, 10, 20, 40),
            lambda n: step_of(models.reward_steps("quick", stacked=n)),
        ),
    ]
