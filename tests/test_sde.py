"""Mixtures, noising processes and solvers against scipy, sympy, autograd and exact solutions."""

import math

import numpy as np
import pytest
import sympy
import torch
from scipy.integrate import quad, solve_ivp
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.method.noise.schedulers import cosine_scheduler
from rrlib.theory.sde import (
    OU,
    SDE,
    VP,
    GaussianMixture,
    brownian,
    coarsen,
    coupled,
    euler_law,
    halves,
    log_ratio,
    preimage,
    random_mixture,
    turned_score,
)
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


@pytest.mark.parametrize("d", [1, 2, 4])
def test_hessian_is_the_slope_of_the_score(d):
    m, x = mixture(d=d), points(32, d)
    abar = torch.linspace(0, 1, 32, dtype=torch.float64)
    slope = torch.func.jacrev(lambda x: m.score(x, abar).sum(0))(x).movedim(1, 0)  # [B, d, d]
    assert_close(m.hessian(x, abar), slope, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("d", [2, 64])
def test_a_random_mixture_has_the_promised_sizes(d):
    m = random_mixture(d, 3, stream(0, 0))
    assert_close(m.means.norm(dim=1), torch.full((3,), 1.5).double())
    assert_close(m.weights, torch.full((3,), 1 / 3).double())
    deviations = torch.linalg.eigvalsh(m.covariances).sqrt()
    assert deviations.min() >= 0.35 - 1e-9 and deviations.max() <= 0.6 + 1e-9
    if d == 64:
        assert deviations.min() < 0.37 and deviations.max() > 0.58


def test_halves_are_the_mean_of_the_two_densities():
    a, b, x = mixture(0), mixture(1, k=2), points(20)
    abar = torch.full((20,), 0.8, dtype=torch.float64)
    ours = halves(a, b).log_prob(x, abar).exp()
    assert_close(ours, (a.log_prob(x, abar).exp() + b.log_prob(x, abar).exp()) / 2)


@pytest.mark.parametrize("d", [2, 3])
def test_an_antisymmetric_turn_of_the_score_carries_no_probability(d):
    """div(p A grad log p) = 0, by automatic differentiation at each point."""
    m, abar = mixture(d=d), torch.tensor([0.7], dtype=torch.float64)
    matrix = torch.randn(d, d, generator=stream(2, 0), dtype=torch.float64)

    def divergence(matrix, point):
        field = turned_score(m, matrix)

        def flux(point):
            return m.log_prob(point[None], abar).exp() * field(point[None], abar)[0]

        return torch.func.jacrev(flux)(point).trace()

    for point in points(10, d) / 4:
        assert_close(divergence(matrix - matrix.T, point), torch.zeros(()).double(), atol=1e-12,
                     rtol=0)  # fmt: skip
        assert divergence(matrix + matrix.T, point).abs() > 1e-6


def test_an_unturned_score_is_the_gradient_of_its_potential():
    m, x = mixture(), points(20).requires_grad_()
    abar = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    potential = abar.sqrt() * m.log_prob(x, abar)
    ours = turned_score(m, torch.eye(2, dtype=torch.float64))(x, abar)
    assert_close(ours, torch.autograd.grad(potential.sum(), x)[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("step", [1, 5, 18])
def test_preimage_inverts_the_mean_of_the_denoiser(step):
    m, scheduler = mixture(), cosine_scheduler(20, clip=False)
    base, x = m.denoiser(scheduler), points(30)
    t, abar = torch.full((30,), step), scheduler.alphas_cumprod.double()
    y = base.mean(x, t)
    back, slope = preimage(m, y, abar[step], abar[step - 1])
    assert_close(base.mean(back, t), y, rtol=0, atol=1e-10)
    assert_close(back, x, rtol=0, atol=1e-6)
    known = torch.func.jacrev(lambda x: base.mean(x, t).sum(0))(x).movedim(1, 0)
    assert_close(slope, known, rtol=1e-5, atol=1e-6)


def test_preimage_says_that_a_mean_is_out_of_reach():
    """Without noise left (before = 1) the mean of a single point's data is that point alone."""
    one = torch.ones(1, dtype=torch.float64)
    m = GaussianMixture(one, torch.zeros(1, 2).double(), 1e-6 * torch.eye(2)[None].double())
    with pytest.raises(ArithmeticError, match="is left"):
        preimage(m, 100 * torch.ones(3, 2).double(), one[0] / 2, one[0])


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


@pytest.mark.lengthy
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


# Noising processes -----------------------------------------------------------------------------

PROCESSES = [OU(1.3), OU(0.7, scale=1.6), VP(), VP(0.5, 8.0)]
TIMES = [0.05, 0.3, 1.0]


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("process", [OU(1.3), OU(0.7, scale=1.6)], ids=str)
def test_ou_is_equation_39(process):
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    x = points(5)
    forward = process.forward()
    assert_close(forward.drift(x, t[:, None]), -process.pull * x)
    assert_close(forward.noise(t), torch.full_like(t, process.scale))


def test_vp_is_equation_15_with_a_linear_schedule():
    t, x = torch.linspace(0, 1, 5, dtype=torch.float64), points(5)
    beta = torch.tensor(np.linspace(0.1, 20, 5))
    forward = VP(0.1, 20.0).forward()
    assert_close(forward.drift(x, t[:, None]), -0.5 * beta[:, None] * x)
    assert_close(forward.noise(t).square(), beta)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_moments_solve_their_equations(process):
    """m' = -rate m and v' = -2 rate v + g^2, integrated by scipy."""

    def slopes(t: float, y: np.ndarray) -> list[float]:
        rate, noise = (float(f(scalar(t))) for f in (process.rate, process.noise))
        return [-rate * y[0], -2 * rate * y[1] + noise**2]

    found = solve_ivp(slopes, (0, 1), [1.0, 0.0], t_eval=TIMES, rtol=1e-11, atol=1e-13).y
    t = torch.tensor(TIMES, dtype=torch.float64)
    assert_close(process.shrink(t), torch.tensor(found[0]), rtol=1e-8, atol=1e-10)
    assert_close(process.variance(t), torch.tensor(found[1]), rtol=1e-8, atol=1e-10)


@pytest.mark.lengthy
def test_ou_covariance_is_the_ito_isometry_by_sympy():
    r, s, t, pull, scale = sympy.symbols("r s t lambda g", positive=True)
    kernel = scale**2 * sympy.exp(-pull * (s - r)) * sympy.exp(-pull * (t - r))
    integral = sympy.integrate(kernel, (r, 0, s))  # for s <= t
    paper = (sympy.exp(-pull * (t - s)) - sympy.exp(-pull * (t + s))) / (2 * pull)
    assert sympy.simplify(integral.subs(scale, 1) - paper) == 0
    values = {pull: 0.7, scale: 1.6}
    for a, b in [(0.2, 0.2), (0.2, 0.9), (0.9, 0.2), (1.5, 3.0)]:
        exact = float(integral.subs({**values, s: min(a, b), t: max(a, b)}))
        ours = OU(0.7, 1.6).covariance(scalar(a), scalar(b))
        assert float(ours) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_covariance_is_the_ito_isometry_by_quadrature(process):
    def decay(r: float, t: float) -> float:
        return math.exp(-quad(lambda q: float(process.rate(scalar(q))), r, t, epsabs=1e-12)[0])

    for a, b in [(0.3, 0.8), (0.8, 0.3), (0.5, 0.5)]:
        exact = quad(
            lambda r, a=a, b=b: decay(r, a) * decay(r, b) * float(process.noise(scalar(r))) ** 2,
            0,
            min(a, b),
        )[0]
        ours = float(process.covariance(scalar(a), scalar(b)))
        assert ours == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_scores_are_gradients_of_torchs_own_densities(process, t):
    t, m, x = scalar(t), mixture(), points(40).requires_grad_()
    shrink, unit = process.shrink(t), process.variance(t) * torch.eye(2, dtype=torch.float64)
    noised = MultivariateNormal(shrink * m.means, shrink**2 * m.covariances + unit)
    point, mean, covariance = m.means[0], m.means[1], m.covariances[1]
    pairs = [
        (MultivariateNormal(shrink * point, unit), process.point_score(x, t, point)),
        (
            MultivariateNormal(shrink * mean, shrink**2 * covariance + unit),
            process.gaussian_score(x, t, mean, covariance),
        ),
        (
            MixtureSameFamily(Categorical(m.weights), noised),
            process.mixture_score(x, t, m),
        ),
    ]
    for density, score in pairs:
        gradient = torch.autograd.grad(density.log_prob(x).sum(), x)[0]
        assert_close(score.detach(), gradient, rtol=1e-10, atol=1e-10)


def test_noised_by_vp_is_the_mixture_at_abar():
    m, x, t = mixture(), points(20), scalar(0.4)
    ours = VP().noised(m, t).log_prob(x, torch.ones(20, dtype=torch.float64))
    assert_close(ours, m.log_prob(x, (VP().shrink(t) ** 2).expand(20)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_reverse_sde_carries_the_densities_back(process):
    """p_{T - u} obeys the Fokker-Planck equation of the reverse SDE, by automatic derivatives."""
    m, horizon = mixture(d=1), 0.9
    reverse = process.reverse(lambda x, t: process.mixture_score(x, t, m), horizon)
    for u, place in [(0.1, 0.3), (0.4, -1.0), (0.8, 1.4)]:
        u, x = scalar(u).requires_grad_(), scalar(place).requires_grad_()
        density = process.noised(m, horizon - u).log_prob(x.reshape(1, 1), x.new_ones(1)).exp()
        flow = reverse.drift(x.reshape(1, 1), u).squeeze() * density
        in_time, slope = torch.autograd.grad(density, (u, x), create_graph=True)
        bend = torch.autograd.grad(slope, x, retain_graph=True)[0]
        spread = torch.autograd.grad(flow, x)[0]
        right = -spread + 0.5 * reverse.noise(u).detach() ** 2 * bend
        assert_close(in_time.detach(), right.detach(), rtol=1e-8, atol=1e-10)


# Solvers ---------------------------------------------------------------------------------------


def grid_of(n: int) -> torch.Tensor:
    return torch.linspace(0, 1, n + 1, dtype=torch.float64)


def test_solve_is_euler_maruyama_written_out():
    times = torch.tensor([0.0, 0.1, 0.4, 1.0], dtype=torch.float64)
    sde = SDE(lambda x, t: torch.sin(x) + t, lambda t: 1 + t)
    dw = brownian(times, 5, 2, stream(0, 0))
    path = sde.solve(points(5), times, dw)
    x = points(5)
    assert_close(path[0], x)
    for k, (t, step) in enumerate([(0.0, 0.1), (0.1, 0.3), (0.4, 0.6)]):
        x = x + step * (torch.sin(x) + t) + (1 + t) * dw[k]
        assert_close(path[k + 1], x)


def test_brownian_increments_have_the_length_of_their_interval_as_variance():
    times = torch.tensor([0.0, 0.1, 1.0], dtype=torch.float64)
    dw = brownian(times, 50_000, 2, stream(0, 1))
    assert dw.shape == (2, 50_000, 2)
    spread = dw.square().mean((1, 2)) / times.diff()
    assert (spread - 1).abs().max() < 6 * math.sqrt(2 / 100_000)


def test_coarsened_increments_are_the_same_motion():
    dw = brownian(grid_of(12), 3, 2, stream(0, 2))
    coarse = coarsen(dw, 4)
    assert coarse.shape == (3, 3, 2)
    assert_close(coarse.cumsum(0), dw.cumsum(0)[3::4])


def test_coupled_paths_share_start_and_noise():
    """Same noise, constant drifts: paths differ by the drifts' difference times t."""
    slow, fast = (SDE(lambda x, t, c=c: c + 0 * x, torch.ones_like) for c in (0.5, 2.0))
    times = grid_of(7)
    a, b = coupled([slow, fast], points(4), times, brownian(times, 4, 2, stream(0, 3)))
    assert_close(b - a, (1.5 * times)[:, None, None].expand_as(a))


def test_plus_adds_to_the_drift_only():
    sde = SDE(lambda x, t: -x, lambda t: 2 * t).plus(lambda x, t: 3 * t + x)
    x = points(3)
    assert_close(sde.drift(x, scalar(0.5)), torch.full_like(x, 1.5))
    assert float(sde.noise(scalar(0.5))) == 1.0


def test_strong_order_on_an_exact_solution():
    """OU solved exactly on the same Brownian motion: the error halves with the step."""
    process, fine, n = OU(1.5), 2**12, 400
    dw = brownian(grid_of(fine), n, 1, stream(0, 4))
    weights = process.shrink(1 - grid_of(fine)[:-1] - 0.5 / fine)  # Ito integral at mid-interval
    exact = process.shrink(scalar(1.0)) + (weights[:, None, None] * dw).sum(0)
    errors = []
    for steps in (16, 32, 64):
        one = torch.ones(n, 1, dtype=torch.float64)
        end = process.forward().solve(one, grid_of(steps), coarsen(dw, fine // steps))[-1]
        errors.append(float((end - exact).square().mean().sqrt()))
    assert np.log2(errors[:-1]) - np.log2(errors[1:]) == pytest.approx([1, 1], abs=0.15)


def test_euler_law_is_the_gaussian_recursion():
    """A linear SDE under Euler-Maruyama stays normal, with moments by recursion."""
    process, times = VP(1.0, 6.0), grid_of(20)
    grid = torch.linspace(-8, 8, 401, dtype=torch.float64)
    mean, variance = scalar(0.8), scalar(0.3)
    start = MultivariateNormal(mean[None], variance[None, None]).log_prob(grid[:, None]).exp()
    law = euler_law(process.forward(), grid, start, times)
    for t, step in zip(times[:-1], times.diff(), strict=True):
        factor = 1 - process.rate(t) * step
        mean, variance = factor * mean, factor**2 * variance + process.noise(t) ** 2 * step
    exact = MultivariateNormal(mean[None], variance[None, None]).log_prob(grid[:, None]).exp()
    assert_close(law, exact, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("options", [{"clip_sample": True}, {"prediction_type": "epsilon"}])
def test_a_closed_form_is_of_x0_without_a_clip(options):
    scheduler = cosine_scheduler(20, clip=False)
    scheduler.register_to_config(**options)
    with pytest.raises(InputError, match=r"^scheduler: .* 'sample' without a clip is needed"):
        mixture().denoiser(scheduler)
