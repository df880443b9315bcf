"""How much of a difference of two models no reward can follow: the rotation in its Jacobian.

A gradient's Jacobian is symmetric. What is antisymmetric in the difference field's own turns it in
circles, and the share of the Jacobian's energy that it holds is measured at points, exactly.
"""

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from rrlib.comparisons import check_schedules
from rrlib.denoisers import Denoiser, given, held
from rrlib.errors import InputError
from rrlib.rewards import Place


def rotational_share(jacobians: Tensor) -> Tensor:
    """Energy of the antisymmetric half over the whole energy, [], of Jacobians [N, d, d].

    0 for a gradient, 1 for a pure rotation, about 1/2 if the entries have nothing to do with each
    other.
    """
    turning = (jacobians - jacobians.mT) / 2
    return turning.square().sum() / jacobians.square().sum()


def difference_jacobians(
    base: Denoiser, expert: Denoiser, x_t: Tensor, step: int, first: Tensor, place: Place
) -> Tensor:
    """d (expert's mean - base's mean) / dx at given first observations, [B, n, n].

    n counts the H D numbers of a plan less the do that are given, which cannot move.

    Args:
        base, expert: planners of one schedule.
        x_t: noised plans, [B, H, D].
        step: t.
        first: observations, [B, do].
        place: x is "x_t", or "mu_base" (the chain rule turns one into the other).

    Raises:
        InputError: `step` is no step of the schedule, or models of two schedules.
    """
    check_schedules(base, expert)
    if not 0 <= step < base.steps:
        raise InputError(
            f"step={step} is not allowed: a step from 0 to {base.steps - 1} is needed."
        )
    t = torch.tensor([step], device=x_t.device)
    places = torch.arange(x_t[0].numel(), device=x_t.device).reshape(x_t.shape[1:])
    free = held(places[None], places.new_full((1, first.shape[-1]), -1)).flatten()
    free = free[free >= 0]

    def means(x: Tensor, observed: Tensor) -> Tensor:
        """Both models' means of one plan [H, D], [2, n] of the free numbers."""
        x, observed = held(x[None], observed[None]), observed[None]
        both = (given(model, observed).mean(x, t) for model in (base, expert))
        return torch.stack([mean.flatten()[free] for mean in both])

    found = vmap(jacrev(means))(x_t, first).flatten(3)[..., free]  # [B, 2, n, n]
    mine, other = found.unbind(1)
    if place == "x_t":
        return other - mine
    return torch.linalg.solve(mine, other - mine, left=False)
