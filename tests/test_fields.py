"""Projections, curl and line integrals against closed forms, sympy, scipy and each other."""

import numpy as np
import pytest
import sympy
from numpy.testing import assert_allclose
from scipy.integrate import dblquad, quad
from scipy.linalg import lstsq

from rrlib.errors import InputError
from rrlib.theory import fields

TINY = 1e-12
GRIDS = [(16, 2), (17, 2), (8, 3), (9, 3)]  # points per axis, even and odd; dimension


def noise(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n,) * d + (d,))


def symbolic(potential: sympy.Expr, *names: sympy.Symbol):
    """A potential and its gradient as functions of points [..., d], differentiated by sympy."""
    parts = [potential, *(sympy.diff(potential, name) for name in names)]
    value, *slopes = (sympy.lambdify(names, part, "numpy") for part in parts)

    def at(function, x):
        return function(*np.moveaxis(x, -1, 0)) + np.zeros(x.shape[:-1])

    return lambda x: at(value, x), lambda x: np.stack([at(s, x) for s in slopes], -1)


X, Y, Z = sympy.symbols("x y z")
HILL = sympy.exp(-((X - sympy.Rational(1, 2)) ** 2 + (Y + sympy.Rational(1, 4)) ** 2))
VORTEX = sympy.exp(-((X + sympy.Rational(1, 3)) ** 2 + Y**2)) / 2


def rotation(x: np.ndarray) -> np.ndarray:
    by_x, by_y = np.moveaxis(symbolic(VORTEX, X, Y)[1](x), -1, 0)
    return np.stack([-by_y, by_x], -1)


# Periodic --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), GRIDS)
def test_grid_is_the_periodic_box(n, d):
    x = fields.grid(n, 3.0, d)
    assert x.shape == (n,) * d + (d,)
    assert_allclose(np.diff(x, axis=0)[..., 0], 3.0 / n)
    assert x.min() >= -1.5 and x.max() < 1.5
    assert (x == 0).all(-1).sum() == 1


@pytest.mark.parametrize("n", [16, 17])
@pytest.mark.parametrize("side", [2 * np.pi, 3.0])
def test_derivatives_are_those_of_sympy(n, side):
    wave = 2 * sympy.pi / side
    value, slope = symbolic(sympy.exp(sympy.sin(wave * X) / 3) * sympy.cos(2 * wave * Y), X, Y)
    x = fields.grid(n, side)
    result = fields.derivatives(value(x)[..., None], side, 2)
    assert_allclose(result[..., 0, :], slope(x), atol=1e-5)
    fine = fields.grid(48, side)
    result = fields.derivatives(value(fine)[..., None], side, 2)
    assert_allclose(result[..., 0, :], slope(fine), atol=1e-12)


def test_curl_is_that_of_sympy():
    parts = [sympy.sin(Y) * sympy.cos(Z), sympy.sin(2 * X), sympy.cos(X) * sympy.sin(Y)]
    x = fields.grid(12, 2 * np.pi, 3)
    values = [symbolic(part, X, Y, Z) for part in parts]
    result = fields.curl(np.stack([value(x) for value, _ in values], -1), 2 * np.pi)
    for i in range(3):
        for j in range(3):
            expected = values[j][1](x)[..., i] - values[i][1](x)[..., j]
            assert_allclose(result[..., i, j], expected, atol=1e-13)


@pytest.mark.parametrize(("n", "d"), GRIDS)
def test_periodic_projection_is_one(n, d):
    f, side = noise(n, d), 3.0
    potential, h = fields.project_periodic(f, side)
    assert_allclose(fields.project_periodic(h, side)[1], h, atol=TINY)
    energy = (f**2).sum()
    assert abs((h * (f - h)).sum()) < TINY * energy
    assert abs(energy - (h**2).sum() - ((f - h) ** 2).sum()) < TINY * energy
    assert_allclose(fields.derivatives(potential[..., None], side, d)[..., 0, :], h, atol=1e-13)
    assert abs(potential.mean()) < TINY
    assert abs(fields.curl(h, side)).max() < 1e-12 * n * n
    left = fields.derivatives(f - h, side, d)
    assert abs(np.trace(left, axis1=-2, axis2=-1)).max() < 1e-12 * n * n


