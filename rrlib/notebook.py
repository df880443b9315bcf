"""What every chapter needs around its own content: checked parameters, seeding, claims, provenance.

A chapter imports this room first, so that the settings below are in place before torch is loaded.
"""

import difflib
import json
import math
import os
import platform
import random
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

from rrlib import __version__
from rrlib.errors import InputError

# One thread per process: two threads on two busy cores are ten times slower than one, and sums
# shared by threads come out in another order each time. Libraries read these when they are loaded.
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
if platform.machine() in ("x86_64", "AMD64"):
    # The widest vector units that all machines here share, so that a printed number depends as
    # little as possible on the kind of CPU. Elsewhere torch would warn about an unknown name.
    SETTINGS |= {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "AVX2,STRICT",
    }
for _name, _setting in SETTINGS.items():
    os.environ.setdefault(_name, _setting)

LIBRARIES = ("torch", "diffusers", "numpy", "scipy", "scikit-learn", "mujoco", "gymnasium-robotics")


# Parameters ------------------------------------------------------------------------------------


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
    """One or more of the named choices in one string, separated by commas, each once -> a tuple."""

    def accept(value: object) -> tuple[str, ...]:
        picked = [part.strip() for part in value.split(",")] if isinstance(value, str) else []
        if not picked or len(set(picked)) < len(picked) or not set(picked) <= set(choices):
            raise ValueError
        return tuple(picked)

    return Rule(accept, f"one or more of {', '.join(choices)}, separated by commas, each once,")


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


def _interval(minimum: float, maximum: float | None) -> str:
    return f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"


