"""What is shipped is refused once a bit of it is wrong, whatever reads it."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rrlib.errors import InputError
from rrlib.images import pairs as image_pairs
from rrlib.images.miniature import weights as image_weights
from rrlib.lab.locomotion import files as locomotion_files
from rrlib.locomotion import actors, robots
from rrlib.method.reward_files import load_rewards
from rrlib.tensor_files import read_tensors

FULL = Path(__file__).resolve().parent.parent / "results" / "full"
READERS: dict[Path, Callable] = {
    FULL / "maze2d-rewards.safetensors": load_rewards,
    FULL / "maze2d-step-rewards.safetensors": load_rewards,
    FULL / "maze2d-maps.safetensors": read_tensors,
    FULL / "locomotion-models.safetensors": locomotion_files.read,
    image_weights.FOLDER / "hollow.safetensors": read_tensors,
} | {FULL / f"images-{kind}.safetensors": image_pairs.load for kind in ("safe", "style", "rival")}
TRIALS = 10  # flips of each file


def test_every_shipped_file_of_tensors_is_tried_here():
    found = {*FULL.rglob("*.safetensors"), *image_weights.FOLDER.glob("*.safetensors")}
    assert found == {*READERS}


@pytest.mark.lengthy
@pytest.mark.parametrize("path", READERS, ids=lambda path: path.stem)
def test_a_shipped_file_with_one_wrong_bit_is_refused(path, tmp_path):
    content, wrong = path.read_bytes(), tmp_path / path.name
    header = 8 + int.from_bytes(content[:8], "little")
    draws = random.Random(path.name)
    places = [draws.randrange(header) for _ in range(TRIALS // 2)]  # names, shapes, texts
    places += [draws.randrange(header, len(content)) for _ in range(TRIALS // 2)]
    for at in places:
        changed = bytearray(content)
        changed[at] ^= 1 << draws.randrange(8)
        wrong.write_bytes(changed)
        with pytest.raises(InputError, match=path.name):
            READERS[path](wrong)


@pytest.mark.lengthy
@pytest.mark.parametrize("path", READERS, ids=lambda path: path.stem)
def test_a_shipped_file_that_is_cut_or_renamed_inside_is_refused(path, tmp_path):
    content, wrong = path.read_bytes(), tmp_path / path.name
    for changed in (b"", bytes(1000), content[: len(content) // 2], content[:-1], content + b"x"):
        wrong.write_bytes(changed)
        with pytest.raises(InputError, match=path.name):
            READERS[path](wrong)
    tensors = load_file(path)
    first, *others = tensors
    texts = {"sha256": "0" * 64} | read_tensors(path)[1]
    save_file({f"{first}x": tensors[first]} | {k: tensors[k] for k in others}, wrong, texts)
    with pytest.raises(InputError, match="checksum"):
        READERS[path](wrong)
    with pytest.raises(InputError, match="does not exist"):
        READERS[path](tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", robots.ENVIRONMENTS)
def test_policies_with_one_wrong_bit_are_refused(name, tmp_path, monkeypatch):
    """Their cards have the sha256 of the whole file."""
    world = robots.load(name)
    content = actors.policy_file(world).read_bytes()
    shutil.copy(actors.policy_file(world).with_suffix(".json"), tmp_path)
    monkeypatch.setattr(actors, "POLICIES", tmp_path)
    draws = random.Random(name)
    for _ in range(TRIALS):
        changed = bytearray(content)
        changed[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        actors.POLICIES.joinpath(f"{name}.safetensors").write_bytes(changed)
        with pytest.raises(InputError, match="is damaged"):
            actors.load_policies(world)


def test_what_is_shipped_is_finite():
    for path in READERS:
        if path.stem != "maze2d-maps":  # walls have no reward
            for name, value in read_tensors(path)[0].items():
                assert torch.isfinite(value).all(), (path.name, name)
