"""Adapters of a pipeline's networks (LoRA), on for a call and back as they were after it.

One pipeline is base and expert in turn: its weights are in memory once. PEFT's layers are known by
what they do; nothing of PEFT is imported.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from rrlib.errors import InputError, shown


def layers(pipeline: Any) -> list[nn.Module]:
    """All layers of a pipeline's networks that carry an adapter."""
    networks = (part for part in pipeline.components.values() if isinstance(part, nn.Module))
    return [one for network in networks for one in network.modules() if carries(one)]


def carries(module: nn.Module) -> bool:
    """Whether a module is a layer with adapters (PEFT's BaseTunerLayer)."""
    return all(hasattr(module, name) for name in ("base_layer", "set_adapter", "active_adapters"))


def check(pipeline: Any, names: Sequence[str] | None, weights: Sequence[float] | None) -> None:
    """Raise InputError unless these adapters can be put on this pipeline.

    Args:
        pipeline: of diffusers.
        names: of adapters; () for none of them, None leaves the pipeline as it is.
        weights: one for each name; None is 1 for each.
    """
    if names is None:
        if weights is not None:
            raise InputError(
                f"weights={shown(weights)} is not allowed without adapters: their names are needed."
            )
        return
    listed = isinstance(names, tuple | list)
    if not listed or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"adapters={shown(names)} is not allowed: a tuple of names, such as ('style',), is "
            "needed."
        )
    found = layers(pipeline)
    known = sorted({name for layer in found for name in layer.scaling})
    for name in names:
        if name not in known:
            there = f"one of {shown(known)}" if known else "load_lora_weights first"
            raise InputError(
                f"adapters: {shown(name)} is not allowed: the pipeline has no such adapter; "
                f"{there} is needed."
            )
    if len(set(names)) < len(names):
        raise InputError(f"adapters={shown(names)} is not allowed: each name once is needed.")
    if any(layer.merged for layer in found):
        raise InputError(
            f"adapters={shown(names)} is not allowed on a pipeline with fused ones: "
            "unfuse_lora() first is needed."
        )
    if weights is None:
        return
    numbers = isinstance(weights, tuple | list) and all(
        isinstance(one, int | float) and abs(one) < float("inf") for one in weights
    )
    if not numbers or len(weights) != len(names):
        raise InputError(
            f"weights={shown(weights)} is not allowed: a finite number for each of the "
            f"{len(names)} adapters is needed."
        )


@contextmanager
def adapted(
    pipeline: Any, names: Sequence[str] | None, weights: Sequence[float] | None
) -> Iterator[None]:
    """The pipeline with these adapters and no others; after it, all is as it was.

    Args:
        pipeline, names, weights: see `check`.
    """
    if names is None:
        yield
        return
    found = layers(pipeline)
    before = [
        (layer.active_adapter, layer.disable_adapters, dict(layer.scaling)) for layer in found
    ]
    wanted = [(one, one.requires_grad) for layer in found for one in layer.parameters()]
    try:
        for layer in found:
            for name, weight in zip(names, weights or [1.0] * len(names), strict=True):
                layer.set_scale(name, weight)
            own = [name for name in names if name in layer.scaling]
            layer.set_adapter(own, inference_mode=True)
            layer.enable_adapters(bool(own))
        yield
    finally:
        for layer, (active, off, scaling) in zip(found, before, strict=True):
            # PEFT's own setters would turn a name into a list, and gradients on.
            layer._active_adapter, layer._disable_adapters = active, off
            layer.scaling.update(scaling)
        for parameter, value in wanted:
            parameter.requires_grad_(value)
