"""Files that appear whole or not at all, and their checksums: the one way in which rrlib writes."""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rrlib.errors import InputError

# Temporary names start with a dot and end so; one that is found was left by a run that was killed.
SUFFIX = ".part"
CHECKSUM = "checksum"  # its key in a JSON object
DAMAGED = ".damaged"  # ends the hidden name of what `set_aside` renamed
UMASK = os.umask(0o077)  # it cannot be read without being set
os.umask(UMASK)
UNSAID: list[str] = []  # lines of `say` that wait for the end of a chapter


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to fill (a file or a folder), renamed to `path` when the block ends.

    The name holds this process and a random part, so two writers never meet; what was written is
    synced to the disk before the rename, so a power cut leaves the old content or the new. When
    the block fails, nothing is left and `path` is what it was.

    Raises:
        InputError: the folder cannot be made or written, or its disk is full.
    """
    path = Path(path)
    # A long name of its own would make one that no file system takes.
    temporary = path.with_name(f".{path.name[:150]}.{os.getpid()}-{uuid.uuid4().hex[:8]}{SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir() and path.is_dir():
            _exchange(temporary, path)
        else:
            settle(temporary, path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"'{path}' cannot be written ({reason(error)}): a path in a folder open for writing, "
            "on a disk with room, is needed."
        ) from None
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):
                temporary.unlink()


def settle(temporary: Path, path: Path) -> None:
    """Give a finished file or folder its name, once the disk holds it.

    Whom the umask lets read may read it: safetensors makes files that are their owner's alone.
    """
    _finish(temporary)
    os.replace(temporary, path)
    _sync_one(path.parent)


def _exchange(temporary: Path, path: Path) -> None:
    """`settle` a folder in another's place, which no system renames over: that is moved first."""
    _finish(temporary)
    before = temporary.with_name(f"{temporary.name.removesuffix(SUFFIX)}-before{SUFFIX}")
    os.replace(path, before)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(before, path)
        raise
    _sync_one(path.parent)
    shutil.rmtree(before, ignore_errors=True)


def _finish(temporary: Path) -> None:
    """Modes of all files, and all of it on the disk."""
    for part in _files(temporary):
        mode = part.stat().st_mode
        if mode != (wanted := mode | (0o444 & ~UMASK)):
            part.chmod(wanted)
    _sync(temporary)


def set_aside(path: Path, why: str) -> None:
    """Rename a damaged file or folder to `.<name>.damaged`, and say so: it will be made again."""
    number, aside = 1, path.with_name(f".{path.name}{DAMAGED}")
    while aside.exists():
        number += 1
        aside = path.with_name(f".{path.name}{DAMAGED}-{number}")
    os.replace(path, aside)
    say(f"'{path}' is made again, for what was there is damaged ({why}).")


def say(line: str) -> None:
    """Tell a person something that a run goes on after, in one line.

    Chapters run in a batch (papermill, nbval) are compared by what their cells print, so there the
    line waits for `notebook.provenance`, whose cell is not.
    """
    ipython = sys.modules.get("IPython")
    in_kernel = hasattr(ipython and ipython.get_ipython(), "kernel")
    if in_kernel and "JPY_SESSION_NAME" not in os.environ:
        UNSAID.append(line)
    else:
        print(line, file=sys.stderr)


def reason(error: Exception) -> str:
    """Why the system refused, in a few words: "No space left on device"."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    numbered = re.search(r"os error (\d+)|errno = (\d+)", str(error))
    if numbered:
        return os.strerror(int(numbered[1] or numbered[2]))
    said = re.sub(r" object at 0x[0-9a-f]+", "", str(error))  # where it lies in memory says nothing
    return " ".join(said.split())[:100] or type(error).__name__


def is_full(error: Exception) -> bool:
    """Whether the disk, its quota or its table of files is full, or lets no file grow so large."""
    codes = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
    return reason(error) in map(os.strerror, codes)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON with sorted keys, whole or not at all. Raises ValueError on NaN or infinity."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: it cannot be read or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"File '{path}' cannot be read ({reason(error)}).") from None
    except (ValueError, RecursionError):
        raise InputError(f"File '{path}' is damaged: a JSON file is needed.") from None


def write_sealed(path: str | Path, content: dict[str, Any]) -> None:
    """Write a JSON object with a checksum of all that it says; see `write_json`."""
    write_json(path, content | {CHECKSUM: digest(content)})


def read_sealed(path: str | Path, *, allow_unsealed: bool = False) -> dict[str, Any]:
    """The content of a file that `write_sealed` made, without the checksum.

    Args:
        path: of the file.
        allow_unsealed: take also one without a checksum, of before there was one.

    Raises:
        InputError: it cannot be read, is no JSON object, or not what was written.
    """
    found = read_json(path)
    told = found.pop(CHECKSUM, None) if isinstance(found, dict) else ""
    unsealed = told is None and allow_unsealed and not _misnamed(found)
    if told != digest(found) and not unsealed:
        raise InputError(f"File '{path}' is damaged: its content is not what was written.")
    return found


def _misnamed(content: dict[str, Any]) -> bool:
    """Whether a checksum stands under another name, as where a byte of its own has changed."""
    return any(
        value == digest({k: v for k, v in content.items() if k != name})
        for name, value in content.items()
        if isinstance(value, str) and len(value) == 64
    )


def digest(content: Any) -> str:
    """The sha256 of what JSON has of some content, keys sorted, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256(path: str | Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(path: Path) -> list[Path]:
    """A file, or all in a folder."""
    return [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]


def _sync(path: Path) -> None:
    """Have the disk hold a file, or a folder and all in it, before it gets its name."""
    for part in [*path.rglob("*"), path] if path.is_dir() else [path]:
        _sync_one(part)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that knows no sync
            raise
    finally:
        os.close(handle)
