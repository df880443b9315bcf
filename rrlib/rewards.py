"""Relative rewards: fitted to the difference of two models, read, summed, kept in a file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rrlib import extraction, reward_files, training
from rrlib.comparisons import Comparisons
from rrlib.denoisers import third_argument
from rrlib.errors import InputError, shown
from rrlib.extraction import unit_of
from rrlib.pools import Place, Target, check_kind
from rrlib.schedules import check_times


@dataclass(frozen=True)
class RelativeReward:
    """A fitted reward together with what its gradient means.

    Attributes:
        network: (x [B, ...], t [B]) -> rho [B], twice differentiable.
        target: the gradient is a difference of "score"s (Eq. 14) or of "mean"s (Eq. 45 with its
            sign turned), expert minus base.
        place: where the gradient was fitted: at "x_t" (Eq. 14), or at "mu_base" = mean_base(x_t).
        about: what its user must know, as its file has it: the layout of its data
            (`PlanLayout.about`), the models.

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
    about: Mapping = field(default_factory=dict, compare=False)

    def __post_init__(self):
        check_kind(self.target, self.place)
        for part in self.network.modules() if isinstance(self.network, nn.Module) else ():
            for name, mine, fitted in zip(
                ("target", "place"),
                (self.target, self.place),
                getattr(part, "fitted", None) or (self.target, self.place),
                strict=True,
            ):
                if mine != fitted:
                    raise InputError(
                        f"{name}={mine!r} is not allowed: the network was fitted to a pool of "
                        f"{name}={fitted!r}, which is needed."
                    )

    @property
    def steps(self) -> int | None:
        """T of the schedule that it was fitted on; None where its network does not say."""
        unit = unit_of(self.network)
        return None if unit is None else len(unit)

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """rho, [B], in the precision of x whatever the network's.

        A network of a condition [B, ...] is told it; one of two arguments is the same under all.
        """
        if not isinstance(x, Tensor):
            raise InputError(f"x: {type(x).__name__} is not allowed: a torch tensor is needed.")
        check_times(t, self.steps or torch.iinfo(torch.long).max)
        dtype = next((p.dtype for p in self.network.parameters()), x.dtype)
        return _asked(self.network, x.to(dtype), t, condition).to(x.dtype)

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

        Of a sum it is the sum of its rewards' own.

        Raises:
            InputError: the horizon is no multiple of the reward's window, states and actions do not
                belong together, or the reward is of a kind that values whole plans only.

        >>> import rrlib, torch
        >>> network = rrlib.WindowReward(width=6, window=4, unit=torch.ones(10))
        >>> reward = rrlib.RelativeReward(network, "score", "x_t")
        >>> reward.per_step(torch.zeros(2, 32, 4), torch.zeros(2, 32, 2)).shape
        torch.Size([2, 32])
        """
        for name, part in (("states", states), ("actions", actions)):
            shape = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            if not isinstance(part, Tensor) or part.ndim != 3 or part.shape[:2] != states.shape[:2]:
                raise InputError(f"{name}: {shape} is not allowed: tensors [B, H, ...] are needed.")
        plans = torch.cat([actions, states], -1)
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
            InputError: data that do not suit the reward, or a reward that does not say what its
                data are made of.

        >>> import numpy as np, rrlib, torch
        >>> network = rrlib.WindowReward(width=6, window=4, unit=torch.ones(10))
        >>> ruler = rrlib.Normaliser(np.full(6, -2, "f4"), np.full(6, 3, "f4"))
        >>> about = rrlib.PlanLayout(ruler, actions=2, observations=4).about()
        >>> reward = rrlib.RelativeReward(network, "score", "x_t", about)
        >>> scores = reward.score([np.zeros((300, 6)), np.ones((50, 6))])
        >>> scores.per_trajectory.shape, scores.per_step.shape
        ((2,), (350,))
        """
        return import_module(reward_files.scorer(self.network)).score(self, data, **options)

    def explained_variance(self, pairs: Comparisons, batch: int = 4096) -> Tensor:
        """Share of the two models' difference that the gradient explains at each t, [T].

        Args:
            pairs: comparisons that the reward was not fitted to.
            batch: of them at a time.

        Returns:
            1 for the exact reward, 0 for none; NaN where both models agree.
        """
        pool = pairs.pool(self.target, self.place)
        if (weight := next(self.network.parameters(), None)) is not None:
            pool = pool.to(weight.device)
        steps = self.steps or pairs.reader.steps
        return extraction.explained(self.network, pool, steps, batch)

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
        checkpoint: Path | None = None,
    ) -> "RelativeReward":
        """Extract the reward of a pair of models from their comparisons (Algorithms 1 and 2).

        Args:
            pairs: of `compare`.
            network: a reward network, changed in place; or what makes one, called with `width` (the
                last side of a sample) and `unit` (see `extraction.units`), such as
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
        made = _made(network, pairs, target, seed).to(device)
        trained, windows = made, getattr(made, "windows", None)
        if windows and pool.x.ndim == 3:
            pool = pool.cut(*windows)
            if (count := getattr(made, "average", 1)) > 1:
                pool, trained = pool.average(count), made.averaged()
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
        return cls(made.eval().requires_grad_(False), target, place)

    def save(self, path: str | Path, about: Mapping | None = None) -> None:
        """Write the reward to a safetensors file, weights rounded to float16; see `load_reward`.

        Args:
            path: of the file.
            about: what its user must know, besides the reward's own `about`; as JSON has it.

        Raises:
            InputError: see `save_rewards`.
        """
        save_rewards(path, {"reward": self}, {"reward": {**self.about, **(about or {})}})


def _made(
    network: Callable[..., nn.Module] | nn.Module | None,
    pairs: Comparisons,
    target: Target,
    seed: int,
) -> nn.Module:
    """The network that is fitted: the given one, or one that is made for the pair."""
    if isinstance(network, nn.Module):
        return network
    torch.manual_seed(seed)
    unit = extraction.units(pairs.reader, target)
    make, told = network or _default(pairs.x), pairs.condition
    if told is None:
        return make(width=pairs.x.shape[-1], unit=unit)
    context = told[0].numel()
    inner = make(width=pairs.x.shape[-1] + context, unit=unit)
    return import_module(reward_files.KINDS["ContextReward"]).ContextReward(inner, context)


def _default(x: Tensor) -> Callable[..., nn.Module]:
    """What makes the reward network of points [N, D] or plans [N, H, D] if none is named."""
    if x.ndim not in (2, 3):
        raise InputError(
            f"network=None is not allowed for samples of shape {tuple(x.shape[1:])}: a network "
            "(x [B, ...], t [B]) -> rho [B] is needed."
        )
    made = import_module(reward_files.KINDS["WindowReward"]).WindowReward
    return partial(made, window=x.shape[1] if x.ndim == 3 else 1)


def _asked(network: nn.Module, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    """rho, [B], told the condition if the network takes one."""
    if third_argument(network) is None:
        return network(x, t)
    return network(x, t, condition)


def per_step(network: nn.Module, plans: Tensor) -> Tensor:
    """What a network says of each step of plans [B, H, D] at t = 0, [B, H]."""
    own = getattr(network, "per_step", None)
    if own is None:
        raise InputError(
            f"reward: {type(network).__name__} is not allowed: it values a plan as a whole, and a "
            "WindowReward is needed to value each step."
        )
    return own(plans)


class WeightedSum(nn.Module):
    """sum_k w_k rho_k(x_t, t), [B], of several reward networks."""

    SHAPE: ClassVar = ("weights",)
    PARTS: ClassVar = ("networks",)

    def __init__(self, networks: Sequence[nn.Module], weights: Sequence[float]):
        super().__init__()
        self.networks, self.weights = nn.ModuleList(networks), tuple(weights)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The sum, [B], for x_t [B, ...] and t [B]."""
        parts = zip(self.weights, self.networks, strict=True)
        return sum(weight * _asked(network, x_t, t, condition) for weight, network in parts)

    def per_step(self, plans: Tensor) -> Tensor:
        """The sum of what they say of each step, [B, H]."""
        parts = zip(self.weights, self.networks, strict=True)
        return sum(weight * per_step(network, plans) for weight, network in parts)


