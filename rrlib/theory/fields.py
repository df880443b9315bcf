"""Vector fields on grids: which part of a field is a gradient, and along which path it is summed.

The projection onto gradients is a question of the norm.
In plain L2 (Eq. 11) it is a Poisson equation, solved here in Fourier space for fields on a periodic
box and for fields that decay on the plane; in L2(p), the norm of the loss (Eq. 14), it is a Poisson
equation with the density p as conductivity, solved by elimination of a sparse matrix.
Everything is NumPy in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
from scipy.linalg import solve_continuous_lyapunov
from scipy.sparse import csr_array, diags_array, eye_array, kron, vstack
from scipy.sparse.linalg import splu
from scipy.special import j0

from rrlib.errors import InputError


def grid(n: int, side: float, dimension: int = 2) -> np.ndarray:
    """Points [n, ..., n, d] of a periodic grid on [-side/2, side/2)^d; the origin is one."""
    axis = (np.arange(n) - n // 2) * (side / n)
    return np.stack(np.meshgrid(*[axis] * dimension, indexing="ij"), -1)


def _waves(n: int, side: float, dimension: int) -> np.ndarray:
    """Wave vectors [n, ..., n, d] of a grid.

    The shortest wave that an even n can hold gets 0: its derivative vanishes at every grid point.
    """
    k = 2 * np.pi * np.fft.fftfreq(n, side / n)
    if n % 2 == 0:
        k[n // 2] = 0
    return np.stack(np.meshgrid(*[k] * dimension, indexing="ij"), -1)


def derivatives(values: np.ndarray, side: float, dimension: int) -> np.ndarray:
    """Spectral derivatives on a periodic box, [n, ..., n, m, d], of values [n, ..., n, m]."""
    axes = tuple(range(dimension))
    waves = _waves(len(values), side, dimension)[..., None, :]
    hat = np.fft.fftn(values, axes=axes)[..., None]
    return np.fft.ifftn(1j * waves * hat, axes=axes).real


def curl(field: np.ndarray, side: float) -> np.ndarray:
    """d_i f_j - d_j f_i, [n, ..., n, d, d], of a periodic field [n, ..., n, d].

    It vanishes for gradients alone. In the plane the entry [0, 1] is the usual scalar curl.
    """
    slopes = derivatives(field, side, field.shape[-1])  # [..., j, i]
    return np.swapaxes(slopes, -1, -2) - slopes


def project_periodic(field: np.ndarray, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Plain L2 projection onto gradients of periodic potentials (Eq. 11).

    In Fourier space the part of each coefficient along its wave vector: k (k . f) / |k|^2.
    The mean belongs to no periodic potential and is left over.

    Args:
        field: [n, ..., n, d], on the points of `grid`.
        side: length of the box along each axis.

    Returns:
        potential [n, ..., n] with mean zero, and its gradient [n, ..., n, d].
    """
    d = field.shape[-1]
    waves = _waves(len(field), side, d)
    square = (waves**2).sum(-1)
    along = (waves * np.fft.fftn(field, axes=range(d))).sum(-1)
    hat = np.divide(-1j * along, square, out=np.zeros_like(along), where=square > 0)
    gradient = np.fft.ifftn(1j * waves * hat[..., None], axes=range(d)).real
    return np.fft.ifftn(hat).real, gradient


