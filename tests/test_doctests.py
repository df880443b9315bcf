"""The examples in docstrings run and give what they say; every public name has one."""

import doctest
import inspect
from importlib import import_module
from pathlib import Path

import pytest
import torch

import rrlib

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "rrlib").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.lengthy
@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name):
    torch.manual_seed(0)
    result = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted and not result.failed


def test_there_are_a_dozen_examples():
    finder = doctest.DocTestFinder()
    found = [t for name in MODULES for t in finder.find(import_module(name)) if t.examples]
    assert len(found) >= 12, [t.name for t in found]


@pytest.mark.parametrize("name", [n for n in rrlib.__all__ if n != "__version__"])
def test_a_public_name_says_what_it_is(name):
    assert inspect.getdoc(getattr(rrlib, name)), name
    assert name in dir(rrlib)


def test_no_other_name_is_there():
    with pytest.raises(AttributeError, match="module 'rrlib' has no attribute 'nothing'"):
        rrlib.nothing  # noqa: B018
