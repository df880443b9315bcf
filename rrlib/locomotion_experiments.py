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
        diffuser: of both diffusers.
        plans: compared by the pool, and shown to the discriminator of either kind.
        value: of reward and discriminator.
    """

    horizon: int
    diffuser: dict
    plans: int
    value: dict


def sizes(size: str, name: str) -> Sizes:
    """Sizes for an environment: "small" (quick), "medium" (full) or "paper" (Tables 2 and 3).

    Diffuser's horizon for HalfCheetah is 4, for the others 32. The diffusers of "paper" are
    Diffuser's own but for HalfCheetah's attention, which `denoisers.PlanNetwork` lacks.
    """
    short = name == "halfcheetah"
    horizon = 4 if short else 32
    if size == "paper":
        channels = (32, 128, 256) if short else (32, 64, 128, 256)
        diffuser = {"channels": channels, "batch": 32, "learning_rate": 2e-4}
        value = {"channels": (64, 64, 128, 128), "batch": 128, "learning_rate": 2e-4}
        return Sizes(horizon, diffuser, 200_000, value)
    if size == "medium":
        diffuser = {"hidden": 512, "blocks": 3, "batch": 256}
        return Sizes(horizon, diffuser, 100_000, {"hidden": (512, 512), "batch": 256})
    diffuser = {"hidden": 256, "blocks": 2, "batch": 128, "diffusion_steps": 10}
    return Sizes(horizon, diffuser, 40_000, {"hidden": (256, 256), "batch": 128})


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
    shape = {"ruler": tuple(data), "horizon": size.horizon, "seed": seed} | size.diffuser
    base, expert = (LocomotionDiffuser(d, steps=chosen.diffuser_steps, **shape) for d in data)
    fit = {"steps": steps, "seed": seed} | size.value
    reward = LocomotionReward(LocomotionPool(base, expert, size.plans, seed), **fit)
    rival = LocomotionDiscriminator(base, expert, plans=size.plans, **fit)
    return LocomotionExperiment(base, expert, reward, rival)
