"""Gaussian mixtures under the variance-preserving process: every score in closed form."""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from rrlib.denoisers import Denoiser


@dataclass(frozen=True)
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

    def denoiser(self, scheduler: DDPMScheduler) -> Denoiser:
        """The exact diffusion model of this mixture: x0 = E[x_0 | x_t] by Tweedie's formula."""

        def posterior_mean(x: Tensor, t: Tensor) -> Tensor:
            abar = scheduler.alphas_cumprod.to(x)[t]
            noise = 1 - abar[:, None]
            return (x + noise * self.score(x, abar)) / abar[:, None].sqrt()

        return Denoiser(posterior_mean, scheduler)


def log_ratio(base: GaussianMixture, expert: GaussianMixture, x: Tensor, abar: Tensor) -> Tensor:
    """The true relative reward log p2_t(x) - log p1_t(x), [B] (Eq. 10 in closed form)."""
    return expert.log_prob(x, abar) - base.log_prob(x, abar)