class Rescaled(nn.Module):
    """rho(scale * y, t): a reward in coordinates y = x / scale, to be fitted in.

    The gradient to y is `scale` times that to x, so L_RRF of points x / scale and targets scale * d
    is L_RRF with each coordinate's squared error weighed by scale^2.

    Args:
        network: (x [B, ...], t [B]) -> rho [B]; it is what learns.
        scale: of each coordinate, [...].
    """

    TABLES: ClassVar = ("scale",)
    PARTS: ClassVar = ("network",)

    def __init__(self, network: nn.Module, scale: Tensor):
        super().__init__()
        self.network = network
        self.register_buffer("scale", scale.clone())

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        """rho, [B]."""
        return self.network(y * self.scale, t)

    def per_step(self, plans: Tensor) -> Tensor:
        """What the network says of each step, [B, H]."""
        return per_step(self.network, plans * self.scale)


def compose(rewards: Sequence[RelativeReward], weights: Sequence[float]) -> RelativeReward:
    """The reward that is a weighted sum of others: log ratios add, so behaviours combine.

    Args:
        rewards: of one base, one target and one place.
        weights: one for each; a negative one steers away.

    Raises:
        InputError: another number of weights than rewards, or rewards of two targets, places or
            schedules.

    >>> import rrlib, torch
    >>> networks = [rrlib.WindowReward(3, 4, torch.ones(10)) for _ in range(2)]
    >>> both = rrlib.compose([rrlib.RelativeReward(n, "score", "x_t") for n in networks], [1, -0.5])
    >>> both(torch.zeros(5, 8, 3), torch.zeros(5, dtype=torch.long)).shape
    torch.Size([5])
    """
    lengths = {reward.steps for reward in rewards if reward.steps is not None}
    if len(lengths) > 1:
        raise InputError(
            f"rewards: of {' and '.join(map(str, sorted(lengths)))} diffusion steps are not "
            "allowed: rewards of one schedule are needed."
        )
    kinds = {(reward.target, reward.place) for reward in rewards}
    if len(kinds) != 1 or len(weights) != len(rewards):
        raise InputError(
            f"rewards: {len(rewards)} of kinds {sorted(kinds)} with {len(weights)} weights are not "
            "allowed: rewards of one target and one place, and a weight for each, are needed."
        )
    return RelativeReward(WeightedSum([r.network for r in rewards], weights), *kinds.pop())


