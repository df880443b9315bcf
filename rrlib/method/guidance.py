"""Guided sampling of any denoiser by any relative reward."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from rrlib.errors import InputError, check_one_of
from rrlib.method.checks.numbers import check_counts, check_seen, check_step
from rrlib.method.checks.pairs import check_begins
from rrlib.method.checks.rewards import check_place, check_reward, check_scale
from rrlib.method.denoisers import Denoiser, between, step_between
from rrlib.method.exact import ExactDifference
from rrlib.method.networks.calls import check_still
from rrlib.method.noise.precision import beside, narrow
from rrlib.method.noise.schedules import kept_steps
from rrlib.method.pools import Place
from rrlib.method.rewards import RelativeReward

ApplyTo = Literal["mean", "x_t"]


def denoise(
    denoiser: Denoiser,
    start: Tensor,
    generator: torch.Generator,
    *,
    reward: RelativeReward | ExactDifference | None = None,
    guidance_scale: float | Tensor = 1.0,
    place: Place | None = None,
    force: bool = False,
    apply_to: ApplyTo = "mean",
    stop_step: int = 0,
    keep: Callable[[Tensor], Tensor] | None = None,
    num_inference_steps: int | None = None,
    resamplings: int = 0,
) -> Iterator[tuple[int, Tensor]]:
    """Ancestral sampling from noise; yields (t, x_t) from (T - 1, start) to (-1, the sample).

    A step draws x_{t-1} ~ N(mu + w c_t grad rho, sigma_t^2), which is Eq. 5 discretised: c_t turns
    a score difference into a mean difference (1 if rho was fitted to means already).
    With w = 1 and an exact reward the step is the expert's own.

    Args:
        denoiser: the base.
        start: noise, [B, ...], standard normal.
        generator: of the noise of the steps.
        reward: steers; None samples the base itself.
        guidance_scale: guidance scale w, at least 0; one for all or, [B], one for each.
        place: where grad rho is taken, "x_t" or "mu_base"; None takes the reward's own.
        force: allow a place other than the one where the reward was fitted.
        apply_to: what the gradient is added to: the "mean" of the step (Eq. 5), or, as the authors'
            code has it, "x_t" before the mean is computed (at "x_t" then, too). That form has no
            counterpart of a longer step: of fewer steps, each moves x_t no further.
        stop_step: the last t that is steered (the authors' t_stopgrad); 0 steers every step.
        keep: what every x_t is put through, such as `plans.conditioning.hold` of what the denoiser
            was given; None changes nothing.
        num_inference_steps: steps taken, spaced evenly over the T (`kept_steps`); None
            takes all. A longer step's mean is steered by the same shift of x0.
        resamplings: times that each step but the last is taken back, by noise of its own size, and
            taken again (RePaint's resampling). Exact steps would draw the same; these keep the
            smaller of two deviations, so that a sample draws nearer to where its models are dense.

    Raises:
        InputError: `guidance_scale` negative or not finite, the place is not the reward's,
            `stop_step` is no step of the schedule, `num_inference_steps` too few or too many,
            `resamplings` is no count, `apply_to` is unknown or wants another place, or a network in
            training mode.
    """
    check_still("denoiser", denoiser.network)
    if reward:
        check_reward(denoiser, reward)
        check_begins(reward)
    each = guidance_scale if isinstance(guidance_scale, Tensor) and guidance_scale.ndim else None
    scales = [guidance_scale] if each is None else each.tolist()
    for scale in scales:
        check_scale(scale)
    check_place(place, reward, force)
    check_one_of("apply_to", apply_to, ApplyTo)
    at: Place = place or (reward.place if reward else "x_t")
    if apply_to == "x_t" and at == "mu_base":
        raise InputError("apply_to='x_t' is not allowed at place='mu_base': place='x_t' is needed.")
    check_step("stop_step", stop_step, denoiser.steps)
    check_counts(0, resamplings=resamplings)
    taken = denoiser.steps if num_inference_steps is None else num_inference_steps
    steps = kept_steps(denoiser.steps, taken)
    if each is not None:
        guidance_scale = beside(each, start).to(start)
    guide = None
    if reward and any(scales):
        guide = _Guide(reward, guidance_scale, at, apply_to, stop_step)
    return _denoise(denoiser, start, generator, steps, guide, keep or (lambda x: x), resamplings)


@dataclass(frozen=True, eq=False)
class _Guide:
    reward: RelativeReward | ExactDifference
    guidance_scale: float | Tensor
    place: Place
    apply_to: ApplyTo
    stop_step: int

    def shift(self, denoiser: Denoiser, point: Tensor, t: Tensor, *mean: Tensor) -> Tensor:
        """w c_t grad rho at a point."""
        return self.guidance_scale * shift_of_mean(denoiser, self.reward, point, t, *mean)


def shift_of_mean(
    denoiser: Denoiser, reward: RelativeReward | ExactDifference, point: Tensor, t: Tensor, *mean
) -> Tensor:
    """c_t grad rho at a point, [B, ...]: expert's mean minus base's, of the step to t - 1.

    mean: the denoiser's there, if it is known; the exact difference from it need not ask again.
    """
    unit = denoiser.mean_per_score(t, point) if reward.target == "score" else 1.0
    known = mean if isinstance(reward, ExactDifference) and reward.base is denoiser else ()
    return unit * reward.gradient(point, t, denoiser.condition, *known)


def _denoise(denoiser, x, generator, steps, guide, keep, resamplings):
    yield denoiser.steps - 1, x
    x = keep(x)
    for step, before in pairwise([*steps, -1]):
        for _ in range(resamplings if before >= 0 else 0):
            x = _step(denoiser, x, step, before, generator, guide, keep)
            x = keep(noised_on(denoiser, x, step, before, generator))
        x = keep(_step(denoiser, x, step, before, generator, guide, keep))
        yield before, x


@torch.no_grad()
def _step(denoiser, x, step, before, generator, guide: _Guide | None, keep: Callable) -> Tensor:
    t = torch.full((len(x),), step, device=x.device)
    steers = guide if guide is not None and step >= guide.stop_step else None
    if steers and steers.apply_to == "x_t":
        x = keep(narrow(x + steers.shift(denoiser, x, t), x))
    x0 = denoiser.answer(x, t)
    mean, deviation = between(denoiser, x0, x, step, before)
    if steers and steers.apply_to == "mean":
        one = narrow(denoiser.mean_from_x0(x0, x, t), x)  # the mean of the step to t - 1
        shift = steers.shift(denoiser, *((x, t, one) if steers.place == "x_t" else (one, t)))
        mean = mean + shift * denoiser.schedule.lengthened(step, before)
    draw = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return narrow(mean + deviation * draw, x)


def noised_on(
    denoiser: Denoiser, x: Tensor, step: int, before: int, generator: torch.Generator
) -> Tensor:
    """A draw of x_step given x_before [B, ...], the forward process between two levels."""
    way = step_between(denoiser, x, step, before)
    draw = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return narrow((way.abar / way.before).sqrt() * x + way.beta.sqrt() * draw, x)


def sample(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    generator: torch.Generator | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    reward: RelativeReward | ExactDifference | None = None,
    guidance_scale: float | Tensor = 1.0,
    place: Place | None = None,
    force: bool = False,
    apply_to: ApplyTo = "mean",
    stop_step: int = 0,
    keep: Callable[[Tensor], Tensor] | None = None,
    num_inference_steps: int | None = None,
    resamplings: int = 0,
) -> Tensor:
    """Samples of x_0, [B, ...]: the end of `denoise` from fresh noise.

    Args:
        denoiser: the base.
        shape: of all samples together, (B, ...).
        generator: of the noise, on the samples' device; None takes one of `seed` on `device`.
        seed, device: where no generator is given.
        dtype: of the samples.
        reward, guidance_scale, place, force, apply_to, stop_step, keep: see `denoise`.
        num_inference_steps, resamplings: see there.

    Raises:
        InputError: see `denoise`; or samples that are not finite (looked at on the CPU alone).

    >>> import rrlib
    >>> base = rrlib.Denoiser(lambda x, t: 0.5 * x, rrlib.cosine_scheduler(10, clip=False))
    >>> rrlib.sample(base, (4, 32, 6), seed=1, num_inference_steps=5).shape
    torch.Size([4, 32, 6])
    """
    if generator is None:
        generator = torch.Generator(device).manual_seed(seed)
    start = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
    steps = denoise(
        denoiser,
        start,
        generator,
        reward=reward,
        guidance_scale=guidance_scale,
        place=place,
        force=force,
        apply_to=apply_to,
        stop_step=stop_step,
        keep=keep,
        num_inference_steps=num_inference_steps,
        resamplings=resamplings,
    )
    found = deque(steps, maxlen=1).pop()[1]
    check_seen("sample", found)
    return found
