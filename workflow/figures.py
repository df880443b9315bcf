"""Whether an executed chapter has its figures: one that shows none is not done."""

import nbformat


def none_shown(notebook: nbformat.NotebookNode) -> bool:
    """Whether its cells promise figures (by a caption, an alternative text) and none is there.

    Some may rightly be missing, where a chapter is given models of your own; all are missing where
    matplotlib draws into the void.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    promised = any(cell.metadata.get("mystnb") for cell in cells)
    kinds = {kind for cell in cells for output in cell.outputs for kind in output.get("data", ())}
    return promised and not any(kind.startswith("image/") for kind in kinds)
