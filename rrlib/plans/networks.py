"""Networks of plans: Diffuser's temporal U-Net, and diffusers' own networks turned to plans."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rrlib.errors import InputError
from rrlib.plans.activations import Mish, replace_mish

if TYPE_CHECKING:
    from diffusers import UNet1DModel


def temporal_unet(inputs: int, outputs: int, channels: tuple[int, ...], **rest) -> "UNet1DModel":
    """What Diffuser's planner and its value function have in common; `rest` tells them apart."""
    from diffusers import UNet1DModel  # takes seconds, which those of other networks need not wait

    return UNet1DModel(
        in_channels=inputs,
        out_channels=outputs,
        block_out_channels=channels,
        down_block_types=("DownResnetBlock1D",) * len(channels),
        time_embedding_type="positional",
        use_timestep_embedding=True,
        flip_sin_to_cos=False,
        freq_shift=1,
        layers_per_block=1,
        **rest,
    )


class PlanNetwork(nn.Module):
    """Diffuser's temporal U-Net (diffusers' UNet1DModel) for plans [B, H, D].

    Args:
        width: D, numbers per time step (actions, then observations).
        channels: per resolution; the horizon is halved between two resolutions.
        patch: time steps that enter the U-Net as one; it then works on H / patch of them, and
            costs that much less.

    It can be told which time steps are given: one more input channel says so.
    """

    def __init__(self, width: int, channels: tuple[int, ...] = (32, 128, 256), patch: int = 1):
        super().__init__()
        self.width, self.channels, self.patch = width, channels, patch
        self.unet = temporal_unet(
            (width + 1) * patch,
            width * patch,
            channels,
            act_fn="mish",
            norm_num_groups=8,
            downsample_each_block=False,
            up_block_types=("UpResnetBlock1D",) * (len(channels) - 1),
            mid_block_type="MidResTemporalBlock1D",
            out_block_type="OutConv1DBlock",
        )
        replace_mish(self.unet, Mish)

    def forward(self, x: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        """Prediction [B, H, D] for x [B, H, D] at t [B].

        given: bool [B, H], the steps whose observations are clean; None for none.

        Raises:
            InputError: another width, or a horizon that the network cannot halve.
        """
        if x.ndim != 3 or x.shape[-1] != self.width:
            raise InputError(
                f"x of shape {tuple(x.shape)} is not allowed: plans [B, H, {self.width}] are "
                "needed."
            )
        check_horizon(x.shape[1], self.channels, self.patch)
        mark = x.new_zeros(x.shape[:2]) if given is None else given.to(x)
        patches = torch.cat([x, mark[..., None]], -1).unflatten(1, (-1, self.patch)).flatten(2)
        out = self.unet(patches.mT, t).sample.mT  # [B, H / patch, patch D]
        return out.reshape(x.shape)


def check_horizon(horizon: int, channels: tuple[int, ...], patch: int = 1) -> None:
    """Raise InputError unless `horizon` can be cut and halved as the network does."""
    factor = patch * 2 ** (len(channels) - 1)
    if horizon < factor or horizon % factor:
        raise InputError(
            f"horizon={horizon} is not allowed: a positive multiple of {factor} is needed by "
            f"a network of {len(channels)} resolutions."
        )


class ChannelsFirst(nn.Module):
    """A network of [B, D, H], such as diffusers' UNet1DModel, for plans [B, H, D]."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Prediction [B, H, D] for x [B, H, D] at t [B]."""
        out = self.network(x.mT, t)
        return getattr(out, "sample", out).mT
