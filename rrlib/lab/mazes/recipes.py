"""Recipes of Maze2D: data, diffusion models, rewards. Defaults are sizes for a CPU."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rrlib import training
from rrlib.lab import costs, recipes, store
from rrlib.lab.recipes import Split
from rrlib.mazes import recordings
from rrlib.mazes import world as maze
from rrlib.mazes.world import ACTION, OBSERVATION
from rrlib.method import extraction
from rrlib.method.comparisons import Comparisons
from rrlib.method.denoisers import Denoiser
from rrlib.method.noise import schedulers
from rrlib.method.noise.schedules import Schedule
from rrlib.method.pools import Place, Target
from rrlib.method.rewards import RelativeReward
from rrlib.plans import conditioning, networks, trajectories
from rrlib.plans.components import ComponentPerceptron
from rrlib.plans.networks import PlanNetwork
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.rewards import Activation, WindowReward
from rrlib.plans.trajectories import Trajectories

# Steps of an episode: 99 in 100 balls have arrived after half of it (2/3 in the large maze).
LENGTHS = {"open": 300, "umaze": 300, "medium": 500, "large": 600}
FRESH, FRESH_SEED = 300, 1_000_000  # trajectories that nothing is trained on, and their seeds
LOOKED_AT = 20_000  # training plans that principal components are taken of
ErrorUnit = Callable[[Tensor], Tensor] | None  # see `conditioning.plan_loss`


@dataclass(frozen=True)
class MazeData:
    """Trajectories of the way-point controller in MuJoCo's PointMaze.

    Attributes:
        maze: open, umaze, medium or large.
        goal: the expert's only target in cell units; None draws one per episode (the base).
        episodes: started at once.
        length: steps of an episode; the ball rests at its target once it is there.

    Raises:
        InputError: they would take more memory than there is, or months.
    """

    maze: str
    goal: tuple[float, float] | None = None
    episodes: int = 1_000
    length: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        steps = costs.number(self.episodes) * costs.number(self.length)
        fields = {"episodes": self.episodes, "length": self.length}
        costs.check(
            100 * steps / 1e9, steps / 150_000 / 3600, **fields
        )  # bytes while it is written

    def make(self, folder: Path, device: str) -> None:
        """Simulate and write `trajectories.hdf5` in D4RL's layout."""
        seed = training.derived_seed(self.seed, f"{self.maze} {self.goal}")
        world = maze.load(self.maze)
        made = maze.make_trajectories(world, self.episodes, self.length, self.goal, seed)
        trajectories.write_hdf5(folder / "trajectories.hdf5", made)

    def load(self, folder: Path, device: str) -> Trajectories:
        """The trajectories."""
        return trajectories.load(folder / "trajectories.hdf5", OBSERVATION, ACTION)


@dataclass(frozen=True)
class MazeFile:
    """Somebody else's trajectories of a maze: a file that `mazes.recordings.read` takes."""

    maze: str
    sha256: str
    path: str = field(compare=False)  # where it was found; it may move

    @classmethod
    def at(cls, maze_name: str, path: str) -> "MazeFile":
        """The recipe of a file as it is now.

        Raises:
            InputError: the file cannot be used, or its positions do not fit the maze.
        """
        read = partial(recordings.read, maze.load(maze_name))
        return cls(maze_name, *recipes.recorded(read, path))

    def make(self, folder: Path, device: str) -> None:
        """Check and copy the trajectories into `trajectories.hdf5`."""
        recipes.keep(self, recordings.read(maze.load(self.maze), self.path), folder)

    def load(self, folder: Path, device: str) -> Trajectories:
        """The trajectories."""
        return trajectories.load(folder / "trajectories.hdf5", OBSERVATION, ACTION)


