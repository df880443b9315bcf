"""The list of meant defects is as it says: each in one place, code, and told of in CONTRIBUTING."""

import ast
from pathlib import Path

import mutants
import pytest
from mutant_runs import found

from rrlib import disk
from rrlib.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
ALL = mutants.mutants()
KNOWN = disk.read_json(mutants.FOUND)


def test_there_are_sixty_of_all_kinds_with_names_of_their_own():
    assert len({m["name"] for m in ALL}) == len(ALL) >= 60
    assert len({mutants.mark(m) for m in ALL}) == len(ALL)
    assert {m["kind"] for m in ALL} == set(mutants.KINDS)


@pytest.mark.parametrize("mutant", ALL, ids=lambda m: m["name"])
def test_a_defect_is_in_one_place_and_is_other_code(mutant):
    path = mutants.place(ROOT, mutant)
    trees = (ast.parse(text) for text in (path.read_text("utf-8"), mutants.mutated(path, mutant)))
    before, after = (ast.dump(tree) for tree in trees)
    assert before != after
    for test in mutant["tests"]:
        file, _, name = test.partition("::")
        assert file not in mutants.TEXTUAL
        assert f"def {name.partition('[')[0]}" in (ROOT / file).read_text("utf-8")


def test_a_text_that_occurs_never_or_twice_is_refused(tmp_path):
    (tmp_path / "rrlib").mkdir()
    mutant = {"name": "one", "find": "a + b", "put": "a - b"}
    for text, count in (("a", 0), ("a + b, a + b", 2)):
        (tmp_path / "rrlib" / "code.py").write_text(text)
        with pytest.raises(InputError, match=f"mutant 'one': its text occurs {count} times"):
            mutants.place(tmp_path, mutant)
    (tmp_path / "rrlib" / "code.py").write_text("c = a + b")
    assert mutants.mutated(mutants.place(tmp_path, mutant), mutant) == "c = a - b"


@pytest.fixture
def tree(tmp_path):
    """A package of one function, a test that looks at it, and one that does not."""
    (tmp_path / "rrlib").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "rrlib" / "__init__.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\nmarkers = ["slow: s", "book: b"]\n'
    )
    look = "import rrlib\n\ndef test_it():\n    assert "
    (tmp_path / "tests" / "test_sum.py").write_text(f"{look}rrlib.add(1, 2) == 3\n")
    (tmp_path / "tests" / "test_blind.py").write_text(f"{look}rrlib.add(0, 0) == 0\n")
    return tmp_path


@pytest.mark.lengthy
def test_a_defect_is_caught_by_a_test_of_what_the_code_does(tree):
    sign = {"name": "sign", "find": "a + b", "put": "a - b", "tests": ["tests/test_sum.py"]}
    caught = {"caught": True, "by": "tests/test_sum.py::test_it"}
    assert found(sign, tree, named=True) == caught | {"against": "named"}
    blind = sign | {"tests": ["tests/test_blind.py"]}
    missed = {"caught": False, "by": "", "against": "named"}
    assert found(blind, tree, named=True) == missed
    assert found(blind, tree, named=False) == caught | {"against": "all"}
    assert (tree / "rrlib" / "__init__.py").read_text() == "def add(a, b):\n    return a + b\n"
    with pytest.raises(InputError, match="pytest ended with 4"):
        found(sign | {"tests": ["tests/test_none.py"]}, tree, named=True)


def test_what_was_found_first_stays_and_another_defect_begins_anew(monkeypatch):
    one = {"name": "one", "kind": "sign", "find": "a", "put": "b"}
    monkeypatch.setattr(mutants, "mutants", lambda: [one])
    lost, seen = ({"caught": c, "by": "", "commit": k} for c, k in ((False, "1"), (True, "2")))
    before = mutants.merged({}, {"one": lost})
    after = mutants.merged(before, {"one": seen})
    assert after["one"]["first"] == lost and after["one"]["now"] == seen
    assert mutants.merged(after, {}) == after
    assert "| sign | 1 | 0 | 1 |" in mutants.table(after)
    assert "Not caught: one. Found at 1." in mutants.table(before)
    monkeypatch.setattr(mutants, "mutants", lambda: [one | {"put": "c"}])
    assert mutants.merged(after, {}) == {}


def test_contributing_tells_what_was_found():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert mutants.renewed(text, KNOWN) == text, "run `make mutants`"
    assert {name: one["mark"] for name, one in KNOWN.items()} == {
        m["name"]: mutants.mark(m) for m in ALL
    }, "run `make mutants ONLY=...` for what has changed"


def test_nearly_all_are_caught_and_all_of_the_worst_kinds():
    caught = {m["name"]: KNOWN[m["name"]]["now"]["caught"] for m in ALL}
    assert sum(caught.values()) >= 0.95 * len(ALL)
    for kind in ("sign", "split", "normaliser", "seed"):
        assert all(caught[m["name"]] for m in ALL if m["kind"] == kind), kind
