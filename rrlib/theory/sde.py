"""Gaussian mixtures and linear noising processes in closed form; solvers on shared noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from rrlib.errors import InputError
from rrlib.method.denoisers import Denoiser
from rrlib.method.noise.schedulers import schedule_of


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """A mixture of K Gaussians in d dimensions, which the forward process keeps a mixture.

    With x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps, component k at abar has mean sqrt(abar) m_k and
    covariance abar C_k + (1 - abar) I.

    Attributes:
        weights: [K], positive, summing to 1.
        means: [K, d].
        covariances: [K, d, d], symmetric positive definite.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws of x_0, [n, d]."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        roots = torch.linalg.cholesky(self.covariances)
        draw = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[k] + (roots[k] @ draw[..., None]).squeeze(-1)

    def _components(self, x: Tensor, abar: Tensor) -> tuple[Tensor, Tensor]:
        """log of weight times density [B, K], and each component's score [B, K, d]."""
        values, vectors = torch.linalg.eigh(self.covariances)  # [K, d], [K, d, d]
        abar = abar.reshape(-1, 1, 1)
        variances = abar * values + 1 - abar  # [B, K, d]
        offsets = x[:, None] - abar.sqrt() * self.means  # [B, K, d]
        turned = torch.einsum("bkd,kde->bke", offsets, vectors)
        logs = -0.5 * (turned.square() / variances + (2 * torch.pi * variances).log()).sum(-1)
        scores = -torch.einsum("bke,kde->bkd", turned / variances, vectors)
        return logs + self.weights.log(), scores

    def log_prob(self, x: Tensor, abar: Tensor) -> Tensor:
        """log p_t(x), [B], for x [B, d] and abar [B] (1 is the data, 0 pure noise)."""
        return self._components(x, abar)[0].logsumexp(-1)

    def score(self, x: Tensor, abar: Tensor) -> Tensor:
        """grad log p_t(x), [B, d]: the components' scores weighted by their responsibilities."""
        logs, scores = self._components(x, abar)
        return (logs.softmax(-1)[..., None] * scores).sum(1)

    def hessian(self, x: Tensor, abar: Tensor) -> Tensor:
        """The slope of the score, [B, d, d].

        The components' own slopes -S_k^-1 weighted by their responsibilities, plus the covariance
        of the components' scores under these.
        """
        values, vectors = torch.linalg.eigh(self.covariances)
        variances = abar.reshape(-1, 1, 1) * values + 1 - abar.reshape(-1, 1, 1)  # [B, K, d]
        logs, scores = self._components(x, abar)
        shares = logs.softmax(-1)[..., None]  # [B, K, 1]
        own = torch.einsum("kde,bke,kfe->bdf", vectors, shares / variances, vectors)
        apart = scores - (shares * scores).sum(1, keepdim=True)
        return torch.einsum("bkd,bke->bde", shares * apart, apart) - own

    def denoiser(self, scheduler: DDPMScheduler) -> Denoiser:
        """The exact diffusion model of this mixture."""
        return score_denoiser(self.score, scheduler)


def score_denoiser(score: Callable[[Tensor, Tensor], Tensor], scheduler: DDPMScheduler) -> Denoiser:
    """The diffusion model with a given score: x0 = E[x_0 | x_t] by Tweedie's formula.

    Args:
        score: (x [B, d], abar [B]) -> [B, d].
        scheduler: one whose network predicts x0, and that does not clip it.

    Raises:
        InputError: another scheduler.
    """
    schedule = schedule_of(scheduler)
    if schedule.prediction != "sample" or schedule.clip is not None:
        raise InputError(
            f"scheduler: prediction_type={schedule.prediction!r} with clip_sample="
            f"{schedule.clip is not None} is not allowed: 'sample' without a clip is needed."
        )

    def posterior_mean(x: Tensor, t: Tensor) -> Tensor:
        abar = schedule.tables(x)[0][t]
        noise = 1 - abar[:, None]
        return (x + noise * score(x, abar)) / abar[:, None].sqrt()

    return Denoiser(posterior_mean, scheduler)


def halves(a: GaussianMixture, b: GaussianMixture) -> GaussianMixture:
    """Half a, half b: what Algorithm 1 draws x_0 from."""
    return GaussianMixture(
        torch.cat([a.weights, b.weights]) / 2,
        torch.cat([a.means, b.means]),
        torch.cat([a.covariances, b.covariances]),
    )


def random_mixture(d: int, k: int, generator: torch.Generator) -> GaussianMixture:
    """k Gaussians of equal weight and random shape in d dimensions, float64.

    Means are at distance 1.5 from the origin; covariances have random axes and, along these,
    standard deviations uniform in [0.35, 0.6].
    """
    options = {"generator": generator, "dtype": torch.float64}
    means = torch.nn.functional.normalize(torch.randn(k, d, **options))
    turns = torch.linalg.qr(torch.randn(k, d, d, **options))[0]
    deviations = 0.35 + 0.25 * torch.rand(k, 1, d, **options)
    weights = torch.full((k,), 1 / k, dtype=torch.float64)
    return GaussianMixture(weights, 1.5 * means, (turns * deviations**2) @ turns.mT)


