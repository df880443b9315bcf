"""What every chapter needs around its own content: a study of its numbers, figures, films.

A chapter begins with `study = Study("maze2d", chosen)`, gives it each number once, beside the code
that found it, and ends with `study.close()`.
"""

import base64
import html
import math
import os
import random
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from rrlib import disk
from rrlib.lab import beside, results, store
from rrlib.lab import environment as host
from rrlib.lab.results import meets

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation


class Study:
    """The numbers of a chapter: each is given once, and then said, published and shown exactly.

    Attributes:
        rows: flat dictionaries with the same keys, one per configuration and seed, to be published.
    """

    def __init__(self, name: str, chosen: SimpleNamespace) -> None:
        """Begin the chapter that publishes `<name>.json`; `chosen` is what `check` returned.

        See `start`; figures get the book's style.
        """
        from rrlib.lab import plots  # matplotlib takes a second

        start(chosen)
        plots.use_style()
        self.name, self.chosen = name, chosen
        self.rows: list[Mapping[str, object]] = []
        self._summary: dict[str, dict[str, object]] = {}
        self._words: dict[str, str] = {}  # what the card calls them
        self._changed: set[str] = set()  # numbers that were given again, and otherwise
        self._obtained: list[Any] = []  # recipes

    def claim(
        self,
        name: str,
        value: float,
        label: str,
        *,
        bar: str,
        ci: Sequence[float] | None = None,
        paper: float | str | None = None,
        shown: str | None = None,
        varies: bool = False,
    ) -> None:
        """Print the line of `claim` and record the number with its bar.

        Args:
            name: in the summary.
            value: the number.
            label: the quantity in words, as the line and the card have it.
            bar: such as ">= 0.9"; said and published alike.
            ci: the 95 % confidence interval, low and high.
            paper: the paper's number, or its text.
            shown: the quantity in words on the scoreboard, if it is to be there.
            varies: see `record`.
        """
        claim(label, value, bar, ci)
        self.record(name, value, bar=bar, ci=ci, paper=paper, shown=shown)
        self._words[name] = "" if varies else label

    def record(
        self,
        name: str,
        value: float,
        *,
        ci: Sequence[float] | None = None,
        paper: float | str | None = None,
        bar: str | None = None,
        shown: str | None = None,
        varies: bool = False,
    ) -> None:
        """As `claim`, and nothing is printed. A second number of a name takes the first's place.

        One that `varies` from run to run, as a time does, is published and not on the card.
        """
        more = {"ci": None if ci is None else list(ci), "paper": paper, "bar": bar, "label": shown}
        found = {key: said for key, said in more.items() if said is not None}
        before = self._summary.get(name, {"value": value})["value"]
        self._changed |= set() if np.array_equal(before, value, equal_nan=True) else {name}
        self._summary[name] = {"value": value, **found}
        self._words[name] = "" if varies else shown or name

    def obtain(self, recipe: Any, device: str | None = None) -> Any:
        """The artefact of a recipe, on the chapter's device or another; see `used`."""
        return self.obtain_all([recipe], device)[0]

    def obtain_all(self, recipes: Iterable[Any], device: str | None = None) -> list[Any]:
        """The same of several (`store.obtain_all`), those first that others depend on."""
        recipes = list(recipes)
        self.used(recipes)
        return store.obtain_all(recipes, device or self._device)

    def used(self, recipes: Iterable[Any]) -> None:
        """Count artefacts as the chapter's: keys are on the card, what they took is published."""
        self._obtained = list(dict.fromkeys([*self._obtained, *recipes]))

    def table(
        self,
        rows: Iterable[Mapping[str, object]],
        digits: int = 2,
        formats: Mapping[str, str] | None = None,
    ) -> None:
        """Show rows in the page, see `markdown_table`; nothing if there are none."""
        from IPython.display import Markdown, display

        if rows := list(rows):
            display(Markdown(markdown_table(rows, digits, formats)))

    def beside_full(self, words: Mapping[str, str], of: str | None = None) -> None:
        """Show the numbers of this run beside the full run's, see `beside.rows`.

        Args:
            words: name in the summary -> the quantity in words.
            of: the study that holds the full run's, if it is not this one.
        """
        from IPython.display import Markdown, display

        study = of or self.name
        full = beside.read(study)
        if full is None:
            file = f"results/full/{study}.json"
            display(Markdown(f"No full run: `{file}` is missing here or cannot be read."))
            return
        self.table(beside.rows(full, self._summary, words))
        lines = beside.origin(full, self.chosen), beside.lacking(full, self._summary, words)
        display(Markdown(" ".join(filter(None, lines))))

    @property
    def _device(self) -> str:
        return str(getattr(self.chosen, "device", "cpu"))

    def publish(self, of: "Study | None" = None) -> None:
        """Write the file, see `results.publish`; a number that has no bar or such stands alone.

        Args:
            of: the study that has obtained what this one is about; None is this one.

        Raises ValueError where a file is asked for and a name was given two numbers.
        """
        if self._changed and self.chosen.results:
            raise ValueError(f"{self.name}: two numbers of one name: {sorted(self._changed)}.")
        obtained = (of or self)._obtained
        summary = {
            name: entry if len(entry) > 1 else entry["value"]
            for name, entry in self._summary.items()
        }
        results.publish(
            self.chosen.results,
            self.name,
            rows=self.rows,
            summary=summary,
            parameters=self.chosen,
            wall_seconds=store.seconds(obtained, self._device) if obtained else None,
        )

    def close(self, *others: "Study") -> None:
        """End a chapter: publish, and show the card; tag its cell `nbval-ignore-output`.

        Args:
            others: studies that the chapter publishes besides; their numbers are on the same card.
        """
        self.used(recipe for other in others for recipe in other._obtained)
        self.publish()
        for other in others:
            other.publish(of=self)
        provenance(
            self.chosen,
            numbers={
                study._words[name]: float(entry["value"])
                for study in (self, *others)
                for name, entry in study._summary.items()
                if study._words[name]
            },
            artefacts=[store.key(recipe, self._device) for recipe in self._obtained],
        )