@dataclass(frozen=True)
class MazeDiffuser:
    """A diffusion model of plans in a maze.

    Attributes:
        data: what it learns.
        ruler: data whose range is [-1, 1]; the base's, for base and expert alike.
        horizon: steps of a plan.
        channels: of the temporal U-Net, per resolution.
        patch: steps that enter the U-Net as one.
        given: share of the plans that are trained with ends given, see `conditioning.plan_loss`.
        start: a diffuser whose weights it begins from; None begins at random.

    Raises:
        InputError: training would take more memory than there is, or months.
    """

    data: MazeData | MazeFile
    ruler: MazeData | MazeFile
    horizon: int = 32
    channels: tuple[int, ...] = (16, 32, 64)
    patch: int = 1
    diffusion_steps: int = 50
    steps: int = 5_000
    batch: int = 32
    learning_rate: float = 2e-3
    given: float = 0.5
    start: "MazeDiffuser | None" = None
    seed: int = 0
    FORM: ClassVar = ("channels", "patch")

    def __post_init__(self) -> None:
        names = "batch", "horizon", *self.FORM
        shape = {name: getattr(self, name) for name in names}
        costs.check_training(self._step_cost(), self.steps, **shape)

    def split(self) -> Split:
        """Its plans; held out are fresh trajectories, or the paper's tenth of a file's."""
        normaliser, train = Normaliser.fit(store.obtain(self.ruler)), store.obtain(self.data)
        if isinstance(self.data, MazeData):
            fresh = replace(self.data, episodes=FRESH, seed=self.data.seed + FRESH_SEED)
            return Split(train, store.obtain(fresh), normaliser, self.horizon)
        return Split(*trajectories.split(train, 0.1, self.seed), normaliser, self.horizon)

    def make(self, folder: Path, device: str) -> None:
        """Train the network and write `denoiser.safetensors`."""
        denoiser, split = self.blank(device), self.split()
        network, file = denoiser.network, folder / "denoiser.safetensors"
        if self.start:
            network.load_state_dict(store.obtain(self.start, device).network.state_dict())
        unit = self._begin(network, split, device)

        def loss(draws: torch.Generator) -> Tensor:
            x0 = split.draw(self.batch, draws)
            return conditioning.plan_loss(denoiser, x0, OBSERVATION, draws, self.given, unit)

        label = f"diffuser {self.data.maze}"
        recipes.fitted(network, loss, file, label, **training.options(self))
        save_file(network.state_dict(), file)

    def load(self, folder: Path, device: str) -> Denoiser:
        """The trained diffusion model."""
        return recipes.load_denoiser(self.blank(device), folder, device)

    def blank(self, device: str) -> Denoiser:
        """The model before training."""
        scheduler = schedulers.cosine_scheduler(self.diffusion_steps)
        torch.manual_seed(self.seed)
        return Denoiser(self._network(schedulers.schedule_of(scheduler)).to(device), scheduler)

    def _network(self, schedule: Schedule) -> nn.Module:
        networks.check_horizon(self.horizon, self.channels, self.patch)
        return PlanNetwork(OBSERVATION + ACTION, self.channels, self.patch)

    def _begin(self, network: nn.Module, split: Split, device: str) -> ErrorUnit:
        """What a network is told of its data before the first step; the unit of its loss."""
        return None

    def _step_cost(self) -> costs.Cost:
        return costs.u_net_step(self.batch, self.horizon, self.channels, self.patch)


@dataclass(frozen=True)
class ComponentDiffuser(MazeDiffuser):
    """A diffusion model of long plans in a maze: a perceptron on their principal components.

    Attributes:
        channels, patch: not used; there is no U-Net.
        components, hidden, blocks, octaves, places: of the `ComponentPerceptron`.
    """

    components: int = 64
    hidden: int = 256
    blocks: int = 3
    octaves: int = 4
    places: int = 32
    FORM: ClassVar = ("components", "hidden", "blocks", "octaves", "places")

    def _network(self, schedule: Schedule) -> ComponentPerceptron:
        return ComponentPerceptron(
            OBSERVATION + ACTION,
            self.horizon,
            torch.tensor(schedule.abar),
            positions=(ACTION, ACTION + 1),
            observation=OBSERVATION,
            **{name: getattr(self, name) for name in self.FORM},
        )

    def _begin(self, network: ComponentPerceptron, split: Split, device: str) -> ErrorUnit:
        if not self.start:
            draws = training.stream(self.seed, "components", device)
            network.learn_components(split.draw(LOOKED_AT, draws))
        return network.unexplained

    def _step_cost(self) -> costs.Cost:
        row = self.components + 2 * self.octaves * self.places
        return costs.perceptron_step(self.batch, 1, row, self.hidden, 2 * self.blocks)


