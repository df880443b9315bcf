"""Recipes of locomotion: data. Defaults are the quick profile."""

from dataclasses import dataclass, field
from pathlib import Path

from rrlib import locomotion, training, trajectories
from rrlib.trajectories import Trajectories


@dataclass(frozen=True)
class LocomotionData:
    """Trajectories of shipped policies in Gymnasium's MuJoCo environments.

    Attributes:
        environment: halfcheetah, hopper or walker2d.
        kind: random, medium, medium-replay or expert.
        transitions: at least so many, in whole episodes.
        policies: sha256 of the shipped policies, so that other policies make other data.

    Raises:
        InputError: environment or kind is unknown, transitions are too few, or no policies are
            shipped.
    """

    environment: str
    kind: str
    transitions: int = 40_000
    seed: int = 0
    policies: str = field(init=False)

    def __post_init__(self) -> None:
        locomotion.check_set(self.kind, self.transitions)
        world = locomotion.load(self.environment)
        digest = "" if self.kind == "random" else locomotion.digest(world)
        object.__setattr__(self, "policies", digest)

    def make(self, folder: Path, device: str) -> None:
        """Simulate and write `trajectories.hdf5` in D4RL's layout."""
        seed = training.derived_seed(self.seed, f"{self.environment} {self.kind}")
        world = locomotion.load(self.environment)
        made = locomotion.make_trajectories(world, self.kind, self.transitions, seed)
        trajectories.write_hdf5(folder / "trajectories.hdf5", made)

    def load(self, folder: Path, device: str) -> Trajectories:
        """The trajectories."""
        world = locomotion.load(self.environment)
        file = folder / "trajectories.hdf5"
        return trajectories.read(file, world.observation, world.action)
