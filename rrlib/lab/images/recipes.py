"""Recipes of the miniature image world: autoencoder and text-to-image diffusion."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rrlib import training
from rrlib.images import pipelines
from rrlib.images.miniature import pipeline as miniature
from rrlib.images.miniature import scenes
from rrlib.images.miniature.pipeline import Size
from rrlib.images.miniature.scenes import Style
from rrlib.lab import recipes, store

KL = 1e-5  # weight of the autoencoder's prior: latents keep a size, and little else


@dataclass(frozen=True)
class MiniAutoencoder:
    """Stable Diffusion's autoencoder, small, of the rendered scenes.

    Attributes:
        size: of the miniature pipeline.
        scenes: rendered, in either style.
        steps, batch, learning_rate, seed: see `training.train`.
    """

    size: Size = Size()  # noqa: RUF009 (frozen)
    scenes: int = 12_000
    steps: int = 2_500
    batch: int = 32
    learning_rate: float = 2e-3
    seed: int = 0

    def make(self, folder: Path, device: str) -> None:
        """Train it, write `vae.safetensors`, the latents' spread among the weights."""
        vae = self.blank().to(device)
        halves = [
            scenes.render(self.scenes // 2, self.seed, style) for style in ("filled", "hollow")
        ]
        data = torch.from_numpy(np.concatenate([half.pixels for half in halves])).to(device)

        def loss(draws: torch.Generator) -> Tensor:
            rows = torch.randint(len(data), (self.batch,), generator=draws, device=draws.device)
            x = _pixels(data[rows])
            found = vae.encode(x).latent_dist
            latents = found.sample(draws)
            rebuilt = vae.decode(latents).sample
            # Squares: after as many steps absolute errors still lack the colours of thin lines.
            return (rebuilt - x).square().mean() + KL * found.kl().mean() / latents[0].numel()

        file = folder / "vae.safetensors"
        recipes.fitted(vae, loss, file, "autoencoder", **training.options(self))
        vae.eval()
        spread = _latents(vae, data[:: max(1, len(data) // 1_000)]).std()
        state = {name: value.contiguous() for name, value in vae.state_dict().items()}
        save_file({**state, "spread": spread}, file)

    def load(self, folder: Path, device: str) -> AutoencoderKL:
        """The autoencoder; its scaling factor gives latents of unit variance."""
        vae = self.blank()
        state = load_file(folder / "vae.safetensors")
        vae.register_to_config(scaling_factor=1 / state.pop("spread").item())
        vae.load_state_dict(state)
        return vae.to(device).eval().requires_grad_(False)

    def blank(self) -> AutoencoderKL:
        """Before training."""
        return miniature.pipeline(self.size, scenes.WORDS, self.seed).vae


@dataclass(frozen=True)
class MiniDiffusion:
    """A text-to-image pipeline of Stable Diffusion's classes that knows the rendered scenes.

    Attributes:
        autoencoder: of its latents.
        style: of the scenes it learns.
        start: a pipeline that it is a fine-tune of; None begins at random.
        layers: of the U-Net, by name, that a fine-tune changes; none named, all of them and the
            text encoder are trained.
        scenes: rendered.
        blind: share of the captions that are left out, for classifier-free guidance.
        steps, batch, learning_rate, seed: see `training.train`.
    """

    autoencoder: MiniAutoencoder = MiniAutoencoder()
    style: Style = "filled"
    start: "MiniDiffusion | None" = None
    layers: tuple[str, ...] = ()
    scenes: int = 12_000
    blind: float = 0.1
    steps: int = 5_000
    batch: int = 64
    learning_rate: float = 1e-3
    seed: int = 0

    def make(self, folder: Path, device: str) -> None:
        """Train U-Net and text encoder, or some layers; write the pipeline in half precision."""
        whole = self.blank(device)
        data = scenes.render(self.scenes, self.seed + 1, self.style)
        latents = _latents(whole.vae, torch.from_numpy(data.pixels))
        latents = (latents * whole.vae.config.scaling_factor).to(device)
        known = whole.tokenizer
        options = {"padding": "max_length", "return_tensors": "pt"}
        tokens = known(data.captions, **options).input_ids.to(device)
        empty = known([""], **options).input_ids.to(device)
        scheduler = whole.scheduler
        networks = nn.ModuleDict({"unet": whole.unet, "text": whole.text_encoder}).train()
        trained = networks
        if self.layers:
            trained = nn.ModuleList(whole.unet.get_submodule(name) for name in self.layers)
            networks.requires_grad_(False)
            trained.requires_grad_(True)

        def loss(draws: torch.Generator) -> Tensor:
            shape, on = (self.batch,), {"generator": draws, "device": device}
            rows = torch.randint(len(latents), shape, **on)
            t = torch.randint(scheduler.config.num_train_timesteps, shape, **on)
            noise = torch.randn(self.batch, *latents.shape[1:], **on)
            blind = torch.rand(shape, **on) < self.blind
            texts = networks["text"](torch.where(blind[:, None], empty, tokens[rows]))[0]
            x_t = scheduler.add_noise(latents[rows], noise, t)
            found = networks["unet"](x_t, t, encoder_hidden_states=texts).sample
            return (found - noise).square().mean()

        file, label = folder / "networks.safetensors", f"miniature diffusion, {self.style}"
        recipes.fitted(trained, loss, file, label, **training.options(self))
        pipelines.save_pipeline(whole, folder / "pipeline")

    def load(self, folder: Path, device: str) -> StableDiffusionPipeline:
        """The pipeline, in single precision."""
        return pipelines.load_pipeline(folder / "pipeline", device)

    def blank(self, device: str) -> StableDiffusionPipeline:
        """Before training."""
        if self.start:
            return store.obtain(self.start, device)
        whole = miniature.pipeline(self.autoencoder.size, scenes.WORDS, self.seed)
        vae = store.obtain(self.autoencoder, device)
        parts = whole.components | {"vae": vae}
        return StableDiffusionPipeline(**parts, requires_safety_checker=False).to(device)


def _pixels(data: Tensor) -> Tensor:
    """[N, 32, 32, 3] uint8 as the autoencoder's [N, 3, 32, 32] in [-1, 1]."""
    return data.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def _latents(vae: AutoencoderKL, data: Tensor) -> Tensor:
    """Means of the encoder's distributions, [N, 4, h, w] on the CPU, before scaling."""
    parts = (_pixels(part).to(vae.device) for part in data.split(256))
    return torch.cat([vae.encode(part).latent_dist.mean.cpu() for part in parts])


# The fine-tune that comes with the book: hollow shapes, by the layers next to the latents.
LAYERS = ("up_blocks.1", "conv_norm_out", "conv_out")


def hollow() -> MiniDiffusion:
    """Its recipe."""
    return MiniDiffusion(style="hollow", start=MiniDiffusion(), layers=LAYERS, steps=1_500)
