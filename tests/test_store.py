"""The store: made once, never stale, never half, never damaged, never pickle."""

import ast
import dataclasses
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rrlib import disk
from rrlib.errors import InputError
from rrlib.lab import environment as host
from rrlib.lab import keys, meters, store

ROOT = Path(__file__).resolve().parent.parent
# Children that begin where this process is: they need not import torch first.
FORK = multiprocessing.get_context("fork")


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
        disk.write_json(folder / "sum.json", total)

    def load(self, folder: Path, device: str) -> float:
        return json.loads((folder / "sum.json").read_text())


@dataclass(frozen=True)
class Passing:
    """Made of another's number whenever it is wanted, and not kept."""

    of: Number
    loads: ClassVar[list[str]] = []

    def load(self, folder: Path, device: str) -> list[float]:
        self.loads.append(device)
        return [store.obtain(self.of)] * 2


@dataclass(frozen=True)
class Halting:
    """Fails after its checkpoint until told not to; then goes on from what it finds."""

    seed: int = 0
    fails: ClassVar[list[bool]] = []

    def make(self, folder: Path, device: str) -> None:
        checkpoint = store.checkpoints(folder) / "half.json"
        resumed = checkpoint.exists()
        disk.write_json(checkpoint, 1)
        if self.fails:
            disk.write_json(folder / "whole.json", "not yet")
            raise RuntimeError("the power went")
        disk.write_json(folder / "whole.json", {"resumed": resumed})

    def load(self, folder: Path, device: str) -> dict:
        return json.loads((folder / "whole.json").read_text())


