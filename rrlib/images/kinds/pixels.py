"""Unconditional pipelines of pixels: DDPMPipeline, DDIMPipeline."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from rrlib.images.kinds.checks import (
    asked_for_more,
    lacking,
    odd_size,
    schedule,
    stepped,
)
from rrlib.images.kinds.protocol import Levels
from rrlib.images.kinds.unets import OfUNet


@dataclass(frozen=True)
class Pixels(OfUNet):
    """See `Kind`: images of 1 or 3 channels are their own latents, and no text is taken.

    Steps are DDIM's, whichever scheduler the pipeline draws with, and nothing is clipped.
    """

    pipeline: Any
    factor: ClassVar[int] = 1
    guided: ClassVar[bool] = False
    space: ClassVar[tuple] = ()
    tokenizers: ClassVar[tuple] = ()

    def fault(self) -> str | None:
        """See `Kind`."""
        found = lacking(self.pipeline, ("unet", "scheduler"))
        if found:
            return found
        unet = self.network.config
        found = asked_for_more(unet) or odd_size(unet.sample_size, "U-Net")
        if found:
            return found
        if unet.in_channels != unet.out_channels or unet.in_channels not in (1, 3):
            return (
                f"its U-Net takes {unet.in_channels} channels and gives {unet.out_channels}, which "
                "must both be 1 or 3 (other numbers are of learned variances, or no image's)"
            )
        try:
            schedule(self.pipeline.scheduler, pixels=True)
        except ValueError as error:
            return str(error)
        return None

    def noise(self) -> dict[str, Any]:
        """See `Kind`."""
        return dict(schedule(self.pipeline.scheduler, pixels=True).config)

    def levels(self, steps: int, shape: tuple[int, int, int]) -> Levels:
        """See `Kind`."""
        return stepped(schedule(self.pipeline.scheduler, pixels=True), steps)

    def embed(self, prompts: list[str]) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()

    def predict(self, x: Tensor, time: Tensor, told: tuple[Tensor, ...], guidance: float) -> Tensor:
        """See `Kind`."""
        return self.network(x, time).sample

    def decode(self, latents: Tensor) -> Tensor:
        """The same numbers."""
        return latents.float()

    def encode(self, pixels: Tensor) -> Tensor:
        """The same numbers."""
        return pixels.float()
