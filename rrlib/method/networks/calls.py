"""How a network is asked: its third argument, if it takes one, and what can go wrong."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm, dropout

from rrlib.errors import InputError

TOLD = ("given", "marks", "condition")  # third arguments that are told something, default or not
_WHOLE = re.compile("Long|Int|indices|indexing")  # how torch says that it wants integers


def third_argument(network: Callable) -> inspect.Parameter | None:
    """A network's third argument: what is given, or a condition; None if it takes none.

    Raises:
        InputError: one that is needed, and can be given by its name alone.
    """
    try:
        found = inspect.signature(getattr(network, "forward", network)).parameters
    except (TypeError, ValueError):  # written in C: it says nothing of its arguments
        return None
    by_name = {"KEYWORD_ONLY", "VAR_KEYWORD"}
    placed = [p for p in found.values() if p.kind.name not in by_name]
    for one in found.values():
        if one.kind == one.KEYWORD_ONLY and one.default is one.empty:
            raise InputError(
                f"network: its argument {one.name!r}, which must be named, is not allowed: one "
                "that takes it as its third, after x_t and t, is needed."
            )
    third = placed[2:3] or [p for p in placed if p.kind == p.VAR_POSITIONAL]
    # Others than these, with a default, mean something else (such as `return_dict`).
    asked = (p for p in third if p.name in TOLD or p.default is p.empty or p.default is None)
    return next(asked, None)


def told(
    third: inspect.Parameter | None, condition: Tensor | None, given: Tensor | None, count: int
) -> tuple[Tensor, ...]:
    """What a network's third argument is to be, if it is to have one.

    Args:
        third: see `third_argument`.
        condition: what `count` samples are under, [count, ...].
        given: which steps of their plans are given, bool [count, H].

    Raises:
        InputError: a condition that the network cannot take, or none that it needs.
    """
    if condition is not None:
        if len(condition) != count:
            raise InputError(
                f"condition of {len(condition)} rows is not allowed for {count} samples: "
                "one for each is needed."
            )
        if third is None:
            raise InputError(
                "condition: a network of two arguments, x_t and t, is not allowed: one that "
                "takes a condition as its third is needed."
            )
        return (condition,)
    if third is None:
        return ()
    if third.name in ("given", "marks") or third.kind == third.VAR_POSITIONAL:
        return () if given is None else (given,)
    if third.default is not third.empty:
        return ()
    raise InputError(
        f"condition: none is not allowed: the network's third argument, {third.name!r}, is "
        "needed (`denoiser.told(condition)`)."
    )


def answer(
    network: Callable[..., Any],
    x: Tensor,
    times: Tensor,
    t: Tensor,
    told: tuple[Tensor, ...],
    own: bool,
) -> Tensor:
    """What a network says of x [B, ...] at steps t [B], [B, ...].

    Args:
        network: answers with a tensor, or an object that has it as `sample`.
        x, t, told: what it is asked.
        times: its own time of each step, [T].
        own: whether the times are whole steps, as it was trained. If they are not, a network that
            refuses fractions is named; one that rounds them by itself answers, see `check_between`.

    Raises:
        InputError: x is of another kind than its weights, or its answer is none.
    """
    try:
        out = network(x, times[t], *told)
    except (RuntimeError, IndexError) as error:
        _check_input(network, x)
        if not own and _WHOLE.search(str(error)):
            raise InputError(
                "network: whole steps only are not allowed at the levels of another schedule: "
                "a network of times in between, or two models of one schedule, are needed."
            ) from error
        raise
    out = getattr(out, "sample", out)
    if not isinstance(out, Tensor) or out.shape != x.shape:
        what = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise InputError(
            f"network: an answer of {what} to x_t of shape {tuple(x.shape)} is not allowed: "
            "one prediction for each number is needed (of a learned variance, cut it off)."
        )
    return out


def valued(network: Callable[..., Any], x: Tensor, t: Tensor, *told: Any) -> Tensor:
    """What a reward network says of x [B, ...] at t [B], [B].

    Raises:
        InputError: its answer has another shape; one of [B, 1] would be taken for a table [B, B].
    """
    out = network(x, t, *told)
    if not isinstance(out, Tensor) or out.shape != (len(x),):
        what = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise InputError(
            f"network: an answer of {what} to {len(x)} points is not allowed: one number for each, "
            f"of shape ({len(x)},), is needed."
        )
    return out


def check_still(name: str, network: Any) -> None:
    """Raise InputError if a network is in training mode, and that changes what it says.

    Dropout would draw at random in each answer; statistics would be those of whatever stands in one
    batch, and would move with every question. Layers that a function hides are not seen.
    """
    for part in network.modules() if isinstance(network, nn.Module) else ():
        if part.training and _restless(part):
            raise InputError(
                f"{name}: a network in training mode, with a {type(part).__name__}, is not "
                "allowed: network.eval() is needed."
            )


def _restless(part: nn.Module) -> bool:
    """Whether a layer answers otherwise in training mode."""
    if isinstance(part, dropout._DropoutNd):
        return part.p > 0
    if isinstance(part, batchnorm._BatchNorm):
        return True
    if isinstance(part, batchnorm._NormBase):
        return part.track_running_stats
    return isinstance(part, nn.MultiheadAttention | nn.RNNBase) and part.dropout > 0


def check_tensor(name: str, x: Any) -> None:
    """Raise InputError unless x is a tensor."""
    if not isinstance(x, Tensor):
        raise InputError(f"{name}: {type(x).__name__} is not allowed: a torch tensor is needed.")


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
    if first is None:
        return
    for what, same in (
        ("dtype", first.dtype == x.dtype),
        ("device", same_device(first.device, x.device)),
    ):
        if not same:
            raise InputError(
                f"{name} of {getattr(x, what)} is not allowed: the network's own {what}, "
                f"{getattr(first, what)}, is needed."
            ) from None


def same_device(one: torch.device | str, other: torch.device | str) -> bool:
    """Whether two devices are one: "cuda" is whichever of its kind the other names."""
    a, b = torch.device(one), torch.device(other)
    return a.type == b.type and (None in (a.index, b.index) or a.index == b.index)
