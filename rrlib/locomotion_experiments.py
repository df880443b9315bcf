"""What a locomotion chapter's parameters ask for: sizes, and one experiment per environment."""

from dataclasses import dataclass
from types import SimpleNamespace

from rrlib import locomotion
from rrlib.errors import InputError
from rrlib.locomotion_recipes import LocomotionData, LocomotionDiffuser, LocomotionFile
from rrlib.locomotion_rewards import LocomotionDiscriminator, LocomotionPool, LocomotionReward


@dataclass(frozen=True)
class Sizes:
    """Networks and budgets; the fields of the recipes of `locomotion_recipes` and `..._rewards`.

    Attributes:
        horizon: steps of a plan.
        value: channels of reward and discriminator, `value_patch` steps entering as one.
        expert_share: optimisation steps of an expert over those of its base.
        from_base: whether an expert begins at the base's weights.
    """

    horizon: int = 32
    channels: tuple[int, ...] = (32, 64, 128)
    patch: int = 4
    diffusion_steps: int = 10
    batch: int = 32
    learning_rate: float = 1e-3
    expert_share: float = 1.0
    from_base: bool = False
    plans: int = 20_000
    value: tuple[int, ...] = (32, 64, 64)
    value_patch: int = 4
    value_batch: int = 128
    value_rate: float = 1e-3


def sizes(size: str, name: str) -> Sizes:
    """Sizes for an environment: "small" (quick), "medium" (full) or "paper" (Tables 2 and 3).

    Diffuser's horizon for HalfCheetah is 4, for the others 32. The diffusers of "paper" are
    Diffuser's own but for HalfCheetah's attention, which `denoisers.PlanNetwork` lacks.
    """
    short = name == "halfcheetah"
    if size == "paper":
        channels = (32, 128, 256) if short else (32, 64, 128, 256)
        own = (64, 64, 128, 128)
        diffuser = (4 if short else 32, channels, 1, 20, 32, 2e-4, 1.0, False)
        return Sizes(*diffuser, 200_000, own, 1, 128, 2e-4)
    patch = 1 if short else 4
    if size == "medium":
        value = (64, 64, 128)
        diffuser = (4 if short else 32, (32, 64, 128), patch, 20, 64, 1e-3, 1.0, False)
        return Sizes(*diffuser, 60_000, value, patch, 256, 1e-3)
    return Sizes(horizon=4 if short else 32, patch=patch, value_patch=patch)


@dataclass(frozen=True)
class LocomotionExperiment:
    """One environment and seed: base, expert, the reward of the pair and its rival."""

    base: LocomotionDiffuser
    expert: LocomotionDiffuser
    reward: LocomotionReward
    discriminator: LocomotionDiscriminator

    @property
    def world(self) -> locomotion.Environment:
        """The environment."""
        return self.base.environment


def experiments(chosen: SimpleNamespace, reward_steps: int) -> list[LocomotionExperiment]:
    """The experiments that a chapter's parameters ask for, none of them made yet.

    Args:
        chosen: checked parameters `environment` (names), `base_kind` (of data), `transitions`,
            `size`, `diffuser_steps`, `seed`, `n_seeds`, `base_path` and `expert_path` (files in
            place of our own data, or "").
        reward_steps: optimisation steps of a reward and of a discriminator.

    Raises:
        InputError: a data file cannot be used, or files are given for several environments.
    """
    if (chosen.base_path or chosen.expert_path) and len(chosen.environment) > 1:
        raise InputError(
            f"environment = {','.join(chosen.environment)} is not allowed with a data file of "
            "one: name one environment."
        )
    return [
        _experiment(name, seed, chosen, reward_steps)
        for name in chosen.environment
        for seed in range(chosen.seed, chosen.seed + chosen.n_seeds)
    ]


def _experiment(name: str, seed: int, chosen: SimpleNamespace, steps: int) -> LocomotionExperiment:
    size = sizes(chosen.size, name)
    data = [
        LocomotionFile.at(name, path) if path else LocomotionData(name, kind, chosen.transitions)
        for path, kind in ((chosen.base_path, chosen.base_kind), (chosen.expert_path, "expert"))
    ]
    shape = {
        "ruler": tuple(data),
        "horizon": size.horizon,
        "channels": size.channels,
        "patch": size.patch,
        "diffusion_steps": size.diffusion_steps,
        "batch": size.batch,
        "learning_rate": size.learning_rate,
        "seed": seed,
    }
    base = LocomotionDiffuser(data[0], steps=chosen.diffuser_steps, **shape)
    expert = LocomotionDiffuser(
        data[1],
        steps=max(int(chosen.diffuser_steps * size.expert_share), 1),
        start=base if size.from_base else None,
        **shape,
    )
    fit = {
        "channels": size.value,
        "patch": size.value_patch,
        "steps": steps,
        "batch": size.value_batch,
        "learning_rate": size.value_rate,
        "seed": seed,
    }
    reward = LocomotionReward(LocomotionPool(base, expert, size.plans, seed), **fit)
    rival = LocomotionDiscriminator(base, expert, plans=size.plans, **fit)
    return LocomotionExperiment(base, expert, reward, rival)
