"""What must not wait for a device, small and on any device: see `test_devices` and `test_cuda`."""

import copy
from collections import deque
from collections.abc import Callable
from functools import cache, partial

import tiny_pipelines
import torch
from small_recipes import recipes

from rrlib.estimators import integrals, levels, particles
from rrlib.estimators import noised as ratios
from rrlib.images import comparisons as image_comparisons
from rrlib.images import guided as images
from rrlib.images.guided import Guided
from rrlib.images.rewards import EncoderReward
from rrlib.images.safety import CONFIGURATIONS
from rrlib.images.scoring import ImageReward
from rrlib.method import comparisons, extraction, guidance, pools
from rrlib.method.comparisons import Comparisons
from rrlib.method.denoisers import Denoiser
from rrlib.method.exact import ExactDifference
from rrlib.method.noise.schedulers import cosine_scheduler
from rrlib.method.rewards import RelativeReward, compose
from rrlib.plans.conditioning import ends_given, first_given, given, hold
from rrlib.plans.networks import PlanNetwork
from rrlib.plans.rewards import WindowReward
from rrlib.training import stream

Loop = Callable[[str, int], object]  # device, steps: does so many of them there
H, D, OBSERVATION = 8, 5, 3


# Plans: comparing, sampling, weighing, estimating.


def model(steps: int, device: str, seed: int = 0) -> Denoiser:
    """Of random weights."""
    torch.manual_seed(seed)
    network = PlanNetwork(D, (8, 16)).to(device)
    return Denoiser(network, cosine_scheduler(steps, clip=False))


def reward(steps: int, device: str, target="score", place="x_t", seed: int = 0) -> RelativeReward:
    """Of random weights."""
    torch.manual_seed(seed)
    network = WindowReward(D, 4, torch.ones(steps), hidden=(8,))
    return RelativeReward(network.to(device), target, place)


def algorithm1(device: str, n: int, condition=None) -> Comparisons:
    """n batches."""
    pair = model(6, device), model(6, device, 1)
    data = [torch.randn(20, H, D, generator=stream(0, k)).to(device) for k in range(2)]
    return comparisons.algorithm1(*pair, *data, size=5 * n, seed=0, batch=5, condition=condition)


def algorithm2(device: str, n: int) -> Comparisons:
    """n steps of each side's runs, and what a reward is fitted to."""
    found = comparisons.algorithm2(
        model(n, device), model(n, device, 1), (H, D), runs=2, seed=0, device=device
    )
    return found.pool("mean", "mu_base").cut(4).average(2)


def sampled(device: str, n: int, *meaning, **options) -> torch.Tensor:
    """n steps, steered if the reward's target and place are named."""
    steered = {"reward": reward(n, device, *meaning)} if meaning else {}
    first = torch.zeros(3, OBSERVATION).to(device)
    held = {"keep": hold(first)} | steered | options
    return guidance.sample(given(model(n, device), first), (3, H, D), device=device, **held)


def exact(device: str, n: int) -> torch.Tensor:
    """n steps by the difference of two models, at three scales at once."""
    base = model(n, device)
    both = ExactDifference(base, model(n, device, 1))
    scales = {"reward": both, "guidance_scale": torch.tensor([0.0, 0.5, 2.0])}
    return guidance.sample(base, (3, H, D), device=device, **scales)


def chosen(device: str, n: int) -> torch.Tensor:
    """The best of n."""
    return particles.best_of(model(4, device), (3, H, D), reward(4, device), n, device=device)


def weighted(device: str, n: int) -> particles.Particles:
    """n steps of weighted particles of a sum of rewards."""
    both = compose([reward(n, device, seed=seed) for seed in (0, 1)], [1.0, -0.5])
    options = {"particles": 4, "guidance_scale": 2.0, "device": device}
    return particles.sample_weighted(model(n, device), (3, H, D), both, **options)


def ratio(way, device: str, n: int, start: bool = False) -> levels.Estimate:
    """At n levels, two rows at a time; each sample's own start is given, or not."""
    x = torch.randn(2, H, D, generator=stream(0, 0)).to(device)
    pair = model(n, device), model(n, device, 1)
    if start:
        pair = tuple(given(one, x[:, 0, -OBSERVATION:]) for one in pair)
    return way(*pair, x, batch=2)


