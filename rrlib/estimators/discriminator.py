"""A rival of the reward that is learned, too, from samples alone: who made them?"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from rrlib.method.comparisons import Condition, drawn, noised
from rrlib.method.denoisers import Denoiser
from rrlib.method.networks.calls import valued


def discriminator_loss(
    network: Callable[[Tensor, Tensor], Tensor],
    base: Denoiser,
    base_data: Tensor,
    expert_data: Tensor,
    n: int,
    generator: torch.Generator,
    condition: Condition | None = None,
) -> Tensor:
    """Cross-entropy of telling noised expert data from noised base data, [] : a rival estimator.

    With as many of one as of the other, the best logit at (x_t, t) is log p2_t - log p1_t, the
    relative reward itself, its constant included. It sees samples only; Algorithm 1 sees models.

    Args:
        network: (x_t, t) -> logit [n] of "expert".
        base: its schedule noises the samples; the model is not asked.
        base_data, expert_data: [m, ...] training samples, normalised alike.
        n: samples drawn, half of them from each side.
        generator: of the draws.
        condition: puts what is given of a sample into its x_t, see `comparisons.algorithm1`.
    """
    x0 = drawn(base_data, expert_data, n, generator)
    x_t, t = noised(base, x0, generator)
    if condition:
        x_t, _ = condition(x0, x_t)
    is_expert = torch.arange(n, device=t.device) >= n - n // 2  # the order of `drawn`
    logits = valued(network, x_t, t)
    return functional.binary_cross_entropy_with_logits(logits, is_expert.to(logits))
