"""What the chapter on agents asks for: a pair of short-window models in each world, and wages."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rrlib.lab import store
from rrlib.lab.agents import worths
from rrlib.lab.agents.recipes import StepDiffuser, StepDiscriminator, StepPool, StepReward
from rrlib.lab.agents.worlds import Balls, Robots, World
from rrlib.lab.agents.worths import Payment
from rrlib.lab.locomotion.recipes import LocomotionData
from rrlib.lab.mazes.recipes import LENGTHS, MazeData

MAZE, GOAL = "umaze", (3.0, 1.0)
WORLDS = ("pointmaze", "hopper")
# Steps of noise, and the fit of reward and discriminator. With 50 steps the least noise in the maze
# is a tenth of a cell, where much of what the two models' scores differ by is error: there the fit
# explains 43 % of it, and with 20 steps 98 %.
NOISE = {"pointmaze": 20, "hopper": 50}
HIDDEN = {"pointmaze": (128, 128, 128), "hopper": (128, 128)}
SHARE = {"pointmaze": 1.0, "hopper": 0.75}  # of the optimisation steps that are asked for
# What an agent may learn from; "unmoved" is the extracted reward at the level that it has.
TEACHERS = ("extracted", "true", "smiling", "discriminator", "unmoved")


@dataclass(frozen=True)
class StepExperiment:
    """A world, base and expert models of its steps, and what is made of them.

    `steps` are the optimisation steps of a reward and a discriminator, but for the world's share.
    """

    world: str
    base: StepDiffuser
    expert: StepDiffuser
    steps: int

    @property
    def fit(self) -> dict[str, Any]:
        """Of reward and discriminator."""
        steps = max(1, int(self.steps * SHARE[self.world]))
        return {"hidden": HIDDEN[self.world], "steps": steps}

    @property
    def reward(self) -> StepReward:
        """The extracted one."""
        return StepReward(StepPool(self.base, self.expert), **self.fit)

    @property
    def discriminator(self) -> StepDiscriminator:
        """Its rival."""
        return StepDiscriminator(self.base, self.expert, **self.fit)

    @property
    def recipes(self) -> tuple:
        """All that is made."""
        return self.base, self.expert, self.reward, self.discriminator

    @cached_property
    def data(self) -> tuple:
        """What base and expert do."""
        return store.obtain(self.base.data), store.obtain(self.expert.data)

    def value(self, teacher: str, seed: int) -> worths.Value:
        """What a teacher says of steps."""
        ruler = self.base.normaliser
        if teacher == "smiling":
            pair = store.obtain(self.base), store.obtain(self.expert)
            return worths.smiling(*pair, ruler, seed)
        made = self.discriminator if teacher == "discriminator" else self.reward
        return worths.extracted(store.obtain(made), ruler)

    def payment(self, teacher: str, seed: int = 0) -> Payment | None:
        """Wages by a teacher; None where the world's own reward is meant."""
        if teacher == "true":
            return None
        return worths.payment(self.value(teacher, seed), *self.data, moved=teacher != "unmoved")

    def copies(self, n: int) -> World:
        """n copies of the world."""
        if self.world == "hopper":
            return Robots("hopper", n)
        return Balls(MAZE, GOAL, n, LENGTHS[MAZE])


def experiment(world: str, seed: int = 0, steps: int = 4_000) -> StepExperiment:
    """The pair of a world: ordinary behaviour, and an expert's."""
    if world == "hopper":
        kinds = "medium-replay", "expert"
        data = tuple(LocomotionData("hopper", kind, 100_000, seed) for kind in kinds)
    else:
        data = tuple(MazeData(MAZE, g, 1_000, LENGTHS[MAZE], seed) for g in (None, GOAL))
    shape = {"diffusion_steps": NOISE[world], "seed": seed}
    base, expert = (StepDiffuser(one, data, **shape) for one in data)
    return StepExperiment(world, base, expert, steps)
