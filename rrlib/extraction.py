"""The method: note where base and expert differ, and fit a potential to the difference.

The target is *expert minus base*, for scores (Eq. 14) and for means alike.
Both algorithms fill a pool of (where, t, target) once; training reads the pool and never calls the
diffusion models again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from rrlib.denoisers import Denoiser, given, held
from rrlib.errors import InputError
from rrlib.rewards import Place, Target, unit_of, windows
from rrlib.training import Progress, stream, train


@dataclass(frozen=True)
class Pool:
    """Where base and expert were compared, and by how much they differed.

    Attributes:
        x: points where the reward's gradient is taken, [N, ...].
        t: diffusion steps, [N].
        target: expert minus base, [N, ...].
    """

    x: Tensor
    t: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.t)

    def to(self, device: str) -> "Pool":
        """The same pool on a device."""
        return Pool(self.x.to(device), self.t.to(device), self.target.to(device))

    def cut(self, window: int, strided: bool = False) -> "Pool":
        """The pool of windows of `window` steps, [N H / h, h, D], for a windowed reward.

        With rho = mean of g over H / h windows, grad rho on a window is (h / H) grad g there, so
        fitting grad rho to the target is fitting grad g to H / h times the target, each window by
        itself. See `rewards.windows`.
        """
        x, target = (windows(part, window, strided) for part in (self.x, self.target))
        count = x.shape[1]
        t = self.t.repeat_interleave(count)
        return Pool(x.flatten(0, 1), t, target.flatten(0, 1) * count)

    def average(self, count: int) -> "Pool":
        """The pool [N, h / count, D] of means of `count` steps, of a pool of windows [N, h, D].

        For a reward that sees only such means (`rewards.WindowReward`). Times the root of `count`
        they are a projection, y = A x with orthonormal rows, so |A^T grad_y rho - target|^2 is
        |grad_y rho - A target|^2 plus what no such reward can change.
        """
        x, target = (
            part.unflatten(1, (-1, count)).mean(2) * count**0.5 for part in (self.x, self.target)
        )
        return Pool(x, self.t, target)

    def scale(self, steps: int) -> Tensor:
        """Root mean square of the target's entries at each t, [T].

        0 where both models agree at all points of a t, and where the pool has no point of it.
        """
        squares = self.target.flatten(1).square().mean(1)
        total = torch.zeros(steps, dtype=squares.dtype, device=squares.device)
        count = total.index_add(0, self.t, torch.ones_like(squares))
        total = total.index_add(0, self.t, squares)
        return (total / count.clamp(min=1)).sqrt()


@dataclass(frozen=True)
class Comparisons:
    """Both models' x0 at the same points, from which either target is read, at either place.

    Attributes:
        x: noised samples x_t, [N, ...].
        t: diffusion steps, [N].
        base, expert: E[x_0 | x_t] by each model, [N, ...].
    """

    x: Tensor
    t: Tensor
    base: Tensor
    expert: Tensor

    def read(self, model: Denoiser, target: Target, place: Place) -> Pool:
        """The pool that a reward is fitted to.

        Args:
            model: either model; only its schedule counts.
            target: "score" (Eq. 14) or "mean" (Eq. 45 with its sign turned).
            place: "x_t" (Eq. 14) or "mu_base", where ancestral sampling applies the gradient.

        Raises:
            InputError: another target or place.
        """
        for name, value, kind in (("target", target, Target), ("place", place, Place)):
            if value not in get_args(kind):
                allowed = " or ".join(map(repr, get_args(kind)))
                raise InputError(f"{name}={value!r} is not allowed: {allowed} is needed.")
        convert = model.score_from_x0 if target == "score" else model.mean_from_x0
        mean = model.mean_from_x0(self.base, self.x, self.t) if place == "mu_base" else self.x
        mine, other = (convert(x0, self.x, self.t) for x0 in (self.base, self.expert))
        return Pool(mean, self.t, other - mine)


@torch.no_grad()
def compare(base: Denoiser, expert: Denoiser, x_t: Tensor, t: Tensor) -> Comparisons:
    """Ask both models about x_t [B, ...] at t [B]."""
    return Comparisons(x_t, t, base.x0(x_t, t), expert.x0(x_t, t))


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
    """
    check_schedules(base, expert)
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
    """
    check_schedules(base, expert)
    parts = []
    for start in range(0, size, batch):
        generator = stream(seed, f"pool {start}", str(base_data.device))
        x0 = drawn(base_data, expert_data, min(batch, size - start), generator)
        x_t, t = noised(base, x0, generator)
        first = x0[:, 0, -observation:]
        parts.append(compare(given(base, first), given(expert, first), held(x_t, first), t))
    return _join(parts)


def _join(parts: list[Comparisons]) -> Comparisons:
    fields = ((part.x, part.t, part.base, part.expert) for part in parts)
    return Comparisons(*map(torch.cat, zip(*fields, strict=True)))


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
    """
    check_schedules(base, expert)
    if runs < 2 or runs % 2:
        raise InputError(f"runs={runs} is not allowed: an even number of at least 2 is needed.")
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
            x = mean + model.deviation(t, x) * torch.randn(x.shape, **options)
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


