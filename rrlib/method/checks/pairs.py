"""A pair of models and what they are compared on: whether they belong together."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rrlib.errors import InputError, shown
from rrlib.method.checks.numbers import check_finite, check_samples
from rrlib.method.denoisers import Denoiser
from rrlib.method.networks import calls
from rrlib.method.networks.calls import check_still, same_device
from rrlib.method.noise.paths import VariancePreserving

NOISE = 0.05  # alpha-bar at most of a level that stands for noise alone, where all data look alike
BEYOND = 0.01  # share of numbers beyond the clip's range that new data of an old range may have
# How torch says that a network and its input do not belong together.
_SHAPES = re.compile("shape|size|channels|dimension|groups")


def check_source(data: Any, shape: Any, condition: Any) -> None:
    """Raise InputError unless there are two tensors of data, or the shape of a sample instead."""
    if data is None:
        if shape is None or condition is not None:
            raise InputError(
                "data=None is not allowed without the shape of a sample, nor with a condition: "
                "data are needed."
            )
        return
    if shape is not None:
        raise InputError("shape is not allowed with data: one of the two is needed.")
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise InputError(
            f"data of {type(data).__name__} is not allowed: two tensors, the base's samples "
            "and the expert's, are needed."
        )


def check_data(base_data: Any, expert_data: Any, clip: float | None) -> None:
    """Raise InputError unless both are samples of one kind, within a clip of x0 if there is one."""
    for name, data in (("base_data", base_data), ("expert_data", expert_data)):
        check_samples(name, data)
        for what in ("dtype", "device"):
            mine, other = getattr(base_data, what), getattr(data, what)
            if mine != other:
                raise InputError(f"{name} of {other} is not allowed: the base's {mine} is needed.")
        if data.shape[1:] != base_data.shape[1:]:
            raise InputError(
                f"{name}: samples of shape {tuple(data.shape[1:])} are not allowed: the base's "
                f"{tuple(base_data.shape[1:])} is needed."
            )
        check_finite(name, data)
        beyond = 0.0 if clip is None else float((data.abs() > clip * (1 + 1e-6)).double().mean())
        if beyond > BEYOND:
            raise InputError(
                f"{name}: {beyond:.0%} of its numbers beyond {clip:g}, where the models clip x0, "
                "are not allowed: normalised data, or a scheduler of clip_sample=False, are needed."
            )


def check_conditions(
    conditions: Any, counts: tuple[int, int] | None, device: torch.device | str
) -> None:
    """Raise InputError unless conditions are two tensors that belong together, and to the data."""
    if conditions is None:
        return
    if not isinstance(conditions, tuple | list) or len(conditions) != 2:
        raise InputError(
            f"conditions of {type(conditions).__name__} is not allowed: two tensors, of the base's "
            "samples and of the expert's, are needed."
        )
    for place, part in enumerate(conditions):
        if not isinstance(part, Tensor) or part.ndim < 1 or not len(part):
            raise InputError(f"conditions: {type(part).__name__} is not allowed: tensors [m, ...].")
        if part.shape[1:] != conditions[0].shape[1:]:
            raise InputError(
                f"conditions of shapes {tuple(conditions[0].shape[1:])} and "
                f"{tuple(part.shape[1:])} are not allowed: rows of one width are needed."
            )
        if counts and len(part) != counts[place]:
            raise InputError(
                f"conditions: {len(part)} rows are not allowed for {counts[place]} samples: one "
                "for each is needed."
            )
        if not same_device(part.device, device):
            raise InputError(f"conditions on {part.device} are not allowed: {device} is needed.")
        check_finite("conditions", part)


def check_levels(base: Denoiser, expert: Denoiser, found: Denoiser) -> None:
    """Raise InputError unless the expert `found` at the base's levels knows some, clipped alike.

    Neither may be in training mode, see `calls.check_still`.
    """
    for name, model in (("base", base), ("expert", expert)):
        check_still(name, model.network)
    first, last = found.schedule.span
    if first > last:
        raise InputError(
            f"expert: its levels ({expert.schedule.about}) are not allowed: some of the base's "
            f"({base.schedule.about}) are needed."
        )
    mine, other = base.schedule.clip, found.schedule.clip
    if mine != other:
        theirs, ours = ("no clip" if c is None else f"a clip at {c:g}" for c in (other, mine))
        raise InputError(
            f"expert: {theirs} of its x0 is not allowed: the base's scheduler has {ours}, and one "
            "choice for both is needed (clip_sample, clip_sample_range)."
        )


def check_noise(
    base: Denoiser, expert: Denoiser, use: str, needed: str, last: int | None = None
) -> None:
    """Raise InputError unless the noisiest level that both models know is noise, or nearly.

    Args:
        base, expert: the expert at the base's levels.
        use, needed: what takes that level for noise, and what it wants, for the message.
        last: the noisiest t that is asked; None for the noisiest that is known.
    """
    known = expert.schedule.span[1]
    abar = base.schedule.abar[known if last is None else last]
    if abar > NOISE:
        name = "expert" if known < base.steps - 1 else "base"
        raise InputError(
            f"{name}: a noisiest level of alpha-bar {abar:.2g} is not allowed where {use}: "
            f"{needed} needed."
        )


def check_ends(base: Denoiser, expert: Denoiser, last: int) -> None:
    """Raise InputError unless a way from data to the level `last` ends in noise, as a ratio's."""
    use = "a log ratio is summed from data to noise"
    check_noise(base, expert, use, f"models trained to {NOISE} or below are", last)


