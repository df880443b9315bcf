"""A denoiser of long plans in a map: a residual perceptron on their principal components."""

import math

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from rrlib.errors import InputError
from rrlib.plans.shapes import check_shape

TIME_FEATURES = 64
SMALLEST = 1e-9  # variance of a component


class ComponentPerceptron(nn.Module):
    """x0 of plans [B, H, D] at t: the best linear guess, and what a perceptron adds to it.

    A plan is smooth: of its H D numbers a few dozen principal components hold nearly all that
    varies, and what x_t says of each is known in closed form where plans are Gaussian (the Wiener
    filter, the optimum among linear denoisers). That guess needs no learning. What is not Gaussian
    is the map: which way a corridor leads from *here*. So the perceptron is told where the guess
    is at some steps, as Fourier features of the positions, and corrects each component by what it
    says times the deviation that the noise leaves there, so that its output is of order 1 at all t.

    Args:
        width: D, numbers per time step.
        horizon: H.
        signal: alpha-bar at each t, [T].
        positions: columns of a step that are a place in the map.
        components: K, principal components that are kept; what is left keeps its mean.
        hidden: width of the layers.
        blocks: residual blocks, of two layers each, told t by a scale and a shift (FiLM).
        octaves: of the Fourier features, from half a period over [-1, 1] up.
        places: steps of the plan, spread evenly, whose positions are looked up.
        observation: do, the last numbers of a step; given ones are read as they are.

    `learn_components` must see plans before the first training step; the file of the weights holds
    what it found.
    """

    basis: Tensor
    centre: Tensor
    variance: Tensor
    left_out: Tensor
    signal: Tensor
    times: Tensor
    places: Tensor
    frequencies: Tensor

    def __init__(
        self,
        width: int,
        horizon: int,
        signal: Tensor,
        *,
        positions: tuple[int, ...],
        observation: int,
        components: int = 64,
        hidden: int = 256,
        blocks: int = 3,
        octaves: int = 4,
        places: int = 32,
    ):
        super().__init__()
        self.shape, self.observation = (horizon, width), observation
        zeros = torch.zeros(horizon * width, components)
        at = torch.linspace(0, horizon - 1, places).round().long()
        found = {"basis": zeros, "centre": zeros[:, 0].clone(), "variance": zeros[0].clone()}
        found["left_out"] = torch.zeros(())  # variance of the other components, summed
        fixed = {
            "signal": signal.float().clone(),
            "times": get_timestep_embedding(
                torch.arange(len(signal)), TIME_FEATURES, max_period=1000
            ),
            "places": (at[:, None] * width + torch.tensor(positions)).flatten(),
            "frequencies": math.pi * 2.0 ** torch.arange(octaves),
        }
        for name, value in (found | fixed).items():
            self.register_buffer(name, value, persistent=name in found)
        seen = components + places * 2 * octaves * len(positions) + 2 * (1 + observation)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, hidden), nn.SiLU())
        self.enter = nn.Linear(seen, hidden)
        self.blocks = nn.ModuleList(_Block(hidden) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, components))
        for parameter in self.leave[1].parameters():
            nn.init.zeros_(parameter)  # it begins as the Wiener filter

    @torch.no_grad()
    def learn_components(self, plans: Tensor) -> None:
        """Take mean, principal components and their variances from normalised plans [n, H, D].

        Raises:
            InputError: plans of another shape, or no more of them than components.
        """
        check_shape("plans", plans, self.shape)
        flat = plans.flatten(1).double()
        kept = len(self.variance)
        if not kept < len(flat):
            raise InputError(
                f"plans: {len(flat)} are not allowed: more than the {kept} components are needed."
            )
        centre = flat.mean(0)
        away = flat - centre
        values, vectors = torch.linalg.eigh(away.T @ away / len(flat))
        vectors = vectors * torch.where(vectors.sum(0) < 0, -1.0, 1.0)  # the sign is free
        self.centre.copy_(centre)
        self.variance.copy_(values[-kept:].clamp(min=SMALLEST))
        self.left_out.copy_(values[:-kept].sum())
        self.basis.copy_(vectors[:, -kept:])

    def unexplained(self, t: Tensor) -> Tensor:
        """Mean squared error of a plan's number that the linear guess has at t [B], [B].

        What a loss at t is worth: `conditioning.plan_loss` divides by it.
        """
        signal = self.signal[t][:, None]
        left = self.variance * (1 - signal) / (signal * self.variance + 1 - signal)
        return (left.sum(1) + self.left_out) / len(self.centre)

    def forward(self, x: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        """Prediction [B, H, D] for x [B, H, D] at t [B].

        given: bool [B, H], the steps whose observations are clean; of these the first and the last
        are read. None for none.

        Raises:
            InputError: plans of another shape.
        """
        check_shape("x", x, self.shape)
        signal = self.signal[t][:, None]
        total = signal * self.variance + 1 - signal  # variance of a component of x
        seen = (x.flatten(1) - signal.sqrt() * self.centre) @ self.basis / total.sqrt()
        guess = seen * signal.sqrt() * self.variance / total.sqrt()
        deviation = (self.variance * (1 - signal) / total).sqrt()
        # There are fewer steps of noise than plans in a batch: what is said of t is said once.
        time = self.time(self.times)
        h = self.enter(torch.cat([seen, self._places(guess), self._ends(x, given)], 1))
        for block in self.blocks:
            h = block(h, block.film(time)[t])
        return self._plans(guess + deviation * self.leave(h))

    def _plans(self, components: Tensor) -> Tensor:
        """Plans [B, H, D] of components [B, K]."""
        return (components @ self.basis.T + self.centre).unflatten(1, self.shape)

    def _places(self, guess: Tensor) -> Tensor:
        """Fourier features [B, F] of where a guess [B, K] is."""
        there = guess @ self.basis[self.places].T + self.centre[self.places]
        phases = there[..., None] * self.frequencies
        return torch.cat([phases.sin(), phases.cos()], 2).flatten(1)

    def _ends(self, x: Tensor, given: Tensor | None) -> Tensor:
        """Whether the first and the last observation are given, and which; [B, 2 (1 + do)]."""
        last = self.shape[0] - 1
        marks = x.new_zeros(len(x), 2) if given is None else given[:, ::last].to(x)
        ends = x[:, ::last, -self.observation :] * marks[..., None]
        return torch.cat([marks, ends.flatten(1)], 1)


class _Block(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.film = nn.Linear(hidden, 2 * hidden)
        self.first, self.second = nn.Linear(hidden, 2 * hidden), nn.Linear(2 * hidden, hidden)
        self.smooth = nn.SiLU()
        for layer in (self.film, self.second):  # each block begins as the identity
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, told: Tensor) -> Tensor:
        scale, shift = told.chunk(2, -1)
        return h + self.second(self.smooth(self.first(self.norm(h) * (1 + scale) + shift)))
