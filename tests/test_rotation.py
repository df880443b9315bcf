"""Rotation in a difference of planners, against differences whose Jacobian is known."""

import pytest
import torch
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.estimators import diagnostics as rotation
from rrlib.method.denoisers import Denoiser
from rrlib.method.noise.schedulers import cosine_scheduler
from rrlib.plans.conditioning import first_given, held
from rrlib.training import stream

DRAWS = stream(0, 0)
H, D, DO = 2, 5, 3
N, FREE = H * D, H * D - DO
MATRICES = torch.randn(2, N, N, generator=DRAWS, dtype=torch.float64)
X = torch.randn(4, H, D, generator=DRAWS, dtype=torch.float64)
FIRST = torch.randn(4, DO, generator=DRAWS, dtype=torch.float64)
FREE_ROWS = [0, 1, *range(D, N)]  # all but the first observation


def planner(matrix: torch.Tensor) -> Denoiser:
    """A planner whose x0 is linear in x_t."""

    def network(x, t, given):
        return (x.flatten(1) @ matrix.T).reshape(x.shape)

    return Denoiser(network, cosine_scheduler(10, clip=False))


BASE, EXPERT = map(planner, MATRICES)


def jacobians(step: int, place: str) -> torch.Tensor:
    """Of planners that are given the first observation, to all other numbers."""
    free = torch.ones(H, D, dtype=torch.bool)
    free[0, -DO:] = False
    options = {"condition": first_given(DO), "free": free}
    return rotation.difference_jacobians(BASE, EXPERT, held(X, FIRST), step, place, **options)


def test_a_share_is_known_for_gradients_rotations_and_noise():
    assert rotation.rotational_share(MATRICES + MATRICES.mT) == 0
    assert_close(rotation.rotational_share(MATRICES - MATRICES.mT).item(), 1.0)
    noise = torch.randn(200, 9, 9, generator=DRAWS)
    assert abs(rotation.rotational_share(noise) - 4 / 9) < 0.03  # n (n - 1) / 2 of n^2


@pytest.mark.parametrize("step", [3, 9])
def test_jacobians_at_x_t_are_those_of_the_linear_models(step):
    found = jacobians(step, "x_t")
    t = torch.tensor([step])
    per_x0 = BASE.mean_from_x0(torch.ones(1), torch.zeros(1), t).item()
    wanted = per_x0 * (MATRICES[1] - MATRICES[0])[FREE_ROWS][:, FREE_ROWS]
    assert found.shape == (4, FREE, FREE)
    for one in found:
        assert_close(one, wanted, rtol=1e-5, atol=1e-6)


def test_jacobians_of_many_numbers_are_taken_in_parts():
    n = 1100  # more than are pulled back at once
    matrices = [torch.diag(torch.linspace(0, k, n)) for k in (1, 3)]
    pair = [Denoiser(lambda x, t, m=m: x @ m, BASE.scheduler) for m in matrices]
    found = rotation.difference_jacobians(*pair, torch.zeros(1, n), 9, "x_t")[0]
    per_x0 = BASE.mean_from_x0(torch.ones(1), torch.zeros(1), torch.tensor([9])).item()
    assert_close(found, per_x0 * (matrices[1] - matrices[0]), rtol=1e-4, atol=1e-5)


def test_jacobians_at_mu_base_are_differences_along_the_bases_mean():
    """d(mu_2 - mu_1) = J d mu_1 for a small move of x_t, whatever the move."""
    found = jacobians(5, "mu_base")
    move = torch.zeros(4, N, dtype=torch.float64)
    move[:, FREE_ROWS] = torch.randn(4, FREE, generator=DRAWS, dtype=torch.float64)
    t = torch.tensor([5])

    def free_mean(matrix, x):
        x = x.clone()
        x[:, 0, -DO:] = FIRST
        x0 = (x.flatten(1) @ matrix.T).reshape(x.shape)
        return BASE.mean_from_x0(x0, x, t).flatten(1)[:, FREE_ROWS]

    moved = [free_mean(m, X + move.reshape(X.shape)) - free_mean(m, X) for m in MATRICES]
    assert_close((found @ moved[0][..., None])[..., 0], moved[1] - moved[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", [-1, 10])
def test_a_step_out_of_range_is_refused(step):
    with pytest.raises(InputError, match=f"step={step} is not allowed: a step from 0 to 9"):
        jacobians(step, "x_t")


def test_another_place_is_refused():
    """It was taken for "mu_base"."""
    with pytest.raises(InputError, match="place='xt' is not allowed: 'x_t' or 'mu_base' is needed"):
        jacobians(3, "xt")


def test_without_a_condition_every_number_moves():
    plain = [
        Denoiser(lambda x, t, m=m: (x.flatten(1) @ m.T).reshape(x.shape), BASE.scheduler)
        for m in MATRICES
    ]
    found = rotation.difference_jacobians(*plain, X, 3, "x_t")
    per_x0 = BASE.mean_from_x0(torch.ones(1), torch.zeros(1), torch.tensor([3])).item()
    assert found.shape == (4, N, N)
    assert_close(found[0], per_x0 * (MATRICES[1] - MATRICES[0]), rtol=1e-5, atol=1e-6)
