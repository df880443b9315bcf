"""Log ratios by integrals: of both flows' divergence, or of the scores along a line."""

import numpy as np
import torch
from torch import Tensor

from rrlib.errors import InputError
from rrlib.estimators.levels import Estimate, Levels, asked, checked, inner, of_rows, summary
from rrlib.method.checks.numbers import check_finite, check_step
from rrlib.method.checks.pairs import check_answers, check_known
from rrlib.method.denoisers import Denoiser
from rrlib.method.noise.precision import beside, narrow, wide
from rrlib.training import stream


def ode_difference(
    base: Denoiser,
    expert: Denoiser,
    samples: Tensor,
    *,
    steps: int | None = None,
    probes: int = 2,
    seed: int = 0,
    batch: int = 256,
) -> Estimate:
    """The difference of both models' own log densities, each by its own probability-flow ODE.

    With y = x_t / sqrt(abar_t) and sigma^2 = 1 / SNR a model's flow is
    dy / dsigma = (y - x0) / sigma (Song et al., 2021; Karras et al., 2022), and
    log p(x) = log N(x_T) - int div_y x0 dlog sigma, up to what both models have in common. Heun's
    steps go from the least noise, where x is taken to be, to the most; the divergence is read by
    Hutchinson's probes z^T (dx0 / dy) z, of random signs, one set for both, fresh at each step.
    Both ends are taken for noise alone: of means that differ, the share sqrt(abar_T) is missed.

    Calls: 2 (2 K - 1), one after another, and 2 K backward passes for each probe. Variance: of the
    probes, by the Jacobians' entries off the diagonal; both models share most of it.

    A rotation in the scores that keeps a density as it is (p_t A grad log p_t without divergence)
    moves points within it and leaves this estimate where it was: it is one of densities. No other
    one here has that, and a learned reward has (the projection on gradients).

    Args:
        base, expert, samples, seed, batch: see `elbo_difference`; networks must be differentiable.
        steps: points K of the way, spaced evenly over the T; None takes all.
        probes: of the divergence; a single one gives no standard error.

    Raises:
        InputError: see `noised.elbo_difference`; a network without a derivative.

    >>> import rrlib, torch
    >>> scheduler = rrlib.cosine_scheduler(50, clip=False)
    >>> base, expert = (
    ...     rrlib.Denoiser(lambda x, t, a=a: 0.5 * x + a, scheduler) for a in (0.0, 0.2)
    ... )
    >>> rrlib.ode_difference(base, expert, torch.zeros(4, 2), steps=10).value.shape
    torch.Size([4])
    """
    expert = checked(base, expert, samples, probes=probes, batch=batch)
    levels = Levels.of(base, expert, samples, steps)
    parts = []
    for start in range(0, len(samples), batch):
        x = samples[start : start + batch]
        rows = torch.arange(start, start + len(x), device=x.device)
        pair = (("base", of_rows(base, rows)), ("expert", of_rows(expert, rows)))
        mine, other = (
            _flow(name, model, x, levels, probes, stream(seed, f"probes {start}", str(x.device)))
            for name, model in pair
        )
        parts.append(other - mine)
    return summary(torch.cat(parts, 1), 2 * (2 * len(levels.t) - 1))


