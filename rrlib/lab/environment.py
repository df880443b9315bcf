"""The machine and the software that numbers come from, and the settings that make them repeat.

Import this room before torch: libraries read the settings when they are loaded.
"""

import os
import platform
import re
import subprocess
import warnings
from importlib import metadata
from pathlib import Path

from rrlib import __version__
from rrlib.errors import InputError, shown

# One thread per process: two threads on two busy cores are ten times slower than one, and sums
# shared by threads come out in another order each time. Libraries read these when they are loaded.
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
if (_cpu := os.environ.get("RRLIB_CPU") or "shared") not in ("shared", "native"):
    raise InputError(f"RRLIB_CPU={shown(_cpu)} is not allowed: native, or nothing, is needed.")
if platform.machine() in ("x86_64", "AMD64") and _cpu == "shared":
    # The widest vector units that all machines here share, so that a printed number depends as
    # little as possible on the kind of CPU; "native" leaves the choice to the libraries, for runs
    # that take hours. Elsewhere torch would warn about an unknown name.
    SETTINGS |= {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "AVX2,STRICT",
    }
for _name, _setting in SETTINGS.items():
    os.environ.setdefault(_name, _setting)

# tqdm, which diffusers imports, misses widgets that chapters do not want.
warnings.filterwarnings("ignore", message="IProgress not found")
# Nor does transformers, which a pipeline imports, have to say that it goes without torchvision.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

CHECKOUT = Path(__file__).resolve().parents[2]
LIBRARIES = (
    *("torch", "diffusers", "transformers", "numpy", "scipy", "scikit-learn"),
    *("mujoco", "gymnasium-robotics"),
)


def versions() -> dict[str, str]:
    """Versions of rrlib, Python and the libraries that numbers depend on (those installed)."""
    found = {"rrlib": __version__, "Python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of our own checkout, "-dirty" appended if it was changed; None elsewhere.

    Elsewhere is also where this package is installed inside somebody else's repository.
    """
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != CHECKOUT:
        return None
    if _git("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def commit_date(commit: str) -> str | None:
    """The day of a commit of this checkout, as 2026-11-23; None where git does not know it."""
    return _git("show", "--no-patch", "--format=%cs", commit.removesuffix("-dirty"))


def _git(*command: str) -> str | None:
    """What git says in the checkout; None if it refuses or is not there."""
    # A hook or another tool may have told git where to look; its settings may stay.
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith("GIT_CONFIG_")
    }
    options = {"cwd": CHECKOUT, "env": ours, "capture_output": True, "text": True, "timeout": 10}
    try:
        done = subprocess.run(["git", *command], **options)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


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
