"""Files of rewards: what is written is read, and nothing else is."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.images.rewards import EncoderReward
from rrlib.method.networks.files import KINDS
from rrlib.method.networks.sums import Rescaled, WeightedSum
from rrlib.method.reward_files import load_reward, load_rewards, save_rewards
from rrlib.method.rewards import RelativeReward
from rrlib.plans.perceptron import PlanPotential
from rrlib.plans.rewards import (
    ConditionalReward,
    ContextReward,
    PlanValue,
    StartReward,
    WindowReward,
)
from rrlib.tensor_files import write_tensors
from rrlib.training import stream

OPTIONS = {
    "a goal, seed 0": {"strided": True, "hidden": (16, 8)},
    "a goal, seed 1": {"activation": "leaky_relu", "average": 2},
}
ABOUT = {name: {"maze": "open", "low": [0.1, float(np.float32(1 / 3))]} for name in OPTIONS}


def rewards() -> dict[str, RelativeReward]:
    found = {}
    for k, (name, options) in enumerate(OPTIONS.items()):
        torch.manual_seed(k)
        network = WindowReward(3, 4, torch.linspace(1e-9, 2, 10), **options)
        found[name] = RelativeReward(network, "mean" if k else "score", "mu_base")
    return found


def test_rewards_come_back_rounded_to_half_precision(tmp_path):
    made, path = rewards(), tmp_path / "new" / "rewards.safetensors"
    save_rewards(path, made, ABOUT)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    found = load_rewards(path)
    assert list(found) == list(made)
    x, t = torch.randn(5, 8, 3, generator=stream(0, "x")), torch.tensor([0, 1, 4, 8, 9])
    for name, (reward, about) in found.items():
        assert about == ABOUT[name]
        assert (reward.target, reward.place) == (made[name].target, made[name].place)
        for key, value in made[name].network.state_dict().items():
            kept = value if key == "unit" else value.half().float()
            assert torch.equal(reward.network.state_dict()[key], kept)
        with torch.no_grad():
            assert_close(reward(x, t), made[name](x, t), atol=2e-3, rtol=2e-2)


def test_a_file_that_holds_no_rewards_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none.safetensors' does not exist"):
        load_rewards(tmp_path / "none.safetensors")
    text, other = tmp_path / "text.safetensors", tmp_path / "other.safetensors"
    text.write_text("no tensors", encoding="utf-8")
    save_file({"a": torch.ones(1)}, other)
    cut = tmp_path / "cut.safetensors"
    save_rewards(cut, rewards(), ABOUT)
    cut.write_bytes(cut.read_bytes()[:-100])
    foreign = tmp_path / "foreign.safetensors"
    write_tensors(foreign, {"a": torch.ones(1)}, {"rewards": "[]"})
    reasons = {text: "is damaged", other: "no checksum", cut: "is damaged", foreign: "no rewards"}
    for path, reason in reasons.items():
        with pytest.raises(InputError, match=rf"{path.name}' .*{reason}"):
            load_rewards(path)


UNIT = torch.linspace(1e-9, 2, 10)
NETWORKS = {
    "WindowReward": lambda: WindowReward(3, 4, UNIT, (8,)),
    "PlanValue": lambda: PlanValue(3, UNIT, (32, 32), 2),
    "StartReward": lambda: StartReward(3, 4, UNIT, 2, (1,), (8,), average=2),
    "PlanPotential": lambda: PlanPotential(3, 4, UNIT, 16, 1),
    "ConditionalReward": lambda: ConditionalReward(PlanPotential(3, 4, UNIT, 16, 1), 2),
    "ContextReward": lambda: ContextReward(WindowReward(5, 4, UNIT, (8,)), 2),
    "Rescaled": lambda: Rescaled(WindowReward(3, 2, UNIT, (8,)), torch.tensor([1e5, 1.0, 1e-9])),
    "WeightedSum": lambda: WeightedSum(
        [WindowReward(3, 4, UNIT, (8,)), ConditionalReward(PlanValue(3, UNIT, (32,)), 1)], [2, -0.3]
    ),
    "EncoderReward": lambda: EncoderReward(
        torch.zeros(10, 4, 8, 8), torch.full((10, 4, 8, 8), 1e5), UNIT, (8, 16)
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_of_every_kind_comes_back(tmp_path, kind):
    torch.manual_seed(1)
    network = NETWORKS[kind]()
    assert (type(network).__name__, type(network).__module__) == (kind, KINDS[kind])
    made = RelativeReward(network, "score", "x_t")
    made.save(tmp_path / "one.safetensors", {"data": "mine"})
    found = load_reward(tmp_path / "one.safetensors")
    assert (found.target, found.place, found.steps) == ("score", "x_t", 10)
    shape = (5, 4, 8, 8) if kind == "EncoderReward" else (5, 4, 3)
    x, t = torch.randn(shape, generator=stream(0, "x")), torch.tensor([0, 1, 4, 8, 9])
    told = torch.ones(5, 2) if kind == "ContextReward" else None
    assert_close(found.gradient(x, t, told), made.gradient(x, t, told), atol=1e-2, rtol=5e-2)
    for name, table in network.named_buffers():
        assert torch.equal(dict(found.network.named_buffers())[name], table), name
    ((reward, about),) = load_rewards(tmp_path / "one.safetensors").values()
    assert about == {"data": "mine"} and reward.network.training is False


class Own(WindowReward):
    """A network of somebody's own."""


