"""The way of the data on an accelerator, without one: see `accelerator`.

In no loop that trains, compares, samples or estimates does a step wait for the device, and what is
made there is what the CPU makes.
"""

import os
from collections import Counter

import numpy as np
import pytest
import torch
from accelerator import INSIDE, NAME, accelerator, begin, in_a_process_of_its_own
from loops import LOOPS, model, reward, sampled
from small_recipes import recipes, trained
from torch.testing import assert_close

from rrlib import training
from rrlib.errors import InputError
from rrlib.lab import store
from rrlib.locomotion import robots, rollouts
from rrlib.mazes import driving
from rrlib.method import comparisons, extraction
from rrlib.plans.conditioning import given
from rrlib.plans.normalisers import Normaliser
from rrlib.training import stream

inside = pytest.mark.skipif(INSIDE not in os.environ, reason="run in a process of its own")
RECIPES, H, D = recipes(), 8, 5


@pytest.mark.slow
@pytest.mark.skipif(INSIDE in os.environ, reason="the process of its own")
def test_the_pretend_device_in_a_process_of_its_own():
    in_a_process_of_its_own(__file__)


@pytest.fixture(scope="module", autouse=True)
def _device():
    if INSIDE in os.environ:
        begin()


def steps_of(name: str, device: str) -> tuple[list[list[str]], list[float]]:
    """What each step of a recipe's training waits for, and of what it is made of; the losses."""
    with accelerator() as there:
        waits: list[list[str]] = []

        def step(run):
            before = len(there.waits)
            progress = next(run)
            waits.append(there.waits[before:])
            return progress

        with trained(step) as seen:
            store.obtain(RECIPES[name], device)
        return waits, [float(progress.loss) for progress in seen]


@inside
@pytest.mark.parametrize("name", RECIPES)
def test_no_steady_step_of_a_recipe_waits_and_its_losses_are_those_of_the_cpu(name):
    waits, losses = steps_of(name, NAME)
    # The first step copies tables; of the last it is asked whether the loss is finite.
    assert len(waits) % 3 == 0 and not any(waits[1::3])
    assert waits[2::3] == [["_local_scalar_dense"]] * (len(waits) // 3)
    _, wanted = steps_of(name, "cpu")
    assert_close(losses[-3:], wanted[-3:], rtol=1e-2, atol=1e-5)


def waits_of(loop, steps: int) -> Counter:
    """What so many steps of a loop wait for."""
    with accelerator() as there:
        loop(NAME, steps)
    return Counter(there.waits)


@inside
@pytest.mark.parametrize("name", LOOPS)
def test_more_steps_of_a_loop_wait_no_more(name):
    few, more = (waits_of(LOOPS[name], steps) for steps in (2, 3))
    assert few["copy to the device"] > 0 and more == few


def there(value) -> torch.Tensor:
    return value.cpu() if value.device.type == NAME else value


@inside
@pytest.mark.parametrize("name", ["steered by scores", "steered images", "Algorithm 1"])
def test_what_is_made_there_is_what_the_cpu_makes(name):
    with accelerator():
        found, wanted = (LOOPS[name](device, 4) for device in (NAME, "cpu"))
        if name == "Algorithm 1":
            found, wanted = (part.pool("mean", "mu_base").target for part in (found, wanted))
        assert found.device.type == NAME
        assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-5)


# A plan is made where its models are: one copy of the observations there, one of the plans back.


@inside
def test_a_robot_waits_twice_for_a_plan():
    robot = robots.load("hopper")
    width = robot.width
    ruler = Normaliser(np.full(width, -1, "f4"), np.full(width, 1, "f4"))
    with accelerator() as mode:
        base = RECIPES["robot base"].blank(NAME)
        plan = rollouts.planner(base, ruler, robot, 4, stream(0, 0, NAME))
        counts = []
        for _ in range(3):
            before = len(mode.waits)
            made = plan(np.zeros((2, robot.observation), "f4"), np.arange(2))
            counts.append(mode.waits[before:])
    assert made.shape == (2, 4, robot.action)
    assert counts[1] == counts[2] == ["copy to the device", "copy from the device"]


@inside
def test_a_ball_waits_twice_for_a_plan():
    with accelerator() as mode:
        base = RECIPES["maze base"].blank(NAME)
        draws, counts = stream(0, 0, NAME), []
        for _ in range(3):
            before = len(mode.waits)
            driving.plans_from(base, torch.zeros(2, 4), H, draws).cpu()
            counts.append(mode.waits[before:])
    assert counts[1] == counts[2] == ["copy to the device", "copy from the device"]


