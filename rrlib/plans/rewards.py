"""Reward networks of plans [B, H, D]: rho(x_t, t) [B], twice differentiable."""

import math
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from rrlib.errors import InputError, check_one_of
from rrlib.method.networks.sums import per_step
from rrlib.method.pools import windows
from rrlib.plans.activations import replace_mish
from rrlib.plans.networks import temporal_unet
from rrlib.plans.shapes import check_shape

Activation = Literal["silu", "leaky_relu"]
TIME_FEATURES = 16


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

    >>> rho = WindowReward(width=6, window=4, unit=torch.ones(10))
    >>> rho(torch.zeros(2, 32, 6), torch.tensor([0, 9])).shape
    torch.Size([2])
    """

    SHAPE: ClassVar = ("width", "window", "hidden", "strided", "activation", "average")
    TABLES: ClassVar = ("unit",)

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
        check_one_of("activation", activation, Activation)
        self.width, self.window, self.strided, self.average = width, window, strided, average
        self.hidden, self.activation = hidden, activation
        smooth = {"silu": nn.SiLU, "leaky_relu": nn.LeakyReLU}[activation]
        sizes = [width * (window // average) + TIME_FEATURES, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), smooth()]
        self.g = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
        self.register_buffer("unit", unit.clone())

    @property
    def windows(self) -> tuple[int, bool]:
        """How a pool is cut for it: steps of a window, and whether they are strided."""
        return self.window, self.strided

    def averaged(self) -> "WindowReward":
        """g as a reward of windows that `Pool.average` has averaged already; weights are shared."""
        if self.average == 1:
            return self
        shape = (self.width, self.window // self.average, self.unit, self.hidden)
        made = WindowReward(*shape, self.strided, self.activation)
        made.g, made.unit = self.g, self.unit
        return made

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

    def per_step(self, plans: Tensor) -> Tensor:
        """g at t = 0 of the window that each step lies in, [B, H], for plans [B, H, D]."""
        g = self.per_window(plans, torch.zeros(len(plans), dtype=torch.long, device=plans.device))
        return g.repeat(1, self.window) if self.strided else g.repeat_interleave(self.window, 1)


class StartReward(nn.Module):
    """rho(x_t, t) of whole plans by where they begin, an MLP.

    Where the models are told the first observation, how they differ depends on it above all, and
    among the averaged steps of a noised plan it would be lost. So g sees it as it is, and Fourier
    features of its place, by which it can tell the two sides of a wall apart. Its gradient leaves
    the first observation alone.

    Args:
        width: D, numbers per time step.
        horizon: H.
        unit: what a unit of g is worth at each t, [T]; see `extraction.displacement_units`.
        observation: do, the last numbers of a step.
        positions: columns of a step that are a place in the map, none where there is no map.
        hidden: widths of the hidden layers.
        average: neighbouring steps that are seen as their mean; 1 shows every step.
        octaves: of the Fourier features, from half a period over [-1, 1] up.

    Raises:
        InputError: the horizon is no multiple of `average`.

    >>> rho = StartReward(6, 32, torch.ones(10), observation=4, positions=(2, 3), average=4)
    >>> rho(torch.zeros(2, 32, 6), torch.tensor([0, 9])).shape
    torch.Size([2])
    """

    SHAPE: ClassVar = (
        *("width", "horizon", "observation", "positions", "hidden", "average", "octaves"),
    )
    TABLES: ClassVar = ("unit",)
    frequencies: Tensor
    columns: Tensor

    def __init__(
        self,
        width: int,
        horizon: int,
        unit: Tensor,
        observation: int,
        positions: tuple[int, ...],
        hidden: tuple[int, ...] = (128, 64, 32),
        average: int = 1,
        octaves: int = 4,
    ):
        super().__init__()
        if average < 1 or horizon % average:
            raise InputError(
                f"average={average} is not allowed: a divisor of the horizon {horizon} is needed."
            )
        self.width, self.horizon, self.observation = width, horizon, observation
        self.positions, self.hidden = tuple(positions), tuple(hidden)
        self.average, self.octaves = average, octaves
        seen = width * (horizon // average) + observation + 2 * octaves * len(self.positions)
        layers: list[nn.Module] = []
        for before, after in pairwise([seen + TIME_FEATURES, *self.hidden]):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.g = nn.Sequential(*layers, nn.Linear(self.hidden[-1], 1))
        frequencies = math.pi * 2.0 ** torch.arange(octaves)
        self.register_buffer("frequencies", frequencies, persistent=False)
        columns = torch.tensor(self.positions, dtype=torch.long)
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("unit", unit.clone())

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """rho, [B], for x_t [B, H, D] and t [B]; InputError for plans of another shape."""
        check_shape("x_t", x_t, (self.horizon, self.width))
        x, first = x_t.clone(), x_t[:, 0, -self.observation :].detach()
        x[:, 0, -self.observation :] = first
        # Times the root, the mean is a projection: lengths, and so gradients, keep their size.
        steps = x.unflatten(1, (-1, self.average)).mean(2).flatten(1) * self.average**0.5
        place = x[:, 0].index_select(1, self.columns)
        phases = (place[..., None] * self.frequencies).flatten(1)
        hundredths = t * (100.0 / len(self.unit))
        time = get_timestep_embedding(hundredths, TIME_FEATURES, max_period=1000).to(x_t)
        g = self.g(torch.cat([steps, first, phases.sin(), phases.cos(), time], 1)).squeeze(-1)
        return g * self.unit.to(g)[t]


class PlanValue(nn.Module):
    """rho(x_t, t) of a whole plan: Diffuser's value function (diffusers' UNet1DModel; Table 2).

    Args:
        width: D, numbers per time step.
        unit: what a unit of the output is worth at each t, [T]; see `extraction.units`.
        channels: per resolution, multiples of 32; up to patch * 2 ** (1 + resolutions) steps fit.
        patch: steps that enter the network as one.

    SiLU instead of Mish, see `WindowReward`.
    """

    SHAPE: ClassVar = ("width", "channels", "patch")
    TABLES: ClassVar = ("unit",)

    def __init__(
        self,
        width: int,
        unit: Tensor,
        channels: tuple[int, ...] = (64, 64, 128, 128),
        patch: int = 1,
    ):
        super().__init__()
        self.width, self.channels, self.patch = width, channels, patch
        self.longest = patch * 2 ** (1 + len(channels))
        self.unet = temporal_unet(
            width * patch,
            width * patch,
            channels,
            act_fn="silu",
            downsample_each_block=True,
            up_block_types=(),
            mid_block_type="ValueFunctionMidBlock1D",
            out_block_type="ValueFunction",
        )
        replace_mish(self.unet, nn.SiLU)
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

    SHAPE: ClassVar = ("observation",)
    PARTS: ClassVar = ("network",)

    def __init__(self, network: nn.Module, observation: int):
        super().__init__()
        self.network, self.observation = network, observation

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """rho, [B]."""
        x = x_t.clone()
        x[:, 0, -self.observation :] = x_t[:, 0, -self.observation :].detach()
        return self.network(x, t)

    def per_step(self, plans: Tensor) -> Tensor:
        """The network's own, [B, H]: what is given changes gradients and no values."""
        return per_step(self.network, plans)


