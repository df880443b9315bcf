"""Whoever changes what a recipe makes is told to raise its version; nobody else is."""

import functools
import json
import subprocess
from pathlib import Path

import pytest
import small_recipes
from recipe_code import ACCEPTED, ROOT, complaints, digests, parsed, recipes
from test_store import other_pythons


@functools.cache
def now() -> dict[str, dict]:
    """What the code is like."""
    return digests()


@pytest.mark.lengthy
def test_the_code_of_every_recipe_is_what_was_accepted_for_its_version():
    assert not complaints(json.loads(ACCEPTED.read_text(encoding="utf-8")), now())


@pytest.mark.lengthy
def test_every_recipe_of_the_book_is_known():
    names = set(recipes(parsed(ROOT / "rrlib")))
    assert {"GaussianReward", "MazeRewards", "LocomotionRollouts", "MiniDiffusion"} <= names
    assert {"ImagePool", "PoolReward", "PoolRival", "Shipped", "Elsewhere", "MazeFile"} <= names
    assert not names & {"Fit", "Split", "ImageReward", "Trajectories"}
    trained = {type(recipe).__name__ for recipe in small_recipes.recipes().values()}
    # Of the others, none trains anything: data, pools of images, rollouts, files of others.
    assert names - trained == {
        *("MazeData", "MazeFile", "LocomotionData", "LocomotionFile", "LocomotionRollouts"),
        *("ImagePool", "Shipped", "Elsewhere"),
    }


HELPER = '''
"""Another room."""
from rrlib.errors import InputError

SIGN = [[0, 1], [1, 0]]
TOLD = ("a", "b")
MORE = {}
MORE["x"] = 7

def scale(x):
    """Twice."""
    if x < 0:
        raise InputError(f"x={x} is not allowed: {TOLD} is needed.")
    assert x < 100, "too large"
    return 2 * x * SIGN[0][1] * MORE["x"]
'''

MODULE = '''
"""A room."""
from dataclasses import dataclass
from typing import ClassVar, Literal
from rrlib import test_helper
from rrlib.test_helper import scale as doubled
from rrlib.disk import write_json

FACTOR = 3
TABLE = {"a": (1, 2)}
Kind = Literal["a", "b"]

def inner(x: int) -> int:
    """A docstring."""
    return x + 1

def work(x):
    """A docstring."""
    # A comment.
    return inner(x) * FACTOR + TABLE["a"][1]

def bystander(x):
    return x

@dataclass(frozen=True)
class Settings:
    """No recipe."""

    rate: float = 0.1

    def used(self):
        return self.rate / 2

@dataclass(frozen=True)
class Work:
    """A recipe."""

    code_version: ClassVar[int] = 1
    seed: int = 0
    kind: Kind = "a"
    settings: "Settings | None" = None

    def make(self, folder, device):
        """Write."""
        write_json(folder / "n.json", work(self.seed) + test_helper.scale(1) + f"{self.seed} {{}}")

    def load(self, folder, device):
        return doubled(0)

@dataclass(frozen=True)
class Above:
    part: Work = Work()

    def make(self, folder, device):
        isinstance(self.part, Work)

    def load(self, folder, device):
        return 0

@dataclass(frozen=True)
class Heir(Work):
    more: int = 0

@dataclass(frozen=True)
class Borrower:
    def make(self, folder, device):
        pass

    def load(self, folder, device):
        return Work.load(self, folder, device)
'''

EMPTY = "def write_json(path, content):\n    path.write(content)\n"
ERRORS = "class InputError(ValueError):\n    pass\n"


