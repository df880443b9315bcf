"""What pipelines have in common whose denoiser is a U-Net."""

from typing import Any

from torch import nn

from rrlib.images.kinds.checks import input_shape


class OfUNet:
    """The part of `Kind` that is the U-Net's."""

    pipeline: Any

    @property
    def network(self) -> nn.Module:
        """The U-Net."""
        return self.pipeline.unet

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what it denoises: channels, height, width."""
        return input_shape(self.network)

    @property
    def multiple(self) -> int:
        """The U-Net halves its sides so often."""
        return 2 ** (len(self.network.config.block_out_channels) - 1)
