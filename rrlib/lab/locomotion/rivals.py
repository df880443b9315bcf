"""Robots for those who compare ways to a log ratio: one small pair, and episodes it never saw."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from rrlib.estimators.levels import Estimate
from rrlib.lab import store
from rrlib.lab.locomotion.experiments import LocomotionExperiment, experiments
from rrlib.lab.locomotion.recipes import LocomotionDiffuser
from rrlib.method.denoisers import Denoiser
from rrlib.plans import trajectories
from rrlib.plans.conditioning import given

FRESH_SEED = 1_000  # added to the seed of the data that a diffuser learned from


def pair(name: str = "hopper", seed: int = 0) -> LocomotionExperiment:
    """The pair of chapter 11 in the sizes of the quick profile, whatever the profile."""
    sizes = {"transitions": 40_000, "size": "small", "diffuser_steps": 8_000, "n_seeds": 1}
    data = {"base_kind": "medium-replay", "base_path": "", "expert_path": ""}
    asked = SimpleNamespace(environment=(name,), seed=seed, **sizes, **data)
    (found,) = experiments(asked, 3_000)
    return found


@dataclass(frozen=True, eq=False)
class Episodes:
    """Plans cut from episodes that nothing was trained on.

    Attributes:
        plans: normalised, the same number of each episode, [n, H, D].
        owner: the episode of each, [n].
        returns: of the episodes, [E].
    """

    plans: Tensor
    owner: np.ndarray
    returns: np.ndarray

    def means(self, values: np.ndarray) -> np.ndarray:
        """Mean of the plans' values [n] in each episode, [E]."""
        return np.array([values[self.owner == e].mean() for e in range(len(self.returns))])


def fresh(diffuser: LocomotionDiffuser, transitions: int, each: int) -> Episodes:
    """New episodes of the kind that a diffuser learned, `each` plans of every one that has them.

    Args:
        diffuser: base or expert.
        transitions: at least so many, from the same policies with another seed.
        each: plans of an episode, spread evenly from its start to its end.
    """
    data = store.obtain(
        replace(diffuser.data, transitions=transitions, seed=diffuser.data.seed + FRESH_SEED)
    )
    long = [(a, b) for a, b in data.bounds if b - a >= diffuser.horizon + each]
    starts = [np.linspace(a, b - diffuser.horizon, each).astype(int) for a, b in long]
    cut = trajectories.cut(data, np.concatenate(starts), diffuser.horizon)
    plans = torch.from_numpy(diffuser.normaliser.normalise(cut))
    returns = np.array([data.rewards[a:b].sum() for a, b in long])
    return Episodes(plans, np.repeat(np.arange(len(long)), each), returns)


def numbers(
    way: Callable[..., Estimate], base: Denoiser, expert: Denoiser, plans: Tensor, width: int
) -> np.ndarray:
    """What a way says of plans [n, H, D] whose first observation both planners are given, [n].

    Args:
        way: such as `rrlib.elbo_difference`; asked about one plan at a time, since what is given
            differs.
        base, expert: planners.
        plans: normalised.
        width: numbers of an observation.
    """
    found = []
    for x in plans.split(1):
        told = [given(model, x[:, 0, -width:]) for model in (base, expert)]
        found.append(way(*told, x).value)
    return torch.cat(found).cpu().numpy()