def line_integral(
    base: Denoiser,
    expert: Denoiser,
    samples: Tensor,
    *,
    reference: Tensor | None = None,
    step: int = 0,
    steps: int = 32,
    batch: int = 256,
) -> Estimate:
    """The log ratio at x over that at a reference, by Eq. 10: its gradient along the line between.

    int_0^1 <score_expert - score_base, x - x_ref> du at x_ref + u (x - x_ref) and one small t, by
    Gauss and Legendre's rule.

    Calls: 2 per node. Variance: none, nothing is drawn; the standard error is NaN.

    Exact for exact scores. Learned ones are asked on the way, away from all data, where nothing has
    taught them; and with a rotation in the scores the integral depends on the way that is taken,
    so it belongs to no function of x.

    Args:
        base, expert, samples, batch: see `noised.elbo_difference`.
        reference: x_ref, [...], where the value is 0; None takes the samples' mean.
        step: t, one that both models know.
        steps: nodes on the line.

    Raises:
        InputError: see `noised.elbo_difference`; a reference of another shape.

    >>> import rrlib, torch
    >>> scheduler = rrlib.cosine_scheduler(50, clip=False)
    >>> base, expert = (
    ...     rrlib.Denoiser(lambda x, t, a=a: 0.5 * x + a, scheduler) for a in (0.0, 0.2)
    ... )
    >>> rrlib.line_integral(base, expert, torch.eye(2)).value.sum().abs() < 1e-4
    tensor(True)
    """
    expert = checked(base, expert, samples, steps=steps, batch=batch)
    check_step("step", step, base.steps)
    check_known("step", step, expert)
    start = samples.mean(0) if reference is None else reference
    if start.shape != samples.shape[1:]:
        raise InputError(
            f"reference: shape {tuple(start.shape)} is not allowed: one sample's "
            f"{tuple(samples.shape[1:])} is needed."
        )
    check_finite("reference", start[None])
    rule = np.polynomial.legendre.leggauss(steps)
    places, weights = (torch.from_numpy(part).to(samples.device, wide(samples)) for part in rule)
    parts: list[Tensor] = []
    seen: list[Tensor] = []
    few = max(1, batch // steps)
    for k, x in enumerate(samples.split(few)):
        rows = torch.arange(k * few, k * few + len(x), device=x.device).repeat(steps)
        way = (x - start).expand(steps, *x.shape)
        points = narrow(start + beside((places + 1) / 2, way) * way, x).flatten(0, 1)
        t = torch.full((len(points),), step, device=x.device)
        slope = asked(base, expert, points, t, rows, batch, seen).pool("score", "x_t").target
        parts.append((weights / 2) @ inner(slope, way.flatten(0, 1), len(x)))
    check_answers(seen)
    return summary(torch.cat(parts)[None], 2 * steps)


def _flow(
    name: str, model: Denoiser, x: Tensor, levels: Levels, probes: int, generator: torch.Generator
) -> Tensor:
    """log p(x) by each probe, [probes, B], up to what all models have in common."""
    sigma, y = levels.snr.rsqrt(), x.to(wide(x))
    logs, total = sigma.log(), y.new_zeros(probes, len(x))
    for k in range(len(sigma)):
        t = levels.t[k].expand(len(x))
        x0, traces = _traced(name, model, y, levels.abar[k], t, probes, generator, x)
        # The trapezoidal rule in log sigma: half of the interval before, half of the one behind.
        total -= traces * (logs[min(k + 1, len(logs) - 1)] - logs[max(k - 1, 0)]) / 2
        if k + 1 < len(sigma):
            y = _heun(model, y, x0, sigma[k : k + 2], levels.abar[k + 1], levels.t[k + 1], x)
    check_finite(f"{name}: its flow's end", y)
    return total - levels.abar[-1] * y.flatten(1).square().sum(1) / 2


def _traced(name, model, y, abar, t, probes, generator, x) -> tuple[Tensor, Tensor]:
    """x0 [B, ...] at y, and z^T (dx0 / dy) z by each probe, [probes, B]."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        x0 = model.x0(narrow(abar.sqrt() * y, x), t)
        if not x0.requires_grad:
            raise InputError(
                f"{name}: a network without a derivative is not allowed: one that torch can "
                "differentiate is needed."
            )
    traces = []
    for probe in range(probes):
        z = torch.randint(2, y.shape, generator=generator, device=y.device).to(y) * 2 - 1
        kept = probe + 1 < probes
        (product,) = torch.autograd.grad(x0, y, z.to(x0), retain_graph=kept)
        traces.append((product * z).flatten(1).sum(1))
    return x0.detach().to(y), torch.stack(traces)


@torch.no_grad()
def _heun(model, y, x0, sigma, abar, t, x) -> Tensor:
    """y at sigma[1], from y and x0 at sigma[0]."""
    slope, width = (y - x0) / sigma[0], sigma[1] - sigma[0]
    there = y + width * slope
    x0 = model.x0(narrow(abar.sqrt() * there, x), t.expand(len(y)))
    return y + width / 2 * (slope + (there - x0) / sigma[1])
