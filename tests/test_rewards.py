"""Reward networks against literal windows and finite differences."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.method import extraction
from rrlib.method.extraction import unit_of
from rrlib.method.networks.sums import Rescaled
from rrlib.method.pools import windows
from rrlib.method.rewards import RelativeReward, compose
from rrlib.plans.perceptron import PlanPotential
from rrlib.plans.rewards import ConditionalReward, PlanValue, StartReward, WindowReward
from rrlib.training import Stack, stream

WIDTH, HORIZON = 3, 12


def reward(window: int, **options) -> WindowReward:
    torch.manual_seed(0)
    unit = torch.linspace(0.5, 2, 10)
    network = WindowReward(WIDTH, window, unit, hidden=(16, 8), **options).double()
    return network


def plans(n: int = 4) -> torch.Tensor:
    return torch.randn(n, HORIZON, WIDTH, generator=stream(0, 0), dtype=torch.float64)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 6, 12])
def test_windows_are_slices(window):
    x, count = plans(), HORIZON // window
    contiguous, strided = windows(x, window), windows(x, window, strided=True)
    assert contiguous.shape == strided.shape == (4, count, window, WIDTH)
    for j in range(count):
        assert torch.equal(contiguous[:, j], x[:, j * window : (j + 1) * window])
        assert torch.equal(strided[:, j], x[:, j::count])
    assert torch.equal(contiguous, strided) == (window in (1, 12))


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("window", [-3, 0, 5, 24])
def test_a_window_that_does_not_fit_is_named(window, strided):
    with pytest.raises(InputError) as caught:
        windows(plans(), window, strided)
    message = f"window={window} is not allowed: a divisor of the horizon 12 is needed."
    assert str(caught.value) == message


@pytest.mark.parametrize("window", [1, 3, 4, 12])
def test_a_plan_is_worth_the_mean_over_its_contiguous_windows(window):
    network, x, t = reward(window), plans(), torch.tensor([0, 3, 3, 9])
    starts = range(0, HORIZON, window)
    values = torch.stack([network(x[:, s : s + window], t) for s in starts], 1)
    assert_close(network.per_window(x, t), values)
    assert_close(network(x, t), values.mean(1))


def test_windows_are_contiguous_not_strided():
    network, x, t = reward(3), plans(1), torch.tensor([2])
    changed = x.clone()
    changed[0, 3:6] += 1  # all of window 1 and nothing else
    moved = (network.per_window(changed, t) - network.per_window(x, t)).abs() > 1e-9
    assert moved.tolist() == [[False, True, False, False]]
    gradient = RelativeReward(network, "score", "x_t").gradient(x, t)
    alone = RelativeReward(network, "score", "x_t").gradient(x[:, 3:6], t)
    assert_close(gradient[:, 3:6], alone / 4)
    strided = torch.stack([network(x[:, s::4], t) for s in range(4)], 1)
    assert not torch.allclose(network.per_window(x, t), strided)


@pytest.mark.parametrize("window", [1, 3, 4, 12])
def test_a_strided_reward_sees_every_so_manieth_step(window):
    network, x, t = reward(window, strided=True), plans(), torch.tensor([0, 3, 3, 9])
    count = HORIZON // window
    values = torch.stack([network(x[:, j::count], t) for j in range(count)], 1)
    assert_close(network.per_window(x, t), values)
    assert_close(network(x, t), values.mean(1))
    # The weights are those of the contiguous reward: only the cut differs.
    alone = reward(window)
    assert_close(torch.stack([alone(x[:, j::count], t) for j in range(count)], 1), values)


def test_one_window_of_a_strided_reward_feels_its_own_steps_alone():
    network, x, t = reward(3, strided=True), plans(1), torch.tensor([2])
    changed = x.clone()
    changed[0, 1::4] += 1  # all of window 1 and nothing else
    moved = (network.per_window(changed, t) - network.per_window(x, t)).abs() > 1e-9
    assert moved.tolist() == [[False, True, False, False]]
    gradient = RelativeReward(network, "score", "x_t").gradient(x, t)
    alone = RelativeReward(network, "score", "x_t").gradient(x[:, 1::4], t)
    assert_close(gradient[:, 1::4], alone / 4)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("silu", lambda z: z / (1 + (-z).exp())),
        ("leaky_relu", lambda z: torch.where(z > 0, z, 0.01 * z)),
    ],
)
def test_g_is_a_perceptron_of_that_activation(activation, function):
    network = reward(3, activation=activation)
    x, t = plans()[:, :3], torch.tensor([0, 3, 3, 9])
    seen = []
    hook = network.g.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    rho = network(x, t)
    hook.remove()
    z = seen[0][:, 0]
    assert_close(z[:, :9], x.flatten(1))
    layers = [layer for layer in network.g if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in layers] == [16, 8, 1]
    for layer in layers[:-1]:
        z = function(z @ layer.weight.mT + layer.bias)
    z = z @ layers[-1].weight.mT + layers[-1].bias
    assert_close(rho, z[:, 0] * network.unit[t])


def test_two_axes_are_plans_of_one_step():
    network, x, t = reward(1), plans()[:, 0], torch.tensor([0, 3, 3, 9])
    assert_close(network(x, t), network(x[:, None], t))
    assert network(x, t).shape == (4,)


def test_a_unit_multiplies_the_reward_of_its_own_t():
    network, x, t = reward(3), plans(), torch.tensor([0, 3, 3, 9])
    before = network(x, t)
    network.unit[3] *= 5
    assert_close(network(x, t), before * torch.tensor([1, 5, 5, 1]))


def test_the_time_is_seen():
    network, x = reward(3), plans(1).expand(10, -1, -1)
    network.unit.fill_(1)
    values = network(x, torch.arange(10))
    assert values.unique().numel() == 10


def test_time_is_measured_in_parts_of_the_whole_diffusion():
    """t of T and 2 t of 2 T are the same time."""
    coarse, fine = reward(3), reward(3)
    fine.unit = torch.ones(20, dtype=torch.float64)
    coarse.unit.fill_(1)
    t = torch.tensor([0, 3, 5, 9])
    assert_close(coarse(plans(), t), fine(plans(), 2 * t))


@pytest.mark.parametrize("options", [{}, {"strided": True}, {"activation": "leaky_relu"}], ids=str)
@pytest.mark.parametrize("window", [1, 3, 12])
def test_gradient_is_that_of_finite_differences(window, options):
    relative = RelativeReward(reward(window, **options), "score", "x_t")
    x, t, step = plans(2), torch.tensor([1, 8]), 1e-6
    gradient = relative.gradient(x, t)
    numeric = torch.empty_like(x)
    for i in range(HORIZON):
        for j in range(WIDTH):
            shift = torch.zeros_like(x)
            shift[:, i, j] = step
            numeric[:, i, j] = (relative(x + shift, t) - relative(x - shift, t)).detach() / 2 / step
    assert_close(gradient, numeric, rtol=1e-5, atol=1e-9)
    assert not gradient.requires_grad and not x.requires_grad


def test_gradient_works_where_gradients_are_off():
    relative, x, t = RelativeReward(reward(3), "mean", "mu_base"), plans(2), torch.tensor([1, 8])
    with torch.no_grad():
        inside = relative.gradient(x, t)
    assert_close(inside, relative.gradient(x, t))


@pytest.mark.parametrize("size", [100.0, 1e3, 1e5])
def test_second_derivative_is_finite_on_large_inputs(size):
    """torch's Mish turns NaN here, from about 89 on; float32, as in training."""
    network = reward(1).float()
    x = (size * torch.randn(64, 1, WIDTH, generator=stream(0, 1))).requires_grad_()
    t = torch.zeros(64, dtype=torch.long)
    gradient = torch.autograd.grad(network(x, t).sum(), x, create_graph=True)[0]
    gradient.square().sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
    assert network.g[0].weight.grad.abs().sum() > 0
    assert gradient.isfinite().all()


