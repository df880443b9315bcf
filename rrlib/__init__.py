"""rrlib: relative rewards of two diffusion models (Nuti, Franzmeyer, Henriques, NeurIPS 2023).

>>> import rrlib
>>> scheduler = rrlib.cosine_scheduler(20, clip=False)
>>> base = rrlib.Denoiser(lambda x, t: 0.5 * x, scheduler)  # predicts x_0
>>> expert = rrlib.Denoiser(lambda x, t: 0.5 * x + 0.2, scheduler)
>>> pairs = rrlib.compare(base, expert, shape=(2,), n=2_000)
>>> reward = rrlib.RelativeReward.fit(pairs, steps=50)
>>> rrlib.sample(base, (3, 2), reward=reward, seed=1).shape
torch.Size([3, 2])

What the laboratory of this book adds, `rrlib.lab`, is not part of this interface.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Loaded when they are first asked for: torch, diffusers and simulators take seconds to import.
_PLACES = {
    "Denoiser": "method.denoisers",
    "cosine_scheduler": "method.noise.schedulers",
    "flow_schedule": "method.noise.schedules",
    "edm_schedule": "method.noise.schedules",
    "Comparisons": "method.comparisons",
    "compare": "method.comparisons",
    "RelativeReward": "method.rewards",
    "compose": "method.rewards",
    "load_reward": "method.reward_files",
    "load_rewards": "method.reward_files",
    "save_rewards": "method.reward_files",
    "sample": "method.guidance",
    "best_of": "estimators.particles",
    "ExactDifference": "method.exact",
    "sample_weighted": "estimators.particles",
    "Particles": "estimators.particles",
    "elbo_difference": "estimators.noised",
    "path_difference": "estimators.noised",
    "ode_difference": "estimators.integrals",
    "line_integral": "estimators.integrals",
    "level": "estimators.noised",
    "Estimate": "estimators.levels",
    "rotational_share": "estimators.diagnostics",
    "difference_jacobians": "estimators.diagnostics",
    "WindowReward": "plans.rewards",
    "ContextReward": "plans.rewards",
    "PlanValue": "plans.rewards",
    "StartReward": "plans.rewards",
    "ChannelsFirst": "plans.networks",
    "ChunkNetwork": "plans.chunks",
    "action_chunks": "plans.chunks",
    "chunk_loss": "plans.chunks",
    "from_lerobot": "plans.chunks",
    "Normaliser": "plans.normalisers",
    "PlanLayout": "plans.layouts",
    "TrajectoryScores": "plans.scoring",
    "RelativeRewardWrapper": "plans.environments",
    "reward_function": "images.reward_functions",
    "Trajectories": "plans.trajectories",
    "given": "plans.conditioning",
    "first_given": "plans.conditioning",
    "ends_given": "plans.conditioning",
    "hold": "plans.conditioning",
    "InputError": "errors",
    "DataWarning": "errors",
}
__all__ = ["__version__", *_PLACES]

if TYPE_CHECKING:
    from rrlib.errors import DataWarning as DataWarning
    from rrlib.errors import InputError as InputError
    from rrlib.estimators.diagnostics import difference_jacobians as difference_jacobians
    from rrlib.estimators.diagnostics import rotational_share as rotational_share
    from rrlib.estimators.integrals import line_integral as line_integral
    from rrlib.estimators.integrals import ode_difference as ode_difference
    from rrlib.estimators.levels import Estimate as Estimate
    from rrlib.estimators.noised import elbo_difference as elbo_difference
    from rrlib.estimators.noised import level as level
    from rrlib.estimators.noised import path_difference as path_difference
    from rrlib.estimators.particles import Particles as Particles
    from rrlib.estimators.particles import best_of as best_of
    from rrlib.estimators.particles import sample_weighted as sample_weighted
    from rrlib.images.reward_functions import reward_function as reward_function
    from rrlib.method.comparisons import Comparisons as Comparisons
    from rrlib.method.comparisons import compare as compare
    from rrlib.method.denoisers import Denoiser as Denoiser
    from rrlib.method.exact import ExactDifference as ExactDifference
    from rrlib.method.guidance import sample as sample
    from rrlib.method.noise.schedulers import cosine_scheduler as cosine_scheduler
    from rrlib.method.noise.schedules import edm_schedule as edm_schedule
    from rrlib.method.noise.schedules import flow_schedule as flow_schedule
    from rrlib.method.reward_files import load_reward as load_reward
    from rrlib.method.reward_files import load_rewards as load_rewards
    from rrlib.method.reward_files import save_rewards as save_rewards
    from rrlib.method.rewards import RelativeReward as RelativeReward
    from rrlib.method.rewards import compose as compose
    from rrlib.plans.chunks import ChunkNetwork as ChunkNetwork
    from rrlib.plans.chunks import action_chunks as action_chunks
    from rrlib.plans.chunks import chunk_loss as chunk_loss
    from rrlib.plans.chunks import from_lerobot as from_lerobot
    from rrlib.plans.conditioning import ends_given as ends_given
    from rrlib.plans.conditioning import first_given as first_given
    from rrlib.plans.conditioning import given as given
    from rrlib.plans.conditioning import hold as hold
    from rrlib.plans.environments import RelativeRewardWrapper as RelativeRewardWrapper
    from rrlib.plans.layouts import PlanLayout as PlanLayout
    from rrlib.plans.networks import ChannelsFirst as ChannelsFirst
    from rrlib.plans.normalisers import Normaliser as Normaliser
    from rrlib.plans.rewards import ContextReward as ContextReward
    from rrlib.plans.rewards import PlanValue as PlanValue
    from rrlib.plans.rewards import StartReward as StartReward
    from rrlib.plans.rewards import WindowReward as WindowReward
    from rrlib.plans.scoring import TrajectoryScores as TrajectoryScores
    from rrlib.plans.trajectories import Trajectories as Trajectories


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'rrlib' has no attribute {name!r}")
    found = getattr(import_module(f"rrlib.{_PLACES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, *globals()]
