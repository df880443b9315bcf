"""A reward: what it is fitted to, what it is asked, whether it can steer a model."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from rrlib.errors import InputError, check_one_of, shown
from rrlib.method.checks.levels import check_schedule
from rrlib.method.denoisers import Denoiser
from rrlib.method.networks.calls import check_beside, third_argument
from rrlib.method.pools import Place, Target, check_kind


def check_pool(network: nn.Module, pool: Any, unit: Tensor | None) -> None:
    """Raise InputError unless a pool can be what a reward network is fitted to.

    Args:
        network: with parts that have `windows`, (steps of a window, whether strided), or not.
        pool: of x, t, and what `pools.Pool` says besides, if it does.
        unit: of the network's output at each t, [T], if it has one.
    """
    check_beside("pool", pool.x, network)
    if unit is not None and int(pool.t.max()) >= len(unit):
        raise InputError(
            f"pool: t={int(pool.t.max())} is not allowed: the network has units for {len(unit)} "
            "steps, of one schedule with the pool's."
        )
    if isinstance(pool.x, Tensor) and not torch.isfinite(pool.x).all():
        raise InputError("pool: points that are not finite are not allowed: numbers are needed.")
    if getattr(pool, "condition", None) is not None and third_argument(network) is None:
        raise InputError(
            "network: one of two arguments is not allowed for models that are told a condition: "
            "rho(x, t, condition), such as a ContextReward, is needed."
        )
    cut = getattr(pool, "windows", None)
    for part in network.modules():
        own = getattr(part, "windows", None)
        if cut and own and own != cut:
            raise InputError(
                f"pool: windows of {_windows(*cut)} are not allowed: the network's own, of "
                f"{_windows(*own)}, are needed."
            )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(
            "network: none but frozen parameters are not allowed: some that require gradients are "
            "needed."
        )


def _windows(window: int, strided: bool) -> str:
    return f"{window} {'strided' if strided else 'contiguous'} steps"


def check_targets(scale: Tensor) -> None:
    """Raise InputError unless targets of a scale at each t, [T], are finite and not all 0."""
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


def check_fitted(network: Any, target: Target, place: Place) -> None:
    """Raise InputError for another target or place than there are, or than it was fitted to."""
    check_kind(target, place)
    for part in network.modules() if isinstance(network, nn.Module) else ():
        for name, mine, fitted in zip(
            ("target", "place"),
            (target, place),
            getattr(part, "fitted", None) or (target, place),
            strict=True,
        ):
            if mine != fitted:
                raise InputError(
                    f"{name}={mine!r} is not allowed: the network was fitted to a pool of "
                    f"{name}={fitted!r}, which is needed."
                )


def check_plans(states: Any, actions: Any) -> None:
    """Raise InputError unless both are parts of the same plans, [B, H, ...]."""
    for name, part in (("states", states), ("actions", actions)):
        shape = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
        if not isinstance(part, Tensor) or part.ndim != 3 or part.shape[:2] != states.shape[:2]:
            raise InputError(f"{name}: {shape} is not allowed: tensors [B, H, ...] are needed.")


def check_summands(rewards: Sequence[Any], weights: Sequence[float]) -> None:
    """Raise InputError unless rewards can be added: of one schedule, target and place."""
    lengths = {reward.steps for reward in rewards if reward.steps is not None}
    if len(lengths) > 1:
        raise InputError(
            f"rewards: of {' and '.join(map(str, sorted(lengths)))} diffusion steps are not "
            "allowed: rewards of one schedule are needed."
        )
    kinds = {(reward.target, reward.place) for reward in rewards}
    if len(kinds) != 1 or len(weights) != len(rewards):
        raise InputError(
            f"rewards: {len(rewards)} of kinds {sorted(kinds)} with {len(weights)} weights are not "
            "allowed: rewards of one target and one place, and a weight for each, are needed."
        )


def check_reward(denoiser: Denoiser, reward: Any) -> None:
    """Raise InputError unless a reward can steer a denoiser: one schedule, scores that it has."""
    check_schedule("the denoiser's", denoiser, reward)
    if reward.target == "score":
        denoiser.mean_per_score(torch.zeros(1, dtype=torch.long), torch.zeros(1))


def check_scale(scale: float) -> None:
    """Raise InputError unless it is a guidance scale."""
    if not isinstance(scale, Real) or not 0 <= scale < float("inf"):
        raise InputError(
            f"guidance_scale={shown(scale)} is not allowed: a finite number of at least 0 is "
            "needed."
        )


def check_place(place: Place | None, reward: Any, force: bool) -> None:
    """Raise InputError unless a gradient may be taken there: where it was fitted, or by force."""
    if place is not None:
        check_one_of("place", place, Place)
    if reward and place not in (None, reward.place) and not force:
        raise InputError(
            f"place={place!r} is not allowed: this reward was fitted at {reward.place!r}; "
            "say force=True to take its gradient elsewhere."
        )
