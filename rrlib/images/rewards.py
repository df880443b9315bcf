"""The 2-D encoder reward of latents, rho(x_t, t)."""

from typing import ClassVar

import torch
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.unets.unet_2d_blocks import DownBlock2D
from torch import Tensor, nn

from rrlib.errors import InputError

TIME_FEATURES = 32
HIDDEN = 64  # of the head
GROUPS = 8  # of the normalisation


class EncoderReward(nn.Module):
    """rho(x_t, t) of latents [B, C, H, W]: a U-Net's encoder and a head (Table 2, section 5.3).

    Latents are standardised per step and coordinate before the network sees them (appendix E); the
    gradient is one in the latents' own units nonetheless.

    Args:
        mean, deviation: of the latents at each t, [T, C, H, W].
        unit: what a unit of the network's output is worth at each t, [T].
        channels: of each resolution, multiples of 8; sides are halved between two.

    Raises:
        InputError: channels that are no multiples of 8, or latents too small to be halved so often.

    SiLU, for the theorem wants smooth gradients.
    """

    SHAPE: ClassVar = ("channels",)
    TABLES: ClassVar = ("mean", "deviation", "unit")

    def __init__(
        self,
        mean: Tensor,
        deviation: Tensor,
        unit: Tensor,
        channels: tuple[int, ...] = (32, 64, 128, 256),
    ):
        super().__init__()
        inputs, height, width = mean.shape[1:]
        if not channels or any(c < GROUPS or c % GROUPS for c in channels):
            raise InputError(
                f"channels={channels} is not allowed: positive multiples of {GROUPS} are needed."
            )
        halved = 2 ** (len(channels) - 1)
        if height % halved or width % halved:
            raise InputError(
                f"channels={channels} is not allowed for latents of {height} x {width}: sides that "
                f"are multiples of {halved} are needed."
            )
        self.channels = channels
        for name, table in zip(self.TABLES, (mean, deviation, unit), strict=True):
            self.register_buffer(name, table.clone())
        time = 4 * TIME_FEATURES
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, time), nn.SiLU(), nn.Linear(time, time))
        self.first = nn.Conv2d(inputs, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            DownBlock2D(
                channels[max(level - 1, 0)],
                channels[level],
                time,
                num_layers=1,
                resnet_act_fn="silu",
                resnet_groups=GROUPS,
                add_downsample=level < len(channels) - 1,
            )
            for level in range(len(channels))
        )
        flat = channels[-1] * (height // halved) * (width // halved)
        self.head = nn.Sequential(nn.Linear(flat + time, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 1))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """rho, [B], for x_t [B, C, H, W] and t [B], 0 the least noise.

        Raises:
            InputError: latents of another shape.
        """
        if x_t.shape[1:] != self.mean.shape[1:]:
            raise InputError(
                f"x_t of shape {tuple(x_t.shape)} is not allowed: latents of shape "
                f"{tuple(self.mean.shape[1:])} are needed."
            )
        # A thousand is what such embeddings are made for, whatever the number of steps.
        time = get_timestep_embedding(t * (1000.0 / len(self.unit)), TIME_FEATURES)
        time = self.time(time.to(x_t))
        hidden = self.first((x_t - self.mean[t]) / self.deviation[t])
        for block in self.blocks:
            hidden, _ = block(hidden, time)
        out = self.head(torch.cat([hidden.flatten(1), time], 1)).squeeze(1)
        return out * self.unit[t]
