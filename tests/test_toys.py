"""The toy plans: their densities by SciPy, their recipes, what they are for."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from rrlib.lab import store, toys
from rrlib.method.noise.schedulers import cosine_scheduler
from rrlib.theory.tilted import Law, LogRatio, product
from rrlib.training import stream


def log_density(side: toys.Side, x: np.ndarray) -> np.ndarray:
    """log p of flat plans [n, 16], SciPy's, from the words of the docstring."""
    time = np.linspace(0, 1, toys.HORIZON)
    early, late = 1 - (1 - time) ** 2, time**2
    rough = 0.09 * np.exp(-3 * np.abs(time[:, None] - time))
    curves = {
        "base": [(0.25, early), (0.25, late), (0.25, -early), (0.25, -late)],
        "expert": [(0.7, 1.2 * late), (0.3, 1.2 * early)],
    }[side]
    parts = [np.log(w) + multivariate_normal(m, rough).logpdf(x) for w, m in curves]
    return np.logaddexp.reduce(parts)


def test_the_log_ratio_is_that_of_the_densities():
    x = torch.cat([toys.plans(side, 30, stream(0, side)) for side in ("base", "expert")])
    assert x.shape == (60, toys.HORIZON, 1) and x.dtype == torch.float32
    flat = x[..., 0].double().numpy()
    wanted = log_density("expert", flat) - log_density("base", flat)
    np.testing.assert_allclose(toys.log_ratio(x), wanted, rtol=1e-6, atol=1e-6)
    assert wanted[30:].mean() > 1 > wanted[:30].mean()


@pytest.mark.lengthy
def test_diffusers_and_reward_are_made_and_come_back(tmp_path, monkeypatch):
    monkeypatch.setenv("RRLIB_STORE", str(tmp_path))
    shape = {"samples": 50, "channels": (8, 8), "steps": 2, "batch": 4}
    pair = (toys.ToyDiffuser("base", **shape), toys.ToyDiffuser("expert", **shape))
    recipe = toys.ToyReward(*pair, pool=30, steps=3, batch=8)
    reward = store.obtain(recipe)
    x, t = toys.plans("base", 5, stream(0, 1)), torch.zeros(5, dtype=torch.long)
    assert torch.equal(reward(x, t), store.obtain(recipe)(x, t)) and reward.steps == 100
    assert (reward.target, reward.place) == ("score", "x_t")
    assert not torch.equal(pair[0].data(), pair[1].data())
    assert toys.reward().base.side == "base" and toys.reward().expert.side == "expert"


@pytest.mark.parametrize("w", [-0.5, 0.5, 3.0])
def test_a_tilted_gaussian_is_the_normalised_product(w):
    base, expert = Law(0.3, 1.0), Law(1.0, 0.4)
    x = np.linspace(-40, 40, 80_001)
    logs = [-0.5 * (x - law.mean) ** 2 / law.variance for law in (base, expert)]
    density = np.exp((1 - w) * logs[0] + w * logs[1])
    density /= density.sum()
    mean = density @ x
    found = product(base, {expert: w})
    assert found.mean == pytest.approx(mean) and found.variance == pytest.approx(
        density @ (x - mean) ** 2
    )


def test_the_gradient_of_the_log_ratio_is_the_difference_of_scores():
    scheduler = cosine_scheduler(100, clip=False)
    base, expert = Law(0.3, 1.0), Law(1.0, 0.4)
    x, t = torch.randn(7, 1, generator=stream(0, 2)).double(), torch.arange(7) * 14
    x.requires_grad_()
    (slope,) = torch.autograd.grad(LogRatio(base, expert, scheduler)(x, t).sum(), x)
    scores = [law.denoiser(scheduler).score(x.detach(), t) for law in (base, expert)]
    torch.testing.assert_close(slope, scores[1] - scores[0], rtol=1e-6, atol=1e-8)


def test_the_sides_draw_independently_and_by_the_seed():
    """What is rough in a plan of the base says nothing of the expert's plan of that row."""
    rough = []
    for side in ("base", "expert"):
        diffuser = toys.ToyDiffuser(side, samples=2_000)
        data, means = diffuser.data()[..., 0].double(), toys.mixture(side).means
        assert torch.equal(diffuser.data(), toys.ToyDiffuser(side, samples=2_000).data())
        other = toys.ToyDiffuser(side, samples=2_000, seed=1).data()
        assert not torch.equal(diffuser.data(), other)
        nearest = torch.cdist(data, means).argmin(1)
        rough.append((data - means[nearest]).flatten())
    assert abs(float(torch.corrcoef(torch.stack(rough))[0, 1])) < 0.1


@pytest.mark.parametrize("seed", [0, 3])
def test_a_toy_reward_begins_at_its_own_seed(seed):
    pair = [toys.ToyDiffuser(side, seed=seed) for side in ("base", "expert")]
    weights = [toys.ToyReward(*pair, seed=own)._network().g[0].weight for own in (0, 0, 1)]
    assert torch.equal(*weights[:2]) and not torch.equal(*weights[1:])
