"""A small chapter, and a checkout whose graph has two of them, for runs that are killed."""

import json
import shutil
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[2]
# Of a training with one checkpoint in it.
SMALL = {"hidden": (8,), "samples": 50, "pool": 200, "batch": 4, "steps": 700}
# What is written in place of Jupyter Book's pages.
PAGE = """import sys
from pathlib import Path
found = [path.read_text() for path in sorted(Path("notebooks").glob("*.ipynb"))]
Path("html").mkdir(exist_ok=True)
Path("html/index.html").write_text(f"<p>{len(found)} chapters</p>")
"""


def written(path: Path, study: str, seed: int) -> Path:
    """A chapter of one training with a checkpoint in it, and of what follows from it."""
    cells = [
        f'seed: int = {seed}\ndevice: str = "cpu"\nstore: str = ""\nresults: str = ""',
        "from rrlib.lab import parameters as rules\n"
        "chosen = rules.check(globals(), lambda p: rules.Cost(), **rules.shared())",
        "import torch\nfrom rrlib.lab import notebook, recipes\nfrom rrlib.theory import examples\n"
        f'study = notebook.Study("{study}", chosen)',
        "pair = examples.base(), examples.expert()\n"
        f"reward = study.obtain(recipes.GaussianReward(*pair, seed=chosen.seed, **{SMALL}))",
        "x = torch.linspace(-1, 1, 8).reshape(4, 1, 2)\n"
        "values = reward(x, torch.tensor([0, 5, 50, 99]))\nprint(values.tolist())",
        'study.record("value", float(values.mean()))\n'
        "study.rows = [{'x': k, 'value': float(value)} for k, value in enumerate(values)]",
        "study.close()",
    ]
    made = new_notebook(cells=[new_markdown_cell("# A chapter"), *map(new_code_cell, cells)])
    made.cells[1].metadata["tags"] = ["parameters"]
    made.cells[-1].metadata["tags"] = ["nbval-ignore-output"]
    made.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(normalise_text(made), encoding="utf-8")
    return path


def normalise_text(notebook: nbformat.NotebookNode) -> str:
    """With cell ids that do not change."""
    for place, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{place}"
    return nbformat.writes(notebook)


def checkout(place: Path) -> None:
    """A checkout of two small chapters; in place of Jupyter Book a page is written."""
    shutil.copytree(
        ROOT / "workflow", place / "workflow", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("rrlib", "requirements.lock"):
        (place / name).symlink_to(ROOT / name)
    (place / "workflow" / "build_site.py").write_text(PAGE)
    profile = "".join(
        f"0{k}_small: {{store: {json.dumps(str(place / 'store'))}}}\n" for k in (1, 2)
    )
    (place / "workflow" / "profiles" / "quick.yaml").write_text(profile)
    for k in (1, 2):
        written(place / "notebooks" / f"0{k}_small.ipynb", f"killed-{k}", k - 1)
    for name in ("_config.yml", "_toc.yml"):
        (place / name).touch()
