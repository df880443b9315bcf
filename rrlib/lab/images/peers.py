"""Samplers of images against a peer."""

import warnings
from collections.abc import Sequence

from diffusers.utils import logging

from rrlib import training
from rrlib.images import guided as images
from rrlib.images.guided import Guided


def peer_gap(guided: Guided, name: str, prompts: Sequence[str], seed: int) -> float:
    """Largest difference of final latents between ours and diffusers' own safe pipeline.

    Args:
        guided: a safe sampler.
        name: of its configuration.
        prompts: one image each.
        seed: of the noise.
    """
    loud = logging.get_verbosity()
    logging.set_verbosity_error()  # it is deprecated, and says so in two ways
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers.pipelines.deprecated import stable_diffusion_safe as peers

        whole = guided.pipeline
        parts = (whole.vae, whole.text_encoder, whole.tokenizer, whole.unet)
        rest = (guided.scheduler, None, None)
        peer = peers.StableDiffusionPipelineSafe(*parts, *rest, requires_safety_checker=False)
        peer.set_progress_bar_config(disable=True)
        peer.safety_concept = guided.concept
        x = guided.start(len(prompts), training.stream(seed, "peer"))
        seen = []
        peer(
            list(prompts),
            num_inference_steps=guided.steps,
            guidance_scale=guided.scale,
            latents=x.clone(),
            output_type="np",
            callback=lambda step, t, latents: seen.append(latents),
            **getattr(peers.SafetyConfig, name.upper()),
        )
    logging.set_verbosity(loud)
    *_, (_, last) = images.denoise(guided, guided.condition(prompts), x)
    return float((last - seen[-1]).abs().max())
