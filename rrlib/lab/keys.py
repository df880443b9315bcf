"""What stands for an artefact: its recipe, the versions of what shapes it, the kind of its device.

Nothing here reads source code and nothing is imported that is slow to import: a key is a function
of a recipe's fields alone, the same in every supported Python.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

# Whose releases change what is made: torch its kernels, first weights and random numbers; diffusers
# the U-Nets and schedulers; transformers the text encoder and its tokens; numpy the random numbers
# of data; mujoco the physics; the two gymnasiums the robots and mazes, their rewards and starts.
# scipy and scikit-learn judge what others made, h5py and safetensors keep it: they are no part.
LIBRARIES = (
    *("torch", "diffusers", "transformers", "numpy"),
    *("mujoco", "gymnasium", "gymnasium-robotics"),
)


def key(recipe: Any, device: str = "cpu") -> str:
    """Sixteen hexadecimal digits that stand for a recipe and all it depends on, made on a device.

    Args:
        recipe: see `describe`.
        device: its kind counts: a GPU draws other random numbers and adds in another order.

    Raises:
        TypeError: a field that cannot be described.
    """
    content = {"recipe": describe(recipe), "device": kind(device), "libraries": libraries()}
    text = json.dumps(content, sort_keys=True)  # as `disk.digest`, with Python's library alone
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def kind(device: str) -> str:
    """Of a device: "cpu", "cuda" and so on, without its number."""
    return str(device).partition(":")[0]


@functools.cache
def libraries() -> Mapping[str, str]:
    """Major and minor version of the LIBRARIES; the third number of a version is for mended bugs.

    Those not installed are left out.
    """
    found = {}
    for library in LIBRARIES:
        try:
            version = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
        found[library] = ".".join(version.partition("+")[0].split(".")[:2])
    return found


def parts(recipe: Any) -> Iterator[Any]:
    """The recipes among a recipe's fields that are kept, nearest first; see `store`.

    Of one that is not kept, those among its own fields.
    """
    for field in dataclasses.fields(recipe):
        yield from _kept(getattr(recipe, field.name))


def _kept(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for part in value:
            yield from _kept(part)
    elif dataclasses.is_dataclass(value):
        if hasattr(value, "make"):
            yield value
        else:
            yield from parts(value)


def describe(value: Any) -> Any:
    """A recipe as JSON has it: its name, the version of its code and its fields, and theirs.

    Fields with ``compare=False`` say nothing about what is made and are left out.

    Raises:
        TypeError: something that is no plain value, sequence, tensor or dataclass.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.compare}
        return {
            "name": type(value).__name__,
            "code_version": getattr(type(value), "code_version", 1),
            "fields": {name: describe(part) for name, part in fields.items()},
        }
    if hasattr(value, "detach"):  # a tensor, without importing torch
        shape = list(value.shape)
        return {"dtype": str(value.dtype), "shape": shape, "values": describe(value.tolist())}
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(float(value))}  # JSON has no name for these
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(
        f"a recipe field must be plain data, a tensor or a recipe, not {type(value).__name__}"
    )
