"""Several samples in one's place: weighted, which makes guidance exact, or the best of them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from rrlib.errors import InputError, shown
from rrlib.estimators.levels import retold
from rrlib.method.checks.levels import check_start
from rrlib.method.checks.numbers import check_counts, check_seen
from rrlib.method.checks.pairs import check_begins
from rrlib.method.checks.rewards import check_reward, check_scale
from rrlib.method.denoisers import Denoiser, between, step_between
from rrlib.method.exact import ExactDifference
from rrlib.method.guidance import sample, shift_of_mean
from rrlib.method.networks.calls import check_still
from rrlib.method.networks.sums import WeightedSum, asked
from rrlib.method.noise.precision import beside, narrow, stalls
from rrlib.method.noise.schedules import kept_steps
from rrlib.method.rewards import RelativeReward
from rrlib.training import stream

Reward = RelativeReward | ExactDifference


@dataclass(frozen=True, eq=False)
class Particles:
    """Weighted samples, N for each of B.

    Attributes:
        samples: x_0, [B, N, ...].
        weights: of the N, summing to 1, [B, N].
        effective: effective sample size, 1 / sum of squared weights, at each step before the
            particles were drawn anew, [K, B]: N where all count alike, 1 where one has all the
            weight. Where it is small they do not stand for the density that was asked for.
    """

    samples: Tensor
    weights: Tensor
    effective: Tensor

    def draw(self, seed: int = 0) -> Tensor:
        """One of each N by its weight, [B, ...]."""
        generator = stream(seed, "one of each", str(self.weights.device))
        picks = torch.multinomial(self.weights, 1, generator=generator).squeeze(1)
        return self.samples[torch.arange(len(picks), device=picks.device), picks]


def sample_weighted(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    reward: Reward,
    *,
    particles: int,
    guidance_scale: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    keep: Callable[[Tensor], Tensor] | None = None,
    num_inference_steps: int | None = None,
    resample_below: float = 0.9,
) -> Particles:
    """Steered sampling whose particles are weighted: of p1^(1 - w) p2^w, or of a sum's product.

    Steered with w = 1 the base makes the expert's steps. With another w, or by a sum of rewards,
    the steps belong to no noised density, and their end to none with a name (noising a product is
    not multiplying what has been noised). Weights say by how much: a step that is the product of
    all models' own, each to its power, is Gaussian around the steered mean, times

        ``W = exp((|sum_k w_k d_k|^2 - sum_k w_k |d_k|^2) / (2 beta))``,

    with d_k = c_t grad rho_k, the k-th expert's mean less the base's, and beta = 1 - abar_t /
    abar_before. For one reward this is ``w (w - 1) |d|^2 / (2 beta)``, for a sum of two
    <d_a, d_b> / beta: the discrete form of the Feynman-Kac correctors (Skreta et al., 2025),
    ``1/2 g^2 w (w - 1) |grad rho|^2 dtau`` and ``g^2 <grad rho_a, grad rho_b> dtau``.
    At w = 1, W = 1.
    Gradients are enough: no divergence, no level, no further call of a model.

    Where the effective sample size falls below a share of N, particles are drawn anew by their
    weights (systematic resampling), before they take the step. Where w > 1 the weights have long
    tails that the effective sample size does not see, so it is done early, at 0.9.

    Steps are drawn with the larger of DDPM's two deviations, sqrt(beta), whose step the weights
    are made for: the smaller one, of data at a point, falls short of every variance by a few
    percent at a hundred steps, which the weights amplify.

    Args:
        denoiser: the base; what it is told, a row for each of the B samples or B N particles.
        shape: of all samples together, (B, ...).
        reward: steers; one that `compose` made stands for p1 prod_k (p_k / p1)^(w_k), its parts'.
        particles: N for each of the B samples; the more, the further w is from 1 and the more
            numbers a sample has.
        guidance_scale: w, at least 0; multiplies the weights of a composed reward.
        seed, device, dtype, num_inference_steps: see `guidance.sample`.
        keep: what every x_t [B N, ...] is put through, see `guidance.denoise`; the N of a sample
            follow one another. What it sets does not count in the weights.
        resample_below: share of N, from 0 (never) to 1.

    Raises:
        InputError: a reward that cannot steer this model, a number out of range, or more particles
            than there is memory for.

    >>> import rrlib
    >>> scheduler = rrlib.cosine_scheduler(20, clip=False)
    >>> base, expert = (
    ...     rrlib.Denoiser(lambda x, t, a=a: 0.5 * x + a, scheduler) for a in (0.0, 0.2)
    ... )
    >>> both = rrlib.ExactDifference(base, expert)
    >>> found = rrlib.sample_weighted(base, (3, 2), both, particles=16, guidance_scale=2.0)
    >>> found.samples.shape, found.effective.shape, found.draw().shape
    (torch.Size([3, 16, 2]), torch.Size([20, 3]), torch.Size([3, 2]))
    """
    check_still("denoiser", denoiser.network)
    check_reward(denoiser, reward)
    check_begins(reward)
    check_scale(guidance_scale)
    if not isinstance(particles, int) or particles < 2:
        raise InputError(f"particles={shown(particles)} is not allowed: at least 2 are needed.")
    if not 0 <= resample_below <= 1:
        raise InputError(
            f"resample_below={resample_below} is not allowed: a share from 0 to 1 is needed."
        )
    parts = _parts(reward, guidance_scale)
    _check_memory(shape, particles, len(parts), device, dtype)
    taken = denoiser.steps if num_inference_steps is None else num_inference_steps
    steps = kept_steps(denoiser.steps, taken)
    denoiser = retold(
        denoiser,
        lambda part: part.repeat_interleave(particles, 0) if len(part) == shape[0] else part,
    )
    keep = keep or (lambda x: x)
    generator = torch.Generator(device).manual_seed(seed)
    rows = (shape[0] * particles, *shape[1:])
    x = torch.randn(rows, generator=generator, device=device, dtype=dtype)
    free = keep(torch.zeros_like(x)) != keep(torch.ones_like(x))
    x, logs = keep(x), x.new_zeros(shape[0], particles, dtype=torch.float64)
    sizes = []
    for step, before in pairwise([*steps, -1]):
        mean, gain, deviation = _moved(denoiser, x, step, before, parts, free)
        logs = logs + gain.reshape(logs.shape)
        weights = logs.softmax(1)
        sizes.append(1 / weights.square().sum(1))
        low = sizes[-1] < resample_below * particles
        # Not at the last step, which has no noise that would part copies again.
        if before >= 0 and (stalls(low) or low.any()):
            mean = mean[_resampled(weights, low, generator)]
            logs = logs.masked_fill(low[:, None], 0.0)
        draw = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = keep(narrow(mean + deviation * draw, x))
    check_seen("sample", x)
    return Particles(x.unflatten(0, (-1, particles)), logs.softmax(1), torch.stack(sizes))


def best_of(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    reward: Callable[..., Tensor],
    n: int,
    generator: torch.Generator | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    keep: Callable[[Tensor], Tensor] | None = None,
    num_inference_steps: int | None = None,
) -> Tensor:
    """Selection in guidance's place: of n unsteered samples each, the one of most reward at t = 0.

    It takes n times `num_inference_steps` calls of the model for each sample and n of the reward,
    no gradient; steered sampling takes `num_inference_steps` of the model and as many gradients. So
    n samples of T / n steps cost the model what a steered one of T steps does. No sample is one
    that the base would not draw.

    Args:
        denoiser: the base.
        shape: of all samples together, (B, ...).
        reward: (x [B, ...], t [B]) -> [B], such as a RelativeReward; one that takes a condition as
            its third argument is told the denoiser's, if it has one.
        n: samples to choose from, for each of the B; drawn one after another.
        generator, seed, device, dtype, keep, num_inference_steps: see `sample`.

    Raises:
        InputError: n below 1, a reward of another schedule, one that was not fitted at t = 0 or
            does not value each sample, and see `sample`.

    >>> import rrlib
    >>> base = rrlib.Denoiser(lambda x, t: 0.5 * x, rrlib.cosine_scheduler(10, clip=False))
    >>> rrlib.best_of(base, (4, 2), lambda x, t: x.sum(1), 8, num_inference_steps=5).shape
    torch.Size([4, 2])
    """
    check_counts(n=n)
    if isinstance(reward, RelativeReward):
        check_reward(denoiser, reward)
        check_start(reward)
    if generator is None:
        generator = torch.Generator(device).manual_seed(seed)
    for k in range(n):
        x = sample(
            denoiser,
            shape,
            generator,
            dtype=dtype,
            keep=keep,
            num_inference_steps=num_inference_steps,
        )
        with torch.no_grad():
            t = torch.zeros(len(x), dtype=torch.long, device=x.device)
            told = denoiser.condition
            value = reward(x, t) if told is None else asked(reward, x, t, told)
        if value.shape != x.shape[:1]:
            raise InputError(
                f"reward: values of shape {tuple(value.shape)} are not allowed: one for each of "
                f"{len(x)} samples is needed."
            )
        if k == 0:
            best, most = x, value
        better = value > most
        best = torch.where(beside(better, x), x, best)
        most = torch.maximum(value, most)
    check_seen("reward: its values", most)
    return best


def _parts(reward: Reward, scale: float) -> list[tuple[float, Reward]]:
    """The rewards that a reward is a weighted sum of, and their weights."""
    network = getattr(reward, "network", None)
    if not isinstance(network, WeightedSum):
        return [(scale, reward)]
    return [
        part
        for weight, one in zip(network.weights, network.networks, strict=True)
        for part in _parts(RelativeReward(one, reward.target, reward.place), scale * weight)
    ]


@torch.no_grad()
def _moved(denoiser, x, step, before, parts, free) -> tuple[Tensor, Tensor, Tensor]:
    """A step's steered mean [B N, ...], what it adds to the log weights [B N], its deviation."""
    t = torch.full((len(x),), step, device=x.device)
    x0 = denoiser.answer(x, t)
    mean, _ = between(denoiser, x0, x, step, before)
    one = narrow(denoiser.mean_from_x0(x0, x, t), x)
    ahead = denoiser.schedule.lengthened(step, before)
    total, energies = torch.zeros_like(mean), torch.zeros_like(mean)
    for weight, reward in parts:
        point = x if reward.place == "x_t" else one
        shift = ahead * shift_of_mean(denoiser, reward, point, t)
        total += weight * shift
        energies += weight * shift.square()
    beta = step_between(denoiser, x, step, before).beta
    least = torch.finfo(beta.dtype).tiny  # of a step that goes nowhere, which adds nothing
    gain = (free * (total.square() - energies)).double() / (2 * beta.clamp(min=least))
    return mean + total, gain.flatten(1).sum(1), beta.sqrt() * (before >= 0)