def check_begins(reward: Any) -> None:
    """Raise InputError for the difference of two models whose expert knows no noise to begin at.

    An expert that knows all of the base's levels steers as it samples by itself; so does a fitted
    reward, which has no models.
    """
    base, expert = (getattr(reward, name, None) for name in ("base", "expert"))
    if base is not None and expert is not None and expert.schedule.span[1] < base.steps - 1:
        use = "it steers samples drawn from noise"
        check_noise(base, expert, use, f"one trained to {NOISE} or below, or a fitted reward, is")


def check_known(name: str, step: int, expert: Denoiser) -> None:
    """Raise InputError unless a step of the base's is one that the expert, too, was trained at."""
    first, last = expert.schedule.span
    if not first <= step <= last:
        raise InputError(
            f"{name}={step} is not allowed: a step from {first} to {last}, which both models know, "
            "is needed."
        )


def check_runs(base: Denoiser, expert: Denoiser, runs: Any, shape: Any) -> None:
    """Raise InputError unless both models can begin at noise, half of the runs each."""
    check_noise(base, expert, "samples are drawn from noise", "data are")
    if not isinstance(runs, int) or runs < 2 or runs % 2:
        raise InputError(
            f"runs={shown(runs)} is not allowed: an even number of at least 2 is needed."
        )
    sides = shape if isinstance(shape, tuple | list) else ()
    if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
        raise InputError(
            f"shape={shown(shape)} is not allowed: the sides of one sample, as in (32, 6), are "
            "needed."
        )


def answer(name: str, model: Denoiser, x_t: Tensor, t: Tensor) -> Tensor:
    """The model's x0, [B, ...]; InputError where its network is of another space."""
    try:
        return model.answer(x_t, t)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not _SHAPES.search(str(error)):
            raise
        reason = str(error).partition("\n")[0]
        told = model.condition
        shape = f"{tuple(x_t.shape[1:])}"
        shape += "" if told is None else f" under conditions of {tuple(told.shape[1:])}"
        raise InputError(
            f"{name}: samples of shape {shape} are not allowed by its network: "
            f"models and data of one space are needed ({shown(reason)})."
        ) from error


@torch.no_grad()
def check_between(name: str, model: Denoiser, x: Tensor) -> None:
    """Raise InputError if a DDPM's network that is asked between its steps rounds its time itself.

    One that looks whole steps up (`table[t.long()]`) answers there without a word, at a level that
    x_t does not have. It is asked about some samples x [B, ...] at a step, a quarter of a step
    after it and at the next: a network of all times makes a quarter of the way or so. A difference
    of steps that rounding hides, as in bfloat16, says nothing.
    """
    path = model.schedule.path
    if model.schedule.own or not isinstance(path, VariancePreserving):
        return
    step = min(4, len(path.abar) - 2)  # early, where half precision has quarters, too
    times = torch.tensor([step, step + 0.25, step + 1], device=x.device)
    marks = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if model.known else None
    told = calls.told(calls.third_argument(model.network), model.condition, marks, len(x))
    here, between, there = (
        calls.answer(
            model.network, x, times, torch.full((len(x),), k, device=x.device), told, False
        )
        for k in range(3)
    )
    least = 64 * torch.finfo(x.dtype).eps * here.abs().max()
    if (there - here).abs().max() > least and any(torch.equal(between, o) for o in (here, there)):
        raise InputError(
            f"{name}: a network that rounds its time to whole steps is not allowed at the levels "
            "of another schedule: a network of times in between, or two models of one schedule, "
            "are needed."
        )


def check_answers(seen: Sequence[Tensor]) -> None:
    """Raise InputError unless both models' answers were finite in all batches of `compare_at`.

    The one look at them: on a GPU a look waits for all that was asked, so a loop has none.
    """
    for name, t in zip(("base", "expert"), torch.stack(list(seen)).amax(0).tolist(), strict=True):
        if t >= 0:
            raise InputError(
                f"{name}: numbers that are not finite at t={t} are not allowed: finite ones are "
                "needed."
            )


def check_differ(base: Tensor, expert: Tensor) -> None:
    """Raise InputError if both models say the same of all points."""
    if torch.equal(base, expert):
        raise InputError(
            f"expert: no difference from the base at any of {len(base)} points is not allowed: two "
            "models that differ are needed (is it the same network twice?)."
        )
