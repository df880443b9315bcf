"""Policies of action chunks: a conditional pair in PointMaze, and LeRobot's call signature."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.testing import assert_close

import rrlib
from rrlib.errors import InputError
from rrlib.mazes import driving, world
from rrlib.plans.chunks import ChunkNetwork, action_chunks, chunk_loss, from_lerobot
from rrlib.training import stream, train

STEPS, HORIZON = 20, 8
OPEN, GOAL = world.load("open"), (1, 5)


def recorded(goal, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return action_chunks(world.make_trajectories(OPEN, 300, 150, goal, seed), HORIZON, every=4)


def trained(chunks: torch.Tensor, seen: torch.Tensor, seed: int) -> rrlib.Denoiser:
    torch.manual_seed(seed)
    model = rrlib.Denoiser(ChunkNetwork(2, 4, (16, 32)), rrlib.cosine_scheduler(STEPS))

    def loss(generator):
        rows = torch.randint(len(chunks), (128,), generator=generator)
        return chunk_loss(model, chunks[rows], seen[rows], generator)

    for _ in train(model.network, loss, steps=400, learning_rate=2e-3, seed=seed, ema=0.995):
        pass
    model.network.eval().requires_grad_(False)
    return model


@pytest.mark.slow
def test_the_steered_base_of_a_conditional_pair_goes_where_the_expert_goes():
    data = [recorded(None, 0), recorded(GOAL, 1)]
    scale = data[0][1].abs().amax(0)
    chunks, seen = zip(*((a, o / scale) for a, o in data), strict=True)
    base, expert = (trained(a, o, k) for k, (a, o) in enumerate(zip(chunks, seen, strict=True)))
    pairs = rrlib.compare(base, expert, chunks, n=8_000, conditions=seen)
    short = partial(rrlib.WindowReward, window=HORIZON, hidden=(128, 128))
    options = {"steps": 400, "batch": 128, "learning_rate": 2e-3}
    reward = rrlib.RelativeReward.fit(pairs, short, **options)
    held_out = rrlib.compare(base, expert, chunks, n=2_000, seed=5, conditions=seen)
    assert reward.explained_variance(held_out)[3:].mean() > 0.7

    starts = OPEN.sample(32, np.random.default_rng(3))
    generator = torch.Generator().manual_seed(0)

    def share(model, **steered) -> float:
        def policy(o):
            shape = (len(o), HORIZON, 2)
            return rrlib.sample(model.told(o / scale), shape, generator, **steered)

        positions = driving.push(OPEN, policy, starts, 240, HORIZON)
        return float((driving.reached(OPEN, positions, GOAL) < 240).mean())

    found = share(expert)
    assert found > 0.9
    assert share(base) < 0.4 * found
    assert share(base, reward=reward) >= 0.8 * found


def test_chunks_are_the_actions_after_their_observation_and_cross_no_episode():
    data = world.make_trajectories(OPEN, 3, 20, seed=0)
    chunks, seen = action_chunks(data, 6, every=2)
    rows = [first + k for first, end in data.bounds for k in range(0, end - first - 5, 2)]
    assert len(chunks) == len(seen) == len(rows) == 3 * 8
    for chunk, observation, row in zip(chunks, seen, rows, strict=True):
        assert np.array_equal(chunk, data.actions[row : row + 6])
        assert np.array_equal(observation, data.observations[row])


class Unet(nn.Module):
    """The call signature of LeRobot's DiffusionConditionalUnet1d."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2 + 3, 2)

    def forward(self, x, timestep, global_cond=None):
        told = global_cond[:, None].expand(-1, x.shape[1], -1)
        return self.layer(torch.cat([x, told], -1)) + timestep[:, None, None] / 100


def test_a_lerobot_policy_is_read_with_its_own_scheduler_and_condition():
    scheduler = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", prediction_type="epsilon")
    torch.manual_seed(0)
    policy = SimpleNamespace(diffusion=SimpleNamespace(unet=Unet(), noise_scheduler=scheduler))
    x, t = torch.randn(4, 16, 2, generator=stream(0, 0)), torch.tensor([0, 10, 50, 99])
    told = torch.randn(4, 3, generator=stream(0, 1))
    with torch.no_grad():
        ours = from_lerobot(policy).told(told).x0(x, t)
        says = policy.diffusion.unet(x, t, global_cond=told)
    for row in range(4):
        step = scheduler.step(says[row : row + 1], int(t[row]), x[row : row + 1])
        assert_close(ours[row : row + 1], step.pred_original_sample, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"^condition: none is not allowed"):
        from_lerobot(policy).x0(x, t)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_lerobot(nn.Linear(1, 1)), "^policy: Linear is not allowed: LeRobot's"),
        (
            lambda: action_chunks(world.make_trajectories(OPEN, 2, 5), 6),
            "^horizon=6 is not allowed",
        ),
        (lambda: action_chunks(world.make_trajectories(OPEN, 2, 5), 0), "^horizon=0, every=1 are"),
        (
            lambda: ChunkNetwork(2, 4)(torch.zeros(1, 7, 2), torch.zeros(1), torch.zeros(1, 4)),
            r"^x of shape \(1, 7, 2\) is not allowed",
        ),
        (
            lambda: ChunkNetwork(2, 4)(torch.zeros(1, 8, 2), torch.zeros(1), torch.zeros(1, 3)),
            r"^condition of shape \(1, 3\) is not allowed: \[1, 4\]",
        ),
        (
            lambda: chunk_loss(
                rrlib.Denoiser(lambda x, t, condition: x, DDPMScheduler(10)),
                torch.zeros(1, 8, 2),
                torch.zeros(1, 4),
                stream(0, 0),
            ),
            "^scheduler: prediction_type='epsilon'",
        ),
    ],
)
def test_what_cannot_be_right_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
