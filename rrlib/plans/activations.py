"""Mish (Misra 2020), faster where no gradient is asked for: in pools and in sampling."""

import torch
from torch import Tensor, nn
from torch.nn import functional

LINEAR = 20.0  # from here on Mish is x itself, to all digits of float64


def mish(x: Tensor) -> Tensor:
    """x tanh(log(1 + e^x)), elementwise: `torch.nn.functional.mish`.

    With n = e^x (e^x + 2) the hyperbolic tangent is n / (n + 2): one exponential in place of
    torch's three functions. Half precision cannot hold n; there, and where a gradient is asked
    for, it is torch's own.
    """
    if (torch.is_grad_enabled() and x.requires_grad) or x.element_size() < 4:
        return functional.mish(x)
    e = x.clamp(max=LINEAR).exp_()
    n = (e + 2).mul_(e)
    return n.div_(n + 2).mul_(x)


class Mish(nn.Mish):
    """`mish` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return mish(input)


def replace_mish(module: nn.Module, layer: type[nn.Module]) -> None:
    """Put another layer in the place of each `nn.Mish` inside a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.Mish):
            setattr(module, name, layer())
        else:
            replace_mish(child, layer)