def turned_score(mixture: GaussianMixture, matrix: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """sqrt(abar) A grad log p_t, (x [B, d], abar [B]) -> [B, d]: an error whose effect is known.

    If A [d, d] is antisymmetric, p_t A grad log p_t = A grad p_t has no divergence, so the field is
    orthogonal to every gradient in L2(p_t). If A = I it is the gradient of sqrt(abar) log p_t.
    """
    return lambda x, abar: abar.sqrt()[:, None] * mixture.score(x, abar) @ matrix.T


def preimage(
    mixture: GaussianMixture, y: Tensor, abar: Tensor, before: Tensor
) -> tuple[Tensor, Tensor]:
    """x with mu(x) = y, [B, d], and the slope of mu there, [B, d, d], for the exact model's mean.

    With before = abar_{t-1} < 1, mu = (x + beta grad log p_t) / sqrt(alpha) is the gradient of a
    strictly convex function, so there is one x. Newton's method, no step longer than 1.

    Args:
        mixture: of x_0.
        y: values of the mean, [B, d].
        abar, before: alpha-bar at t and at t - 1, [].

    Raises:
        ArithmeticError: no convergence in 100 steps.
    """
    alpha, unit, abars = abar / before, torch.eye(y.shape[1]).to(y), abar.expand(len(y))
    x = y.clone()
    for _ in range(100):
        slope = (unit + (1 - alpha) * mixture.hessian(x, abars)) / alpha.sqrt()
        miss = (x + (1 - alpha) * mixture.score(x, abars)) / alpha.sqrt() - y
        if miss.abs().max() < 1e-11:
            return x, slope
        step = torch.linalg.solve(slope, miss[..., None]).squeeze(-1)
        x = x - step / step.norm(dim=1, keepdim=True).clamp(min=1)
    raise ArithmeticError(f"mu(x) = y is not solved: {float(miss.abs().max()):.1e} is left")


def log_ratio(base: GaussianMixture, expert: GaussianMixture, x: Tensor, abar: Tensor) -> Tensor:
    """The true relative reward log p2_t(x) - log p1_t(x), [B] (Eq. 10 in closed form)."""
    return expert.log_prob(x, abar) - base.log_prob(x, abar)


@dataclass(frozen=True)
class SDE:
    """dx = drift(x, t) dt + noise(t) dw: additive noise, the same in every direction (Eq. 2).

    Attributes:
        drift: (x [B, d], t []) -> [B, d].
        noise: t [] -> g(t) [].
    """

    drift: Callable[[Tensor, Tensor], Tensor]
    noise: Callable[[Tensor], Tensor]

    def solve(self, start: Tensor, times: Tensor, increments: Tensor) -> Tensor:
        """Euler-Maruyama paths [n + 1, B, d] from `start` [B, d].

        Args:
            start: x at times[0].
            times: [n + 1], increasing.
            increments: of the Brownian motion over each interval, [n, B, d] (see `brownian`).
        """
        path = torch.empty(len(times), *start.shape, dtype=start.dtype)
        path[0] = start
        for k, (t, step) in enumerate(zip(times[:-1], times.diff(), strict=True)):
            path[k + 1] = path[k] + self.drift(path[k], t) * step + self.noise(t) * increments[k]
        return path

    def plus(self, h: Callable[[Tensor, Tensor], Tensor]) -> "SDE":
        """The SDE guided by h: drift + h, the same noise (Eq. 8)."""
        return SDE(lambda x, t: self.drift(x, t) + h(x, t), self.noise)


def brownian(times: Tensor, n: int, d: int, generator: torch.Generator) -> Tensor:
    """Increments of n Brownian motions in R^d over the intervals of `times`, [len - 1, n, d]."""
    draw = torch.randn(len(times) - 1, n, d, generator=generator, dtype=times.dtype)
    return draw * times.diff().sqrt()[:, None, None]


def coarsen(increments: Tensor, factor: int) -> Tensor:
    """The same Brownian motions over intervals `factor` times as long, [n / factor, B, d]."""
    return increments.unflatten(0, (-1, factor)).sum(1)


def coupled(sdes: Sequence[SDE], start: Tensor, times: Tensor, increments: Tensor) -> list[Tensor]:
    """Paths of several SDEs from one start on one Brownian motion (Theorem 4.1's setting)."""
    return [sde.solve(start, times, increments) for sde in sdes]


def euler_law(sde: SDE, grid: Tensor, density: Tensor, times: Tensor) -> Tensor:
    """Density [G] of an Euler-Maruyama path in one dimension at times[-1]: no sampling error.

    Each step is a Gaussian, so the law is carried by the Chapman-Kolmogorov integral, with the
    trapezoidal rule: accurate to all digits while noise * sqrt(step) is no less than the spacing
    of `grid` [G], and while the law is inside the grid.
    """
    spacing = grid[1] - grid[0]
    for t, step in zip(times[:-1], times.diff(), strict=True):
        mean = grid + sde.drift(grid[:, None], t)[:, 0] * step
        variance = sde.noise(t) ** 2 * step
        kernel = (-0.5 * (grid[:, None] - mean).square() / variance).exp()
        density = kernel @ density * spacing / (2 * torch.pi * variance).sqrt()
    return density


class LinearProcess:
    """dx = -rate(t) x dt + noise(t) dw: given x_0, x_t is Gaussian around shrink(t) x_0.

    A subclass has `rate`, `noise`, `shrink` and `variance`, each a function of t of any shape.
    """

    rate: Callable[[Tensor], Tensor]
    noise: Callable[[Tensor], Tensor]
    shrink: Callable[[Tensor], Tensor]
    variance: Callable[[Tensor], Tensor]

    def forward(self) -> SDE:
        """The process as an SDE (Eq. 2, 15, 39)."""
        return SDE(lambda x, t: -self.rate(t) * x, self.noise)

    def reverse(self, score: Callable[[Tensor, Tensor], Tensor], horizon: float) -> SDE:
        """The reverse SDE (Eq. 3, 4) in a time u = horizon - t that runs forwards.

        Eq. 3 has a negative dt; turned round, the drift is g^2 score - f, and u = 0 is noise.
        """

        def drift(x: Tensor, u: Tensor) -> Tensor:
            t = horizon - u
            return self.noise(t) ** 2 * score(x, t) + self.rate(t) * x

        return SDE(drift, lambda u: self.noise(horizon - u))

    def covariance(self, s: Tensor, t: Tensor) -> Tensor:
        """K(s, t), so that cov(x_s, x_t) = K I from a point x_0 (appendix C.3); shapes broadcast.

        From random x_0 with covariance C it is K I + shrink(s) shrink(t) C.
        """
        first, last = torch.minimum(s, t), torch.maximum(s, t)
        return self.shrink(last) / self.shrink(first) * self.variance(first)

    def point_score(self, x: Tensor, t: Tensor, point: Tensor) -> Tensor:
        """grad log p_t, [B, d], where all data lie at `point` [d] (appendix C.3)."""
        return -(x - self.shrink(t) * point) / self.variance(t)

    def gaussian_score(self, x: Tensor, t: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
        """grad log p_t, [B, d], where the data are normal with `mean` [d], `covariance` [d, d]."""
        unit = torch.eye(len(mean), dtype=x.dtype)
        noised = self.shrink(t) ** 2 * covariance + self.variance(t) * unit
        return -torch.linalg.solve(noised, (x - self.shrink(t) * mean).mT).mT

    def noised(self, mixture: GaussianMixture, t: Tensor) -> GaussianMixture:
        """The mixture that x_t [] follows where x_0 follows `mixture`."""
        unit = torch.eye(mixture.means.shape[1], dtype=mixture.means.dtype)
        covariances = self.shrink(t) ** 2 * mixture.covariances + self.variance(t) * unit
        return GaussianMixture(mixture.weights, self.shrink(t) * mixture.means, covariances)

    def mixture_score(self, x: Tensor, t: Tensor, mixture: GaussianMixture) -> Tensor:
        """grad log p_t, [B, d], where the data follow `mixture`."""
        return self.noised(mixture, t).score(x, x.new_ones(len(x)))


@dataclass(frozen=True)
class OU(LinearProcess):
    """Ornstein-Uhlenbeck: dx = -pull x dt + scale dw (Eq. 39, where scale = 1)."""

    pull: float
    scale: float = 1.0

    def rate(self, t: Tensor) -> Tensor:
        """lambda, constant."""
        return torch.full_like(t, self.pull)

    def noise(self, t: Tensor) -> Tensor:
        """g, constant."""
        return torch.full_like(t, self.scale)

    def shrink(self, t: Tensor) -> Tensor:
        """exp(-lambda t)."""
        return (-self.pull * t).exp()

    def variance(self, t: Tensor) -> Tensor:
        """g^2 (1 - exp(-2 lambda t)) / (2 lambda)."""
        return -(self.scale**2) * torch.expm1(-2 * self.pull * t) / (2 * self.pull)


@dataclass(frozen=True)
class VP(LinearProcess):
    """Variance preserving: dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw (Eq. 15).

    beta rises linearly from `low` at t = 0 to `high` at t = 1. abar(t) = shrink(t)^2.
    """

    low: float = 0.1
    high: float = 20.0

    def beta(self, t: Tensor) -> Tensor:
        """The noise schedule."""
        return self.low + (self.high - self.low) * t

    def rate(self, t: Tensor) -> Tensor:
        """beta / 2."""
        return self.beta(t) / 2

    def noise(self, t: Tensor) -> Tensor:
        """sqrt(beta)."""
        return self.beta(t).sqrt()

    def shrink(self, t: Tensor) -> Tensor:
        """exp(-half the integral of beta from 0 to t)."""
        return (-(self.low * t + (self.high - self.low) * t**2 / 2) / 2).exp()

    def variance(self, t: Tensor) -> Tensor:
        """1 - abar(t)."""
        return -torch.expm1(-(self.low * t + (self.high - self.low) * t**2 / 2))
