"""The perceptron on principal components: its linear guess in closed form, and what it adds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rrlib import training
from rrlib.errors import InputError
from rrlib.lab import store
from rrlib.lab.mazes.recipes import ComponentDiffuser, MazeData
from rrlib.method.denoisers import Denoiser
from rrlib.method.noise.schedulers import cosine_scheduler
from rrlib.plans import conditioning
from rrlib.plans.components import ComponentPerceptron
from rrlib.training import stream

H, D, STEPS, OBSERVATION = 6, 4, 8, 3
SCHEDULER = cosine_scheduler(STEPS, clip=False)
SIGNAL = SCHEDULER.alphas_cumprod


def network(components: int = H * D, **sizes) -> ComponentPerceptron:
    torch.manual_seed(0)
    sizes = {"hidden": 16, "blocks": 2, "places": 3} | sizes
    shape = {"positions": (1, 2), "observation": OBSERVATION, "components": components}
    return ComponentPerceptron(D, H, SIGNAL, **shape, **sizes)


def correlated(n: int, seed: int = 0) -> torch.Tensor:
    """Gaussian plans whose numbers hang together, [n, H, D]."""
    mixing = torch.randn(H * D, H * D, generator=stream(9, 0)) / (H * D) ** 0.5
    draws = torch.randn(n, H * D, generator=stream(seed, 1))
    return (0.3 + draws @ mixing).unflatten(1, (H, D))


def posterior(plans: torch.Tensor, x: torch.Tensor, t: int) -> np.ndarray:
    """E[x0 | x_t] of Gaussian plans by the textbook, with the full covariance, [B, H D]."""
    flat = plans.flatten(1).double().numpy()
    mean, covariance = flat.mean(0), np.cov(flat.T, bias=True)
    abar = float(SIGNAL[t])
    gain = abar**0.5 * covariance @ np.linalg.inv(abar * covariance + (1 - abar) * np.eye(H * D))
    return mean + (x.flatten(1).double().numpy() - abar**0.5 * mean) @ gain.T


@pytest.mark.parametrize("t", [0, 3, STEPS - 1])
def test_before_training_it_is_the_best_linear_denoiser(t):
    plans, model = correlated(500), network()
    model.learn_components(plans)
    x = torch.randn(5, H, D, generator=stream(1, t))
    with torch.no_grad():
        found = model(x, torch.full((5,), t)).flatten(1)
    assert_close(found.double().numpy(), posterior(plans, x, t), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("components", [H * D, 5])
def test_the_unit_of_its_loss_is_the_error_of_that_guess(components):
    plans, model = correlated(20_000), network(components)
    model.learn_components(plans)
    denoiser = Denoiser(model, SCHEDULER)
    for step in (0, 3, STEPS - 1):
        t = torch.full((len(plans),), step)
        x_t = denoiser.noise(plans, t, stream(2, step))
        with torch.no_grad():
            error = (denoiser.predict(x_t, t) - plans).square().mean()
        assert_close(error, model.unexplained(t)[0], rtol=0.03, atol=0)


def test_what_is_not_kept_of_a_plan_has_its_mean():
    plans, model = correlated(500), network(components=5)
    model.learn_components(plans)
    values, vectors = np.linalg.eigh(np.cov(plans.flatten(1).numpy().T, bias=True))
    assert_close(model.variance.numpy(), values[-5:].astype("f4"), rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        x = torch.randn(7, H, D, generator=stream(3, 0))
        found = model(x, torch.full((7,), 2)).flatten(1)
    away = (found - plans.flatten(1).mean(0)).numpy() @ vectors[:, :-5]
    assert np.abs(away).max() < 1e-4


@pytest.mark.lengthy
def test_it_learns_what_no_linear_denoiser_can():
    """Plans that stay at one of two places: the guess between them is half of what noise leaves."""

    def drawn(n, draws):
        side = torch.randint(2, (n, 1, 1), generator=draws) * 1.2 - 0.6
        return side + 0.02 * torch.randn(n, H, D, generator=draws)

    model = network(components=8)
    model.learn_components(drawn(500, stream(4, 0)))
    denoiser = Denoiser(model, SCHEDULER)

    def loss(draws):
        return conditioning.plan_loss(
            denoiser, drawn(64, draws), OBSERVATION, draws, 0.5, model.unexplained
        )

    def held_out():
        with torch.no_grad():
            return float(np.mean([float(loss(stream(6, k))) for k in range(20)]))

    before = held_out()
    training.finish(training.train(model, loss, steps=150, learning_rate=5e-3, seed=0), "toy")
    assert held_out() < 0.8 * before


def test_of_what_is_given_the_ends_are_read():
    model = network()
    model.learn_components(correlated(500))
    for parameter in model.leave[1].parameters():
        torch.nn.init.normal_(parameter, generator=stream(5, 0))
    x, t = torch.randn(2, H, D, generator=stream(5, 1)), torch.tensor([1, 6])
    marks = torch.zeros(2, H, dtype=torch.bool)
    with torch.no_grad():
        none = model(x, t)
        assert torch.equal(none, model(x, t, marks))
        for step, read in ((0, True), (-1, True), (2, False)):
            told = marks.clone()
            told[:, step] = True
            assert torch.equal(none, model(x, t, told)) != read


def test_the_loss_counts_the_error_at_a_step_in_its_own_unit():
    x0 = correlated(40)
    denoiser = Denoiser(lambda x, t: torch.zeros_like(x), SCHEDULER)

    def loss(unit):
        return conditioning.plan_loss(denoiser, x0, OBSERVATION, stream(7, 0), 0.0, unit)

    draws = stream(7, 0)
    t = torch.randint(STEPS, (40,), generator=draws)
    by_hand = (x0.square().mean((1, 2)) / (1.0 + t)).mean()
    assert_close(loss(lambda t: 1.0 + t), by_hand)
    assert_close(loss(lambda t: torch.ones(len(t))), loss(None))


@pytest.mark.parametrize(
    ("plans", "named"),
    [
        (torch.zeros(50, H, D + 1), r"shape \(50, 6, 5\) is not allowed"),
        (torch.zeros(24, H, D), "24 are not allowed: more than the 24 components"),
    ],
)
def test_plans_that_cannot_be_learnt_from_are_refused(plans, named):
    with pytest.raises(InputError, match=named):
        network().learn_components(plans)


def test_plans_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"shape \(2, 7, 4\) is not allowed"):
        network()(torch.zeros(2, H + 1, D), torch.zeros(2, dtype=torch.long))


DATA = MazeData("umaze", None, 60, 60, 2)
SMALL = ComponentDiffuser(
    DATA,
    DATA,
    horizon=8,
    diffusion_steps=6,
    steps=2,
    batch=4,
    components=6,
    hidden=8,
    blocks=1,
    octaves=2,
    places=3,
)


@pytest.mark.lengthy
def test_a_diffuser_keeps_what_it_has_seen_in_its_file(tmp_path):
    SMALL.make(tmp_path, "cpu")
    model = SMALL.load(tmp_path, "cpu").network
    plans = SMALL.split().draw(20_000, stream(SMALL.seed, "components"))
    like = SMALL.blank("cpu").network
    like.learn_components(plans)
    assert model.variance.any() and torch.equal(model.basis, like.basis)
    assert torch.equal(model.signal, torch.tensor(SMALL.blank("cpu").schedule.abar).float())
    # Positions are numbers 2 and 3 of each six; of eight steps the first, the middle and the last.
    assert model.places.tolist() == [2, 3, 6 * 4 + 2, 6 * 4 + 3, 6 * 7 + 2, 6 * 7 + 3]
    assert (model.observation, len(model.frequencies), len(model.blocks)) == (4, 2, 1)
    assert model.leave[1].weight.any()  # it has been trained


@pytest.mark.lengthy
def test_an_expert_that_begins_at_a_base_has_the_bases_components(tmp_path):
    goal = replace(DATA, goal=(3.0, 1.0))
    expert = replace(SMALL, data=goal, start=SMALL)
    expert.make(tmp_path, "cpu")
    model, base = expert.load(tmp_path, "cpu").network, store.obtain(SMALL).network
    assert torch.equal(model.basis, base.basis) and not torch.equal(
        model.enter.weight, base.enter.weight
    )


def test_it_refuses_sizes_that_would_take_months():
    with pytest.raises(InputError, match="hidden=100000"):
        replace(SMALL, hidden=100_000, steps=10**6)
