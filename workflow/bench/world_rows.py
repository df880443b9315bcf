"""Rows of data, rollouts, stores of images and the graph of the chapters."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from safetensors.torch import save_file

from rrlib import training
from rrlib.images import comparisons as image_comparisons
from rrlib.images.rewards import EncoderReward
from rrlib.lab.images.streaming import PaperSampler
from rrlib.lab.mazes.simulators import NAMES
from rrlib.locomotion import rollouts
from rrlib.locomotion.robots import load as load_robot
from rrlib.mazes import world as mazes
from rrlib.method.denoisers import Denoiser
from rrlib.method.noise import schedulers
from rrlib.method.rewards import RelativeReward
from rrlib.plans import trajectories
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.perceptron import PlanPerceptron
from rrlib.plans.trajectories import Trajectories
from rrlib.plans.windows import Windows

from .growth import Growth
from .timing import Against, Call, Row

ROOT = Path(__file__).resolve().parents[2]
EPISODE = 1_000  # steps of a made episode


def data_making(n: int = 1_000, steps: int = 60, few: int = 500) -> Row:
    """Transitions of balls, a batch of them, beside Gymnasium's one ball."""
    world = mazes.load("umaze")
    env = gym.make(f"PointMaze_{NAMES[world.name]}-v3", max_episode_steps=10**9)
    found = [env.reset(seed=0)[0]]

    def gymnasium() -> None:
        for _ in range(few):
            state, target = found[0]["observation"][None], found[0]["desired_goal"][None]
            found[0] = env.step(mazes.control(world, state, target)[0])[0]

    against = Against("Gymnasium's PointMaze, step by step", gymnasium, few, n * steps)
    ours = partial(mazes.make_trajectories, world, n, steps)
    return Row("data", "transitions of Maze2D", ours, (against,))


def made(n: int) -> Trajectories:
    """n transitions of uniform numbers as a maze's file has them, in episodes."""
    draws, timeouts = np.random.default_rng(0), np.zeros(n, dtype=bool)
    timeouts[EPISODE - 1 :: EPISODE] = True
    observations, actions = (draws.random((n, k), dtype=np.float32) for k in (4, 2))
    nothing = np.zeros(n, dtype=np.float32)
    return Trajectories(observations, actions, nothing, np.zeros(n, dtype=bool), timeouts)


def served(n: int, horizon: int = 32, batch: int = 4_096) -> tuple[Trajectories, Call]:
    """Some transitions, and what draws a batch of their windows."""
    data = made(n)
    windows = Windows.of(data, Normaliser.fit(data), horizon, "cpu")
    return data, partial(windows.draw, batch, training.stream(0, "windows"))


def windows(n: int = 1_000_000, few: int = 200, batch: int = 4_096) -> Row:
    """Windows for training, a batch at once, beside one by one with the file's own functions."""
    data, ours = served(n, batch=batch)
    ruler, starts = Normaliser.fit(data), trajectories.windows(data, 32)
    draws = np.random.default_rng(0)

    def one_by_one() -> None:
        for start in draws.choice(starts, few):
            ruler.normalise(trajectories.cut(data, np.array([start]), 32))

    against = Against("window by window", one_by_one, work=few, ours=batch)
    return Row("windows", "windows of plans served", ours, (against,))


def robots(n: int = 32, steps: int = 10, few: int = 2) -> Row:
    """Steps of robots that plan, all at once, beside robot by robot.

    HalfCheetah never falls, so every episode has all of its steps, whatever the planner knows.
    """
    world = load_robot("halfcheetah")
    torch.manual_seed(0)
    network = PlanPerceptron(world.width, 4, 10, 128, 2).eval().requires_grad_(False)
    model = Denoiser(network, schedulers.cosine_scheduler(10, clip=False))
    ones = np.ones(world.width, np.float32)

    def played(episodes: int) -> None:
        ruler, draws = Normaliser(-ones, ones), training.stream(0, "plans")
        plan = rollouts.planner(model, ruler, world, 4, draws, num_inference_steps=3)
        rollouts.play(world, plan, episodes, 0, steps=steps)

    def one_by_one() -> None:
        for _ in range(few):
            played(1)

    against = Against("robot by robot", one_by_one, work=few, ours=n)
    return Row("rollouts", "rollouts of HalfCheetah, quick planner", partial(played, n), (against,))


def store(n: int = 4) -> Row:
    """Algorithm 2's store at the size of Stable Diffusion's latents, without a network.

    The literal loop keeps every step of every run, one by one, and writes a file for each prompt.
    """
    sides, texts = (PaperSampler(0.0), PaperSampler(0.1)), [str(k) for k in range(n)]

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = image_comparisons.generate(Path(folder), *sides, texts, batch=n, seed=0)
            for _ in run:
                pass

    def literal() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for k in range(n):
                save_file(_one_prompt(sides, k), Path(folder) / f"{k}.safetensors")

    against = Against("Algorithm 2 as printed, step by step, prompt by prompt", literal)
    return Row("store", "Algorithm 2's store, latents of 4 x 64 x 64", ours, (against,))


def _one_prompt(sides: tuple[PaperSampler, PaperSampler], seed: int) -> dict[str, torch.Tensor]:
    kept = {}
    for number, side in enumerate(sides):
        x = side.start(1, training.stream(seed, number))
        for step in range(side.steps):
            noises = [one.noise(x, step, x, None)[0] for one in sides]
            first, second = (one.advance(x, e, step) for one, e in zip(sides, noises, strict=True))
            kept[f"{number}.{step}.latents"] = x
            kept[f"{number}.{step}.difference"] = second - first
            x = (first, second)[number]
    return kept


def graph(profile: str = "full") -> Row:
    """Planning a profile with a job for each artefact, beside starting Snakemake for nothing."""
    snakemake = [sys.executable, "-m", "snakemake"]
    snakefile = ["--snakefile", str(ROOT / "workflow" / "Snakefile")]

    def plan() -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [*snakemake, "chapters", "--dry-run", *snakefile, "--directory", folder]
            command += ["--config", f"profile={profile}", "unit=artefact"]
            subprocess.run(
                [*command, "--profile", "none", "--cores", "1"], check=True, capture_output=True
            )

    def start() -> None:
        subprocess.run([*snakemake, "--version"], check=True, capture_output=True)

    against = Against("starting Snakemake", start)
    return Row("graph", f"dry run of the {profile} profile's graph of artefacts", plan, (against,))


def image_reward(size: int, batch: int = 16) -> Call:
    """A gradient of a reward of latents of size x size, as guidance takes it."""
    torch.manual_seed(0)
    mean = torch.zeros(50, 4, size, size)
    network = EncoderReward(mean, torch.ones_like(mean), torch.ones(50), (32, 64))
    reward = RelativeReward(network.requires_grad_(False), "mean", "x_t")
    x = torch.randn(batch, 4, size, size)
    return partial(reward.gradient, x, torch.zeros(batch, dtype=torch.long))


def growths() -> list[Growth]:
    """How what is served, and what images cost, grow."""

    def drawing(n: int) -> Callable:
        return served(n)[1]

    return [
        Growth(
            "windows_transitions",
            "windows of plans served",
            "transitions",
            (100_000, 1_000_000, 10_000_000),
            drawing,
        ),
        Growth(
            "image_size",
            "gradient of a reward of images",
            "side of the image",
            (8, 16, 32, 64),
            image_reward,
        ),
    ]