def test_the_network_is_smooth_between_its_layers_unless_asked_otherwise():
    """A piecewise-linear one bends nowhere, though its gradient still trains its weights."""
    t = torch.zeros(1, dtype=torch.long)
    for activation, bends in (("silu", True), ("leaky_relu", False)):
        network, x = reward(1, activation=activation), plans(1)[:, :1].requires_grad_()
        gradient = torch.autograd.grad(network(x, t).sum(), x, create_graph=True)[0]
        weight = torch.autograd.grad(gradient.sum(), network.g[0].weight, retain_graph=True)[0]
        assert weight.abs().sum() > 0
        second = torch.autograd.grad(gradient.sum(), x, materialize_grads=True)[0]
        assert second.abs().min() > 1e-6 if bends else second.eq(0).all()
    assert torch.equal(reward(1)(x, t), reward(1, activation="silu")(x, t))


@pytest.mark.parametrize("window", [1, 3])
def test_per_step_gives_each_step_its_windows_value_at_t_0(window):
    network, x = reward(window), plans()
    actions, states = x[..., :1], x[..., 1:]  # a plan is actions first, then observations
    values = RelativeReward(network, "score", "x_t").per_step(states, actions)
    zero = torch.zeros(len(x), dtype=torch.long)
    literal = torch.empty(len(x), HORIZON, dtype=torch.float64)
    for i in range(HORIZON):
        start = i // window * window
        literal[:, i] = network(x[:, start : start + window], zero).detach()
    assert_close(values, literal)
    assert_close(values.mean(1), network(x, zero).detach())