# What would have the loops wait is seen.


def planted(spoil) -> list[list[str]]:
    """What the steps of a training wait for whose loss asks for something."""
    with accelerator() as mode:
        network, waits = torch.nn.Linear(3, 1).to(NAME), []
        x = torch.ones(4, 3).to(NAME)

        def loss(draws):
            return network(spoil(x)).square().mean()

        for _ in range(3):
            before = len(mode.waits)
            if not waits:
                run = training.train(network, loss, steps=4, learning_rate=0.1, seed=0)
            next(run)
            waits.append(mode.waits[before:])
        return waits[1:]


@inside
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda x: x * sum(x[k, 0].item() for k in range(2)), ["_local_scalar_dense"] * 2),
        (lambda x: x if x.sum() > 0 else -x, ["_local_scalar_dense"]),
        (lambda x: x * float(x.mean()), ["_local_scalar_dense"]),
        (lambda x: x[x[:, 0] > 0], ["index"]),
        (lambda x: x[(x[:, 0] > 0).nonzero().squeeze(1)], ["nonzero"]),
        (lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=NAME), ["copy to the device"]),
        (lambda x: torch.from_numpy(x.cpu().numpy()).to(NAME), ["copy from", "copy to"]),
        (lambda x: x * x.tolist()[0][0], ["copy from the device"]),
    ],
)
def test_a_look_or_a_copy_that_is_slipped_into_a_step_is_seen(spoil, named):
    for found in planted(spoil):
        assert len(found) == len(named)
        assert all(one.startswith(name) for one, name in zip(found, named, strict=True))
    assert planted(lambda x: x) == [[], []]


@inside
def test_a_look_that_is_slipped_into_sampling_or_comparing_is_seen(monkeypatch):
    def looked(device, n):
        return sampled(device, n, keep=lambda x: x * x.sum().isfinite().item())

    assert waits_of(looked, 6) - waits_of(looked, 4) == {"_local_scalar_dense": 2}
    real = comparisons.noised
    monkeypatch.setattr(
        comparisons, "noised", lambda *args: (real(*args)[0], real(*args)[1].cpu().to(NAME))
    )
    more = waits_of(LOOPS["Algorithm 1"], 6) - waits_of(LOOPS["Algorithm 1"], 4)
    assert more == {"copy from the device": 2, "copy to the device": 2}


@inside
def test_two_devices_do_not_mix():
    with accelerator():
        x, t = torch.zeros(2, H, D).to(NAME), torch.zeros(2, dtype=torch.long).to(NAME)
        with pytest.raises(InputError, match="x_t of cpu is not allowed: the network's own dev"):
            model(6, NAME).x0(torch.zeros(2, H, D), t)
        with pytest.raises(RuntimeError, match="all tensors must be on one device"):
            x[torch.zeros(2, dtype=torch.long)]
        with pytest.raises(RuntimeError, match="a generator of cpu draws nothing on"):
            torch.randn(2, device=NAME, generator=stream(0, 0))
        with pytest.raises(RuntimeError, match="numpy"):
            x.numpy()
        assert torch.equal((x + 1).cpu(), torch.ones(2, H, D))


# Tables and units go where the model is, once.


@inside
def test_tables_are_copied_once_whoever_noised_before():
    """diffusers' own noise moves the base's table alone: the second check met two devices."""
    with accelerator() as mode:
        base, expert = model(6, NAME), model(6, NAME, 1)
        assert base.scheduler is not expert.scheduler
        data = [torch.randn(9, H, D).to(NAME) for _ in range(2)]
        for seed in (0, 1):
            before = len(mode.waits)
            found = comparisons.algorithm1(base, expert, *data, size=10, seed=seed, batch=5)
        assert "copy to the device" not in mode.waits[before:]
        for part in (found.x, found.t, found.base, found.expert):
            assert part.device.type == NAME
        assert base.scheduler.alphas_cumprod.device.type == "cpu"
        tables = base.schedule.tables(found.x)
        assert given(base, found.x[:, 0, :3]).schedule.tables(found.x)[0] is tables[0]
        unit = reward(6, NAME).network.unit
        assert extraction.unit_of(training.Stack([reward(6, NAME).network])).device == unit.device
