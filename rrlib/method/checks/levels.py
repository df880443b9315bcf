"""The levels of noise that a reward was fitted on, as its `about` says them."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rrlib.errors import InputError
from rrlib.method.denoisers import Denoiser
from rrlib.method.noise.schedules import Schedule

NOTED = ("log_snr", "span")  # what a fit notes; it goes into the files of a reward
NEAR = 0.02  # of log SNR: tables in float32 differ by a thousandth where there is least noise
END = 60.0  # of log SNR, where a level is noise or data alone


def noted(model: Denoiser, span: tuple[int, int] | None) -> dict[str, list]:
    """What a reward's `about` says of its fit, as JSON has it.

    Args:
        model: whose schedule it was fitted on; `log_snr` is log(abar / (1 - abar)) at each t, [T].
        span: the first and the last t of the comparisons, where these are not all; None for all.
    """
    found: dict[str, list] = {"log_snr": log_snr(model.schedule)}
    return found if span in (None, (0, model.steps - 1)) else found | {"span": list(span or ())}


def log_snr(schedule: Schedule) -> list[float]:
    """log(abar / (1 - abar)) at each t, [T], to four places; within plus and minus 60."""
    pairs = zip(schedule.abar, schedule.rest, strict=True)
    logs = (_log(abar) - _log(rest) for abar, rest in pairs)
    return [round(min(max(value, -END), END), 4) for value in logs]


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -2 * END


def check_schedule(whose: str, model: Denoiser, reward: Any) -> None:
    """Raise InputError unless a reward was fitted on the schedule of a model.

    Args:
        whose: levels the model's are, such as "the denoiser's".
        model: a denoiser.
        reward: a `RelativeReward`, which may say its levels, its number of steps, or neither; or an
            `ExactDifference`.
    """
    if reward.steps not in (None, model.steps):
        raise InputError(
            f"reward: {reward.steps} diffusion steps are not allowed: it was fitted on another "
            f"schedule than {whose} of {model.steps}, and one for both is needed."
        )
    _check_alike(_levels(reward), log_snr(model.schedule), whose)


def check_unit(unit: Tensor | None, model: Denoiser) -> None:
    """Raise InputError unless a network's units at each t, [T], are as many as a model's steps."""
    if unit is not None and len(unit) != model.steps:
        raise InputError(
            f"network: units for {len(unit)} steps are not allowed: {model.steps}, as the pairs' "
            "schedule has, are needed."
        )


def _levels(reward: Any) -> list[float] | None:
    if isinstance(base := getattr(reward, "base", None), Denoiser):
        return log_snr(base.schedule)
    return dict(getattr(reward, "about", {})).get("log_snr")


def _check_alike(mine: list[float] | None, other: list[float] | None, whose: str) -> None:
    if mine is None or other is None:
        return
    if len(mine) != len(other):
        raise InputError(
            f"reward: {len(mine)} levels of noise are not allowed beside {whose} {len(other)}: one "
            "schedule for both is needed."
        )
    gaps = [abs(a - b) for a, b in zip(mine, other, strict=True)]
    if (gap := max(gaps)) > NEAR:
        t = gaps.index(gap)
        raise InputError(
            f"reward: other levels of noise (at t = {t} a log SNR of {mine[t]:.4g}) are not "
            f"allowed beside {whose} own (there {other[t]:.4g}): one schedule for both is needed."
        )


def check_start(reward: Any) -> None:
    """Raise InputError if a reward says that it was fitted at other t than 0, where it is read."""
    span = dict(getattr(reward, "about", {})).get("span")
    if span and not span[0] <= 0 <= span[1]:
        raise InputError(
            f"reward: values at t = 0 are not allowed: it was fitted from t = {span[0]} to "
            f"{span[1]}, at the levels that both models know, and one of a pair that knows t = 0, "
            "too, is needed."
        )


def summed(rewards: Sequence[Any]) -> dict[str, Any]:
    """What the `about` of a sum says: what all rewards' say alike, and what their fits noted.

    Raises:
        InputError: they were fitted on different levels, or their steps have another order.
    """
    every = [dict(reward.about) for reward in rewards]
    found = {k: v for k, v in every[0].items() if all(k in one and one[k] == v for one in every)}
    levels = [one["log_snr"] for one in every if one.get("log_snr")]
    for other in levels[1:]:
        _check_alike(levels[0], other, "another reward's")
    orders = {tuple(one["order"]) for one in every if one.get("order")}
    if len(orders) > 1:
        raise InputError(
            f"rewards: steps of the orders {sorted(orders)} are not allowed: rewards of one layout "
            "are needed."
        )
    spans = [one["span"] for one in every if one.get("span")]
    if spans:
        found["span"] = [max(first for first, _ in spans), min(last for _, last in spans)]
    return found | ({"log_snr": levels[0]} if levels else {})
