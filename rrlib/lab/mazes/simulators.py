"""Our batch of balls beside Gymnasium's one: the same physics, and how much faster."""

import time

import gymnasium as gym
import numpy as np

from rrlib.mazes import world as mazes

NAMES = {"open": "Open", "umaze": "UMaze", "medium": "Medium", "large": "Large"}


def worst_gap(name: str, seed: int, steps: int = 300) -> float:
    """Largest distance between a ball of our batch and Gymnasium's, pushed alike for `steps`."""
    world, rng = mazes.load(name), np.random.default_rng(seed)
    env = gym.make(f"PointMaze_{NAMES[name]}-v3", max_episode_steps=steps + 1)
    env.reset(seed=seed)
    states = np.concatenate([world.to_xy(world.sample(8, rng)), np.zeros((8, 2))], 1)
    accelerations = np.zeros((8, 2))
    env.unwrapped.point_env.set_state(states[0, :2], states[0, 2:])
    gap, push = 0.0, rng.uniform(-1, 1, (steps // 50, 8, 2)).repeat(50, 0)  # long pushes hit walls
    for actions in push:
        states, accelerations = mazes.step(world, states, actions, accelerations)
        theirs = env.step(actions[0])[0]["observation"]
        gap = max(gap, np.abs(theirs - states[0])[:2].max())
    env.close()
    return gap


def steps_per_second(world: mazes.Maze, n: int = 1000, steps: int = 60) -> tuple[float, float]:
    """Of our batch of `n` balls, and of Gymnasium's one, each driven by the controller."""
    begun = time.perf_counter()
    mazes.make_trajectories(world, n, steps)
    batch = n * steps / (time.perf_counter() - begun)
    env = gym.make(f"PointMaze_{NAMES[world.name]}-v3", max_episode_steps=10**6)
    found, _ = env.reset(seed=0)
    begun = time.perf_counter()
    for _ in range(2000):
        state, target = found["observation"][None], found["desired_goal"][None]
        found = env.step(mazes.control(world, state, target)[0])[0]
    return batch, 2000 / (time.perf_counter() - begun)
