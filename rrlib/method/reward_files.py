"""Rewards in files: one or several, by name."""

from collections.abc import Mapping
from pathlib import Path

from rrlib.errors import InputError, shown
from rrlib.method.checks.levels import NOTED
from rrlib.method.networks import files
from rrlib.method.rewards import RelativeReward


def save_rewards(
    path: str | Path, rewards: Mapping[str, RelativeReward], about: Mapping[str, Mapping]
) -> None:
    """Write rewards, by name, to a safetensors file; weights are rounded to float16.

    The file appears whole or not at all, and carries a checksum.

    Args:
        path: of the file.
        rewards: name -> reward of a network of `networks.files.KINDS`.
        about: name -> what its user must know, such as the range of the data (`PlanLayout.about`);
            as JSON has it. What `RelativeReward.fit` noted of its levels goes along.

    Raises:
        InputError: a reward of another network, a weight that float16 cannot hold, a name that
            `about` lacks or has something else than JSON for, or a file that cannot be written.
    """
    entries = {}
    for name, reward in rewards.items():
        if name not in about:
            raise InputError(
                f"about={shown(list(about))} is not allowed: an entry for the reward "
                f"{shown(name)} is needed."
            )
        told = {key: reward.about[key] for key in NOTED if key in reward.about} | dict(about[name])
        entries[name] = files.Entry(reward.network, reward.target, reward.place, told)
    files.write(path, entries)


def load_rewards(path: str | Path) -> dict[str, tuple[RelativeReward, dict]]:
    """The rewards of a file of `save_rewards`, in single precision on the CPU, and about each.

    Returns:
        name -> (reward, what `save_rewards` was told about it, which is also its `about`).

    Raises:
        InputError: there is no such file, it is damaged, of another version, or holds something
            else.
    """
    stored = files.read(path)
    rewards = {name: _stored(stored, name) for name in stored}
    return {name: (reward, dict(reward.about)) for name, reward in rewards.items()}


def _stored(stored: files.Stored, name: str) -> RelativeReward:
    entry = stored[name]
    with files.blamed(stored.path):
        return RelativeReward(entry.network, entry.target, entry.place, entry.about)


def load_reward(path: str | Path, device: str = "cpu", name: str | None = None) -> RelativeReward:
    """The reward of a file that `RelativeReward.save` wrote, or one of several by its name.

    Args:
        path: of the file.
        device: where the reward shall be.
        name: of the reward; None where the file holds one.

    Raises:
        InputError: there is no such file, it is damaged, of another version, holds several, or none
            of this name.

    >>> import rrlib, tempfile, torch
    >>> reward = rrlib.RelativeReward(rrlib.WindowReward(3, 4, torch.ones(10)), "score", "x_t")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     reward.save(f"{folder}/reward.safetensors", about={"data": "mine"})
    ...     again = rrlib.load_reward(f"{folder}/reward.safetensors")
    >>> again.steps, again.target, again.about
    (10, 'score', {'data': 'mine'})
    """
    found = files.read(path)
    if name is None and len(found) != 1:
        raise InputError(
            f"Reward file '{path}' holds {len(found)} rewards: one is needed, or the name of one, "
            f"such as {shown(next(iter(found), ''))} (`load_rewards` takes them all)."
        )
    if name is not None and name not in found:
        raise InputError(
            f"name={shown(name)} is not allowed: one of the {len(found)} of '{path}' is needed, "
            f"such as {shown(next(iter(found), ''))}."
        )
    reward = _stored(found, next(iter(found)) if name is None else name)
    reward.network.to(device)
    return reward
