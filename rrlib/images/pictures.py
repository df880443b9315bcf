"""Pictures of whatever form, as PIL images."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from rrlib.errors import InputError, shown

Picture: TypeAlias = Image.Image | np.ndarray | str | Path


def pictures(images: Picture | Iterable[Picture]) -> list[Image.Image]:
    """PIL images of one picture or several: PIL images, arrays or files.

    Args:
        images: PIL images, uint8 arrays [H, W, 3] or (grey) [H, W], or paths of files; one of them,
            or several, also as one array [N, H, W, 3].

    Raises:
        InputError: none, a file that cannot be read, or something else.
    """
    if isinstance(images, Image.Image | str | Path) or (
        isinstance(images, np.ndarray) and images.ndim in (2, 3)
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
                file.load()
                return file
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(
                f"image={shown(str(one))} is not allowed: a file with a picture is needed "
                f"({type(error).__name__})."
            ) from None
    array = isinstance(one, np.ndarray) and one.dtype == np.uint8 and one.size
    if array and (one.ndim == 2 or (one.ndim == 3 and one.shape[2] == 3)):
        return Image.fromarray(one)
    raise _no_picture(one)


def _no_picture(value: object) -> InputError:
    told = f"{value.dtype} array {value.shape}" if isinstance(value, np.ndarray) else shown(value)
    return InputError(
        f"image={told} is not allowed: a PIL image, a uint8 array [H, W, 3] or [H, W], a path or "
        "a tensor of latents is needed."
    )


def resized(image: Image.Image, size: tuple[int, int], mode: str) -> Image.Image:
    """A picture as a pipeline takes it.

    It is turned as its EXIF data say, converted (what is transparent keeps its colour; 16 bits
    become 8), cut to the proportions of `size` around its middle, and resized (Lanczos). One of
    that size and mode stays what it is.

    Args:
        image: of any size and mode.
        size: width and height in pixels.
        mode: "RGB" or "L".

    Raises:
        InputError: floating numbers, of which no range is known.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise InputError(
            f"image of mode {image.mode!r} is not allowed: one of whole numbers is needed."
        )
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray((values // 257).astype(np.uint8))
    image = image.convert(mode)
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)
