"""`rrlib score`: a reward's numbers as CSV."""

import argparse
import csv
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from rrlib import disk
from rrlib.command_line import inputs
from rrlib.errors import InputError, shown
from rrlib.method.networks import files
from rrlib.method.rewards import RelativeReward
from rrlib.plans import scoring
from rrlib.plans.layouts import PlanLayout

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

BATCH = 64  # pictures in memory at a time
MINIATURE = "rrlib.images.miniature"  # the pipeline that comes with rrlib


def run(given: argparse.Namespace) -> None:
    """Score a file and write the table."""
    if given.out:
        inputs.check_out(given.out)
    reward = inputs.reward(given.reward)
    of_images = files.scorer(reward.network) == "rrlib.images.scoring"
    header, rows = (images if of_images else plans)(reward, given)
    write(given.out, header, rows)


def plans(
    reward: RelativeReward, given: argparse.Namespace
) -> tuple[Sequence[str], Iterable[Sequence]]:
    """The table of trajectories or plans."""
    if given.pipeline:
        raise InputError(
            f"--pipeline={shown(given.pipeline)} is not allowed: the reward is of plans, and looks "
            "at no pictures."
        )
    layout = PlanLayout.of(reward.about)
    keys = given.observation_keys, given.filter_key
    data = inputs.recorded(given.file, layout, reward.about, *keys)
    found = scoring.score(
        reward, data, layout=layout, stride=given.stride, progress=sys.stderr.isatty()
    )
    lengths = np.diff(found.bounds)[:, 0]
    if given.per_step:
        owner = np.repeat(np.arange(len(lengths)), lengths)
        steps = np.arange(len(owner)) - np.repeat(found.bounds[:, 0], lengths)
        return ("trajectory", "step", "score"), zip(owner, steps, found.per_step, strict=True)
    rows = zip(np.arange(len(lengths)), lengths, found.per_trajectory, strict=True)
    return ("trajectory", "steps", "score"), rows


def images(
    reward: RelativeReward, given: argparse.Namespace
) -> tuple[Sequence[str], Iterable[Sequence]]:
    """The table of pictures."""
    if given.per_step:
        raise InputError("--per-step is not allowed: the reward is of images, which have no steps.")
    paths = inputs.pictures(Path(given.file))
    pipeline = _pipeline(reward, given.pipeline)
    scores = []
    for at in tqdm(range(0, len(paths), BATCH), disable=not sys.stderr.isatty(), desc="pictures"):
        scores.append(reward.score(paths[at : at + BATCH], pipeline=pipeline))
    return ("image", "score"), zip([p.name for p in paths], torch.cat(scores).numpy(), strict=True)


def write(out: str | None, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a table to a file, whole or not at all, or to stdout."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows([*(str(cell) for cell in first), f"{score:.7g}"] for *first, score in rows)
    if out is None:
        print(text.getvalue(), end="")
        return
    with disk.atomic(out) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _pipeline(reward: RelativeReward, folder: str | None) -> "StableDiffusionPipeline":
    """The pipeline whose VAE encodes pictures: the one asked for, or the reward's own base."""
    from rrlib.images import pipelines
    from rrlib.images.miniature import weights

    base = folder or str(reward.about.get("models", {}).get("base", ""))
    if base == MINIATURE:
        return weights.load(weights.BASE)
    if not base:
        raise InputError(
            "--pipeline is missing: the folder of either of the reward's pipelines is needed, for "
            "its VAE turns pictures into latents."
        )
    return pipelines.load_pipeline(base)
