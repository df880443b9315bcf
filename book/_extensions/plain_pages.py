"""A Sphinx extension: pages without Thebe, which this book does not use.

Jupyter Book loads it on every page, twice, so its constants are declared twice: an error in every
reader's console.
"""

from typing import Any

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", without_thebe, priority=999)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def without_thebe(app: Sphinx, page: str, template: str, context: dict[str, Any], _: Any) -> None:
    """Take Thebe's scripts and styles from what a page loads."""
    for name in ("script_files", "css_files"):
        context[name] = [file for file in context[name] if "thebe" not in said(file)]


def said(file: Any) -> str:
    """A script's or style sheet's address and text, in small letters."""
    return f"{file} {getattr(file, 'attributes', {}).get('body', '')}".lower()
