"""Relative rewards: fitted to the difference of two models, read, summed, saved."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rrlib import training
from rrlib.method import extraction
from rrlib.method.checks.levels import check_schedule, check_start, check_unit, noted, summed
from rrlib.method.checks.rewards import check_fitted, check_plans, check_summands
from rrlib.method.comparisons import Comparisons
from rrlib.method.extraction import unit_of
from rrlib.method.networks import files
from rrlib.method.networks.calls import check_beside, check_tensor
from rrlib.method.networks.made import learning, made
from rrlib.method.networks.sums import WeightedSum, asked, per_step
from rrlib.method.noise.schedules import check_times
from rrlib.method.pools import Place, Target


@dataclass(frozen=True)
class RelativeReward:
    """A fitted reward together with what its gradient means.

    Attributes:
        network: (x [B, ...], t [B]) -> rho [B], twice differentiable.
        target: the gradient is a difference of "score"s (Eq. 14) or of "mean"s (Eq. 45 with its
            sign turned), expert minus base.
        place: where the gradient was fitted: at "x_t" (Eq. 14), or at "mu_base" = mean_base(x_t).
        about: what its user must know, as its file has it: the layout of its data
            (`PlanLayout.about`), the models; the levels that `fit` saw (`checks.levels.noted`).

    Raises:
        InputError: another target or place than there are, or than `extraction.fit` fitted the
            network to; when asked, a t that is no step.

    >>> import rrlib, torch
    >>> scheduler = rrlib.cosine_scheduler(20, clip=False)
    >>> base, expert = (
    ...     rrlib.Denoiser(lambda x, t, a=a: 0.5 * x + a, scheduler) for a in (0.0, 0.2)
    ... )
    >>> pairs = rrlib.compare(base, expert, shape=(8, 3), n=2_000)
    >>> reward = rrlib.RelativeReward.fit(pairs, steps=100)
    >>> plans, t = torch.zeros(4, 8, 3), torch.zeros(4, dtype=torch.long)
    >>> reward(plans, t).shape, reward.gradient(plans, t).shape
    (torch.Size([4]), torch.Size([4, 8, 3]))
    >>> held_out = rrlib.compare(base, expert, shape=(8, 3), n=200, seed=1)
    >>> reward.explained_variance(held_out).shape  # a share for each t
    torch.Size([20])
    """

    network: nn.Module
    target: Target
    place: Place
    about: Mapping = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        check_fitted(self.network, self.target, self.place)

    @property
    def steps(self) -> int | None:
        """T of the schedule that it was fitted on; None where its network does not say."""
        unit = unit_of(self.network)
        return None if unit is None else len(unit)

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """rho, [B], in the precision of x whatever the network's.

        A network of a condition [B, ...] is told it; one of two arguments is the same under all.
        """
        check_tensor("x", x)
        check_times(t, self.steps or torch.iinfo(torch.long).max)
        dtype = next((p.dtype for p in self.network.parameters()), x.dtype)
        return asked(self.network, x.to(dtype), t, condition).to(x.dtype)

    def gradient(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """grad_x rho(x, t), [B, ...], detached."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self(x, t, condition).sum(), x)[0]

    def per_step(self, states: Tensor, actions: Tensor) -> Tensor:
        """Reward of each time step at t = 0, [B, H] (section 4.3): a step has its window's g.

        Args:
            states: [B, H, do], normalised.
            actions: [B, H, da], normalised.

        A step is laid out as `about` says, actions first where it says nothing. Sums add.

        Raises:
            InputError: the horizon is no multiple of the reward's window, states and actions do not
                belong together, or the reward was not fitted at t = 0 or values whole plans only.

        >>> import rrlib, torch
        >>> network = rrlib.WindowReward(width=6, window=4, unit=torch.ones(10))
        >>> reward = rrlib.RelativeReward(network, "score", "x_t")
        >>> reward.per_step(torch.zeros(2, 32, 4), torch.zeros(2, 32, 2)).shape
        torch.Size([2, 32])
        """
        check_plans(states, actions)
        check_start(self)
        parts = {"actions": actions, "observations": states}
        plans = torch.cat([parts[name] for name in self.about.get("order", parts)], -1)
        dtype = next((p.dtype for p in self.network.parameters()), plans.dtype)
        with torch.no_grad():
            return per_step(self.network, plans.to(dtype)).to(plans.dtype)

    def score(self, data: Any, **options: Any) -> Any:
        """What the reward says of data as they were recorded, in their own units, of any length.

        Args:
            data: trajectories (`plans.scoring.score`), or images (`images.scoring.score`).
            options: see there: `layout` and `stride`, or `pipeline`.

        Returns:
            `TrajectoryScores`, a number for each step and each trajectory; or of images [B].

        Raises:
            InputError: data that do not suit the reward, or a reward that was not fitted at t = 0
                or does not say what its data are made of.

        >>> import numpy as np, rrlib, torch
        >>> network = rrlib.WindowReward(width=6, window=4, unit=torch.ones(10))
        >>> ruler = rrlib.Normaliser(np.full(6, -2, "f4"), np.full(6, 3, "f4"))
        >>> about = rrlib.PlanLayout(ruler, actions=2, observations=4).about()
        >>> reward = rrlib.RelativeReward(network, "score", "x_t", about)
        >>> scores = reward.score([np.zeros((300, 6)), np.ones((50, 6))])
        >>> scores.per_trajectory.shape, scores.per_step.shape
        ((2,), (350,))
        """
        check_start(self)
        return import_module(files.scorer(self.network)).score(self, data, **options)

    def explained_variance(self, pairs: Comparisons, batch: int = 4096) -> Tensor:
        """Share of the two models' difference that the gradient explains at each t, [T].

        Args:
            pairs: comparisons that the reward was not fitted to.
            batch: of them at a time.

        Returns:
            1 for the exact reward, 0 for none; NaN where both models agree.

        Raises:
            InputError: comparisons of another schedule.
        """
        check_schedule("the pairs'", pairs.reader, self)
        pool = pairs.pool(self.target, self.place)
        if (weight := next(self.network.parameters(), None)) is not None:
            pool = pool.to(weight.device)
        return extraction.explained(self, pool, pairs.reader.steps, batch)

    @classmethod
    def fit(
        cls,
        pairs: Comparisons,
        network: Callable[..., nn.Module] | nn.Module | None = None,
        *,
        target: Target = "score",
        place: Place = "x_t",
        steps: int = 3_000,
        batch: int = 512,
        learning_rate: float = 1e-3,
        seed: int = 0,
        device: str = "cpu",
        checkpoint: str | Path | None = None,
    ) -> "RelativeReward":
        """Extract the reward of a pair of models from their comparisons (Algorithms 1 and 2).

        Args:
            pairs: of `compare`.
            network: a reward network, changed in place (one that is frozen whole, as a fitted or
                loaded reward's is, learns again); or what makes one, called with `width` (the last
                side of a sample) and `unit` (see `extraction.units`), in the pairs' precision, as
                ``functools.partial(WindowReward, window=16)``. None takes a `WindowReward` that
                sees whole plans [H, D], or points [D], as Table 2's perceptron does. Of models
                that were told a condition it sees that, too (`ContextReward`).
            target: with "score" the reward is the models' log ratio up to a constant (Eq. 14); with
                "mean" it is fitted to differences of sampling means.
            place: where its gradient is taken: "x_t" (Eq. 14), or "mu_base", the base's mean, where
                ancestral sampling adds it.
            steps, batch, learning_rate: of Adam, sized for a CPU; Table 3 has for mazes 100 000
                steps of 256 samples at 5e-5, for robots 50 000 of 128 at 2e-4. Of windowed rewards
                a sample is a window.
            seed: of the weights and batches.
            device: where it is fitted and stays.
            checkpoint: safetensors file to resume from, see `training.train`.

        Raises:
            InputError: comparisons that do not suit the network, or a number out of range.

        >>> from functools import partial
        >>> import rrlib
        >>> scheduler = rrlib.cosine_scheduler(20, clip=False)
        >>> models = [rrlib.Denoiser(lambda x, t, a=a: 0.5 * x + a, scheduler) for a in (0.0, 0.2)]
        >>> pairs = rrlib.compare(*models, shape=(8, 3), n=200)
        >>> short = partial(rrlib.WindowReward, window=2, hidden=(16,))
        >>> reward = rrlib.RelativeReward.fit(pairs, short, steps=5, place="mu_base")
        >>> reward.network.window, reward.place
        (2, 'mu_base')
        """
        pool = pairs.pool(target, place).to(device)
        fitted = _fitted(network, pairs, target, seed).to(device)
        check_beside("pairs", pool.x, fitted)
        trained, windows = fitted, getattr(fitted, "windows", None)
        if windows and pool.x.ndim == 3:
            pool = pool.cut(*windows)
            if (count := getattr(fitted, "average", 1)) > 1:
                pool, trained = pool.average(count), fitted.averaged()
        progress = extraction.fit(
            trained,
            pool,
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            seed=seed,
            checkpoint=checkpoint,
        )
        training.finish(progress, "reward")
        about = noted(pairs.reader, pairs.span)
        return cls(fitted.eval().requires_grad_(False), target, place, about)

    def save(self, path: str | Path, about: Mapping | None = None) -> None:
        """Write the reward to a safetensors file, weights rounded to float16; see `load_reward`.

        Args:
            path: of the file.
            about: what its user must know, besides the reward's own `about`; as JSON has it.

        Raises:
            InputError: see `save_rewards`.
        """
        told = {**self.about, **(about or {})}
        files.write(path, {"reward": files.Entry(self.network, self.target, self.place, told)})


