"""A field in the plane of which it is known what is gradient and what rotation: Gaussian bumps."""

import numpy as np
from scipy.integrate import quad

SIZE = 0.75  # standard deviation of every bump
HEIGHT, CENTRE = 0.6, (-0.3, 0.7)  # of the rotation's


def _slope(x: np.ndarray, heights: np.ndarray, centres: list) -> np.ndarray:
    """Gradient of a sum of K Gaussian bumps, [..., 2], at x [..., 2]."""
    offsets = x[..., None, :] - np.array(centres)  # [..., K, 2]
    values = heights * np.exp(-(offsets**2).sum(-1) / (2 * SIZE**2))
    return -(values[..., None] * offsets).sum(-2) / SIZE**2


def gradient(x: np.ndarray) -> np.ndarray:
    """Of two bumps, one up and one down, [..., 2], at x [..., 2]."""
    return _slope(x, np.array([1.0, -0.7]), [(1.0, 0.6), (-1.0, -0.4)])


def rotation(
    x: np.ndarray, height: float = HEIGHT, centre: tuple[float, float] = CENTRE
) -> np.ndarray:
    """The slope of one bump, turned by 90 degrees, [..., 2], at x [..., 2]."""
    by_x, by_y = np.moveaxis(_slope(x, np.array([height]), [centre]), -1, 0)
    return np.stack([-by_y, by_x], -1)


def field(x: np.ndarray) -> np.ndarray:
    """Both together, [..., 2], at x [..., 2]."""
    return gradient(x) + rotation(x)


def enclosed(start: np.ndarray, end: np.ndarray) -> float:
    """The rotation's curl, integrated over the rectangle with these corners.

    The curl is the bump's Laplacian, so it comes down to integrals over one axis.
    """

    def bump(u: float) -> tuple[float, float]:
        """exp(-u²/2s²) and its second derivative."""
        value = np.exp(-(u**2) / (2 * SIZE**2))
        return value, value * (u**2 / SIZE**2 - 1) / SIZE**2

    def integral(which: int, axis: int) -> float:
        low, high = start[axis] - CENTRE[axis], end[axis] - CENTRE[axis]
        return quad(lambda u: bump(u)[which], low, high, epsabs=1e-14)[0]

    return HEIGHT * (integral(1, 0) * integral(0, 1) + integral(0, 0) * integral(1, 1))
