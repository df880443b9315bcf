"""The training loop: against hand-made Adam and averages, and against its own interruption."""

import copy
import math
import multiprocessing
import signal
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.method import extraction
from rrlib.method.pools import Pool
from rrlib.plans.rewards import WindowReward
from rrlib.tensor_files import read_tensors
from rrlib.training import Progress, Stack, finish, stream, train

# Children that begin where this process is: they need not import torch first.
FORK = multiprocessing.get_context("fork")
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


def test_the_rate_is_annealed_unless_told():
    plain, annealed, even = network(), network(), network()
    run(plain, steps=10)
    run(annealed, steps=10, decay=True)
    run(even, steps=10, decay=False)
    assert same(plain, annealed) and not same(plain, even)


def test_the_average_that_all_recipes_use_is_the_papers():
    """The default, 0.995; a run long enough that the first steps' smaller decay is over."""
    module, steps = network(), 1000
    average = []
    for item in train(module, lambda draws: module[0].weight.sum(), steps=steps, **OPTIONS):
        now = module[0].weight.detach().clone()
        keep = min(0.995, item.step / (9 + item.step)) if average else 0.0
        average = [keep * (average[0] if average else 0) + (1 - keep) * now]
    assert_close(module[0].weight.detach(), average[0], rtol=1e-3, atol=1e-6)
    assert (average[0] - now).abs().max() > 1e-4  # and not the weights of the last step


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
    saved, about = read_tensors(path)
    assert about["step"] == "8" and set(about) == {"step", "settings"}
    assert {name.split(".")[0] for name in saved} == {"module", "average", "adam"}


def half_way(path: Path) -> list[Progress]:
    """A run that stops after its checkpoint of step 8; it would go on to 12."""
    return run(network(), 9, steps=12, checkpoint=path, every=4)


def flipped(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


def unchecked(path: Path) -> None:
    """As an earlier rrlib wrote it."""
    save_file(load_file(path), path, {"step": "8"})


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte less": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a bit of its header": lambda path: flipped(path, 300),
    "a bit of its step": lambda path: flipped(path, path.read_bytes().index(b'"step":"8') + 8),
    "a bit of its end": lambda path: flipped(path, -1),
    "a bit of its middle": lambda path: flipped(path, -path.stat().st_size // 2),
    "unchecked": unchecked,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_run_begins_anew(tmp_path, damage, capsys):
    whole, path = network(), tmp_path / "run.safetensors"
    run(whole, steps=12)
    half_way(path)
    DAMAGES[damage](path)
    again = network()
    assert run(again, steps=12, checkpoint=path, every=4)[0].step == 1
    assert same(again, whole)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and str(path) in told[0] and "made again" in told[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".{path.name}.damaged", path.name]


@pytest.mark.parametrize(
    "other",
    [
        nn.Sequential(nn.Linear(2, 9), nn.SiLU(), nn.Linear(9, 1)),
        nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1), nn.Linear(1, 1)),
        nn.Sequential(nn.Linear(2, 1)),
    ],
)
def test_a_checkpoint_of_another_network_leaves_no_trace_in_this_one(tmp_path, other, capsys):
    path = tmp_path / "run.safetensors"
    half_way(path)
    alone = copy.deepcopy(other)
    run(alone, steps=12)
    run(other, steps=12, checkpoint=path, every=4)
    assert same(other, alone)
    assert "of another network" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 13), ("seed", 8), ("learning_rate", 0.5), ("decay", False)]
)
def test_a_checkpoint_of_a_run_with_other_settings_is_refused(tmp_path, name, value):
    path = tmp_path / "run.safetensors"
    half_way(path)
    content = path.read_bytes()
    options = {**OPTIONS, "steps": 12, "checkpoint": path, "every": 4, name: value}
    module = network()
    with pytest.raises(InputError, match=rf"^checkpoint='.*' is not allowed: .* with {name}="):
        list(train(module, regression(module), **options))
    assert path.read_bytes() == content and same(module, network())


def test_a_checkpoint_that_does_not_say_what_it_was_fitted_to_is_set_aside(tmp_path, capsys):
    path = tmp_path / "run.safetensors"
    half_way(path)  # it says its settings and nothing about the data
    again = run(network(), steps=12, checkpoint=path, every=4, about={"data": [1.0]})
    assert again[0].step == 1 and "does not say what it was fitted to" in capsys.readouterr().err
    options = {"steps": 12, "checkpoint": path, "every": 4}
    assert run(network(), about={"data": [1.001]}, **options)[0].step == 9  # but for rounding
    with pytest.raises(InputError, match="it is of a run with other data; another name"):
        run(network(), about={"data": [1.1]}, **options)


