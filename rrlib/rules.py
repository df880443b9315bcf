"""A chapter's parameters: what each may be, and one sentence when it is not."""

import difflib
import math
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

from rrlib import host  # noqa: F401  a chapter imports this room first, so settings are in time
from rrlib.errors import InputError


@dataclass(frozen=True)
class Rule:
    """What one parameter may be.

    accept: value -> the value to use; raises ValueError, its text a reason or empty, when refused
    allowed: what is allowed, as a noun phrase ("an integer of at least 0")
    """

    accept: Callable[[object], object]
    allowed: str


def check(names: dict[str, object], **rules: Rule) -> SimpleNamespace:
    """Check a chapter's parameters, and that papermill was given no name that is none of them.

    `names` is the notebook's `globals()`, `rules` has one rule per parameter. Call it in the second
    code cell: any plain value that is defined by then must be a parameter, since papermill itself
    accepts every name. A second call in the same kernel does not look at other names again: by then
    the chapter has defined its own.

    Returns a namespace of the values to use (`several_of` gives a tuple, `writable_folder` an
    absolute path, the other rules the value as it is).
    Raises InputError, one sentence, on the first value or name that is not allowed.
    """
    if "_parameters_checked" not in names:
        unknown = sorted(n for n in names if n not in rules and _may_be_injected(n, names[n]))
        if unknown:
            close = difflib.get_close_matches(unknown[0], rules, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise InputError(
                f"{unknown[0]}={names[unknown[0]]!r} is not allowed: the parameters here are "
                f"{', '.join(rules)}{hint}."
            )
    values = {}
    for name, rule in rules.items():
        try:
            values[name] = rule.accept(names[name])
        except ValueError as reason:
            why = f" ({reason})" if str(reason) else ""
            raise InputError(
                f"{name}={names[name]!r} is not allowed: {rule.allowed} is needed{why}."
            ) from None
    names["_parameters_checked"] = True
    return SimpleNamespace(**values)


def _may_be_injected(name: str, value: object) -> bool:
    if name.startswith("_") or name in ("In", "Out"):
        return False
    return not (isinstance(value, ModuleType) or callable(value))


def one_of(*choices: str) -> Rule:
    """One of the named choices."""

    def accept(value: object) -> str:
        if value not in choices:
            raise ValueError
        return value

    return Rule(accept, f"one of {', '.join(choices)}")


def several_of(*choices: str) -> Rule:
    """One or more of the named choices in one string, separated by commas, each once -> a tuple.

    A number counts as its text: papermill's command line makes one of a choice such as 10000.
    """

    def accept(value: object) -> tuple[str, ...]:
        picked = [part.strip() for part in str(value).split(",")]
        if len(set(picked)) < len(picked) or not set(picked) <= set(choices):
            raise ValueError
        return tuple(picked)

    return Rule(accept, f"one or more of {', '.join(choices)}, separated by commas, each once,")


def text() -> Rule:
    """Any text; a number counts as its text, as papermill's command line makes one of some."""

    def accept(value: object) -> str:
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise ValueError
        return str(value)

    return Rule(accept, "a text")


def boolean() -> Rule:
    """True or False."""

    def accept(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Rule(accept, "True or False")


def integer(minimum: int, maximum: int | None = None, multiple_of: int = 1) -> Rule:
    """An integer in [minimum, maximum] that `multiple_of` divides; a bool is none."""

    def accept(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError
        if value < minimum or (maximum is not None and value > maximum) or value % multiple_of:
            raise ValueError
        return value

    kind = "an integer" if multiple_of == 1 else f"a multiple of {multiple_of}"
    return Rule(accept, f"{kind} {_interval(minimum, maximum)}")


def real(minimum: float, maximum: float | None = None) -> Rule:
    """A finite number in [minimum, maximum]; an integer counts as one, a bool does not."""

    def accept(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError
        if not math.isfinite(value) or value < minimum or (maximum is not None and value > maximum):
            raise ValueError
        return float(value)

    return Rule(accept, f"a number {_interval(minimum, maximum)}")


def several_numbers(minimum: float, *, whole: bool = False) -> Rule:
    """One or more numbers in one string, separated by commas, each once -> a tuple.

    A single number may also come as a number, as papermill's command line makes it one.
    """
    one = integer(int(minimum)) if whole else real(minimum)

    def accept(value: object) -> tuple[float, ...]:
        parts = str(value).split(",") if isinstance(value, str | int | float) else []
        picked = tuple(one.accept((int if whole else float)(part)) for part in parts)
        if not picked or len(set(picked)) < len(picked):
            raise ValueError
        return picked

    kind = "integers" if whole else "numbers"
    return Rule(accept, f"{kind} of at least {minimum}, separated by commas, each once,")


def _interval(minimum: float, maximum: float | None) -> str:
    return f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"


def cell() -> Rule:
    """A point in cell units, "row,column", or an empty string for none -> a tuple, or None."""

    def accept(value: object) -> tuple[float, float] | None:
        if value == "":
            return None
        parts = value.split(",") if isinstance(value, str) else []
        point = tuple(float(part) for part in parts)  # ValueError if a part is no number
        if len(point) != 2 or not all(map(math.isfinite, point)):
            raise ValueError
        return point

    return Rule(accept, 'a point "row,column" in cell units, or an empty string,')


def existing_file_or_empty() -> Rule:
    """The path of a file or folder that exists, or an empty string for none."""

    def accept(value: object) -> str:
        if not isinstance(value, str) or (value and not Path(value).expanduser().exists()):
            raise ValueError
        return str(Path(value).expanduser().resolve()) if value else ""

    return Rule(accept, "the path of an existing file or folder, or an empty string,")


def writable_folder() -> Rule:
    """A folder that exists or can be made, and be written to; or an empty string for none.

    It is tried out in the nearest folder that exists, and nothing is left there: if another
    parameter is refused, not even an empty folder appears.
    """

    def accept(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError
        if not value:
            return ""
        folder = Path(value).expanduser().resolve()
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            with tempfile.TemporaryDirectory(dir=nearest):
                pass
        except OSError as reason:
            raise ValueError(reason.strerror) from None
        return str(folder)

    return Rule(accept, "a folder that can be written, or an empty string,")


def device() -> Rule:
    """Where torch computes: cpu, or a CUDA device of this machine."""

    def accept(value: object) -> str:
        if value == "cpu":
            return value
        if not isinstance(value, str) or not re.fullmatch(r"cuda(:\d+)?", value):
            raise ValueError
        import torch  # takes seconds, and a CPU needs no asking

        n_devices = torch.cuda.device_count()
        if int(value.partition(":")[2] or 0) >= n_devices:
            raise ValueError(f"this machine has {n_devices} CUDA devices")
        return value

    return Rule(accept, "cpu, or a CUDA device that exists such as cuda or cuda:0,")
