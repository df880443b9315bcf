"""How a model was trained: its own x = alpha x_0 + sigma eps, its own times, what its network says.

All Gaussian paths are one family once they are read at equal signal-to-noise ratio: scaled to
alpha^2 + sigma^2 = 1, the x of one is the x of the other.
And whatever a network predicts, x_0 is affine in it.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from rrlib.errors import check_one_of

Plain = Literal["sample", "epsilon", "v_prediction", "flow_prediction"]  # on every path
Prediction = Literal[Plain, "edm"]


class Asked(NamedTuple):
    """What a model is asked at some levels and what its answer says, each [n] of float64.

    The network sees `ask` x at `time`, and x_0 = `skip` x + `gain` times what it says.
    """

    time: Tensor
    alpha: Tensor
    sigma: Tensor
    ask: Tensor
    skip: Tensor
    gain: Tensor


class Path(Protocol):
    """A model's own levels; lambda is log(alpha / sigma), half the log of the SNR."""

    @property
    def reach(self) -> tuple[float, float]:
        """The least and the largest lambda that its network was trained at."""
        ...

    def at(self, level: Tensor, prediction: Prediction) -> Asked:
        """What the model is asked at each lambda [n] of its reach."""
        ...


@dataclass(frozen=True)
class VariancePreserving:
    """x_k = sqrt(abar_k) x_0 + sqrt(1 - abar_k) eps at whole k (DDPM); between them, lambda is
    linear in k.

    Attributes:
        abar: alpha-bar at each k, falling; a last one of 0 is in no reach.
    """

    abar: tuple[float, ...]

    @property
    def _nodes(self) -> Tensor:
        abar = torch.tensor([a for a in self.abar if a > 0], dtype=torch.float64)
        return (abar / (1 - abar)).log() / 2

    @property
    def reach(self) -> tuple[float, float]:
        """From the last node to the first."""
        nodes = self._nodes
        return float(nodes[-1]), float(nodes[0])

    def steps(self, prediction: Prediction) -> Asked:
        """What the model is asked at its own steps, whole numbers."""
        abar = torch.tensor(self.abar, dtype=torch.float64)
        return _asked(torch.arange(len(abar)), abar.sqrt(), (1 - abar).sqrt(), prediction)

    def at(self, level: Tensor, prediction: Prediction) -> Asked:
        """See `Path`."""
        nodes = self._nodes
        above = torch.searchsorted(-nodes, -level).clamp(1, len(nodes) - 1)
        before = nodes[above - 1]
        time = above - 1 + (before - level) / (before - nodes[above])
        alpha, sigma = (2 * level).sigmoid().sqrt(), (-2 * level).sigmoid().sqrt()
        return _asked(time, alpha, sigma, prediction)


@dataclass(frozen=True)
class Flow:
    """x_s = (1 - s) x_0 + s eps at s from 0 to 1 (rectified flow, flow matching).

    Attributes:
        time_scale: the network is told s times this.
    """

    time_scale: float

    @property
    def reach(self) -> tuple[float, float]:
        """All levels between data and noise."""
        return -torch.inf, torch.inf

    def at(self, level: Tensor, prediction: Prediction) -> Asked:
        """See `Path`."""
        sigma = (-level).sigmoid()
        return _asked(sigma * self.time_scale, level.sigmoid(), sigma, prediction)


@dataclass(frozen=True)
class EDM:
    """x = x_0 + sigma eps, told log(sigma) / 4 (Karras et al. 2022, Table 1).

    Attributes:
        sigma_min, sigma_max: the levels that it was trained at.
        sigma_data: of the preconditioning.
        sign: of the network's part in x_0; -1 where diffusers' schedulers of EDM say v_prediction.
    """

    sigma_min: float
    sigma_max: float
    sigma_data: float
    sign: int = 1

    @property
    def reach(self) -> tuple[float, float]:
        """From sigma_max to sigma_min."""
        ends = torch.tensor([self.sigma_max, self.sigma_min], dtype=torch.float64)
        least, largest = (-ends.log()).tolist()
        return least, largest

    def at(self, level: Tensor, prediction: Prediction) -> Asked:
        """See `Path`."""
        sigma, time = (-level).exp(), -level / 4
        if prediction != "edm":
            return _asked(time, torch.ones_like(sigma), sigma, prediction)
        whole = sigma.square() + self.sigma_data**2
        return Asked(
            time,
            torch.ones_like(sigma),
            sigma,
            whole.rsqrt(),
            self.sigma_data**2 / whole,
            self.sign * sigma * self.sigma_data / whole.sqrt(),
        )


def _asked(time: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Asked:
    """Of a network that sees x itself; InputError for a prediction that is EDM's, or none."""
    check_one_of("prediction", prediction, Plain)
    one = torch.ones_like(alpha)
    if prediction == "sample":
        skip, gain = 0 * one, one
    elif prediction == "epsilon":
        skip, gain = 1 / alpha, -sigma / alpha
    elif prediction == "v_prediction":  # alpha eps - sigma x_0
        whole = alpha.square() + sigma.square()
        skip, gain = alpha / whole, -sigma / whole
    else:  # flow: eps - x_0
        skip, gain = 1 / (alpha + sigma), -sigma / (alpha + sigma)
    return Asked(time, alpha, sigma, one, skip, gain)
