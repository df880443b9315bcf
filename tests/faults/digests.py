"""What is in a value of any of the project's classes, to be compared with another."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn


def of(value: Any) -> str:
    """sha256 of all numbers and texts in a value."""
    found = hashlib.sha256()
    _add(found, value, 0)
    return found.hexdigest()


def _add(found: Any, value: Any, depth: int) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().float().numpy()
    if isinstance(value, np.ndarray):
        found.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, nn.Module):
        _add(found, dict(value.state_dict()), depth + 1)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            found.update(str(key).encode())
            _add(found, value[key], depth + 1)
    elif isinstance(value, list | tuple):
        for one in value:
            _add(found, one, depth + 1)
    elif dataclasses.is_dataclass(value) and depth < 8:
        _add(found, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, depth + 1)
    elif hasattr(value, "components"):  # a pipeline's
        _add(found, {k: v for k, v in value.components.items() if isinstance(v, nn.Module)}, depth)
    elif isinstance(value, str | int | float | bool | None):
        found.update(repr(value).encode())
    else:
        found.update(type(value).__name__.encode())
