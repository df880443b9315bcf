"""Reward networks made of others: their sum, or one in other coordinates."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from rrlib.errors import InputError
from rrlib.method.networks.calls import third_argument, valued


def asked(network: nn.Module, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    """rho, [B], told the condition if the network takes one; InputError for another shape."""
    if third_argument(network) is None:
        return valued(network, x, t)
    return valued(network, x, t, condition)


def per_step(network: nn.Module, plans: Tensor) -> Tensor:
    """What a network says of each step of plans [B, H, D] at t = 0, [B, H]."""
    own = getattr(network, "per_step", None)
    if own is None:
        raise InputError(
            f"reward: {type(network).__name__} is not allowed: it values a plan as a whole, and a "
            "WindowReward is needed to value each step."
        )
    return own(plans)


class WeightedSum(nn.Module):
    """sum_k w_k rho_k(x_t, t), [B], of several reward networks."""

    SHAPE: ClassVar = ("weights",)
    PARTS: ClassVar = ("networks",)

    def __init__(self, networks: Sequence[nn.Module], weights: Sequence[float]):
        super().__init__()
        self.networks, self.weights = nn.ModuleList(networks), tuple(weights)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The sum, [B], for x_t [B, ...] and t [B]."""
        parts = zip(self.weights, self.networks, strict=True)
        return sum(weight * asked(network, x_t, t, condition) for weight, network in parts)

    def per_step(self, plans: Tensor) -> Tensor:
        """The sum of what they say of each step, [B, H]."""
        parts = zip(self.weights, self.networks, strict=True)
        return sum(weight * per_step(network, plans) for weight, network in parts)


class Rescaled(nn.Module):
    """rho(scale * y, t): a reward in coordinates y = x / scale, to be fitted in.

    The gradient to y is `scale` times that to x, so L_RRF of points x / scale and targets scale * d
    is L_RRF with each coordinate's squared error weighed by scale^2.

    Args:
        network: (x [B, ...], t [B]) -> rho [B]; it is what learns.
        scale: of each coordinate, [...].
    """

    TABLES: ClassVar = ("scale",)
    PARTS: ClassVar = ("network",)

    def __init__(self, network: nn.Module, scale: Tensor):
        super().__init__()
        self.network = network
        self.register_buffer("scale", scale.clone())

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        """rho, [B]."""
        return self.network(y * self.scale, t)

    def per_step(self, plans: Tensor) -> Tensor:
        """What the network says of each step, [B, H]."""
        return per_step(self.network, plans * self.scale)
