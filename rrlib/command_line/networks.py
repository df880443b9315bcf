"""Diffusers' networks of plans as `save_pretrained` leaves them, with their schedulers."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import safe_open
from torch import Tensor, nn

from rrlib import disk
from rrlib.errors import InputError, shown
from rrlib.images.folders.networks import at_most
from rrlib.method.denoisers import Denoiser
from rrlib.plans.networks import ChannelsFirst

NETWORK, SCHEDULER = "config.json", "scheduler_config.json"


class SavedNetwork(nn.Module):
    """diffusers' UNet1DModel for plans [B, H, D]; `width` is D."""

    def __init__(self, network: nn.Module, width: int):
        super().__init__()
        self.inner, self.width = ChannelsFirst(network), width

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Prediction [B, H, D]; InputError for another width."""
        if x.shape[-1] != self.width:
            raise InputError(
                f"x of shape {tuple(x.shape)} is not allowed: plans of width {self.width} are "
                "needed by the saved network."
            )
        return self.inner(x, t)


def load_denoiser(folder: Path, device: str = "cpu") -> tuple[Denoiser, int]:
    """The model of plans in a folder that diffusers' `save_pretrained` wrote, and their width D.

    Args:
        folder: has a UNet1DModel's `config.json` and safetensors, or has them in `unet/`; and
            `scheduler_config.json`, or that in `scheduler/`.
        device: where the network goes.

    Raises:
        InputError: there is no such folder, or it holds no such network or scheduler.
    """
    network, kind = _part(folder, "unet", NETWORK)
    place, name = _part(folder, "scheduler", SCHEDULER)
    if kind != "UNet1DModel":
        raise _refused(folder, f"its network is a {shown(kind)}")
    scheduler: Any = getattr(diffusers, name, None)
    known = isinstance(scheduler, type) and issubclass(scheduler, diffusers.SchedulerMixin)
    if not known:
        raise _refused(folder, f"its scheduler is a {shown(name)}")
    try:
        with at_most(_weights(network)):
            made, report = diffusers.UNet1DModel.from_pretrained(
                network, use_safetensors=True, output_loading_info=True
            )
        scheduler = scheduler.from_pretrained(place)
    except Exception as error:  # what a damaged folder can end in is anybody's guess
        raise _refused(folder, disk.reason(error)) from None
    if report["missing_keys"]:
        raise _refused(folder, f"its weights lack {shown(report['missing_keys'][0])}")
    width = made.config.in_channels
    if made.config.out_channels != width:
        raise _refused(folder, f"its network makes {made.config.out_channels} numbers of {width}")
    saved = SavedNetwork(made.eval().requires_grad_(False), width)
    try:
        return Denoiser(saved.to(device, torch.float32), scheduler), width
    except InputError as error:  # of its scheduler
        raise _refused(folder, str(error).rstrip(".")) from None


def _weights(folder: Path) -> int:
    """How many tensors the folder's files hold."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            count += len(file.keys())
    return count


def _part(folder: Path, part: str, config: str) -> tuple[Path, str]:
    """Where a part of a model is, in its own folder or not, and of which class it is."""
    found = next((p for p in (folder / part, folder) if (p / config).is_file()), None)
    if found is None:
        raise _refused(folder, f"there is no {part}/{config}")
    content = disk.read_json(found / config)
    return found, str(content.get("_class_name", "") if isinstance(content, dict) else "")


def _refused(folder: Path, why: str) -> InputError:
    return InputError(
        f"model={shown(str(folder))} is not allowed ({why}): the folder of a diffusers "
        "pipeline, or of a UNet1DModel and its scheduler, is needed."
    )
