"""What the samplers ask of a pipeline, whatever its class."""

from typing import Any, NamedTuple, Protocol

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from rrlib.method.noise.schedules import Schedule


class Levels(NamedTuple):
    """The noise levels that a sampler visits, all of x = sqrt(abar) x_0 + sqrt(1 - abar) eps.

    `scheduler` is DDIM of predicted noise and takes the steps; its timesteps count the levels of
    `schedule`, which says what the network is asked there and what its answer means.
    """

    scheduler: DDIMScheduler
    schedule: Schedule


class Kind(Protocol):
    """A pipeline of one kind, which a frozen dataclass of it holds.

    To add a kind: a class with these, and its network's class in `kinds.choice.KINDS`.
    """

    @property
    def pipeline(self) -> Any:
        """Itself."""
        ...

    @property
    def network(self) -> nn.Module:
        """The denoiser."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one latent as the pipeline draws it: channels, height, width."""
        ...

    @property
    def factor(self) -> int:
        """Pixels along the side of a latent's number."""
        ...

    @property
    def multiple(self) -> int:
        """Sides of latents are multiples of this."""
        ...

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance steers it, from the empty text to the prompt."""
        ...

    @property
    def space(self) -> tuple:
        """What makes numbers of latents mean the same to two pipelines; of pixels nothing."""
        ...

    @property
    def tokenizers(self) -> tuple:
        """Of its texts; none where it takes none."""
        ...

    def fault(self) -> str | None:
        """Why the samplers cannot use it, in a clause; None where they can."""
        ...

    def noise(self) -> dict[str, Any]:
        """What makes noise levels mean the same to two pipelines, by name."""
        ...

    def levels(self, steps: int, shape: tuple[int, int, int]) -> Levels:
        """The levels of a run of so many steps."""
        ...

    def embed(self, prompts: list[str]) -> tuple[Tensor, ...]:
        """What the network is told of texts, each part [B, ...]; the empty text is one, too."""
        ...

    def predict(self, x: Tensor, time: Tensor, told: tuple[Tensor, ...], guidance: float) -> Tensor:
        """What the network itself says, [B, C, H, W].

        Args:
            x: as the network sees it, [B, C, H, W], of its own type.
            time: its own times, [] or [B].
            told: of `embed`.
            guidance: scale for a network that is told it; others see none.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 1 or 3, H, W], black at -1 and white at 1, of latents [B, C, h, w]."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """The latents of pixels, float32: of a VAE, the mean of its distribution."""
        ...


def dtype_of(network: nn.Module) -> torch.dtype:
    """Of a network's weights."""
    return next(network.parameters()).dtype


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are."""
    return next(network.parameters()).device
