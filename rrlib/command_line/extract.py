"""`rrlib extract`: the reward of two saved models, as a file."""

import argparse
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rrlib import training
from rrlib.command_line import inputs
from rrlib.command_line.info import INDEX
from rrlib.command_line.networks import load_denoiser
from rrlib.errors import InputError, shown
from rrlib.method import comparisons
from rrlib.method.rewards import RelativeReward
from rrlib.plans import trajectories
from rrlib.plans.layouts import PlanLayout
from rrlib.plans.rewards import WindowReward
from rrlib.plans.scoring import recorded

MOST_PLANS = 20_000  # that are cut from each side's data
HELD_OUT = 0.1  # share of each side's plans that the fit does not see


def run(given: argparse.Namespace) -> None:
    """Compare two saved models, fit the reward, write it."""
    inputs.check_out(given.out)
    sides = Path(given.base), Path(given.expert)
    pipelines = [(side / INDEX).is_file() for side in sides]
    if len(set(pipelines)) > 1:
        raise InputError(
            f"EXPERT={shown(given.expert)} is not allowed: a pipeline and a network are no pair, "
            "and two of one kind are needed."
        )
    inputs.device(given.device)
    if not 0 <= given.seed < 2**63:
        raise InputError(
            f"--seed={given.seed} is not allowed: a number from 0 to {2**63 - 1} is needed."
        )
    for name in ("steps", "n", "batch"):
        if getattr(given, name) < 1:
            raise InputError(
                f"--{name}={getattr(given, name)} is not allowed: 1 or more is needed."
            )
    (of_pipelines if pipelines[0] else of_planners)(given)


def of_pipelines(given: argparse.Namespace) -> None:
    """The reward of two text-to-image pipelines, by Algorithm 2."""
    from rrlib.images import pairs
    from rrlib.images.guided import Guided
    from rrlib.images.pipelines import load_pipeline
    from rrlib.images.prompts import read_prompts

    _refuse(given, "data", "layout", "horizon", "window", of="planners")
    if given.prompts:
        pairs.split(len(read_prompts(given.prompts)), HELD_OUT, given.seed)
    base, expert = (
        Guided(load_pipeline(side, given.device)) for side in (given.base, given.expert)
    )
    if given.prompts:
        prompts = read_prompts(given.prompts)
    elif base.model.tokenizers:
        raise InputError(
            "--prompts is missing: a CSV file with a column 'prompt' is needed by pipelines that "
            "take prompts."
        )
    else:
        prompts = given.n
    with nullcontext(given.work) if given.work else tempfile.TemporaryDirectory() as folder:
        run = pairs.compare(base, expert, prompts, folder, batch=given.batch, seed=given.seed)
        training.finish(run, "comparisons")
        fit = pairs.Fit(held_out=HELD_OUT, steps=given.steps, seed=given.seed)
        reward = pairs.learn(folder, fit, given.device)
    print(f"told apart on held-out prompts: {reward.about['accuracy']:.3f}")
    models = {"models": {"base": given.base, "expert": given.expert}}
    reward.reward.save(given.out, {**reward.about, **models})


def of_planners(given: argparse.Namespace) -> None:
    """The reward of two networks of plans: by Algorithm 1 with data, by Algorithm 2 without."""
    _refuse(given, "prompts", "work", of="pipelines")
    layout = inputs.layout(given.layout) if given.layout else None
    horizon = given.horizon or (layout and layout.horizon)
    if not horizon or horizon < 1:
        raise InputError("--horizon is missing: the steps of a plan, 1 or more, are needed.")
    if given.data and not layout:
        raise InputError(
            "--layout is missing: what the data's numbers are, order, widths, low and high, is "
            "needed with --data."
        )
    window = given.window or horizon
    if horizon % window:
        raise InputError(
            f"--window={window} is not allowed: a divisor of the plans' {horizon} steps is needed."
        )
    sides = given.base, given.expert
    (base, width), (expert, other) = (load_denoiser(Path(side), given.device) for side in sides)
    if width != other or (layout and layout.width != width):
        wanted = f"{layout.width} of the layout" if layout else f"{width} of the base"
        raise InputError(
            f"EXPERT={shown(given.expert)}: plans of {width} (base) and {other} (expert) numbers a "
            f"step are not allowed: the {wanted} are needed."
        )
    if given.data and layout:
        data = [_plans(path, layout, horizon, given.seed) for path in given.data]
        cuts = [max(1, round(HELD_OUT * len(plans))) for plans in data]
        held_out = [plans[:n].to(given.device) for plans, n in zip(data, cuts, strict=True)]
        fitted = [plans[n:].to(given.device) for plans, n in zip(data, cuts, strict=True)]
        pairs = comparisons.compare(base, expert, tuple(fitted), n=given.n, seed=given.seed)
        test = comparisons.compare(base, expert, tuple(held_out), n=2_000, seed=given.seed + 1)
    else:
        drawn = {"shape": (horizon, width), "device": given.device}
        pairs = comparisons.compare(base, expert, n=given.n, seed=given.seed, **drawn)
        test = comparisons.compare(base, expert, n=2_000, seed=given.seed + 1, **drawn)
    made = partial(WindowReward, window=window)
    options = {"steps": given.steps, "seed": given.seed, "device": given.device}
    reward = RelativeReward.fit(pairs, made, **options)
    share = float(np.nanmean(reward.explained_variance(test).cpu().numpy()))
    print(f"held-out difference explained, mean over the steps of noise: {share:.3f}")
    about = {"models": {"base": given.base, "expert": given.expert}, "explained_variance": share}
    reward.save(given.out, about | (layout.about() if layout else {}))


def _plans(path: str, layout: PlanLayout, horizon: int, seed: int) -> Tensor:
    """Normalised plans [n, H, D] cut from a data file at random places."""
    found = recorded(inputs.recorded(path, layout, {}), layout)
    layout.check(found)
    starts = trajectories.windows(found, horizon)
    order = np.random.default_rng(seed).permutation(len(starts))[:MOST_PLANS]
    if len(order) < 2:
        raise InputError(
            f"--data={shown(path)} is not allowed: it holds one plan of {horizon} steps, and two "
            "or more are needed."
        )
    plans = trajectories.cut(found, starts[np.sort(order)], horizon)[..., layout.columns()]
    return torch.from_numpy(layout.normaliser.normalise(plans).astype(np.float32))


def _refuse(given: argparse.Namespace, *names: str, of: str) -> None:
    """Say so where an option belongs to models of the other kind."""
    for name in names:
        if getattr(given, name):
            raise InputError(
                f"--{name}={shown(getattr(given, name))} is not allowed: it is for {of}, and these "
                "are none."
            )
