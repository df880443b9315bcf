"""What happens to files: the four damages of the trials, and the many mutations of the fuzz."""

import json
import random
from collections.abc import Callable
from typing import Any

Change = Callable[[bytes, random.Random], bytes | None]  # None: the file is deleted


def flipped(content: bytes, draw: random.Random) -> bytes:
    """One bit of one byte is another."""
    found = bytearray(content)
    found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
    return bytes(found)


def truncated(content: bytes, draw: random.Random) -> bytes:
    """The end is missing, one byte of it at least."""
    return content[: draw.randrange(1, len(content))]


def emptied(content: bytes, draw: random.Random) -> bytes:
    """Nothing is left."""
    return b""


def deleted(content: bytes, draw: random.Random) -> None:
    """The file is gone."""
    return None


DAMAGES: dict[str, Change] = {
    "flipped": flipped,
    "truncated": truncated,
    "emptied": emptied,
    "deleted": deleted,
}


def _several(content: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.randrange(2, 20)):
        content = flipped(content, draw)
    return content


def _overwritten(content: bytes, draw: random.Random) -> bytes:
    """A block of zeros, ones or noise, as a bad sector leaves it."""
    at, n = draw.randrange(len(content)), draw.randrange(1, 600)
    block = draw.choice([bytes(n), b"\xff" * n, draw.randbytes(n)])
    return content[:at] + block[: len(content) - at] + content[at + n :]


def _cut_out(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + content[at + draw.randrange(1, 40) :]


def _put_in(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content) + 1)
    return content[:at] + draw.randbytes(draw.randrange(1, 40)) + content[at:]


def _doubled(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + content[at : at + draw.randrange(1, 400)] + content[at:]


def _near_the_start(content: bytes, draw: random.Random) -> bytes:
    """Bits of the header, where a file says what it holds."""
    found = bytearray(content)
    for _ in range(draw.randrange(1, 4)):
        found[draw.randrange(min(len(found), 400))] ^= 1 << draw.randrange(8)
    return bytes(found)


BYTES = [flipped, truncated, _several, _overwritten, _cut_out, _put_in, _doubled, _near_the_start]

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, 10**30, 10**400, 2**31, 2**63, "", "x",
    "../..", "é\n", "0", "a" * 3000, [], {}, [[]], [None], [0], {"": 0}, ["x"], float("nan"),
    float("inf"),
]  # fmt: skip


def edited(content: bytes, draw: random.Random) -> bytes:
    """A JSON text in which one to three values are others, gone, renamed or doubled."""
    found = json.loads(content)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        found = _edit(found, draw)
    return json.dumps(found).encode()


def edited_within_its_seal(content: bytes, draw: random.Random) -> bytes:
    """The same of an object with a checksum, which stays: a disk forgets no seal as a whole."""
    told = json.loads(content)
    seal = {"checksum": told.pop("checksum")}
    found = json.loads(edited(json.dumps(told).encode(), draw))
    return json.dumps(found | seal if isinstance(found, dict) else found).encode()


def _edit(value: Any, draw: random.Random) -> Any:
    """One change somewhere in a tree of objects and lists, mostly below its root."""
    inner = isinstance(value, dict | list) and len(value) > 0
    if not inner or draw.random() < 0.08:
        return draw.choice(ODD)
    found = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    key = draw.choice(list(found))
    kind = draw.random()
    if kind < 0.15:
        del found[key]
    elif kind < 0.25 and isinstance(value, dict):
        found[draw.choice(["", "x", f"{key}x", "é"])] = found.pop(key)
    else:
        found[key] = _edit(found[key], draw)
    return found if isinstance(value, dict) else list(found.values())