@dataclass(frozen=True)
class MazePool:
    """Algorithm 1's comparisons of a base and an expert, for all rewards of the pair.

    They are not kept, see `store`.

    Attributes:
        plans: compared.
        ends: whether both models are given the first and last observation of each plan.

    Raises:
        InputError: they would take more memory than there is, or months.
    """

    base: MazeDiffuser
    expert: MazeDiffuser
    plans: int = 8_000
    ends: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        costs.check_pool(self.plans, self.base.horizon, OBSERVATION + ACTION)

    def load(self, folder: Path, device: str) -> Comparisons:
        """Ask both models."""
        data = recipes.drawn(self, training.stream(self.seed, "data", device))
        given = conditioning.ends_given(OBSERVATION) if self.ends else None
        return recipes.compared(self, data, given, device)


@dataclass(frozen=True)
class MazeRewards:
    """rho extracted from a base and an expert diffuser by Algorithm 1, MLPs as in Table 2.

    One per seed, trained together on one pool.

    Raises:
        InputError: the fits would take months.
    """

    pool: MazePool
    window: int = 16
    hidden: tuple[int, ...] = (128, 64, 32)
    strided: bool = False
    activation: Activation = "silu"
    average: int = 1
    target: Target = "mean"
    place: Place = "mu_base"
    steps: int = 3_000
    batch: int = 512  # windows, each reward
    learning_rate: float = 1e-3
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        row = self.window // max(self.average, 1)
        each = costs.perceptron_step(
            self.batch * len(self.seeds), row, OBSERVATION + ACTION, max(self.hidden, default=1), 0
        )
        costs.check_training(each, self.steps, batch=self.batch, seeds=len(self.seeds))

    def make(self, folder: Path, device: str) -> None:
        """Fit the rewards to the pool's windows, write `reward-<seed>.safetensors`."""
        pool = store.obtain(self.pool, device).pool(self.target, self.place)
        networks = (self._network(seed).to(device) for seed in self.seeds)
        stack = training.Stack([network.averaged() for network in networks])
        options = {"steps": self.steps, "learning_rate": self.learning_rate, "seed": self.seeds[0]}
        recipes.fitted(
            stack,
            pool.cut(self.window, self.strided).average(self.average),
            folder / "rewards.safetensors",
            f"{len(self.seeds)} rewards {self.pool.base.data.maze}",
            **options,
            batch=self.batch * len(self.seeds),
        )
        for seed, network in zip(self.seeds, stack.members(), strict=True):
            save_file(network.state_dict(), folder / f"reward-{seed}.safetensors")

    def load(self, folder: Path, device: str) -> list[RelativeReward]:
        """The fitted rewards, one per seed."""
        files = ((seed, folder / f"reward-{seed}.safetensors") for seed in self.seeds)
        networks = [recipes.load_network(self._network(s), file, device) for s, file in files]
        return [RelativeReward(network, self.target, self.place) for network in networks]

    def _network(self, seed: int) -> WindowReward:
        unit = extraction.displacement_units(self.pool.base.blank("cpu"), self.target)
        torch.manual_seed(seed)  # after `blank`, which sets a seed of its own
        shape = OBSERVATION + ACTION, self.window, unit, self.hidden
        return WindowReward(*shape, self.strided, self.activation, self.average)
