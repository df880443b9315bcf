"""Artefacts: whatever is slow to make is described by a recipe, made once, and loaded ever after.

A *recipe* is a frozen dataclass with

- fields that are plain values, tuples, tensors or other dataclasses such as the recipes that it
  depends on (a field with ``compare=False`` says nothing about what is made),
- ``make(folder, device)``, which writes safetensors, HDF5 or JSON files into `folder`,
- ``load(folder, device)``, which reads them back,
- ``code_version: ClassVar[int]``, 1 where it is left out: raised by hand whenever `make` comes to
  make something else of the same fields, or `load` to read another form.

Its key is a hash of the fields and the version, of those of the recipes among the fields, of the
versions of the libraries that shape results, and of the kind of device (`keys.key`). It does not
depend on source code, so a better comment or message costs nothing, and a file that is edited while
a process runs cannot give the old code's result the new code's name. That the version is raised in
time is what `tests/test_recipe_code.py` sees to.

A recipe without ``make`` is not kept. It stands for what is large and made of others in seconds,
such as a pool of comparisons: ``load`` makes it, and the last one stays in memory for whoever asks
for it next.

An artefact is a folder with a manifest, written under a partial name and renamed when it is whole.
What is damaged is noticed when it is loaded, set aside and made again.

The book comes with some artefacts, the diffusers of its quick profile, in the checkout's `shipped`.
What is wanted and lies there under its key is copied into the store instead of being made. With
``RRLIB_FRESH=1`` all is made here.
"""

import functools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from rrlib import disk
from rrlib.disk import write_json
from rrlib.errors import InputError, shown
from rrlib.lab import environment as host
from rrlib.lab import keys, meters

MANIFEST = "manifest.json"
SHIPPED = host.CHECKOUT / "shipped"


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


def fresh() -> bool:
    """Whether ``RRLIB_FRESH`` says that all is made here, and nothing is taken from the book.

    Raises:
        InputError: it is set to something else than 0 or 1.
    """
    said = os.environ.get("RRLIB_FRESH") or "0"
    if said not in ("0", "1"):
        raise InputError(f"RRLIB_FRESH={shown(said)} is not allowed: 0 or 1 is needed.")
    return said == "1"


def maker(device: str = "cpu") -> str:
    """The device that an artefact is made on which is wanted on `device`.

    That one, if it is no CPU; else the one that ``RRLIB_DEVICE`` names (`notebook.start` sets it),
    so what a chapter made on a GPU is found again when it is wanted on the CPU.
    """
    return device if keys.kind(device) != "cpu" else os.environ.get("RRLIB_DEVICE") or "cpu"


def key(recipe: Any, device: str = "cpu") -> str:
    """Sixteen hexadecimal digits: see `keys.key` and `maker`."""
    return keys.key(recipe, maker(device))


def folder(recipe: Any, device: str = "cpu") -> Path:
    """Where the artefact of `recipe` is, or will be."""
    return root() / type(recipe).__name__ / key(recipe, device)


def obtain(recipe: Any, device: str = "cpu") -> Any:
    """Load the artefact of `recipe` to a device; make it first when there is none, see above.

    Two processes that want the same artefact take turns under a file lock.
    A process that was killed leaves a partial folder whose checkpoint the next one goes on from.
    A damaged artefact is set aside, with one line that says so, and made again; when that is done
    the damaged one is deleted.

    Raises:
        InputError: the store cannot be written or read, its disk is full, or what was made is
            damaged at once.
    """
    place = folder(recipe, device)
    if not _is_kept(recipe):
        return _last(recipe, place, device)
    _ensure(recipe, place, device, wait=True)
    if _damage(place):
        _mend(recipe, place, device)
    return recipe.load(place, device)


def manifest(recipe: Any, device: str = "cpu") -> dict[str, Any]:
    """How a stored artefact was made.

    Returns:
        key, recipe     as `keys.describe` has it, and seed, the recipe's own or None
        device          model of the CPU or GPU
        cpu_seconds     processor time of the process that made it, all threads, and of the children
                        that it waited for; without that of the recipe's parts, which have manifests
                        of their own, and without any wait for another process; of a run that was
                        killed and gone on with, the last process's
        process_peak_mb the most memory, MiB, that the process had held at any time since its start
                        until this was made, whatever for
        cuda_peak_mb    the most memory, MiB, that torch held on the GPU while this was made; None
                        on a CPU
        sha256          of each file
        commit          see `host.commit`
        versions        see `host.versions`
        checksum        of all these

    Raises:
        InputError: there is none, or it cannot be read.
    """
    return disk.read_json(folder(recipe, device) / MANIFEST)


def obtain_all(recipes: Iterable[Any], device: str = "cpu") -> list[Any]:
    """Load the artefacts of several recipes, those first that others depend on.

    What another process is making is left for later, so two processes that are given the same list,
    two chapters started together, make half of it each.
    """
    recipes = list(recipes)
    for recipe in filter(_is_kept, recipes):
        _ensure(recipe, folder(recipe, device), device, wait=False)
    return [obtain(recipe, device) for recipe in recipes]


def spent(recipes: Iterable[Any], device: str = "cpu") -> tuple[float, float]:
    """What stored artefacts took: hours of one core, and the most memory of a GPU or process, GB.

    Their parts count where they are among `recipes`, see `manifest`; what is not kept counts in
    what was made of it.
    """
    made = [manifest(recipe, device) for recipe in dict.fromkeys(recipes) if _is_kept(recipe)]
    peaks = (about["cuda_peak_mb"] or about["process_peak_mb"] for about in made)
    return sum(about["cpu_seconds"] for about in made) / 3600, max(peaks, default=0) / 1024