@pytest.mark.parametrize("window", [1, 2, 3, 12])
def test_per_step_of_a_strided_reward_gives_each_step_its_own_windows_value(window):
    network, x, count = reward(window, strided=True), plans(), HORIZON // window
    values = RelativeReward(network, "score", "x_t").per_step(x[..., 1:], x[..., :1])
    zero = torch.zeros(len(x), dtype=torch.long)
    literal = torch.empty(len(x), HORIZON, dtype=torch.float64)
    for i in range(HORIZON):
        literal[:, i] = network(x[:, i % count :: count], zero).detach()
    assert_close(values, literal)
    assert_close(values.mean(1), network(x, zero).detach())


@pytest.mark.parametrize("strided", [False, True])
def test_a_horizon_or_a_width_that_does_not_fit_is_named(strided):
    relative = RelativeReward(reward(5, strided=strided), "score", "x_t")
    with pytest.raises(InputError, match=r"^window=5 is not allowed: .* the horizon 12 is needed"):
        relative.per_step(plans()[..., 1:], plans()[..., :1])
    with pytest.raises(InputError, match=r"^x_t of shape \(2, 5, 4\) is not .* plans of width 3 "):
        relative(torch.zeros(2, 5, 4), torch.tensor([0, 1]))


def test_the_units_are_saved_with_the_weights():
    state = reward(3).state_dict()
    other = WindowReward(WIDTH, 3, torch.ones(10), hidden=(16, 8)).double()
    other.load_state_dict(state)
    t = torch.tensor([0, 3, 3, 9])
    assert_close(other(plans(), t), reward(3)(plans(), t))


def test_composed_rewards_and_gradients_add_up():
    one, two = (RelativeReward(reward(window), "mean", "mu_base") for window in (3, 4))
    both, x, t = compose([one, two], [2.0, -0.5]), plans(), torch.tensor([0, 3, 3, 9])
    assert (both.target, both.place) == ("mean", "mu_base")
    assert_close(both(x, t), 2 * one(x, t) - 0.5 * two(x, t))
    assert_close(both.gradient(x, t), 2 * one.gradient(x, t) - 0.5 * two.gradient(x, t))


