"""The reward network that is fitted: one that is given, or one that is made for a pair."""

from collections.abc import Callable
from functools import partial
from importlib import import_module

import torch
from torch import Tensor, nn

from rrlib.errors import InputError
from rrlib.method.networks import files
from rrlib.method.noise.precision import wide


def learning(network: nn.Module) -> nn.Module:
    """The same network; one whose weights are all frozen, as a fitted reward's, can learn again."""
    frozen = not any(parameter.requires_grad for parameter in network.parameters())
    return network.train().requires_grad_() if frozen else network


def made(
    make: Callable[..., nn.Module] | None, x: Tensor, unit: Tensor, context: int, seed: int
) -> nn.Module:
    """A new network for samples x [N, ...], in their precision but no less than float32.

    Args:
        make: what makes it of `width` and `unit`; None makes one for points [N, D] or plans.
        x: samples.
        unit: what a unit of its output is worth at each t, [T].
        context: numbers of a condition that it is told besides; 0 for none.
        seed: of the weights; the global generator is left as it was.
    """
    make = make or _default(x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make(width=x.shape[-1] + context, unit=unit)
    if context:
        network = import_module(files.KINDS["ContextReward"]).ContextReward(network, context)
    return network.to(wide(x))


def _default(x: Tensor) -> Callable[..., nn.Module]:
    """What makes the reward network of points [N, D] or plans [N, H, D] if none is named."""
    if x.ndim not in (2, 3):
        raise InputError(
            f"network=None is not allowed for samples of shape {tuple(x.shape[1:])}: a network "
            "(x [B, ...], t [B]) -> rho [B] is needed."
        )
    kind = import_module(files.KINDS["WindowReward"]).WindowReward
    return partial(kind, window=x.shape[1] if x.ndim == 3 else 1)