def _fitted(
    network: Callable[..., nn.Module] | nn.Module | None,
    pairs: Comparisons,
    target: Target,
    seed: int,
) -> nn.Module:
    """The network that is fitted: the given one, or one that is made for the pair."""
    if isinstance(network, nn.Module):
        check_unit(unit_of(network), pairs.reader)
        return learning(network)
    unit = extraction.units(pairs.reader, target)
    context = 0 if pairs.condition is None else pairs.condition[0].numel()
    return made(network, pairs.x, unit, context, seed)


def compose(rewards: Sequence[RelativeReward], weights: Sequence[float]) -> RelativeReward:
    """The reward that is a weighted sum of others: log ratios add, so behaviours combine.

    Args:
        rewards: of one base, one target and one place.
        weights: one for each; a negative one steers away.

    Raises:
        InputError: another number of weights than rewards, or two targets, places or schedules.

    >>> import rrlib, torch
    >>> networks = [rrlib.WindowReward(3, 4, torch.ones(10)) for _ in range(2)]
    >>> both = rrlib.compose([rrlib.RelativeReward(n, "score", "x_t") for n in networks], [1, -0.5])
    >>> both(torch.zeros(5, 8, 3), torch.zeros(5, dtype=torch.long)).shape
    torch.Size([5])
    """
    check_summands(rewards, weights)
    networks = [reward.network for reward in rewards]
    kind = rewards[0].target, rewards[0].place
    return RelativeReward(WeightedSum(networks, weights), *kind, summed(rewards))
