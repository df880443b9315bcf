"""Fitted rewards in one small file: half-precision weights, and in its header what they mean."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rrlib.errors import InputError, shown
from rrlib.rewards import RelativeReward, WindowReward
from rrlib.tensor_files import halved, read_tensors, write_tensors

MEANING = ("target", "place")  # of a RelativeReward
SHAPE = ("width", "window", "hidden", "strided", "activation", "average")  # of a WindowReward


def write(
    path: str | Path, rewards: Mapping[str, RelativeReward], about: Mapping[str, Mapping]
) -> None:
    """Write windowed rewards, by name, to a safetensors file; weights are rounded to float16.

    The file appears whole or not at all, and carries a checksum.

    Args:
        path: of the file.
        rewards: name -> reward of a `WindowReward` network.
        about: name -> what its user must know, such as the range of the data; as JSON has it.

    Raises:
        InputError: a reward of another network, a weight that float16 cannot hold, a name that
            `about` lacks or has something else than JSON for, or a file that cannot be written.
    """
    tensors, header = {}, {}
    for name, reward in rewards.items():
        network = reward.network
        if not isinstance(network, WindowReward):
            raise InputError(
                f"reward {shown(name)} of a {type(network).__name__} cannot be written: a reward "
                "of a WindowReward is needed."
            )
        if name not in about:
            raise InputError(
                f"about={shown(list(about))} is not allowed: an entry for the reward "
                f"{shown(name)} is needed."
            )
        header[name] = {"about": dict(about[name])}
        header[name] |= {key: getattr(reward, key) for key in MEANING}
        header[name] |= {key: getattr(network, key) for key in SHAPE}
        for key, value in network.state_dict().items():
            # The unit is a table, not a weight, and small at some t.
            tensors[f"{name}/{key}"] = value.cpu() if key == "unit" else halved(value, key)
    try:
        text = json.dumps(header)
    except (TypeError, ValueError) as error:
        raise InputError(f"about is not allowed ({error}): what JSON can hold is needed.") from None
    write_tensors(path, tensors, {"rewards": text})


def read(path: str | Path) -> dict[str, tuple[RelativeReward, dict]]:
    """The rewards of a file that `write` made, in single precision on the CPU, and about each.

    Returns:
        name -> (reward, what `write` was told about it).

    Raises:
        InputError: there is no such file, it is damaged, or it holds something else.
    """
    tensors, texts = read_tensors(path)
    try:
        header = json.loads(texts["rewards"])
        return {
            name: (_reward(tensors, name, entry), entry["about"]) for name, entry in header.items()
        }
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"Reward file '{path}' holds no rewards of this book ({shown(str(error))})."
        ) from None


def _reward(tensors: Mapping[str, Tensor], name: str, entry: dict) -> RelativeReward:
    state = {
        key.removeprefix(f"{name}/"): value.float()
        for key, value in tensors.items()
        if key.startswith(f"{name}/")
    }
    shape = {key: entry[key] for key in SHAPE} | {"hidden": tuple(entry["hidden"])}
    network = WindowReward(unit=torch.zeros_like(state["unit"]), **shape)
    network.load_state_dict(state)
    return RelativeReward(network.eval().requires_grad_(False), *(entry[key] for key in MEANING))
