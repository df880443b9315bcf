"""The noise levels of a model, and what it is asked at each.

A pair lives on one grid of levels, by default the base's own; a model of another path or of other
steps is asked at its own time of each level (`Schedule.at`).
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor

from rrlib.errors import InputError, check_one_of, shown
from rrlib.method.noise.paths import EDM, Flow, Path, Plain, Prediction, VariancePreserving
from rrlib.method.noise.precision import stalls, wide


def flow_schedule(
    steps: int,
    shift: float = 1.0,
    time_scale: float = 1000.0,
    prediction: Plain = "flow_prediction",
) -> "Schedule":
    """Levels of a model of flow matching: x = (1 - s) x_0 + s eps, told s times `time_scale`.

    The noisiest level lies half a step below s = 1, where a score says nothing of x_0.

    Args:
        steps: T, at least 2.
        shift: s = shift u / (1 + (shift - 1) u) of evenly spaced u (Stable Diffusion 3: 3).
        time_scale: diffusers' networks are told s times `num_train_timesteps`, 1000 s as a rule;
            others s.
        prediction: of the network; "flow_prediction" is eps - x_0. "edm" is on EDM's path alone.

    Raises:
        InputError: fewer steps, another prediction, or a number that is not positive.

    >>> schedule = flow_schedule(4)
    >>> [round(a, 3) for a in schedule.abar]  # s = 1/4, 1/2, 3/4, 7/8
    [0.9, 0.5, 0.1, 0.02]
    """
    check_one_of("prediction", prediction, Plain)
    _check_made(steps, shift=shift, time_scale=time_scale)
    u = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    u[-1] -= 0.5 / steps
    s = shift * u / (1 + (shift - 1) * u)
    return Schedule.on(Flow(time_scale), (1 - s).log() - s.log(), prediction, "flow")


def edm_schedule(
    steps: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float = 0.5,
    prediction: Prediction = "edm",
) -> "Schedule":
    """Levels of a model of x = x_0 + sigma eps, spaced as in Karras et al. (2022), rho = 7.

    Args:
        steps: T, at least 2.
        sigma_min, sigma_max: the ends of its levels.
        sigma_data: of the preconditioning.
        prediction: "edm" is the preconditioned network's answer; its time is log(sigma) / 4.

    >>> edm_schedule(3, sigma_min=0.5, sigma_max=2.0).abar[0]
    0.8
    """
    check_one_of("prediction", prediction, Prediction)
    _check_made(steps, sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=sigma_data)
    if sigma_max <= sigma_min:
        raise InputError(f"sigma_max={sigma_max} is not allowed: more than sigma_min is needed.")
    ends = (sigma_min ** (1 / 7), sigma_max ** (1 / 7))
    sigma = torch.linspace(*ends, steps, dtype=torch.float64) ** 7
    return Schedule.on(EDM(sigma_min, sigma_max, sigma_data), -sigma.log(), prediction, "EDM")


def _check_made(steps: int, **positive: float) -> None:
    if not isinstance(steps, int) or steps < 2:
        raise InputError(f"steps={shown(steps)} is not allowed: at least 2 levels are needed.")
    for name, value in positive.items():
        if not 0 < value < float("inf"):
            raise InputError(f"{name}={shown(value)} is not allowed: a positive number is needed.")


class Tables(NamedTuple):
    """What a model's levels mean, each [T] (see `paths.Asked`); `rest` is 1 - alpha-bar.

    `before` and `rest_before` are those of t - 1, 1 and 0 before the first step. A value times
    `clean` stands in x_t so that the network sees it without noise, as in its own numbers.
    """

    abar: Tensor
    before: Tensor
    rest: Tensor
    rest_before: Tensor
    time: Tensor
    ask: Tensor
    skip: Tensor
    gain: Tensor
    clean: Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise levels of a model, with what it is asked there: x_t = sqrt(abar) x_0 + ... eps.

    Its tables are its own: a scheduler may move or change its own without harm.

    Attributes:
        abar, rest: alpha-bar and 1 - alpha-bar at each t = 0 .. T - 1.
        path: the model's own levels and times.
        prediction: what the network predicts.
        clip: x0 is kept within plus and minus this; None where it is not clipped.
        large: whether sampling uses the larger of DDPM's two deviations.
        name: of the noise schedule, for messages.
        own: the levels are the model's own whole steps, which it is told as integers.
        scale: the model's own x_0 over that of the data, one factor for all numbers.
    """

    abar: tuple[float, ...]
    rest: tuple[float, ...]
    path: Path
    prediction: Prediction
    clip: float | None = None
    large: bool = False
    name: str = "its own"
    own: bool = False
    scale: float = 1.0
    copies: dict = field(default_factory=dict, repr=False)

    @classmethod
    def on(cls, path: Path, level: Tensor, prediction: Prediction, name: str) -> "Schedule":
        """Of a model asked at the lambdas `level` [T], falling, of its own path."""
        abar, rest = (2 * level).sigmoid(), (-2 * level).sigmoid()
        return cls(tuple(abar.tolist()), tuple(rest.tolist()), path, prediction, name=name)

    def scaled(self, scale: float) -> Self:
        """The same model read in the data's numbers, of which its own are `scale` times."""
        if scale == 1:
            return self
        wide = [scale**2 * a + r for a, r in zip(self.abar, self.rest, strict=True)]
        return replace(
            self,
            abar=tuple(scale**2 * a / w for a, w in zip(self.abar, wide, strict=True)),
            rest=tuple(r / w for r, w in zip(self.rest, wide, strict=True)),
            clip=None if self.clip is None else self.clip / scale,
            scale=scale * self.scale,
            copies={},
        )

    def at(self, levels: "Schedule") -> "Schedule":
        """The same model asked at the levels of another schedule, at its own time of each."""
        if levels.abar == self.abar and levels.rest == self.rest:
            return self
        return replace(self, abar=levels.abar, rest=levels.rest, own=False, copies={})

    @cached_property
    def span(self) -> tuple[int, int]:
        """The first and the last t that the model was trained at; a first above the last: none."""
        if self.own:
            return 0, len(self.abar) - 1
        least, largest = self.path.reach
        level = self._level
        inside = (level >= least - 1e-6) & (level <= largest + 1e-6)
        found = inside.nonzero().flatten().tolist()
        return (found[0], found[-1]) if found else (0, -1)

    @property
    def _level(self) -> Tensor:
        """The model's own lambda at each t, [T]."""
        abar, rest = (torch.tensor(part, dtype=torch.float64) for part in (self.abar, self.rest))
        return (abar.log() - rest.log()) / 2 - math.log(self.scale)

    def weight_of_x0(self, t: int, before: int) -> float:
        """What x0 weighs in the mean of q(x_before | x_t, x_0); `before` = -1 is x_0 itself."""
        earlier, rest = (self.abar[before], self.rest[before]) if before >= 0 else (1.0, 0.0)
        fallen = earlier - self.abar[t] if earlier < 0.5 else self.rest[t] - rest
        return fallen / (earlier**0.5 * self.rest[t])

    def lengthened(self, t: int, before: int) -> float:
        """By how much a shift of x0 moves the mean of the step to `before`, over that to t - 1."""
        near, far = (self.weight_of_x0(t, to) for to in (t - 1, before))
        return far / near

    def tables(self, like: Tensor) -> Tables:
        """All tables on the device of `like`, in its precision but no less than float32."""
        key = like.device, wide(like)
        if key not in self.copies:
            abar, rest = (
                torch.tensor(part, dtype=torch.float64).to(key[1])
                for part in (self.abar, self.rest)
            )
            before = torch.cat([abar.new_ones(1), abar[:-1]])
            rest_before = torch.cat([rest.new_zeros(1), rest[:-1]])
            time, *rows = self._asked()
            time = time.to(key[1]) if time.is_floating_point() else time
            rows = [row.to(key[1]) for row in rows]
            made = (abar, before, rest, rest_before, time, *rows)
            self.copies[key] = Tables(*(part.to(like.device) for part in made))
        return self.copies[key]

    def _asked(self) -> tuple[Tensor, ...]:
        """time, ask, skip, gain and clean, of x_t and x_0 in the data's numbers, [T].

        Beyond its reach the model is asked at its end.
        """
        if isinstance(self.path, VariancePreserving) and self.own:
            found = self.path.steps(self.prediction)
        else:
            found = self.path.at(self._level.clamp(*self.path.reach), self.prediction)
        longer = ((found.alpha * self.scale).square() + found.sigma.square()).sqrt()
        skip, gain = longer * found.skip / self.scale, found.gain / self.scale
        return found.time, longer * found.ask, skip, gain, self.scale / longer

    @property
    def about(self) -> str:
        """For messages."""
        ends = f"alpha-bar from {self.abar[0]:.6g} to {self.abar[-1]:.3g}"
        return f"{len(self.abar)} steps, {self.name}, {ends}"


