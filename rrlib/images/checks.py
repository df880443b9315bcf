"""Samplers of images against a peer, and their store at the paper's size."""

import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.utils import logging
from torch import Tensor

from rrlib import training
from rrlib.images import comparisons as image_extraction
from rrlib.images import guided as images
from rrlib.images.guided import Guided
from rrlib.images.shards import Shards

PAPER_SHAPE, PAPER_STEPS, PAPER_PROMPTS = (4, 64, 64), 50, 4703  # of the latents; I2P's prompts


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


class PaperSampler:
    """Latents and steps of the paper's size, no network: what is measured is the store."""

    steps, shape = PAPER_STEPS, PAPER_SHAPE

    def __init__(self, place: float):
        self.place = place

    def condition(self, prompts: Sequence[str], truncate: bool) -> Tensor:
        """Nothing."""
        return torch.zeros(len(prompts))

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        """Noise."""
        return torch.randn(n, *self.shape, generator=generator)

    def noise(self, x: Tensor, step: int, texts: Tensor, state: None) -> tuple[Tensor, None]:
        """Towards a point of its own."""
        return x - self.place, None

    def advance(self, x: Tensor, noise: Tensor, step: int) -> Tensor:
        """A part of the way."""
        return x - 0.05 * noise


def stream(prompts: int, batch: int) -> tuple[float, int]:
    """Write and read a store of the paper's latents: peak memory in GB, bytes on disk.

    It is made in shards of `batch` prompts, its moments are taken, and a training batch of 64 is
    read. A process of its own measures it, so that nothing else counts.
    """
    script = f"from rrlib.images import checks; checks._stream({prompts}, {batch})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    peak, size = done.stdout.split()
    return float(peak), int(size)


def _stream(prompts: int, batch: int) -> None:
    texts = [str(k) for k in range(prompts)]
    with tempfile.TemporaryDirectory() as folder:
        run = image_extraction.generate(
            Path(folder), PaperSampler(0.0), PaperSampler(0.1), texts, batch=batch, seed=0
        )
        training.finish(run, "store")
        shards = Shards(Path(folder))
        every = range(prompts)
        shards.moments(every)
        pool = shards.pool(every)
        rows = torch.randint(len(pool), (64,), generator=training.stream(0, "rows"))
        assert pool.x[rows].shape == pool.target[rows].shape == (64, *PAPER_SHAPE)
        size = sum(path.stat().st_size for path in shards.files)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux: in KiB
    print(peak, size)