def save_rewards(
    path: str | Path, rewards: Mapping[str, RelativeReward], about: Mapping[str, Mapping]
) -> None:
    """Write rewards, by name, to a safetensors file; weights are rounded to float16.

    The file appears whole or not at all, and carries a checksum.

    Args:
        path: of the file.
        rewards: name -> reward of a network of `reward_files.KINDS`.
        about: name -> what its user must know, such as the range of the data (`PlanLayout.about`);
            as JSON has it.

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
        told = dict(about[name])
        entries[name] = reward_files.Entry(reward.network, reward.target, reward.place, told)
    reward_files.write(path, entries)


def load_rewards(path: str | Path) -> dict[str, tuple[RelativeReward, dict]]:
    """The rewards of a file of `save_rewards`, in single precision on the CPU, and about each.

    Returns:
        name -> (reward, what `save_rewards` was told about it, which is also its `about`).

    Raises:
        InputError: there is no such file, it is damaged, of another version, or holds something
            else.
    """
    stored = reward_files.read(path)
    rewards = {name: _stored(stored, name) for name in stored}
    return {name: (reward, dict(reward.about)) for name, reward in rewards.items()}


def _stored(stored: reward_files.Stored, name: str) -> RelativeReward:
    entry = stored[name]
    with reward_files.blamed(stored.path):
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
    found = reward_files.read(path)
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
