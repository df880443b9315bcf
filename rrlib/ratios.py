"""log p_expert(x) - log p_base(x) of given samples, without training: rivals of a learned reward.

Four ways to it, each for any two models that can be compared. Scores that are exact make them
agree; learned ones have errors, and where these turn (a rotation, the solenoidal part that is no
gradient) the ways differ, as each one says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rrlib.comparisons import Comparisons, aligned, check_answers, check_finite, compare_at
from rrlib.denoisers import Denoiser
from rrlib.errors import InputError, check_one_of, shown
from rrlib.noise.precision import narrow, wide
from rrlib.rewards import RelativeReward
from rrlib.training import stream

Weights = Literal["variational", "unweighted"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """Numbers, and how far each may be off by the draws that it was made from.

    Attributes:
        value: [B], or [] of a single number; in the samples' precision, but float32 at least.
        standard_error: of each value; NaN where there is nothing to tell it from: a single probe,
            or no draws at all. It says nothing of errors that all draws share: too few steps, or
            models that are wrong.
        calls: how often each sample went through a network, both models together.
    """

    value: Tensor
    standard_error: Tensor
    calls: int


def elbo_difference(
    base: Denoiser,
    expert: Denoiser,
    samples: Tensor,
    *,
    weights: Weights = "variational",
    steps: int | None = None,
    probes: int = 2,
    seed: int = 0,
    batch: int = 256,
) -> Estimate:
    """The difference of two models' evidence lower bounds: which of them denoises x better.

    ``sum_k w_k E[|x - x0_base(x_t)|^2 - |x - x0_expert(x_t)|^2]``, x_t being x with noise that both
    models share. "variational" weights estimate the log ratio in nats: 1/2 int (...) dSNR (Kingma
    et al., Variational Diffusion Models, 2021), by the trapezoidal rule in log SNR, and SNR_0 / 2
    for what lies beyond the first level. (DDPM's own weights, (SNR_{t-1} - SNR_t) / 2, are this
    integral by rectangles, too coarse by far where levels are left out.)
    "unweighted" is the mean over levels of ``|eps - eps_base|^2 - |eps - eps_expert|^2``, so that
    w = SNR / K: the implicit reward of Diffusion-DPO (2024), the reward of SMILING (2025), the
    score of Diffusion Classifier (2023). It ranks much alike; its scale means nothing.

    Calls: 2 per level and probe, all of which can be batched. Variance: of the noise, falling like
    1 / (steps x probes); neighbouring levels have the same noise with opposite signs, which takes
    most of its effect out. Levels that are left out add an error that all probes share.

    A rotation in the expert's scores counts against the expert like any other error, by half its
    energy, summed over the noise: this is an estimate on paths, not one of densities.

    Args:
        base, expert: diffusion models of one space, read at the base's levels.
        samples: x_0, [B, ...]; models are asked in their precision, float64 if they have it.
        weights: see above.
        steps: noise levels K, spaced evenly over the T; None takes all.
        probes: draws of the noise at every level; a single one gives no standard error.
        seed: of the draws.
        batch: samples per call of a model.

    Raises:
        InputError: models without a schedule or of no common level; samples that do not suit them,
            or are not finite; a number out of range; an answer that is not finite.

    >>> import rrlib, torch
    >>> scheduler = rrlib.cosine_scheduler(50, clip=False)
    >>> base, expert = (
    ...     rrlib.Denoiser(lambda x, t, a=a: 0.5 * x + a, scheduler) for a in (0.0, 0.2)
    ... )
    >>> found = rrlib.elbo_difference(base, expert, torch.zeros(4, 2), steps=10)
    >>> found.value.shape, found.standard_error.shape, found.calls
    (torch.Size([4]), torch.Size([4]), 40)
    """
    check_one_of("weights", weights, Weights)
    expert = _check(base, expert, samples, probes=probes, batch=batch)
    levels = _Levels.of(base, expert, samples, steps)
    count = len(levels.t)
    factors = levels.nats if weights == "variational" else levels.snr / count

    seen: list[Tensor] = []

    def one(x: Tensor, generator: torch.Generator) -> Tensor:
        shape = ((count + 1) // 2, *x.shape)
        draw = torch.randn(shape, generator=generator, device=x.device, dtype=wide(x))
        draw = torch.stack([draw, -draw], 1).flatten(0, 1)[:count]
        clean, noise = (_beside(part.sqrt(), draw) for part in (levels.abar, levels.rest))
        x_t = narrow(clean * x + noise * draw, x).flatten(0, 1)
        both = _asked(base, expert, x_t, levels.t.repeat_interleave(len(x)), batch, seen)
        far = 2 * x.expand_as(draw).flatten(0, 1) - both.base - both.expert
        return factors @ _inner(both.expert - both.base, far, len(x))

    draws = _repeated(one, samples, max(1, batch // count), probes, seed)
    check_answers(seen)
    return _summary(draws, 2 * count * probes)


def path_difference(
    base: Denoiser,
    expert: Denoiser,
    samples: Tensor,
    *,
    steps: int | None = None,
    probes: int = 2,
    seed: int = 0,
    batch: int = 256,
) -> Estimate:
    """The log ratio along one noising path of each sample: an Itô sum, Girsanov's log ratio.

    x is noised step by step, ``x_k ~ q(x_k | x_{k-1})``, and of each step back both models say how
    likely it is: ``sum_k (|x_{k-1} - m_base|^2 - |x_{k-1} - m_expert|^2) / (2 v_k)``, with
    m = (x_k + (1 - a_k) score(x_k)) / sqrt(a_k), v_k = (1 - a_k) / a_k, a_k = abar_k / abar_{k-1}
    (Skreta et al., SuperDiff, 2025; Karczewski et al., 2025). At the end both densities are noise.

    Calls: 2 per step and probe; the path needs no model, so that all can be batched. Variance: none
    for exact scores as steps get short, since any path leads to the same ratio; it falls like
    1 / steps. `elbo_difference` is about its mean over paths.

    A rotation in the expert's scores counts against the expert by half its energy along the path,
    and each path meets another one: variance, too.

    Args:
        base, expert, samples, seed, batch: see `elbo_difference`.
        steps: of the path, K, spaced evenly over the T; None takes all.
        probes: paths of each sample; a single one gives no standard error.

    Raises:
        InputError: see `elbo_difference`.

    >>> import rrlib, torch
    >>> scheduler = rrlib.cosine_scheduler(50, clip=False)
    >>> base, expert = (
    ...     rrlib.Denoiser(lambda x, t, a=a: 0.5 * x + a, scheduler) for a in (0.0, 0.2)
    ... )
    >>> rrlib.path_difference(base, expert, torch.zeros(4, 2), probes=1).standard_error
    tensor([nan, nan, nan, nan])
    """
    expert = _check(base, expert, samples, probes=probes, batch=batch)
    levels = _Levels.of(base, expert, samples, steps)
    sigma2 = 1 / levels.snr  # of y = x_t / sqrt(abar_t), a path of independent increments
    increments = sigma2.diff(prepend=sigma2.new_zeros(1))

    seen: list[Tensor] = []

    def one(x: Tensor, generator: torch.Generator) -> Tensor:
        shape = (len(levels.t), *x.shape)
        draw = torch.randn(shape, generator=generator, device=x.device, dtype=wide(x))
        moves = _beside(increments.sqrt(), draw) * draw
        y = x + moves.cumsum(0)
        x_t = narrow(_beside(levels.abar.sqrt(), y) * y, x).flatten(0, 1)
        both = _asked(base, expert, x_t, levels.t.repeat_interleave(len(x)), batch, seen)
        share = _beside(increments / sigma2, y)  # of the way to x0 that a step leads back
        far = share * (2 * y - (both.base + both.expert).reshape(shape)) - 2 * moves
        terms = _inner(both.expert - both.base, far.flatten(0, 1), len(x))
        return (levels.snr / 2) @ terms

    draws = _repeated(one, samples, max(1, batch // len(levels.t)), probes, seed)
    check_answers(seen)
    return _summary(draws, 2 * len(levels.t) * probes)


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
        InputError: see `elbo_difference`; a network without a derivative.

    >>> import rrlib, torch
    >>> scheduler = rrlib.cosine_scheduler(50, clip=False)
    >>> base, expert = (
    ...     rrlib.Denoiser(lambda x, t, a=a: 0.5 * x + a, scheduler) for a in (0.0, 0.2)
    ... )
    >>> rrlib.ode_difference(base, expert, torch.zeros(4, 2), steps=10).value.shape
    torch.Size([4])
    """
    expert = _check(base, expert, samples, probes=probes, batch=batch)
    levels = _Levels.of(base, expert, samples, steps)
    parts = []
    for start in range(0, len(samples), batch):
        x = samples[start : start + batch]
        mine, other = (
            _flow(name, model, x, levels, probes, stream(seed, f"probes {start}", str(x.device)))
            for name, model in (("base", base), ("expert", expert))
        )
        parts.append(other - mine)
    return _summary(torch.cat(parts, 1), 2 * (2 * len(levels.t) - 1))


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
        base, expert, samples, batch: see `elbo_difference`.
        reference: x_ref, [...], where the value is 0; None takes the samples' mean.
        step: t.
        steps: nodes on the line.

    Raises:
        InputError: see `elbo_difference`; a reference of another shape.

    >>> import rrlib, torch
    >>> scheduler = rrlib.cosine_scheduler(50, clip=False)
    >>> base, expert = (
    ...     rrlib.Denoiser(lambda x, t, a=a: 0.5 * x + a, scheduler) for a in (0.0, 0.2)
    ... )
    >>> rrlib.line_integral(base, expert, torch.eye(2)).value.sum().abs() < 1e-4
    tensor(True)
    """
    expert = _check(base, expert, samples, steps=steps, batch=batch)
    if not 0 <= step < base.steps:
        raise InputError(
            f"step={step} is not allowed: a step from 0 to {base.steps - 1} is needed."
        )
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
    for x in samples.split(max(1, batch // steps)):
        way = (x - start).expand(steps, *x.shape)
        points = narrow(start + _beside((places + 1) / 2, way) * way, x).flatten(0, 1)
        t = torch.full((len(points),), step, device=x.device)
        slope = _asked(base, expert, points, t, batch, seen).pool("score", "x_t").target
        parts.append((weights / 2) @ _inner(slope, way.flatten(0, 1), len(x)))
    check_answers(seen)
    return _summary(torch.cat(parts)[None], 2 * steps)


def level(
    reward: RelativeReward,
    base: Denoiser,
    expert: Denoiser,
    anchors: Tensor,
    *,
    steps: int | None = None,
    probes: int = 2,
    seed: int = 0,
    batch: int = 256,
) -> Estimate:
    """The constant that a reward's gradient leaves open: add it to rho(x, 0) to have nats.

    The mean over anchors of `elbo_difference` less rho(x, 0), a reward of means being read in units
    of scores. Its standard error is that of this mean, from the anchors' scatter: the draws', and
    what the reward misses.

    Args:
        reward: of these two models, fitted at "x_t"; only there its values are log ratios.
        base, expert, steps, probes, seed, batch: see `elbo_difference`.
        anchors: samples x_0, [B, ...], such as the base's own; a single one gives no standard
            error.

    Raises:
        InputError: see `elbo_difference`; a reward that was fitted at "mu_base".

    >>> import rrlib, torch
    >>> scheduler = rrlib.cosine_scheduler(20, clip=False)
    >>> base, expert = (
    ...     rrlib.Denoiser(lambda x, t, a=a: 0.5 * x + a, scheduler) for a in (0.0, 0.2)
    ... )
    >>> reward = rrlib.RelativeReward.fit(rrlib.compare(base, expert, shape=(2,), n=200), steps=5)
    >>> rrlib.level(reward, base, expert, torch.zeros(8, 2)).value.shape
    torch.Size([])
    """
    if reward.place != "x_t":
        raise InputError(
            f"reward: place={reward.place!r} is not allowed: one fitted at 'x_t', whose values are "
            "log ratios, is needed."
        )
    given = elbo_difference(
        base, expert, anchors, steps=steps, probes=probes, seed=seed, batch=batch
    )
    t = torch.zeros(len(anchors), dtype=torch.long, device=anchors.device)
    pairs = zip(anchors.split(batch), t.split(batch), strict=True)
    with torch.no_grad():
        rho = torch.cat([reward(*pair) for pair in pairs])
    unit = base.mean_per_score(t[:1], rho) if reward.target == "mean" else 1.0
    return _summary(given.value - rho / unit, given.calls)


# What all of them share.


@dataclass(frozen=True, eq=False)
class _Levels:
    """Noise levels that are visited, from the least on, [K] each; none of noise alone."""

    t: Tensor
    abar: Tensor
    rest: Tensor

    @classmethod
    def of(cls, base: Denoiser, expert: Denoiser, samples: Tensor, steps: int | None) -> "_Levels":
        """`steps` of the base's levels that the expert knows, spaced evenly; None takes all."""
        first, last = expert.schedule.span
        most = last + 1 - first
        if steps is not None and not (isinstance(steps, int) and 2 <= steps <= most):
            raise InputError(
                f"steps={shown(steps)} is not allowed: a number from 2 to {most}, the steps "
                "that both models know, is needed."
            )
        t = torch.linspace(first, last, steps or most, dtype=torch.float64)
        t = t.round().long().to(samples.device)
        like = samples.new_empty(len(t))
        abar, rest = base.abar(t, like), base.rest(t, like)
        return cls(t[abar > 0], abar[abar > 0], rest[abar > 0])

    @property
    def snr(self) -> Tensor:
        """Signal over noise."""
        return self.abar / self.rest

    @property
    def nats(self) -> Tensor:
        """Weights of 1/2 int ... dSNR at the levels, see `elbo_difference`."""
        halves = -self.snr.log().diff() / 2
        none = halves.new_zeros(1)
        widths = torch.cat([none, halves]) + torch.cat([halves, none])
        widths[0] += 1  # errors fall like 1 / SNR^2 beyond the first level
        return self.snr * widths / 2


