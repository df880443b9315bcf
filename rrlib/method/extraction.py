"""A potential is fitted to what a pool says of base and expert, and held against another."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from rrlib.method.checks.numbers import check_counts
from rrlib.method.checks.resumed import numbers_of
from rrlib.method.checks.rewards import check_pool, check_targets
from rrlib.method.comparisons import aligned, asked, drawn, noised
from rrlib.method.denoisers import Denoiser
from rrlib.method.networks.calls import valued
from rrlib.method.noise.precision import beside, wide
from rrlib.method.pools import Place, Pool, Target
from rrlib.training import Progress, train


def unit_of(network: nn.Module) -> Tensor | None:
    """What a unit of a network's output is worth at each t, [T]; None where it does not say.

    Of a network that wraps or stacks others, the first one's.
    """
    buffers = network.named_buffers() if isinstance(network, nn.Module) else ()
    found = (value for name, value in buffers if name.split(".")[-1] == "unit")
    unit = next(found, None)
    return unit if unit is None or unit.ndim == 1 else unit[0]


def told(
    network: Callable[..., Tensor], condition: Tensor | None, rows: Tensor | slice
) -> Callable[[Tensor, Tensor], Tensor]:
    """The network under what both models were told of some rows of a pool."""
    if condition is None:
        return network
    part = condition[rows]
    return lambda x, t: network(x, t, part)


def loss(
    network: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, target: Tensor
) -> Tensor:
    """L_RRF (Eq. 14): mean over the batch of |grad rho(x, t) - target|^2, []."""
    x = x.detach().requires_grad_()
    gradient = torch.autograd.grad(valued(network, x, t).sum(), x, create_graph=True)[0]
    return (gradient - target).flatten(1).square().sum(1).mean()


def weighed_loss(
    network: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    t: Tensor,
    target: Tensor,
    weight: Tensor,
) -> Tensor:
    """`loss` of errors that are multiplied by their weights [B] before they are squared, []."""
    return loss(lambda x, t: valued(network, x, t) * weight, x, t, target * beside(weight, x))


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
    """One step of Algorithm 1 as printed, []: what a pool is held against, in tests and timings."""
    expert = aligned(base, expert)
    x0 = drawn(base_data, expert_data, n, generator)
    x_t, t = noised(base, x0, generator, expert.schedule.span)
    pool = asked(base, expert, x_t, t).pool(target, place)
    return loss(network, pool.x, t, pool.target)


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
    check_targets(scale)
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
    checkpoint: str | Path | None = None,
) -> Iterator[Progress]:
    """Fit `network` to a pool by L_RRF, each t weighed by the square of its `step_weights`.

    Weighing changes no minimiser (each t has its own), only how well a finite network meets each.
    Where both models agree throughout, nothing is fitted, and the reward says what nearby t say.

    Args:
        network: a reward, changed in place.
        pool: of x [N, h, D] or [N, D]; cut into windows already, if the reward is windowed.
        steps, batch, learning_rate, seed, checkpoint: see `training.train`.

    Raises:
        InputError: a pool that does not suit the network, or see `step_weights`.
    """
    check_counts(batch=batch)
    unit = unit_of(network)
    check_pool(network, pool, unit)
    for part in network.modules():
        if unit_of(part) is not None:
            part.fitted = getattr(pool, "kind", None)  # `RelativeReward` holds its maker to it
    steps_seen = int(pool.t.max()) + 1
    weights = step_weights(pool.scale(steps_seen), None if unit is None else unit[:steps_seen])

    def batch_loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(pool), (batch,), generator=generator, device=pool.t.device)
        x, t, target = pool.x[rows], pool.t[rows], pool.target[rows]
        return weighed_loss(told(network, pool.condition, rows), x, t, target, weights[t])

    target, place = getattr(pool, "kind", None) or (None, None)
    about: dict = {"batch": batch, "target": target, "place": place}
    if checkpoint:
        about["comparisons"] = numbers_of(pool, unit)
    return train(
        network,
        batch_loss,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        checkpoint=checkpoint,
        about=about,
    )


@torch.enable_grad()
def explained(network: Callable[..., Tensor], pool: Pool, steps: int, batch: int = 4096) -> Tensor:
    """Share of the target's energy that grad rho explains at each t, [T].

    NaN where there is nothing to explain: both models agree there, or the pool has no such t.
    Ask it of a pool that the reward was not fitted to.
    """
    left = torch.zeros(steps, dtype=wide(pool.target), device=pool.target.device)
    total = left.clone()
    for rows in torch.arange(len(pool), device=pool.t.device).split(batch):
        # A pool may be kept in half precision.
        x, target = (part[rows].detach().to(wide(part)) for part in (pool.x, pool.target))
        seen = told(network, pool.condition, rows)
        gradient = torch.autograd.grad(valued(seen, x.requires_grad_(), pool.t[rows]).sum(), x)[0]
        left.index_add_(0, pool.t[rows], (gradient - target).flatten(1).square().sum(1))
        total.index_add_(0, pool.t[rows], target.flatten(1).square().sum(1))
    return torch.where(total > 0, 1 - left / total, torch.nan)
