"""The way of the data on an accelerator, without one: a fake device that computes shapes alone.

Whatever mixes two devices raises there, and so does whatever asks for a value, which on a real
device waits for all that was begun. The one look for numbers that are not finite is counted.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils import backend_registration

from rrlib import comparisons, extraction
from rrlib import guidance as steering
from rrlib.comparisons import Pool
from rrlib.denoisers import Denoiser
from rrlib.plans.conditioning import ends_given, first_given, given, hold
from rrlib.plans.networks import ChannelsFirst, PlanNetwork
from rrlib.plans.perceptron import PlanPerceptron
from rrlib.plans.rewards import WindowReward
from rrlib.rewards import RelativeReward
from rrlib.schedules import cosine_scheduler
from rrlib.training import Stack

FAKE, STEPS, H, D = "fake_accelerator", 6, 8, 5


# Torch's threads learn which devices there are at the first backward pass of a process, so these
# tests have one of their own, that `test_the_fake_device_in_a_process_of_its_own` starts.
INSIDE = "RRLIB_FAKE_DEVICE"
inside = pytest.mark.skipif(INSIDE not in os.environ, reason="run in a process of its own")


@pytest.mark.skipif(INSIDE in os.environ, reason="the process of its own")
def test_the_fake_device_in_a_process_of_its_own():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, __file__], env=os.environ | {INSIDE: "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-5000:]


class Draws:
    """Stands in for a generator of the fake device."""

    device = torch.device("cpu")


@pytest.fixture(scope="module")
def device():
    backend_registration._setup_privateuseone_for_python_backend(FAKE)
    Draws.device = torch.device(FAKE, 0)


def there(make):
    """A function that draws, of the fake device's generators alone."""

    def draw(*size, generator=None, **options):
        if generator is not None:
            asked = torch.device(options.get("device", "cpu"))
            assert isinstance(generator, Draws) and asked.type == FAKE, "another device's draws"
        return make(*size, **options)

    return draw


@pytest.fixture
def looks(device, monkeypatch):
    """On the fake device, with its random numbers; holds what was looked at for finite numbers."""
    seen = []
    for name in ("randn", "rand", "randint"):
        monkeypatch.setattr(torch, name, there(getattr(torch, name)))
    monkeypatch.setattr(comparisons, "stream", lambda *_: Draws())
    monkeypatch.setattr(comparisons, "check_finite", lambda name, *_: seen.append(name))
    monkeypatch.setattr(comparisons, "check_differ", lambda *_: seen.append("difference"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield seen


def on(module: torch.nn.Module) -> torch.nn.Module:
    """What `.to` does, which fake tensors do not allow."""
    for part in module.modules():
        for values in (part._parameters, part._buffers):
            for name, value in values.items():
                moved = value.detach().to(FAKE)
                values[name] = torch.nn.Parameter(moved) if values is part._parameters else moved
    return module


def model(make=lambda: PlanNetwork(D, (8, 16))) -> Denoiser:
    with unset_fake_temporarily():
        made = Denoiser(make(), cosine_scheduler(STEPS, clip=False))
    on(made.network)
    return made


def is_there(*values: torch.Tensor) -> bool:
    return all(value.device.type == FAKE for value in values)


@inside
def test_two_models_with_a_scheduler_each_are_compared_twice(looks):
    """diffusers' own noise moves the base's table alone: the second check met two devices."""
    base, expert = model(), model()
    assert base.scheduler is not expert.scheduler
    data = torch.zeros(9, H, D, device=FAKE), torch.zeros(7, H, D, device=FAKE)
    for seed in (0, 1):
        found = comparisons.algorithm1(
            base, expert, *data, size=10, seed=seed, batch=5, condition=ends_given(3)
        )
        assert is_there(found.x, found.t, found.base, found.expert)
        assert found.x.shape == (10, H, D)
        for target in ("score", "mean"):
            pool = found.pool(target, "mu_base")
            assert is_there(pool.x, pool.t, pool.target)
    # Both data sets once a call, both answers once a batch, all answers once: nothing else.
    once = ["base_data", "expert_data", *["base", "expert"] * 2, "difference"]
    assert looks == once * 2
    assert base.scheduler.alphas_cumprod.device.type == "cpu"


@inside
def test_controlled_and_sampled_comparisons_stay_there(looks):
    pair = (
        model(lambda: PlanPerceptron(D, H, STEPS, 16, 1)),
        model(lambda: PlanPerceptron(D, H, STEPS, 16, 1)),
    )
    data = torch.zeros(9, H, D, device=FAKE), torch.zeros(7, H, D, device=FAKE)
    found = comparisons.algorithm1(*pair, *data, size=4, seed=0, condition=first_given(3))
    assert is_there(found.x, found.base, found.expert)
    found = comparisons.algorithm2(*pair, (H, D), runs=2, seed=0, device=FAKE)
    assert is_there(found.x, found.t, found.expert) and len(found.t) == 2 * STEPS


def rewards(k: int) -> list[WindowReward]:
    with unset_fake_temporarily():
        return [WindowReward(D, 4, torch.ones(STEPS), hidden=(8,)) for _ in range(k)]


def stack() -> Stack:
    with unset_fake_temporarily():
        return Stack(rewards(2))


@inside
def test_the_loss_of_one_reward_and_of_a_stack_is_there(looks):
    x, t = torch.zeros(6, 4, D, device=FAKE), torch.zeros(6, dtype=torch.long, device=FAKE)
    for network in (rewards(1)[0], stack()):
        network = on(network)
        assert is_there(*network.parameters(), *network.buffers())
        value = extraction.loss(network, x, t, x)
        value.backward()
        assert is_there(value, *(p.grad for p in network.parameters() if p.grad is not None))
    pool = Pool(x, t, x).cut(2).average(2)
    assert is_there(pool.x, pool.t, pool.target, pool.scale(STEPS))
    assert is_there(extraction.explained(on(rewards(1)[0]), Pool(x, t, x), STEPS))


@inside
@pytest.mark.parametrize("place", ["x_t", "mu_base"])
@pytest.mark.parametrize("target", ["score", "mean"])
def test_sampling_steered_and_given_asks_for_no_value(looks, target, place):
    first = torch.zeros(3, 3, device=FAKE)
    reward = RelativeReward(on(rewards(1)[0]), target, place)
    start = torch.zeros(3, H, D, device=FAKE)
    base = given(model(), first, first)
    options = {"reward": reward, "keep": hold(first), "num_inference_steps": 3}
    for _, x in steering.denoise(base, start, Draws(), **options):
        assert is_there(x) and x.shape == start.shape


@inside
def test_tables_are_copied_to_a_device_once(looks):
    base, x, t = (
        model(),
        torch.zeros(2, H, D, device=FAKE),
        torch.zeros(2, dtype=torch.long, device=FAKE),
    )
    base.mean(x, t)
    tables = base.schedule.tables(x)
    assert is_there(*tables)
    given(base, x[:, 0, :3]).score(x, t)
    assert base.schedule.tables(x)[0] is tables[0]
    assert given(base, x[:, 0, :3]).schedule is base.schedule


@inside
def test_a_turned_network_is_asked_there(looks):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = torch.nn.Conv1d(D, D, 1)

        def forward(self, x, t):
            return self.mix(x)

    turned = model(lambda: ChannelsFirst(Plain()))
    x, t = torch.zeros(2, H, D, device=FAKE), torch.zeros(2, dtype=torch.long, device=FAKE)
    assert is_there(turned.x0(x, t))