class ContextReward(nn.Module):
    """rho(x_t, t, condition): a reward that sees, beside each step, what the models were told.

    A label of a class is seen as the number that it is.

    Args:
        network: (x [B, H, D + c], t [B]) -> rho [B], such as a `WindowReward`; or of points.
        context: c, numbers of a condition.

    Raises:
        InputError: the network averages steps, or takes the last numbers of a step, where the
            condition is put, for its observation.

    >>> rho = ContextReward(WindowReward(width=5, window=4, unit=torch.ones(10)), context=3)
    >>> rho(torch.zeros(2, 8, 2), torch.tensor([0, 9]), torch.ones(2, 3)).shape
    torch.Size([2])
    """

    SHAPE: ClassVar = ("context",)
    PARTS: ClassVar = ("network",)

    def __init__(self, network: nn.Module, context: int):
        super().__init__()
        if getattr(network, "average", 1) != 1:
            raise InputError("average: a network of averaged steps is not allowed under a context.")
        for part in network.modules():
            if getattr(part, "observation", None) is not None:
                raise InputError(
                    f"network: {type(part).__name__} is not allowed for models that are told a "
                    "condition, which would stand in its first observation's place: a network that "
                    "gives none, such as a WindowReward, is needed."
                )
        self.network, self.context = network, context

    @property
    def windows(self) -> tuple[int, bool] | None:
        """How a pool is cut for it, as of its network."""
        return getattr(self.network, "windows", None)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """rho, [B], for x_t [B, H, D] (or [B, D]), t [B] and the condition [B, c].

        Raises:
            InputError: a condition is missing or of another width.
        """
        found = None if condition is None else condition.reshape(len(condition), -1)
        if found is None or found.shape != (len(x_t), self.context):
            what = "none" if condition is None else f"shape {tuple(condition.shape)}"
            raise InputError(
                f"condition: {what} is not allowed: [{len(x_t)}, {self.context}] is needed."
            )
        if x_t.ndim == 3:
            found = found[:, None].expand(-1, x_t.shape[1], -1)
        return self.network(torch.cat([x_t, found.to(x_t)], -1), t)
