"""Arrays of a data file, of whatever form, as the numbers that we keep: checked, in float32."""

from pathlib import Path

import numpy as np

from rrlib.plans.hdf5 import fault

MOST = 1e6  # no reward, position, speed or action is larger than this, only a mistake is
MARKS = "terminals", "timeouts"
MOST_IDS = 10_000  # choices of a discrete space
ROWS = 1 << 18  # looked at together


def checked(path: str | Path, key: str, name: str, values: np.ndarray) -> np.ndarray:
    """The values under a key by our name for them: float32 [M, ...], or bool [M] for marks.

    Raises:
        InputError: a number that is not finite or above a million, or a mark that is not 0 or 1.
    """
    if name in (*MARKS, "rewards"):
        values = values.reshape(len(values))
    for first in range(0, len(values), ROWS):  # a file may fill half of the memory
        wrong = np.argwhere(~_right(name, values[first : first + ROWS]))
        if len(wrong):
            place = (first + int(wrong[0][0]), *wrong[0][1:].tolist())
            allowed = "0 or 1" if name in MARKS else f"a number, {MOST:,.0f} at most in size"
            raise fault(path, f"has {values[place]} in '{key}' at {place}", allowed)
    return values.astype(bool if name in MARKS else np.float32, copy=False)


def _right(name: str, values: np.ndarray) -> np.ndarray:
    """Which of the values can be what the name says, bool."""
    if name in MARKS:
        return (values == 0) | (values == 1)
    with np.errstate(invalid="ignore"):
        return np.abs(values, dtype=float) <= MOST


def vectors(path: str | Path, key: str, values: np.ndarray, width: int) -> np.ndarray:
    """Observations or actions [M, width]; the ids [M] of a discrete space become rows of one 1.

    Raises:
        InputError: an id outside of 0 to width - 1.
    """
    if values.ndim > 1:
        return values
    if width == 1:
        return values[:, None]
    outside = (values < 0) | (values >= width)
    if outside.any():
        place = int(np.argmax(outside))
        allowed = f"an id from 0 to {width - 1}"
        raise fault(path, f"has {values[place]} in '{key}' at {(place,)}", allowed)
    return np.eye(width, dtype=np.float32)[values.astype(int)]


def check_width(
    path: str | Path, key: str, shape: tuple[int, ...], kind: str, wanted: int | None
) -> None:
    """Raise InputError unless `vectors` makes observations or actions of an array.

    Args:
        path, key: for the message.
        shape: of the array, [M, d], or [M].
        kind: of its numbers, as NumPy has it: "f", "i", ...
        wanted: what d must be, where whole numbers [M] may be ids; None takes any.
    """
    wide = len(shape) == 2 and wanted in (None, shape[1])
    ids = kind in "iu" and wanted in range(1, MOST_IDS)
    if not wide and not (len(shape) == 1 and (wanted in (None, 1) or ids)):
        raise fault(path, f"has '{key}' of shape {shape}", f"M x {wanted or 'numbers of a step'}")
