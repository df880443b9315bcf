"""Bring executed notebooks to the one form in which they are committed.

    normalise.py --check NOTEBOOK...          exit 1, naming them, if any is not in that form
    normalise.py --into FOLDER NOTEBOOK...    write each one's normal form into FOLDER

The normal form depends on nothing but source and results: no timings, no papermill or widget
state, no injected parameters, no stderr (progress bars), execution counts 1, 2, 3, ..., one kernel,
keys in order, a final newline.
"""

import argparse
import copy
import sys
from pathlib import Path

import nbformat

from rrlib.disk import atomic

KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "pygments_lexer": "ipython3",
    },
}
CELL_METADATA = ("jupyter", "mystnb", "tags")
WIDGET = "application/vnd.jupyter.widget-view+json"


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The normal form of a notebook, as a copy. Cell ids are kept; where missing, made of places.

    Raises ValueError if a cell ended in an error: that is no result to keep.
    """
    notebook = copy.deepcopy(notebook)
    kept = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    count = 0
    for place, cell in enumerate(kept):
        cell.setdefault("id", f"cell-{place}")
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in CELL_METADATA if cell.metadata.get(key)}
        )
        if cell.cell_type != "code":
            continue
        executed = cell.execution_count is not None
        count += executed
        cell.execution_count = count if executed else None
        cell.outputs = _outputs(cell.outputs, cell.execution_count)
    notebook.cells = kept
    notebook.metadata = nbformat.from_dict(KERNEL)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def _outputs(outputs: list, count: int | None) -> list:
    kept = []
    for output in outputs:
        if output.output_type == "error":
            raise ValueError(f"cell {count} ended in {output.ename}: {output.evalue}")
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            # How a stream is cut into pieces is a matter of timing.
            if kept and kept[-1].output_type == "stream" and kept[-1].name == output.name:
                kept[-1].text += output.text
                continue
        elif WIDGET in output.data:
            continue
        if output.output_type == "execute_result":
            output.execution_count = count
        kept.append(output)
    return kept


def written(notebook: nbformat.NotebookNode) -> str:
    """The text of the normal form of a notebook."""
    return nbformat.writes(normalise(notebook)).rstrip("\n") + "\n"


def keep(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, unless it has that content: what is equal stays as old."""
    if not path.exists() or path.read_bytes() != content:
        with atomic(path) as whole:
            whole.write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true")
    what.add_argument("--into", type=Path)
    parser.add_argument("notebooks", nargs="*", type=Path)
    args = parser.parse_args()
    wrong = []
    for path in args.notebooks:
        before = path.read_text(encoding="utf-8")
        try:
            after = written(nbformat.reads(before, as_version=4))
            if args.into:
                keep(args.into / path.name, after.encode())
        except ValueError as error:
            sys.exit(f"{path}: {error}")
        if args.check and after != before:
            wrong.append(str(path))
    if wrong:
        sys.exit(f"not in normal form (run `make accept`): {', '.join(wrong)}")


if __name__ == "__main__":
    main()