def test_a_parameter_without_a_gradient_does_not_stop_a_resume(tmp_path):
    def idle() -> nn.Module:
        module = network()
        module.idle = nn.Parameter(torch.ones(3))
        return module

    def loss_of(module: nn.Module):
        def loss(generator):
            x = torch.randn(4, 2, generator=generator)
            return module[:3](x).square().mean()

        return loss

    whole, path = idle(), tmp_path / "run.safetensors"
    options = {**OPTIONS, "steps": 12}
    list(train(whole, loss_of(whole), **options))
    options |= {"checkpoint": path, "every": 4}
    stopped, resumed = idle(), idle()
    list(islice(train(stopped, loss_of(stopped), **options), 9))
    assert next(train(resumed, loss_of(resumed), **options)).step == 9
    resumed = idle()
    list(train(resumed, loss_of(resumed), **options))
    assert same(resumed, whole)


def to_the_end(folder: Path, halt: int = 0, here=None) -> None:
    """A run of 100 steps that leaves its end in a folder; at step `halt` it waits for ever."""
    module = network()
    options = {"steps": 100, "checkpoint": folder / "checkpoint.safetensors", "every": 20}
    for progress in train(module, regression(module), **OPTIONS, **options):
        if progress.step == halt:
            here.set()
            signal.pause()
    save_file({**module.state_dict(), "loss": progress.loss}, folder / "end.safetensors")


@pytest.mark.lengthy
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_killed_run_started_again_writes_the_same_bytes(tmp_path):
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    for folder in (killed, alone):
        folder.mkdir()
    here = FORK.Event()
    child = FORK.Process(target=to_the_end, args=(killed, 50, here), daemon=True)
    child.start()
    while not here.wait(0.05):
        assert child.is_alive()
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert [p.name for p in killed.iterdir()] == ["checkpoint.safetensors"]
    for folder in (killed, alone):
        to_the_end(folder)
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


# Stacks ----------------------------------------------------------------------------------------

K, B = 3, 16


