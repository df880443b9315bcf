"""Gaussians of one number, tilted by each other: what weighted guidance should sample."""

from collections.abc import Mapping
from typing import NamedTuple

from diffusers import DDPMScheduler
from torch import Tensor, nn

from rrlib.method.denoisers import Denoiser
from rrlib.method.noise.precision import beside


class Law(NamedTuple):
    """A Gaussian of one number."""

    mean: float
    variance: float

    def denoiser(self, scheduler: DDPMScheduler) -> Denoiser:
        """Its exact diffusion model, of a scheduler whose network predicts x0 and does not clip."""
        table = scheduler.alphas_cumprod

        def posterior_mean(x: Tensor, t: Tensor) -> Tensor:
            abar = beside(table.to(x)[t], x)
            gain = abar.sqrt() * self.variance / (abar * self.variance + 1 - abar)
            return self.mean + gain * (x - abar.sqrt() * self.mean)

        return Denoiser(posterior_mean, scheduler)


class LogRatio(nn.Module):
    """log of one noised law over another's at (x [B, 1], t [B]), up to a constant per t, [B].

    Args:
        base, expert: the laws.
        scheduler: whose levels t counts.
    """

    def __init__(self, base: Law, expert: Law, scheduler: DDPMScheduler):
        super().__init__()
        self.laws, self.table = (base, expert), scheduler.alphas_cumprod

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The log ratio."""
        abar = beside(self.table.to(x)[t], x)
        base, expert = (
            -0.5 * ((x - abar.sqrt() * law.mean) ** 2 / (abar * law.variance + 1 - abar))
            for law in self.laws
        )
        return (expert - base).flatten(1).sum(1)


def product(base: Law, powers: Mapping[Law, float]) -> Law:
    """The law of p1 prod_k (p_k / p1)^(w_k), p1 the base's.

    >>> product(Law(0.0, 1.0), {Law(1.0, 0.25): 2.0})  # p1^-1 p2^2
    Law(mean=1.1428571428571428, variance=0.14285714285714285)
    """
    factors = [(base, 1 - sum(powers.values())), *powers.items()]
    precision = sum(power / law.variance for law, power in factors)
    mean = sum(power * law.mean / law.variance for law, power in factors) / precision
    return Law(mean, 1 / precision)