def _resampled(weights: Tensor, low: Tensor, generator: torch.Generator) -> Tensor:
    """Rows [B N] that take the rows' places: by systematic resampling where `low` [B] says so."""
    count = weights.shape[1]
    places = torch.arange(count, device=weights.device).expand_as(weights)
    start = torch.rand(len(weights), 1, generator=generator, device=weights.device)
    picks = torch.searchsorted(weights.cumsum(1), (places + start.double()) / count)
    picks = torch.where(low[:, None], picks.clamp(max=count - 1), places)
    return (picks + count * torch.arange(len(weights), device=picks.device)[:, None]).flatten()


def _check_memory(shape, particles: int, rewards: int, device: str, dtype: torch.dtype) -> None:
    """Raise InputError if the particles alone, without any network's own, are more than fits."""
    numbers = torch.Size(shape[1:]).numel() * shape[0]
    size = torch.promote_types(dtype, torch.float32).itemsize
    wanted = particles * numbers * size * (8 + 2 * rewards) / 1e9  # tensors of a step
    there = _memory(device)
    if wanted > there:
        raise InputError(
            f"particles={shown(particles)} is not allowed: for {shape[0]} samples of shape "
            f"{tuple(shape[1:])} they take {wanted:,.0f} GB, and {device} has {there:,.0f} GB; "
            f"{int(particles * there / wanted)} at most, less what the networks take, are needed."
        )


def _memory(device: str) -> float:
    """GB of a device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[1] / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
