"""How much of a difference of two models no reward can follow: the rotation in its Jacobian.

A gradient's Jacobian is symmetric. What is antisymmetric in the difference field's own turns it in
circles, and the share of the Jacobian's energy that it holds is measured at points, exactly.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from rrlib.errors import check_one_of
from rrlib.estimators.levels import check_told, of_rows
from rrlib.method.checks.numbers import check_step
from rrlib.method.checks.pairs import check_known
from rrlib.method.comparisons import Condition, aligned
from rrlib.method.denoisers import Denoiser
from rrlib.method.pools import Place


def rotational_share(jacobians: Tensor) -> Tensor:
    """Energy of the antisymmetric half over the whole energy, [], of Jacobians [N, d, d].

    0 for a gradient, 1 for a pure rotation, about 1/2 if the entries have nothing to do with each
    other.

    >>> turn = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]])
    >>> rotational_share(turn), rotational_share(turn + 3 * torch.eye(2))
    (tensor(1.), tensor(0.1000))
    """
    turning = (jacobians - jacobians.mT) / 2
    return turning.square().sum() / jacobians.square().sum()


def difference_jacobians(
    base: Denoiser,
    expert: Denoiser,
    x_t: Tensor,
    step: int,
    place: Place,
    *,
    condition: Condition | None = None,
    free: Tensor | None = None,
) -> Tensor:
    """d (expert's mean - base's mean) / dx, [B, n, n].

    Args:
        base, expert: models of one space, read at the base's levels; of those that are told a
            condition, a row of it for each x_t.
        x_t: noised samples, [B, ...]; of what the models are given they hold the values.
        step: t, one that both models know.
        place: x is "x_t", or "mu_base" (the chain rule turns one into the other).
        condition: gives both models a part of each x_t, see `comparisons.algorithm1`.
        free: bool [...], the numbers of a sample that can move, n of them; None takes all.

    Raises:
        InputError: a `step` that not both models know, another place than there are, or models of
            no common level.

    >>> import rrlib
    >>> scheduler = rrlib.cosine_scheduler(20, clip=False)
    >>> models = [rrlib.Denoiser(lambda x, t, a=a: a * x, scheduler) for a in (0.5, 0.6)]
    >>> jacobians = rrlib.difference_jacobians(*models, torch.zeros(2, 3), 10, "x_t")
    >>> jacobians.shape, float(rrlib.rotational_share(jacobians))
    (torch.Size([2, 3, 3]), 0.0)
    """
    expert = aligned(base, expert)
    for name, model in (("base", base), ("expert", expert)):
        check_told(name, model, len(x_t))
    check_one_of("place", place, Place)
    check_step("step", step, base.steps)
    check_known("step", step, expert)
    t = torch.tensor([step], device=x_t.device)
    moving = torch.ones_like(x_t[0], dtype=torch.bool) if free is None else free.to(x_t.device)
    numbers = moving.flatten().nonzero().squeeze(1)

    def means(x: Tensor, row: Tensor) -> Tensor:
        """Both models' means of one sample [...], [2, n] of the numbers that can move."""
        x = x[None]
        models: Sequence[Denoiser] = [of_rows(model, row[None]) for model in (base, expert)]
        if condition:
            x, models = condition(x, x, *models)
        return torch.stack([model.mean(x, t).flatten()[numbers] for model in models])

    rows = torch.arange(len(x_t), device=x_t.device)
    found = vmap(jacrev(means, chunk_size=512))(x_t, rows)
    found = found.flatten(3)[..., numbers]  # [B, 2, n, n]
    mine, other = found.unbind(1)
    if place == "x_t":
        return other - mine
    return torch.linalg.solve(mine, other - mine, left=False)