def _check(base: Denoiser, expert: Denoiser, samples: Tensor, **counts: int) -> Denoiser:
    """The expert at the base's levels; InputError, before anything is begun, if it cannot be."""
    for name, model in (("base", base), ("expert", expert)):
        if getattr(model, "schedule", None) is None:
            raise InputError(
                f"{name}: {type(model).__name__} is not allowed: a model with a schedule, a "
                "rrlib.Denoiser, is needed."
            )
    expert = aligned(base, expert)
    if not isinstance(samples, Tensor) or not samples.is_floating_point():
        kind = samples.dtype if isinstance(samples, Tensor) else type(samples).__name__
        raise InputError(f"samples: {kind} is not allowed: a tensor of floats is needed.")
    if samples.ndim < 2 or not samples.numel():
        raise InputError(
            f"samples: shape {tuple(samples.shape)} is not allowed: samples [B, ...] are needed."
        )
    check_finite("samples", samples)
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={shown(value)} is not allowed: at least 1 is needed.")
    t = torch.zeros(1, dtype=torch.long, device=samples.device)
    compare_at(base, expert, samples[:1], t)  # models of another space say so here
    return expert


def _asked(
    base: Denoiser, expert: Denoiser, x_t: Tensor, t: Tensor, batch: int, seen: list[Tensor]
) -> Comparisons:
    """Both models about x_t [N, ...] at t [N], a batch at a time; `seen` is to be checked."""
    pairs = zip(x_t.split(batch), t.split(batch), strict=True)
    parts = [compare_at(base, expert, *pair, seen) for pair in pairs]
    names = ("x", "t", "base", "expert")
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return Comparisons(**joined, model=base)


