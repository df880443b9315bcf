"""What several chapters on the theory begin with: numbers, times, two mixtures in the plane."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rrlib.theory import sde


def real(values: Sequence) -> Tensor:
    """Numbers, or lists or arrays of numbers, as float64."""
    return torch.as_tensor(np.array(values), dtype=torch.float64)


def log10(error: float) -> float:
    """log10 of an error; no error at all counts as 1e-18."""
    return float(np.log10(max(float(error), 1e-18)))


def uniform(n_steps: int, end: float = 1.0) -> Tensor:
    """n_steps + 1 times from 0 to `end`, float64."""
    return torch.linspace(0, end, n_steps + 1, dtype=torch.float64)


def tilted(angle: float, long: float, short: float) -> np.ndarray:
    """A covariance [2, 2] with these standard deviations, its long axis at `angle` (radians)."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (turn * np.square([long, short])) @ turn.T


def base() -> sde.GaussianMixture:
    """Four tilted blobs around the origin, of equal weights."""
    centres = [[1.5, 0.0], [-1.5, 0.0], [0.0, 1.5], [0.0, -1.5]]
    covariances = [tilted(0.3 * k, 0.6, 0.35) for k in range(4)]
    return sde.GaussianMixture(real([0.25] * 4), real(centres), real(covariances))


def expert() -> sde.GaussianMixture:
    """Two narrower blobs above the origin, of weights 0.7 and 0.3."""
    covariances = [tilted(0.8, 0.5, 0.3), tilted(-0.5, 0.4, 0.3)]
    return sde.GaussianMixture(real([0.7, 0.3]), real([[1.2, 1.0], [-0.6, 1.4]]), real(covariances))
