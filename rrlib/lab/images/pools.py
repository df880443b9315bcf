"""Recipes of two samplers' comparisons, of what the second prefers, and of a classifier of both."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional

from rrlib import training
from rrlib.errors import InputError, shown
from rrlib.images import pairs as image_pairs
from rrlib.images import pipelines
from rrlib.images.guided import Guided
from rrlib.images.miniature import scenes
from rrlib.images.miniature import weights as image_weights
from rrlib.images.pairs import Fit, ImageReward
from rrlib.images.pipeline_digest import digest
from rrlib.images.safety import CONFIGURATIONS
from rrlib.images.shards import Shards
from rrlib.lab import recipes, store
from rrlib.lab.images.recipes import MiniDiffusion
from rrlib.method.rewards import RelativeReward

# What safe guidance turns from in the miniature world.
CONCEPT = f"a scene with a {scenes.HAZARD}"


@dataclass(frozen=True)
class Shipped:
    """A pipeline that comes with the book.

    Attributes:
        name: "base", or "hollow" for its fine-tune.
        digest: of its weights, so that other weights make other artefacts.
    """

    name: str = image_weights.BASE
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", image_weights.digest(self.name))

    def make(self, folder: Path, device: str) -> None:
        """Nothing: it is here."""
        store.write_json(folder / "weights.json", asdict(self))

    def load(self, folder: Path, device: str) -> StableDiffusionPipeline:
        """The pipeline."""
        return image_weights.load(self.name, device)


@dataclass(frozen=True)
class Elsewhere:
    """Somebody else's pipeline of Stable Diffusion's classes; it stays where it is.

    Attributes:
        digest: of all its components, see `pipeline_digest`.
        dtype: float32, or float16 on a GPU.
        model_id: its folder, or its name in the hub's local cache.
    """

    digest: str
    dtype: str
    model_id: str = field(compare=False)

    @classmethod
    def at(cls, model_id: str, device: str, dtype: str) -> "Elsewhere":
        """The recipe of a pipeline as it is now.

        Raises:
            InputError: there is no such pipeline, or float16 is asked of a CPU.
        """
        found = pipelines.load_pipeline(model_id, device, getattr(torch, dtype))
        return cls.of(found, model_id, dtype)

    @classmethod
    def of(cls, pipeline: StableDiffusionPipeline, model_id: str, dtype: str) -> "Elsewhere":
        """The recipe of a pipeline that was loaded from there."""
        return cls(digest(pipeline), dtype, model_id)

    def make(self, folder: Path, device: str) -> None:
        """Nothing but its name."""
        store.write_json(folder / "pipeline.json", asdict(self))

    def load(self, folder: Path, device: str) -> StableDiffusionPipeline:
        """The pipeline.

        Raises:
            InputError: it is no longer what it was when the recipe was written.
        """
        found = pipelines.load_pipeline(self.model_id, device, getattr(torch, self.dtype))
        if digest(found) != self.digest:
            raise InputError(
                f"model_id={shown(self.model_id)} has changed since this run began: the pipeline "
                "that it began with is needed."
            )
        return found


Model = Shipped | Elsewhere | MiniDiffusion


@dataclass(frozen=True)
class ImagePool:
    """Algorithm 2's comparisons of plain sampling with safe guidance, or with another pipeline.

    Attributes:
        base: the base's pipeline.
        prompts: one image of each side for each.
        expert: the expert's pipeline; None takes the base's own.
        safety: name of a configuration of safe guidance for the expert; None for plain guidance.
        concept: that safe guidance turns from.
        steps, guidance: of both samplers.
        batch: prompts per shard.
        truncate: cut prompts where the tokenizer ends.
    """

    base: Model
    prompts: tuple[str, ...]
    expert: Model | None = None
    safety: str | None = "max"
    concept: str = CONCEPT
    steps: int = 25
    guidance: float = 5.0
    batch: int = 50
    seed: int = 0
    truncate: bool = False

    def pair(self, device: str = "cpu") -> tuple[Guided, Guided]:
        """The two samplers."""
        base = store.obtain(self.base, device)
        other = store.obtain(self.expert, device) if self.expert else base
        safety = CONFIGURATIONS[self.safety] if self.safety else None
        expert = Guided(other, self.steps, self.guidance, safety, self.concept)
        return Guided(base, self.steps, self.guidance), expert

    def make(self, folder: Path, device: str) -> None:
        """Run both samplers and write the shards."""
        options = {"batch": self.batch, "seed": self.seed, "truncate": self.truncate}
        run = image_pairs.compare(*self.pair(device), self.prompts, folder, **options)
        training.finish(run, "comparisons of images")

    def load(self, folder: Path, device: str) -> Shards:
        """The shards."""
        return Shards(folder)


@dataclass(frozen=True)
class PoolReward:
    """What the expert of a pool prefers over its base, the encoder of Table 2.

    Attributes:
        pool: of comparisons.
        fit: how it is fitted.
    """

    code_version: ClassVar[int] = 2
    pool: ImagePool
    fit: Fit

    def make(self, folder: Path, device: str) -> None:
        """Fit it and write `reward.safetensors`, in half precision."""
        place = store.folder(self.pool, device)
        store.obtain(self.pool, device)
        checkpoint = store.checkpoints(folder) / "reward.safetensors"
        made = image_pairs.learn(place, self.fit, device, checkpoint)
        made.save(folder / "reward.safetensors")

    def load(self, folder: Path, device: str) -> ImageReward:
        """The reward; its `about` has the numbers of the held-out prompts, and theirs."""
        found = image_pairs.load(folder / "reward.safetensors")
        found.reward.network.to(device)
        return found


@dataclass(frozen=True)
class PoolRival:
    """A classifier of the same latents, with the reward's network, prompts, steps and rate.

    Its logit at (x_t, t) estimates the log ratio of the two sides' densities there, a reward of
    samples that never asks a model.
    """

    pool: ImagePool
    fit: Fit

    def make(self, folder: Path, device: str) -> None:
        """Fit it and write `reward.safetensors`, in half precision."""
        shards = store.obtain(self.pool, device)
        train, test = image_pairs.split(shards.prompts, self.fit.held_out, self.fit.seed)
        rival = image_pairs.blank(shards, train, self.fit)
        network = rival.network.to(device)
        network.unit.fill_(1.0)  # a logit has no unit
        found = shards.pool(train, device)
        pool, of_base = image_pairs.held(found), found.of_base

        def loss(draws: torch.Generator) -> Tensor:
            rows = torch.randint(len(pool), (self.fit.batch,), generator=draws, device=device)
            logits = network(pool.x[rows].float(), pool.t[rows])
            labels = (~of_base[rows]).to(logits)
            return functional.binary_cross_entropy_with_logits(logits, labels)

        file = folder / "reward.safetensors"
        recipes.fitted(network, loss, file, "rival of images", **training.options(self.fit))
        found = RelativeReward(network.eval().requires_grad_(False), "score", "x_t")
        ImageReward(found, {"held_out": test}).save(file)

    def load(self, folder: Path, device: str) -> ImageReward:
        """Its logit, as a reward in scores."""
        return PoolReward.load(self, folder, device)