def test_what_is_not_kept_is_made_when_it_is_wanted_and_remembered_until_the_next(monkeypatch):
    monkeypatch.setattr(Passing, "loads", [])
    one, other = Passing(Number(2.0)), Passing(Number(3.0))
    found = store.obtain_all([one.of, one])[1]
    assert found == [2.0, 2.0] and store.obtain(Passing(Number(2.0))) is found
    assert Passing.loads == ["cpu"] and not store.folder(one).parent.exists()
    assert store.obtain(other) == [3.0, 3.0] and store.obtain(one) == found
    assert Passing.loads == ["cpu"] * 3
    assert store.spent([one, one.of, other]) == store.spent([one.of])  # it has no manifest
    took = {2.0: {"cpu_seconds": 5.5}, 3.0: {"cpu_seconds": 7.0}}
    with monkeypatch.context() as patch:
        patch.setattr(store, "manifest", lambda recipe, device: took[recipe.value])
        assert store.seconds([one, other, one.of, Number(9.0)]) == 12.5  # the last nobody made
    monkeypatch.setenv("RRLIB_STORE", str(store.root()) + "-other")  # of another store
    assert store.obtain(one) == found and len(Passing.loads) == 4


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("RRLIB_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(Number, "calls", [])
    monkeypatch.setattr(Halting, "fails", [])
    monkeypatch.setattr(host, "commit", lambda: None)  # three calls of git for each artefact


COMMIT = host.commit


def is_free(place: Path) -> bool:
    """Whether nobody holds the lock of an artefact (raises otherwise: it would be waited for)."""
    with FileLock(place.parent / f".{place.name}.lock").acquire(timeout=0):
        return True


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


def test_a_tensors_type_and_shape_are_in_the_key():
    values = [
        torch.zeros(2),
        torch.zeros(2, dtype=torch.float64),
        torch.zeros(2, 1),
        torch.zeros(0, 2),
        torch.zeros(0, 3),
        torch.tensor([float("nan"), 0]),
        torch.tensor([float("inf"), 0]),
        [0.0, 0.0],
        "nan",
        float("nan"),
        0,
        0.0,
        False,
        None,
    ]
    assert len({store.key(Number(value)) for value in values}) == len(values)


def test_a_number_that_is_none_in_json_can_be_kept(monkeypatch):
    monkeypatch.setattr(Number, "make", lambda self, folder, device: None)
    monkeypatch.setattr(Number, "load", lambda self, folder, device: "loaded")
    assert store.obtain(Number(float("nan"))) == "loaded"
    assert store.manifest(Number(float("nan")))["recipe"]["fields"]["value"] == {"float": "nan"}


@dataclass(frozen=True)
class Named:
    """Its fields are called as what a key says of any recipe."""

    name: str = "Number"
    code_version_: int = 1
    kind: str = "Number"


def test_a_field_hides_nothing_of_its_recipe():
    other = dataclasses.make_dataclass("Other", ["name", "code_version_", "kind"], frozen=True)
    assert store.key(Named()) != store.key(other("Number", 1, "Number"))


def test_the_version_of_the_code_is_in_the_key_of_all_that_depends_on_it(monkeypatch):
    before = [store.key(Number()), store.key(Pair(Number())), store.key(Halting())]
    monkeypatch.setattr(Number, "code_version", 1, raising=False)  # what it is without one
    assert [store.key(Number()), store.key(Pair(Number())), store.key(Halting())] == before
    monkeypatch.setattr(Number, "code_version", 2)
    after = [store.key(Number()), store.key(Pair(Number())), store.key(Halting())]
    assert [a == b for a, b in zip(after, before, strict=True)] == [False, False, True]


def test_the_libraries_that_shape_results_are_in_the_key(monkeypatch):
    found = keys.libraries()
    assert set(found) == set(keys.LIBRARIES)
    for library, version in found.items():
        assert importlib.metadata.version(library).startswith(version) and version.count(".") == 1
    before = store.key(Number())
    for library in found:
        monkeypatch.setattr(keys, "libraries", lambda name=library: found | {name: "0.0"})
        assert store.key(Number()) != before
    monkeypatch.setattr(keys, "libraries", lambda: dict(reversed(found.items())))
    assert store.key(Number()) == before


def test_the_third_number_of_a_version_is_not_in_the_key(monkeypatch):
    versions = iter(["2.13.0+cpu", "2.13.1", "2.14.0", "2.13.0"])
    monkeypatch.setattr(keys, "LIBRARIES", ("torch",))
    monkeypatch.setattr(keys.metadata, "version", lambda name: next(versions))
    found = [keys.libraries.__wrapped__()["torch"] for _ in range(4)]
    assert found == ["2.13", "2.13", "2.14", "2.13"]


def test_the_kind_of_device_is_in_the_key_and_not_its_number(monkeypatch):
    assert store.key(Number(), "cuda:0") == store.key(Number(), "cuda") != store.key(Number())
    plain = store.key(Number())
    monkeypatch.setenv("RRLIB_DEVICE", "cuda")
    assert store.key(Number()) == store.key(Number(), "cuda") != plain
    monkeypatch.setenv("RRLIB_DEVICE", "")
    assert store.key(Number()) == plain


def test_what_a_chapter_made_on_a_gpu_is_found_when_it_is_wanted_on_the_cpu(monkeypatch):
    seen = []
    monkeypatch.setattr(host, "device_name", lambda device: device)
    monkeypatch.setattr(meters, "_cuda_peak", lambda device, restart=False: 0)
    make = Number.make
    monkeypatch.setattr(Number, "make", lambda self, *to: (seen.append(to[1]), make(self, *to)))
    monkeypatch.setenv("RRLIB_DEVICE", "cuda")
    store.obtain(Number(), "cuda")
    assert store.obtain(Number()) == 1 and store.manifest(Number())["device"] == "cuda"
    store.obtain(Number(3.0))
    assert seen == ["cuda", "cuda"] and Number.calls.count("make") == 2


CODE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Work:
    seed: int = 0
    rate: float = 0.1
    names: tuple = ("é", "b")

    def make(self, folder, device):
        return 1
"""


def test_a_file_that_is_edited_while_a_process_runs_changes_no_key(tmp_path):
    path = tmp_path / "edited.py"
    path.write_text(CODE)
    scope: dict = {"__name__": "edited", "__file__": str(path)}
    exec(compile(CODE, str(path), "exec"), scope)
    before = keys.key(scope["Work"]())
    path.write_text("# A comment moves all lines.\n\n" + CODE.replace("return 1", "return 2"))
    assert keys.key(scope["Work"]()) == before


def other_pythons() -> list[str]:
    """Of the other versions that rrlib supports, those that are at hand."""
    versions = {f"3.{minor}" for minor in (11, 12)} - {"{}.{}".format(*sys.version_info)}
    found = []
    for version in versions:
        beside = sorted(Path(sys.base_prefix).parent.glob(f"{version}*/bin/python3"))
        for command in [shutil.which(f"python{version}"), *map(str, beside)]:
            told = ["-c", "import sys; print('{}.{}'.format(*sys.version_info))"]
            if command and not subprocess.run([command, *told], capture_output=True).returncode:
                found.append(command)
                break
    return found


@pytest.mark.lengthy
def test_a_key_is_the_same_in_every_python(monkeypatch):
    pythons = other_pythons()
    if not pythons:
        pytest.skip("no other Python is here")
    scope: dict = {"__name__": "work"}
    exec(CODE, scope)
    monkeypatch.setattr(keys, "libraries", lambda: {"torch": "2.13"})
    show = "from rrlib.lab import keys\nkeys.libraries = lambda: {'torch': '2.13'}\n"
    show += CODE + "print(keys.key(Work(rate=1e-3), 'cuda:1'))"
    for python in pythons:
        options = {"capture_output": True, "text": True, "env": {"PYTHONPATH": str(ROOT)}}
        told = subprocess.run([python, "-B", "-c", show], **options)
        assert told.stdout.strip() == keys.key(scope["Work"](rate=1e-3), "cuda"), told.stderr


# What comes with the book


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """The artefact of Number(3.0), as the book would bring it, and an empty store."""
    store.obtain(Number(3.0))
    place = shutil.move(
        store.folder(Number(3.0)), tmp_path / "shipped/Number" / store.key(Number(3.0))
    )
    monkeypatch.setattr(store, "SHIPPED", tmp_path / "shipped")
    Number.calls.clear()
    return Path(place)


def test_what_comes_with_the_book_is_loaded_and_not_made(shipped):
    before = {path.name: path.read_bytes() for path in shipped.iterdir()}
    assert store.obtain(Number(3.0)) == store.obtain(Number(3.0)) == 3
    assert store.obtain(Pair(Number(3.0))) == 3
    assert "make" not in Number.calls
    assert store.obtain(Number(4.0)) == 4 and Number.calls.count("make") == 1
    assert store.manifest(Number(3.0))["key"] == store.key(Number(3.0))
    assert {path.name: path.read_bytes() for path in shipped.iterdir()} == before


def test_another_version_of_the_code_is_made_here(shipped, monkeypatch):
    monkeypatch.setattr(Number, "code_version", 2, raising=False)
    assert store.obtain(Number(3.0)) == 3 and "make" in Number.calls


@pytest.mark.parametrize("said, made", [("1", True), ("0", False), ("", False)])
def test_a_fresh_run_takes_nothing_from_the_book(shipped, said, made, monkeypatch):
    monkeypatch.setenv("RRLIB_FRESH", said)
    assert store.obtain(Number(3.0)) == 3
    assert ("make" in Number.calls) == made


@pytest.mark.parametrize("said", ["yes", "2", "01"])
def test_fresh_is_yes_or_no(shipped, said, monkeypatch):
    monkeypatch.setenv("RRLIB_FRESH", said)
    with pytest.raises(InputError, match=f"RRLIB_FRESH='{said}' is not allowed: 0 or 1 is needed"):
        store.obtain(Number(3.0))


@pytest.mark.parametrize("name", ["number.safetensors", store.MANIFEST])
def test_a_damaged_file_of_the_book_is_said_and_made_here(shipped, name, capsys):
    flipped(shipped / name)
    wrong = (shipped / name).read_bytes()
    assert store.obtain(Number(3.0)) == 3 and Number.calls.count("make") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(shipped) in said and name in said
    assert store.obtain(Number(3.0)) == 3 and Number.calls.count("make") == 1
    assert (shipped / name).read_bytes() == wrong  # read only


def test_what_was_damaged_in_the_store_comes_from_the_book_again(shipped, capsys):
    store.obtain(Number(3.0))
    flipped(store.folder(Number(3.0)) / "number.safetensors")
    assert store.obtain(Number(3.0)) == 3 and "make" not in Number.calls
    assert "is made again" in capsys.readouterr().err


def test_a_folder_half_copied_is_no_artefact(shipped):
    place = store.folder(Number(3.0))
    (place.parent / f".{place.name}.unpacked").mkdir(parents=True)
    place.mkdir()
    assert store.obtain(Number(3.0)) == 3 and "make" not in Number.calls


# Damage


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def in_its_place_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "flip": flipped,
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte less": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": Path.unlink,
    "folder": in_its_place_a_folder,
    "no object": lambda path: path.write_text("[]"),
    "no digests": lambda path: path.write_text('{"sha256": "x", "checksum": 1}'),
    "nested": lambda path: path.write_text("[" * 100_000),
}


@pytest.mark.parametrize("name", ["number.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artefact_is_made_again_with_one_line(damage, name, capsys):
    if (damage, name) == ("one byte less", "manifest.json"):
        pytest.skip("its last byte is the end of a line: no harm")
    store.obtain(Number(3.0))
    place = store.folder(Number(3.0))
    DAMAGES[damage](place / name)
    assert store.obtain(Number(3.0)) == 3 and Number.calls.count("make") == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and str(place) in told[0] and "made again" in told[0]
    assert sorted(path.name for path in place.iterdir()) == ["manifest.json", "number.safetensors"]
    assert not list(place.parent.glob(".*.damaged*"))
    assert store.obtain(Number(3.0)) == 3 and Number.calls.count("make") == 2
    assert capsys.readouterr().err == ""


def test_every_letter_of_a_manifest_counts():
    store.obtain(Number())
    place = store.folder(Number())
    content = (place / "manifest.json").read_bytes()
    assert store._damage(place) is None
    for at in range(0, len(content) - 1, 3):
        changed = bytearray(content)
        changed[at] ^= 1
        if changed[at : at + 1].isspace() and content[at : at + 1].isspace():
            continue  # another blank says the same
        (place / "manifest.json").write_bytes(changed)
        assert store._damage(place), (at, bytes(changed[at - 20 : at + 20]))


@dataclass(frozen=True)
class Copy:
    """Of a file that may be gone."""

    path: str

    def make(self, folder: Path, device: str) -> None:
        if not Path(self.path).exists():
            raise InputError(f"Dataset '{self.path}' does not exist.")
        shutil.copy(self.path, folder / "copy")

    def load(self, folder: Path, device: str) -> str:
        return (folder / "copy").read_text()


def test_what_cannot_be_made_again_is_never_deleted(tmp_path):
    source = tmp_path / "source"
    source.write_text("all there is")
    recipe = Copy(str(source))
    assert store.obtain(recipe) == "all there is"
    place = store.folder(recipe)
    source.unlink()
    flipped(place / "copy")
    changed = (place / "copy").read_bytes()
    for _ in range(2):
        with pytest.raises(InputError, match="does not exist"):
            store.obtain(recipe)
        (aside,) = place.parent.glob(f".{place.name}.damaged*")
        assert (aside / "copy").read_bytes() == changed
    source.write_text("all there is")
    assert store.obtain(recipe) == "all there is"
    assert not list(place.parent.glob(".*.damaged*"))


def test_a_disk_that_keeps_nothing_ends_in_a_sentence_and_not_in_a_loop(monkeypatch):
    monkeypatch.setattr(store, "_damage", lambda place: "a bit is wrong")
    with pytest.raises(InputError, match=r"damaged as soon as it is made \(a bit is wrong\)"):
        store.obtain(Number())
    assert Number.calls == ["make", "make"]


def test_a_file_that_is_not_ours_to_read_is_not_taken_for_damaged(monkeypatch):
    store.obtain(Number())

    def refused(path):
        raise PermissionError(13, "denied")

    monkeypatch.setattr(disk, "sha256", refused)
    with pytest.raises(InputError, match=r"safetensors' cannot be read \(Permission denied\)"):
        store.obtain(Number())
    assert Number.calls.count("make") == 1


@pytest.mark.parametrize("late", ["commit", "versions"])
def test_a_run_that_is_killed_when_all_is_made_goes_on_from_its_last_checkpoint(monkeypatch, late):
    def killed():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.host, late, killed)
        with pytest.raises(KeyboardInterrupt):
            store.obtain(Halting(7))
    assert store.obtain(Halting(7)) == {"resumed": True}
    place = store.folder(Halting(7))
    assert sorted(path.name for path in place.iterdir()) == ["manifest.json", "whole.json"]
    assert list(store.manifest(Halting(7))["sha256"]) == ["whole.json"]


def test_a_manifest_of_a_killed_run_is_no_part_of_the_next(monkeypatch):
    partial = store.folder(Halting(8)).parent / f".{store.folder(Halting(8)).name}.partial"
    partial.mkdir(parents=True)
    (partial / "manifest.json").write_text("{}")
    assert store.obtain(Halting(8)) == {"resumed": False}
    assert list(store.manifest(Halting(8))["sha256"]) == ["whole.json"]


def test_leftovers_of_a_killed_run_do_no_harm():
    place = store.folder(Halting())
    partial = place.parent / f".{place.name}.partial"
    (partial / ".d" / "e").mkdir(parents=True)
    (partial / ".f").touch()
    (partial / "manifest.json").write_text("{}")  # killed before the last rename
    store.obtain(Halting())
    assert sorted(path.name for path in place.iterdir()) == ["manifest.json", "whole.json"]
    assert store._damage(place) is None


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system with options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting needs root")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True)


def test_no_room_is_one_sentence_and_room_mends_it(small_disk, monkeypatch):
    monkeypatch.setattr(
        Number, "make", lambda self, folder, device: (folder / "a").write_bytes(bytes(200_000))
    )
    monkeypatch.setattr(Number, "load", lambda self, folder, device: "loaded")
    disk_ = small_disk("size=64k")
    monkeypatch.setenv("RRLIB_STORE", str(disk_))
    with pytest.raises(InputError, match=r"^store=.*is needed \(No space left on device\)\.$"):
        store.obtain(Number())
    assert not store.folder(Number()).exists()
    subprocess.run(["mount", "-o", "remount,size=1m", str(disk_)], check=True)
    assert store.obtain(Number()) == "loaded"


def test_a_file_too_large_for_the_disk_is_one_sentence(monkeypatch):
    def make(self, folder, device):
        raise SafetensorError("I/O error: File too large (os error 27)")

    monkeypatch.setattr(Number, "make", make)
    with pytest.raises(InputError, match=r"^store='.*' is not allowed: .*\(File too large\)\.$"):
        store.obtain(Number())


def test_no_files_left_is_one_sentence(small_disk, monkeypatch):
    """However many there are until there is none left."""
    disk_ = small_disk("size=1m,nr_inodes=20")
    monkeypatch.setenv("RRLIB_STORE", str(disk_))
    for used in range(1, 20, 2):
        for name in range(used):
            (disk_ / f"{name}").touch()
        with pytest.raises(InputError, match=r"No space left on device"):
            for value in range(20):
                store.obtain(Number(float(value)))
        for path in disk_.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_an_interrupted_making_is_never_taken_for_whole_and_is_gone_on_from():
    place = store.folder(Halting())
    Halting.fails.append(True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the power went"):
            store.obtain(Halting())
        assert not place.exists()
    Halting.fails.clear()
    assert is_free(place)
    assert store.obtain(Halting()) == {"resumed": True}
    assert sorted(p.name for p in place.iterdir()) == ["manifest.json", "whole.json"]
    assert not list(place.parent.glob("*.partial"))


def test_a_making_that_failed_can_be_tried_again_while_its_traceback_is_kept():
    """As in a notebook, which keeps the last one."""
    Halting.fails.append(True)
    with pytest.raises(RuntimeError) as kept:
        store.obtain(Halting())
    Halting.fails.clear()
    assert is_free(store.folder(Halting()))
    assert store.obtain(Halting()) == {"resumed": True}
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
    assert manifest == store.manifest(recipe)
    assert manifest["recipe"]["name"] == "Pair" and manifest["recipe"]["code_version"] == 1
    fields = manifest["recipe"]["fields"]
    assert fields["label"] == "two" and fields["first"]["fields"]["value"] == 2
    assert manifest["key"] == place.name == store.key(recipe)
    assert manifest["seed"] is None and manifest["device"] == host.device_name("cpu")
    assert manifest["cpu_seconds"] >= 0 and manifest["process_peak_mb"] > 10
    assert manifest["cuda_peak_mb"] is None
    digest = hashlib.sha256((place / "sum.json").read_bytes()).hexdigest()
    assert manifest["sha256"] == {"sum.json": digest}
    versions = manifest["versions"]
    assert versions.pop("Python") == platform.python_version()
    for library, version in versions.items():
        assert version == importlib.metadata.version(library)
    assert {"rrlib", "torch", "diffusers", "mujoco"} <= set(versions)
    assert store.manifest(Number(2.0))["seed"] == 7


def test_a_manifest_that_is_not_there_is_one_sentence():
    with pytest.raises(InputError, match=r"manifest\.json' cannot be read \(No such file"):
        store.manifest(Number())


def test_seconds_are_the_processors_and_an_artefacts_own(monkeypatch):
    """A part has a manifest of its own, and a wait for another process is nobody's."""
    now = [0.0]
    monkeypatch.setattr(meters, "_clock", lambda: now[0])

    def make(self, folder, device):
        now[0] += 1
        for part in (self.first, *self.rest):
            store.obtain(part)
        now[0] += 2

    def count(self, folder, device):
        now[0] += 10
        save_file({"value": torch.tensor(self.value)}, folder / "number.safetensors")

    monkeypatch.setattr(Pair, "make", make)
    monkeypatch.setattr(Pair, "load", lambda *_: None)
    monkeypatch.setattr(Number, "make", count)
    whole = Pair(Number(1.0), (Number(2.0), Number(1.0)))
    store.obtain(whole)
    assert store.manifest(whole)["cpu_seconds"] == 3 and now == [23]
    assert store.manifest(Number(2.0))["cpu_seconds"] == 10


def test_the_clock_is_the_processors_own_and_its_childrens(monkeypatch):
    times = os.times_result([5.0, 6.0, 0.25, 0.5, 1e9])  # user, system, children's, wall
    monkeypatch.setattr(os, "times", lambda: times)
    monkeypatch.setattr(meters.time, "process_time", lambda: 11.0)
    assert meters._clock() == 11.75


def test_memory_of_a_gpu_is_what_was_held_while_it_was_made(monkeypatch):
    held, peak = 100, 100  # MiB: an earlier network had 100

    def hold(change: int) -> None:
        nonlocal held, peak
        held += change
        peak = max(peak, held)

    def cuda_peak(device: str, restart: bool = False) -> int:
        nonlocal peak
        found, peak = peak, held if restart else peak
        return found * 2**20

    def make(self, folder, device):
        hold(20), hold(-10)
        store.obtain(self.first, device)
        hold(5)

    def part(self, folder, device):
        hold(3), hold(-3)
        save_file({"value": torch.tensor(self.value)}, folder / "number.safetensors")

    monkeypatch.setattr(meters, "_cuda_peak", cuda_peak)
    monkeypatch.setattr(host, "device_name", lambda device: device)
    monkeypatch.setattr(Pair, "make", make)
    monkeypatch.setattr(Pair, "load", lambda *_: None)
    monkeypatch.setattr(Number, "make", part)
    hold(-90)
    store.obtain(Pair(Number()), "cuda")
    assert store.manifest(Number(), "cuda")["cuda_peak_mb"] == 23
    assert store.manifest(Pair(Number()), "cuda")["cuda_peak_mb"] == 30


def git(folder: Path, *command: str) -> str:
    options = {"cwd": folder, "check": True, "capture_output": True, "text": True}
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *command], **options).stdout.strip()