def code(folder: Path, old: str = "", new: str = "") -> dict[str, dict]:
    """Digests of a package of these two rooms, after one replacement in them."""
    assert (HELPER + MODULE + EMPTY).count(old) or not old
    package = folder / "rrlib"
    package.mkdir(parents=True)
    rooms = {"__init__": "", "test_helper": HELPER, "test_room": MODULE}
    for name, text in (rooms | {"disk": EMPTY, "errors": ERRORS}).items():
        changed = text.replace(old, new) if old else text
        (package / f"{name}.py").write_text(changed, encoding="utf-8")
    return digests(package)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# A comment.", "# Another, which is longer."),
        ("    # A comment.\n", ""),
        ('"""A docstring."""', '"""A better docstring."""'),
        ('    """A docstring."""\n', ""),
        ('"""A recipe."""', '"""Said otherwise."""'),
        ('"""Write."""', '"""Write.\n\n        And more.\n        """'),
        ('"""Twice."""', '"""Two times."""'),
        ("return inner(x) * FACTOR + ", "return (\n        inner(x) * FACTOR\n    ) + "),
        ("def bystander(x):\n    return x", "def bystander(x):\n    return -x"),
        ("x={x} is not allowed: {TOLD} is needed.", "{x} is wrong."),
        ('TOLD = ("a", "b")', 'TOLD = ("a", "b", "c")'),
        ('"too large"', '"much too large"'),
        ("(x: int) -> int", "(x)"),
        ("path.write(content)", "path.write(content.encode())"),  # keepers do not shape
        ('["a", "b"]\n', '["b", "a"]\n'),  # a type is not what is made
    ],
)
def test_comments_docstrings_messages_layout_and_bystanders_do_not_count(tmp_path, old, new):
    assert code(tmp_path / "b", old, new) == code(tmp_path / "a")


@pytest.mark.parametrize(
    ("old", "new", "borrows"),
    [
        ("FACTOR = 3", "FACTOR = 4", False),
        ("(1, 2)", "(1, 5)", False),
        ("return inner(x) * FACTOR", "return inner(x) / FACTOR", False),
        ("return x + 1", "return x + 2", False),  # two calls away
        ("return 2 * x", "return 3 * x", True),  # in another room
        ("[[0, 1], [1, 0]]", "[[0, 2], [2, 0]]", True),  # a constant of any type
        ('MORE["x"] = 7', 'MORE["x"] = 8', True),  # changed after it was defined
        ("work(self.seed) + ", "work(self.seed) - ", False),
        ("seed: int = 0", "seed: int = 1", False),
        ("self.rate / 2", "self.rate / 3", False),  # of what a field holds
        ("{{}}", "{{}}{{}}", False),
        ("x < 0:", "x <= 0:", True),
    ],
)
def test_a_change_of_what_is_made_counts_for_the_recipe_and_for_who_calls_it(
    tmp_path, old, new, borrows
):
    before, after = code(tmp_path / "a"), code(tmp_path / "b", old, new)
    changed = {name for name in before if before[name] != after[name]}
    # What has it among its fields has its version in the key.
    assert changed >= {"Work", "Heir"} and "Above" not in changed
    assert not borrows or "Borrower" in changed


def test_a_person_is_told_what_to_do_in_one_sentence(tmp_path):
    before = code(tmp_path / "a")
    assert not complaints(before, before)
    (said,) = complaints(before, code(tmp_path / "b", "return x + 1", "return x + 2"))[:1]
    assert said.startswith("code of Borrower changed since version 1") or said.startswith(
        "code of Work changed since version 1: raise its code_version, or, if what it makes is "
        "the same, accept it with `python workflow/recipe_code.py`"
    )
    raised = code(
        tmp_path / "c", "code_version: ClassVar[int] = 1", "code_version: ClassVar[int] = 2"
    )
    for name in ("Work", "Heir"):
        assert raised[name] == {"version": 2, "code": before[name]["code"]}
    heirs, said = complaints(before, raised)
    assert heirs.startswith("code_version of Heir is 2, 1 was accepted")
    assert said.startswith("code_version of Work is 2, 1 was accepted")
    assert complaints({}, {"Work": before["Work"]})[0].startswith("recipe Work is new")
    assert complaints({"Work": before["Work"]}, {})[0].startswith("recipe Work is gone")


def test_two_recipes_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two recipes are called Above"):
        code(tmp_path, "class Borrower", "class Above")


@pytest.mark.lengthy
def test_the_digest_is_the_same_in_every_python():
    pythons = other_pythons()
    if not pythons:
        pytest.skip("no other Python is here")
    show = "import json, recipe_code; print(json.dumps(recipe_code.digests()))"
    for python in pythons:
        options = {"capture_output": True, "text": True, "cwd": ROOT / "workflow"}
        told = subprocess.run([python, "-B", "-c", show], **options)
        assert json.loads(told.stdout) == now(), told.stderr
