"""A chapter's parameters: what each may be, and one sentence when it is not."""

import difflib
import math
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from rrlib import disk  # results imports host, so its settings are in time
from rrlib.errors import InputError, shown
from rrlib.lab import given, results
from rrlib.lab.costs import Cost


@dataclass(frozen=True)
class Rule:
    """What one parameter may be.

    accept: value -> the value to use; raises ValueError, its text a reason or empty, when refused
    allowed: what is allowed, as a noun phrase ("an integer of at least 0")
    """

    accept: Callable[[object], object]
    allowed: str


class _TooMuch(ValueError):
    """An integer beyond the upper end of its rule."""


def check(
    names: dict[str, object],
    cost: Callable[[SimpleNamespace], Cost] | None = None,
    /,
    **rules: Rule,
) -> SimpleNamespace:
    """Check a chapter's parameters, and that papermill was given no name that is none of them.

    `names` is the notebook's `globals()`, `rules` has one rule per parameter. Call it in the second
    code cell. Papermill itself accepts every name: those of its cell, which IPython remembers, must
    be parameters; where nothing is remembered, any plain value that is defined by then. A second
    call in the same kernel does not look at such values again: by then the chapter has its own.

    `cost` estimates what the accepted values ask of a machine; more than it has is refused, and a
    number beyond its upper end is refused with what it would cost.

    Returns a namespace of the values to use (`several_of` gives a tuple, `writable_folder` an
    absolute path, the other rules the value as it is).
    Raises InputError, one sentence, on the first value or name that is not allowed.
    """
    found = given.given(names, rules)
    unknown = sorted(set(found) - set(rules))
    if unknown:
        close = difflib.get_close_matches(unknown[0], rules, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise InputError(
            f"{unknown[0][:80]}={shown(found[unknown[0]])} is not allowed: the parameters here are "
            f"{', '.join(rules)}{hint}."
        )
    values, beyond = {}, []
    for name, rule in rules.items():
        try:
            values[name] = rule.accept(names[name])
        except _TooMuch:
            values[name] = min(names[name], 10**18)  # enough to see what it would cost
            beyond.append(name)
        except ValueError as reason:
            raise _refused(name, names[name], rule, str(reason)) from None
    chosen = SimpleNamespace(**values)
    if beyond:
        why = f"it would take {cost(chosen)}" if cost else ""
        raise _refused(beyond[0], names[beyond[0]], rules[beyond[0]], why)
    if cost and (excess := cost(chosen).excess()):
        asked = [f"{k}={v}" for k, v in values.items() if type(v) is int and k != "seed"]
        raise InputError(
            f"{', '.join(asked)} are not allowed together: smaller ones are needed (they would "
            f"take {cost(chosen)}; {excess})."
        )
    names["_parameters_checked"] = given.CHECKED
    return chosen


def _refused(name: str, value: object, rule: Rule, reason: str) -> InputError:
    why = f" ({reason})" if reason else ""
    return InputError(f"{name}={shown(value)} is not allowed: {rule.allowed} is needed{why}.")


def shared(**own: Rule) -> dict[str, Rule]:
    """The rules of what every chapter has; `own` ones take their place."""
    seed = integer(0, 2**32 - 1)  # NumPy's own range
    found = {"seed": seed, "device": device()}
    return found | {"store": writable_folder(), "results": results_folder()} | own


def of(table: Mapping[str, Rule], *names: str, **own: Rule) -> dict[str, Rule]:
    """The rules of a chapter: those of `names` in a world's table, the shared ones, its own.

    A string may hold several names, with spaces between; own rules replace others of their name.
    """
    return {name: table[name] for name in " ".join(names).split()} | shared() | own


def one_of(*choices: str) -> Rule:
    """One of the named choices."""

    def accept(value: object) -> str:
        if value not in choices:
            raise ValueError
        return value

    return Rule(accept, f"one of {', '.join(choices)}")


def several_of(*choices: str, alone: tuple[str, ...] = ()) -> Rule:
    """One or more of the named choices in one string, separated by commas, each once -> a tuple.

    Those in `alone` go with no other: "none", "all". A number counts as its text: papermill's
    command line makes one of a choice such as 10000.
    """

    def accept(value: object) -> tuple[str, ...]:
        picked = [part.strip() for part in _text(value).split(",")]
        if len(set(picked)) < len(picked) or not set(picked) <= {*choices, *alone}:
            raise ValueError
        if len(picked) > 1 and not set(picked).isdisjoint(alone):
            raise ValueError(f"{' and '.join(alone)} only alone")
        return tuple(picked)

    named = ", ".join([*alone, *choices])
    return Rule(accept, f"one or more of {named}, separated by commas, each once,")


def text() -> Rule:
    """Any text; a number counts as its text, as papermill's command line makes one of some."""
    return Rule(_text, "a text")


def _text(value: object) -> str:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError
    return str(value).encode().decode()  # ValueError for half a character, which no file can hold


def boolean() -> Rule:
    """True or False."""

    def accept(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Rule(accept, "True or False")


def integer(minimum: int, maximum: int, multiple_of: int = 1) -> Rule:
    """An integer in [minimum, maximum] that `multiple_of` divides; a bool is none.

    The upper end is some ten times what the paper or this book has asked for: beyond lie slips.
    """

    def accept(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError
        if value < minimum or value % multiple_of:
            raise ValueError
        if value > maximum:
            raise _TooMuch
        return value

    kind = "an integer" if multiple_of == 1 else f"a multiple of {multiple_of}"
    return Rule(accept, f"{kind} from {minimum} to {maximum}")


def real(minimum: float, maximum: float) -> Rule:
    """A finite number in [minimum, maximum]; an integer counts as one, a bool does not."""

    def accept(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError
        if not minimum <= value <= maximum:  # as it is: an integer of 400 digits is no float
            raise ValueError
        return float(value)

    return Rule(accept, f"a number from {minimum} to {maximum}")


def several_numbers(minimum: float, maximum: float, *, whole: bool = False) -> Rule:
    """One or more numbers in one string, separated by commas, each once -> a tuple.

    A single number may also come as a number, as papermill's command line makes it one.
    """
    one = integer(int(minimum), int(maximum)) if whole else real(minimum, maximum)

    def accept(value: object) -> tuple[float, ...]:
        try:
            parts = _text(value).split(",")
            picked = tuple(one.accept((int if whole else float)(part)) for part in parts)
        except ValueError:
            raise ValueError from None  # the sentence says it better than Python
        if len(set(picked)) < len(picked):
            raise ValueError
        return picked

    kind = "integers" if whole else "numbers"
    return Rule(accept, f"{kind} from {minimum} to {maximum}, separated by commas, each once,")


def cell() -> Rule:
    """A point in cell units, "row,column", or an empty string for none -> a tuple, or None."""

    def accept(value: object) -> tuple[float, float] | None:
        if value == "":
            return None
        parts = value.split(",") if isinstance(value, str) else []
        try:
            point = tuple(float(part) for part in parts)
        except ValueError:
            raise ValueError from None  # the sentence says it better than Python
        if len(point) != 2 or not all(map(math.isfinite, point)):
            raise ValueError
        return point

    return Rule(accept, 'a point "row,column" in cell units, or an empty string,')


def existing_file_or_empty() -> Rule:
    """The path of a file or folder that exists, or an empty string for none."""

    def accept(value: object) -> str:
        if not (path := _path(value)):
            return ""
        with _in_words():
            # Nothing that never ends, such as a pipe or /dev/zero.
            mode = os.stat(path).st_mode if _there(path) else 0
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ValueError
        return path

    return Rule(accept, "the path of an existing file or folder, or an empty string,")


def writable_folder() -> Rule:
    """A folder that exists or can be made, and be written to; or an empty string for none.

    It is tried out in the nearest folder that exists, and nothing is left there: if another
    parameter is refused, not even an empty folder appears.
    """

    def accept(value: object) -> str:
        if not (path := _path(value)):
            return ""
        with _in_words():
            nearest = next(p for p in (Path(path), *Path(path).parents) if _there(p))
            with tempfile.TemporaryDirectory(dir=nearest):
                pass
        return path

    return Rule(accept, "a folder that can be written, or an empty string,")


def results_folder() -> Rule:
    """As `writable_folder`, and its name can be that of a profile, which `publish` makes of it."""
    folder = writable_folder()

    def accept(value: object) -> str:
        if path := folder.accept(value):
            results.profile(path)
        return path

    return Rule(accept, folder.allowed)


def _path(value: object) -> str:
    """An absolute path; empty for an empty string. A whole number is a name, too."""
    if isinstance(value, float):
        raise ValueError("a number with a point loses its digits: write ./ before it")
    if not (value := _text(value)):
        return ""
    with _in_words():
        return str(Path(value).expanduser().resolve())


def _there(path: str | Path) -> bool:
    """Whether there is something; raises OSError where one cannot look, unlike `exists`."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextmanager
def _in_words() -> Iterator[None]:
    """What the system refuses, as a reason of a few words."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: no such user, a loop of links
        raise ValueError(disk.reason(error).rstrip(".")) from None


def device() -> Rule:
    """Where torch computes: cpu, or a CUDA device of this machine."""

    def accept(value: object) -> str:
        if value == "cpu":
            return value
        if not isinstance(value, str) or not re.fullmatch(r"cuda(:[0-9]{1,3})?", value):
            raise ValueError
        import torch  # takes seconds, and a CPU needs no asking

        n_devices = torch.cuda.device_count()
        if int(value.partition(":")[2] or 0) >= n_devices:
            raise ValueError(f"this machine has {n_devices} CUDA devices")
        return value

    return Rule(accept, "cpu, or a CUDA device that exists such as cuda or cuda:0,")
