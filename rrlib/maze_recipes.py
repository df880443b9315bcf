"""Recipes of Maze2D: data, diffusion models, rewards. Defaults are the quick profile."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import save_file

from rrlib import denoisers, extraction, maze, recipes, store, training, trajectories
from rrlib.denoisers import Denoiser, PlanNetwork
from rrlib.errors import InputError
from rrlib.maze import ACTION, OBSERVATION
from rrlib.recipes import Split
from rrlib.rewards import Place, RelativeReward, Target, WindowReward
from rrlib.trajectories import Normaliser, Trajectories

# Steps of an episode: 99 in 100 balls have arrived after half of it (2/3 in the large maze).
LENGTHS = {"open": 300, "umaze": 300, "medium": 500, "large": 600}


@dataclass(frozen=True)
class MazeData:
    """Trajectories of the way-point controller in MuJoCo's PointMaze.

    Attributes:
        maze: open, umaze, medium or large.
        goal: the expert's only target in cell units; None draws one per episode (the base).
        episodes: started at once.
        length: steps of an episode; the ball rests at its target once it is there.
    """

    maze: str
    goal: tuple[float, float] | None = None
    episodes: int = 1_000
    length: int = 300
    seed: int = 0

    def make(self, folder: Path, device: str) -> None:
        """Simulate and write `trajectories.hdf5` in D4RL's layout."""
        seed = training.derived_seed(self.seed, f"{self.maze} {self.goal}")
        world = maze.load(self.maze)
        made = maze.make_trajectories(world, self.episodes, self.length, self.goal, seed)
        trajectories.write_hdf5(folder / "trajectories.hdf5", made)

    def load(self, folder: Path, device: str) -> Trajectories:
        """The trajectories."""
        return trajectories.read(folder / "trajectories.hdf5", OBSERVATION, ACTION)


@dataclass(frozen=True)
class MazeFile:
    """Somebody else's trajectories of a maze: a D4RL-layout HDF5 file or a Minari dataset."""

    maze: str
    sha256: str
    path: str = field(compare=False)  # where it was found; it may move

    @classmethod
    def at(cls, maze_name: str, path: str) -> "MazeFile":
        """The recipe of a file as it is now.

        Raises:
            InputError: the file cannot be used, or its positions do not fit the maze.
        """
        path = str(Path(path).expanduser())
        return cls(maze_name, _digest(maze.read(maze.load(maze_name), path)), path)

    def make(self, folder: Path, device: str) -> None:
        """Check and copy the trajectories into `trajectories.hdf5`."""
        found = maze.read(maze.load(self.maze), self.path)
        if _digest(found) != self.sha256:
            raise InputError(f"Dataset '{self.path}' has changed since this run began.")
        trajectories.write_hdf5(folder / "trajectories.hdf5", found)

    def load(self, folder: Path, device: str) -> Trajectories:
        """The trajectories."""
        return trajectories.read(folder / "trajectories.hdf5", OBSERVATION, ACTION)


def _digest(found: Trajectories) -> str:
    digest = hashlib.sha256()
    for array in found.arrays().values():
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


@dataclass(frozen=True)
class MazeDiffuser:
    """A diffusion model of plans in a maze.

    Attributes:
        data: what it learns.
        ruler: data whose range is [-1, 1]; the base's, for base and expert alike.
        horizon: steps of a plan.
        channels: of the temporal U-Net, per resolution.
        start: a diffuser whose weights it begins from; None begins at random.
    """

    data: MazeData | MazeFile
    ruler: MazeData | MazeFile
    horizon: int = 32
    channels: tuple[int, ...] = (16, 32, 64)
    diffusion_steps: int = 50
    steps: int = 5_000
    batch: int = 32
    learning_rate: float = 2e-3
    start: "MazeDiffuser | None" = None
    seed: int = 0

    def split(self) -> Split:
        """Its plans: 10 % of the trajectories are held out (the paper's share)."""
        normaliser = Normaliser.fit(store.obtain(self.ruler))
        train, held_out = trajectories.split(store.obtain(self.data), 0.1, self.seed)
        return Split(train, held_out, normaliser, self.horizon)

    def make(self, folder: Path, device: str) -> None:
        """Train the network and write `denoiser.safetensors`."""
        denoiser = self.blank(device)
        split = self.split()
        if self.start:
            denoiser.network.load_state_dict(store.obtain(self.start, device).network.state_dict())
        progress = training.train(
            denoiser.network,
            lambda draws: denoisers.denoising_loss(denoiser, split.draw(self.batch, draws), draws),
            steps=self.steps,
            learning_rate=self.learning_rate,
            seed=self.seed,
            checkpoint=store.checkpoints(folder) / "denoiser.safetensors",
        )
        training.finish(progress, f"diffuser {self.data.maze}")
        save_file(denoiser.network.state_dict(), folder / "denoiser.safetensors")

    def load(self, folder: Path, device: str) -> Denoiser:
        """The trained diffusion model."""
        denoiser = self.blank(device)
        recipes.load_network(denoiser.network, folder / "denoiser.safetensors", device)
        return denoiser

    def blank(self, device: str) -> Denoiser:
        """The model before training."""
        denoisers.check_horizon(self.horizon, self.channels)
        torch.manual_seed(self.seed)
        network = PlanNetwork(OBSERVATION + ACTION, self.channels).to(device)
        return Denoiser(network, denoisers.cosine_scheduler(self.diffusion_steps))


