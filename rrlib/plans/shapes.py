"""The shape of plans that a network was made for."""

from torch import Tensor

from rrlib.errors import InputError


def check_shape(name: str, plans: Tensor, shape: tuple[int, int]) -> None:
    """Raise InputError unless plans [B, H, D] have the shape (H, D)."""
    if plans.shape[1:] != shape:
        raise InputError(
            f"{name} of shape {tuple(plans.shape)} is not allowed: plans of shape {shape} are "
            "needed."
        )