def kept_steps(steps: int, num_inference_steps: int) -> list[int]:
    """Those of T = `steps` steps that a shorter sampling visits, from T - 1 down to 0.

    Raises:
        InputError: fewer than 2 steps, unless T is visited whole, or more than T.
    """
    if not min(2, steps) <= num_inference_steps <= steps:
        raise InputError(
            f"num_inference_steps={num_inference_steps} is not allowed: a number from 2 to "
            f"{steps}, the steps that the models were trained with, is needed."
        )
    if steps == 1:
        return [0]
    gaps = num_inference_steps - 1
    return [round(k * (steps - 1) / gaps) for k in reversed(range(num_inference_steps))]


def check_times(t: Tensor, steps: int) -> None:
    """Raise InputError unless t [B] are steps of the schedule (looked at on the CPU alone)."""
    if not isinstance(t, Tensor) or t.dtype.is_floating_point or t.dtype == torch.bool:
        kind = t.dtype if isinstance(t, Tensor) else type(t).__name__
        raise InputError(f"t of {kind} is not allowed: a tensor of whole numbers is needed.")
    if stalls(t) or not t.numel():
        return
    if t.min() < 0 or t.max() >= steps:
        worst = int(t.min()) if t.min() < 0 else int(t.max())
        raise InputError(f"t={worst} is not allowed: steps from 0 to {steps - 1} are needed.")
