"""Where base and expert differ: Algorithms 1 and 2, which ask both models at the same points.

The target is *expert minus base*, for scores (Eq. 14) and for means alike.
Both algorithms fill a pool of (where, t, target) once; training reads the pool and never calls the
diffusion models again.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from rrlib.denoisers import Denoiser, given, held
from rrlib.errors import InputError, shown
from rrlib.pools import Comparisons
from rrlib.schedules import narrow
from rrlib.training import stream

BEYOND = 0.01  # share of numbers beyond the clip's range that new data of an old range may have


@torch.no_grad()
def compare(base: Denoiser, expert: Denoiser, x_t: Tensor, t: Tensor) -> Comparisons:
    """Ask both models about x_t [B, ...] at t [B].

    Raises:
        InputError: a model's answer is not finite.
    """
    found = Comparisons(x_t, t, base.answer(x_t, t), expert.answer(x_t, t))
    for name in ("base", "expert"):
        check_finite(name, getattr(found, name), t)
    return found


def check_finite(name: str, x: Tensor, t: Tensor | None = None) -> None:
    """Raise InputError if some number of x [B, ...], at t [B], is not finite.

    The one place where values are looked at: on a GPU a look waits for all that was asked.
    """
    if torch.isfinite(x).all():
        return
    row = int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])
    where = "" if t is None else f" at t={int(t[row])}"
    raise InputError(
        f"{name}: numbers that are not finite{where} are not allowed: finite ones are needed."
    )


def algorithm1(
    base: Denoiser,
    expert: Denoiser,
    base_data: Tensor,
    expert_data: Tensor,
    *,
    size: int,
    seed: int,
    batch: int = 256,
    ends: int = 0,
) -> Comparisons:
    """Algorithm 1's comparisons: x_0 from both training sets in equal parts, t uniform, x_t noised.

    Args:
        base, expert: diffusion models of one schedule.
        base_data, expert_data: [n, ...] training samples, normalised alike.
        size: comparisons N.
        seed: of the draws.
        batch: samples per call of the models.
        ends: give both models the first and last observation of each plan, this many numbers wide
            (see `denoisers.given`); 0 gives none.

    Raises:
        InputError: models of two schedules, data that do not suit them or each other, a number out
            of range, an answer that is not finite, or models that agree everywhere.
    """
    _check_call(base, expert, base_data, expert_data, size, batch)
    if ends:
        _check_observation("ends", ends, base_data)
    parts = []
    for start in range(0, size, batch):
        generator = stream(seed, f"pool {start}", str(base_data.device))
        x0 = drawn(base_data, expert_data, min(batch, size - start), generator)
        x_t, t = noised(base, x0, generator)
        pair = (base, expert)
        if ends:
            pair = (given(model, x0[:, 0, -ends:], x0[:, -1, -ends:]) for model in pair)
        parts.append(compare(*pair, x_t, t))
    return _join(parts)


def control_comparisons(
    base: Denoiser,
    expert: Denoiser,
    base_data: Tensor,
    expert_data: Tensor,
    observation: int,
    *,
    size: int,
    seed: int,
    batch: int = 256,
) -> Comparisons:
    """Algorithm 1's comparisons of two planners, both given the first observation of each plan.

    As when they control (`steering.denoise` with `first`), x_t has that observation in its place.

    Args:
        base, expert, base_data, expert_data, size, seed, batch: see `algorithm1`.
        observation: do, numbers per observation.

    Raises:
        InputError: see `algorithm1`.
    """
    _check_call(base, expert, base_data, expert_data, size, batch)
    _check_observation("observation", observation, base_data)
    parts = []
    for start in range(0, size, batch):
        generator = stream(seed, f"pool {start}", str(base_data.device))
        x0 = drawn(base_data, expert_data, min(batch, size - start), generator)
        x_t, t = noised(base, x0, generator)
        first = x0[:, 0, -observation:]
        parts.append(compare(given(base, first), given(expert, first), held(x_t, first), t))
    return _join(parts)


def _check_call(base, expert, base_data, expert_data, size, batch) -> None:
    """Raise InputError unless Algorithm 1 can be run as it is asked for."""
    check_schedules(base, expert)
    for name, value in (("size", size), ("batch", batch)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={shown(value)} is not allowed: at least 1 is needed.")
    for name, data in (("base_data", base_data), ("expert_data", expert_data)):
        if not isinstance(data, Tensor) or not data.is_floating_point():
            kind = data.dtype if isinstance(data, Tensor) else type(data).__name__
            raise InputError(f"{name} of {kind} is not allowed: a tensor of floats is needed.")
        if data.ndim < 2 or not data.numel():
            raise InputError(
                f"{name} of shape {tuple(data.shape)} is not allowed: samples [n, ...] are needed."
            )
        for what in ("dtype", "device"):
            mine, other = getattr(base_data, what), getattr(data, what)
            if mine != other:
                raise InputError(f"{name} of {other} is not allowed: the base's {mine} is needed.")
        if data.shape[1:] != base_data.shape[1:]:
            raise InputError(
                f"{name}: samples of shape {tuple(data.shape[1:])} are not allowed: the base's "
                f"{tuple(base_data.shape[1:])} is needed."
            )
        check_finite(name, data)
        _check_range(name, data, base.schedule.clip)


def _check_range(name: str, data: Tensor, clip: float | None) -> None:
    """Raise InputError if more than a few numbers lie where a clipped x0 cannot follow."""
    if clip is None:
        return
    beyond = float((data.abs() > clip * (1 + 1e-6)).double().mean())
    if beyond > BEYOND:
        raise InputError(
            f"{name}: {beyond:.0%} of its numbers beyond {clip:g}, where the models clip x0, are "
            "not allowed: normalised data, or a scheduler of clip_sample=False, are needed."
        )


def _check_observation(name: str, width: int, data: Tensor) -> None:
    if data.ndim != 3 or not 1 <= width <= data.shape[-1]:
        raise InputError(
            f"{name}={shown(width)} is not allowed for data of shape {tuple(data.shape)}: plans "
            "[n, H, D] and a number from 1 to D are needed."
        )


def _join(parts: Iterable[Comparisons]) -> Comparisons:
    """All comparisons as one; InputError if no model differs from the other in any of them."""
    fields = ((part.x, part.t, part.base, part.expert) for part in parts)
    found = Comparisons(*map(torch.cat, zip(*fields, strict=True)))
    check_differ(found.base, found.expert)
    return found


def check_differ(base: Tensor, expert: Tensor) -> None:
    """Raise InputError if both models say the same of all points."""
    if torch.equal(base, expert):
        raise InputError(
            f"expert: no difference from the base at any of {len(base)} points is not allowed: two "
            "models that differ are needed (is it the same network twice?)."
        )


@torch.no_grad()
def algorithm2(
    base: Denoiser,
    expert: Denoiser,
    shape: tuple[int, ...],
    *,
    runs: int,
    seed: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Comparisons:
    """Algorithm 2's comparisons (appendix D): x_t from the models' own sampling, no data needed.

    Half of the runs are denoised by the base, half by the expert, and at every step both models are
    compared on the same x_t. What is noted is the difference of scores or of means at x_t; the
    paper's difference of two random steps has that mean if both share their noise.

    Args:
        base, expert: diffusion models of one schedule.
        shape: of one sample.
        runs: denoisings, an even number of at least 2, of T comparisons each.
        seed: of the draws.
        device, dtype: of the samples.

    Raises:
        InputError: models of two schedules, a number of runs that cannot be halved, a shape that is
            none, an answer that is not finite, or models that agree everywhere.
    """
    check_schedules(base, expert)
    if not isinstance(runs, int) or runs < 2 or runs % 2:
        raise InputError(
            f"runs={shown(runs)} is not allowed: an even number of at least 2 is needed."
        )
    sides = shape if isinstance(shape, tuple | list) else ()
    if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
        raise InputError(
            f"shape={shown(shape)} is not allowed: the sides of one sample, as in (32, 6), are "
            "needed."
        )
    parts = []
    for name, model in (("base", base), ("expert", expert)):
        generator = stream(seed, f"runs of the {name}", device)
        options = {"generator": generator, "device": device, "dtype": dtype}
        x = torch.randn(runs // 2, *shape, **options)
        for step in reversed(range(base.steps)):
            t = torch.full((len(x),), step, device=device)
            found = compare(base, expert, x, t)
            parts.append(found)
            mean = model.mean_from_x0(getattr(found, name), x, t)
            x = narrow(mean + model.deviation(t, x) * torch.randn(x.shape, **options), x)
    return _join(parts)


def drawn(base_data: Tensor, expert_data: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n samples x_0, half of them from each data set, the base's first."""
    device = base_data.device
    half = n // 2
    picks = [
        torch.randint(len(data), (count,), generator=generator, device=device)
        for data, count in ((base_data, n - half), (expert_data, half))
    ]
    return torch.cat([base_data[picks[0]], expert_data[picks[1]]])