def test_in_other_coordinates_errors_weigh_as_their_squares():
    """L_RRF of a rescaled reward, points and targets is the weighted L_RRF, written out."""
    inner, shape = reward(4), (HORIZON, WIDTH)
    scale = torch.rand(shape, generator=stream(0, "scale")).double() + 0.5
    x, target = torch.randn(2, 20, *shape, generator=stream(0, "points")).double()
    t = torch.arange(20) % 4
    rescaled = extraction.loss(Rescaled(inner, scale), x / scale, t, target * scale)
    found = RelativeReward(inner, "mean", "mu_base").gradient(x, t)
    weighted = ((found - target).square() * scale**2).flatten(1).sum(1).mean()
    assert_close(rescaled, weighted)


def test_rewards_of_two_kinds_or_too_few_weights_are_refused():
    one, two = (
        RelativeReward(reward(3), "mean", "x_t"),
        RelativeReward(reward(3), "mean", "mu_base"),
    )
    with pytest.raises(InputError, match=r"^rewards: 2 of kinds .* with 2 weights are not allowed"):
        compose([one, two], [1.0, 1.0])
    with pytest.raises(InputError, match=r"^rewards: 2 of kinds .* with 1 weights are not allowed"):
        compose([one, one], [1.0])


@pytest.mark.parametrize("average", [1, 2, 3, 6])
def test_averaged_steps_are_seen_as_their_mean(average):
    network, x, t = reward(6, average=average), plans(), torch.tensor([0, 3, 3, 9])
    literal = reward(6 // average)
    literal.load_state_dict(network.state_dict())
    means = [x[:, s : s + average].mean(1) for s in range(0, HORIZON, average)]
    assert_close(network(x, t), literal(torch.stack(means, 1) * average**0.5, t))


def test_an_average_keeps_the_length_of_gradients_of_smooth_plans():
    network, t = reward(6, average=3), torch.tensor([2])
    gradient = RelativeReward(network, "score", "x_t").gradient(plans(1), t)
    assert_close(gradient[:, ::3], gradient[:, 1::3])
    coarse = reward(2)
    coarse.load_state_dict(network.state_dict())
    means = plans(1).unflatten(1, (-1, 3)).mean(2) * 3**0.5
    seen = RelativeReward(coarse, "score", "x_t").gradient(means, t)
    assert_close(gradient.square().sum(), seen.square().sum())


@pytest.mark.parametrize("average", [0, -1, 4])
def test_an_average_that_does_not_fit_is_named(average):
    with pytest.raises(InputError) as caught:
        reward(6, average=average)
    message = f"average={average} is not allowed: a divisor of the window 6 is needed."
    assert str(caught.value) == message


@pytest.mark.lengthy
@pytest.mark.parametrize(("horizon", "patch"), [(32, 1), (32, 4), (4, 1)])
def test_a_plans_value_has_smooth_gradients_of_finite_differences(horizon, patch):
    torch.manual_seed(0)
    network = PlanValue(5, torch.tensor([1.0, 3.0]), (32, 32, 32, 32), patch).double()
    assert not any(isinstance(module, nn.Mish) for module in network.modules())
    x = torch.randn(2, horizon, 5, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0, 1])
    assert torch.autograd.gradcheck(lambda x: network(x, t), x)
    rho = network(x, t)
    gradient = torch.autograd.grad(rho.sum(), x, create_graph=True)[0]
    gradient.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    assert_close(
        rho[1] / 3, network.unet(x.unflatten(1, (-1, patch)).flatten(2).mT, 50.0 * t).sample[1, 0]
    )


def started(**options) -> StartReward:
    torch.manual_seed(0)
    where = {"observation": 4, "positions": (2, 3)}
    return StartReward(6, 8, torch.tensor([1.0, 3.0]), **where, hidden=(16, 8), **options)


