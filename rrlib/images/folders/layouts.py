"""Which parts the folder of each kind of pipeline has, and of which classes."""

from typing import NamedTuple

from diffusers import (
    DDIMPipeline,
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from rrlib.images.kinds.checks import SCHEDULERS
from rrlib.method.noise.schedulers import FLOWS


class Layout(NamedTuple):
    """Of a kind's folders: the class that is made, its parts and their classes, which may lack."""

    made: type
    parts: dict[str, set[tuple[str, str]]]
    optional: tuple[str, ...] = ()


def _of(library: str, *names: str) -> set[tuple[str, str]]:
    return {(library, name) for name in names}


_VAE = _of("diffusers", "AutoencoderKL")

_UNET = _of("diffusers", "UNet2DConditionModel")

_DIFFUSIONS, _FLOWS = _of("diffusers", *SCHEDULERS), _of("diffusers", *FLOWS)

_CLIP = _of("transformers", "CLIPTextModel")

_PROJECTED = _of("transformers", "CLIPTextModelWithProjection")

_T5 = _of("transformers", "T5EncoderModel")

_CLIP_WORDS = _of("transformers", "CLIPTokenizer", "CLIPTokenizerFast")

_T5_WORDS = _of("transformers", "T5Tokenizer", "T5TokenizerFast")

_FIRST = {
    "vae": _VAE,
    "text_encoder": _CLIP,
    "tokenizer": _CLIP_WORDS,
    "unet": _UNET,
    "scheduler": _DIFFUSIONS,
}

STABLE = Layout(StableDiffusionPipeline, _FIRST)

_SECOND = {"text_encoder_2": _PROJECTED, "tokenizer_2": _CLIP_WORDS}

_THIRD = {"text_encoder_3": _T5, "tokenizer_3": _T5_WORDS}

_FLOW = {"vae": _VAE, "tokenizer": _CLIP_WORDS, "scheduler": _FLOWS}

PIXELS = Layout(DDIMPipeline, {"unet": _of("diffusers", "UNet2DModel"), "scheduler": _DIFFUSIONS})

LAYOUTS = {
    "StableDiffusionPipeline": STABLE,
    "StableDiffusionImg2ImgPipeline": STABLE,
    "StableDiffusionPipelineSafe": STABLE,
    "StableDiffusionXLPipeline": Layout(StableDiffusionXLPipeline, _FIRST | _SECOND),
    "StableDiffusion3Pipeline": Layout(
        StableDiffusion3Pipeline,
        _FLOW
        | {"text_encoder": _PROJECTED, "transformer": _of("diffusers", "SD3Transformer2DModel")}
        | _SECOND
        | _THIRD,
        tuple(_THIRD),
    ),
    "FluxPipeline": Layout(
        FluxPipeline,
        _FLOW
        | {"text_encoder": _CLIP, "transformer": _of("diffusers", "FluxTransformer2DModel")}
        | {"text_encoder_2": _T5, "tokenizer_2": _T5_WORDS},
    ),
    "DDPMPipeline": PIXELS,
    "DDIMPipeline": PIXELS,
}

UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}  # known, and not needed
