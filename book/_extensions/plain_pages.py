"""A Sphinx extension: pages without what they do not use.

Jupyter Book loads Thebe on every page, twice, so its constants are declared twice: an error in
every reader's console. The theme loads Font Awesome as fonts and as a script; the fonts are enough,
and the script is a megabyte and a half, more than the first page. MathJax is another megabyte, and
a page without formulas does not need it.
"""

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

# The script of icons, and the order to load fonts that hold none of this book's icons.
UNUSED = re.compile(
    r"\s*(<script[^>]*fontawesome[^>]*/all\.min\.js[^>]*></script>"
    r"|<link[^>]*preload[^>]*/fa-(brands|regular)-400\.woff2[^>]*>)"
)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", without_unused, priority=999)
    app.connect("build-finished", without_icons, priority=999)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def without_unused(app: Sphinx, page: str, template: str, context: dict[str, Any], _: Any) -> None:
    """Take Thebe, and MathJax where there is no formula, from what a page loads."""
    unused = ["thebe"] if 'class="math' in context.get("body", "") else ["thebe", "mathjax"]
    for name in ("script_files", "css_files"):
        files = context[name]
        context[name] = [file for file in files if not any(one in said(file) for one in unused)]


def said(file: Any) -> str:
    """A script's or style sheet's address and text, in small letters."""
    return f"{file} {getattr(file, 'attributes', {}).get('body', '')}".lower()


def without_icons(app: Sphinx, error: Exception | None) -> None:
    """Take from the pages what the theme's own templates name."""
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(UNUSED.sub("", text), encoding="utf-8")
    for script in Path(app.outdir).glob("_static/vendor/fontawesome/*/js/*"):
        script.unlink()
