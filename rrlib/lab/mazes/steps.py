"""What one step of training asks of a machine: operations and milliseconds, by kind of step."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import flop_registry

from rrlib import training
from rrlib.lab import store
from rrlib.lab.mazes.experiments import MazeExperiment
from rrlib.mazes.world import OBSERVATION
from rrlib.method import comparisons, denoisers, extraction
from rrlib.plans import conditioning

Step = Callable[[], object]


class _Operations(TorchDispatchMode):
    """Counts the floating-point operations of products and convolutions.

    torch's own FlopCounterMode does, too, but not where a gradient is taken within a step.
    """

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if counts := flop_registry.get(function._overloadpacket):
            self.count += counts(*args, **(kwargs or {}), out_val=out)
        return out


def operations(step: Step) -> float:
    """Billions of operations of a step."""
    with _Operations() as counted:
        step()
    return counted.count / 1e9


def milliseconds(step: Step) -> float:
    """Median time of a step on this machine, as busy as it is."""
    timer = Timer("step()", globals={"step": step})
    return 1e3 * timer.blocked_autorange(min_run_time=0.5).median


def kinds(e: MazeExperiment, seed: int) -> dict[str, Step]:
    """Steps of training on the CPU by name: a reward's, a diffuser's, and several stacked."""
    pair = store.obtain(e.base), store.obtain(e.expert)
    plans = [d.split().held_out_plans(256, seed)[0] for d in (e.base, e.expert)]
    reward = store.obtain(e.rewards)[0]
    read = comparisons.algorithm1(*pair, *plans, size=512, seed=seed)
    pool = read.pool(reward.target, reward.place).cut(reward.network.window)
    (one,), five = _copies(reward.network, 1), training.Stack(_copies(reward.network, 5))
    model = pair[0].network
    (denoiser,), four = _copies(model, 1), training.Stack(_copies(model, 4))
    draws = training.stream(seed, "costs")
    square = torch.randn(1024, 1024)

    def literal() -> None:
        places = reward.target, reward.place
        extraction.literal_loss(one, *pair, *plans, 256, draws, *places).backward()

    def fit(network: nn.Module, n: int) -> None:
        rows = torch.randint(len(pool), (n,), generator=draws)
        extraction.loss(network, pool.x[rows], pool.t[rows], pool.target[rows]).backward()

    def teach(network: nn.Module, n: int) -> None:
        taught = denoisers.Denoiser(network, pair[0].scheduler)
        conditioning.plan_loss(taught, plans[0][:n], OBSERVATION, draws, e.base.given).backward()

    return {
        "product of two 1024 x 1024 matrices": lambda: square @ square,
        "reward, Algorithm 1 as printed, batch 256": literal,
        "reward, from the pool, batch 256": partial(fit, one, 256),
        "five rewards stacked, batch 256 each": partial(fit, five, 5 * 256),
        "diffuser, batch 32": partial(teach, denoiser, 32),
        "four diffusers stacked, batch 32 each": partial(teach, four, 4 * 32),
    }


def _copies(network: nn.Module, n: int) -> list[nn.Module]:
    return [copy.deepcopy(network).requires_grad_() for _ in range(n)]
