"""Gaussian mixtures against torch.distributions, autograd, quadrature and Monte Carlo."""

import math

import pytest
import torch
from scipy.integrate import quad
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.testing import assert_close

from rrlib.denoisers import cosine_scheduler
from rrlib.sde import GaussianMixture, log_ratio
from rrlib.training import stream


def mixture(seed: int = 0, k: int = 3, d: int = 2) -> GaussianMixture:
    """Random weights, means and full covariances, in float64."""
    generator = stream(seed, 0)
    weights = torch.rand(k, generator=generator, dtype=torch.float64) + 0.2
    means = 2 * torch.randn(k, d, generator=generator, dtype=torch.float64)
    roots = torch.randn(k, d, d, generator=generator, dtype=torch.float64)
    covariances = 0.3 * roots @ roots.mT + 0.05 * torch.eye(d, dtype=torch.float64)
    return GaussianMixture(weights / weights.sum(), means, covariances)


def peer(m: GaussianMixture, abar: float) -> MixtureSameFamily:
    """torch's own mixture after the forward process."""
    unit = torch.eye(m.means.shape[1], dtype=torch.float64)
    noised = MultivariateNormal(
        math.sqrt(abar) * m.means, covariance_matrix=abar * m.covariances + (1 - abar) * unit
    )
    return MixtureSameFamily(Categorical(m.weights), noised)


def points(n: int, d: int = 2, seed: int = 9) -> torch.Tensor:
    return 2 * torch.randn(n, d, generator=stream(seed, 0), dtype=torch.float64)


@pytest.mark.parametrize("d", [1, 2, 4])
@pytest.mark.parametrize("abar", [1.0, 0.97, 0.5, 1e-3, 0.0])
def test_log_prob_is_that_of_torch_distributions(abar, d):
    m, x = mixture(d=d), points(50, d)
    ours = m.log_prob(x, torch.full((50,), abar, dtype=torch.float64))
    assert_close(ours, peer(m, abar).log_prob(x), rtol=1e-10, atol=1e-10)


def test_each_row_has_its_own_abar():
    m, x = mixture(), points(4)
    abar = torch.tensor([1.0, 0.7, 0.2, 0.0], dtype=torch.float64)
    rows = [peer(m, float(a)).log_prob(point) for a, point in zip(abar, x, strict=True)]
    assert_close(m.log_prob(x, abar), torch.stack(rows), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("d", [1, 2, 4])
def test_score_is_the_gradient_of_log_prob(d):
    m, x = mixture(d=d), points(64, d).requires_grad_()
    abar = torch.linspace(0, 1, 64, dtype=torch.float64)
    gradient = torch.autograd.grad(m.log_prob(x, abar).sum(), x)[0]
    assert_close(m.score(x, abar), gradient, rtol=1e-10, atol=1e-10)


def test_score_is_finite_far_from_every_component():
    x = torch.full((1, 2), 1e4, dtype=torch.float64)
    assert mixture().score(x, torch.ones(1, dtype=torch.float64)).isfinite().all()


def test_samples_have_the_mixtures_moments():
    m, n = mixture(), 200_000
    x = m.sample(n, stream(1, 0))
    mean = m.weights @ m.means
    offsets = m.means - mean
    spread = m.covariances + offsets[:, :, None] * offsets[:, None]
    covariance = (m.weights[:, None, None] * spread).sum(0)
    centred = x - x.mean(0)
    # Six standard errors of each moment, taken from the sample itself.
    error = 6 * centred.std(0) / math.sqrt(n)
    assert ((x.mean(0) - mean).abs() < error).all()
    products = centred[:, :, None] * centred[:, None]
    error = 6 * products.std(0) / math.sqrt(n)
    assert ((products.mean(0) - covariance).abs() < error).all()


def test_samples_fall_on_the_components_by_weight():
    """Two far, tight components: moments alone hardly see their weights swapped."""
    means = torch.tensor([[-10.0], [10.0]])
    m = GaussianMixture(torch.tensor([0.25, 0.75]), means, torch.full((2, 1, 1), 0.01))
    share = (m.sample(40_000, stream(0, 0)) > 0).float().mean()
    assert float(share) == pytest.approx(0.75, abs=6 * math.sqrt(0.75 * 0.25 / 40_000))


@pytest.mark.parametrize("step", [0, 10, 25, 40])
def test_denoiser_x0_is_the_posterior_mean_by_quadrature(step):
    m, scheduler = mixture(d=1), cosine_scheduler(50, clip=False)
    abar = float(scheduler.alphas_cumprod[step])
    data = peer(m, 1.0)
    deviations = m.covariances.flatten().sqrt()
    low = float((m.means.flatten() - 12 * deviations).min())
    high = float((m.means.flatten() + 12 * deviations).max())
    for value in (-2.0, 0.1, 1.5):

        def joint(x0: float, power: int, value: float = value) -> float:
            at = torch.tensor([x0], dtype=torch.float64)
            offset = value - math.sqrt(abar) * x0
            return x0**power * math.exp(data.log_prob(at) - 0.5 * offset**2 / (1 - abar))

        # The integrand is as narrow as the noise is small: tell quad where it sits.
        hints = [float(v) for v in (*m.means.flatten(), value / math.sqrt(abar)) if low < v < high]
        options = {"points": hints, "limit": 400, "epsabs": 0, "epsrel": 1e-9}
        area, first = (quad(joint, low, high, args=(power,), **options)[0] for power in (0, 1))
        x = torch.tensor([[value]], dtype=torch.float64)
        ours = m.denoiser(scheduler).x0(x, torch.tensor([step]))
        assert float(ours) == pytest.approx(first / area, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("step", [15, 30, 45])
def test_denoiser_x0_is_the_posterior_mean_by_importance_sampling(step):
    m, scheduler = mixture(), cosine_scheduler(50, clip=False)
    abar = scheduler.alphas_cumprod[step].double()
    x0 = m.sample(400_000, stream(2, 0))
    x = torch.tensor([[0.4, -0.3]], dtype=torch.float64)
    weights = (-0.5 * (x - abar.sqrt() * x0).square().sum(1) / (1 - abar)).softmax(0)
    estimate = weights @ x0
    error = 6 * (weights.square() @ (x0 - estimate).square()).sqrt()
    ours = m.denoiser(scheduler).x0(x, torch.tensor([step]))[0]
    assert ((ours - estimate).abs() < error).all()
    assert (error < 0.1).all()  # else the comparison says nothing


def test_denoiser_score_is_the_mixtures_own():
    m, scheduler = mixture(), cosine_scheduler(50, clip=False)
    x, t = points(50), torch.arange(50)
    abar = scheduler.alphas_cumprod.double()[t]
    assert_close(m.denoiser(scheduler).score(x, t), m.score(x, abar), rtol=1e-9, atol=1e-9)


def test_the_gradient_of_log_ratio_is_the_score_difference():
    base, expert, x = mixture(0), mixture(1), points(30).requires_grad_()
    abar = torch.linspace(0.01, 1, 30, dtype=torch.float64)
    value = log_ratio(base, expert, x, abar)
    gradient = torch.autograd.grad(value.sum(), x)[0]
    difference = expert.score(x, abar) - base.score(x, abar)
    assert_close(gradient, difference, rtol=1e-9, atol=1e-9)
    literal = [
        peer(expert, float(a)).log_prob(p) - peer(base, float(a)).log_prob(p)
        for a, p in zip(abar, x, strict=True)
    ]
    assert_close(value, torch.stack(literal), rtol=1e-9, atol=1e-9)
