"""A folder's files, and the sentences in which one is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rrlib.disk import read_json, reason
from rrlib.errors import InputError, shown


def refusal(model_id: str | Path, why: str) -> InputError:
    """The sentence that this pipeline cannot be used."""
    return InputError(f"model_id={shown(str(model_id), 200)} is not allowed: {why}.")


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the folder."""
    if not (folder / name).is_file():
        raise refusal(folder, f"{name} is missing")
    found = read_json(folder / name)
    if not isinstance(found, dict):
        raise refusal(folder, f"{name} is no JSON object")
    return found


@contextmanager
def blamed(folder: Path, what: str) -> Iterator[None]:
    """Whatever a library raises over a folder's content is the folder's fault."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # what a damaged file makes of a library is no fixed list
        raise refusal(
            folder, f"{what} cannot be used ({type(error).__name__}: {reason(error)})"
        ) from None
