"""Pictures of whatever form, as PIL images."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from rrlib.errors import InputError, shown

Picture: TypeAlias = Image.Image | np.ndarray | str | Path


def pictures(images: Picture | Iterable[Picture]) -> list[Image.Image]:
    """PIL images of one picture or several: PIL images, arrays or files.

    Args:
        images: PIL images, uint8 arrays [H, W, 3], or paths of files; one of them, or several, also
            as one array [N, H, W, 3].

    Raises:
        InputError: none, a file that cannot be read, or something else.
    """
    if isinstance(images, Image.Image | str | Path) or (
        isinstance(images, np.ndarray) and images.ndim == 3
    ):
        images = [images]
    if not isinstance(images, Iterable):
        raise _no_picture(images)
    found = [_picture(one) for one in images]
    if not found:
        raise InputError("images=[] is not allowed: at least one picture is needed.")
    return found


def _picture(one: Picture) -> Image.Image:
    if isinstance(one, Image.Image):
        return one
    if isinstance(one, str | Path):
        try:
            with Image.open(one) as file:
                return file.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(
                f"image={shown(str(one))} is not allowed: a file with a picture is needed "
                f"({type(error).__name__})."
            ) from None
    array = isinstance(one, np.ndarray) and one.dtype == np.uint8 and one.ndim == 3
    if array and one.shape[2] == 3 and one.size:
        return Image.fromarray(one)
    raise _no_picture(one)


def _no_picture(value: object) -> InputError:
    told = f"{value.dtype} array {value.shape}" if isinstance(value, np.ndarray) else shown(value)
    return InputError(
        f"image={told} is not allowed: a PIL image, a uint8 array [H, W, 3], a path or a tensor of "
        "latents is needed."
    )
