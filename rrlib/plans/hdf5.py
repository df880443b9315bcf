"""HDF5 files of unknown origin, looked at before they are read; written in memory, then at once.

HDF5 itself follows links into any other file, makes room for whatever a file declares, and when a
disk is full it ends the whole process. So nothing here lets it: a link, an array kept elsewhere, an
array that was never written, or one that is too large to be true, is refused before it is read.
"""

import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from rrlib import disk
from rrlib.errors import InputError, shown

# Arrays may take so many times the bytes of their file. Marks of episodes' ends shrink a thousand
# times when compressed, observations hardly at all.
MOST_EXPANSION = 100
SMALL = 64 << 20  # bytes that are never too many
MOST_NAMES = 1_000_000


def fault(path: str | Path, what: str, allowed: str) -> InputError:
    """The sentence on a data file that cannot be used."""
    return InputError(f"Dataset {shown(str(path), 200)} {what}: allowed is {allowed}.")


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """An open file; whatever h5py raises while it is read becomes an InputError."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except MemoryError:
        raise fault(path, "needs more memory than there is", "a smaller one") from None
    except (PermissionError, BlockingIOError) as error:
        allowed = "a file that can be opened, and that nothing else is writing"
        raise fault(path, f"cannot be read ({disk.reason(error)})", allowed) from None
    except Exception:  # a damaged file can end in any exception that h5py knows
        raise fault(
            path, "is not HDF5, or is damaged", "a D4RL-layout, Minari or robomimic file"
        ) from None


def entry(path: Path, group: h5py.Group, key: str) -> h5py.Group | h5py.Dataset | None:
    """What `group` has under a key "a/b", if anything; InputError if a link leads there."""
    found = group
    for name in key.split("/"):
        link = found.get(name, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            what = f"has a link in place of '{found.name.rstrip('/')}/{name}'"
            raise fault(path, what, "what is in the file itself")
        found = found[name]
    return found


def dataset(path: Path, group: h5py.Group, key: str) -> h5py.Dataset | None:
    """The array under a key, if anything is there; InputError unless the file holds all of it."""
    found, name = entry(path, group, key), f"'{group.name.rstrip('/')}/{key}'"
    if found is None:
        return None
    if not isinstance(found, h5py.Dataset):
        raise fault(path, f"has no array in {name}", "an array")
    made = found.id.get_create_plist()
    if made.get_external_count() or made.get_layout() == h5py.h5d.VIRTUAL:
        raise fault(path, f"keeps {name} in other files", "an array in the file itself")
    filters = [made.get_filter(k)[0] for k in range(made.get_nfilters())]
    unknown = [code for code in filters if not h5py.h5z.filter_avail(code)]
    if unknown:
        what = f"has {name} compressed by filter {unknown[0]}, which is not installed here"
        raise fault(path, what, "one that h5py has, such as gzip")
    if found.dtype.kind not in "fiub":
        raise fault(path, f"has {name} of type {found.dtype}", "numbers")
    if not _is_whole(found):
        what = f"declares {name} of shape {found.shape} but does not hold all of it"
        raise fault(path, what, "an array that was written")
    return found


def names(path: Path, group: h5py.Group, key: str) -> list[str]:
    """The texts of a list of names under a key.

    Raises:
        InputError: there is no such list, or it is not in the file itself.
    """
    found = entry(path, group, key)
    if (
        not isinstance(found, h5py.Dataset)
        or found.ndim != 1
        or not h5py.check_string_dtype(found.dtype)
        or found.dtype.itemsize > 1000
    ):
        raise fault(path, f"has no list of names in '/{key}'", "one that it has")
    made = found.id.get_create_plist()
    if (
        made.get_external_count()
        or made.get_layout() == h5py.h5d.VIRTUAL
        or found.size > MOST_NAMES
    ):
        raise fault(path, f"keeps '/{key}' in other files, or too many", "names in the file itself")
    return [bytes(n).decode(errors="replace") if isinstance(n, bytes) else n for n in found[()]]


def check_size(path: Path, datasets: Iterable[h5py.Dataset]) -> None:
    """Raise InputError unless arrays of this size can be true, and fit into memory as float32."""
    declared = needed = 0
    for found in datasets:
        declared += _values(found) * found.dtype.itemsize
        needed += _values(found) * (found.dtype.itemsize + 16)  # and copies, float64 among them
    if declared > max(MOST_EXPANSION * path.stat().st_size, SMALL):
        what = f"declares arrays of {_gigabytes(declared)} in {path.stat().st_size:,} bytes"
        raise fault(path, what, f"{MOST_EXPANSION} times a file's size at most")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        what = f"needs {_gigabytes(needed)} of memory, and this machine has {_gigabytes(memory)}"
        raise fault(path, what, "a smaller one")


def write(path: Path, fill: Callable[[h5py.File], None]) -> None:
    """Write a file whose content `fill` makes; InputError from `disk.atomic` if it cannot be."""
    content = image(fill)
    with disk.atomic(path) as temporary:
        temporary.write_bytes(content)


def image(fill: Callable[[h5py.File], None]) -> bytes:
    """The bytes of an HDF5 file whose content `fill` makes; it never touches a disk."""
    # Two open files of one name would be one file.
    with h5py.File(uuid.uuid4().hex, "w", driver="core", backing_store=False) as file:
        fill(file)
        file.flush()
        return file.id.get_file_image()


def _is_whole(found: h5py.Dataset) -> bool:
    """Whether all values were written; HDF5 would make up the others."""
    if not found.size:  # 0, or None: an array of no shape at all
        return True
    if found.chunks is None:
        return found.id.get_storage_size() >= found.nbytes
    grid = [-(-n // chunk) for n, chunk in zip(found.shape, found.chunks, strict=True)]
    return found.id.get_num_chunks() >= math.prod(grid)


def _values(found: h5py.Dataset) -> int:
    """How many values are unpacked when the array is read: whole chunks."""
    chunks = found.chunks or (1,) * found.ndim
    return math.prod(-(-n // chunk) * chunk for n, chunk in zip(found.shape, chunks, strict=True))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2g} GB"
