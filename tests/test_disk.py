"""Files appear whole or not at all, and a damaged one is noticed."""

import os

import IPython  # noqa: F401 (a kernel has it loaded)
import pytest
import torch
from safetensors.torch import save_file

from rrlib import disk
from rrlib.disk import (
    atomic,
    read_json,
    read_sealed,
    reason,
    say,
    set_aside,
    write_json,
    write_sealed,
)
from rrlib.errors import InputError, shown
from rrlib.tensor_files import read_tensors, write_tensors

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "none": torch.zeros(0, 2),
    "one": torch.tensor(True),
}


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"b": 1, "a": "é"})
    assert (tmp_path / "new/a.json").read_text("utf-8") == '{\n "a": "é",\n "b": 1\n}\n'
    assert read_json(tmp_path / "new/a.json") == {"a": "é", "b": 1}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError(28, "full")])
def test_a_failed_write_leaves_what_was_there(tmp_path, error):
    (tmp_path / "a").write_text("old")
    expected = InputError if isinstance(error, OSError) else error
    with pytest.raises(expected), atomic(tmp_path / "a") as temporary:
        temporary.write_text("ne")
        raise error
    assert left(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_folder_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    with atomic(tmp_path / "a") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert left(tmp_path) == ["a"] and left(tmp_path / "a") == ["new"]


@pytest.mark.parametrize("fails", ["_sync_one", "replace"])
def test_a_folder_that_cannot_be_finished_leaves_what_was_there(tmp_path, monkeypatch, fails):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    module, name = (disk, fails) if fails == "_sync_one" else (os, fails)
    true, calls = getattr(module, name), []

    def refuses(*given):
        calls.append(given)
        if fails == "_sync_one" or len(calls) == 2:  # once the old one has been moved away
            raise OSError(28, "No space left on device")
        return true(*given)

    monkeypatch.setattr(module, name, refuses)
    with pytest.raises(InputError, match="No space left"), atomic(tmp_path / "a") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert calls and left(tmp_path) == ["a"] and left(tmp_path / "a") == ["old"]


@pytest.mark.parametrize("folder", [True, False])
def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, folder):
    events, true = [], os.replace
    monkeypatch.setattr(disk, "_sync_one", lambda path: events.append(("sync", path.name)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(("name", b.name)), true(a, b)))
    with atomic(tmp_path / "a") as temporary:
        if folder:
            temporary.mkdir()
        (temporary / "part" if folder else temporary).write_text("new")
    written = "part" if folder else temporary.name
    assert ("sync", written) in events[: events.index(("name", "a"))]
    assert events[-1] == ("sync", tmp_path.name)


def test_two_writers_use_two_names(tmp_path):
    with atomic(tmp_path / "a") as one, atomic(tmp_path / "a") as two:
        assert one != two and str(os.getpid()) in one.name
        one.write_text("1"), two.write_text("2")
    assert left(tmp_path) == ["a"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/a' cannot be written \(File exists\): a path"):
        write_json(tmp_path / "file" / "a", 1)


def test_whom_the_umask_lets_read_may_read(tmp_path, monkeypatch):
    for umask, mode in ((0o022, 0o644), (0o027, 0o640), (0o077, 0o600)):
        monkeypatch.setattr("rrlib.disk.UMASK", umask)
        write_tensors(tmp_path / "a", TENSORS)
        with atomic(tmp_path / "b") as temporary:
            temporary.mkdir()
            save_file(TENSORS, temporary / "c")
        for name in ("a", "b/c"):
            assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_a_full_disk_is_one_sentence(small_disk):
    for write in (
        lambda: write_json(small_disk / "a", "x" * 200_000),
        lambda: write_tensors(small_disk / "a", {"a": torch.zeros(50_000)}),
    ):
        with pytest.raises(InputError, match=r"No space left on device.*is needed\.$"):
            write()
        assert left(small_disk) == []


def test_tensors_come_back_as_they_were(tmp_path):
    write_tensors(tmp_path / "a", TENSORS, {"about": "b"})
    tensors, about = read_tensors(tmp_path / "a")
    assert about == {"about": "b"}
    torch.testing.assert_close(tensors, TENSORS, rtol=0, atol=0)


@pytest.mark.parametrize("at", [0, 5, 40, 200, -1, -20])
def test_a_flipped_bit_is_noticed(tmp_path, at):
    write_tensors(tmp_path / "a", TENSORS, {"about": "b"})
    content = bytearray((tmp_path / "a").read_bytes())
    content[at] ^= 4
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match=r"damaged|checksum"):
        read_tensors(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"{}", b"text that is no file of tensors"])
