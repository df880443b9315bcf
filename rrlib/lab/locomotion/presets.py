"""Sizes of the locomotion experiments, apart from everything slow to import."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from rrlib.errors import InputError
from rrlib.lab.costs import CUDA, Cost

# Seconds that one core takes for a step of training, and to denoise one plan once.
SECONDS = {"small": (0.003, 5e-5), "medium": (0.012, 2e-4), "paper": (0.1, 7e-3)}


@dataclass(frozen=True)
class Sizes:
    """Networks and budgets; the fields of the recipes of `locomotion_recipes` and `..._rewards`.

    Attributes:
        horizon: steps of a plan.
        diffusion_steps: T.
        diffuser: of both diffusers.
        plans: shown to the discriminator, of either kind.
        comparisons: of the pool that the reward is fitted to.
        value: of reward and discriminator.
    """

    horizon: int
    diffusion_steps: int
    diffuser: dict
    plans: int
    comparisons: int
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
        return Sizes(horizon, 20, diffuser, 200_000, 400_000, value)
    if size == "medium":
        network = {"hidden": 256, "blocks": 2, "batch": 256}
        comparisons = 800_000 if short else 300_000
        value = network | {"learning_rate": 2e-3}
        return Sizes(horizon, 20, network, 100_000, comparisons, value)
    network = {"hidden": 128, "blocks": 2, "batch": 128, "learning_rate": 2e-3}
    return Sizes(horizon, 10, network, 60_000, 60_000, network)


def check(
    size: str, *environments: str, executed: int = 1, denoising: int = 2, untils: Sequence[int] = ()
) -> None:
    """Raise InputError unless plans of these environments and this size allow what is asked.

    Args:
        size: see `sizes`.
        environments: names.
        executed: actions carried out of a plan, at most its horizon.
        denoising: steps of its sampling, 2 to T.
        untils: steps of the schedule down to which plans are steered.
    """
    for name in environments:
        found = sizes(size, name)
        last = found.diffusion_steps - 1
        if executed > found.horizon:
            raise InputError(
                f"executed={executed} is not allowed: a plan of environment = '{name}' has "
                f"{found.horizon} actions."
            )
        if not 2 <= denoising <= last + 1:
            raise InputError(
                f"denoising={denoising} is not allowed: a number from 2 to {last + 1}, the steps "
                f"of size = '{size}', is needed."
            )
        for until in untils:
            if until > last:
                raise InputError(
                    f"untils={until} is not allowed: steps from 0 to {last}, the last of "
                    f"size = '{size}', are needed."
                )


def cost(asked: SimpleNamespace) -> Cost:
    """What a chapter about robots costs by its parameters; those that it lacks cost nothing.

    Memory is that of a data set and of a batch of plans; time is that of training, of rollouts, and
    of the search, in which every scale and last step is tried with every method.
    """
    lacking = dict.fromkeys(("reward_steps", "search", "rounds"), 0)
    of = SimpleNamespace(**lacking | {"weights": (), "untils": (), "kinds": ()} | vars(asked))
    step, denoise = SECONDS[of.size]
    pairs = len(of.environment) * of.n_seeds
    fits = 2 * of.diffuser_steps + (4 + of.rounds) * of.reward_steps
    tried = of.search * len(of.weights) * len(of.untils) * 9
    played = (12 + len(of.kinds)) * of.episodes + tried
    plans = played * of.steps / of.executed * of.denoising
    seconds = pairs * (fits * step + plans * denoise) / (1 if of.device == "cpu" else CUDA)
    seconds += pairs * (2 * of.transitions + played * of.steps) / 5e3  # physics
    longest = max(sizes(of.size, name).horizon for name in of.environment)
    numbers = 24 * (4 * of.transitions + of.episodes * (4 * of.steps + 2000 * longest))
    return Cost(4 * numbers / 1e9, seconds / 3600)
