"""What the chapters on theory share: recovery of a drift's addition, inference on a line."""

import numpy as np
import torch

from rrlib.theory import examples, fields, inference, recovery, sde, steepness, vortex


def test_the_splines_add_up_to_one():
    times = examples.uniform(20, 3.0)
    x = 4 * torch.randn(20, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = recovery.features(x, times, 9, 6)
    assert found.shape == (140, 54)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)


def test_a_constant_addition_is_recovered_on_shared_noise():
    times, g = examples.uniform(50, 1.0), torch.Generator().manual_seed(0)
    dw = torch.randn(50, 200, generator=g, dtype=torch.float64) / 50**0.5
    start = torch.randn(1, 200, generator=g, dtype=torch.float64)
    base = torch.cat([start, start + dw.cumsum(0)])
    pair = base, base + 0.7 * times[:, None]
    found = recovery.coefficients(pair, times, True, 6, 5, 1e-9)
    h = recovery.features(base[:-1], times, 6, 5) @ found
    np.testing.assert_allclose(h, 0.7, rtol=0.05)  # the ridge pulls at the edges


def test_inference_on_a_line():
    places, prior, planned = inference.walks()
    assert places.shape == (4**inference.STEPS, inference.STEPS)
    np.testing.assert_allclose([prior.sum(), planned.sum()], 1, rtol=1e-12)
    np.testing.assert_allclose(inference.best(inference.GOAL, 1), -inference.SLIP)


def test_the_mixtures_have_weights_of_one_and_their_covariances():
    for mixture, n in ((examples.base(), 4), (examples.expert(), 2)):
        assert mixture.means.shape == (n, 2) and float(mixture.weights.sum()) == 1
    np.testing.assert_allclose(examples.tilted(0.0, 2.0, 1.0), np.diag([4.0, 1.0]))
    np.testing.assert_allclose(np.linalg.eigvalsh(examples.tilted(0.3, 2.0, 1.0)), [1.0, 4.0])
    assert examples.log10(0) == -18


def test_scores_of_points_and_of_an_interval_are_as_steep_as_their_noise():
    process, t = sde.OU(1.0), torch.tensor(0.1, dtype=torch.float64)
    v = float(process.variance(t))
    point = steepness.of_mixture(process, [1.0], [0.5], [0.0], t)
    wide = steepness.of_mixture(process, [1.0], [0.0], [2.0], t)
    np.testing.assert_allclose(point, 1 / v, rtol=1e-9)
    np.testing.assert_allclose(wide, 1 / (2 * float(process.shrink(t)) ** 2 + v), rtol=1e-9)
    np.testing.assert_allclose(steepness.of_uniform(process, t), 1 / v, rtol=0.01)


def test_the_vortex_is_a_gradient_and_a_rotation():
    x, side = fields.grid(128, 15.0), 15.0
    _, h = fields.project_decaying(vortex.field(x), side)
    np.testing.assert_allclose(h, vortex.gradient(x), atol=1e-12)
    start, end = np.array([-1.0, -1.0]), np.array([0.5, 1.0])
    corner, other = np.array([end[0], start[1]]), np.array([start[0], end[1]])
    around = (np.array([start, middle, end]) for middle in (corner, other))
    gap = np.subtract(*(fields.line_integral(vortex.rotation, path) for path in around))
    np.testing.assert_allclose(vortex.enclosed(start, end), gap, rtol=1e-10)