def seconds(recipes: Iterable[Any], device: str = "cpu") -> float:
    """Processor seconds that making stored artefacts and all their parts took, each counted once.

    What the store has none of was not made here: the data of a shipped diffuser, for instance.
    """
    todo, made = list(recipes), {}
    while todo:
        recipe = todo.pop()
        if (place := folder(recipe, device)) not in made:
            stored = _is_kept(recipe) and (place / MANIFEST).exists()
            made[place] = manifest(recipe, device)["cpu_seconds"] if stored else 0.0
            todo += keys.parts(recipe)
    return sum(made.values())


def checkpoints(partial: Path) -> Path:
    """The sub-folder of a partial artefact that holds checkpoints; it goes when all is made."""
    path = partial / "checkpoints"
    if partial.exists():
        path.mkdir(exist_ok=True)
    return path


def _is_kept(recipe: Any) -> bool:
    return hasattr(recipe, "make")


@functools.lru_cache(maxsize=1)
def _last(recipe: Any, place: Path, device: str) -> Any:
    """What a recipe stands for that is not kept; `place` tells one store from another."""
    return recipe.load(place, device)


def _ensure(recipe: Any, place: Path, device: str, wait: bool) -> None:
    with _own_work():
        if (place / MANIFEST).exists():
            return
    try:
        with _turn(place, wait):
            if not (place / MANIFEST).exists() and not _unpack(place):
                _make(recipe, place, device)
    except Timeout:
        return


def _unpack(place: Path) -> bool:
    """Copy what comes with the book into the store; whether there is such, and it is whole."""
    source = SHIPPED / place.parent.name / place.name
    if fresh() or not source.exists():
        return False
    if why := _damage(source):
        disk.say(f"'{place}' is made here, for '{source}' is damaged ({why}).")
        return False
    with _own_work():
        beside = place.parent / f".{place.name}.unpacked"
        shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed
        shutil.copytree(source, beside)
        if place.exists():  # a folder without a manifest is no artefact
            disk.set_aside(place, f"it has no {MANIFEST}")
        disk.settle(beside, place)
    return True


def _mend(recipe: Any, place: Path, device: str) -> None:
    with _turn(place, wait=True):
        why = _damage(place)
        if why is None:  # another process was first
            return
        with _own_work():
            disk.set_aside(place, why)
        if not _unpack(place):
            _make(recipe, place, device)
        if why := _damage(place):
            raise InputError(
                f"The artefact '{place}' is damaged as soon as it is made ({why}): a store on a "
                "disk that keeps what is written is needed."
            )


@contextmanager
def _turn(place: Path, wait: bool) -> Iterator[None]:
    """The lock of one artefact. Raises Timeout if another process has it and we do not wait."""
    with _own_work():
        place.parent.mkdir(parents=True, exist_ok=True)
        turn = FileLock(place.parent / f".{place.name}.lock").acquire(timeout=-1 if wait else 0)
    with turn:
        yield


@contextmanager
def _own_work() -> Iterator[None]:
    """What the store does itself: where the system refuses, one sentence."""
    try:
        yield
    except Timeout:  # an OSError too, and an answer
        raise
    except OSError as error:
        raise _refusal(error) from None


def _refusal(error: Exception) -> InputError:
    return InputError(
        f"store={str(root())!r} is not allowed: a folder that can be written, on a disk with room, "
        f"is needed ({disk.reason(error)})."
    )


def _make(recipe: Any, place: Path, device: str) -> None:
    device = maker(device)
    described = keys.describe(recipe)
    partial = place.parent / f".{place.name}.partial"
    with _own_work():
        partial.mkdir(exist_ok=True)
        (partial / MANIFEST).unlink(missing_ok=True)  # killed between this and the last rename
    try:
        with meters.metered(device) as took:
            recipe.make(partial, device)
    except (OSError, SafetensorError) as error:
        if not disk.is_full(error):
            raise
        raise _refusal(error) from None
    with _own_work():
        for leftover in partial.glob(".*"):  # of a run that was killed
            _remove(leftover)
        resumed_from = checkpoints(partial)  # kept until all else is there
        every = sorted(path for path in partial.rglob("*") if path.is_file())
        files = [path for path in every if resumed_from not in path.parents]
        manifest = {
            "recipe": described,
            "key": place.name,
            "seed": getattr(recipe, "seed", None),
            "device": host.device_name(device),
            **took,
            "sha256": {path.relative_to(partial).as_posix(): disk.sha256(path) for path in files},
            "commit": host.commit(),
            "versions": host.versions(),
        }
        write_json(partial / MANIFEST, manifest | {"checksum": disk.digest(manifest)})
        shutil.rmtree(resumed_from, ignore_errors=True)
        if place.exists():  # a folder without a manifest is no artefact
            disk.set_aside(place, f"it has no {MANIFEST}")
        disk.settle(partial, place)
        for damaged in place.parent.glob(f".{place.name}{disk.DAMAGED}*"):
            _remove(damaged)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _damage(place: Path) -> str | None:
    """What is wrong with an artefact, or None.

    Raises:
        InputError: it is not for this user to read.
    """
    name = MANIFEST
    try:
        found = json.loads((place / name).read_text(encoding="utf-8"))
        if found.pop("checksum") != disk.digest(found):
            return f"{name} is not what was written"
        for name, digest in found["sha256"].items():
            if disk.sha256(place / name) != digest:
                return f"{name} is not what was written"
    except PermissionError as error:
        raise InputError(
            f"The artefact file '{place / name}' cannot be read ({disk.reason(error)}): a store "
            "whose files are open for reading is needed."
        ) from None
    except OSError as error:
        return f"{name} cannot be read: {disk.reason(error)}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{name} is no manifest"
    return None
