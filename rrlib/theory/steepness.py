"""How steep scores of one-dimensional data are: the largest |d score / dx|, by differentiation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rrlib.theory import sde
from rrlib.theory.examples import real


def of_mixture(
    process: sde.OU | sde.VP,
    weights: Sequence[float],
    means: Sequence[float],
    variances: Sequence[float],
    t: Tensor,
) -> float:
    """Of a mixture of Gaussians, noised by `process` until t."""
    data = sde.GaussianMixture(real(weights), real(means)[:, None], real(variances)[:, None, None])
    x = torch.linspace(-30, 30, 4001, dtype=torch.float64)[:, None].requires_grad_()
    return float(torch.autograd.grad(process.mixture_score(x, t, data).sum(), x)[0].abs().max())


def of_uniform(process: sde.OU | sde.VP, t: Tensor) -> float:
    """Of data uniform on [-1, 1], whose noised density is a difference of two Phi."""
    shrink, width = process.shrink(t), process.variance(t).sqrt()
    x = torch.linspace(0, 1, 4001).double()[:, None] * (1 + 40 * width)
    x.requires_grad_()
    low, high = (torch.special.log_ndtr((s * shrink - x) / width) for s in (-1, 1))
    log_density = high + torch.log1p(-(low - high).exp())
    (score,) = torch.autograd.grad(log_density.sum(), x, create_graph=True)
    return float(torch.autograd.grad(score.sum(), x)[0].abs().max())
