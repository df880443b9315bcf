"""Which kind a pipeline is of: its network says."""

from collections.abc import Callable
from typing import Any

from diffusers import (
    DiffusionPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import nn

from rrlib.errors import InputError
from rrlib.images.kinds.flows import Flux, StableDiffusion3
from rrlib.images.kinds.pixels import Pixels
from rrlib.images.kinds.protocol import Kind
from rrlib.images.kinds.stable_diffusion import StableDiffusion, StableDiffusionXL

KINDS: dict[type, Callable[[Any], Kind]] = {
    UNet2DModel: Pixels,
    UNet2DConditionModel: StableDiffusion,
    SD3Transformer2DModel: StableDiffusion3,
    FluxTransformer2DModel: Flux,
}
NETWORKS = {"unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"} | {
    "safety_checker",  # of finished images
    "image_encoder",  # of image adapters
}
SUPPORTED = (
    "an unconditional pipeline of pixels (DDPM, DDIM), Stable Diffusion 1 and 2, XL, 3, or Flux"
)


def kind_of(pipeline: Any) -> Kind:
    """The pipeline seen as one of its kind.

    Raises:
        InputError: it is of none, or its parts do not belong together, in one sentence.
    """
    found, why = _seen(pipeline), fault(pipeline)
    if found is None or why:
        raise InputError(f"pipeline: {type(pipeline).__name__} is not allowed: {why}.")
    return found


def fault(pipeline: Any) -> str | None:
    """Why the samplers cannot use this pipeline, in a clause; None where they can."""
    found = _seen(pipeline)
    if found is None:
        return f"it is none of {SUPPORTED}"
    parts = pipeline.components if isinstance(pipeline, DiffusionPipeline) else {}
    for name, part in parts.items():
        if isinstance(part, nn.Module) and name not in NETWORKS:
            return f"its part {name!r} would be left out; a pipeline without it is needed"
    return found.fault()


def _added(found: Kind) -> bool:
    """Whether a U-Net of Stable Diffusion is told more than a text."""
    return isinstance(found, StableDiffusion) and bool(found.network.config.addition_embed_type)


def _seen(pipeline: Any) -> Kind | None:
    for name in ("unet", "transformer"):
        network: Any = getattr(pipeline, name, None)
        for known, kind in KINDS.items():
            if isinstance(network, known):
                found = kind(pipeline)
                return StableDiffusionXL(pipeline) if _added(found) else found
    return None
