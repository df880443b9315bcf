"""Recipes of locomotion: data and diffusion models. Defaults are sizes for a CPU."""

from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rrlib import training
from rrlib.lab import costs, recipes, store
from rrlib.lab.recipes import Split
from rrlib.locomotion import actors, robots
from rrlib.locomotion import world as locomotion
from rrlib.method.denoisers import Denoiser
from rrlib.method.noise import schedulers
from rrlib.plans import conditioning, networks, normalisers, trajectories
from rrlib.plans.networks import PlanNetwork
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.perceptron import PlanPerceptron
from rrlib.plans.trajectories import Trajectories

RATES = {"halfcheetah": 20_000, "hopper": 8_000, "walker2d": 7_000}  # MuJoCo's steps a second


@dataclass(frozen=True)
class LocomotionData:
    """Trajectories of shipped policies in Gymnasium's MuJoCo environments.

    Attributes:
        environment: halfcheetah, hopper or walker2d.
        kind: random, medium, medium-replay or expert.
        transitions: at least so many, in whole episodes.
        policies: sha256 of the shipped policies, so that other policies make other data.

    Raises:
        InputError: environment or kind is unknown, transitions are too few or more than this
            machine can hold, or no policies are shipped.
    """

    environment: str
    kind: str
    transitions: int = 40_000
    seed: int = 0
    policies: str = field(init=False)

    def __post_init__(self) -> None:
        locomotion.check_set(self.kind, self.transitions)
        world = robots.load(self.environment)
        steps = costs.number(self.transitions)
        size = 12 * steps * (world.width + 2) / 1e9  # each is kept, stacked and joined
        costs.check(size, steps / RATES[world.name] / 3600, transitions=self.transitions)
        digest = "" if self.kind == "random" else actors.digest(world)
        object.__setattr__(self, "policies", digest)

    def make(self, folder: Path, device: str) -> None:
        """Simulate and write `trajectories.hdf5` in D4RL's layout."""
        seed = training.derived_seed(self.seed, f"{self.environment} {self.kind}")
        world = robots.load(self.environment)
        made = locomotion.make_trajectories(world, self.kind, self.transitions, seed)
        trajectories.write_hdf5(folder / "trajectories.hdf5", made)

    def load(self, folder: Path, device: str) -> Trajectories:
        """The trajectories."""
        return _load(self.environment, folder)


@dataclass(frozen=True)
class LocomotionFile:
    """Somebody else's trajectories: a file that `locomotion.world.read` takes.

    D4RL's own come from version 4 of the environments, see `locomotion.simulators`.
    """

    environment: str
    sha256: str
    path: str = field(compare=False)  # where it was found; it may move

    @classmethod
    def at(cls, environment: str, path: str) -> "LocomotionFile":
        """The recipe of a file as it is now.

        Raises:
            InputError: the file cannot be used, or is another environment's.
        """
        read = partial(locomotion.read, robots.load(environment))
        return cls(environment, *recipes.recorded(read, path))

    def make(self, folder: Path, device: str) -> None:
        """Check and copy the trajectories into `trajectories.hdf5`."""
        recipes.keep(self, locomotion.read(robots.load(self.environment), self.path), folder)

    def load(self, folder: Path, device: str) -> Trajectories:
        """The trajectories."""
        return _load(self.environment, folder)


def _load(environment: str, folder: Path) -> Trajectories:
    world = robots.load(environment)
    return trajectories.load(folder / "trajectories.hdf5", world.observation, world.action)


Data = LocomotionData | LocomotionFile


@dataclass(frozen=True)
class LocomotionDiffuser:
    """A diffusion model of plans that starts from the present observation.

    Attributes:
        data: what it learns.
        ruler: data that fixes mean and deviation of plans: the base's and the expert's, for both.
        horizon: steps of a plan.
        hidden, blocks: of the perceptron (`perceptron.PlanPerceptron`).
        channels: per resolution, of Diffuser's temporal U-Net; empty for the perceptron.

    Raises:
        InputError: training would take more memory than there is, or months.
    """

    data: Data
    ruler: tuple[Data, ...]
    horizon: int = 32
    hidden: int = 256
    blocks: int = 2
    channels: tuple[int, ...] = ()
    diffusion_steps: int = 20
    steps: int = 5_000
    batch: int = 128
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_training(self.environment, self.horizon, self)

    @property
    def environment(self) -> robots.Environment:
        """Whose plans they are."""
        return robots.load(self.data.environment)

    @cached_property
    def normaliser(self) -> Normaliser:
        """Of its plans; all that rollouts need of the data, which take a second to read."""
        return normalisers.standardiser(*(store.obtain(data) for data in self.ruler))

    def split(self) -> Split:
        """Its plans, a tenth of the episodes held out."""
        parts = trajectories.split(store.obtain(self.data), 0.1, self.seed)
        return Split(*parts, self.normaliser, self.horizon)

    def make(self, folder: Path, device: str) -> None:
        """Train the network and write `denoiser.safetensors`."""
        denoiser, split = self.blank(device), self.split()
        file, label = folder / "denoiser.safetensors", f"diffuser {self.environment.name}"

        def loss(draws: torch.Generator) -> Tensor:
            x0 = split.draw(self.batch, draws)
            return conditioning.control_loss(denoiser, x0, self.environment.observation, draws)

        recipes.fitted(denoiser.network, loss, file, label, **training.options(self))
        save_file(denoiser.network.state_dict(), file)

    def load(self, folder: Path, device: str) -> Denoiser:
        """The trained diffusion model."""
        return recipes.load_denoiser(self.blank(device), folder, device)

    def blank(self, device: str) -> Denoiser:
        """The model before training."""
        torch.manual_seed(self.seed)
        width = self.environment.width
        if self.channels:
            networks.check_horizon(self.horizon, self.channels)
            network = PlanNetwork(width, self.channels)
        else:
            shape = width, self.horizon, self.diffusion_steps
            network = PlanPerceptron(*shape, self.hidden, self.blocks)
        scheduler = schedulers.cosine_scheduler(self.diffusion_steps, clip=False)
        return Denoiser(network.to(device), scheduler)


def check_training(environment: robots.Environment, horizon: int, recipe) -> None:
    """Raise InputError if training a recipe's network of these plans would take too much."""
    shape = {"batch": recipe.batch, "horizon": horizon}
    if recipe.channels:
        shape["channels"] = recipe.channels
        each = costs.u_net_step(**shape)
    else:
        shape |= {"hidden": recipe.hidden, "blocks": recipe.blocks}
        each = costs.perceptron_step(**shape, width=environment.width)
    costs.check_training(each, recipe.steps, **shape)