def loss(
    network: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, target: Tensor
) -> Tensor:
    """L_RRF (Eq. 14): mean over the batch of |grad rho(x, t) - target|^2, []."""
    x = x.detach().requires_grad_()
    gradient = torch.autograd.grad(network(x, t).sum(), x, create_graph=True)[0]
    return (gradient - target).flatten(1).square().sum(1).mean()


def literal_loss(
    network: nn.Module,
    base: Denoiser,
    expert: Denoiser,
    base_data: Tensor,
    expert_data: Tensor,
    n: int,
    generator: torch.Generator,
    target: Target,
    place: Place,
) -> Tensor:
    """One step of Algorithm 1 as printed, [] : two model calls per step, then L_RRF.

    The reference that tests and benchmarks hold the pool against.
    """
    x_t, t = noised(base, drawn(base_data, expert_data, n, generator), generator)
    pool = compare(base, expert, x_t, t).read(base, target, place)
    return loss(network, pool.x, t, pool.target)


def discriminator_loss(
    network: Callable[[Tensor, Tensor], Tensor],
    base: Denoiser,
    base_data: Tensor,
    expert_data: Tensor,
    n: int,
    generator: torch.Generator,
    observation: int = 0,
) -> Tensor:
    """Cross-entropy of telling noised expert data from noised base data, [] : a rival estimator.

    With as many of one as of the other, the best logit at (x_t, t) is log p2_t - log p1_t, the
    relative reward itself, its constant included. It sees samples only; Algorithm 1 sees models.

    Args:
        network: (x_t, t) -> logit [n] of "expert".
        base: its schedule noises the samples; the model is not asked.
        base_data, expert_data: [m, ...] training samples, normalised alike.
        n: samples drawn, half of them from each side.
        generator: of the draws.
        observation: numbers of the first observation, held without noise; 0 holds nothing.
    """
    x0 = drawn(base_data, expert_data, n, generator)
    x_t, t = noised(base, x0, generator)
    if observation:
        x_t = held(x_t, x0[:, 0, -observation:])
    is_expert = torch.arange(n, device=t.device) >= n - n // 2  # the order of `drawn`
    logits = network(x_t, t)
    return functional.binary_cross_entropy_with_logits(logits, is_expert.to(logits))


def units(base: Denoiser, target: Target) -> Tensor:
    """What a unit of the network's output is worth at each t, [T].

    A log ratio of densities keeps its size as t goes to 0 and fades like sqrt(abar_t) as t grows,
    so a network in units of sqrt(abar_t) says nearly the same at neighbouring t. Where densities
    have gaps, gradients at small t do not tell how two regions compare; larger t do, and hand it
    down this way. Means have the further factor beta_t / sqrt(alpha_t).
    """
    t = torch.arange(base.steps)
    like = torch.empty(base.steps)
    factor = base.mean_per_score(t, like) if target == "mean" else 1.0
    return base.abar(t, like).sqrt() * factor


def displacement_units(base: Denoiser, target: Target) -> Tensor:
    """What a unit of the network's output is worth at each t, [T], if both x0 hardly depend on t.

    Learned models tell small noise from none at all t alike: where an expert has never been, its x0
    lies where it would rather be, however little noise there is. Then the difference of x0 stays
    the same, and the target is that difference times a number per t, this unit: for means
    beta_t sqrt(abar_{t-1}) / (1 - abar_t), for scores sqrt(abar_t) / (1 - abar_t).
    """
    t = torch.arange(base.steps)
    one, none = torch.ones(base.steps), torch.zeros(base.steps)
    read = base.mean_from_x0 if target == "mean" else base.score_from_x0
    return read(one, none, t)