@pytest.mark.parametrize(("n", "d"), [(5, 2), (3, 3)])
def test_periodic_projection_is_the_least_squares_one(n, d):
    """Against a dense least-squares fit over all trigonometric potentials of the grid."""
    f, side, x = noise(n, d), 2 * np.pi, fields.grid(n, 2 * np.pi, d)
    modes = np.stack(np.meshgrid(*[np.arange(n) - n // 2] * d, indexing="ij"), -1).reshape(-1, d)
    waves = np.stack([-np.sin(x @ modes.T), np.cos(x @ modes.T)])  # [2, n, ..., n, modes]
    columns = np.moveaxis(waves[..., None] * modes, -2, 1).reshape(2 * len(modes), -1).T
    best = columns @ lstsq(columns, f.ravel(), cond=1e-10)[0]
    assert_allclose(fields.project_periodic(f, side)[1].ravel(), best, atol=1e-12)


def test_a_constant_field_is_left_over():
    assert_allclose(fields.project_periodic(np.ones((8, 8, 2)), 1.0)[1], 0, atol=1e-15)


# The plane -------------------------------------------------------------------------------------


@pytest.mark.parametrize("project", [fields.project_periodic, fields.project_decaying])
def test_a_known_gradient_is_found_under_a_known_rotation(project):
    x = fields.grid(96, 14.0)
    value, slope = symbolic(HILL, X, Y)
    potential, h = project(slope(x) + rotation(x), 14.0)
    assert_allclose(h, slope(x), atol=TINY)
    expected = value(x) - (value(x).mean() if project is fields.project_periodic else 0)
    assert_allclose(potential, expected, atol=TINY)
    assert_allclose(project(h, 14.0)[1], h, atol=TINY)


@pytest.mark.lengthy
@pytest.mark.parametrize(("n", "side", "centre"), [(100, 21.0, 0.0), (300, 80.0, -31.0)])
def test_decaying_projection_of_a_bump_has_the_closed_form(n, side, centre):
    """f = (exp(-r²/2), 0): Phi = x (1 - exp(-r²/2)) / r², by hand and checked by sympy.

    With the bump near a corner, the opposite one is 1.25 sides away.
    """
    closed = X * (1 - sympy.exp(-(X**2 + Y**2) / 2)) / (X**2 + Y**2)
    laplacian = sympy.diff(closed, X, 2) + sympy.diff(closed, Y, 2)
    divergence = sympy.diff(sympy.exp(-(X**2 + Y**2) / 2), X)
    assert sympy.simplify(laplacian - divergence) == 0
    x = fields.grid(n, side) - centre
    f = np.stack([np.exp(-(x**2).sum(-1) / 2), np.zeros(x.shape[:-1])], -1)
    potential, h = fields.project_decaying(f, side)
    far = (x**2).sum(-1) > 0.1
    value, slope = symbolic(closed, X, Y)
    assert_allclose(potential[far], value(x[far]), atol=TINY)
    assert_allclose(h[far], slope(x[far]), atol=TINY)
    assert (h * f).sum() == pytest.approx((f**2).sum() / 2, rel=1e-12)  # isotropy


# Line integrals --------------------------------------------------------------------------------


def test_a_gradient_integrates_to_the_difference_of_its_potential():
    value, slope = symbolic(HILL * sympy.cos(Z), X, Y, Z)
    path = np.random.default_rng(0).uniform(-1, 1, (5, 3))
    ends = value(path[[0, -1]])
    assert_allclose(fields.line_integral(slope, path), ends[1] - ends[0], atol=TINY)


def test_a_rotation_integrates_to_the_enclosed_curl():
    curl = sympy.lambdify((Y, X), sympy.diff(VORTEX, X, 2) + sympy.diff(VORTEX, Y, 2), "math")
    loop = np.array([[-1, -0.5], [1, -0.5], [1, 0.75], [-1, 0.75], [-1, -0.5]])
    enclosed = dblquad(curl, -1, 1, -0.5, 0.75, epsabs=1e-13)[0]
    assert_allclose(fields.line_integral(rotation, loop), enclosed, atol=TINY)
    assert_allclose(fields.line_integral(rotation, loop[::-1]), -enclosed, atol=TINY)


def test_quadrature_is_that_of_scipy():
    def field(x):
        return np.stack([np.cos(3 * x[:, 0]), x[:, 0] * x[:, 1]], -1)

    a, b = np.array([0.5, -1.0]), np.array([-1.0, 2.0])
    along = quad(lambda s: field((a + s * (b - a))[None])[0] @ (b - a), 0, 1, epsabs=1e-13)[0]
    assert_allclose(fields.line_integral(field, np.stack([a, b])), along, atol=TINY)


# Weighted --------------------------------------------------------------------------------------


def density(x: np.ndarray) -> np.ndarray:
    return np.exp(-(x**2).sum(-1) / 2) * (1.5 + np.sin(2 * x[:, 0]))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_weighted_projection_is_one(d):
    w = fields.edge_grid(density, np.linspace(-3, 3, 11), d)
    f = np.random.default_rng(0).standard_normal(len(w.points))
    potential, h = w.project(f)
    assert_allclose(w.project(h)[1], h, atol=1e-11)
    assert abs(w.dot(h, f - h)) < TINY * w.dot(f, f)
    assert abs(w.dot(f, f) - w.dot(h, h) - w.dot(f - h, f - h)) < TINY * w.dot(f, f)
    assert potential.shape == (11,) * d
    if d == 1:  # on a line every field is a gradient
        assert_allclose(h, f, atol=1e-11)


def test_weighted_projection_is_the_least_squares_one():
    """Dense, with difference quotients written out edge by edge."""
    axis, d = np.linspace(-1, 1, 5), 2
    w = fields.edge_grid(density, axis, d)
    f = np.random.default_rng(1).standard_normal(len(w.points))
    root = np.sqrt(w.weight)
    dense = np.zeros((len(w.points), 5, 5))
    for row, (point, along) in enumerate(zip(w.points, w.component, strict=True)):
        for sign in (-1, 1):
            node = np.rint((point + sign * 0.25 * np.eye(d)[along] + 1) / 0.5).astype(int)
            dense[(row, *node)] = sign / 0.5
    dense = dense.reshape(len(f), -1)
    best = dense @ lstsq(root[:, None] * dense, root * f)[0]
    assert_allclose(w.project(f)[1], best, atol=1e-12)


def test_weights_integrate_the_density():
    """Each component's weights sum to the integral of p; with p = 1, to the volume exactly."""
    w = fields.edge_grid(lambda x: np.ones(len(x)), np.linspace(-1, 2, 7), 3)
    for along in range(3):
        assert w.weight[w.component == along].sum() == pytest.approx(27, rel=1e-14)
    w = fields.edge_grid(density, np.linspace(-6, 6, 61))
    for along in range(2):
        # The sine is odd and drops out.
        assert w.weight[w.component == along].sum() == pytest.approx(1.5 * 2 * np.pi, rel=1e-6)


def test_the_potential_has_mean_zero_under_the_density():
    axis = np.linspace(-4, 4, 65)
    w = fields.edge_grid(density, axis)
    value, slope = symbolic(HILL, X, Y)
    potential, _ = w.project(w.carry(slope(w.points)))
    nodes = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    p = density(nodes.reshape(-1, 2)).reshape(65, 65)
    expected = value(nodes) - (p * value(nodes)).sum() / p.sum()
    assert_allclose(potential[p > 1e-3], expected[p > 1e-3], atol=3e-3)


@pytest.mark.parametrize("p", [density, lambda x: np.ones(len(x))])
def test_weighted_projection_of_a_gradient_is_itself_whatever_the_weight(p):
    _, slope = symbolic(HILL, X, Y)
    errors = []
    for n in (33, 65):
        w = fields.edge_grid(p, np.linspace(-4, 4, n))
        carried = w.carry(slope(w.points))
        errors.append(w.norm(w.project(carried)[1] - carried) / w.norm(carried))
    assert errors[1] < 2e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)  # second order


def test_plain_projection_is_the_weighted_one_of_constant_weight():
    _, slope = symbolic(HILL, X, Y)
    w = fields.edge_grid(lambda x: np.full(len(x), 7.0), np.linspace(-5, 5, 81))
    _, h = w.project(w.carry(slope(w.points) + rotation(w.points)))
    exact = w.carry(slope(w.points))
    assert w.norm(h - exact) / w.norm(exact) < 3e-3


def test_a_density_that_is_not_positive_is_refused():
    with pytest.raises(InputError, match=r"^density=0\.0 is not allowed: positive values"):
        fields.edge_grid(lambda x: np.maximum(x[:, 0], 0), np.linspace(-1, 1, 5))


# A linear field under a Gaussian ---------------------------------------------------------------


def random_pair(d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(d)
    root = rng.standard_normal((d, d))
    return rng.standard_normal((d, d)), root @ root.T + 0.3 * np.eye(d)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_gaussian_projection_leaves_no_divergence_behind(d):
    """div(p M x) / p = tr M - x' C^-1 M x vanishes everywhere."""
    matrix, covariance = random_pair(d)
    s = fields.gaussian_projection(matrix, covariance)
    assert_allclose(s, s.T, atol=1e-12)
    left = matrix - s
    flux = np.linalg.solve(covariance, left)
    assert_allclose(flux + flux.T, 0, atol=1e-11)
    assert np.trace(left) == pytest.approx(0, abs=1e-11)


@pytest.mark.parametrize("d", [2, 5])
def test_gaussian_projection_is_the_best_symmetric_matrix(d):
    """E |(S - A) x|² = |(S - A) C^(1/2)|², a least-squares problem over symmetric S."""
    matrix, covariance = random_pair(d)
    root = np.linalg.cholesky(covariance)
    pairs = [(i, j) for i in range(d) for j in range(i + 1)]
    units = [np.maximum(e := np.outer(np.eye(d)[i], np.eye(d)[j]), e.T) for i, j in pairs]
    columns = np.stack([(unit @ root).ravel() for unit in units], 1)
    best = lstsq(columns, (matrix @ root).ravel())[0]
    expected = sum(weight * unit for weight, unit in zip(best, units, strict=True))
    assert_allclose(fields.gaussian_projection(matrix, covariance), expected, atol=1e-11)


@pytest.mark.parametrize("ratio", [1.0, 2.0, 3.0])
def test_a_rotation_under_a_stretched_gaussian_becomes_a_saddle(ratio):
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    kappa = (ratio**2 - 1) / (ratio**2 + 1)
    s = fields.gaussian_projection(turn, np.diag([ratio**2, 1.0]))
    assert_allclose(s, [[0, kappa], [kappa, 0]], atol=1e-14)


def test_the_grid_finds_the_gaussian_closed_form():
    matrix, _ = random_pair(2)
    covariance = np.array([[0.5, 0.1], [0.1, 0.25]])
    s = fields.gaussian_projection(matrix, covariance)
    errors = []
    for n in (49, 97):
        w = fields.edge_grid(
            lambda x: np.exp(-np.einsum("ni,ij,nj->n", x, np.linalg.inv(covariance), x) / 2),
            np.linspace(-5, 5, n),
        )
        _, h = w.project(w.carry(w.points @ matrix.T))
        exact = w.carry(w.points @ s)
        errors.append(w.norm(h - exact) / w.norm(exact))
    assert errors[1] < 5e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)
