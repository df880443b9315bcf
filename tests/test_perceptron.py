"""The perceptron of plans: its shape, what it may look at, and what it says no to."""

import pytest
import torch

from rrlib.errors import InputError
from rrlib.plans.perceptron import PlanPerceptron, PlanPotential
from rrlib.training import stream


def network(diffusion_steps: int = 10) -> PlanPerceptron:
    torch.manual_seed(0)
    return PlanPerceptron(5, 4, diffusion_steps, hidden=16, blocks=2)


PLANS = torch.randn(3, 4, 5, generator=stream(0, 0))


def test_every_number_of_a_prediction_depends_on_every_number_of_the_plan():
    model, t = network(), torch.tensor([9])
    found = torch.autograd.functional.jacobian(lambda x: model(x, t), PLANS[:1])
    assert found.shape == (1, 4, 5, 1, 4, 5)
    assert (found != 0).all()


def test_the_first_step_of_a_plan_has_layers_of_its_own():
    """From itself to itself: without the others' layers it is all that it depends on."""
    model, t = network(), torch.tensor([9])
    with torch.no_grad():
        for parameter in (*model.leave[1].parameters(), *model.enter.parameters()):
            parameter.zero_()
    found = torch.autograd.functional.jacobian(lambda x: model(x, t), PLANS[:1])[0, :, :, 0]
    assert (found[0, :, 0] != 0).all()
    assert (found[1:] == 0).all() and (found[0, :, 1:] == 0).all()


def test_what_is_given_and_the_time_matter():
    mark = torch.zeros(3, 4, dtype=torch.bool)
    mark[:, 0] = True
    t = torch.tensor([2, 2, 2])
    plain = network()(PLANS, t)
    assert torch.equal(network()(PLANS, t, ~mark & mark), plain)
    assert (network()(PLANS, t, mark) - plain).abs().amin() > 0
    assert (network()(PLANS, t + 1) - plain).abs().amin() > 0


def test_time_is_the_share_of_the_schedule():
    """Twice the steps at twice t say the same, so weights mean the same on a finer schedule."""
    t = torch.tensor([1, 2, 3])
    assert torch.allclose(network(10)(PLANS, t), network(20)(PLANS, 2 * t))


def test_a_potential_is_the_product_with_its_vectors_and_a_level():
    torch.manual_seed(1)
    unit = torch.tensor([1.0, 3.0, 2.0])
    rho = PlanPotential(5, 4, unit, hidden=16, blocks=1)
    t = torch.tensor([0, 1, 2])
    f = rho.f(torch.cat([PLANS, torch.ones(3, 4, 1)], -1), t)
    wanted = unit * ((PLANS * f[..., :5]).sum((1, 2)) + f[..., 5].sum(1))
    assert torch.allclose(rho(PLANS, t), wanted, atol=1e-5)
    assert torch.autograd.gradcheck(
        lambda x: rho.double()(x, t), PLANS.double().requires_grad_(), atol=1e-6
    )


@pytest.mark.lengthy
def test_a_potential_has_second_derivatives():
    rho = PlanPotential(5, 4, torch.ones(3), hidden=16, blocks=1).double()
    assert torch.autograd.gradgradcheck(
        lambda x: rho(x, torch.tensor([0, 1, 2])), PLANS.double().requires_grad_()
    )


@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 5, 5), (3, 20)])
def test_plans_of_another_shape_are_refused(shape):
    with pytest.raises(InputError, match=r"plans of shape \(4, 5\) are needed"):
        network()(torch.zeros(shape), torch.zeros(3, dtype=torch.long))