def step_weights(scale: Tensor, unit: Tensor | None = None) -> Tensor:
    """What errors are multiplied by at each t before they are squared, [T].

    The inverse of the target's scale, so that each t counts alike; 0 where the scale is 0, since a
    step at which the models agree says nothing. A step at which they agree but for rounding says
    little more, and its inverse would drown all others: below a thousandth of what is usual (the
    median, rounding left out) the weight falls with the scale instead.

    Args:
        scale: of the target at each t, [T], such as `Pool.scale`.
        unit: what a unit of the network's output is worth at each t, [T]; scales are compared in
            it. None takes 1.

    Raises:
        InputError: a scale is not finite, or all are 0.
    """
    if not torch.isfinite(scale).all():
        step = int((~torch.isfinite(scale)).nonzero()[0])
        raise InputError(
            f"pool: a target of {float(scale[step])} at t = {step} is not allowed: finite "
            "differences of the two models are needed."
        )
    if not (scale > 0).any():
        raise InputError(
            "pool: targets that are all 0 are not allowed: two models that differ somewhere are "
            "needed."
        )
    told = scale if unit is None else scale / unit.to(scale).abs()
    usual = told[(scale > 0) & (told > 1e-6 * told[scale > 0].max())].median()
    faded = (told / (1e-3 * usual)).clamp(max=1).square()
    return torch.where(scale > 0, scale.reciprocal() * faded, 0.0)


def fit(
    network: nn.Module,
    pool: Pool,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    checkpoint: Path | None = None,
) -> Iterator[Progress]:
    """Fit `network` to a pool by L_RRF, each t weighed by the square of its `step_weights`.

    Weighing changes no minimiser (each t has its own), only how well a finite network meets each.
    At a step where both models agree throughout nothing is fitted: there the reward says what its
    neighbours in t say.

    Args:
        network: a reward, changed in place.
        pool: of x [N, h, D] or [N, D]; cut into windows already, if the reward is windowed.
        steps, batch, learning_rate, seed, checkpoint: see `training.train`.

    Raises:
        InputError: see `step_weights`.
    """
    steps_seen = int(pool.t.max()) + 1
    unit = unit_of(network)
    weights = step_weights(pool.scale(steps_seen), None if unit is None else unit[:steps_seen])

    def batch_loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(pool), (batch,), generator=generator, device=pool.t.device)
        x, t, target = pool.x[rows], pool.t[rows], pool.target[rows]
        weight = weights[t]
        wide = weight.reshape(-1, *[1] * (x.ndim - 1))
        return loss(lambda x, t: network(x, t) * weight, x, t, target * wide)

    return train(
        network,
        batch_loss,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        checkpoint=checkpoint,
    )


def explained(network: nn.Module, pool: Pool, steps: int, batch: int = 4096) -> Tensor:
    """Share of the target's energy that grad rho explains at each t, [T].

    NaN where there is nothing to explain: both models agree there, or the pool has no such t.
    Ask it of a pool that the reward was not fitted to.
    """
    left = torch.zeros(steps, dtype=pool.target.dtype, device=pool.target.device)
    total = left.clone()
    for rows in torch.arange(len(pool), device=pool.t.device).split(batch):
        x = pool.x[rows].detach().requires_grad_()
        gradient = torch.autograd.grad(network(x, pool.t[rows]).sum(), x)[0]
        error = (gradient - pool.target[rows]).flatten(1).square().sum(1)
        left.index_add_(0, pool.t[rows], error)
        total.index_add_(0, pool.t[rows], pool.target[rows].flatten(1).square().sum(1))
    return torch.where(total > 0, 1 - left / total, torch.nan)


def check_schedules(base: Denoiser, expert: Denoiser) -> None:
    """Raise InputError unless both models share one schedule: else x_t means two things."""
    mine, other = base.scheduler.alphas_cumprod, expert.scheduler.alphas_cumprod
    if mine.shape != other.shape or not torch.equal(mine, other):
        raise InputError(
            f"expert: its schedule ({len(other)} steps) is not allowed: the base's own schedule "
            f"({len(mine)} steps) is needed."
        )
