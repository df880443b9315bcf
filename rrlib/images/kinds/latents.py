"""What all pipelines with a VAE share: latents to and from pixels."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rrlib.images.kinds.protocol import device_of, dtype_of


@dataclass(frozen=True)
class Latents:
    """The part of `Kind` that is the VAE's."""

    pipeline: Any

    @property
    def factor(self) -> int:
        """Pixels along the side of a latent's number."""
        return self.pipeline.vae_scale_factor

    @property
    def space(self) -> tuple:
        """How latents are scaled and, if they are, shifted."""
        shift = () if self._shift is None else (self._shift,)
        return self.pipeline.vae.config.scaling_factor, *shift

    def decode(self, latents: Tensor) -> Tensor:
        """See `Kind`."""
        with _wide(self.pipeline.vae) as vae:
            given = latents.to(device_of(vae), dtype_of(vae)) / vae.config.scaling_factor
            return vae.decode(given + self._shift if self._shift else given).sample.float()

    def encode(self, pixels: Tensor) -> Tensor:
        """See `Kind`."""
        with _wide(self.pipeline.vae) as vae:
            found = vae.encode(pixels.to(device_of(vae), dtype_of(vae))).latent_dist.mean.float()
            return (found - self._shift if self._shift else found) * vae.config.scaling_factor

    @property
    def _shift(self) -> float | None:
        return self.pipeline.vae.config.get("shift_factor")


@contextmanager
def _wide(vae: nn.Module) -> Iterator[nn.Module]:
    """The VAE in float32 where half precision overflows, as its `force_upcast` says (SDXL's)."""
    narrow = dtype_of(vae) == torch.float16 and vae.config.get("force_upcast")
    if narrow:
        vae.float()
    try:
        yield vae
    finally:
        if narrow:
            vae.half()
