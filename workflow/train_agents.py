"""Train the agents of the chapter on the reward as a reward; playing them needs nothing of this.

    pip install -e '.[rl]'
    python workflow/train_agents.py pointmaze extracted --runs _run/agents --steps 40000

SAC from sbx, as in `train_policies.py`, in a world of the book, paid by a teacher: the extracted
reward, the world's own, SMILING's, a discriminator's logit. The same command goes on from a
checkpoint.
"""

import argparse
import json
from importlib import metadata
from pathlib import Path

import gymnasium as gym
import numpy as np
from sbx import SAC
from stable_baselines3.common.vec_env import VecEnv
from train_policies import LIBRARIES, SETTINGS, UPDATES, Keeper, restore, save

from rrlib.lab import store
from rrlib.lab.agents import experiments, worths
from rrlib.lab.agents.experiments import StepExperiment

COPIES = {"pointmaze": 16, "hopper": 8}
# A step of Hopper's expert earns 3 of its own reward, and the entropy's weight is in those units.
PAID = {"pointmaze": 1.0, "hopper": 3.0}
# Where a ball is to rest, noise costs what it earns.
OWN = {"pointmaze": {"ent_coef": 0.02, "learning_starts": 1_000}, "hopper": {}}


class Paid(VecEnv):
    """A world's copies whose reward is a teacher's."""

    def __init__(self, experiment: StepExperiment, teacher: str, seed: int):
        self.copies = experiment.copies(COPIES[experiment.world])
        self.payment, self.begun = experiment.payment(teacher, seed), seed
        self.unit = PAID[experiment.world]
        action, observation = self.copies.widths
        seen = gym.spaces.Box(-np.inf, np.inf, (observation,), np.float32)
        super().__init__(self.copies.n, seen, gym.spaces.Box(-1, 1, (action,), np.float32))

    def reset(self) -> np.ndarray:
        return self.copies.reset(self.begun)

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> tuple:
        moved = self.copies.step(self.actions)
        unit = self.unit if self.payment else 1.0
        paid = worths.wages(moved, self.payment) * unit
        n = len(paid)
        infos: list[dict] = [{} for _ in range(n)]
        ended = moved.fallen | moved.late
        for row in np.flatnonzero(ended):
            infos[row] = {"terminal_observation": moved.last[row]}
            infos[row]["TimeLimit.truncated"] = bool(moved.late[row])
        return moved.now, paid.astype(np.float32), ended, infos

    def close(self) -> None:
        self.copies.close()

    def get_attr(self, attr_name, indices=None):
        return [None] * self.num_envs  # such as `render_mode`: there is none

    # A vector environment must have these two; SAC calls neither, and there is nothing behind them.
    def set_attr(self, attr_name, value, indices=None):
        raise AttributeError(f"batched worlds have no attribute {attr_name!r} to set")

    def env_method(self, method_name, *args, indices=None, **kwargs):
        raise AttributeError(f"batched worlds have no method {method_name!r}")

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs


def train(world: str, teacher: str, folder: Path, steps: int, seed: int) -> None:
    """Train, or go on training, until `steps` steps are made."""
    folder.mkdir(parents=True, exist_ok=True)
    made, settings = experiments.experiment(world), SETTINGS | OWN[world]
    paid = Paid(made, teacher, seed)
    card = {
        "world": world,
        "teacher": teacher,
        "algorithm": "SAC",
        "settings": settings,
        "steps": steps,
        "seed": seed,
        "versions": {library: metadata.version(library) for library in LIBRARIES},
    }
    if paid.payment is not None:
        card["taught_by"] = {type(r).__name__: store.key(r) for r in made.recipes}
        card["wages"] = {name: getattr(paid.payment, name) for name in ("low", "high", "unit")}
    (folder / "training.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    agent = SAC(
        "MlpPolicy",
        paid,
        buffer_size=steps,
        train_freq=UPDATES // paid.num_envs,
        gradient_steps=UPDATES,
        seed=seed,
        **settings,
    )
    restore(agent, folder)
    agent.learn(steps - agent.num_timesteps, Keeper(folder), reset_num_timesteps=False)
    save(agent, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", choices=experiments.WORLDS)
    parser.add_argument("teacher", choices=experiments.TEACHERS)
    parser.add_argument("--runs", type=Path, default=Path("_run/agents"))
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    place = chosen.runs / f"{chosen.world}-{chosen.teacher}-{chosen.seed}"
    train(chosen.world, chosen.teacher, place, chosen.steps, chosen.seed)
