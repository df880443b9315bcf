"""The store: made once, never stale, never half, never pickle."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from rrlib import host, store
from rrlib.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Number:
    """Writes a number; remembers the calls."""

    value: float = 1.0
    seed: int = 7
    calls: ClassVar[list[str]] = []

    def make(self, folder: Path, device: str) -> None:
        self.calls.append("make")
        save_file({"value": torch.tensor(self.value)}, folder / "number.safetensors")

    def load(self, folder: Path, device: str) -> float:
        self.calls.append("load")
        return float(load_file(folder / "number.safetensors")["value"])


@dataclass(frozen=True)
class Pair:
    """Depends on two others, one of them in a tuple."""

    first: Number
    rest: tuple[Number, ...] = ()
    label: str | None = None

    def make(self, folder: Path, device: str) -> None:
        total = sum(store.obtain(part) for part in (self.first, *self.rest))
        store.write_json(folder / "sum.json", total)

    def load(self, folder: Path, device: str) -> float:
        return json.loads((folder / "sum.json").read_text())


@dataclass(frozen=True)
class Halting:
    """Fails after its checkpoint until told not to; then goes on from what it finds."""

    seed: int = 0
    fails: ClassVar[list[bool]] = []

    def make(self, folder: Path, device: str) -> None:
        checkpoint = store.checkpoints(folder) / "half.json"
        resumed = checkpoint.exists()
        store.write_json(checkpoint, 1)
        if self.fails:
            store.write_json(folder / "whole.json", "not yet")
            raise RuntimeError("the power went")
        store.write_json(folder / "whole.json", {"resumed": resumed})

    def load(self, folder: Path, device: str) -> dict:
        return json.loads((folder / "whole.json").read_text())


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("RRLIB_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(Number, "calls", [])
    monkeypatch.setattr(Halting, "fails", [])


def within(seconds: float, call):
    """The result of a call that must not wait for a lock for ever (a daemon, so neither do we)."""
    result: Future = Future()

    def work() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return result.result(seconds)


def test_an_artefact_is_made_once_and_loaded_ever_after():
    assert [store.obtain(Number(3.0)) for _ in range(3)] == [3, 3, 3]
    assert Number.calls == ["make", "load", "load", "load"]
    assert store.obtain(Number(4.0)) == 4
    assert Number.calls.count("make") == 2


def test_what_a_recipe_depends_on_is_made_once_too():
    pair = Pair(Number(1.0), (Number(2.0), Number(1.0)))
    assert store.obtain(pair) == store.obtain(pair) == 4
    assert Number.calls.count("make") == 2


def test_the_store_is_where_the_variable_says(tmp_path, monkeypatch):
    assert store.root() == tmp_path / "store"
    store.obtain(Number())
    assert store.folder(Number()).is_relative_to(tmp_path / "store")
    assert (store.folder(Number()) / "number.safetensors").exists()
    monkeypatch.delenv("RRLIB_STORE")
    assert store.root() == ROOT / "artefacts"


def test_the_key_changes_with_any_field_and_with_a_nested_recipes_field():
    recipes = [
        Number(),
        Number(value=2.0),
        Number(seed=8),
        Pair(Number()),
        Pair(Number(value=2.0)),
        Pair(Number(seed=8)),
        Pair(Number(), (Number(),)),
        Pair(Number(), (Number(seed=8),)),
        Pair(Number(), label="a"),
        Pair(Number(), label="None"),
    ]
    keys = [store.key(recipe) for recipe in recipes]
    assert len(set(keys)) == len(keys)
    assert keys == [store.key(recipe) for recipe in recipes]
    assert all(len(key) == 16 and int(key, 16) >= 0 for key in keys)
    assert store.key(Pair(Number(1.0, 7))) == store.key(Pair(Number()))


def test_a_field_that_cannot_be_described_is_refused():
    with pytest.raises(TypeError, match="plain data"):
        store.key(Number(value=object()))


# The code that counts. Each variant is a module of the package's name, in a folder of its own.

HELPER = '''
def scale(x):
    """Twice."""
    return 2 * x
'''

MODULE = '''
"""A room."""
from dataclasses import dataclass
from rrlib import store, test_helper
from rrlib.test_helper import scale

FACTOR = 3
TABLE = {"a": (1, 2)}

def inner(x):
    """A docstring."""
    return x + 1

def work(x):
    """A docstring."""
    # A comment.
    return inner(x) * FACTOR + TABLE["a"][1]

def bystander(x):
    return x

@dataclass(frozen=True)
class Work:
    """A recipe."""

    seed: int = 0

    def make(self, folder, device):
        """Write."""
        store.write_json(folder / "n.json", work(self.seed) + test_helper.scale(1))

    def load(self, folder, device):
        return 0

@dataclass(frozen=True)
class Above:
    part: Work = Work()

    def make(self, folder, device):
        pass
'''


def module(folder: Path, name: str, text: str, monkeypatch) -> ModuleType:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(f"rrlib.{name}", path)
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, f"rrlib.{name}", found)
    monkeypatch.setattr(f"rrlib.{name}", found, raising=False)
    spec.loader.exec_module(found)
    return found


def keys(folder: Path, monkeypatch, old: str = "", new: str = "") -> tuple[str, str]:
    """Keys of Work and of Above after one replacement in the helper and the module."""
    assert old in HELPER + MODULE
    with monkeypatch.context() as patch:
        module(folder, "test_helper", HELPER.replace(old, new) if old else HELPER, patch)
        text = MODULE.replace(old, new) if old else MODULE
        room = module(folder, "test_room", text, patch)
        return store.key(room.Work()), store.key(room.Above())


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
    ],
)
def test_comments_docstrings_layout_and_bystanders_do_not_change_the_key(
    tmp_path, monkeypatch, old, new
):
    before = keys(tmp_path / "a", monkeypatch)
    assert keys(tmp_path / "b", monkeypatch, old, new) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FACTOR = 3", "FACTOR = 4"),
        ("(1, 2)", "(1, 5)"),
        ("return inner(x) * FACTOR", "return inner(x) / FACTOR"),
        ("return x + 1", "return x + 2"),  # two calls away
        ("return 2 * x", "return 3 * x"),  # in another room
        ("work(self.seed) + ", "work(self.seed) - "),
        ("seed: int = 0", "seed: int = 1"),
    ],
)
def test_a_change_of_code_changes_the_key_of_all_that_depends_on_it(
    tmp_path, monkeypatch, old, new
):
    work, above = keys(tmp_path / "a", monkeypatch)
    changed_work, changed_above = keys(tmp_path / "b", monkeypatch, old, new)
    assert work != changed_work
    assert above != changed_above


def test_a_damaged_file_is_refused():
    store.obtain(Number())
    path = store.folder(Number()) / "number.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"number\.safetensors is damaged: .* sha256"):
        store.obtain(Number())
    path.unlink()
    with pytest.raises(InputError, match=r"number\.safetensors is damaged"):
        store.obtain(Number())
    path.write_bytes(content)
    assert store.obtain(Number()) == 1


def test_an_interrupted_making_is_never_taken_for_whole_and_is_gone_on_from():
    place = store.folder(Halting())
    Halting.fails.append(True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the power went"):
            store.obtain(Halting())
        assert not place.exists()
    Halting.fails.clear()
    assert within(5, lambda: store.obtain(Halting())) == {"resumed": True}
    assert sorted(p.name for p in place.iterdir()) == ["manifest.json", "whole.json"]
    assert not list(place.parent.glob("*.partial"))


def test_a_making_that_failed_can_be_tried_again_while_its_traceback_is_kept():
    """As in a notebook, which keeps the last one."""
    Halting.fails.append(True)
    with pytest.raises(RuntimeError) as kept:
        store.obtain(Halting())
    Halting.fails.clear()
    assert within(5, lambda: store.obtain(Halting())) == {"resumed": True}
    assert kept.value.__traceback__ is not None


def test_a_folder_without_a_manifest_is_made_anew():
    """A copy that broke off, or a manifest deleted by hand."""
    store.obtain(Number())
    place = store.folder(Number())
    (place / "manifest.json").unlink()
    save_file({"value": torch.tensor(999.0)}, place / "number.safetensors")
    assert store.obtain(Number()) == 1
    assert Number.calls.count("make") == 2


def test_a_store_that_cannot_be_written_is_one_clear_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below"):
        monkeypatch.setenv("RRLIB_STORE", str(tmp_path / name))
        with pytest.raises(InputError, match=r"^store='.*file.*' is not allowed: .* written"):
            store.obtain(Number())
    assert Number.calls == []


def test_the_manifest_says_what_it_is_how_it_was_made_and_what_it_holds():
    recipe = Pair(Number(2.0), label="two")
    store.obtain(recipe)
    place = store.folder(recipe)
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["recipe"]["kind"] == "Pair"
    assert manifest["recipe"]["label"] == "two"
    assert manifest["recipe"]["first"]["value"] == 2
    assert manifest["key"] == place.name == store.key(recipe)
    assert manifest["seed"] is None and manifest["device"] == host.device_name("cpu")
    assert 0 <= manifest["wall_seconds"] < 60 and manifest["peak_memory_mb"] > 10
    digest = hashlib.sha256((place / "sum.json").read_bytes()).hexdigest()
    assert manifest["sha256"] == {"sum.json": digest}
    versions = manifest["versions"]
    assert versions.pop("Python") == platform.python_version()
    for library, version in versions.items():
        assert version == importlib.metadata.version(library)
    assert {"rrlib", "torch", "diffusers", "mujoco"} <= set(versions)
    inner = json.loads((store.folder(Number(2.0)) / "manifest.json").read_text())
    assert inner["seed"] == 7


@dataclass(frozen=True)
class Slow:
    """Takes a while, its part ten times as long."""

    part: "Slow | None" = None

    def make(self, folder: Path, device: str) -> None:
        if self.part:
            store.obtain(self.part)
        time.sleep(0.1 if self.part else 1.0)
        (folder / "done").touch()

    def load(self, folder: Path, device: str) -> None:
        return None


def test_an_artefacts_seconds_are_its_own_and_not_its_parts():
    whole = Slow(Slow())
    store.obtain(whole)
    assert store.manifest(Slow())["wall_seconds"] >= 1
    assert 0.1 <= store.manifest(whole)["wall_seconds"] < 1


def test_the_commit_is_gits_and_none_where_there_is_no_git(monkeypatch):
    commit = host.commit()
    assert commit is None or int(commit.removesuffix("-dirty"), 16) >= 0
    monkeypatch.setenv("PATH", "")
    assert host.commit() is None


def test_write_json_leaves_one_sorted_file(tmp_path):
    store.write_json(tmp_path / "a.json", {"b": 1, "a": [2.5, None]})
    store.write_json(tmp_path / "a.json", {"b": 3, "a": "é"})
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["a.json"]
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": "é", "b": 3}
    assert text.index('"a"') < text.index('"b"')


WORK = r"""
import json, sys, time
from dataclasses import dataclass
from pathlib import Path
from rrlib import store

