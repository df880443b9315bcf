"""One contract for every diffusion model: a network, a scheduler, and four readings.

The readings of a model at (x_t, t) are x0 = E[x_0 | x_t], epsilon, the score and the mean of
p(x_{t-1} | x_t).
They say the same thing in four ways; every conversion between them is here and nowhere else.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rrlib.errors import InputError, shown
from rrlib.method.networks import calls
from rrlib.method.noise.precision import beside, narrow, wide
from rrlib.method.noise.schedulers import schedule_of
from rrlib.method.noise.schedules import Schedule, check_times

if TYPE_CHECKING:  # diffusers takes seconds to import
    from diffusers import SchedulerMixin


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A diffusion model, read at the levels of a schedule: x_t = sqrt(abar_t) x_0 + ... eps.

    Readings are in the precision of x_t, computed in no less than float32.

    Attributes:
        network: (x [B, ...], time [B]) -> prediction [B, ...], or an object with it as `sample` (as
            diffusers' networks answer). It is asked in its own numbers, as it was trained: x as
            its own path has it, times as its scheduler counts them (int64 steps k of T of a DDPM;
            s T of a flow; log(sigma) / 4 of EDM), and predicts what its scheduler says. A third
            argument, if it takes one, is the condition.
        scheduler: diffusers' DDPMScheduler or another of models with E[x_0 | x_t] (DDIM, Euler,
            DPM-Solver, flow matching, EDM), or a `Schedule`, such as `flow_schedule(100)`; t runs
            over 0 .. T - 1, and t = 0 is the least noise.
        condition: what the network is told besides, [B, ...]; None for nothing.
        known: observations [B, do] that are given at steps of the plan, see
            `plans.conditioning.given`; a network whose third argument is called `given` or `marks`
            is told which steps they are, bool [B, H].
        scale: the model's own x_0 over the data's, where its data were scaled by another factor.

    Raises:
        InputError: a scheduler of another kind; when asked, a t that is no step, or an x_t or a
            condition that the network cannot take.

    >>> import rrlib, torch
    >>> model = rrlib.Denoiser(lambda x, t: 0.5 * x, rrlib.cosine_scheduler(10, clip=False))
    >>> x_t, t = torch.ones(2, 3), torch.tensor([0, 9])
    >>> model.steps, model.x0(x_t, t)[0]
    (10, tensor([0.5000, 0.5000, 0.5000]))
    >>> model.score(x_t, t).shape == model.epsilon(x_t, t).shape == model.mean(x_t, t).shape
    True
    """

    network: Callable[..., Tensor]
    scheduler: "SchedulerMixin | Schedule"
    condition: Tensor | None = None
    known: tuple[tuple[int, Tensor], ...] = ()
    scale: float = 1.0

    def __post_init__(self):
        if not isinstance(self.scale, int | float) or not 0 < self.scale < float("inf"):
            raise InputError(
                f"scale={shown(self.scale)} is not allowed: a positive number is needed."
            )
        _ = self.schedule  # a scheduler that cannot be read is refused here

    @cached_property
    def schedule(self) -> Schedule:
        """The levels that it is read at, and what it is asked there."""
        return schedule_of(self.scheduler).scaled(self.scale)

    @property
    def steps(self) -> int:
        """T, the number of diffusion steps."""
        return len(self.schedule.abar)

    def at(self, levels: "Denoiser") -> "Denoiser":
        """The same model read at the levels of another, at its own time of each."""
        schedule = self.schedule.at(levels.schedule)
        return self if schedule is self.schedule else replace(self, scheduler=schedule, scale=1.0)

    def told(self, condition: Tensor | None) -> "Denoiser":
        """The same model under a condition [B, ...]."""
        return self if condition is None else self.altered(condition=condition)

    def altered(self, **fields) -> "Denoiser":
        """The same model with other fields than its schedule's: it keeps its tables."""
        made = copy.copy(self)
        made.__dict__.update(fields)
        return made

    def abar(self, t: Tensor, like: Tensor) -> Tensor:
        """alpha-bar at t, [B, 1, ...] to multiply `like` [B, ...]; float32 at least."""
        return _at(self.schedule.tables(like).abar, t, like)

    def rest(self, t: Tensor, like: Tensor) -> Tensor:
        """1 - alpha-bar at t, [B, 1, ...]: exact where alpha-bar itself rounds to 1."""
        return _at(self.schedule.tables(like).rest, t, like)

    def noise(self, x0: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        """A draw of x_t given x_0 [B, ...] at t [B] (the forward process, appendix A.2)."""
        check_times(t, self.steps)
        draw = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        return narrow(self.abar(t, x0).sqrt() * x0 + self.rest(t, x0).sqrt() * draw, x0)

    def predict(self, x: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        """What the network itself says, [B, ...]; `given` [B, H] is for one that is told."""
        calls.check_tensor("x_t", x)
        check_times(t, self.steps)
        told = calls.told(self._third, self.condition, given, len(x))
        tables = self.schedule.tables(x)
        seen = x if self._plain else narrow(_at(tables.ask, t, x) * x, x)
        return calls.answer(self.network, seen, tables.time, t, told, own=self.schedule.own)

    @property
    def _plain(self) -> bool:
        """Whether the network sees x_t as it is."""
        return self.schedule.own and self.schedule.scale == 1

    @cached_property
    def _third(self) -> inspect.Parameter | None:
        return calls.third_argument(self.network)

    def answer(self, x_t: Tensor, t: Tensor) -> Tensor:
        """`x0` in no less than float32, whatever the precision of x_t: what readings start from."""
        if not self.known:
            return self._clean(self.predict(x_t, t), x_t, t)
        marks = torch.zeros(x_t.shape[:2], dtype=torch.bool, device=x_t.device)
        for step, _ in self.known:
            marks[:, step] = True
        clean = _at(self.schedule.tables(x_t).clean, t, x_t)[:, 0]
        seen = self._put(x_t, 1.0 if self._plain else clean)
        return self._put(self._clean(self.predict(seen, t, marks), seen, t), 1.0)

    def _clean(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x0 from the network's prediction at x_t."""
        out = out.to(wide(out))
        if self.schedule.prediction != "sample" or not self._plain:
            tables = self.schedule.tables(x_t)
            out = _at(tables.skip, t, x_t) * x_t + _at(tables.gain, t, x_t) * out
        limit = self.schedule.clip
        return out if limit is None else out.clamp(-limit, limit)

    def _put(self, x: Tensor, scale: Tensor | float) -> Tensor:
        """x with what is given, times `scale` [B, 1], in its place."""
        x = x.clone()
        for step, observation in self.known:
            x[:, step, -observation.shape[-1] :] = observation * scale
        return x

    def x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t], [B, ...], clipped where the scheduler clips."""
        return narrow(self.answer(x_t, t), x_t)

    def score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x_t), [B, ...]."""
        return narrow(self.score_from_x0(self.answer(x_t, t), x_t, t), x_t)

    def epsilon(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The predicted noise, [B, ...]: minus the score times sqrt(1 - abar_t)."""
        score = self.score_from_x0(self.answer(x_t, t), x_t, t)
        return narrow(-score * self.rest(t, x_t).sqrt(), x_t)

    def mean(self, x_t: Tensor, t: Tensor) -> Tensor:
        """mu(x_t, t), the mean of p(x_{t-1} | x_t), [B, ...] (Eq. 17); x0 itself at t = 0."""
        return narrow(self.mean_from_x0(self.answer(x_t, t), x_t, t), x_t)

    def score_from_x0(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The score that belongs to an x0, [B, ...] (Tweedie's formula); float32 at least."""
        return (self.abar(t, x_t).sqrt() * x0 - x_t) / self.rest(t, x_t)

    def mean_from_x0(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The mean that belongs to an x0, [B, ...]: of q(x_{t-1} | x_t, x_0); float32 at least."""
        return _mean(x0, x_t, self._step(t, x_t))

    def mean_per_score(self, t: Tensor, like: Tensor) -> Tensor:
        """beta_t / sqrt(alpha_t), [B, 1, ...]: a score difference times it is a mean difference.

        Raises:
            InputError: the last step is noise alone, where scores do not differ and means do.
        """
        if self.schedule.abar[-1] == 0:
            raise InputError(
                "scheduler: a last step of noise alone (zero terminal SNR) is not allowed where "
                "scores are turned into means: target='mean' and displacement_units are needed."
            )
        step = self._step(t, like)
        return step.beta / (step.abar / step.before).sqrt()

    def deviation(self, t: Tensor, like: Tensor) -> Tensor:
        """sigma_t of p(x_{t-1} | x_t), [B, 1, ...]: the smaller of DDPM's two choices.

        The larger one where the scheduler's `variance_type` says so; float32 at least.
        """
        return _deviation(self, self._step(t, like))

    def _step(self, t: Tensor, like: Tensor) -> "Step":
        tables = self.schedule.tables(like)
        return Step(*(_at(table, t, like) for table in tables[:4]))


class Step(NamedTuple):
    """A denoising step from alpha-bar `abar` to `before`; `rest` is 1 - alpha-bar of each."""

    abar: Tensor
    before: Tensor
    rest: Tensor
    rest_before: Tensor

    @property
    def beta(self) -> Tensor:
        """1 - abar / before, by the difference of whichever of abar and rest is the smaller."""
        noisy = self.before < 0.5
        fallen = torch.where(noisy, self.before - self.abar, self.rest - self.rest_before)
        return fallen / self.before


def _at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """table[t] shaped [B, 1, ...]."""
    return beside(table[t], like)


def _mean(x0: Tensor, x_t: Tensor, step: Step) -> Tensor:
    """Of q(x | x_t, x_0) for the x at `before`."""
    alpha = step.abar / step.before
    clean = step.before.sqrt() * step.beta * x0
    return (clean + alpha.sqrt() * step.rest_before * x_t) / step.rest


def _deviation(denoiser: Denoiser, step: Step) -> Tensor:
    """Of a step to `before`; 0 where that is x_0."""
    if denoiser.schedule.large:
        return step.beta.sqrt() * (step.rest_before > 0)
    return (step.beta * step.rest_before / step.rest).sqrt()


def between(
    denoiser: Denoiser, x0: Tensor, x_t: Tensor, t: int, before: int
) -> tuple[Tensor, Tensor]:
    """Mean [B, ...] and deviation [] of q(x_before | x_t, x_0), steps between t and it left out.

    With before = t - 1 it is `Denoiser.mean_from_x0` and `Denoiser.deviation`; before = -1 is x_0.
    """
    step = step_between(denoiser, x_t, t, before)
    return _mean(x0, x_t, step), _deviation(denoiser, step)


def step_between(denoiser: Denoiser, like: Tensor, t: int, before: int) -> Step:
    """The step from t to `before`, -1 for x_0; each part [], float32 at least."""
    abar, _, rest, *_ = denoiser.schedule.tables(like)
    earlier = (
        (abar[before], rest[before]) if before >= 0 else (abar.new_ones(()), abar.new_zeros(()))
    )
    return Step(abar[t], earlier[0], rest[t], earlier[1])
