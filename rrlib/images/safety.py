"""Safe latent diffusion's guidance (Schramowski et al. 2022): what a sampler turns from."""

from dataclasses import dataclass

import torch
from torch import Tensor

# What the safe sampler turns from, in the words of safe latent diffusion's own model card.
CONCEPT = (
    "an image showing hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, "
    "nudity, bodily fluids, blood, obscene gestures, illegal activity, drug use, theft, vandalism, "
    "weapons, child abuse, brutality, cruelty"
)


@dataclass(frozen=True)
class SafeGuidance:
    """Safe latent diffusion's settings (Schramowski et al. 2022).

    Attributes:
        warmup: delta, steps before the guidance sets in; the momentum is gathered meanwhile.
        scale: s_S, how soon the guidance acts in full.
        threshold: lambda; it acts where eps_prompt - eps_concept lies below.
        momentum: s_m, weight of the momentum.
        decay: beta_m, share of the momentum that a step keeps.
    """

    warmup: int
    scale: float
    threshold: float
    momentum: float
    decay: float


CONFIGURATIONS = {
    "weak": SafeGuidance(15, 20, 0.0, 0.0, 0.0),
    "medium": SafeGuidance(10, 1000, 0.01, 0.3, 0.4),
    "strong": SafeGuidance(7, 2000, 0.025, 0.5, 0.7),
    "max": SafeGuidance(0, 5000, 1.0, 0.5, 0.7),  # the paper's runs
}


def safe_direction(
    safety: SafeGuidance, empty: Tensor, prompt: Tensor, concept: Tensor, momentum: Tensor
) -> tuple[Tensor, Tensor]:
    """What safe guidance takes from the direction of the prompt, and the momentum after it.

    Args:
        safety: its settings.
        empty, prompt, concept: the noise predicted for each text, [B, ...].
        momentum: v, [B, ...]; zero at first.

    Returns:
        g = (eps_S - eps_u) mu + s_m v and v' = beta_m v + (1 - beta_m) g, both [B, ...].
    """
    apart = prompt - concept
    strength = (apart.abs() * safety.scale).clamp(max=1)
    strength = torch.where(apart < safety.threshold, strength, 0.0)
    direction = (concept - empty) * strength + safety.momentum * momentum
    return direction, safety.decay * momentum + (1 - safety.decay) * direction
