"""Reward networks: rho(x_t, t), and the reward of a single step."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from diffusers import UNet1DModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from rrlib.errors import InputError

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

    Of a network that wraps others, the first one's.
    """
    found = (value for name, value in network.named_buffers() if name.split(".")[-1] == "unit")
    return next(found, None)


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


class PlanValue(nn.Module):
    """rho(x_t, t) of a whole plan: Diffuser's value function (diffusers' UNet1DModel; Table 2).

    Args:
        width: D, numbers per time step.
        unit: what a unit of the output is worth at each t, [T]; see `extraction.units`.
        channels: per resolution, multiples of 32; up to patch * 2 ** (1 + resolutions) steps fit.
        patch: steps that enter the network as one.

    SiLU instead of Mish, see `WindowReward`.
    """

    def __init__(
        self,
        width: int,
        unit: Tensor,
        channels: tuple[int, ...] = (64, 64, 128, 128),
        patch: int = 1,
    ):
        super().__init__()
        self.width, self.patch, self.longest = width, patch, patch * 2 ** (1 + len(channels))
        self.unet = UNet1DModel(
            in_channels=width * patch,
            out_channels=width * patch,
            time_embedding_type="positional",
            use_timestep_embedding=True,
            flip_sin_to_cos=False,
            freq_shift=1,
            act_fn="silu",
            layers_per_block=1,
            downsample_each_block=True,
            block_out_channels=channels,
            down_block_types=("DownResnetBlock1D",) * len(channels),
            up_block_types=(),
            mid_block_type="ValueFunctionMidBlock1D",
            out_block_type="ValueFunction",
        )
        _replace_mish(self.unet)
        self.register_buffer("unit", unit.clone())

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """rho, [B], for x_t [B, H, D] and t [B].

        Raises:
            InputError: another width, or a horizon beyond the network's or no multiple of `patch`.
        """
        horizon = x_t.shape[1]
        if x_t.shape[-1] != self.width or horizon > self.longest or horizon % self.patch:
            raise InputError(
                f"x_t of shape {tuple(x_t.shape)} is not allowed: plans of width {self.width} and "
                f"a multiple of {self.patch}, at most {self.longest}, steps are needed."
            )
        patches = x_t.unflatten(1, (-1, self.patch)).flatten(2)
        out = self.unet(patches.mT, t * (100.0 / len(self.unit))).sample.squeeze(-1)
        return out * self.unit.to(out)[t]


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


def _replace_mish(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Mish):
            setattr(module, name, nn.SiLU())
        else:
            _replace_mish(child)


@dataclass(frozen=True)
class RelativeReward:
    """A fitted reward together with what its gradient means.

    Attributes:
        network: (x [B, ...], t [B]) -> rho [B], twice differentiable.
        target: the gradient is a difference of "score"s (Eq. 14) or of "mean"s (Eq. 45 with its
            sign turned), expert minus base.
        place: where the gradient was fitted: at "x_t" (Eq. 14), or at "mu_base" = mean_base(x_t).
    """

    network: nn.Module
    target: Target
    place: Place

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """rho, [B], in the precision of x whatever the network's."""
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
        InputError: another number of weights than rewards, or rewards of two targets or places.
    """
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

    Raises:
        InputError: the horizon is no multiple of the reward's window.
    """
    plans = torch.cat([actions, states], -1)
    t = torch.zeros(len(plans), dtype=torch.long, device=plans.device)
    network = reward.network
    with torch.no_grad():
        g = network.per_window(plans, t)
    return (
        g.repeat(1, network.window) if network.strided else g.repeat_interleave(network.window, 1)
    )
