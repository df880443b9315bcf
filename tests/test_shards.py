"""Shards on disk: a damaged one is noticed and made again, and nothing else is touched."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rrlib.errors import InputError
from rrlib.images import shards
from rrlib.images.comparisons import generate
from rrlib.images.shards import Shards

PROMPTS = ["a", "b", "c", "d", "e"]
OPTIONS = {"batch": 2, "seed": 0}


class Drift:
    """A sampler whose latents keep to a point of its own."""

    steps, shape = 3, (1, 2, 2)

    def __init__(self, place: float):
        self.place = place

    def condition(self, prompts, truncate):
        return torch.zeros(len(prompts))

    def start(self, n, generator):
        return torch.randn(n, *self.shape, generator=generator)

    def noise(self, x, step, texts, state):
        return x - self.place, None

    def advance(self, x, noise, step):
        return x - 0.5 * noise


PAIR = Drift(-1.0), Drift(1.0)


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "shards"
    place.mkdir()
    list(generate(place, *PAIR, PROMPTS, **OPTIONS))
    return place


def flipped(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 8
    path.write_bytes(content)


def unchecked(path: Path) -> None:
    """As an earlier rrlib wrote it."""
    save_file(load_file(path), path, {"mark": "x", "prompts": "5"})


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte less": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a bit of its mark": lambda path: flipped(path, path.read_bytes().index(b'"mark":"') + 20),
    "a bit of a shape": lambda path: flipped(path, path.read_bytes().index(b'"shape":[') + 9),
    "a bit of its end": lambda path: flipped(path, -1),
    "a bit of its middle": lambda path: flipped(path, -100),
    "unchecked": unchecked,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_set_aside_and_made_again(folder, damage, capsys):
    before = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    bad = folder / "shard-00001.safetensors"
    DAMAGES[damage](bad)
    with pytest.raises(InputError, match=r"shard-00001|holds"):
        Shards(folder).check()
    list(generate(folder, *PAIR, PROMPTS, **OPTIONS))
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and str(bad) in told[0]
    assert {path.name: path.read_bytes() for path in folder.glob("shard-*")} == before
    Shards(folder).check()
    assert Shards(folder).prompts == 5


def test_a_stopped_run_goes_on_to_the_same_bytes(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    list(islice(generate(other, *PAIR, PROMPTS, **OPTIONS), 2))
    stamps = {path.name: path.stat().st_mtime_ns for path in other.glob("shard-*")}
    list(generate(other, *PAIR, PROMPTS, **OPTIONS))
    assert all((other / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    for path in folder.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()


def test_shards_of_other_settings_are_refused_and_left(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for change in ({"seed": 1}, {"about": "another model"}):
        with pytest.raises(InputError, match="of other prompts or settings"):
            next(generate(folder, *PAIR, PROMPTS, **OPTIONS | change))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not shards.done(folder / "shard-00009.safetensors", "mark")
