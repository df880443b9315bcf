"""Sizes of the locomotion experiments and what they cost, apart from all that is slow to import."""

from collections.abc import Sequence
from dataclasses import dataclass

from rrlib import costs
from rrlib.costs import Cost, counted
from rrlib.errors import InputError

# Numbers per step of a plan (action and observation), and steps that a core simulates in a second.
WIDTHS = {"halfcheetah": 23, "hopper": 14, "walker2d": 23}
RATES = {"halfcheetah": 20_000, "hopper": 8_000, "walker2d": 7_000}
HORIZON = 1_000  # steps of a whole episode


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


# What it takes, by rates of one core: a U-Net as in `maze_sizes`; a step of the perceptrons, 30e9
# operations a second and 5 ms of its own; a step of a rollout, 5 ms of its own for each denoising.


def data_cost(name: str, transitions: int) -> Cost:
    """Of a data set of an environment: its steps are kept, stacked and joined."""
    transitions = counted(transitions)
    return Cost(transitions * 4 * (WIDTHS[name] + 2) * 3, transitions / RATES[name])


def diffuser_cost(
    name: str,
    horizon: int,
    channels: Sequence[int],
    hidden: int,
    blocks: int,
    batch: int,
    steps: int,
) -> Cost:
    """Of `steps` optimisation steps of a diffuser (see `locomotion_recipes.LocomotionDiffuser`)."""
    rows = counted(batch) * counted(horizon)
    if channels:
        wide = counted(max(channels))
        each, size = 0.017 + 100 * rows * wide**2 / 60e9, rows * wide * 240
    else:
        hidden, blocks = counted(hidden), counted(blocks)
        weights = 2 * counted(horizon) * WIDTHS[name] * hidden + 4 * blocks * hidden**2
        each = 0.005 + 6 * counted(batch) * weights / 30e9
        size = 16 * weights + 4 * rows * WIDTHS[name] * 6
    return Cost(size, counted(steps) * each)


def pool_cost(name: str, plans: int, horizon: int) -> Cost:
    """Memory of a pool of comparisons, and of what is read off it; asking takes minutes at most."""
    return Cost(counted(plans) * counted(horizon) * 4 * WIDTHS[name] * 9)


def rollouts_cost(name: str, episodes: int, steps: int, denoising: int) -> Cost:
    """Of rollouts of a planner, steered, at the sizes of "small" and "medium"."""
    played = counted(episodes) * counted(steps)
    network = counted(denoising) * (counted(steps) * 0.005 + played * 5e6 / 30e9)
    return Cost(played * 4 * (WIDTHS[name] + 2) * 8, played / RATES[name] + network)


def cost(
    size: str,
    names: Sequence[str],
    *,
    transitions: int,
    diffuser_steps: int,
    reward_steps: int = 0,
    n_seeds: int = 1,
    episodes: int = 0,
    steps: int = HORIZON,
    denoising: int = 10,
    plays: int = 1,
    device: str = "cpu",
) -> Cost:
    """What the parameters of a locomotion chapter would take.

    Args:
        size, names: see `check`.
        transitions: of each data set.
        diffuser_steps, reward_steps: optimisation steps.
        n_seeds: pairs and rewards per environment.
        episodes, steps, denoising: of rollouts.
        plays: sets of rollouts per seed.
        device: physics come from one core whatever it is, networks are some 100 times as fast on a
            GPU.
    """
    found, faster = Cost(), costs.GPU if device != "cpu" else 1.0
    for name in names:
        own = sizes(size, name)
        shape = {"channels": (), "hidden": 0, "blocks": 0} | own.diffuser
        shape.pop("learning_rate", None)
        diffuser = diffuser_cost(name, own.horizon, steps=diffuser_steps, **shape)
        reward = diffuser_cost(
            name, own.horizon, **shape | {"batch": own.value["batch"]}, steps=reward_steps
        )  # its loss has a second derivative, the rival's has none
        fitted = diffuser.times(2) + reward.times(3) + pool_cost(name, own.comparisons, own.horizon)
        played = rollouts_cost(name, episodes, steps, denoising).times(plays)
        networks = (fitted + played).times(n_seeds)
        found += data_cost(name, transitions).times(2) + Cost(
            networks.size, networks.seconds / faster
        )
    return found
