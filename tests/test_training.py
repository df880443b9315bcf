"""The training loop: against hand-made Adam and averages, and against its own interruption."""

import math
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.training import Progress, finish, stream, train

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = {"learning_rate": 1e-2, "seed": 3}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))


def regression(module: nn.Module):
    """Fit x1 x2 on points drawn afresh at each step."""

    def loss(generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(16, 2, generator=generator)
        return (module(x).squeeze(1) - x.prod(1)).square().mean()

    return loss


def run(module: nn.Module, stop: int | None = None, **options) -> list[Progress]:
    return list(islice(train(module, regression(module), **{**OPTIONS, **options}), stop))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def by_hand(steps: int, ema: float, decay: bool) -> tuple[list[torch.Tensor], list[float]]:
    """Adam by its formulas (Kingma and Ba, Algorithm 1), the average by its recursion."""
    module = network()
    parameters, loss = list(module.parameters()), regression(module)
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    average: list[torch.Tensor] = []
    losses = []
    for step in range(1, steps + 1):
        rate = OPTIONS["learning_rate"]
        if decay:
            rate *= (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        value = loss(stream(OPTIONS["seed"], step))
        losses.append(value.item())
        gradients = torch.autograd.grad(value, parameters)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            if step == 1:
                average = [p.clone() for p in parameters]
            else:
                pairs = zip(average, parameters, strict=True)
                keep = min(ema, step / (9 + step))
                average = [keep * a + (1 - keep) * p for a, p in pairs]
    return average, losses


@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("ema", [0.9, 0.0])
def test_the_end_is_the_average_of_adams_weights(ema, decay):
    module = network()
    progress = run(module, steps=30, ema=ema, decay=decay)
    average, losses = by_hand(30, ema, decay)
    assert [(p.step, p.steps) for p in progress] == [(i, 30) for i in range(1, 31)]
    assert_close([float(p.loss) for p in progress], losses, rtol=1e-3, atol=1e-5)
    assert_close([p.detach() for p in module.parameters()], average, rtol=1e-3, atol=1e-4)


def test_the_average_and_the_annealing_change_the_end():
    """Otherwise the test above could not tell them apart."""
    ends = [by_hand(30, *options)[0][0] for options in ((0.9, True), (0.0, True), (0.9, False))]
    for i, j in ((0, 1), (0, 2)):
        assert (ends[i] - ends[j]).abs().max() > 1e-3


def test_buffers_pass_through_the_average():
    module = network()
    module.register_buffer("scale", torch.tensor([2.0, 3.0]))
    module.register_buffer("count", torch.tensor(7))
    run(module, steps=3)
    assert module.scale.tolist() == [2, 3] and module.count == 7


@pytest.mark.parametrize("stop", [25, 30, 59])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, stop):
    alone = network()
    whole = run(alone, steps=60)
    path = tmp_path / "run.safetensors"
    options = {"steps": 60, "checkpoint": path, "every": 10}
    interrupted = network()
    run(interrupted, stop, **options)
    assert path.exists()
    torch.manual_seed(99)
    resumed = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))  # another start
    rest = run(resumed, **options)
    assert rest[0].step == stop // 10 * 10 + 1
    assert same(resumed, alone)
    assert not same(interrupted, alone)
    assert torch.equal(rest[-1].loss, whole[-1].loss)


def test_checkpoints_do_not_change_the_run(tmp_path):
    plain, saved = network(), network()
    run(plain, steps=25)
    run(saved, steps=25, checkpoint=tmp_path / "a.safetensors", every=5)
    assert same(plain, saved)


def test_a_checkpoint_is_one_safetensors_file(tmp_path):
    path = tmp_path / "run.safetensors"
    run(network(), 9, steps=20, checkpoint=path, every=4)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"step": "8"}
        groups = {name.split(".")[0] for name in file.keys()}  # noqa: SIM118
    assert groups == {"module", "average", "adam"}


SCRIPT = """
import sys, time
from pathlib import Path
import torch
from safetensors.torch import save_file
from torch import nn
from rrlib.training import train

folder, pause = Path(sys.argv[1]), float(sys.argv[2])
torch.manual_seed(0)
module = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1))

def loss(generator):
    x = torch.randn(32, 2, generator=generator)
    return (module(x).squeeze(1) - x.prod(1)).square().mean()

checkpoint = folder / "checkpoint.safetensors"
for progress in train(module, loss, steps=300, learning_rate=1e-2, seed=1,
                      checkpoint=checkpoint, every=20):
    time.sleep(pause)
    last = progress
save_file({**module.state_dict(), "loss": last.loss}, folder / "end.safetensors")
"""


def start(folder: Path, pause: float) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), str(pause)]
    return subprocess.Popen(command, env=environment)


@pytest.mark.slow
def test_a_killed_run_started_again_writes_the_same_bytes(tmp_path):
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    process = start(killed, pause=0.05)
    deadline = time.monotonic() + 60
    while not (killed / "checkpoint.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=10) == -signal.SIGKILL
    assert not (killed / "end.safetensors").exists()
    for folder in (killed, alone):
        assert start(folder, pause=0).wait(timeout=60) == 0
    assert (killed / "end.safetensors").read_bytes() == (alone / "end.safetensors").read_bytes()


def test_stream_is_a_function_of_seed_and_step_alone():
    def draws(seed, step):
        return torch.randint(2**62, (4,), generator=stream(seed, step))

    torch.manual_seed(0)
    first = draws(1, 2)
    torch.manual_seed(5)
    assert torch.equal(first, draws(1, 2))
    # (1, 12) and (11, 2) would meet if the two were merely written one after the other.
    keys = [(1, 2), (2, 1), (1, 12), (11, 2), (0, 0), (-1, 2), (3, 0), (0, 3)]
    assert len({tuple(draws(*key).tolist()) for key in keys}) == len(keys)


@pytest.mark.parametrize("steps", [0, -5])
def test_steps_below_one_are_refused(steps):
    module = network()
    with pytest.raises(InputError, match=rf"^steps={steps} is not allowed: at least 1 step"):
        run(module, steps=steps)
    assert same(module, network())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path, bad):
    module, path = network(), tmp_path / "run.safetensors"

    def loss(generator):
        return module(torch.ones(1, 2)).sum() * bad

    with pytest.raises(FloatingPointError, match=r"^the loss is .* at step 4"):
        list(train(module, loss, steps=10, checkpoint=path, every=4, **OPTIONS))
    assert not path.exists()
    with pytest.raises(FloatingPointError, match="at step 2"):
        list(train(module, loss, steps=2, **OPTIONS))


def test_finish_runs_to_the_end_and_prints_nothing_unwatched(capsys):
    module, other = network(), network()
    finish(train(module, regression(module), steps=5, **OPTIONS), "a label")
    run(other, steps=5)
    assert same(module, other)
    assert capsys.readouterr() == ("", "")