def project_decaying(field: np.ndarray, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Plain L2 projection, on the whole plane, of a field that vanishes at the border of its box.

    The potential is the convolution of the field's divergence with log|x| / (2 pi), to which a
    constant may be added, since the divergence sums to zero. Cutting log(|x| / R) / (2 pi) to zero
    at a radius R beyond the box's diagonal changes nothing inside the box and makes its Fourier
    transform -(1 - J0(R k)) / k^2 smooth, so the sum over a padded grid is as accurate as the field
    is smooth (Vico, Greengard and Ferrando, J. Comput. Phys. 323, 2016).

    Args:
        field: [n, n, 2], on the points of `grid`.
        side: length of the box along each axis.

    Returns:
        potential [n, n], which fades like 1/|x|, and its gradient [n, n, 2], both on the box.
    """
    n, padding = len(field), 3  # copies of the box are then farther off than the radius
    radius = 1.5 * side
    waves = _waves(padding * n, padding * side, 2)
    k = np.linalg.norm(waves, axis=-1)
    k[k == 0] = 1 / radius  # any number will do: the divergence has no such wave
    kernel = -(1 - j0(k * radius)) / k**2
    hat = np.fft.fft2(field, (padding * n, padding * n), axes=(0, 1))
    hat = kernel * (1j * waves * hat).sum(-1)
    potential = np.fft.ifft2(hat).real
    gradient = np.fft.ifft2(1j * waves * hat[..., None], axes=(0, 1)).real
    return potential[:n, :n], gradient[:n, :n]


def line_integral(
    field: Callable[[np.ndarray], np.ndarray], path: np.ndarray, nodes: int = 64
) -> float:
    """Integral of field . dx along a polygon (Eq. 10), by Gauss-Legendre quadrature on each edge.

    Args:
        field: points [N, d] -> vectors [N, d].
        path: corners, [m, d]; a closed path repeats its first corner.
        nodes: quadrature points per edge.
    """
    places, weights = np.polynomial.legendre.leggauss(nodes)
    edges = np.diff(path, axis=0)  # [m - 1, d]
    points = path[:-1, None] + (places[:, None] + 1) / 2 * edges[:, None]  # [m - 1, nodes, d]
    vectors = field(points.reshape(-1, path.shape[1])).reshape(points.shape)
    return float(np.einsum("end,ed,n->", vectors, edges, weights / 2))


@dataclass(frozen=True, eq=False)
class EdgeGrid:
    """Fields on the E edges of a grid of n^d nodes, in L2(p); made by `edge_grid`.

    An edge carries the component of a field along itself, at its midpoint, where a potential on the
    nodes has its difference quotient. So gradients are exact on this grid, and the identities of a
    projection hold to rounding; against the continuum it is of second order in the spacing.

    Attributes:
        points: midpoints of the edges, [E, d].
        component: which component an edge carries, [E].
        weight: p there times the volume it stands for, [E].
        quotients: potential [n^d] -> its slopes [E], sparse.
        shape: of the grid of nodes, (n, ..., n).
    """

    points: np.ndarray
    component: np.ndarray
    weight: np.ndarray
    quotients: csr_array
    shape: tuple[int, ...]

    def carry(self, vectors: np.ndarray) -> np.ndarray:
        """What the edges carry, [E], of a field's vectors [E, d] at `points`."""
        return np.take_along_axis(vectors, self.component[:, None], 1)[:, 0]

    def dot(self, a: np.ndarray, b: np.ndarray) -> float:
        """Inner product in L2(p) of what the edges carry of two fields, [E] each."""
        return float(np.sum(self.weight * a * b))

    def norm(self, a: np.ndarray) -> float:
        """Norm in L2(p) of what the edges carry, [E]."""
        return self.dot(a, a) ** 0.5

    def project(self, carried: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Projection onto gradients in L2(p), the norm of the loss (Eq. 14).

        The minimiser of the integral of p |grad Phi - f|^2 solves div(p grad Phi) = div(p f), with
        no flux of p (f - grad Phi) through the border. Here these are the normal equations
        D' W D Phi = D' W f of a least-squares problem, D the quotients and W the weights.

        Args:
            carried: what the edges carry of the field f, [E].

        Returns:
            potential [n, ..., n] with mean zero under p, and its slopes on the edges [E].
        """
        free, root, solve = self._factors
        divergence = self.quotients.T @ (self.weight * carried)
        potential = np.zeros(len(root))
        potential[free] = solve((divergence / root)[free]) / root[free]
        mass = abs(self.quotients).T @ self.weight
        potential -= mass @ potential / mass.sum()
        return potential.reshape(self.shape), self.quotients @ potential

    @cached_property
    def _factors(self) -> tuple[np.ndarray, np.ndarray, Callable]:
        """The nodes solved for, the scale of each node, and the eliminated matrix's solver."""
        matrix = (self.quotients.T * self.weight) @ self.quotients
        root = np.sqrt(matrix.diagonal())
        # A potential is free up to a constant: the node of most weight stays at 0.
        free = np.arange(len(root)) != root.argmax()
        scaled = (matrix / root / root[:, None]).tocsc()[free][:, free]
        factors = splu(scaled, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
        return free, root, factors.solve


def edge_grid(
    density: Callable[[np.ndarray], np.ndarray], axis: np.ndarray, dimension: int = 2
) -> EdgeGrid:
    """The grid of a density p; a constant one gives plain L2 on the box, with walls.

    Args:
        density: points [N, d] -> p [N], positive; its scale does not matter.
        axis: nodes along each axis, [n], evenly spaced.
        dimension: d.

    Raises:
        InputError: p is not positive at some edge (it may have underflowed).
    """
    n, step = len(axis), axis[1] - axis[0]
    middle = (axis[1:] + axis[:-1]) / 2
    quotient = diags_array([-1 / step, 1 / step], offsets=[0, 1], shape=(n - 1, n))
    border = np.ones(n)
    border[[0, -1]] = 0.5  # the trapezium rule across an edge
    quotients, points, components, volumes = [], [], [], []
    for along in range(dimension):
        is_along = [i == along for i in range(dimension)]
        quotients.append(reduce(kron, [quotient if here else eye_array(n) for here in is_along]))
        axes = [middle if here else axis for here in is_along]
        points.append(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, dimension))
        components.append(np.full(len(points[-1]), along))
        shares = [np.ones(n - 1) if here else border for here in is_along]
        volumes.append(reduce(np.multiply.outer, shares).ravel() * step**dimension)
    where = np.concatenate(points)
    p = density(where)
    if not (p > 0).all():
        raise InputError(
            f"density={p.min()} is not allowed: positive values on the whole grid are needed."
        )
    weight = p * np.concatenate(volumes)
    return EdgeGrid(
        where, np.concatenate(components), weight, vstack(quotients).tocsr(), (n,) * dimension
    )


def gaussian_projection(matrix: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The symmetric S [d, d] for which x -> S x is the projection of x -> A x in L2(N(0, C)).

    The left-over (A - S) x carries no flux of p, div(p (A - S) x) = 0, if and only if (A - S) C is
    antisymmetric: S C + C S = A C + C A', a Lyapunov equation.

    Args:
        matrix: A, [d, d].
        covariance: C, [d, d], symmetric positive definite.
    """
    return solve_continuous_lyapunov(covariance, matrix @ covariance + covariance @ matrix.T)
