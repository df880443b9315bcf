"""Any two diffusers pipelines of one latent space: a reward that says what the second prefers.

base, expert = (Guided(load_pipeline(folder)) for folder in folders)
# or of one pipeline, without and with its LoRA:
base, expert = Guided(pipe, adapters=()), Guided(pipe, adapters=("style",))
for _ in compare(base, expert, prompts, "comparisons", batch=8, seed=0): ...
reward = learn("comparisons", Fit(steps=6_000))
reward.score(images, base.pipeline)
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rrlib import metrics, training
from rrlib.errors import InputError, shown
from rrlib.images import comparisons as image_extraction
from rrlib.images import pipelines
from rrlib.images.guided import Guided
from rrlib.images.pipeline_digest import digest
from rrlib.images.prompts import check_prompts
from rrlib.images.rewards import EncoderReward
from rrlib.images.scoring import ImageReward, schedule
from rrlib.images.shards import SIDES, ShardPool, Shards
from rrlib.method import extraction
from rrlib.method.checks.resumed import numbers_of
from rrlib.method.pools import Pool
from rrlib.method.reward_files import load_rewards
from rrlib.method.rewards import RelativeReward
from rrlib.metrics import Separability
from rrlib.training import Progress

IN_MEMORY = 2**30  # bytes of a pool that is held in memory; a larger one is read as it is needed


@dataclass(frozen=True)
class Fit:
    """How a reward is fitted; the defaults are the paper's (Tables 2 and 3).

    Attributes:
        held_out: share of the prompts that the reward never sees.
        channels: of the encoder's resolutions.
        steps, batch, learning_rate, seed: see `extraction.fit`.
        level: weight of the base's own rewards, see `levelled_loss`; 0 leaves them where they fall,
            which costs accuracy (chapter 14).
    """

    held_out: float = 0.1
    channels: tuple[int, ...] = (32, 64, 128, 256)
    steps: int = 6_000
    batch: int = 64
    learning_rate: float = 1e-4
    seed: int = 0
    level: float = 1e-3


def load(path: str | Path) -> ImageReward:
    """The reward that `ImageReward.save` wrote.

    Raises:
        InputError: there is no such file, it is damaged, or it holds another kind of reward.
    """
    found = list(load_rewards(path).values())
    if len(found) != 1 or not isinstance(found[0][0].network, EncoderReward):
        raise InputError(f"Reward file '{path}' holds no reward of images.")
    return ImageReward(*found[0])


def compare(
    base: Guided,
    expert: Guided,
    prompts: Sequence[str] | int,
    folder: str | Path,
    *,
    batch: int,
    seed: int,
    truncate: bool = False,
    **other: object,
) -> Iterator[Progress]:
    """Algorithm 2's comparisons of two samplers into a folder; yields after every shard.

    Args:
        base, expert: samplers of two pipelines of one latent space and schedule, or of one with and
            without safe guidance or adapters.
        prompts: see `images.comparisons.generate`; of pipelines that take no text, the number of
            images of each.
        batch, seed, truncate: see `images.comparisons.generate`.
        folder: made if it is not there; goes on where an earlier run stopped.
        other: nothing; a name that pipelines know, such as `negative_prompt`, is refused.

    Raises:
        InputError: at once, pipelines that do not match, prompts that are none or that none takes;
            at the first shard, a pair that does not differ, or see `images.comparisons.generate`.
    """
    for name, value in other.items():
        raise InputError(
            f"{name}={shown(value)} is not allowed: both samplers are given the prompts and the "
            "empty text, and nothing else."
        )
    pipelines.check_pair(base.pipeline, expert.pipeline)
    image_extraction.check_samplers(base, expert)
    if base.model.tokenizers:
        image_extraction.check_texts(prompts)
    for sampler in (base, expert):  # before the first of many hours
        texts = check_prompts(sampler.pipeline, prompts, truncate)
    image_extraction.check_batch(batch, texts)
    options = {"batch": batch, "seed": seed, "truncate": truncate}
    return _compared(base, expert, texts, Path(folder), options)


def _compared(
    base: Guided, expert: Guided, texts: Sequence[str], folder: Path, options: dict[str, Any]
) -> Iterator[Progress]:
    """What takes long: reading all weights, and then hours."""
    about = told(base, expert) | {"texts": _sha256("\n".join(texts))}
    if about["base"] == about["expert"] and base.steps == expert.steps:
        raise InputError(
            "expert: the base's own weights and settings are not allowed: a pair that differs is "
            "needed (adapters that are set on one pipeline or U-Net object are both those set "
            "last: give each sampler its own, adapters=() and adapters=('name',))."
        )
    folder.mkdir(parents=True, exist_ok=True)
    yield from image_extraction.generate(folder, base, expert, texts, about=about, **options)


def told(base: Guided, expert: Guided) -> dict:
    """What two samplers' images depend on: models, guidance, and the schedule, as JSON has it."""
    seen: dict[int, str] = {}
    sides = {
        name: {
            "model": _model(sampler, seen),
            "scale": sampler.scale,
            "safety": asdict(sampler.safety) if sampler.safety else None,
            "concept": sampler.concept if sampler.safety else None,
        }
        for name, sampler in zip(SIDES, (base, expert), strict=True)
    }
    size = {"shape": base.shape} if base.size else {}
    return sides | schedule(base.scheduler) | size


def _model(sampler: Guided, seen: dict[int, str]) -> str:
    """Digest of its pipeline, its adapters on."""
    with sampler.adapted():
        return digest(sampler.pipeline, seen)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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


