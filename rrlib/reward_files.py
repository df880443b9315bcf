"""Fitted rewards in one small file: half-precision weights, and in its header what they mean."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rrlib.errors import InputError
from rrlib.rewards import RelativeReward, WindowReward

MEANING = ("target", "place")  # of a RelativeReward
SHAPE = ("width", "window", "hidden", "strided", "activation", "average")  # of a WindowReward


def write(
    path: str | Path, rewards: Mapping[str, RelativeReward], about: Mapping[str, Mapping]
) -> None:
    """Write windowed rewards, by name, to a safetensors file; weights are rounded to float16.

    The file appears whole or not at all.

    Args:
        path: of the file.
        rewards: name -> reward of a `WindowReward` network.
        about: name -> what its user must know, such as the range of the data; as JSON has it.
    """
    tensors, header = {}, {}
    for name, reward in rewards.items():
        network = reward.network
        header[name] = {"about": dict(about[name])}
        header[name] |= {key: getattr(reward, key) for key in MEANING}
        header[name] |= {key: getattr(network, key) for key in SHAPE}
        for key, value in network.state_dict().items():
            # The unit is a table, not a weight, and small at some t.
            tensors[f"{name}/{key}"] = value.cpu() if key == "unit" else value.cpu().half()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.unfinished")
    save_file(tensors, temporary, {"rewards": json.dumps(header)})
    temporary.replace(path)


def read(path: str | Path) -> dict[str, tuple[RelativeReward, dict]]:
    """The rewards of a file that `write` made, in single precision on the CPU, and about each.

    Returns:
        name -> (reward, what `write` was told about it).

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["rewards"])
            return {
                name: (_reward(file, name, entry), entry["about"]) for name, entry in header.items()
            }
    except FileNotFoundError:
        raise InputError(f"Reward file '{path}' does not exist.") from None
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise InputError(f"Reward file '{path}' holds no rewards of this book: {error}.") from None


def _reward(file, name: str, entry: dict) -> RelativeReward:
    state = {
        key.removeprefix(f"{name}/"): file.get_tensor(key).float()
        for key in file.keys()  # noqa: SIM118 (a safetensors file is no mapping)
        if key.startswith(f"{name}/")
    }
    shape = {key: entry[key] for key in SHAPE} | {"hidden": tuple(entry["hidden"])}
    network = WindowReward(unit=torch.zeros_like(state["unit"]), **shape)
    network.load_state_dict(state)
    return RelativeReward(network.eval().requires_grad_(False), *(entry[key] for key in MEANING))