HERE = Path(__file__).parent

@dataclass(frozen=True)
class Work:
    seed: int = 0

    def make(self, folder, device):
        with (HERE / "log").open("a") as log:
            log.write("made\n")
        resumed = (folder / "half.json").exists()
        store.write_json(folder / "half.json", 1)
        while (HERE / "wait").exists():
            time.sleep(0.01)
        time.sleep(0.3)
        store.write_json(folder / "whole.json", {"resumed": resumed})

    def load(self, folder, device):
        return json.loads((folder / "whole.json").read_text())

if __name__ == "__main__":
    number, together = int(sys.argv[1]), int(sys.argv[2])
    (HERE / f"ready{number}").touch()
    while len(list(HERE.glob("ready*"))) < together:
        time.sleep(0.005)
    print(json.dumps([store.key(Work()), store.obtain(Work())]))
"""


def child(folder: Path, number: int, together: int) -> subprocess.Popen:
    (folder / "work.py").write_text(WORK)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": str(number),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(folder / "work.py"), str(number), str(together)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once_make_it_once_under_the_same_key(tmp_path):
    both = [child(tmp_path, number, 2) for number in range(2)]
    outputs = [json.loads(process.communicate(timeout=60)[0]) for process in both]
    assert outputs[0] == outputs[1] == [outputs[0][0], {"resumed": False}]
    assert (tmp_path / "log").read_text().splitlines() == ["made"]


@pytest.mark.slow
def test_a_killed_process_leaves_neither_a_lock_nor_a_whole(tmp_path):
    (tmp_path / "wait").touch()
    process = child(tmp_path, 0, 1)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "store").rglob("half.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert not list((tmp_path / "store").rglob("manifest.json"))
    (tmp_path / "wait").unlink()
    key, result = json.loads(child(tmp_path, 1, 1).communicate(timeout=60)[0])
    assert result == {"resumed": True}
    names = {p.name for p in (tmp_path / "store" / "Work" / key).iterdir()}
    assert names == {"half.json", "whole.json", "manifest.json"}


@pytest.mark.parametrize("path", sorted((ROOT / "rrlib").glob("*.py")), ids=lambda p: p.name)
def test_no_room_can_read_or_write_a_pickle(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.keyword):
            names = [node.arg]
        forbidden = {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
        forbidden |= {"torch.save", "torch.load", "allow_pickle", "weights_only"}
        assert not forbidden & set(names)