def blank(
    shards: Shards, prompts: Sequence[int], fit: Fit, unit: Tensor | None = None
) -> RelativeReward:
    """The reward before it is fitted: standardised by the latents of these prompts.

    Args:
        shards: comparisons.
        prompts: numbers of those to fit to.
        fit: settings.
        unit: see `learn`.

    Raises:
        InputError: comparisons without any difference, or a unit of another form.
    """
    mean, deviation = shards.moments(prompts)
    scale = shards.pool(prompts).scale(shards.steps)
    there = scale > 0
    if not there.any():
        raise InputError(
            f"folder='{shards.folder}' holds comparisons without any difference: those of a pair "
            "that differs are needed."
        )
    # A gradient of the target's size along every coordinate is worth one unit of the output.
    size = scale * deviation.flatten(1).mean(1) * mean[0].numel() ** 0.5
    size = torch.where(there, size, size[there].median())
    if unit is None:
        unit = shards.record.get("unit") or size
    unit = torch.as_tensor(unit, dtype=size.dtype, device=size.device)
    if unit.shape != size.shape or not (torch.isfinite(unit) & (unit > 0)).all():
        raise InputError(
            f"unit of shape {tuple(unit.shape)} is not allowed: {len(size)} positive numbers, one "
            "for each step, are needed."
        )
    # A factor common to all t is of no consequence but for the rate.
    unit = unit * (size[there].log().mean() - unit[there].log().mean()).exp()
    with torch.random.fork_rng(devices=[]):  # the caller's own draws go on as they would
        torch.manual_seed(fit.seed)
        network = EncoderReward(mean, deviation, unit, fit.channels)
    return RelativeReward(network, "mean", "x_t")


def held(pool: ShardPool) -> Pool | ShardPool:
    """The same pool in the memory of its device, if it is small; half precision, as in the files.

    Of a larger one each batch is read from the disk, and a GPU waits for it.
    """
    if pool.bytes > IN_MEMORY:
        return pool
    x, target = pool.rows()
    return Pool(x, pool.t, target)


def levelled_loss(
    network: EncoderReward,
    x: Tensor,
    t: Tensor,
    target: Tensor,
    weight: Tensor,
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
        x, t, target: of the batch, see `pools.Pool`.
        weight: of each target, [B], by whose square it counts, as in `extraction.fit`.
        of_base: whether x is on the way to an image of the base's own, bool [B].
        level: weight of squared rewards in the network's units.
    """
    said: list[Tensor] = []

    def rho(x: Tensor, t: Tensor) -> Tensor:
        said.append(network(x, t))
        return said[-1]

    fit = extraction.weighed_loss(rho, x, t, target, weight) / x[0].numel()
    if not level:
        return fit
    # A mean over the base's rows, whose number only the device knows.
    own = (said[0] / network.unit[t]).square() * of_base
    return fit + level * own.sum() / of_base.sum().clamp(min=1)


def learn(
    folder: str | Path,
    fit: Fit,
    device: str = "cpu",
    checkpoint: str | Path | None = None,
    unit: Tensor | None = None,
) -> ImageReward:
    """Fit a reward to the comparisons in a folder, and judge it by prompts that it never saw.

    Args:
        folder: that `compare` filled.
        fit: settings.
        device: of the fit; the reward stays there.
        checkpoint: see `training.train`.
        unit: what a unit of the network's output is worth at each t, [T], for trials; None takes
            the pair's own, `images.comparisons.units`, which `compare` has left in the folder. A
            folder without them, or of samplers that have none, gives the size of the differences.

    Returns:
        The reward; its `about` says `accuracy`, `auc` and `held_out`, the numbers of the prompts
        that they come from, and `comparisons`, what it was fitted to.

    Raises:
        InputError: no shards, a damaged one, none with a difference, too few prompts, or a network
            that does not fit the latents.
    """
    shards = Shards(Path(folder))
    shards.check()
    train, test = split(shards.prompts, fit.held_out, fit.seed)
    reward = blank(shards, train, fit, unit)
    network = reward.network.to(device)
    found = shards.pool(train, device)
    pool, of_base = held(found), found.of_base
    weight = extraction.step_weights(found.scale(shards.steps), network.unit)
    telling = (weight[pool.t] > 0).nonzero().squeeze(1)  # a step without signal teaches nothing

    def loss(draws: torch.Generator) -> Tensor:
        rows = telling[torch.randint(len(telling), (fit.batch,), generator=draws, device=device)]
        x, t, target = pool.x[rows].float(), pool.t[rows], pool.target[rows].float()
        return levelled_loss(network, x, t, target, weight[t], of_base[rows], fit.level)

    options = training.options(fit) | {"checkpoint": checkpoint}
    if checkpoint:
        seen = {"comparisons": numbers_of(pool, network.unit)}
        options["about"] = {"batch": fit.batch, "level": fit.level} | seen
    run = training.train(network, loss, **options)
    training.finish(run, "reward of images")
    made = RelativeReward(network.eval().requires_grad_(False), reward.target, reward.place)
    apart = judge(ImageReward(made, {}), shards, test, fit.seed)
    about = {"accuracy": apart.accuracy, "auc": apart.auc, "held_out": test}
    source = {key: value for key, value in shards.record.items() if key != "unit"}
    return ImageReward(made, about | {"comparisons": source, "level": fit.level})


def judge(reward: ImageReward, shards: Shards, prompts: Sequence[int], seed: int) -> Separability:
    """How well the reward tells the base's images of some prompts from the expert's."""
    base, expert = (reward.score(x).double().numpy() for x in shards.images(prompts))
    return metrics.separability(base, expert, np.asarray(prompts), np.asarray(prompts), seed)
