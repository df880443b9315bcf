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

from rrlib import disk
from rrlib.errors import InputError, shown
from rrlib.images import shards
from rrlib.tensor_files import write_tensors
from rrlib.training import Progress, stream

ROUNDING = 1e-6  # of the latents' size; the same network in batches of other sizes differs by less
PROBE = 1e-3  # of what a step is tried with: small, so that no clipping meets it


class Sampler(Protocol):
    """What Algorithm 2 asks of a model: `images.Guided` has it.

    One that also has `step_per_score(step)` says itself what `units` else reads off its steps.
    """

    @property
    def steps(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def condition(self, prompts: Sequence[str], truncate: bool) -> Any: ...

    def start(self, n: int, generator: torch.Generator) -> Tensor: ...

    def noise(self, x: Tensor, step: int, texts: Any, state: Any) -> tuple[Tensor, Any]: ...

    def advance(self, x: Tensor, noise: Tensor, step: int) -> Tensor: ...


@torch.no_grad()
def run(
    pair: tuple[Sampler, Sampler], texts: Sequence[Any], x: Tensor, side: int
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
        Differences of a step that rounding alone may make are none.

    Raises:
        InputError: latents that are not finite, of either; looked at after the first step and
            when the run is over, as what was found is copied: other looks would have a GPU wait.
    """
    states: list[Any] = [None, None]
    latents, differences, finite = [], [], []
    for step in range(pair[0].steps):
        ahead = []
        for k, sampler in enumerate(pair):
            noise, states[k] = sampler.noise(x, step, texts[k], states[k])
            ahead.append(sampler.advance(x, noise, step))
            finite.append(torch.isfinite(ahead[k].half()).all())
        if step == 0:
            _check_finite(finite, pair[0].steps)
        latents.append(x.half())
        difference = ahead[1] - ahead[0]
        rounding = difference.float().norm() <= ROUNDING * ahead[0].float().norm()
        # Half precision keeps a small difference, not the difference of two numbers it rounded.
        differences.append(difference.masked_fill(rounding, 0.0).half())
        x = ahead[side]
    _check_finite(finite, pair[0].steps)
    order = slice(None, None, -1)
    return {
        "latents": torch.stack(latents[order], 1).cpu(),
        "differences": torch.stack(differences[order], 1).cpu(),
        "final": x.half().cpu(),
    }


def _check_finite(finite: Sequence[Tensor], steps: int) -> None:
    """Raise InputError unless the latents of the steps so far are finite, the base's first."""
    if not all(found := torch.stack(list(finite)).tolist()):
        step, side = divmod(found.index(False), len(shards.SIDES))
        raise InputError(
            f"{shards.SIDES[side]}: its latents after step {step} of {steps} are not finite (NaN, "
            "or beyond half precision's 65504): a model whose weights and schedule keep them so is "
            "needed."
        )


def units(sampler: Sampler) -> Tensor | None:
    """What a unit of score adds to the latent of the next step, [T], t = 0 the last step.

    In this unit a reward in means is one in scores: a log ratio where scores are exact, which
    hardly depends on t where there is little noise.

    A sampler's own `step_per_score` is taken. Without one: a deterministic step is a x_t + b eps.
    So x_t is c (s + sigma eps), where c is the product of 1 / a over the steps still to come, and
    sigma grows, step by step from the last, by -b / (the c after it); eps is -c sigma times the
    score, and a unit of score adds -b c sigma. Noise that the last step leaves is not counted.

    Returns:
        None for a sampler whose steps are not of that kind.
    """
    own = getattr(sampler, "step_per_score", None)
    if own:
        return torch.tensor([own(step) for step in reversed(range(sampler.steps))])
    nothing = torch.zeros_like(sampler.start(1, stream(0, "units")))
    c, sigma, found = 1.0, 0.0, []
    for step in reversed(range(sampler.steps)):
        rest, *ahead = (
            sampler.advance(nothing + x, nothing + noise, step)
            for x, noise in ((0.0, 0.0), (PROBE, 0.0), (0.0, PROBE))
        )
        a, b = (float((value - rest).mean()) / PROBE for value in ahead)
        if a <= 0 or b >= 0:
            return None
        sigma, c = sigma - b / c, c / a
        found.append(-b * c * sigma)
    made = torch.tensor(found)
    return made if torch.isfinite(made).all() else None


def check_texts(prompts: Any) -> None:
    """Raise InputError unless these are texts in one list, which both samplers are given."""
    one = isinstance(prompts, str) or not isinstance(prompts, Sequence)
    other = [prompts] if one else [p for p in prompts if not isinstance(p, str)]
    if other:
        raise InputError(
            f"prompts with {shown(other[0])} are not allowed: one list of texts, the same for base "
            "and expert, is needed."
        )


def generate(
    folder: Path,
    base: Sampler,
    expert: Sampler,
    prompts: Sequence[str],
    *,
    batch: int,
    seed: int,
    about: Any = "",
    truncate: bool = False,
) -> Iterator[Progress]:
    """Fill `folder` with Algorithm 2's shards; yields a `training.Progress` after each.

    For each prompt one image by the base and one by the expert, each from noise of its own. What
    is there already, of an earlier run that was stopped, is kept. What the run was, and the base's
    `units`, goes to `shards.RECORD` beside the shards.

    Args:
        folder: exists.
        base, expert: samplers of one latent space and schedule.
        prompts: one run of each side for each.
        batch: prompts at a time, and in a shard.
        seed: of the noise.
        truncate: cut prompts where the tokenizer ends, instead of refusing them.
        about: what else the images depend on (the models), as JSON has it; shards made with
            another are refused.

    Raises:
        InputError: no prompts or no texts, a batch below 1, samplers of other steps or latents, a
            folder of other prompts or settings, a batch that the GPU's memory cannot hold, latents
            that are not finite, or a pair whose first shard shows no difference.
    """
    check_texts(prompts)
    check_batch(batch, prompts)
    check_samplers(base, expert)
    told = json.dumps([list(prompts), base.steps, batch, seed, about, truncate])
    mark = hashlib.sha256(told.encode()).hexdigest()
    unit = units(base)
    record: dict[str, Any] = {
        "steps": base.steps,
        "prompts": len(prompts),
        "batch": batch,
        "seed": seed,
    }
    record |= {"mark": mark, "about": about, "unit": unit if unit is None else unit.tolist()}
    starts = range(0, len(prompts), batch)
    for number, start in enumerate(starts):
        place = folder / f"shard-{number:05d}.safetensors"
        part = prompts[start : start + batch]
        if not shards.done(place, mark):
            shard = _fitting(partial(_shard, (base, expert), seed, number, truncate), part)
            if number == 0 and not any(shard[f"{side}.differences"].any() for side in shards.SIDES):
                raise InputError(
                    f"expert: no difference from the base in {len(part)} prompts is not allowed: a "
                    "pair that differs is needed (adapters of one pipeline object are both those "
                    "set last; safe guidance does nothing before its warm-up's end)."
                )
            write_tensors(place, shard, {"mark": mark, "prompts": str(len(prompts))})
        if number == 0:  # after the first shard: one of another run has been refused
            disk.write_sealed(folder / shards.RECORD, record)
        yield Progress(number + 1, len(starts), torch.zeros(()))


def _shard(
    pair: tuple[Sampler, Sampler], seed: int, number: int, truncate: bool, prompts: Sequence[str]
) -> dict[str, Tensor]:
    texts = [sampler.condition(prompts, truncate) for sampler in pair]
    shard: dict[str, Tensor] = {}
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


def check_batch(batch: int, prompts: Sequence[str]) -> None:
    """Raise InputError unless there is something to do."""
    if not isinstance(batch, int) or batch < 1 or not prompts:
        raise InputError(
            f"batch={shown(batch)} with {len(prompts)} prompts is not allowed: at least 1 of each "
            "is needed."
        )


def check_samplers(base: Sampler, expert: Sampler) -> None:
    """Raise InputError unless both take as many steps, on latents of one shape."""
    for name, mine, other in (
        ("steps", base.steps, expert.steps),
        ("shape", base.shape, expert.shape),
    ):
        if mine != other:
            raise InputError(f"expert: {name}={other} is not allowed: the base's {mine} is needed.")