@pytest.mark.parametrize("average", [1, 2, 8])
def test_a_reward_by_the_start_sees_steps_their_first_observation_and_its_place(average):
    network = started(average=average, octaves=2).double()
    x = torch.randn(3, 8, 6, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0, 1, 1])
    free = torch.ones(1, 8, 6, dtype=torch.float64)
    free[:, 0, 2:] = 0
    held = (x * (1 - free)).detach()
    assert torch.autograd.gradcheck(lambda x: network(x * free + held, t), x)
    assert not torch.autograd.grad(network(x, t).sum(), x)[0][:, 0, 2:].any()
    seen = []
    network.g.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network(x, t)
    steps, rest = seen[0].split([6 * 8 // average, 4 + 8 + 16], 1)
    expected = x.reshape(3, 8 // average, average, 6).mean(2).flatten(1) * average**0.5
    assert_close(steps, expected)
    first, place, _ = rest.split([4, 8, 16], 1)
    assert_close(first, x[:, 0, 2:])
    phases = x[:, 0, 2:4, None] * torch.tensor([math.pi, 2 * math.pi])
    assert_close(place, torch.cat([phases.sin().flatten(1), phases.cos().flatten(1)], 1))


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"average": 3}, (1, 8, 6), "average=3 is not allowed: a divisor of the horizon 8"),
        ({"average": 0}, (1, 8, 6), "average=0 is not allowed"),
        ({}, (1, 4, 6), r"x_t of shape \(1, 4, 6\) is not allowed: plans of shape \(8, 6\)"),
        ({}, (1, 8, 5), r"x_t of shape \(1, 8, 5\) is not allowed"),
    ],
)
def test_plans_that_do_not_fit_a_reward_by_the_start_are_named(options, shape, message):
    with pytest.raises(InputError, match=message):
        started(**options)(torch.zeros(shape), torch.tensor([0]))


def test_a_reward_by_the_start_can_do_without_a_map():
    network = StartReward(6, 8, torch.ones(2), observation=4, positions=(), hidden=(8,))
    assert network(torch.randn(3, 8, 6), torch.tensor([0, 1, 1])).shape == (3,)


def test_stacked_values_are_the_values_one_by_one():
    torch.manual_seed(0)
    networks = [PlanValue(3, torch.ones(4), (32, 32)) for _ in range(3)]
    x, t = torch.randn(6, 8, 3), torch.tensor([0, 1, 2, 3, 0, 1])
    parts = [n(x[2 * k : 2 * k + 2], t[2 * k : 2 * k + 2]) for k, n in enumerate(networks)]
    assert_close(Stack(networks)(x, t), torch.cat(parts), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 8, 4), (1, 32, 3), (1, 6, 3)])
def test_plans_that_a_value_cannot_take_are_named(shape):
    network = PlanValue(3, torch.ones(2), (32,), 4)
    with pytest.raises(InputError, match=r"plans of width 3 and a multiple of 4, at most 16"):
        network(torch.zeros(shape), torch.tensor([0]))


def test_a_conditional_reward_has_no_gradient_to_what_is_given():
    inner, x, t = reward(3), plans(), torch.tensor([0, 3, 3, 9])
    held = RelativeReward(ConditionalReward(inner, 2), "mean", "x_t")
    plain = RelativeReward(inner, "mean", "x_t")
    assert torch.equal(held(x, t), plain(x, t))
    found, wanted = held.gradient(x, t), plain.gradient(x, t).clone()
    assert wanted[:, 0, -2:].abs().min() > 0
    wanted[:, 0, -2:] = 0
    assert_close(found, wanted)


def test_each_step_of_a_sum_is_the_sum_of_its_rewards_steps():
    one, two = (RelativeReward(reward(window), "mean", "x_t") for window in (3, 4))
    x = plans()
    found = compose([one, two], [2.0, -0.5]).per_step(x[..., 1:], x[..., :1])
    parts = [part.per_step(x[..., 1:], x[..., :1]) for part in (one, two)]
    assert_close(found, 2 * parts[0] - 0.5 * parts[1])