def _beside(table: Tensor, like: Tensor) -> Tensor:
    """A number for each of the first axis, [K, 1, ...], to multiply `like` [K, ...]."""
    return table.reshape(-1, *[1] * (like.ndim - 1))


def _inner(a: Tensor, b: Tensor, count: int) -> Tensor:
    """<a, b> of each row, [K, count], of K times `count` rows; float32 at least."""
    return (a.to(wide(a)) * b).flatten(1).sum(1).reshape(-1, count)


def _repeated(
    one: Callable[[Tensor, torch.Generator], Tensor],
    samples: Tensor,
    few: int,
    probes: int,
    seed: int,
) -> Tensor:
    """`one` of a few samples at a time, [probes, B], each time with draws of its own."""
    device = str(samples.device)
    parts = []
    for k, x in enumerate(samples.split(few)):
        draws = [stream(seed, f"probe {probe} of {k}", device) for probe in range(probes)]
        parts.append(torch.stack([one(x, generator) for generator in draws]))
    return torch.cat(parts, 1)


def _summary(draws: Tensor, calls: int) -> Estimate:
    """The mean over the first axis and its standard error; NaN of a single draw."""
    n = len(draws)
    error = draws.std(0) / n**0.5 if n > 1 else torch.full_like(draws[0], torch.nan)
    return Estimate(draws.mean(0), error, calls)


def _flow(
    name: str, model: Denoiser, x: Tensor, levels: _Levels, probes: int, generator: torch.Generator
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
