"""One contract for every diffusion model: a network, a diffusers scheduler, and four readings.

The readings of a model at (x_t, t) are x0 = E[x_0 | x_t], epsilon, the score and the mean of
p(x_{t-1} | x_t).
They say the same thing in four ways; every conversion between them is here and nowhere else.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rrlib.errors import InputError
from rrlib.schedules import Schedule, check_times, narrow, wide

if TYPE_CHECKING:  # diffusers takes seconds to import
    from diffusers import DDPMScheduler


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A diffusion model.

    Readings are in the precision of x_t, computed in no less than float32.

    Attributes:
        network: (x_t [B, ...], t [B] int64) -> prediction [B, ...], or an object with it as
            `sample` (as diffusers' networks answer): x0, epsilon or v as the scheduler's
            `prediction_type` says ("sample", "epsilon" or "v_prediction"). With a third argument
            it is told which steps of a plan are given, bool [B, H].
        scheduler: diffusers' DDPMScheduler, or another of models of the same kind, see
            `schedules`; t runs over 0 .. T - 1, and t = 0 is the least noise.
        known: observations [B, do] that are given at steps of the plan, see
            `plans.conditioning.given`.

    Raises:
        InputError: a scheduler of another kind; when asked, a t that is no step, or an x_t that
            the network cannot take.

    >>> import rrlib, torch
    >>> model = rrlib.Denoiser(lambda x, t: 0.5 * x, rrlib.cosine_scheduler(10, clip=False))
    >>> x_t, t = torch.ones(2, 3), torch.tensor([0, 9])
    >>> model.steps, model.x0(x_t, t)[0]
    (10, tensor([0.5000, 0.5000, 0.5000]))
    >>> model.score(x_t, t).shape == model.epsilon(x_t, t).shape == model.mean(x_t, t).shape
    True
    """

    network: Callable[..., Tensor]
    scheduler: "DDPMScheduler"
    known: tuple[tuple[int, Tensor], ...] = ()

    def __post_init__(self):
        _ = self.schedule  # a scheduler that cannot be read is refused here

    @cached_property
    def schedule(self) -> Schedule:
        """The scheduler's tables, this model's own."""
        return Schedule.of(self.scheduler)

    @property
    def steps(self) -> int:
        """T, the number of diffusion steps."""
        return len(self.schedule.abar)

    def abar(self, t: Tensor, like: Tensor) -> Tensor:
        """alpha-bar at t, [B, 1, ...] to multiply `like` [B, ...]; float32 at least."""
        return _at(self.schedule.tables(like)[0], t, like)

    def noise(self, x0: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        """A draw of x_t given x_0 [B, ...] at t [B] (the forward process, appendix A.2)."""
        check_times(t, self.steps)
        draw = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        abar = self.abar(t, x0)
        return narrow(abar.sqrt() * x0 + (1 - abar).sqrt() * draw, x0)

    def predict(self, x: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        """What the network itself says, [B, ...]; `given` [B, H] is for one that is told."""
        if not isinstance(x, Tensor):
            kind = type(x).__name__
            raise InputError(f"x_t: {kind} is not allowed: a torch tensor is needed.")
        check_times(t, self.steps)
        told = () if given is None or not self._is_told else (given,)
        try:
            out = self.network(x, t, *told)
        except RuntimeError:
            _check_input(self.network, x)
            raise
        out = getattr(out, "sample", out)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            what = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise InputError(
                f"network: an answer of {what} to x_t of shape {tuple(x.shape)} is not allowed: "
                "one prediction for each number is needed (of a learned variance, cut it off)."
            )
        return out

    @cached_property
    def _is_told(self) -> bool:
        """Whether the network takes a third argument: what is given."""
        try:
            found = inspect.signature(getattr(self.network, "forward", self.network)).parameters
        except (TypeError, ValueError):  # written in C: it says nothing of its arguments
            return False
        third = [*found.values()][2:3] or [p for p in found.values() if p.kind == p.VAR_POSITIONAL]
        # Others than these, with a default, mean something else (such as `return_dict`).
        return any(p.name in ("given", "marks") or p.default is p.empty for p in third)

    def answer(self, x_t: Tensor, t: Tensor) -> Tensor:
        """`x0` in no less than float32, whatever the precision of x_t: what readings start from."""
        if not self.known:
            return self._clean(self.predict(x_t, t), x_t, t)
        marks = torch.zeros(x_t.shape[:2], dtype=torch.bool, device=x_t.device)
        for step, _ in self.known:
            marks[:, step] = True
        seen = self._put(x_t)
        return self._put(self._clean(self.predict(seen, t, marks), seen, t))

    def _clean(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x0 from the network's prediction at x_t."""
        out = out.to(wide(out))
        if self.schedule.prediction == "epsilon":
            abar = self.abar(t, x_t)
            out = (x_t - (1 - abar).sqrt() * out) / abar.sqrt()
        elif self.schedule.prediction == "v_prediction":
            abar = self.abar(t, x_t)
            out = abar.sqrt() * x_t - (1 - abar).sqrt() * out
        limit = self.schedule.clip
        return out if limit is None else out.clamp(-limit, limit)

    def _put(self, x: Tensor) -> Tensor:
        """x with what is given in its place."""
        x = x.clone()
        for step, observation in self.known:
            x[:, step, -observation.shape[-1] :] = observation
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
        return narrow(-score * (1 - self.abar(t, x_t)).sqrt(), x_t)

    def mean(self, x_t: Tensor, t: Tensor) -> Tensor:
        """mu(x_t, t), the mean of p(x_{t-1} | x_t), [B, ...] (Eq. 17); x0 itself at t = 0."""
        return narrow(self.mean_from_x0(self.answer(x_t, t), x_t, t), x_t)

    def score_from_x0(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The score that belongs to an x0, [B, ...] (Tweedie's formula); float32 at least."""
        abar = self.abar(t, x_t)
        return (abar.sqrt() * x0 - x_t) / (1 - abar)

    def mean_from_x0(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The mean that belongs to an x0, [B, ...]: of q(x_{t-1} | x_t, x_0); float32 at least."""
        return _mean(x0, x_t, self.abar(t, x_t), self._abar_before(t, x_t))

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
        alpha = self.abar(t, like) / self._abar_before(t, like)
        return (1 - alpha) / alpha.sqrt()

    def deviation(self, t: Tensor, like: Tensor) -> Tensor:
        """sigma_t of p(x_{t-1} | x_t), [B, 1, ...]: the smaller of DDPM's two choices.

        The larger one where the scheduler's `variance_type` says so; float32 at least.
        """
        return _deviation(self, self.abar(t, like), self._abar_before(t, like))

    def _abar_before(self, t: Tensor, like: Tensor) -> Tensor:
        return _at(self.schedule.tables(like)[1], t, like)


def _at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """table[t] shaped [B, 1, ...]."""
    return table[t].reshape(-1, *[1] * (like.ndim - 1))


def _mean(x0: Tensor, x_t: Tensor, abar: Tensor, before: Tensor) -> Tensor:
    """Of q(x | x_t, x_0) for the x at `before`."""
    alpha = abar / before
    return (before.sqrt() * (1 - alpha) * x0 + alpha.sqrt() * (1 - before) * x_t) / (1 - abar)


def _deviation(denoiser: Denoiser, abar: Tensor, before: Tensor) -> Tensor:
    """Of a step from abar to `before`; 0 where that is x_0."""
    if denoiser.schedule.large:
        return (1 - abar / before).sqrt() * (before < 1)
    return ((1 - abar / before) * (1 - before) / (1 - abar)).sqrt()


def _check_input(network: Callable, x: Tensor) -> None:
    """Raise InputError if an error of the network's comes from the kind or the layout of x."""
    check_beside("x_t", x, network)
    channels = getattr(getattr(network, "config", None), "in_channels", None)
    if channels is not None and x.ndim == 3 and x.shape[1] != channels:
        raise InputError(
            f"x_t of shape {tuple(x.shape)} is not allowed: {channels} channels on the second axis "
            "are needed, or rrlib.plans.networks.ChannelsFirst(network) for plans [B, H, D]."
        ) from None


def check_beside(name: str, x: Any, network: Callable) -> None:
    """Raise InputError unless x has the dtype, and is on the device, of a network's weights."""
    parts = network.parameters() if isinstance(network, nn.Module) else ()
    first = next((p for p in parts if p.dtype.is_floating_point), None)
    for what in ("dtype", "device"):
        if first is not None and str(getattr(first, what)) != str(getattr(x, what)):
            raise InputError(
                f"{name} of {getattr(x, what)} is not allowed: the network's own {what}, "
                f"{getattr(first, what)}, is needed."
            ) from None


def between(
    denoiser: Denoiser, x0: Tensor, x_t: Tensor, t: int, before: int
) -> tuple[Tensor, Tensor]:
    """Mean [B, ...] and deviation [] of q(x_before | x_t, x_0), steps between t and it left out.

    With before = t - 1 it is `Denoiser.mean_from_x0` and `Denoiser.deviation`; before = -1 is x_0.
    """
    table = denoiser.schedule.tables(x_t)[0]
    abar, earlier = table[t], table[before] if before >= 0 else table.new_ones(())
    return _mean(x0, x_t, abar, earlier), _deviation(denoiser, abar, earlier)