def test_each_step_of_a_wrapped_reward_is_its_own():
    x, inner = plans(), reward(3)
    literal = RelativeReward(inner, "mean", "x_t").per_step(x[..., 1:], x[..., :1])
    held = RelativeReward(ConditionalReward(inner, 2), "mean", "x_t")
    assert torch.equal(held.per_step(x[..., 1:], x[..., :1]), literal)
    scale = torch.full((HORIZON, WIDTH), 2.0, dtype=torch.float64)
    y = x / scale
    rescaled = RelativeReward(Rescaled(inner, scale), "mean", "x_t")
    assert_close(rescaled.per_step(y[..., 1:], y[..., :1]), literal)
    single = RelativeReward(inner.float(), "mean", "x_t").per_step(x[..., 1:], x[..., :1])
    assert single.dtype == torch.float64  # as the reward itself


@pytest.mark.parametrize(
    "network",
    [
        PlanValue(WIDTH, torch.ones(10), (32, 32, 32)),
        PlanPotential(WIDTH, HORIZON, torch.ones(10)),
        StartReward(WIDTH, HORIZON, torch.ones(10), observation=2, positions=(1,)),
    ],
)
def test_a_reward_of_whole_plans_says_that_it_has_no_steps(network):
    name, x = type(network).__name__, plans()
    message = rf"^reward: {name} is not allowed: it values a plan as a whole"
    whole = RelativeReward(network, "mean", "x_t")
    for found in (whole, compose([whole], [1.0])):
        with pytest.raises(InputError, match=message):
            found.per_step(x[..., 1:], x[..., :1])


def test_states_and_actions_that_do_not_belong_together_are_named():
    one, x = RelativeReward(reward(3), "mean", "x_t"), plans()
    with pytest.raises(InputError, match=r"^actions: \(4, 6, 1\) is not allowed"):
        one.per_step(x[..., 1:], x[:, :6, :1])
    with pytest.raises(InputError, match=r"^states: ndarray is not allowed"):
        one.per_step(x[..., 1:].numpy(), x[..., :1])


@pytest.mark.parametrize("step", [-1, 10])
def test_a_reward_refuses_a_step_that_does_not_exist(step):
    one, t = RelativeReward(reward(3), "mean", "x_t"), torch.tensor([0, 1, step, 2])
    for ask in (one, one.gradient):
        with pytest.raises(InputError, match=rf"^t={step} is not allowed: steps from 0 to 9"):
            ask(plans(), t)


@pytest.mark.parametrize(
    ("kind", "message"),
    [(("means", "x_t"), "target='means'"), (("mean", "mu"), "place='mu' is not allowed: 'x_t' or")],
)
def test_another_target_or_place_is_named_when_a_reward_is_made(kind, message):
    with pytest.raises(InputError, match="^" + message):
        RelativeReward(reward(3), *kind)


def test_rewards_of_two_schedules_do_not_add_up():
    rewards = [
        RelativeReward(WindowReward(WIDTH, 3, torch.ones(steps)), "mean", "x_t")
        for steps in (10, 20)
    ]
    assert [r.steps for r in rewards] == [10, 20]
    with pytest.raises(InputError, match=r"^rewards: of 10 and 20 diffusion steps are not allowed"):
        compose(rewards, [1.0, 1.0])


def test_networks_carry_what_they_were_made_with():
    value = PlanValue(3, torch.ones(4), (32, 64), 2)
    assert (value.width, value.channels, value.patch) == (3, (32, 64), 2)
    potential = PlanPotential(3, 4, torch.ones(4), 16, 1)
    made = potential.width, potential.horizon, potential.hidden, potential.blocks
    assert made == (3, 4, 16, 1)
    assert unit_of(ConditionalReward(value, 2)) is value.unit


def test_an_unknown_activation_is_named():
    with pytest.raises(InputError, match=r"^activation='relu' is not allowed: 'silu' or 'leaky_"):
        reward(3, activation="relu")
