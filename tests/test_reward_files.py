"""Files of rewards: what is written is read, and nothing else is."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from rrlib import reward_files
from rrlib.errors import InputError
from rrlib.rewards import RelativeReward, WindowReward
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
    for path in (text, other, cut):
        with pytest.raises(InputError, match=rf"{path.name}' holds no rewards"):
            reward_files.read(path)
