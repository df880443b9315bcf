"""The reward where others use it: fine-tuning codes, Gymnasium."""

from pathlib import Path

import gymnasium as gym
import gymnasium_robotics
import numpy as np
import pytest
import torch
from PIL import Image

import rrlib
from rrlib.errors import InputError
from rrlib.images import pairs as image_pairs
from rrlib.images.miniature import scenes
from rrlib.images.miniature import weights as image_weights
from rrlib.images.reward_functions import reward_function
from rrlib.method.networks.sums import WeightedSum
from rrlib.method.rewards import RelativeReward
from rrlib.plans.perceptron import PlanPotential
from rrlib.plans.rewards import PlanValue, WindowReward

FULL = Path(__file__).resolve().parent.parent / "results" / "full"
UNIT = torch.linspace(0.5, 2, 10)

# Fine-tuning codes


@pytest.fixture(scope="module")
def images():
    pipeline = image_weights.load(image_weights.BASE)
    return pipeline, scenes.render(6, 0).pixels


@pytest.mark.lengthy
def test_fine_tuning_codes_call_it(images):
    pipeline, pixels = images
    reward = image_pairs.load(FULL / "images-style.safetensors")
    expected = reward.score([Image.fromarray(one) for one in pixels], pipeline).numpy()
    fn = reward_function(reward, pipeline, batch=4)
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    prompts, metadata = ["a"] * 6, [{}] * 6
    for form in (tensor, tensor.half(), pixels, list(pixels)):
        scores, info = fn(form, prompts, metadata)
        assert scores.dtype == np.float32 and scores.shape == (6,) and info == {}
        np.testing.assert_allclose(scores, expected, atol=1e-4)
    again = rrlib.load_reward(FULL / "images-style.safetensors")
    np.testing.assert_allclose(reward_function(again, pipeline)(tensor)[0], expected, atol=1e-4)
    np.testing.assert_allclose(again.score(list(pixels), pipeline=pipeline), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(6, 3, 32, 32) + 2, "numbers from 2 to 2"),
        (torch.full((6, 3, 32, 32), torch.nan), "numbers from nan to nan"),
        (torch.zeros(6, 4, 8, 8), r"tensor \(6, 4, 8, 8\)"),
        (torch.zeros(6, 3, 32, 32, dtype=torch.uint8), "uint8 tensor"),
        (torch.zeros(0, 3, 32, 32), "at least one picture"),
        (torch.zeros(5, 3, 32, 32), "prompts: 6 for 5 images are not allowed"),
        (
            np.zeros((32, 32, 3), np.uint8),
            r"images: an array of shape \(32, 32, 3\) is not allowed",
        ),
    ],
)
def test_images_of_another_form_are_refused(images, wrong, message):
    fn = reward_function(image_pairs.load(FULL / "images-style.safetensors"), images[0])
    with pytest.raises(InputError, match=message):
        fn(wrong, ["a"] * 6 if len(wrong) else None, None)


# Gymnasium


def point_maze():
    gym.register_envs(gymnasium_robotics)
    return gym.make("PointMaze_UMaze-v3", max_episode_steps=40)


def layout(width=6):
    low, high = np.linspace(-3, -1, width, dtype="f4"), np.linspace(1, 5, width, dtype="f4")
    return rrlib.PlanLayout(rrlib.Normaliser(low, high), actions=2, observations=width - 2)


@pytest.mark.parametrize("window", [1, 4])
def test_the_wrapper_gives_g_of_the_last_steps(window):
    torch.manual_seed(0)
    network, ruler = WindowReward(6, window, UNIT, (16,)), layout().normaliser
    reward = RelativeReward(network, "score", "x_t", layout().about())
    env, plain = rrlib.RelativeRewardWrapper(point_maze(), reward), point_maze()
    rng = np.random.default_rng(0)
    for seed in (3, 4):
        observation, _ = env.reset(seed=seed)
        plain.reset(seed=seed)
        rows = []
        for _ in range(10):
            action = rng.uniform(-1, 1, 2).astype("f4")
            rows.append(np.concatenate([action, observation["observation"]]).astype("f4"))
            observation, g, *ends, info = env.step(action)
            theirs = plain.step(action)
            seen = ([rows[0]] * window + rows)[-window:]
            x = torch.from_numpy(ruler.normalise(np.stack(seen)))[None]
            expected = float(network(x, torch.zeros(1, dtype=torch.long)).detach())
            assert isinstance(g, float) and g == pytest.approx(expected, rel=1e-4, abs=1e-5)
            assert info["environment_reward"] == theirs[1] and tuple(ends) == theirs[2:4]
            np.testing.assert_array_equal(observation["observation"], theirs[0]["observation"])


@pytest.mark.lengthy
def test_a_shipped_reward_drives_a_ball_to_the_goal_by_its_sum():
    """Near the goal a resting ball earns more than far away."""
    reward = rrlib.load_reward(FULL / "maze2d-rewards.safetensors", name="umaze (1, 1), seed 0")
    earned = {}
    for cell in ((1, 1), (3, 1)):
        env = rrlib.RelativeRewardWrapper(point_maze(), reward)
        env.reset(seed=0, options={"reset_cell": np.array(cell), "goal_cell": np.array((2, 3))})
        earned[cell] = sum(env.step(np.zeros(2, "f4"))[1] for _ in range(30))
    assert earned[1, 1] > earned[3, 1]


class Picture(gym.Env):
    observation_space = gym.spaces.Box(0, 255, (4, 4, 3), np.uint8)
    action_space = gym.spaces.Box(-1, 1, (2,))


@pytest.mark.parametrize(
    ("env", "network", "message"),
    [
        (Picture, WindowReward(6, 1, UNIT), r"env: observations of .* vectors of 4 numbers"),
        (lambda: gym.make("CartPole-v1"), WindowReward(6, 1, UNIT), "env: actions of .Discrete"),
        (point_maze, PlanPotential(6, 8, UNIT, 8, 1), "values a plan as a whole"),
        (point_maze, PlanValue(6, UNIT, (32,)), "horizon=None is not allowed for a PlanValue"),
        (point_maze, WeightedSum([PlanPotential(6, 8, UNIT, 8, 1)], [1]), "values a plan as a who"),
    ],
)
def test_an_environment_or_reward_that_does_not_suit_is_refused(env, network, message):
    reward = RelativeReward(network, "score", "x_t")
    with pytest.raises(InputError, match=message):
        rrlib.RelativeRewardWrapper(env(), reward, layout())
    with pytest.raises(InputError, match="about: no order, widths, low, high"):
        rrlib.RelativeRewardWrapper(env(), reward)


def test_an_action_of_another_width_is_refused():
    reward = RelativeReward(WindowReward(6, 1, UNIT), "score", "x_t")
    env = rrlib.RelativeRewardWrapper(point_maze(), reward, layout())
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"action: .* is not allowed: 2 numbers"):
        env.step(np.zeros(3))
