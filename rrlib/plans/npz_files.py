"""NumPy's npz archives, looked at before they are read: OGBench's data sets come so.

Arrays of objects, which would be pickles, are refused by their headers; NumPy reads none unasked.
"""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rrlib import disk
from rrlib.errors import InputError
from rrlib.plans import columns
from rrlib.plans.hdf5 import MOST_EXPANSION, SMALL, fault
from rrlib.plans.hdf5_layouts import VECTORS, Wanted

ARCHIVE = "an npz or npy file of numbers"


def read_trajectories(path: Path, wanted: Wanted) -> dict[str, np.ndarray]:
    """The arrays of an OGBench data set by our names; see `data_files.read`.

    `terminals` mark the last step of each recorded trajectory. Rows that its loader has marked as
    not `valids`, states after which nothing was done, are left out.

    Raises:
        InputError: it is no such archive, lacks a key, or has arrays that do not belong together.
    """
    if "goals" in wanted.needs:
        raise fault(path, "is OGBench's, which has no goals", "a file that has them")
    with _reading(path) as archive:
        found = {}
        names = [*VECTORS, "terminals", "rewards", "valids"]
        for name in names:
            if f"{name}.npy" in archive.namelist():
                found[name] = _array(path, archive, name)
            elif name not in ("rewards", "valids") or name in wanted.needs:
                raise fault(path, f"lacks the key '{name}'", "a file that has it")
    length = len(found["actions"])
    if not length:
        raise fault(path, "is empty", "one transition or more")
    for name, array in found.items():
        wide = wanted.widths[VECTORS.index(name)] if name in VECTORS else 1
        if name in VECTORS or array.shape != (length,):
            columns.check_width(path, name, array.shape, array.dtype.kind, wide)
        if len(array) != length:
            what = f"has arrays of different lengths, {len(array)} {name} beside {length} actions"
            raise fault(path, what, "one length for all")
        if name in VECTORS:
            found[name] = columns.vectors(path, name, array, wide or 1)
    keep = columns.checked(path, "valids", "timeouts", found.pop("valids", np.ones(length)))
    return {name: columns.checked(path, name, name, array)[keep] for name, array in found.items()}


def array(path: Path, name: str) -> np.ndarray:
    """One array of numbers, of an npz archive by its name, or of an npy file.

    Raises:
        InputError: it is no such file, or holds no such array.
    """
    if path.suffix == ".npy":
        with _blamed(path), path.open("rb") as file:
            _check_header(path, name, file, path.stat().st_size)
            file.seek(0)
            return np.lib.format.read_array(file)
    with _reading(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise fault(path, f"lacks the key '{name}'", "a file that has it")
        return _array(path, archive, name)


def has(path: Path, name: str) -> bool:
    """Whether an npz archive has an array of this name; InputError if it is no archive."""
    with _reading(path) as archive:
        return f"{name}.npy" in archive.namelist()


@contextmanager
def _reading(path: Path) -> Iterator[zipfile.ZipFile]:
    with _blamed(path), zipfile.ZipFile(path) as archive:
        yield archive


@contextmanager
def _blamed(path: Path) -> Iterator[None]:
    """Whatever NumPy or zipfile raise over a file becomes an InputError."""
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise fault(path, "needs more memory than there is", "a smaller one") from None
    except OSError as error:
        raise fault(path, f"cannot be read ({disk.reason(error)})", ARCHIVE) from None
    except Exception as error:  # damaged ones end in any exception that the two know
        what = f"is no NumPy file, or is damaged ({disk.reason(error)})"
        raise fault(path, what, ARCHIVE) from None


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an archive, once its size can be true."""
    declared = archive.getinfo(f"{name}.npy").file_size
    if declared > max(MOST_EXPANSION * path.stat().st_size, SMALL):
        what = f"declares '{name}' of {declared:,} bytes in {path.stat().st_size:,}"
        raise fault(path, what, f"{MOST_EXPANSION} times a file's size at most")
    with archive.open(f"{name}.npy") as file:
        _check_header(path, name, file, declared)
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file)


def _check_header(path: Path, name: str, file, size: int) -> None:
    """Raise InputError unless an npy file holds numbers, and as many as its header says."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.kind not in "fiub":
        raise fault(path, f"has '{name}' of type {dtype}", "numbers")
    if not shape or math.prod(shape) * dtype.itemsize > size:
        raise fault(path, f"declares '{name}' of shape {shape} in {size:,} bytes", "what it holds")