def line(device: str, n: int) -> levels.Estimate:
    """At n places of each line."""
    x = torch.randn(2, H, D, generator=stream(0, 0)).to(device)
    return integrals.line_integral(model(4, device), model(4, device, 1), x, steps=n, batch=2)


def explained(device: str, n: int) -> torch.Tensor:
    """n batches of held-out comparisons."""
    x, t = torch.ones(4 * n, 4, D).to(device), torch.arange(4 * n).remainder(6).to(device)
    pool = pools.Pool(x, t, x)
    return extraction.explained(reward(6, device).network, pool, 6, batch=4)


# Images.


@cache
def _made(kind: str, seed: int):
    return getattr(tiny_pipelines, kind)(seed)


def pipeline(kind: str, seed: int, device: str):
    """Of random weights, from `tiny_pipelines`."""
    return copy.deepcopy(_made(kind, seed)).to(device)


def drawn(device: str, n: int, kind: str = "stable_diffusion", **options) -> torch.Tensor:
    """n steps of images; steered with "steer"."""
    steer = options.pop("steer", False)
    sampler = Guided(pipeline(kind, 0, device), n, scale=2.0, **options)
    texts = sampler.condition(["red circle"] * 2 if sampler.model.tokenizers else 2)
    shift = image_reward(sampler, device).steers(sampler, 1.0) if steer else None
    start = sampler.start(2, stream(0, 0))
    return deque(images.denoise(sampler, texts, start, shift), maxlen=1).pop()[1]


def image_reward(sampler: Guided, device: str) -> ImageReward:
    """Of random weights, in scores."""
    torch.manual_seed(0)
    ones = torch.ones(sampler.steps, *sampler.shape)
    network = EncoderReward(0 * ones, ones, ones[:, 0, 0, 0], (8, 8)).to(device)
    return ImageReward(RelativeReward(network, "score", "x_t"), {})


def image_pair(device: str, n: int) -> dict[str, torch.Tensor]:
    """Algorithm 2's n steps for two pipelines."""
    pair = [Guided(pipeline("stable_diffusion", k, device), n, scale=2.0) for k in range(2)]
    texts = [sampler.condition(["red circle"] * 2) for sampler in pair]
    return image_comparisons.run(tuple(pair), texts, pair[0].start(2, stream(0, 0)), 1)


def digits_sampled(device: str, n: int) -> torch.Tensor:
    """n steps of steered digits."""
    recipe = recipes()["digits reward"]
    base, rho = recipe.base.blank(device), recipe._network().to(device)
    steer = {"reward": RelativeReward(rho, "score", "x_t"), "num_inference_steps": n}
    return guidance.sample(base, (2, 1, 8, 8), device=device, **steer)


LOOPS: dict[str, Loop] = {
    "Algorithm 1": algorithm1,
    "Algorithm 1, ends given": partial(algorithm1, condition=ends_given(OBSERVATION)),
    "Algorithm 1, first given": partial(algorithm1, condition=first_given(OBSERVATION)),
    "Algorithm 2": algorithm2,
    "explained": explained,
    "sampling": sampled,
    "steered by scores": lambda device, n: sampled(device, n, "score", "x_t"),
    "steered by means": lambda device, n: sampled(device, n, "mean", "mu_base"),
    "steered as the authors": lambda device, n: sampled(device, n, "mean", apply_to="x_t"),
    "steered exactly": exact,
    "best of n": chosen,
    "weighted particles": weighted,
    "bounds": partial(ratio, ratios.elbo_difference),
    "bounds, first given": partial(ratio, ratios.elbo_difference, start=True),
    "paths": partial(ratio, ratios.path_difference),
    "flows": partial(ratio, integrals.ode_difference),
    "lines": line,
    "digits": digits_sampled,
    "images": drawn,
    "images of XL": partial(drawn, kind="stable_diffusion_xl"),
    "images of a flow": partial(drawn, kind="stable_diffusion_3"),
    "images of pixels": partial(drawn, kind="unconditional"),
    "safe images": partial(drawn, safety=CONFIGURATIONS["max"]),
    "steered images": partial(drawn, steer=True),
    "comparing images": image_pair,
}