def boolean() -> Rule:
    """True or False."""

    def accept(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Rule(accept, "True or False")


def text() -> Rule:
    """Any string."""

    def accept(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError
        return value

    return Rule(accept, "a string")


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


# Repeatable numbers ----------------------------------------------------------------------------


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; one thread and deterministic kernels from here on."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def claim(label: str, value: float, bar: str, digits: int | None = None) -> None:
    """Print one line that says whether `value` meets `bar`, such as ">= 0.999" or "<= 1.5".

    The line is compared when a chapter is tested, on CPUs whose last digits differ, so it prints no
    more than the claim needs: by default the bar alone, with `digits` also the value, cut to that
    many decimals on the cautious side (down for >=, up for <=); keep them so few that the exact
    value is far from an edge. Exact values belong to `provenance` and `publish`.

        R² against the closed form: at least 0.999: yes
        steered to fresh distance: 1.2 (bar: at most 1.5): yes

    It returns nothing, so that a cell may end in it: the semicolon that hides a value does not work
    under nbval. NaN meets no bar. Raises ValueError for a bar of another form.
    """
    met = meets(value, bar)
    sign, limit = bar.split()
    said = f"at {'least' if sign == '>=' else 'most'} {limit}"
    if digits is not None and math.isfinite(value):
        cut = (math.floor if sign == ">=" else math.ceil)(value * 10**digits) / 10**digits
        said = f"{cut:.{digits}f} (bar: {said})"
    print(f"{label}: {said}: {'yes' if met else 'no'}")


def meets(value: float, bar: str) -> bool:
    """Whether `value` meets a bar such as ">= 0.999" or "<= 1.5"; NaN meets none.

    Raises ValueError for a bar of another form.
    """
    match = re.fullmatch(r"(>=|<=) (-?\d+(?:\.\d+)?)", bar)
    if not match:
        raise ValueError(f"bar={bar!r} is not of the form '>= 0.9' or '<= 1.5'")
    limit = float(match[2])
    return bool(value >= limit if match[1] == ">=" else value <= limit)


# Where numbers come from -----------------------------------------------------------------------


def provenance(
    parameters: SimpleNamespace | Mapping[str, object],
    *,
    numbers: Mapping[str, float] | None = None,
    artefacts: Sequence[str] = (),
) -> None:
    """Show the card that ends a chapter; tag its cell `nbval-ignore-output`.

    parameters: what `check` returned
    numbers: exact values behind the claims, in full
    artefacts: keys of the stored models and data the chapter used

    It holds nothing that differs between two runs on one machine: no time, no folder, no commit.
    """
    from IPython.display import Markdown, display

    given = parameters if isinstance(parameters, Mapping) else vars(parameters)
    rows = {
        **{f"parameter `{name}`": _without_folder(value) for name, value in given.items()},
        **{f"exact {name}": f"{value:.8g}" for name, value in (numbers or {}).items()},
        **({"artefacts": ", ".join(f"`{key}`" for key in artefacts)} if artefacts else {}),
        "device": device_name(str(given.get("device", "cpu"))),
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }
    lines = [f"| {name} | {str(value).replace('|', '&#124;')} |" for name, value in rows.items()]
    display(Markdown("\n".join(["| made with | |", "|---|---|", *lines])))


def _without_folder(value: object) -> object:
    is_path = isinstance(value, str) and os.path.isabs(value)
    return f"`{Path(value).name if is_path else value!r}`"


def versions() -> dict[str, str]:
    """Versions of rrlib, Python and the libraries that numbers depend on (those installed)."""
    found = {"rrlib": __version__, "Python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_name(device: str) -> str:
    """The model of the CPU, or of the CUDA device that is named."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        cpuinfo = ""
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def publish(
    folder: str,
    study: str,
    *,
    rows: Sequence[Mapping[str, object]],
    summary: Mapping[str, float | Mapping[str, object]],
    parameters: SimpleNamespace | Mapping[str, object],
    wall_seconds: float | None = None,
) -> None:
    """Write `<folder>/<study>.json`, the small result that the scoreboard reads; "" writes nothing.

    The folder's own name is the profile: with results="results/quick" a chapter publishes `quick`.
    The file holds, with sorted keys:

        study       the study's name, lower case with hyphens
        profile     the folder's name
        rows        list of flat objects, one per configuration and seed; values are strings,
                    numbers, booleans or null, and every row has the same keys
        summary     name -> number, or name -> object of
                      value   number                                     (required)
                      ci      [low, high], the 95 % confidence interval   low <= value <= high
                      paper   the paper's number, or its text ("over 90 %")
                      bar     ">= 0.9" or "<= 1.5"
                      label   the quantity in words; entries with a label are on the scoreboard
        provenance  parameters   name -> value (a folder or file: its name)
                    device       model of the CPU or GPU
                    versions     library -> version
                    commit       git commit of the checkout, "-dirty" appended; null outside git
                    wall_seconds number or null

    The file appears whole or not at all. Raises ValueError if anything is not of this form, NaN
    and infinity included.
    """
    if not folder:
        return
    given = dict(parameters if isinstance(parameters, Mapping) else vars(parameters))
    result = {
        "study": study,
        "profile": Path(folder).resolve().name,
        "rows": [dict(row) for row in rows],
        "summary": {k: dict(v) if isinstance(v, Mapping) else v for k, v in summary.items()},
        "provenance": {
            "parameters": {
                k: Path(v).name if isinstance(v, str) and os.path.isabs(v) else v
                for k, v in given.items()
            },
            "device": device_name(str(given.get("device", "cpu"))),
            "versions": versions(),
            "commit": _commit(),
            "wall_seconds": wall_seconds,
        },
    }
    validate_result(result)
    content = json.dumps(result, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path = Path(folder) / f"{study}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(content + "\n", encoding="utf-8")
    temporary.replace(path)


def validate_result(result: Mapping[str, object]) -> None:
    """Raise ValueError unless `result` is of the form that `publish` describes."""

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(f"result: {message}")

    keys = {"study", "profile", "rows", "summary", "provenance"}
    need(set(result) == keys, f"keys are {sorted(result)}, not {sorted(keys)}")
    for key in ("study", "profile"):
        name = result[key]
        need(bool(re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name)), f"{key} {name!r} is no plain name")
    for row in result["rows"]:
        need(set(row) == set(result["rows"][0]), f"row {row} has other keys than the first")
        scalar = all(isinstance(v, str | bool | None) or _is_number(v) for v in row.values())
        need(scalar, f"row {row} holds something that is no string, number, boolean or null")
    for name, entry in result["summary"].items():
        entry = entry if isinstance(entry, Mapping) else {"value": entry}
        extra = set(entry) - {"value", "ci", "paper", "bar", "label"}
        need(not extra, f"summary {name!r} has unknown keys {sorted(extra)}")
        value = entry.get("value")
        need(_is_number(value), f"summary {name!r} has the value {value!r}, not a finite number")
        if "ci" in entry:
            ci = entry["ci"]
            two = isinstance(ci, Sequence) and len(ci) == 2 and all(map(_is_number, ci))
            need(two and ci[0] <= value <= ci[1], f"summary {name!r} has the interval {ci!r}")
        paper = entry.get("paper", "")
        need(isinstance(paper, str) or _is_number(paper), f"summary {name!r} has paper={paper!r}")
        need(isinstance(entry.get("label", ""), str), f"summary {name!r} has no text as label")
        if "bar" in entry:
            meets(value, entry["bar"])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
