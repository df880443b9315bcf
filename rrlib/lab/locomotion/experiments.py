"""What a locomotion chapter's parameters ask for: an experiment per environment and seed."""

from dataclasses import dataclass
from types import SimpleNamespace

from rrlib.lab.locomotion.presets import sizes
from rrlib.lab.locomotion.recipes import LocomotionData, LocomotionDiffuser, LocomotionFile
from rrlib.lab.locomotion.rewards import LocomotionDiscriminator, LocomotionPool, LocomotionReward
from rrlib.locomotion import robots


@dataclass(frozen=True)
class LocomotionExperiment:
    """One environment and seed: base, expert, the reward of the pair and its rival."""

    base: LocomotionDiffuser
    expert: LocomotionDiffuser
    reward: LocomotionReward
    discriminator: LocomotionDiscriminator

    @property
    def world(self) -> robots.Environment:
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
        InputError: a data file cannot be used.
    """
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
    shape = {"ruler": tuple(data), "horizon": size.horizon, "seed": seed}
    shape |= size.diffuser | {"diffusion_steps": size.diffusion_steps}
    base, expert = (LocomotionDiffuser(d, steps=chosen.diffuser_steps, **shape) for d in data)
    fit = {"steps": steps, "seed": seed} | size.value
    read = steps * size.value["batch"]  # a fit uses no more plans than it draws
    pool = LocomotionPool(base, expert, min(size.comparisons, read), seed=seed)
    reward = LocomotionReward(pool, **fit)
    rival = LocomotionDiscriminator(base, expert, plans=min(size.plans, read), **fit)
    return LocomotionExperiment(base, expert, reward, rival)
