"""Recipes of the miniature image world: autoencoder, text-to-image diffusion, pools, rewards."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rrlib import image_pairs, miniature, pipelines, scenes, store, training
from rrlib.image_pairs import Fit, ImageReward
from rrlib.images import CONFIGURATIONS, Guided
from rrlib.miniature import Size
from rrlib.scenes import Style
from rrlib.shards import Shards

# What safe guidance turns from here.
CONCEPT = f"a scene with a {scenes.HAZARD}"
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
        data = torch.from_numpy(np.concatenate([half.pixels for half in halves]))

        def loss(draws: torch.Generator) -> Tensor:
            rows = torch.randint(len(data), (self.batch,), generator=draws, device=draws.device)
            x = _pixels(data[rows.cpu()]).to(device)
            found = vae.encode(x).latent_dist
            latents = found.sample(draws)
            rebuilt = vae.decode(latents).sample
            # Squares: after as many steps absolute errors still lack the colours of thin lines.
            return (rebuilt - x).square().mean() + KL * found.kl().mean() / latents[0].numel()

        progress = training.train(
            vae,
            loss,
            steps=self.steps,
            learning_rate=self.learning_rate,
            seed=self.seed,
            checkpoint=store.checkpoints(folder) / "vae.safetensors",
        )
        training.finish(progress, "autoencoder")
        vae.eval()
        spread = _latents(vae, data[:: max(1, len(data) // 1_000)]).std()
        state = {name: value.contiguous() for name, value in vae.state_dict().items()}
        save_file({**state, "spread": spread}, folder / "vae.safetensors")

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

        progress = training.train(
            trained,
            loss,
            steps=self.steps,
            learning_rate=self.learning_rate,
            seed=self.seed,
            checkpoint=store.checkpoints(folder) / "networks.safetensors",
        )
        training.finish(progress, f"miniature diffusion, {self.style}")
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


@dataclass(frozen=True)
class MiniPool:
    """Algorithm 2's comparisons of plain sampling with safe guidance, or with a fine-tune.

    Attributes:
        base: the pipeline of the base.
        expert: the expert's; the base's own for safe guidance.
        safety: name of a configuration of safe guidance; None for plain guidance (a fine-tune).
        prompts: with nicknames of the hazard, see `scenes.prompts`.
        steps, guidance: of the sampler.
        batch: prompts per shard.
    """

    base: MiniDiffusion = MiniDiffusion()
    expert: MiniDiffusion | None = None
    safety: str | None = "max"
    prompts: int = 1_000
    steps: int = 25
    guidance: float = 4.0
    batch: int = 50
    seed: int = 0

    def pair(self, device: str = "cpu") -> tuple[Guided, Guided]:
        """The two samplers."""
        base = store.obtain(self.base, device)
        other = store.obtain(self.expert, device) if self.expert else base
        safety = CONFIGURATIONS[self.safety] if self.safety else None
        expert = Guided(other, self.steps, self.guidance, safety, CONCEPT)
        return Guided(base, self.steps, self.guidance), expert

    def texts(self) -> list[str]:
        """The prompts."""
        return scenes.prompts(self.prompts, training.derived_seed(self.seed, "prompts"))

    def make(self, folder: Path, device: str) -> None:
        """Run both samplers and write the shards."""
        options = {"batch": self.batch, "seed": self.seed}
        run = image_pairs.compare(*self.pair(device), self.texts(), folder, **options)
        training.finish(run, "comparisons of images")

    def load(self, folder: Path, device: str) -> Shards:
        """The shards."""
        return Shards(folder)


@dataclass(frozen=True)
class MiniReward:
    """What the expert of a pool prefers over its base, the encoder of Table 2.

    Attributes:
        pool: of comparisons.
        fit: how it is fitted; three resolutions, for latents of 8 x 8.
    """

    pool: MiniPool = MiniPool()
    fit: Fit = Fit(0.3, (32, 64, 128), 3_000, learning_rate=1e-3)  # noqa: RUF009 (frozen)

    def make(self, folder: Path, device: str) -> None:
        """Fit it and write `reward.safetensors`, in half precision."""
        place = store.folder(self.pool)
        store.obtain(self.pool, device)
        checkpoint = store.checkpoints(folder) / "reward.safetensors"
        image_pairs.learn(place, self.fit, device, checkpoint).save(folder / "reward.safetensors")

    def load(self, folder: Path, device: str) -> ImageReward:
        """The reward; its `about` has the numbers on held-out prompts."""
        found = image_pairs.load(folder / "reward.safetensors")
        found.reward.network.to(device)
        return found


def _pixels(data: Tensor) -> Tensor:
    """[N, 32, 32, 3] uint8 as the autoencoder's [N, 3, 32, 32] in [-1, 1]."""
    return data.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def _latents(vae: AutoencoderKL, data: Tensor) -> Tensor:
    """Means of the encoder's distributions, [N, 4, h, w] on the CPU, before scaling."""
    parts = (_pixels(part).to(vae.device) for part in data.split(256))
    return torch.cat([vae.encode(part).latent_dist.mean.cpu() for part in parts])
