"""Files of rewards: what is written is read, and nothing else is."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from rrlib import files as reward_files
from rrlib.errors import InputError
from rrlib.plans.networks import PlanValue
from rrlib.rewards import ConditionalReward, RelativeReward, WindowReward
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
    reward_files.write(path, made, ABOUT)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    found = reward_files.read(path)
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
        reward_files.read(tmp_path / "none.safetensors")
    text, other = tmp_path / "text.safetensors", tmp_path / "other.safetensors"
    text.write_text("no tensors", encoding="utf-8")
    save_file({"a": torch.ones(1)}, other)
    cut = tmp_path / "cut.safetensors"
    reward_files.write(cut, rewards(), ABOUT)
    cut.write_bytes(cut.read_bytes()[:-100])
    foreign = tmp_path / "foreign.safetensors"
    write_tensors(foreign, {"a": torch.ones(1)}, {"rewards": "[]"})
    reasons = {text: "is damaged", other: "no checksum", cut: "is damaged", foreign: "no rewards"}
    for path, reason in reasons.items():
        with pytest.raises(InputError, match=rf"{path.name}' .*{reason}"):
            reward_files.read(path)


@pytest.mark.parametrize("kind", ["PlanValue", "ConditionalReward"])
def test_a_reward_of_another_network_is_refused_in_a_sentence(tmp_path, kind):
    network = PlanValue(3, torch.ones(10), (32,))
    network = ConditionalReward(network, 1) if kind == "ConditionalReward" else network
    made = {"a goal": RelativeReward(network, "mean", "mu_base")}
    with pytest.raises(InputError, match=rf"^reward 'a goal' of a {kind} cannot be written: .*\.$"):
        reward_files.write(tmp_path / "a", made, ABOUT)
    assert not list(tmp_path.iterdir())


def test_a_reward_that_nothing_is_said_about_is_refused_in_a_sentence(tmp_path):
    (name, *_), made = OPTIONS, rewards()
    with pytest.raises(InputError, match=rf"^about=.* an entry for the reward '{name}' is needed"):
        reward_files.write(tmp_path / "a", made, {key: ABOUT[key] for key in ABOUT if key != name})
    with pytest.raises(InputError, match=r"^about is not allowed .*JSON can hold is needed\.$"):
        reward_files.write(tmp_path / "a", made, {key: {"maze": object()} for key in ABOUT})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [65520.0, float("nan"), -float("inf")])
def test_a_weight_that_half_precision_cannot_hold_is_refused(tmp_path, value):
    made = rewards()
    with torch.no_grad():
        next(iter(made.values())).network.g[0].weight[0, 0] = value
    with pytest.raises(InputError, match=r"^weight 'g\.0\.weight' cannot be written: .* 65504"):
        reward_files.write(tmp_path / "a", made, ABOUT)
    assert not list(tmp_path.iterdir())


def test_the_same_rewards_are_the_same_bytes(tmp_path):
    for name in "ab":
        reward_files.write(tmp_path / name, rewards(), ABOUT)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