class EncoderRewardOfMine(torch.nn.Module):
    """Nothing that a file could be read back to."""

    def forward(self, x, t):
        return x.flatten(1).sum(1)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("network", [Own(3, 4, UNIT), EncoderRewardOfMine()], ids=["a", "b"])
def test_a_reward_of_another_network_is_refused_in_a_sentence(tmp_path, network, inside):
    kind, part = type(network).__name__, WeightedSum([network], [1.0]) if inside else network
    made = {"a goal": RelativeReward(part, "mean", "mu_base")}
    with pytest.raises(InputError, match=rf"^reward 'a goal' of a {kind} cannot be written: .*\.$"):
        save_rewards(tmp_path / "a", made, {"a goal": {}})
    assert not list(tmp_path.iterdir())


def test_a_file_of_several_rewards_is_not_one(tmp_path):
    save_rewards(tmp_path / "two", rewards(), ABOUT)
    with pytest.raises(InputError, match=r"two' holds 2 rewards: one is needed"):
        load_reward(tmp_path / "two")


def entry(**changed) -> dict:
    """The header of a file of one reward, as JSON has it."""
    shape = {"width": 3, "window": 4, "hidden": [8], "strided": False}
    network = {"kind": "WindowReward", "shape": shape | {"activation": "silu", "average": 1}}
    return {"about": {}, "target": "mean", "place": "x_t", "network": network} | changed


@pytest.mark.parametrize(
    "changed",
    [
        {"network": {"kind": "Popen", "shape": {"args": "ls"}}},
        {"network": {"kind": "__import__", "shape": {}}},
        {"network": None},
        {"network": {"kind": "WindowReward", "shape": {"width": 3}}},
        {"network": {"kind": "WindowReward"}},
        {"target": "means"},
        {"place": None},
    ],
    ids=str,
)
def test_a_header_that_means_nothing_here_is_refused(tmp_path, changed):
    path, network = tmp_path / "a.safetensors", WindowReward(3, 4, UNIT, (8,))
    tensors = {f"reward/{name}": value for name, value in network.state_dict().items()}
    write_tensors(path, tensors, {"rewards": json.dumps({"reward": entry()})})
    load_reward(path)
    write_tensors(path, tensors, {"rewards": json.dumps({"reward": entry(**changed)})})
    with pytest.raises(InputError, match=r"no rewards of this version|is not allowed"):
        load_reward(path)


def test_a_reward_that_nothing_is_said_about_is_refused_in_a_sentence(tmp_path):
    (name, *_), made = OPTIONS, rewards()
    with pytest.raises(InputError, match=rf"^about=.* an entry for the reward '{name}' is needed"):
        save_rewards(tmp_path / "a", made, {key: ABOUT[key] for key in ABOUT if key != name})
    with pytest.raises(InputError, match=r"^about is not allowed .*JSON can hold is needed\.$"):
        save_rewards(tmp_path / "a", made, {key: {"maze": object()} for key in ABOUT})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [65520.0, float("nan"), -float("inf")])
def test_a_weight_that_half_precision_cannot_hold_is_refused(tmp_path, value):
    made = rewards()
    with torch.no_grad():
        next(iter(made.values())).network.g[0].weight[0, 0] = value
    with pytest.raises(InputError, match=r"^weight 'g\.0\.weight' cannot be written: .* 65504"):
        save_rewards(tmp_path / "a", made, ABOUT)
    assert not list(tmp_path.iterdir())


def test_the_same_rewards_are_the_same_bytes(tmp_path):
    for name in "ab":
        save_rewards(tmp_path / name, rewards(), ABOUT)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
