"""In which numbers one computes, beside which, and where looking at one has to wait."""

import torch
from torch import Tensor


def wide(like: Tensor) -> torch.dtype:
    """The precision of `like`, but no less than float32."""
    return torch.promote_types(like.dtype, torch.float32)


def narrow(value: Tensor, like: Tensor) -> Tensor:
    """`value` in half precision, if `like` is."""
    return value.to(like.dtype) if like.dtype != wide(like) else value


def stalls(x: Tensor) -> bool:
    """Whether a look at a value of x would have the program wait for a device, as a GPU's would."""
    return x.device.type != "cpu"


def beside(values: Tensor, like: Tensor) -> Tensor:
    """A number for each of the first axis, [B, 1, ...], to multiply `like` [B, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