class Scaled(nn.Module):
    """A network whose buffer has a say in what it says; no two seeds agree in anything."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1)).double()
        self.register_buffer("scale", torch.tensor(1.0 + seed, dtype=torch.float64))

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return self.scale * self.inner(x).squeeze(-1) + shift


def shares(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """K batches of B points one after another, and a number for each."""
    x = torch.randn(K * B, 2, generator=generator, dtype=torch.float64)
    return x, torch.randn(K * B, generator=generator, dtype=torch.float64)


def error(module: nn.Module, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return (module(x, shift) - x.prod(1)).square().mean()


def share_of(k: int, batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(part[k * B : (k + 1) * B] for part in batch)


def test_a_stack_says_of_each_share_what_its_member_says():
    members = [Scaled(k) for k in range(K)]
    stack, batch = Stack(members), shares(stream(0, 0))
    assert len(stack) == K
    alone = [member(*share_of(k, batch)) for k, member in enumerate(members)]
    assert_close(stack(*batch), torch.cat(alone), rtol=1e-12, atol=1e-12)
    for k in range(K):  # so that a member in another's place would be seen
        assert (alone[k] - members[k - 1](*share_of(k, batch))).abs().max() > 0.1


def test_a_stack_of_one_is_its_member():
    batch, member = shares(stream(0, 0)), Scaled(4)
    assert_close(Stack([member])(*batch), member(*batch), rtol=1e-12, atol=1e-12)


def test_members_come_back_as_they_went_in_and_share_nothing_with_the_stack():
    members = [Scaled(k) for k in range(K)]
    stack = Stack(members)
    found = stack.members()
    for theirs, ours in zip(members, found, strict=True):
        assert list(theirs.state_dict()) == list(ours.state_dict())
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value), name
        assert all(p.requires_grad and p.is_leaf for p in ours.parameters())
    before = stack(*shares(stream(0, 0)))
    with torch.no_grad():
        for module in (*members, *found):
            for value in (*module.parameters(), *module.buffers()):
                value.add_(1)
    assert torch.equal(stack(*shares(stream(0, 0))), before)


def test_a_stacks_parameters_are_its_members_and_nothing_else():
    stack = Stack([Scaled(k) for k in range(K)])
    assert [tuple(p.shape) for p in stack.parameters()] == [(K, 8, 2), (K, 8), (K, 1, 8), (K, 1)]
    assert list(stack.state_dict()) == [f"weights.{i}" for i in range(4)]


def test_a_stacks_units_move_and_convert_with_it():
    stack = Stack([Scaled(k) for k in range(K)]).float()
    assert {value.dtype for value in (*stack.parameters(), *stack.buffers())} == {torch.float32}
    assert [tuple(value.shape) for value in stack.buffers()] == [(K,)]
    assert [member.scale.dtype for member in stack.members()] == [torch.float32] * K


def test_a_batch_that_cannot_be_shared_is_refused():
    batch = shares(stream(0, 0))
    with pytest.raises(InputError, match=r"^batch of 47 is not allowed: a multiple of the 3 modu"):
        Stack([Scaled(k) for k in range(K)])(*(part[:-1] for part in batch))


def test_gradient_descent_on_a_stack_is_gradient_descent_on_each_member():
    """The mean over K B rows has 1 / K of each member's own gradient, so K times the rate."""
    members = [Scaled(k) for k in range(K)]
    stack = Stack(members)
    together = torch.optim.SGD(stack.parameters(), lr=0.02 * K)
    alone = [torch.optim.SGD(member.parameters(), lr=0.02) for member in members]
    start = [member.inner[0].weight.clone() for member in members]
    for step in range(20):
        batch = shares(stream(1, step))
        together.zero_grad()
        error(stack, *batch).backward()
        together.step()
        for k, (member, optimiser) in enumerate(zip(members, alone, strict=True)):
            optimiser.zero_grad()
            error(member, *share_of(k, batch)).backward()
            optimiser.step()
    for before, theirs, ours in zip(start, members, stack.members(), strict=True):
        for name, value in theirs.state_dict().items():
            assert_close(ours.state_dict()[name], value, rtol=1e-10, atol=1e-12)
        assert (theirs.inner[0].weight - before).abs().max() > 0.01


@pytest.mark.parametrize(
    ("part", "tolerance"),
    [
        # A K-th of the loss is the member's very part of the mean: rounding apart, the same Adam.
        (1 / K, 1e-10),
        # Its whole loss: Adam divides gradients by their size + eps, and eps = 1e-8 counts K times
        # against a K-th. With gradients above 1e-3, 30 steps of at most 1e-2 then differ by at
        # most 30 * 1e-2 * (K - 1) * 1e-8 / 1e-3 = 6e-6.
        (1.0, 6e-6),
    ],
)
def test_training_a_stack_is_training_each_member_on_its_share(part, tolerance):
    stack = Stack([Scaled(k) for k in range(K)])
    options = {"steps": 30, **OPTIONS}
    progress = list(train(stack, lambda draws: error(stack, *shares(draws)), **options))
    losses = torch.zeros(30, dtype=torch.float64)
    for k, ours in enumerate(stack.members()):
        alone = Scaled(k)

        def loss(generator, k=k, alone=alone):
            return part * error(alone, *share_of(k, shares(generator)))

        losses += torch.stack([p.loss for p in train(alone, loss, **options)]) / part / K
        for name, value in alone.state_dict().items():
            assert_close(ours.state_dict()[name], value, rtol=0, atol=tolerance)
        assert ours.scale == 1 + k  # a buffer is nobody's to train
        assert (ours.inner[0].weight - Scaled(k).inner[0].weight).abs().max() > 0.01
    assert_close(torch.stack([p.loss for p in progress]), losses, rtol=1e-4, atol=0)


T = 5


def rewards() -> list[WindowReward]:
    """Rewards of one shape; weights and units tell them apart."""
    found = []
    for k in range(K):
        torch.manual_seed(k)
        unit = torch.linspace(0.5, 1.5, T, dtype=torch.float64) * (k + 1)
        found.append(WindowReward(2, 3, unit, hidden=(8, 4)).double())
    return found


def pool(n: int = 50) -> Pool:
    x, target = torch.randn(2, n, 3, 2, generator=stream(7, 0), dtype=torch.float64)
    return Pool(x, torch.arange(n) % T, target + x.sin())


