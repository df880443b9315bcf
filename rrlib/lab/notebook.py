"""What every chapter needs around its own content: a start, claims, and a card at the end."""

import base64
import html
import math
import os
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from rrlib import disk
from rrlib.lab import environment as host
from rrlib.lab.results import meets

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation


def start(parameters: SimpleNamespace) -> None:
    """Begin a chapter: its `store` holds the artefacts, its `seed` seeds Python, NumPy and torch.

    Artefacts are made on its `device` (see `store.maker`).
    One thread and deterministic kernels from here on, and figures in the page.
    """
    import torch

    _show_figures()

    if parameters.store:
        os.environ["RRLIB_STORE"] = parameters.store
    os.environ["RRLIB_DEVICE"] = getattr(parameters, "device", "cpu")
    random.seed(parameters.seed)
    np.random.seed(parameters.seed)
    torch.manual_seed(parameters.seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def _show_figures() -> None:
    """Have the kernel draw into the page, whatever MPLBACKEND its shell has set."""
    from IPython import get_ipython

    shell = get_ipython()
    if shell is not None and hasattr(shell, "kernel"):
        import matplotlib

        if "inline" not in matplotlib.get_backend():
            shell.enable_matplotlib("inline")


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

    It holds nothing that differs between two runs on one machine: no time, no folder, no commit;
    only if something was found damaged on the way it says so.
    """
    from IPython.display import Markdown, display

    given = parameters if isinstance(parameters, Mapping) else vars(parameters)
    rows = {
        **{f"parameter `{name}`": _without_folder(value) for name, value in given.items()},
        **{f"exact {name}": f"{value:.8g}" for name, value in (numbers or {}).items()},
        **({"artefacts": ", ".join(f"`{key}`" for key in artefacts)} if artefacts else {}),
        "device": host.device_name(str(given.get("device", "cpu"))),
        "versions": ", ".join(f"{name} {number}" for name, number in host.versions().items()),
        **({"also": " ".join(disk.UNSAID)} if disk.UNSAID else {}),
    }
    lines = [f"| {name} | {str(value).replace('|', '&#124;')} |" for name, value in rows.items()]
    display(Markdown("\n".join(["| made with | |", "|---|---|", *lines])))


def film(animation: "FuncAnimation", *, alt: str, caption: str, rate: int = 8) -> None:
    """Show a matplotlib animation as a small WebP inside the page, and close its figure.

    Args:
        animation: of one figure.
        alt: what is seen, for those who do not see it.
        caption: the finding.
        rate: frames per second.
    """
    import matplotlib.pyplot as plt
    from IPython.display import HTML, display
    from matplotlib.animation import PillowWriter

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.webp"
        animation.save(path, PillowWriter(fps=rate), dpi=80)
        content = base64.b64encode(path.read_bytes()).decode()
    plt.close(animation._fig)  # its last frame would be shown as well
    image = f'<img alt="{html.escape(alt)}" src="data:image/webp;base64,{content}">'
    display(HTML(f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"))


def _without_folder(value: object) -> object:
    is_path = isinstance(value, str) and os.path.isabs(value)
    return f"`{Path(value).name if is_path else value!r}`"
