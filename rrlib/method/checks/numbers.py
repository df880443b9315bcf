"""Counts, steps and samples."""

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from rrlib.errors import InputError, shown
from rrlib.method.noise.precision import stalls


def check_counts(least: int = 1, **counts: int) -> None:
    """Raise InputError for one that is no whole number of at least `least`."""
    for name, value in counts.items():
        if not isinstance(value, Integral) or value < least:
            raise InputError(
                f"{name}={shown(value)} is not allowed: at least {least} is needed, a whole number."
            )


def check_step(name: str, step: int, steps: int) -> None:
    """Raise InputError unless it is a step of a schedule of T = `steps`."""
    if not 0 <= step < steps:
        raise InputError(f"{name}={step} is not allowed: a step from 0 to {steps - 1} is needed.")


def check_finite(name: str, x: Tensor) -> None:
    """Raise InputError if some number of x is not finite."""
    if not torch.isfinite(x).all():
        raise InputError(
            f"{name}: numbers that are not finite are not allowed: finite ones are needed."
        )


def check_seen(name: str, x: Tensor) -> None:
    """`check_finite` of what is on the CPU: elsewhere a look would have the program wait."""
    if not stalls(x):
        check_finite(name, x)


def check_samples(name: str, x: Any) -> None:
    """Raise InputError unless x is a tensor of floats, [n, ...]."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"{name} of {kind} is not allowed: a tensor of floats is needed.")
    if x.ndim < 2 or not x.numel():
        raise InputError(
            f"{name} of shape {tuple(x.shape)} is not allowed: samples [n, ...] are needed."
        )
