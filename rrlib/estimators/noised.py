"""Log ratios of noised samples: which model denoises better, at each level or along a path."""

from typing import Literal

import torch
from torch import Tensor

from rrlib.errors import InputError, check_one_of
from rrlib.estimators.levels import (
    Estimate,
    Levels,
    asked,
    checked,
    inner,
    repeated,
    summary,
)
from rrlib.method.checks.levels import check_schedule, check_start
from rrlib.method.checks.pairs import check_answers, check_known
from rrlib.method.denoisers import Denoiser
from rrlib.method.noise.precision import beside, narrow, wide
from rrlib.method.rewards import RelativeReward

Weights = Literal["variational", "unweighted"]


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
        base, expert: diffusion models of one space, read at the base's levels; of models that are
            told a condition, a row of it for each sample.
        samples: x_0, [B, ...]; models are asked in their precision, float64 if they have it.
        weights: see above.
        steps: noise levels K, spaced evenly over the T; None takes all.
        probes: draws of the noise at every level; a single one gives no standard error.
        seed: of the draws.
        batch: samples per call of a model.

    Raises:
        InputError: models without a schedule or of no common level; samples that do not suit them,
            or are not finite; a number out of range; an answer that is not finite; a last common
            level that is not nearly noise (alpha-bar over 0.05), where the sum would break off.

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
    expert = checked(base, expert, samples, probes=probes, batch=batch)
    levels = Levels.of(base, expert, samples, steps)
    count = len(levels.t)
    factors = levels.nats if weights == "variational" else levels.snr / count

    seen: list[Tensor] = []

    def one(x: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        shape = ((count + 1) // 2, *x.shape)
        draw = torch.randn(shape, generator=generator, device=x.device, dtype=wide(x))
        draw = torch.stack([draw, -draw], 1).flatten(0, 1)[:count]
        clean, noise = (beside(part.sqrt(), draw) for part in (levels.abar, levels.rest))
        x_t = narrow(clean * x + noise * draw, x).flatten(0, 1)
        t = levels.t.repeat_interleave(len(x))
        both = asked(base, expert, x_t, t, rows.repeat(len(levels.t)), batch, seen)
        far = 2 * x.expand_as(draw).flatten(0, 1) - both.base - both.expert
        return factors @ inner(both.expert - both.base, far, len(x))

    draws = repeated(one, samples, max(1, batch // count), probes, seed)
    check_answers(seen)
    return summary(draws, 2 * count * probes)


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
    expert = checked(base, expert, samples, probes=probes, batch=batch)
    levels = Levels.of(base, expert, samples, steps)
    sigma2 = 1 / levels.snr  # of y = x_t / sqrt(abar_t), a path of independent increments
    increments = sigma2.diff(prepend=sigma2.new_zeros(1))

    seen: list[Tensor] = []

    def one(x: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        shape = (len(levels.t), *x.shape)
        draw = torch.randn(shape, generator=generator, device=x.device, dtype=wide(x))
        moves = beside(increments.sqrt(), draw) * draw
        y = x + moves.cumsum(0)
        x_t = narrow(beside(levels.abar.sqrt(), y) * y, x).flatten(0, 1)
        t = levels.t.repeat_interleave(len(x))
        both = asked(base, expert, x_t, t, rows.repeat(len(levels.t)), batch, seen)
        share = beside(increments / sigma2, y)  # of the way to x0 that a step leads back
        far = share * (2 * y - (both.base + both.expert).reshape(shape)) - 2 * moves
        terms = inner(both.expert - both.base, far.flatten(0, 1), len(x))
        return (levels.snr / 2) @ terms

    draws = repeated(one, samples, max(1, batch // len(levels.t)), probes, seed)
    check_answers(seen)
    return summary(draws, 2 * len(levels.t) * probes)


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
            error. A reward of a condition is told the base's.

    Raises:
        InputError: see `elbo_difference`; a reward that was fitted at "mu_base", on another
            schedule than the base's, or not at t = 0; an expert that does not know t = 0.

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
    check_schedule("the base's", base, reward)
    check_start(reward)
    check_known("t of rho(x, t)", 0, checked(base, expert, anchors))
    given = elbo_difference(
        base, expert, anchors, steps=steps, probes=probes, seed=seed, batch=batch
    )
    t = torch.zeros(len(anchors), dtype=torch.long, device=anchors.device)
    told = () if base.condition is None else (base.condition.split(batch),)
    parts = zip(anchors.split(batch), t.split(batch), *told, strict=True)
    with torch.no_grad():
        rho = torch.cat([reward(*part) for part in parts])
    unit = base.mean_per_score(t[:1], rho) if reward.target == "mean" else 1.0
    return summary(given.value - rho / unit, given.calls)
