"""HDF5 files of any kind: one sentence or the right values, no other file, no dead process."""

import fcntl
import os
import warnings
from functools import partial

import h5py
import numpy as np
import pytest

from rrlib.errors import DataWarning, InputError
from rrlib.plans import hdf5
from rrlib.plans import trajectories as tr

M = 40
ENDS = np.arange(M) % 20 == 19


def make(m: int = M, seed: int = 0) -> tr.Trajectories:
    rng = np.random.default_rng(seed)
    return tr.Trajectories(
        rng.normal(size=(m, 4)).astype("f4"),
        rng.uniform(-1, 1, (m, 2)).astype("f4"),
        rng.normal(size=m).astype("f4"),
        np.zeros(m, dtype=bool),
        np.arange(m) % 20 == 19,
    )


def read(path) -> tr.Trajectories:
    return tr.read(path, 4, 2)


@pytest.fixture
def file(tmp_path):
    """A good file, open to be spoilt."""
    tr.write_hdf5(tmp_path / "data.hdf5", make())
    with h5py.File(tmp_path / "data.hdf5", "r+") as found:
        yield found


def refused(file: h5py.File, words: str) -> None:
    path = file.filename
    file.close()
    with pytest.raises(InputError, match=words) as caught:
        read(path)
    said = str(caught.value)
    assert said.startswith("Dataset '") and "\n" not in said and said.endswith(".")


# Disks


@pytest.mark.parametrize(
    ("form", "rows", "fits"),
    [
        ("d4rl", 1_000, True),
        *(("d4rl", rows, False) for rows in (2_150, 2_500, 20_000)),
        ("minari", 40, True),
        *(("minari", rows, False) for rows in (300, 500, 1_000)),
    ],
)
def test_a_full_disk_ends_in_a_sentence_and_not_the_process(
    small_disk, monkeypatch, form, rows, fits
):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(small_disk))
    place, data = small_disk / "data-v0", make(rows)
    if form == "d4rl":
        write = partial(tr.write_hdf5, place, data)
    else:
        write = partial(tr.write_minari, "data-v0", data, "For a small disk.")
    if fits:
        write()
        np.testing.assert_array_equal(read(place).actions, data.actions)
    else:
        with pytest.raises(InputError, match=r"data-v0' cannot be written \(No space left on"):
            write()
        assert list(small_disk.iterdir()) == []


# Damage


