"""What a user's own input can cause: an exception, or a warning, of one sentence each."""

import warnings
from typing import Any, get_args


class InputError(ValueError):
    """A parameter or file that cannot be used.

    The message is one sentence that names the parameter or file, the value, and what is allowed.
    In a notebook only that sentence is shown, without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class DataWarning(UserWarning):
    """Data that is used, but not quite as it stands; the message is one sentence."""


def warn(sentence: str) -> None:
    """Say a DataWarning once, in one line: without a place in the code, where no fault is."""
    said = globals().setdefault("__warningregistry__", {})  # Python's own record, as it keeps it
    warnings.warn_explicit(sentence, DataWarning, "rrlib", 0, registry=said)


def check_one_of(name: str, value: object, kind: Any) -> None:
    """Raise InputError unless a value is one of those that a Literal names."""
    if value not in get_args(kind):
        allowed = " or ".join(map(repr, get_args(kind)))
        raise InputError(f"{name}={shown(value)} is not allowed: {allowed} is needed.")


def shown(value: object, most: int = 160) -> str:
    """A value as a message shows it: its repr, the middle of a long one left out."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integer of over 4300 digits
        return f"an integer of {int.bit_length(value)} bits"  # type: ignore[arg-type]
    if len(text) <= most:
        return text
    return f"{text[: most - 50]}...{text[-30:]} ({len(text)} characters)"  # a path ends in its name