def test_a_second_derivative_goes_through_a_stack():
    """L_RRF's own: gradients by the weights of a gradient by x, and by x once more."""
    members, all_ = rewards(), pool(K * B)
    stack = Stack(members)
    ours = extraction.loss(stack, all_.x, all_.t, all_.target)
    gradients = torch.autograd.grad(ours, list(stack.weights)[:-1])  # the last bias has no say
    x = all_.x.clone().requires_grad_()
    first = torch.autograd.grad(stack(x, all_.t).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), x)[0]
    losses = []
    for k, member in enumerate(members):
        x, t, target = share_of(k, (all_.x, all_.t, all_.target))
        losses.append(extraction.loss(member, x, t, target))
        theirs = torch.autograd.grad(losses[k], list(member.parameters())[:-1])
        for a, b in zip(gradients, theirs, strict=True):
            assert_close(K * a[k], b, rtol=1e-9, atol=1e-12)
            assert b.abs().max() > 1e-6
        x = x.clone().requires_grad_()
        once = torch.autograd.grad(member(x, t).sum(), x, create_graph=True)[0]
        twice = torch.autograd.grad(once.square().sum(), x)[0]
        assert_close(first[k * B : (k + 1) * B], once, rtol=1e-9, atol=1e-12)
        assert_close(second[k * B : (k + 1) * B], twice, rtol=1e-9, atol=1e-12)
    assert_close(ours, torch.stack(losses).mean())


FIT = {"learning_rate": 1e-2, "seed": 3}


@pytest.mark.lengthy
def test_fitting_a_stack_is_fitting_each_member_to_its_share_of_the_rows():
    stack, points = Stack(rewards()), pool()
    for _ in extraction.fit(stack, points, steps=30, batch=K * B, **FIT):
        pass
    scale = points.scale(T)
    for k, (ours, alone) in enumerate(zip(stack.members(), rewards(), strict=True)):

        def loss(generator, k=k, alone=alone):
            rows = torch.randint(len(points), (K * B,), generator=generator)[k * B : (k + 1) * B]
            x = points.x[rows].requires_grad_()
            gradient = torch.autograd.grad(alone(x, points.t[rows]).sum(), x, create_graph=True)[0]
            error = (gradient - points.target[rows]) / scale[points.t[rows]][:, None, None]
            return error.square().sum() / (K * B)

        for _ in train(alone, loss, steps=30, **FIT):
            pass
        for name, value in alone.state_dict().items():
            assert_close(ours.state_dict()[name], value, rtol=0, atol=1e-9)
        assert (ours.g[0].weight - rewards()[k].g[0].weight).abs().max() > 0.01


@pytest.mark.slow
def test_a_stopped_fit_of_a_stack_goes_on_to_the_same_bytes(tmp_path):
    def fitted(stack: Stack, stop: int | None, **options) -> tuple[int, list[bytes]]:
        progress = extraction.fit(stack, pool(), steps=520, batch=K * 2, **FIT, **options)
        steps = [p.step for p in islice(progress, stop)]
        assert steps[-1] == (510 if stop else 520)
        return steps[0], [save(member.state_dict()) for member in stack.members()]

    first, whole = fitted(Stack(rewards()), None)
    path = tmp_path / "rewards.safetensors"
    assert fitted(Stack(rewards()), 510, checkpoint=path)[1] != whole
    assert read_tensors(path)[1]["step"] == "500"
    other = Stack(rewards())
    with torch.no_grad():
        for weight in other.parameters():
            weight.normal_()  # another start
    next_, resumed = fitted(other, None, checkpoint=path)
    assert (first, next_) == (1, 501)
    assert resumed == whole
    assert len({*whole}) == K


def test_a_step_asks_for_the_gradient_of_what_learns_and_of_nothing_else():
    torch.manual_seed(0)
    module, batches = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), []
    module[0].requires_grad_(False)
    before = copy.deepcopy(module.state_dict())

    def loss(draws: torch.Generator) -> torch.Tensor:
        batches.append(torch.randn(5, 3, generator=draws).requires_grad_())
        return module(batches[-1]).square().mean()

    finish(train(module, loss, steps=3, learning_rate=0.1, seed=0), "frozen")
    assert [x.grad for x in batches] == [None] * 3
    moved = {name for name, value in module.state_dict().items() if (value != before[name]).any()}
    assert moved == {"1.weight", "1.bias"}
