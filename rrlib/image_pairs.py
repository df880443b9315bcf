"""Any two diffusers pipelines of one latent space: a reward that says what the second prefers.

base, expert = (Guided(load_pipeline(folder)) for folder in folders)
for _ in compare(base, expert, prompts, "comparisons", batch=8, seed=0): ...
reward = learn("comparisons", Fit(steps=6_000))
reward.score(images, base.pipeline)
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from rrlib import extraction, image_extraction, image_rewards, metrics, pipelines, training
from rrlib.errors import InputError
from rrlib.extraction import Pool
from rrlib.image_rewards import EncoderReward
from rrlib.images import Guided
from rrlib.metrics import Separability
from rrlib.rewards import RelativeReward
from rrlib.shards import ShardPool, Shards
from rrlib.training import Progress

IN_MEMORY = 2**30  # bytes of a pool that is held in memory; a larger one is read as it is needed


@dataclass(frozen=True)
class Fit:
    """How a reward is fitted; the defaults are the paper's (Tables 2 and 3).

    Attributes:
        held_out: share of the prompts that the reward never sees.
        channels: of the encoder's resolutions.
        steps, batch, learning_rate, seed: see `extraction.fit`.
        level: weight of the base's own rewards, see `levelled_loss`; 0 leaves them where they fall.
    """

    held_out: float = 0.1
    channels: tuple[int, ...] = (32, 64, 128, 256)
    steps: int = 6_000
    batch: int = 64
    learning_rate: float = 1e-4
    seed: int = 0
    level: float = 0.0


@dataclass(frozen=True)
class ImageReward:
    """A relative reward of images.

    Attributes:
        reward: rho(x_t, t) of latents; t counts the steps still to go after this one.
        about: what its user must know, such as the held-out prompts' numbers.
    """

    reward: RelativeReward
    about: Mapping

    @torch.no_grad()
    def score(
        self,
        images: Tensor | Sequence[Image.Image],
        pipeline: StableDiffusionPipeline | None = None,
        batch: int = 64,
    ) -> Tensor:
        """rho of finished images at t = 0, [B], on the CPU: the higher, the more the expert's.

        The reward was fitted to the latents before the last step; that step is a small one.

        Args:
            images: latents [B, C, H, W] or PIL images.
            pipeline: either of the two, whose VAE turns PIL images into latents.
            batch: images at a time.

        Raises:
            InputError: PIL images without a pipeline, or images of another size.
        """
        if not isinstance(images, Tensor):
            if pipeline is None:
                raise InputError(
                    "pipeline=None is not allowed with PIL images: the pipeline whose VAE turns "
                    "them into latents is needed."
                )
            images = pipelines.encode(pipeline, images)
        device = next(self.reward.network.parameters()).device
        parts = (part.to(device, torch.float32) for part in images.split(batch))
        found = [
            self.reward(x, torch.zeros(len(x), dtype=torch.long, device=device)) for x in parts
        ]
        return torch.cat(found).cpu()

    def shift(self, x: Tensor, step: int, weight: float = 1.0) -> Tensor:
        """What steers `images.denoise`: w grad rho, [B, C, H, W], for the step from 0.

        The reward is fitted to what a DDIM step of the expert adds to the base's, so with an exact
        reward and w = 1 the step is the expert's own.
        """
        steps = len(self.reward.network.unit)
        t = torch.full((len(x),), steps - 1 - step, device=x.device)
        return weight * self.reward.gradient(x, t)

    def steers(self, guided: Guided, weight: float) -> Callable[[Tensor, int], Tensor]:
        """The `shift` that steers `images.denoise`, of a reward in means or in scores."""
        scores = self.reward.target == "score"

        def shift(x: Tensor, step: int) -> Tensor:
            worth = guided.step_per_score(step) if scores else 1.0
            return self.shift(x, step, weight * worth)

        return shift

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, weights rounded to float16."""
        image_rewards.write(path, self.reward, self.about)


def load(path: str | Path) -> ImageReward:
    """The reward that `ImageReward.save` wrote.

    Raises:
        InputError: see `image_rewards.read`.
    """
    return ImageReward(*image_rewards.read(path))


def compare(
    base: Guided,
    expert: Guided,
    prompts: Sequence[str],
    folder: str | Path,
    *,
    batch: int,
    seed: int,
    truncate: bool = False,
) -> Iterator[Progress]:
    """Algorithm 2's comparisons of two samplers into a folder; yields after every shard.

    Args:
        base, expert: samplers of two pipelines of one latent space and schedule, or of one with and
            without safe guidance.
        prompts, batch, seed, truncate: see `image_extraction.generate`.
        folder: made if it is not there; goes on where an earlier run stopped.

    Raises:
        InputError: pipelines that do not match, or see `image_extraction.generate`.
    """
    pipelines.check_pair(base.pipeline, expert.pipeline)
    for sampler in (base, expert):  # before the first of many hours
        pipelines.check_prompts(sampler.pipeline, prompts, truncate)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = json.dumps([_told(sampler) for sampler in (base, expert)])
    options = {"batch": batch, "seed": seed, "about": about, "truncate": truncate}
    yield from image_extraction.generate(folder, base, expert, prompts, **options)


def _told(sampler: Guided) -> dict:
    """What a sampler's images depend on."""
    return {
        "unet": digest(sampler.pipeline),
        "scale": sampler.scale,
        "safety": asdict(sampler.safety) if sampler.safety else None,
        "concept": sampler.concept,
    }


