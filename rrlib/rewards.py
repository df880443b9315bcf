"""Reward networks: rho(x_t, t), and the reward of a single step."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from rrlib.errors import InputError, shown
from rrlib.schedules import check_times

Target = Literal["score", "mean"]
Place = Literal["x_t", "mu_base"]
Activation = Literal["silu", "leaky_relu"]
TIME_FEATURES = 16


def windows(x: Tensor, window: int, strided: bool = False) -> Tensor:
    """Plans [B, H, D] cut into H / h windows of h steps, [B, H / h, h, D].

    Args:
        x: plans.
        window: h.
        strided: window j holds the steps j, j + H / h, ... (the paper's authors' code) instead of
            h contiguous steps (the paper's text).

    Raises:
        InputError: the horizon is no multiple of the window.
    """
    horizon = x.shape[1]
    if window < 1 or horizon % window:
        raise InputError(
            f"window={window} is not allowed: a divisor of the horizon {horizon} is needed."
        )
    if strided:
        return x.unflatten(1, (window, -1)).transpose(1, 2)
    return x.unflatten(1, (-1, window))


def unit_of(network: nn.Module) -> Tensor | None:
    """What a unit of a network's output is worth at each t, [T]; None where it does not say.

    Of a network that wraps or stacks others, the first one's.
    """
    buffers = network.named_buffers() if isinstance(network, nn.Module) else ()
    found = (value for name, value in buffers if name.split(".")[-1] == "unit")
    unit = next(found, None)
    return unit if unit is None or unit.ndim == 1 else unit[0]


def _check_kind(name: str, value: str, kind) -> None:
    if value not in get_args(kind):
        allowed = " or ".join(map(repr, get_args(kind)))
        raise InputError(f"{name}={shown(value)} is not allowed: {allowed} is needed.")


class WindowReward(nn.Module):
    """rho(x_t, t) = mean over contiguous windows of g(window, t), g an MLP (Table 2, appendix E).

    Args:
        width: D, numbers per time step.
        window: h, time steps that g sees; the horizon must be a multiple of it.
        unit: what a unit of g is worth at each t, [T]; see `extraction.units`.
        hidden: widths of g's hidden layers.
        strided: see `windows`.
        activation: "silu", or "leaky_relu" as the authors' code has it.
        average: neighbouring steps of a window that g sees as their mean; 1 shows every step.

    Raises:
        InputError: the window is no multiple of `average`.

    SiLU, because the theorem wants smooth gradients and Mish's second derivative overflows.
    The time is a sinusoidal embedding, so what one t learns its neighbours share.
    """

    def __init__(
        self,
        width: int,
        window: int,
        unit: Tensor,
        hidden: tuple[int, ...] = (128, 64, 32),
        strided: bool = False,
        activation: Activation = "silu",
        average: int = 1,
    ):
        super().__init__()
        if average < 1 or window % average:
            raise InputError(
                f"average={average} is not allowed: a divisor of the window {window} is needed."
            )
        _check_kind("activation", activation, Activation)
        self.width, self.window, self.strided, self.average = width, window, strided, average
        self.hidden, self.activation = hidden, activation
        smooth = {"silu": nn.SiLU, "leaky_relu": nn.LeakyReLU}[activation]
        sizes = [width * (window // average) + TIME_FEATURES, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), smooth()]
        self.g = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
        self.register_buffer("unit", unit.clone())

    def per_window(self, x_t: Tensor, t: Tensor) -> Tensor:
        """g of every window, [B, H / h], for x_t [B, H, D] (or [B, D], one step) and t [B].

        Raises:
            InputError: another width, or a horizon that is no multiple of the window.
        """
        if x_t.shape[-1] != self.width:
            raise InputError(
                f"x_t of shape {tuple(x_t.shape)} is not allowed: plans of width {self.width} are "
                "needed."
            )
        plans = x_t.reshape(len(x_t), -1, self.width)
        cut = windows(plans, self.window, self.strided)  # [B, H / h, h, D]
        # Times the root, the mean is a projection: lengths, and so gradients, keep their size.
        cut = cut.unflatten(2, (-1, self.average)).mean(3).flatten(2) * self.average**0.5
        hundredths = t * (100.0 / len(self.unit))
        time = get_timestep_embedding(hundredths, TIME_FEATURES, max_period=1000)
        time = time.to(cut)[:, None].expand(-1, cut.shape[1], -1)
        g = self.g(torch.cat([cut, time], -1)).squeeze(-1)
        return g * self.unit.to(g)[t][:, None]

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """rho, [B], for x_t [B, H, D] (or [B, D]) and t [B]."""
        return self.per_window(x_t, t).mean(1)


class ConditionalReward(nn.Module):
    """rho(x_t, t) of plans whose first observation is given: its gradient leaves that alone.

    Args:
        network: (x_t [B, H, D], t [B]) -> rho [B], with a buffer `unit`.
        observation: do, numbers of the first observation.
    """

    def __init__(self, network: nn.Module, observation: int):
        super().__init__()
        self.network, self.observation = network, observation

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """rho, [B]."""
        x = x_t.clone()
        x[:, 0, -self.observation :] = x_t[:, 0, -self.observation :].detach()
        return self.network(x, t)


class Rescaled(nn.Module):
    """rho(scale * y, t): a reward in coordinates y = x / scale, to be fitted in.

    The gradient to y is `scale` times that to x, so L_RRF of points x / scale and targets scale * d
    is L_RRF with each coordinate's squared error weighed by scale^2.

    Args:
        network: (x [B, ...], t [B]) -> rho [B]; it is what learns.
        scale: of each coordinate, [...].
    """

    def __init__(self, network: nn.Module, scale: Tensor):
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        """rho, [B]."""
        return self.network(y * self.scale, t)


@dataclass(frozen=True)
class RelativeReward:
    """A fitted reward together with what its gradient means.

    Attributes:
        network: (x [B, ...], t [B]) -> rho [B], twice differentiable.
        target: the gradient is a difference of "score"s (Eq. 14) or of "mean"s (Eq. 45 with its
            sign turned), expert minus base.
        place: where the gradient was fitted: at "x_t" (Eq. 14), or at "mu_base" = mean_base(x_t).

    Raises:
        InputError: another target or place than there are, or than `extraction.fit` fitted the
            network to; when asked, a t that is no step.
    """

    network: nn.Module
    target: Target
    place: Place

    def __post_init__(self):
        _check_kind("target", self.target, Target)
        _check_kind("place", self.place, Place)
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

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """rho, [B], in the precision of x whatever the network's."""
        if not isinstance(x, Tensor):
            raise InputError(f"x: {type(x).__name__} is not allowed: a torch tensor is needed.")
        check_times(t, self.steps or torch.iinfo(torch.long).max)
        dtype = next((p.dtype for p in self.network.parameters()), x.dtype)
        return self.network(x.to(dtype), t).to(x.dtype)

    def gradient(self, x: Tensor, t: Tensor) -> Tensor:
        """grad_x rho(x, t), [B, ...], detached."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self(x, t).sum(), x)[0]


class WeightedSum(nn.Module):
    """sum_k w_k rho_k(x_t, t), [B], of several reward networks."""

    def __init__(self, networks: Sequence[nn.Module], weights: Sequence[float]):
        super().__init__()
        self.networks, self.weights = nn.ModuleList(networks), tuple(weights)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The sum, [B], for x_t [B, ...] and t [B]."""
        parts = zip(self.weights, self.networks, strict=True)
        return sum(weight * network(x_t, t) for weight, network in parts)


def compose(rewards: Sequence[RelativeReward], weights: Sequence[float]) -> RelativeReward:
    """The reward that is a weighted sum of others: log ratios add, so behaviours combine.

    Args:
        rewards: of one base, one target and one place.
        weights: one for each; a negative one steers away.

    Raises:
        InputError: another number of weights than rewards, or rewards of two targets, places or
            schedules.
    """
    lengths = {reward.steps for reward in rewards} - {None}
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


def per_step(reward: RelativeReward, states: Tensor, actions: Tensor) -> Tensor:
    """Reward of each time step at t = 0, [B, H] (section 4.3): a step has its window's g.

    Args:
        states: [B, H, do], normalised.
        actions: [B, H, da], normalised.

    Of a sum it is the sum of its rewards' own.

    Raises:
        InputError: the horizon is no multiple of the reward's window, states and actions do not
            belong together, or the reward is of a kind that values whole plans only.
    """
    for name, part in (("states", states), ("actions", actions)):
        shape = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
        if not isinstance(part, Tensor) or part.ndim != 3 or part.shape[:2] != states.shape[:2]:
            raise InputError(f"{name}: {shape} is not allowed: tensors [B, H, ...] are needed.")
    plans = torch.cat([actions, states], -1)
    network = getattr(reward, "network", reward)
    dtype = (
        next((p.dtype for p in network.parameters()), plans.dtype)
        if network is not reward
        else plans.dtype
    )
    with torch.no_grad():
        return _per_step(network, plans.to(dtype)).to(plans.dtype)


def _per_step(network: nn.Module, plans: Tensor) -> Tensor:
    """What a network says of each step of plans [B, H, D], [B, H]."""
    if isinstance(network, WindowReward):
        t = torch.zeros(len(plans), dtype=torch.long, device=plans.device)
        g, window = network.per_window(plans, t), network.window
        return g.repeat(1, window) if network.strided else g.repeat_interleave(window, 1)
    if isinstance(network, WeightedSum):
        parts = zip(network.weights, network.networks, strict=True)
        return sum(weight * _per_step(part, plans) for weight, part in parts)
    if isinstance(network, ConditionalReward):  # it changes gradients, no values
        return _per_step(network.network, plans)
    if isinstance(network, Rescaled):
        return _per_step(network.network, plans * network.scale)
    raise InputError(
        f"reward: {type(network).__name__} is not allowed: it values a plan as a whole, and a "
        "WindowReward is needed to value each step."
    )
