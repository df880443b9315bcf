"""Tensors on disk: safetensors files that carry a checksum of what they hold."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rrlib.disk import atomic, reason
from rrlib.errors import InputError

CHECKSUM = "sha256"  # its key among a file's metadata


def digest(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """sha256 of names, types, shapes and bytes of tensors, and of the texts that go with them."""
    texts = {key: text for key, text in about.items() if key != CHECKSUM}
    found = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all, with its checksum among its metadata.

    Args:
        path: of the file.
        tensors: by name.
        about: texts to keep with them, by name.

    Raises:
        InputError: it cannot be written.
    """
    about = dict(about or {})
    found = _apart({name: value.detach().contiguous() for name, value in tensors.items()})
    with atomic(path) as temporary:
        save_file(found, temporary, about | {CHECKSUM: digest(found, about)})
        _sort_texts(temporary)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, none sharing memory with another: safetensors writes no such tensors."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in seen else value
        seen.add(place)
    return found


def _sort_texts(path: Path) -> None:
    """Put a file's texts in the order of their names: safetensors has them in another each time.

    So the same content is the same bytes.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # as long as before, but for the spaces at its end
            file.seek(8)
            file.write(text.ljust(length))


def read_tensors(
    path: str | Path, device: str = "cpu", *, allow_unchecked: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and the texts that go with them.

    Args:
        path: of the file.
        device: of the tensors.
        allow_unchecked: take also a file without a checksum, which `write_tensors` did not make.

    Raises:
        InputError: there is no such file, it is no safetensors file, or not what was written.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"File '{path}' does not exist.") from None
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise InputError(
            f"File '{path}' is damaged or no safetensors file ({reason(error)})."
        ) from None
    checksum = about.pop(CHECKSUM, None)
    if checksum is None and not allow_unchecked:
        raise InputError(
            f"File '{path}' carries no checksum: one that this version of rrlib wrote is needed."
        )
    if checksum not in (None, digest(tensors, about)):
        raise InputError(f"File '{path}' is damaged: its content is not what its checksum says.")
    return {name: value.to(device) for name, value in tensors.items()}, about


def halved(value: Tensor, name: str) -> Tensor:
    """A weight in float16, on the CPU, as small files keep it.

    Args:
        value: any shape.
        name: of the weight, for the message.

    Raises:
        InputError: it is not finite, or so large that float16 would make it infinite.
    """
    found = value.detach().cpu().half()
    if not torch.isfinite(found).all():
        raise InputError(
            f"weight '{name}' cannot be written: finite numbers of at most 65504, as float16 has "
            "them, are needed."
        )
    return found
