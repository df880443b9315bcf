"""A residual perceptron for short plans: what a U-Net does in the time of its first layer."""

from typing import ClassVar

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from rrlib.plans.shapes import check_shape

TIME_FEATURES = 32


class PlanPerceptron(nn.Module):
    """x0 of plans [B, H, D] at t by residual layers over the whole plan at once.

    A plan of a robot is short and wide (32 steps of 14 numbers) and its first action must be exact:
    for one and the same time per step, dense layers reach an error that convolutions do not.
    The first step of the plan also has layers of its own, from itself to itself: it holds the given
    observation and the action that will be carried out, and the rest of the plan is many times as
    many numbers.

    Args:
        width: D, numbers per time step.
        horizon: H.
        diffusion_steps: T.
        hidden: width of the layers.
        blocks: residual blocks, of two layers each.
    """

    def __init__(
        self, width: int, horizon: int, diffusion_steps: int, hidden: int = 512, blocks: int = 3
    ):
        super().__init__()
        self.shape, self.diffusion_steps = (horizon, width), diffusion_steps
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, hidden), nn.SiLU())
        self.enter = nn.Linear(horizon * (width + 1), hidden)
        self.blocks = nn.ModuleList(_Block(hidden) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, horizon * width))
        self.enter_first = nn.Linear(width, hidden)
        self.blocks_first = nn.ModuleList(_Block(hidden) for _ in range(blocks))
        self.leave_first = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width))

    def forward(self, x: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        """Prediction [B, H, D] for x [B, H, D] at t [B].

        given: bool [B, H], the steps whose observations are clean; None for none.

        Raises:
            InputError: plans of another shape.
        """
        check_shape("x", x, self.shape)
        mark = x.new_zeros(x.shape[:2]) if given is None else given.to(x)
        hundredths = t * (100.0 / self.diffusion_steps)
        time = self.time(get_timestep_embedding(hundredths, TIME_FEATURES, max_period=1000).to(x))
        h = self.enter(torch.cat([x, mark[..., None]], -1).flatten(1)) + time
        for block in self.blocks:
            h = block(h, time)
        first = self.enter_first(x[:, 0]) + time
        for block in self.blocks_first:
            first = block(first, time)
        x0 = self.leave(h).reshape(x.shape)
        return torch.cat([x0[:, :1] + self.leave_first(first)[:, None], x0[:, 1:]], 1)


class _Block(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.first, self.second = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.smooth = nn.SiLU()

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        return h + self.second(self.smooth(self.first(self.norm(h) + time)))


class PlanPotential(nn.Module):
    """rho(x_t, t) = <(x_t, 1), f(x_t, t)> of a whole plan, f a `PlanPerceptron`.

    Where a model is nearly sure of x0, its difference from another hardly depends on the noise in
    x_t, and its potential is linear in the plan with coefficients that depend on what is given.
    A product says that at once: its gradient is f itself wherever f does not change.

    Args:
        width: D, numbers per time step.
        horizon: H.
        unit: what a unit of the output is worth at each t, [T]; see `extraction.units`.
        hidden, blocks: of f.
    """

    SHAPE: ClassVar = ("width", "horizon", "hidden", "blocks")
    TABLES: ClassVar = ("unit",)

    def __init__(self, width: int, horizon: int, unit: Tensor, hidden: int = 512, blocks: int = 2):
        super().__init__()
        self.width, self.horizon = width, horizon
        self.hidden, self.blocks = hidden, blocks
        self.f = PlanPerceptron(width + 1, horizon, len(unit), hidden, blocks)
        self.register_buffer("unit", unit.clone())

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """rho, [B], for x_t [B, H, D] and t [B]; InputError for plans of another shape."""
        check_shape("x_t", x_t, (self.horizon, self.width))
        x = torch.cat([x_t, torch.ones_like(x_t[..., :1])], -1)
        return (x * self.f(x, t)).flatten(1).sum(1) * self.unit.to(x)[t]