def digest(pipeline: StableDiffusionPipeline) -> str:
    """sha256 of the U-Net's weights."""
    found = hashlib.sha256()
    for value in pipeline.unet.state_dict().values():
        found.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def split(prompts: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the prompts to fit to, and of those to judge by; at least 5 of each.

    Raises:
        InputError: too few prompts for that, or a share outside of (0, 1).
    """
    count = round(prompts * held_out)
    if not 0 < held_out < 1 or count < 5 or prompts - count < 5:
        raise InputError(
            f"held_out={held_out} of {prompts} prompts is not allowed: a share between 0 and 1 "
            "that leaves at least 5 prompts on each side is needed."
        )
    order = np.random.default_rng(training.derived_seed(seed, "split")).permutation(prompts)
    return sorted(order[count:].tolist()), sorted(order[:count].tolist())


def blank(shards: Shards, prompts: Sequence[int], fit: Fit) -> RelativeReward:
    """The reward before it is fitted: standardised by the latents of these prompts."""
    mean, deviation = shards.moments(prompts)
    scale = shards.pool(prompts).scale(shards.steps)
    # A gradient of the target's size along every coordinate is worth one unit of the output.
    unit = scale * deviation.flatten(1).mean(1) * mean[0].numel() ** 0.5
    torch.manual_seed(fit.seed)
    network = EncoderReward(mean, deviation, unit, fit.channels)
    return RelativeReward(network, "mean", "x_t")


def held(pool: ShardPool) -> Pool | ShardPool:
    """The same pool, in memory if it is small."""
    if pool.bytes > IN_MEMORY:
        return pool
    x, target = pool.rows()
    return Pool(x, pool.t, target)


def levelled_loss(
    network: EncoderReward,
    x: Tensor,
    t: Tensor,
    target: Tensor,
    scale: Tensor,
    of_base: Tensor,
    level: float,
) -> Tensor:
    """L_RRF over the numbers of a latent, and `level` times the base's mean squared reward, [].

    Gradients leave a constant open wherever no image leads to another, and near t = 0 none leads
    from one prompt's images to another's. The second term settles these constants alike for all
    prompts: what the base itself draws is worth 0. The smaller the level, the less it bends the
    gradient.

    Args:
        network: of the reward.
        x, t, target: of the batch, see `extraction.Pool`.
        scale: of each target, [B], by whose inverse square it counts, as in `extraction.fit`.
        of_base: whether x is on the way to an image of the base's own, bool [B].
        level: weight of squared rewards in the network's units.
    """
    weight = scale.reciprocal()
    wide = weight.reshape(-1, *[1] * (x.ndim - 1))
    fit = extraction.loss(lambda x, t: network(x, t) * weight, x, t, target * wide)
    fit = fit / x[0].numel()
    if not level or not of_base.any():
        return fit
    own = network(x[of_base], t[of_base]) / network.unit[t[of_base]]
    return fit + level * own.square().mean()


def learn(
    folder: str | Path,
    fit: Fit,
    device: str = "cpu",
    checkpoint: Path | None = None,
    unit: Tensor | None = None,
) -> ImageReward:
    """Fit a reward to the comparisons in a folder, and judge it by prompts that it never saw.

    Args:
        folder: that `compare` filled.
        fit: settings.
        device: of the fit; the reward stays there.
        checkpoint: see `training.train`.
        unit: what a unit of the network's output is worth at each t, [T], such as
            `image_pools.units`; None takes it from the size of the differences.

    Returns:
        The reward; its `about` says `accuracy`, `auc` and `held_out`, the numbers of the prompts
        that they come from.

    Raises:
        InputError: no shards, a damaged one, too few prompts, or a network that does not fit the
            latents.
    """
    shards = Shards(Path(folder))
    shards.check()
    train, test = split(shards.prompts, fit.held_out, fit.seed)
    reward = blank(shards, train, fit)
    network = reward.network.to(device)
    if unit is not None:
        # A factor common to all t is of no consequence but for the rate.
        network.unit.copy_(unit * (network.unit.log().mean() - unit.log().mean()).exp())
    found = shards.pool(train, device)
    pool, of_base, scale = held(found), found.of_base, found.scale(shards.steps)

    def loss(draws: torch.Generator) -> Tensor:
        rows = torch.randint(len(pool), (fit.batch,), generator=draws, device=device)
        x, t, target = pool.x[rows], pool.t[rows], pool.target[rows]
        return levelled_loss(network, x, t, target, scale[t], of_base[rows], fit.level)

    progress = training.train(
        network,
        loss,
        steps=fit.steps,
        learning_rate=fit.learning_rate,
        seed=fit.seed,
        checkpoint=checkpoint,
    )
    training.finish(progress, "reward of images")
    made = RelativeReward(network.eval().requires_grad_(False), reward.target, reward.place)
    told = judge(ImageReward(made, {}), shards, test, fit.seed)
    about = {"accuracy": told.accuracy, "auc": told.auc, "held_out": test}
    return ImageReward(made, about)


def judge(reward: ImageReward, shards: Shards, prompts: Sequence[int], seed: int) -> Separability:
    """How well the reward tells the base's images of some prompts from the expert's."""
    sides = [reward.score(latents).double().numpy() for latents in shards.images(prompts)]
    return metrics.separability(*sides, np.asarray(prompts), np.asarray(prompts), seed)
