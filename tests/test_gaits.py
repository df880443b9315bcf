"""Drawn robots against MuJoCo's own geometry, step by step."""

import gymnasium as gym
import matplotlib.pyplot as plt
import mujoco
import numpy as np
import pytest
from matplotlib.animation import AbstractMovieWriter
from numpy.testing import assert_allclose

from rrlib.locomotion import gaits, robots


def episode(name: str, steps: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations, centres [n, limbs, 2] and radii of the limbs as the simulator has them."""
    world = gym.make(f"{robots.load(name).gymnasium}-v5")
    observation, _ = world.reset(seed=0)
    rng, seen, centres = np.random.default_rng(0), [], []
    model, data = world.unwrapped.model, world.unwrapped.data
    for _ in range(steps):
        seen.append(observation)
        mujoco.mj_kinematics(model, data)  # else geometry lags behind positions by a step
        centres.append(data.geom_xpos[1:, [0, 2]] - [data.qpos[0], 0])
        observation, *_ = world.step(rng.uniform(-1, 1, world.action_space.shape))
    world.close()
    return np.array(seen), np.array(centres), model.geom_size[1:, 0].copy()


@pytest.mark.parametrize("name", robots.ENVIRONMENTS)
def test_limbs_are_where_the_simulator_has_them(name):
    observations, centres, radii = episode(name)
    found = gaits.outlines(robots.load(name), observations)
    assert found.shape[:2] == centres.shape[:2]
    mine = found.mean(2)
    assert_allclose(mine[0], centres[0], atol=1e-6)
    shift = mine[:, :1, 0] - centres[:, :1, 0]  # how far it has come, by its speed
    assert_allclose(mine[..., 1], centres[..., 1], atol=1e-6)
    assert_allclose(mine[..., 0] - centres[..., 0], shift + 0 * mine[..., 0], atol=1e-6)
    width = np.linalg.norm(found[:, :, 0] - found[:, :, gaits.CORNERS // 2 - 1], axis=-1)
    assert_allclose(width, np.broadcast_to(2 * radii, width.shape), atol=1e-6)


def test_a_robot_gets_as_far_as_its_speed_says():
    hopper = robots.load("hopper")
    observations = np.tile(np.eye(1, 11), (5, 1)) * 1.25
    observations[:, 5] = 2.0  # m/s, of steps of 8 ms
    x = gaits.outlines(hopper, observations)[:, 0, :, 0].mean(1)
    assert_allclose(np.diff(x), 2.0 * 0.008)


def test_strips_show_an_episode_to_its_end():
    hopper = robots.load("hopper")
    observations, *_ = episode("hopper", 6)
    found = gaits.outlines(hopper, observations)
    _, axes = plt.subplots(1, 3)
    gaits.strip(axes, found, (0, 5, 9), "C0")
    assert [len(ax.collections) for ax in axes] == [1, 1, 0]
    plt.close("all")


class Frames(AbstractMovieWriter):
    """Keeps what each frame of a film shows: the limbs of every panel, and where it looks."""

    def grab_frame(self, **_):
        shown = [(ax.collections[0].get_paths(), ax.get_xlim()) for ax in self.fig.axes]
        self.frames.append([([p.vertices[:-1] for p in paths], x) for paths, x in shown])

    def setup(self, *arguments, **options):
        super().setup(*arguments, **options)
        self.frames = []

    def finish(self):
        pass


def test_films_show_each_episode_to_its_end_and_follow_the_robot(tmp_path):
    observations, *_ = episode("hopper", 6)
    found = gaits.outlines(robots.load("hopper"), observations)
    figure, axes = plt.subplots(1, 2)
    episodes = found, found[:3]
    film = gaits.animate(figure, axes, episodes, ["C0", "C1"], every=2)
    frames = Frames()
    film.save(tmp_path / "film", frames)
    assert len(frames.frames) == 3  # of 6 steps, every other
    for k, panels in enumerate(frames.frames):
        for (limbs, looks), whole in zip(panels, episodes, strict=True):
            now = whole[min(2 * k, len(whole) - 1)]
            assert_allclose(limbs, now)
            assert_allclose(looks, now[0, :, 0].mean() + np.array([-0.9, 0.9]))
    plt.close("all")
