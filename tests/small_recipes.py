"""Every recipe that trains something, small, and a way to watch each of its steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from rrlib import training
from rrlib.images.miniature import scenes
from rrlib.images.miniature.pipeline import Size
from rrlib.images.pairs import Fit
from rrlib.lab.agents.cloning import ClonedPolicy
from rrlib.lab.agents.recipes import StepDiffuser, StepDiscriminator, StepPool, StepReward
from rrlib.lab.images.digits import DigitsDiffuser, DigitsReward
from rrlib.lab.images.pools import ImagePool, PoolReward, PoolRival
from rrlib.lab.images.recipes import LAYERS, MiniAutoencoder, MiniDiffusion
from rrlib.lab.locomotion.recipes import LocomotionData, LocomotionDiffuser
from rrlib.lab.locomotion.rewards import LocomotionDiscriminator, LocomotionPool, LocomotionReward
from rrlib.lab.mazes.planning import MazePlanningPool, MazePlanningReward
from rrlib.lab.mazes.recipes import ComponentDiffuser, MazeData, MazeDiffuser, MazePool, MazeRewards
from rrlib.lab.recipes import GaussianReward
from rrlib.lab.toys import ToyDiffuser, ToyReward
from rrlib.method import extraction
from rrlib.theory import examples
from rrlib.training import Progress

FIT = {"steps": 3, "batch": 4}  # the first step copies tables, the last is looked at: one is steady
H = 8


def recipes() -> dict[str, object]:
    """Name -> recipe; those that others are made of come first."""
    maze = MazeData("umaze", None, 60, 60, 2), MazeData("umaze", (3.0, 1.0), 25, 40, 6)
    shape = {"ruler": maze[0], "horizon": H, "channels": (8, 16), "diffusion_steps": 6} | FIT
    mazes = [MazeDiffuser(data, **shape) for data in maze]
    mazes[1] = replace(mazes[1], start=mazes[0])
    long = ComponentDiffuser(
        maze[1],
        maze[0],
        horizon=H,
        diffusion_steps=6,
        components=3,
        hidden=8,
        blocks=1,
        octaves=2,
        places=3,
        **FIT,
    )
    pool = MazePool(*mazes, plans=12, ends=True, seed=3)
    planned = MazePlanningPool(*mazes, plans=12, drawn=5, seed=3)
    robots = [LocomotionData("hopper", "random", 300, seed=seed) for seed in (0, 1)]
    shape = {"ruler": tuple(robots), "horizon": 4, "hidden": 8, "blocks": 1, "diffusion_steps": 6}
    planners = [LocomotionDiffuser(data, **shape, **FIT) for data in robots]
    fit = {"hidden": 8, "blocks": 1} | FIT
    digits = DigitsDiffuser(channels=(8, 8), **FIT)
    even = replace(digits, even=True, start=digits)
    autoencoder = MiniAutoencoder(Size(vae=(8, 8, 8), unet=(8, 16), text=16, layers=1), 64, **FIT)
    base = MiniDiffusion(autoencoder, scenes=64, **FIT)
    tuned = replace(base, style="hollow", start=base, layers=LAYERS)
    images = ImagePool(base, tuple(scenes.prompts(12, 0)), steps=3, batch=5)
    small = Fit(0.5, (8, 8), **FIT)
    mixtures = examples.base(), examples.expert()
    gaussians = GaussianReward(*mixtures, hidden=(8,), samples=50, pool=200, **FIT)
    toys = [ToyDiffuser(side, samples=30, channels=(8, 16), **FIT) for side in ("base", "expert")]
    of_steps = {"ruler": tuple(robots), "hidden": 8, "diffusion_steps": 6} | FIT
    agents = [StepDiffuser(data, **of_steps) for data in robots]
    return {
        "toy": toys[0],
        "toy reward": ToyReward(*toys, pool=40, **FIT),
        "steps of robots": agents[0],
        "reward of a step": StepReward(StepPool(*agents, plans=40), hidden=(8,), **FIT),
        "rival of a step": StepDiscriminator(*agents, hidden=(8,), plans=40, **FIT),
        "clone": ClonedPolicy(robots[1], hidden=8, **FIT),
        "maze base": mazes[0],
        "maze expert": mazes[1],
        "maze expert of components": long,
        "maze rewards": MazeRewards(pool, window=4, hidden=(8,), seeds=(0, 1), **FIT),
        "maze reward for planning": MazePlanningReward(planned, hidden=(8,), **FIT),
        "robot base": planners[0],
        "robot reward": LocomotionReward(LocomotionPool(*planners, plans=12), **fit),
        "robot rival": LocomotionDiscriminator(*planners, plans=6, **fit),
        "digits": digits,
        "digits reward": DigitsReward(digits, even, pool=40, **FIT),
        "image autoencoder": autoencoder,
        "image base": base,
        "image fine-tune": tuned,
        "image reward": PoolReward(images, small),
        "image rival": PoolRival(images, small),
        "gaussians": gaussians,
        "gaussians' rival": replace(gaussians, method="discriminator"),
    }


@contextmanager
def trained(step: Callable[[Iterator[Progress]], Progress]) -> Iterator[list[Progress]]:
    """A block in which each step of any training is made by `step`; it holds what they yielded."""
    real, seen = training.train, []

    def train(*args, **kwargs) -> Iterator[Progress]:
        run = real(*args, **kwargs)
        for _ in range(kwargs["steps"]):
            seen.append(step(run))
            yield seen[-1]
        assert next(run, None) is None  # it ends with the average of the weights

    with pytest.MonkeyPatch.context() as patch:
        for module in (training, extraction):
            patch.setattr(module, "train", train)
        yield seen
