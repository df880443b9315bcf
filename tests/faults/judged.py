"""How a case ended: in one sentence, in the right value, or in a fault."""

import re
import signal
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from rrlib.errors import InputError

LONGEST = 1200  # letters of a sentence; a path alone may have 200
PATIENCE = 900  # seconds that no case takes, on any machine: it hangs


class End(NamedTuple):
    """`kind` is "refused" (one sentence), "value" or "fault"; `said` is what was said."""

    kind: str
    said: str = ""
    value: Any = None


class Hangs(BaseException):
    """A case that does not end."""


def _hang(*_: Any) -> None:
    raise Hangs


def ended(call: Callable[[], Any], names: tuple[str, ...]) -> End:
    """Call, and judge what an exception says.

    Args:
        call: whatever reads a file.
        names: of the file or its folder, of which the sentence must have one.
    """
    signal.signal(signal.SIGALRM, _hang)
    signal.alarm(PATIENCE)
    err = StringIO()
    try:
        with warnings.catch_warnings(), redirect_stderr(err):
            warnings.simplefilter("ignore")
            value = call()
    except InputError as error:
        wrong = unclear(str(error), names)
        return End("fault", f"{wrong}: {error}") if wrong else End("refused", str(error))
    except Hangs:
        return End("fault", f"no end after {PATIENCE} s")
    except Exception as error:  # what a case may not end in
        where = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in where if "/rrlib/" in f.filename]
        return End("fault", f"raw {type(error).__name__}: {str(error)[:160]!r} {ours[-3:]}")
    finally:
        signal.alarm(0)
    return End("value", err.getvalue(), value)


def unclear(sentence: str, names: tuple[str, ...]) -> str:
    """What is wrong with a message, or ""."""
    if "\n" in sentence or not sentence.endswith("."):
        return "no single sentence"
    if len(sentence) > LONGEST:
        return f"{len(sentence)} letters"
    if not any(name in sentence for name in names):
        return "no file is named"
    return "" if not re.search(r"Traceback|0x[0-9a-f]{8}", sentence) else "a library's own text"


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, NaN to NaN."""
    return repr(one) == repr(other)
