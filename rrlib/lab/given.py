"""What papermill set in a chapter: names and values, whatever their cell says."""

import ast
import re
from collections.abc import Container, Mapping
from types import ModuleType

CHECKED = object()  # no parameter can be this


def given(names: Mapping[str, object], rules: Container[str]) -> dict[str, object]:
    """What papermill set, by its cell in IPython's history; else all that it may have set."""
    history = next((h for h in map(names.get, ("In", "_ih")) if isinstance(h, list)), [])
    if "check(" in str(history[-1:]):
        cells = [cell for cell in history if str(cell).startswith("# Parameters\n")]
        return {
            target.id: _literal(node.value, names[target.id])
            for cell in cells
            for node in ast.parse(cell).body
            for target in getattr(node, "targets", ())
            if isinstance(target, ast.Name)
        }
    if names.get("_parameters_checked") is CHECKED:
        return {}
    return {name: v for name, v in names.items() if name in rules or _may_be_injected(name, v)}


def _literal(node: ast.expr, otherwise: object) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:  # papermill writes float('nan')
        return otherwise


def _may_be_injected(name: str, value: object) -> bool:
    if re.fullmatch(r"__\w+__|_+(i*|[iod]h|i?\d+)", name):  # Python's and IPython's own
        return False
    if name in ("In", "Out"):
        return not isinstance(value, list | dict)
    return not (isinstance(value, ModuleType) or callable(value))