@pytest.fixture
def stranger(tmp_path, monkeypatch) -> Path:
    """Somebody else's repository, with a commit."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "stranger"
    folder.mkdir()
    try:
        git(folder, "init", "-q")
    except OSError:
        pytest.skip("git is not here")
    (folder / "theirs").touch()
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "theirs")
    return folder


def test_the_commit_is_our_own_or_none(stranger, monkeypatch):
    """Installed inside another repository, its own checkout or not, or led astray by variables."""
    ours = COMMIT()
    for inside in ("venv/lib/site-packages", "."):
        place = stranger / inside / "rrlib"
        (place / "lab").mkdir(parents=True)
        for name in ("__init__.py", "lab/__init__.py", "lab/environment.py"):
            shutil.copy(ROOT / "rrlib" / name, place / name)
        told = "from rrlib.lab import environment; print(environment.commit())"
        show = [sys.executable, "-B", "-c", told]
        environment = {**os.environ, "PYTHONPATH": str(place.parent)}
        told = subprocess.run(show, env=environment, capture_output=True, text=True, cwd=stranger)
        assert told.stdout.strip() == "None", told.stderr
    monkeypatch.setenv("GIT_DIR", str(stranger / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(stranger))
    assert COMMIT() == ours


def test_the_commit_is_the_one_that_is_checked_out(stranger, monkeypatch):
    place = stranger / "rrlib/lab"
    place.mkdir(parents=True)
    shutil.copy(ROOT / "rrlib/lab/environment.py", place)
    git(stranger, "add", ".")
    git(stranger, "commit", "-qm", "ours")
    monkeypatch.setattr(host, "CHECKOUT", stranger.resolve())
    monkeypatch.setattr(host, "__file__", str(place / "environment.py"))
    assert COMMIT() == git(stranger, "rev-parse", "HEAD")
    (stranger / "theirs").write_text("changed")
    assert COMMIT() == git(stranger, "rev-parse", "HEAD") + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert COMMIT() is None


# Several processes at once


@dataclass(frozen=True)
class Work:
    """Says in a file whenever it is made, and waits in the middle until it may go on."""

    log: str
    seed: int = 0
    go_on: ClassVar = None
    half_way: ClassVar = None

    def make(self, folder: Path, device: str) -> None:
        with Path(self.log).open("a") as log:
            log.write("made\n")
        resumed = (folder / "half.json").exists()
        disk.write_json(folder / "half.json", 1)
        if self.half_way:
            self.half_way.set()
            self.go_on.wait()
        disk.write_json(folder / "whole.json", {"resumed": resumed})

    def load(self, folder: Path, device: str) -> dict:
        return json.loads((folder / "whole.json").read_text())


def wanting(recipe: Work, together, answers) -> None:
    together.wait()
    try:
        answers.put((os.getpid(), store.key(recipe), store.obtain(recipe)))
    except Exception as error:
        answers.put((os.getpid(), store.key(recipe), repr(error)))


def await_(event, *children) -> None:
    """Wait for an event that one of the children brings about, unless all have died."""
    while not event.wait(0.05):
        assert any(child.is_alive() for child in children)


@pytest.mark.lengthy
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("damaged", [False, True])
def test_six_processes_at_once_make_it_once(tmp_path, monkeypatch, damaged):
    """From a store that is not there yet, and from an artefact that has gone bad."""
    recipe = Work(str(tmp_path / "log"))
    made = 1
    if damaged:
        store.obtain(recipe)
        flipped(store.folder(recipe) / "whole.json")
        made = 2
    else:
        assert not store.root().exists()
    together, answers = FORK.Barrier(6), FORK.Queue()
    # What makes it does not end before all six have begun.
    monkeypatch.setattr(Work, "half_way", FORK.Event())
    monkeypatch.setattr(Work, "go_on", together_again := FORK.Event())
    children = [
        FORK.Process(target=wanting, args=(recipe, together, answers), daemon=True)
        for _ in range(6)
    ]
    for child in children:
        child.start()
    await_(Work.half_way, *children)
    together_again.set()
    found = [answers.get() for _ in children]
    for child in children:
        child.join()
    assert len({pid for pid, *_ in found}) == 6
    assert {key for _, key, _ in found} == {store.key(recipe)}
    assert all(told == {"resumed": False} for *_, told in found)
    assert (tmp_path / "log").read_text().splitlines() == ["made"] * made


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_killed_process_leaves_neither_a_lock_nor_a_whole(tmp_path, monkeypatch):
    recipe = Work(str(tmp_path / "log"))
    monkeypatch.setattr(Work, "half_way", FORK.Event())
    monkeypatch.setattr(Work, "go_on", FORK.Event())
    child = FORK.Process(target=store.obtain, args=(recipe,), daemon=True)
    child.start()
    await_(Work.half_way, child)
    assert not list(store.root().rglob("manifest.json"))
    with pytest.raises(OSError):  # the child has the lock
        is_free(store.folder(recipe))
    child.kill()
    child.join()
    monkeypatch.setattr(Work, "half_way", None)
    assert is_free(store.folder(recipe))
    assert store.obtain(recipe) == {"resumed": True}
    names = {path.name for path in store.folder(recipe).iterdir()}
    assert names == {"half.json", "whole.json", "manifest.json"}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_what_another_process_makes_is_left_for_later(tmp_path, monkeypatch):
    first, second = (Work(str(tmp_path / f"log{seed}"), seed) for seed in (0, 1))
    monkeypatch.setattr(Work, "half_way", FORK.Event())
    monkeypatch.setattr(Work, "go_on", FORK.Event())
    child = FORK.Process(target=store.obtain, args=(first,), daemon=True)
    child.start()
    await_(Work.half_way, child)
    goes_on = Work.go_on
    # We come while the child makes the first, make the second, and then let the child end.
    monkeypatch.setattr(Work, "half_way", goes_on)
    monkeypatch.setattr(Work, "go_on", goes_on)
    assert store.obtain_all([first, second]) == [{"resumed": False}] * 2
    child.join()
    logs = [(tmp_path / f"log{seed}").read_text().split() for seed in (0, 1)]
    assert logs == [["made"], ["made"]]


@pytest.mark.parametrize("path", sorted((ROOT / "rrlib").rglob("*.py")), ids=str)
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


def test_what_artefacts_took_is_in_hours_and_in_gigabytes(monkeypatch):
    took = {
        1.0: {"cpu_seconds": 1800.0, "cuda_peak_mb": None, "process_peak_mb": 512},
        2.0: {"cpu_seconds": 5400.0, "cuda_peak_mb": 3072, "process_peak_mb": 9999},
    }
    monkeypatch.setattr(store, "manifest", lambda recipe, device: took[recipe.value])
    assert store.spent([Number(1.0), Number(1.0)]) == (0.5, 0.5)
    assert store.spent([Number(1.0), Number(2.0)]) == (2.0, 3.0)  # of the GPU, where there is one
    assert store.spent([]) == (0.0, 0.0)
