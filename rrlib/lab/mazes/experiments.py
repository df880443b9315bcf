"""What a maze chapter's parameters ask for: one experiment per maze and goal."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace

from rrlib.lab import store
from rrlib.lab.mazes import presets as maze_sizes
from rrlib.lab.mazes import recipes as maze_recipes
from rrlib.lab.mazes.evidence import Evidence, Sample, judge
from rrlib.lab.mazes.recipes import (
    LENGTHS,
    ComponentDiffuser,
    MazeData,
    MazeDiffuser,
    MazeFile,
    MazePool,
    MazeRewards,
)
from rrlib.lab.recipes import Split
from rrlib.mazes import world as maze
from rrlib.method.rewards import RelativeReward
from rrlib.plans.layouts import PlanLayout
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.trajectories import Trajectories

SHAPE = (
    "channels",
    "patch",
    "diffusion_steps",
    "batch",
    "learning_rate",
    "given",
)  # of base and expert
DIFFUSERS = {"u_net": MazeDiffuser, "components": ComponentDiffuser}


@dataclass(frozen=True)
class MazeExperiment:
    """One maze and goal: its base, shared by the maze's goals, its expert, and their rewards."""

    goal: tuple[float, float]
    base: MazeDiffuser
    expert: MazeDiffuser
    rewards: MazeRewards

    @property
    def world(self) -> maze.Maze:
        """The maze itself."""
        return maze.load(self.base.data.maze)

    @property
    def label(self) -> str:
        """Such as "umaze (1, 2)"."""
        return f"{self.base.data.maze} ({self.goal[0]:g}, {self.goal[1]:g})"

    def case(self, seed: int) -> dict[str, object]:
        """What a published row says first: the maze, the goal such as "(1, 2)", a reward's seed."""
        return {"maze": self.world.name, "goal": self.label.split(" ", 1)[1], "seed": seed}

    def about(self, seed: int) -> dict[str, object]:
        """What the user of a shipped reward must know; `seed` is the reward's."""
        name = self.world.name
        layout = PlanLayout(
            self.normaliser, maze.ACTION, maze.OBSERVATION, horizon=self.base.horizon
        )
        told = {
            "maze": name,
            "goal": list(self.goal),
            "seed": seed,
            "models": models(name, self.goal),
        }
        return told | layout.about()

    @cached_property
    def normaliser(self) -> Normaliser:
        """Of base and expert alike."""
        return Normaliser.fit(store.obtain(self.base.ruler))

    def sample(
        self, diffuser: MazeDiffuser, normaliser: Normaliser, episodes: int, plans: int, seed: int
    ) -> Sample:
        """Plans of the base or the expert that nothing was trained on.

        Args:
            diffuser: `base` or `expert`; its data are the kind that is asked for.
            normaliser: of the plans.
            episodes: fresh trajectories; a data file's held-out tenth takes their place.
            plans: cut from them.
            seed: of trajectories and cuts.
        """
        if isinstance(diffuser.data, MazeFile):
            held_out = diffuser.split().held_out
        else:
            seeded = maze_recipes.FRESH_SEED + seed
            held_out = store.obtain(replace(diffuser.data, episodes=episodes, seed=seeded))
        return sample(self.world, held_out, normaliser, diffuser.horizon, plans, seed)

    def samples(self, episodes: int, plans: int, seed: int) -> tuple[Sample, Sample]:
        """`sample` of the base and of the expert."""
        pair, given = (self.base, self.expert), (episodes, plans, seed)
        base, expert = (self.sample(half, self.normaliser, *given) for half in pair)
        return base, expert

    def judge(
        self, rewards: Iterable[RelativeReward], samples: tuple[Sample, Sample], seed: int
    ) -> list[Evidence]:
        """Evidence of each reward on `samples`; `seed` is that of `evidence.judge`."""
        return [judge(self.world, self.goal, reward, *samples, seed) for reward in rewards]


def models(name: str, goal: Sequence[float]) -> dict[str, str]:
    """What a shipped reward says of the models that it comes from."""
    data = f"plans of PointMaze's ball in maze '{name}'"
    return {
        "base": f"diffuser of {data}, a new target in each episode",
        "expert": f"diffuser of {data}, target ({goal[0]:g}, {goal[1]:g}) in each",
    }