@dataclass(frozen=True)
class MazeReward:
    """rho extracted from a base and an expert diffuser by Algorithm 1, an MLP as in Table 2."""

    base: MazeDiffuser
    expert: MazeDiffuser
    window: int = 16
    hidden: tuple[int, ...] = (128, 64, 32)
    pool: int = 20_000  # plans compared
    target: Target = "mean"
    place: Place = "mu_base"
    steps: int = 3_000
    batch: int = 512  # windows
    learning_rate: float = 1e-3
    seed: int = 0

    def make(self, folder: Path, device: str) -> None:
        """Fill the pool once, fit rho to its windows, write `reward.safetensors`."""
        draws = training.stream(self.seed, "data", device)
        data = [half.split().draw(self.pool, draws) for half in (self.base, self.expert)]
        base, expert = (store.obtain(half, device) for half in (self.base, self.expert))
        pool = extraction.algorithm1(
            base,
            expert,
            *data,
            size=self.pool,
            target=self.target,
            place=self.place,
            seed=self.seed,
        )
        network, label = self._network().to(device), f"reward {self.base.data.maze}"
        recipes.fit_reward(self, network, pool.cut(self.window), folder, label)

    def load(self, folder: Path, device: str) -> RelativeReward:
        """The fitted reward."""
        network = recipes.load_network(self._network(), folder / "reward.safetensors", device)
        return RelativeReward(network, self.target, self.place)

    def _network(self) -> WindowReward:
        torch.manual_seed(self.seed)
        unit = extraction.units(self.base.blank("cpu"), self.target)
        return WindowReward(OBSERVATION + ACTION, self.window, unit, self.hidden)


@dataclass(frozen=True)
class MazeExperiment:
    """One maze and goal: its base, shared by the maze's goals, and its expert."""

    goal: tuple[float, float]
    base: MazeDiffuser
    expert: MazeDiffuser

    @property
    def world(self) -> maze.Maze:
        """The maze itself."""
        return maze.load(self.base.data.maze)

    @property
    def label(self) -> str:
        """Such as "umaze (1, 2)"."""
        return f"{self.base.data.maze} ({self.goal[0]:g}, {self.goal[1]:g})"


def experiments(chosen: SimpleNamespace) -> list[MazeExperiment]:
    """The experiments that a maze chapter's parameters ask for, none of them made yet.

    Args:
        chosen: checked parameters `maze` (names), `n_goals`, `goal` (cell units or None), `seed`,
            `episodes`, `horizon`, `diffuser_steps`, `dataset_path`.

    Raises:
        InputError: the goal lies in a wall of one of the mazes, or the data file cannot be used.
    """
    sizes = {"horizon": chosen.horizon, "seed": chosen.seed}
    found = []
    for name in chosen.maze:
        world = maze.load(name)
        if chosen.dataset_path:
            data = MazeFile.at(name, chosen.dataset_path)
        else:
            data = MazeData(name, episodes=chosen.episodes, length=LENGTHS[name], seed=chosen.seed)
        base = MazeDiffuser(data, data, steps=chosen.diffuser_steps, **sizes)
        for goal in maze.goals(world, chosen.n_goals, chosen.goal):
            shown = MazeData(name, goal, chosen.episodes, LENGTHS[name], chosen.seed)
            steps = max(chosen.diffuser_steps * 3 // 4, 1)  # it begins at the base
            expert = MazeDiffuser(shown, data, steps=steps, start=base, **sizes)
            found.append(MazeExperiment(goal, base, expert))
    return found
