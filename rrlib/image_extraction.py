"""Algorithm 2 for samplers of images: at every step both denoise the same latent.

The comparisons go to disk, shard by shard, so a run that was killed goes on at the next one, and
no more than one shard is ever held in memory.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rrlib import shards
from rrlib.errors import InputError
from rrlib.training import Progress, stream


class Sampler(Protocol):
    """What Algorithm 2 asks of a model: `images.Guided` has it."""

    steps: int
    shape: tuple[int, ...]

    def condition(self, prompts: Sequence[str], truncate: bool) -> Tensor: ...

    def start(self, n: int, generator: torch.Generator) -> Tensor: ...

    def noise(self, x: Tensor, step: int, texts: Tensor, state: Any) -> tuple[Tensor, Any]: ...

    def advance(self, x: Tensor, noise: Tensor, step: int) -> Tensor: ...


@torch.no_grad()
def run(
    pair: tuple[Sampler, Sampler], texts: Sequence[Tensor], x: Tensor, side: int
) -> dict[str, Tensor]:
    """Algorithm 2's inner loop: images of one side, and both denoisings of every latent.

    Each sampler carries its own state along the run, the other's latents included: it is asked what
    it would do if it had come here.

    Args:
        pair: base and expert.
        texts: what each was conditioned on.
        x: noise to begin from, [n, C, H, W].
        side: whose denoising is followed, 0 the base's or 1 the expert's.

    Returns:
        latents x_t and differences (expert's next latent minus the base's), [n, T, C, H, W] with
        t = 0 the last step, and the images' latents `final` [n, C, H, W]; float16 on the CPU.
    """
    states: list[Any] = [None, None]
    latents, differences = [], []
    for step in range(pair[0].steps):
        ahead = []
        for k, sampler in enumerate(pair):
            noise, states[k] = sampler.noise(x, step, texts[k], states[k])
            ahead.append(sampler.advance(x, noise, step))
        latents.append(x.half().cpu())
        # Half precision keeps a small difference, not the difference of two numbers it rounded.
        differences.append((ahead[1] - ahead[0]).half().cpu())
        x = ahead[side]
    order = slice(None, None, -1)
    return {
        "latents": torch.stack(latents[order], 1),
        "differences": torch.stack(differences[order], 1),
        "final": x.half().cpu(),
    }


def generate(
    folder: Path,
    base: Sampler,
    expert: Sampler,
    prompts: Sequence[str],
    *,
    batch: int,
    seed: int,
    about: str = "",
    truncate: bool = False,
) -> Iterator[Progress]:
    """Fill `folder` with Algorithm 2's shards; yields a `training.Progress` after each.

    For each prompt one image by the base and one by the expert, each from noise of its own. What
    is there already, of an earlier run that was stopped, is kept.

    Args:
        folder: exists.
        base, expert: samplers of one latent space and schedule.
        prompts: one run of each side for each.
        batch: prompts at a time, and in a shard.
        seed: of the noise.
        truncate: cut prompts where the tokenizer ends, instead of refusing them.
        about: what else the images depend on (the models); shards made with another are refused.

    Raises:
        InputError: no prompts, a batch below 1, samplers of other steps or latents, a folder of
            other prompts or settings, or a batch that the GPU's memory cannot hold.
    """
    if batch < 1 or not prompts:
        raise InputError(
            f"batch={batch} with {len(prompts)} prompts is not allowed: at least 1 of each is "
            "needed."
        )
    _check(base, expert)
    told = json.dumps([list(prompts), base.steps, batch, seed, about, truncate])
    mark = hashlib.sha256(told.encode()).hexdigest()
    starts = range(0, len(prompts), batch)
    for number, start in enumerate(starts):
        place = folder / f"shard-{number:05d}.safetensors"
        part = prompts[start : start + batch]
        if not shards.done(place, mark):
            shard = _fitting(partial(_shard, (base, expert), seed, number, truncate), part)
            shards.save(place, shard, mark, len(prompts))
        yield Progress(number + 1, len(starts), torch.zeros(()))


def _shard(
    pair: tuple[Sampler, Sampler], seed: int, number: int, truncate: bool, prompts: Sequence[str]
) -> dict[str, Tensor]:
    texts = [sampler.condition(prompts, truncate) for sampler in pair]
    shard = {}
    for side, name in enumerate(shards.SIDES):
        draws = stream(seed, f"{name} {number}")  # on the CPU: the same noise for every device
        found = run(pair, texts, pair[0].start(len(prompts), draws), side)
        shard |= {f"{name}.{key}": value.contiguous() for key, value in found.items()}
    return shard


def _fitting(
    attempt: Callable[[Sequence[str]], dict[str, Tensor]], prompts: Sequence[str]
) -> dict[str, Tensor]:
    """attempt(prompts); out of memory, say how many would have fitted."""
    try:
        return attempt(prompts)
    except torch.OutOfMemoryError:
        pass  # outside of the handler, whose traceback holds on to the tensors
    fits = len(prompts) // 2
    while fits:
        try:
            attempt(prompts[:fits])
            break
        except torch.OutOfMemoryError:
            fits //= 2
    allowed = f"a batch of {fits} fits" if fits else "not even a batch of 1 fits"
    raise InputError(
        f"batch={len(prompts)} is not allowed: it exceeds the GPU's memory, where {allowed}."
    )


def _check(base: Sampler, expert: Sampler) -> None:
    for name, mine, other in (
        ("steps", base.steps, expert.steps),
        ("shape", base.shape, expert.shape),
    ):
        if mine != other:
            raise InputError(f"expert: {name}={other} is not allowed: the base's {mine} is needed.")