def markdown_table(
    rows: Iterable[Mapping[str, object]],
    digits: int = 2,
    formats: Mapping[str, str] | None = None,
) -> str:
    """A Markdown table whose columns are the keys of the first row.

    Args:
        rows: at least one; a key that a row lacks, and None, leave a cell empty.
        digits: decimals of a float.
        formats: column -> format of its numbers, such as ".1%".
    """
    rows = list(rows)

    def cell(column: str, value: object) -> str:
        if value is None or isinstance(value, str | bool):
            return "" if value is None else str(value).replace("|", "&#124;")
        spec = (formats or {}).get(column, f".{digits}f" if isinstance(value, float) else "")
        return format(value, spec)

    columns = list(rows[0])
    lines = [[cell("", column) for column in columns]]
    lines += [[cell(column, row.get(column)) for column in columns] for row in rows]
    head, *body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, f"|{'---|' * len(columns)}", *body])


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


def claim(label: str, value: float, bar: str, ci: Sequence[float] | None = None) -> None:
    """Print one line with a value, its bar (">= 0.999" or "<= 1.5") and whether it meets it.

        R² against the closed form: ≈ 0.9993 (bar: at least 0.999): yes
        steered to fresh distance: ≈ 1.32, 1.28 to 1.41 (bar: at most 1.5): yes

    The value is cut on the cautious side (down for >=, up for <=) to three digits, or to as many as
    tell it from its bar. When a chapter is tested, what stands between ≈ and the bar is left out
    (`notebooks/nbval.cfg`), for CPUs differ in the last digits of what is trained; the bar and the
    verdict are compared. Exact values belong to `provenance` and `publish`.

    It returns nothing, so that a cell may end in it: the semicolon that hides a value does not work
    under nbval. NaN meets no bar. Raises ValueError for a bar of another form.
    """
    met = meets(value, bar)
    sign, limit = bar.split()
    said = cut(value, sign, float(limit))
    if ci is not None and math.isfinite(ci[0]):  # it is NaN where nothing varies
        said += f", {ci[0]:.3g} to {ci[1]:.3g}"
    side = "least" if sign == ">=" else "most"
    print(f"{label}: ≈ {said} (bar: at {side} {limit}): {'yes' if met else 'no'}")


def cut(value: float, sign: str, limit: float) -> str:
    """A number in three digits, or in as many as tell it from a limit; cut, never in favour.

    sign: ">=" cuts down, "<=" up.
    """
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    digits = max(3, len(str(int(abs(value))))) if abs(value) < 1e6 else 3
    if value and value != limit:
        digits = max(digits, math.ceil(math.log10(abs(value) / abs(value - limit))) + 1)
    digits = min(digits, 8)
    cautious = ROUND_FLOOR if sign == ">=" else ROUND_CEILING
    return f"{float(Context(digits, cautious).create_decimal(repr(value))):.{digits}g}"


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
