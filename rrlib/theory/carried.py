"""A difference of scores, carried to the base's mean: how much of it is no gradient there."""

from itertools import pairwise

import numpy as np
import torch

from rrlib.method.noise.schedulers import cosine_scheduler
from rrlib.theory import examples, fields, sde


def by_lyapunov(stretch: float, total: int) -> float:
    """Largest share over t of the energy that is no gradient, under the base's data.

    Of two Gaussians of which the expert's is the base's, turned by 45 degrees; in closed form.

    Args:
        stretch: long axis over short.
        total: steps of the cosine schedule.
    """
    table, shares = cosine_scheduler(total, clip=False).alphas_cumprod.double().numpy(), []
    for before, now in pairwise(table):
        one, two = (
            np.linalg.inv(now * examples.tilted(angle, 1, 1 / stretch) + (1 - now) * np.eye(2))
            for angle in (0, np.pi / 4)
        )
        slope = (np.eye(2) - (1 - now / before) * one) / np.sqrt(now / before)
        law = slope @ np.linalg.inv(one) @ slope
        carried = (one - two) @ np.linalg.inv(slope)
        rest = carried - fields.gaussian_projection(carried, law)
        shares.append(np.trace(rest @ law @ rest.T) / np.trace(carried @ law @ carried.T))
    return max(shares)


def by_grid(base: sde.GaussianMixture, expert: sde.GaussianMixture, total: int, step: int) -> float:
    """The same share of two mixtures in the plane at one step, under Algorithm 1's data."""
    before, now = cosine_scheduler(total, clip=False).alphas_cumprod.double()[step - 1 : step + 1]
    both = sde.halves(base, expert)

    def density(y: np.ndarray) -> np.ndarray:
        x, slope = sde.preimage(base, torch.from_numpy(y), now, before)
        return (both.log_prob(x, now.expand(len(x))).exp() / torch.linalg.det(slope)).numpy()

    g = fields.edge_grid(density, np.linspace(-4, 4, 81))
    x, _ = sde.preimage(base, torch.from_numpy(g.points), now, before)
    at = now.expand(len(x))
    d = g.carry((expert.score(x, at) - base.score(x, at)).numpy())
    return 1 - (g.norm(g.project(d)[1]) / g.norm(d)) ** 2