def noised(model: Denoiser, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x_t of each x_0 [n, ...] at its own t, uniform over 0 .. T - 1, and these t."""
    t = torch.randint(model.steps, (len(x0),), generator=generator, device=x0.device)
    return model.noise(x0, t, generator), t


def check_schedules(base: Denoiser, expert: Denoiser) -> None:
    """Raise InputError unless both models share one schedule, else x_t means two things.

    And one clip of x0, else their difference holds the clipping of one of them.
    """
    mine, other = base.schedule, expert.schedule
    if mine.abar != other.abar:
        where = ""
        if mine.about == other.about:
            gaps = [abs(a - b) for a, b in zip(mine.abar, other.abar, strict=True)]
            where = f" (they differ most at t={gaps.index(max(gaps))}, by {max(gaps):.1e})"
        raise InputError(
            f"expert: its schedule ({other.about}) is not allowed: the base's own schedule "
            f"({mine.about}) is needed{where}."
        )
    if mine.clip != other.clip:
        clips = (other.clip, mine.clip)
        theirs, ours = ("no clip" if c is None else f"a clip at {c:g}" for c in clips)
        raise InputError(
            f"expert: {theirs} of its x0 is not allowed: the base's scheduler has {ours}, and one "
            "choice for both is needed (clip_sample, clip_sample_range)."
        )