def test_what_is_no_file_of_tensors_is_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        read_tensors(tmp_path / "a")


def test_a_file_without_checksum_is_refused_unless_allowed(tmp_path):
    save_file(TENSORS, tmp_path / "a")
    with pytest.raises(InputError, match="no checksum"):
        read_tensors(tmp_path / "a")
    assert set(read_tensors(tmp_path / "a", allow_unchecked=True)[0]) == set(TENSORS)


def test_the_same_tensors_are_the_same_bytes(tmp_path):
    texts = {f'{k} é \\ "\n\x7f': str(k) for k in range(8)}
    for name in "ab":
        write_tensors(tmp_path / name, TENSORS, texts)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_tensors(tmp_path / "a")[1] == texts
    header = (tmp_path / "a").read_bytes()[8:].decode("utf-8", "replace")
    assert header.index('"0 ') < header.index('"3 ') < header.index('"7 ') < header.index("sha256")


@pytest.mark.parametrize("folder", [False, True])
def test_what_is_damaged_is_set_aside_once_more_and_never_over_another(tmp_path, capsys, folder):
    for number in range(3):
        place = tmp_path / "a"
        place.mkdir() if folder else place.touch()
        set_aside(place, f"reason {number}")
        assert not place.exists()
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and f"reason {number}" in told and "made again" in told
    assert left(tmp_path) == [".a.damaged", ".a.damaged-2", ".a.damaged-3"]


def test_a_batch_kernel_keeps_its_lines_for_the_card(monkeypatch, capsys):
    class Shell:
        kernel = object()

    monkeypatch.setattr("rrlib.disk.UNSAID", unsaid := [])
    monkeypatch.setattr("IPython.get_ipython", Shell)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    say("a line")
    assert unsaid == ["a line"] and capsys.readouterr().err == ""
    monkeypatch.setenv("JPY_SESSION_NAME", "somebody watches")
    say("another")
    assert unsaid == ["a line"] and capsys.readouterr().err == "another\n"


@pytest.mark.parametrize("content", [b"{", b"\xff", b""])
def test_a_damaged_json_names_its_file(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json' is damaged"):
        read_json(tmp_path / "a.json")


def test_an_object_with_a_checksum_is_what_was_written_or_refused(tmp_path):
    path, content = tmp_path / "a.json", {"share": 0.9375, "é": [1, None]}
    write_sealed(path, content)
    assert read_sealed(path) == content
    for old, new in (("0.9375", "0.9365"), ('"é"', '"e"'), ("checksum", "checksun"), ("{", "[{")):
        write_sealed(path, content)
        path.write_text(path.read_text("utf-8").replace(old, new, 1) + "]" * (new == "[{"), "utf-8")
        with pytest.raises(InputError, match=r"a\.json' is damaged: its content is not what"):
            read_sealed(path, allow_unsealed=True) if "sun" not in new else read_sealed(path)
    write_json(path, content)
    assert read_sealed(path, allow_unsealed=True) == content
    with pytest.raises(InputError, match="damaged"):
        read_sealed(path)


def test_a_librarys_reason_has_no_address():
    said = reason(ValueError("malformed node: <ast.Name object at 0x7f2c4c3c2650>"))
    assert said == "malformed node: <ast.Name>"


def test_long_values_are_cut():
    assert shown("short") == "'short'"
    assert len(shown("9" * 5000)) < 180 and "5002 characters" in shown("9" * 5000)
    assert shown(10**5000).endswith(" bits")


def test_a_checksum_under_a_damaged_name_is_no_file_of_before_there_was_one(tmp_path):
    path = tmp_path / "a.json"
    write_sealed(path, {"sha": "0" * 64, "b": [1, 2]})
    assert read_sealed(path, allow_unsealed=True) == {"sha": "0" * 64, "b": [1, 2]}
    path.write_text(path.read_text("utf-8").replace("checksum", "chebksum"), encoding="utf-8")
    with pytest.raises(InputError, match="is damaged"):
        read_sealed(path, allow_unsealed=True)
    write_json(path, {"sha": "0" * 64, "b": [1, 2]})  # of before there was one
    assert read_sealed(path, allow_unsealed=True)["b"] == [1, 2]
