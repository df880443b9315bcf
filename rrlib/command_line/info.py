"""`rrlib info`: what is in a file."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rrlib.command_line import inputs
from rrlib.errors import InputError, shown
from rrlib.method.networks import files
from rrlib.method.reward_files import load_rewards
from rrlib.method.rewards import RelativeReward
from rrlib.plans import trajectories
from rrlib.plans.trajectories import Trajectories
from rrlib.tensor_files import read_tensors

INDEX = "model_index.json"  # of a diffusers pipeline


def run(given: argparse.Namespace) -> None:
    """Say what a file holds."""
    path, name = inputs.named(given.file)
    for line in lines(path, name, given):
        print(line)


def lines(path: Path, name: str | None, given: argparse.Namespace) -> Iterator[str]:
    """What a file holds, line by line."""
    if path.suffix == ".safetensors" and _has_rewards(path):
        yield from _rewards(path, name)
        return
    if name is not None:
        raise InputError(f"NAME={shown(name)} is not allowed: '{path}' holds no rewards.")
    if (path / INDEX).is_file():
        yield from _pipeline(path)
    elif found := inputs.pictures_in(path):
        yield f"pictures: {len(found)}, from {found[0].name} to {found[-1].name}"
    elif (plans := inputs.plans(path)) is not None:
        yield f"plans of shape {tuple(plans.shape)}, numbers from {plans.min():.4g} to " + (
            f"{plans.max():.4g}"
        )
    else:
        keys = tuple(filter(None, given.observation_keys.split(",")))
        options = {"observation_keys": keys, "filter_key": given.filter_key}
        yield from _trajectories(trajectories.read(path, **options))


def _has_rewards(path: Path) -> bool:
    return files.TEXT in read_tensors(path, allow_unchecked=True)[1]


def _rewards(path: Path, name: str | None) -> Iterator[str]:
    found = load_rewards(path)
    if name is not None and name not in found:
        raise InputError(
            f"NAME={shown(name)} is not allowed: one of the {len(found)} of '{path}' is needed."
        )
    if name is None and len(found) > 1:
        yield f"{len(found)} rewards; `rrlib info {path}:NAME` tells of one"
        for one, (reward, _) in found.items():
            yield f"  {one}: {_kind(reward)}"
        return
    reward, about = found[name or next(iter(found))]
    yield f"reward: {_kind(reward)}"
    parameters = sum(p.numel() for p in reward.network.parameters())
    yield f"  {parameters:,} parameters"
    for key, value in about.items():
        yield f"  {key}: {shown(value) if isinstance(value, list) else json.dumps(value)}"


def _kind(reward: RelativeReward) -> str:
    kind = type(reward.network).__name__
    return (
        f"{kind}, target {reward.target}, fitted at {reward.place}, {reward.steps} steps of noise"
    )


def _pipeline(path: Path) -> Iterator[str]:
    try:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
        yield f"pipeline: {index['_class_name']}"
        parts = {k: v[1] for k, v in index.items() if isinstance(v, list) and v[1]}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise InputError(f"File '{path / INDEX}' is damaged: one of diffusers is needed.") from None
    for part, kind in parts.items():
        yield f"  {part}: {kind}"


def _trajectories(found: Trajectories) -> Iterator[str]:
    lengths = np.diff(found.bounds)[:, 0]
    yield (
        f"trajectories: {found.n_episodes:,} episodes, {lengths.sum():,} steps, from "
        f"{lengths.min()} to {lengths.max()} steps long"
    )
    for part in ("observations", "actions"):
        array = getattr(found, part)
        yield f"  {part}: {array.shape[1]} numbers"
        for k, column in enumerate(array.T):
            low, high, mean = column.min(), column.max(), column.mean(dtype=float)
            yield f"    {k}: from {low:.4g} to {high:.4g}, mean {mean:.4g}"
    yield f"  rewards: {'no' if found.rewards is None else 'yes'}"
    yield f"  goals: {'no' if found.goals is None else 'yes'}"
    yield f"  ends: {found.terminals.sum():,} terminals, {found.timeouts.sum():,} timeouts"
