"""What an agent is paid for a step: g(s, a, 0) or a rival, bounded so that falling never pays.

A value of steps is a function of rows [n, D], action and observation in their own units; windows of
one step are meant.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch

from rrlib.errors import InputError
from rrlib.estimators import noised
from rrlib.lab.agents.worlds import Moved
from rrlib.method.denoisers import Denoiser
from rrlib.method.networks.sums import per_step
from rrlib.method.rewards import RelativeReward
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.trajectories import Trajectories

Value = Callable[[np.ndarray], np.ndarray]  # rows [n, D] -> [n]
LEVELS = 10  # noise levels at which SMILING's reward asks both models
LOWEST, HIGHEST = 0.5, 0.9  # quantiles, of the base's values and of the expert's


def extracted(reward: RelativeReward, normaliser: Normaliser) -> Value:
    """g at t = 0 of a reward of windows of one step; of a discriminator, its logit."""

    @torch.no_grad()
    def value(rows: np.ndarray) -> np.ndarray:
        plans = torch.from_numpy(normaliser.normalise(rows.astype(np.float32)))[:, None]
        return per_step(reward.network, plans)[:, 0].numpy()

    return value


def smiling(base: Denoiser, expert: Denoiser, normaliser: Normaliser, seed: int) -> Value:
    """SMILING's reward: the base's squared noise error less the expert's, means over noise levels.

    Each call draws other noise, as theirs does. Theirs is of states, and its base is the learner.
    """
    calls = count(1_000_003 * seed)

    def value(rows: np.ndarray) -> np.ndarray:
        plans = torch.from_numpy(normaliser.normalise(rows.astype(np.float32)))[:, None]
        options = {"weights": "unweighted", "steps": LEVELS, "probes": 1, "batch": 8192}
        with torch.no_grad():
            found = noised.elbo_difference(base, expert, plans, **options, seed=next(calls))
        return found.value.numpy()

    return value


@dataclass(frozen=True)
class Payment:
    """A value of steps as wages: cut off below and above, moved and scaled.

    A reward that is fitted to gradients has no level of its own, and a log ratio is negative where
    the base is at home. Where an episode can end early both matter: the steps after the end count
    nothing, so an agent that is paid less than nothing for a step does best to fall at once. The
    way out is an absorbing state: after the fall the robot lies there for good, as the base often
    did and the expert never. That state is worth no more than the worst step, `low`. Moved by that,
    it is worth 0, and so is all that an agent gets after an end.

    Attributes:
        value: of steps.
        low, high: where it is cut off, in its own units.
        unit: what is paid 1, in the same.
        moved: whether `low` is paid 0.
    """

    value: Value
    low: float
    high: float
    unit: float
    moved: bool = True

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Wages of rows [n, D], [n]."""
        found = np.clip(self.value(rows), self.low, self.high)
        return (found - self.low if self.moved else found) / self.unit


def payment(
    value: Value, base: Trajectories, expert: Trajectories, moved: bool = True, most: int = 5_000
) -> Payment:
    """Wages by which the expert earns 1 per step on average.

    Args:
        value: of steps.
        base, expert: what they do; the worse half of the base's steps earns nothing, the best
            tenth of the expert's all alike, since values beyond the data mean nothing.
        moved: whether the level is moved; without, a value is only cut off and scaled.
        most: steps that are looked at of each, spread evenly.

    Raises:
        InputError: a value that does not tell them apart.
    """
    values = [value(some_rows(data, most)) for data in (base, expert)]
    low, high = np.quantile(values[0], LOWEST), np.quantile(values[1], HIGHEST)
    unit = float(np.clip(values[1], low, high).mean() - low) if high > low else 0.0
    if unit <= 0:
        raise InputError("value: one that ranks the base's steps above the expert's is no reward.")
    return Payment(value, float(low), float(high), unit, moved)


def wages(moved: Moved, payment: Payment | None) -> np.ndarray:
    """What n copies of a world earn by a step, [n]; the world's own reward where nobody pays."""
    n, k, width = moved.rows.shape
    if payment is None:
        return moved.own / k
    return payment(moved.rows.reshape(-1, width)).reshape(n, k).mean(1)


def some_rows(data: Trajectories, most: int) -> np.ndarray:
    """At most so many steps of data, spread evenly, as rows [n, D]."""
    rows = np.concatenate([data.actions, data.observations], 1)
    return rows[:: -(-len(rows) // most)]