def recipes_of(found: Iterable[MazeExperiment]) -> list[MazeDiffuser | MazeRewards]:
    """What experiments are made of: each base once, then expert and rewards of each."""
    found = list(found)
    bases = dict.fromkeys(e.base for e in found)
    return [*bases, *(recipe for e in found for recipe in (e.expert, e.rewards))]


def fresh(
    world: maze.Maze, goal: tuple[float, float] | None, episodes: int, seed: int
) -> Trajectories:
    """The controller's trajectories that nothing was trained on; no goal: one for each episode."""
    steps, seed = LENGTHS[world.name], maze_recipes.FRESH_SEED + seed
    return maze.make_trajectories(world, episodes, steps, goal, seed)


def sample(
    world: maze.Maze,
    held_out: Trajectories,
    normaliser: Normaliser,
    horizon: int,
    plans: int,
    seed: int,
) -> Sample:
    """`plans` plans of `horizon` steps cut from trajectories at random places."""
    split = Split(held_out, held_out, normaliser, horizon)
    return Sample.of(world, normaliser, split.held_out_plans(plans, seed))


def of_transitions(chosen: SimpleNamespace, n: int) -> list[MazeExperiment]:
    """The experiments of data sets of n transitions each, maze by maze.

    Args:
        chosen: see `experiments`, and `n_seeds` and `reward_steps`.
        n: transitions of a data set, in whole episodes.
    """
    found = []
    for name in chosen.maze:
        asked = {"maze": (name,), "goal": None, "dataset_path": "", "episodes": n // LENGTHS[name]}
        given = SimpleNamespace(**vars(chosen) | asked)
        found += experiments(given, chosen.n_seeds, chosen.reward_steps)
    return found


def experiments(
    chosen: SimpleNamespace, n_seeds: int = 1, reward_steps: int = 3_000
) -> list[MazeExperiment]:
    """The experiments that a maze chapter's parameters ask for, none of them made yet.

    Args:
        chosen: checked parameters `maze` (names), `n_goals`, `goal` (cell units or None), `seed`,
            `episodes`, `horizon`, `size`, `diffuser_steps`, `dataset_path`.
        n_seeds: rewards per pair of diffusers.
        reward_steps: optimisation steps of a reward.

    Raises:
        InputError: the goal lies in a wall of one of the mazes, the data file cannot be used, or
            the horizon does not fit the networks.
    """
    found = []
    for name in chosen.maze:
        size = maze_sizes.sizes(chosen.size, name)
        maze_sizes.check_horizon(chosen.horizon, chosen.size, name)
        if chosen.dataset_path:
            data = MazeFile.at(name, chosen.dataset_path)
        else:
            data = MazeData(name, episodes=chosen.episodes, length=LENGTHS[name], seed=chosen.seed)
        shape = {f: getattr(size, f) for f in SHAPE} | {
            "horizon": chosen.horizon,
            "seed": chosen.seed,
        }
        diffuser = DIFFUSERS[size.network]
        base = diffuser(data, data, steps=chosen.diffuser_steps, **shape)
        for goal in maze.goals(maze.load(name), chosen.n_goals, chosen.goal):
            shown = MazeData(name, goal, chosen.episodes, LENGTHS[name], chosen.seed)
            steps = max(int(chosen.diffuser_steps * size.expert_share), 1)
            start = base if size.from_base else None
            expert = diffuser(shown, data, steps=steps, start=start, **shape)
            # A window each: a fit reads no more plans than it draws windows.
            plans = min(size.plans, reward_steps * size.reward_batch)
            rewards = MazeRewards(
                MazePool(base, expert, plans, seed=chosen.seed),
                window=size.window,
                hidden=size.hidden,
                average=size.average,
                steps=reward_steps,
                batch=size.reward_batch,
                learning_rate=size.reward_rate,
                seeds=tuple(range(chosen.seed, chosen.seed + n_seeds)),
            )
            found.append(MazeExperiment(goal, base, expert, rewards))
    return found
