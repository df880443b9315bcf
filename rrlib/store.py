"""Artefacts: whatever is slow to make is described by a recipe, made once, and loaded ever after.

A *recipe* is a frozen dataclass with

- fields that are plain values, tuples, tensors or other dataclasses such as the recipes that it
  depends on (a field with ``compare=False`` says nothing about what is made),
- ``make(folder, device)``, which writes safetensors, HDF5 or JSON files into `folder`,
- ``load(folder, device)``, which reads them back.

Its key is a hash of the fields, of the keys of the recipes among them and of the code that `make`
reaches, so an artefact is never older than what it claims to be.
An artefact is a folder with a manifest, written under a partial name and renamed when it is whole.
"""

import ast
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import resource
import shutil
import textwrap
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from rrlib import host
from rrlib.errors import InputError


def root() -> Path:
    """The folder of all artefacts.

    ``RRLIB_STORE`` names it; without it, `artefacts` beside the package in a checkout, else the
    user's cache folder.
    """
    if os.environ.get("RRLIB_STORE"):
        return Path(os.environ["RRLIB_STORE"]).expanduser().resolve()
    if (host.CHECKOUT / "pyproject.toml").exists():
        return host.CHECKOUT / "artefacts"
    return Path.home() / ".cache" / "rrlib"


def key(recipe: Any) -> str:
    """Sixteen hexadecimal digits that stand for a recipe, all it depends on, and its code."""
    text = json.dumps(_describe(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder(recipe: Any) -> Path:
    """Where the artefact of `recipe` is, or will be."""
    return root() / type(recipe).__name__ / key(recipe)


def obtain(recipe: Any, device: str = "cpu") -> Any:
    """Load the artefact of `recipe`; make it first when there is none.

    Two processes that want the same artefact take turns under a file lock.
    A process that was killed leaves a partial folder whose checkpoint the next one goes on from.

    Raises:
        InputError: the store cannot be written, or a file differs from its recorded sha256.
    """
    _ensure(recipe, device, wait=True)
    place = folder(recipe)
    _verify(place)
    return recipe.load(place, device)


def manifest(recipe: Any) -> dict[str, Any]:
    """How a stored artefact was made: recipe, commit, device, seconds of its own, memory, files."""
    return json.loads((folder(recipe) / "manifest.json").read_text(encoding="utf-8"))


def obtain_all(recipes: Iterable[Any], device: str = "cpu") -> list[Any]:
    """Load the artefacts of several recipes, those first that others depend on.

    What another process is making is left for later, so two processes that are given the same list,
    two chapters started together, make half of it each.
    """
    recipes = list(recipes)
    for recipe in recipes:
        _ensure(recipe, device, wait=False)
    return [obtain(recipe, device) for recipe in recipes]


def _ensure(recipe: Any, device: str, wait: bool) -> None:
    place = folder(recipe)
    if (place / "manifest.json").exists():
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        turn = FileLock(place.parent / f".{place.name}.lock").acquire(timeout=-1 if wait else 0)
    except Timeout:
        return
    except OSError as error:
        raise InputError(
            f"store={str(root())!r} is not allowed: a folder that can be written is needed "
            f"({error.strerror})."
        ) from error
    with turn:
        if not (place / "manifest.json").exists():
            _make(recipe, place, device)


class _Parts(threading.local):
    """Seconds spent so far on making the parts of the recipe that is being made."""

    seconds = 0.0


_parts = _Parts()


def _make(recipe: Any, place: Path, device: str) -> None:
    partial = place.parent / f".{place.name}.partial"
    partial.mkdir(exist_ok=True)
    outer, started, _parts.seconds = _parts.seconds, time.perf_counter(), 0.0
    recipe.make(partial, device)
    elapsed = time.perf_counter() - started
    seconds = elapsed - _parts.seconds  # the parts have manifests of their own
    _parts.seconds = outer + elapsed
    shutil.rmtree(checkpoints(partial), ignore_errors=True)
    for leftover in partial.glob(".*"):  # temporary files of a run that was killed
        leftover.unlink()
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    manifest = {
        "recipe": _describe(recipe),
        "key": place.name,
        "seed": getattr(recipe, "seed", None),
        "device": host.device_name(device),
        "wall_seconds": round(seconds, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "sha256": {str(path.relative_to(partial)): _sha256(path) for path in files},
        "commit": host.commit(),
        "versions": host.versions(),
    }
    write_json(partial / "manifest.json", manifest)
    shutil.rmtree(place, ignore_errors=True)  # a folder without a manifest is no artefact
    partial.rename(place)


def _verify(place: Path) -> None:
    name = "manifest.json"
    try:
        digests = json.loads((place / name).read_text())["sha256"]
        for name, digest in digests.items():
            if _sha256(place / name) != digest:
                raise ValueError
    except (ValueError, KeyError, OSError):
        raise InputError(
            f"The artefact file {place / name} is damaged: one with the sha256 of its manifest is "
            "needed; delete its folder and it will be made again."
        ) from None


def checkpoints(partial: Path) -> Path:
    """The sub-folder of a partial artefact that holds checkpoints; it goes when all is made."""
    path = partial / "checkpoints"
    if partial.exists():
        path.mkdir(exist_ok=True)
    return path


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys under a temporary name, then rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    temporary.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.compare}
        described = {name: _describe(part) for name, part in parts.items()}
        return {"kind": type(value).__name__, "code": fingerprint(type(value)), **described}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_describe(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(
        f"a recipe field must be plain data, a tensor or a recipe, not {type(value).__name__}"
    )


# What counts as code: the syntax trees of everything of this package that a class reaches by name.


@functools.cache
def fingerprint(thing: Any) -> str:
    """A hash of the syntax trees of `thing` and all it reaches by name inside rrlib.

    Comments, docstrings and layout do not count, so a better comment costs no training; nor does
    this room, which keeps artefacts and does not shape them.
    """
    seen: dict[str, str] = {}
    _collect(thing, seen)
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]


def _collect(thing: Any, seen: dict[str, str]) -> None:
    name = f"{thing.__module__}.{thing.__qualname__}"
    if name in seen:
        return
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    seen[name] = ast.dump(tree)
    for node in ast.walk(tree):
        # A field's type is not what is made: what a field holds brings its own code into the key.
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    scope = inspect.getmodule(thing).__dict__
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = scope.get(node.value.id)
            if isinstance(owner, ModuleType) and owner.__name__.startswith("rrlib."):
                _reach(f"{owner.__name__}.{node.attr}", getattr(owner, node.attr, None), seen)
        elif isinstance(node, ast.Name) and node.id in scope:
            _reach(f"{thing.__module__}.{node.id}", scope[node.id], seen)


def _reach(name: str, found: Any, seen: dict[str, str]) -> None:
    found = inspect.unwrap(found) if callable(found) else found
    if inspect.isfunction(found) or inspect.isclass(found):
        if found.__module__.startswith("rrlib") and found.__module__ != __name__:
            _collect(found, seen)
    elif isinstance(found, str | int | float | tuple | dict):
        seen[name] = repr(found)