def outcome(path) -> str:
    """What reading ends in; anything but data and one sentence is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        try:
            found = read(path)
        except InputError as error:
            assert "\n" not in str(error) and str(error).endswith(".")
            return "refused"
    for array in found.arrays().values():
        assert len(array) == len(found.actions) and np.isfinite(array).all()
    return "read"


@pytest.mark.lengthy
@pytest.mark.parametrize("form", ["d4rl", "minari"])
def test_any_damage_ends_in_a_sentence_or_in_data(tmp_path, monkeypatch, form):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    if form == "d4rl":
        tr.write_hdf5(tmp_path / "whole", make())
        whole = (tmp_path / "whole").read_bytes()
    else:
        folder = tr.write_minari("whole-v0", make(), "To be spoilt.")
        whole = (folder / "data/main_data.hdf5").read_bytes()
    rng = np.random.default_rng(0)
    outcomes = []
    for k in range(300 if form == "d4rl" else 200):
        content = bytearray(whole)
        if k % 3 == 0:  # a piece of zeros, ones or noise
            at, length = rng.integers(len(whole)), rng.integers(1, 64)
            noise = rng.integers(256, size=64).astype(np.uint8)
            piece = noise if k % 2 else np.full(64, rng.choice([0, 255]), np.uint8)
            content[at : at + length] = piece[:length].tobytes()
        elif k % 3 == 1:  # what HDF5 steers by is in the first few kB
            for at in rng.integers(min(len(whole), 4096), size=rng.integers(1, 4)):
                content[at] = rng.integers(256)
        else:
            content = content[: rng.integers(len(whole))] if k % 2 else content
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        (tmp_path / "spoilt").write_bytes(content)
        outcomes.append(outcome(tmp_path / "spoilt"))
    assert {"read", "refused"} == set(outcomes)


# Other files and what is no file


def test_links_are_not_followed(file, tmp_path):
    tr.write_hdf5(tmp_path / "other.hdf5", make(seed=1))
    del file["actions"]
    file["actions"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/actions")
    refused(file, "has a link in place of '/actions': allowed is what is in the file itself")


@pytest.mark.parametrize("key", ["observations", "rewards", "timeouts"])
@pytest.mark.parametrize("target", ["/actions", "/nowhere", "/itself"])
def test_soft_links_are_no_arrays(file, key, target):
    del file[key]
    file[key] = h5py.SoftLink(target if target != "/itself" else f"/{key}")
    refused(file, f"has a link in place of '/{key}'")


def test_a_link_to_a_pipe_does_not_wait_for_it(file, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    del file["observations"]
    file["observations"] = h5py.ExternalLink(str(tmp_path / "pipe"), "/observations")
    refused(file, "has a link in place of '/observations'")


@pytest.mark.parametrize("target", [h5py.SoftLink("/episode_0"), h5py.ExternalLink("no", "/x")])
def test_an_episode_that_is_a_link_is_refused(tmp_path, target):
    with h5py.File(tmp_path / "m.hdf5", "w") as file:
        file["episode_0"] = target
        refused(file, "has a link in place of '/episode_0'")


@pytest.mark.parametrize("thing", ["array", "type"])
def test_an_episode_that_is_no_group_is_refused(tmp_path, thing):
    with h5py.File(tmp_path / "m.hdf5", "w") as file:
        file["episode_0"] = np.zeros(3) if thing == "array" else np.dtype("f4")
        refused(file, "has an episode that is no group")


def test_external_storage_is_not_read(file, tmp_path):
    (tmp_path / "secret").write_bytes(b"root" * M)
    del file["rewards"]
    file.create_dataset("rewards", (M,), "f4", external=[(str(tmp_path / "secret"), 0, 4 * M)])
    refused(file, "keeps '/rewards' in other files: allowed is an array in the file itself")


def test_virtual_arrays_are_not_read(file, tmp_path):
    tr.write_hdf5(tmp_path / "other.hdf5", make(seed=1))
    layout = h5py.VirtualLayout((M, 2), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "actions", (M, 2))
    del file["actions"]
    file.create_virtual_dataset("actions", layout)
    refused(file, "keeps '/actions' in other files")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/dev/zero", "'/dev/zero' is neither a file nor a folder"),
        ("/dev/null", "is neither a file nor a folder"),
        ("pipe", "is neither a file nor a folder"),
        ("", r"is a folder without data/main_data\.hdf5"),
        ("x" * 300, r"cannot be looked at \(File name too long\)"),
        ("y" * 5_000, r"cannot be looked at \(File name too long\).*"),
        ("~nosuchuser/x", "cannot be looked at|is missing"),
        ("loop", "is missing|cannot be looked at"),
        ("dangling", "is missing"),
        ("nul\0", "is missing"),
    ],
)
def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    os.symlink("gone", "dangling")
    with pytest.raises(InputError, match=words) as caught:
        read(path)
    assert len(str(caught.value)) < 600


# Sizes


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "SMALL", 10**6)
    with h5py.File(tmp_path / "bomb.hdf5", "w") as file:
        for key, shape in (("observations", (4,)), ("actions", (2,)), ("rewards", ())):
            zeros = np.zeros((200_000, *shape), "f4")
            file.create_dataset(key, data=zeros, compression="gzip", compression_opts=9)
        for key in ("terminals", "timeouts"):
            file.create_dataset(key, data=np.zeros(200_000, bool), compression="gzip")
        refused(file, r"declares arrays of 0\.006 GB in [\d,]+ bytes: allowed is 100 times")


@pytest.mark.parametrize("rows", [10**6, 10**8, 10**9, 2**40])
def test_rows_that_were_never_written_are_refused(file, rows):
    for key, width in (("observations", (4,)), ("actions", (2,)), ("rewards", ())):
        del file[key]
        file.create_dataset(key, (rows, *width), "f4", chunks=(100, *width))
    refused(file, rf"declares '/observations' of shape \({rows}, 4\) but does not hold all of it")


def test_an_array_that_was_never_written_is_not_taken_for_zeros(file):
    del file["timeouts"]
    file.create_dataset("timeouts", (M,), bool)
    refused(file, r"declares '/timeouts' of shape \(40,\) but does not hold all of it")


def test_a_large_chunk_counts_whole(file, monkeypatch):
    monkeypatch.setattr(hdf5, "SMALL", 10**6)
    del file["rewards"]
    most = {"maxshape": (None,), "chunks": (2**20,), "compression": "gzip"}
    file.create_dataset("rewards", data=np.zeros(M, "f4"), **most)
    refused(file, r"declares arrays of 0\.00\d+ GB in")


def test_more_than_memory_is_refused_with_what_it_would_cost(file, monkeypatch):
    sizes = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 1_000}
    monkeypatch.setattr(hdf5.os, "sysconf", sizes.__getitem__)
    refused(file, r"needs 7e-06 GB of memory, and this machine has 1e-06")


def test_marks_that_compress_well_are_no_bomb(tmp_path):
    data = make(20_000)
    with h5py.File(tmp_path / "d.hdf5", "w") as file:
        for key, array in data.arrays().items():
            file.create_dataset(key, data=array, compression="gzip", shuffle=True, fletcher32=True)
    found = read(tmp_path / "d.hdf5")
    for key, array in data.arrays().items():
        np.testing.assert_array_equal(found.arrays()[key], array)


def test_an_unknown_filter_is_refused(file, monkeypatch):
    del file["rewards"]
    file.create_dataset("rewards", data=np.zeros(M, "f4"), chunks=(M,), compression="lzf")
    available = h5py.h5z.filter_avail
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: code != 32000 and available(code))
    refused(file, "has '/rewards' compressed by filter 32000, which is not installed here")


def test_no_shape_at_all_and_odd_types_are_refused(file):
    del file["rewards"]
    file["rewards"] = h5py.Empty("f4")
    refused(file, r"has '/rewards' of shape None: allowed is M")


@pytest.mark.parametrize("kind", ["S3", "c8", [("a", "f4")], h5py.vlen_dtype("f4")])
def test_what_is_no_number_is_refused(file, kind):
    del file["actions"]
    file.create_dataset("actions", (M, 2), kind)
    refused(file, "has '/actions' of type .*: allowed is numbers")


def test_a_file_that_something_else_writes_says_so(tmp_path):
    tr.write_hdf5(tmp_path / "data.hdf5", make())
    with (tmp_path / "data.hdf5").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"cannot be read \(Resource temp.*nothing else is"):
            read(tmp_path / "data.hdf5")
