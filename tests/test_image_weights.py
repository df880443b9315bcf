"""The miniature's shipped weights: written and read back, small, and of the committed recipe."""

import json
import random
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.images import pipelines
from rrlib.images.miniature import pipeline as miniature
from rrlib.images.miniature import scenes
from rrlib.images.miniature import weights as image_weights
from rrlib.images.miniature.pipeline import Size
from rrlib.lab.images.recipes import MiniDiffusion, hollow
from rrlib.tensor_files import write_tensors

TINY = Size(vae=(8, 8, 8), unet=(8, 16), text=16, layers=1)


@pytest.mark.lengthy
def test_what_is_written_is_read_back(tmp_path):
    base, tuned = (miniature.pipeline(TINY, scenes.WORDS, 0) for _ in range(2))
    with torch.no_grad():
        tuned.unet.conv_out.weight += 0.1
    image_weights.write(tmp_path, base, tuned, {"seed": 0})
    first, second = (image_weights.load(name, folder=tmp_path) for name in ("base", "hollow"))
    for name, value in base.unet.state_dict().items():
        assert_close(first.unet.state_dict()[name], value.half().float(), rtol=0, atol=0)
    for name, value in tuned.unet.state_dict().items():
        assert_close(second.unet.state_dict()[name], value.half().float(), rtol=0, atol=0)
    assert (tmp_path / "hollow.safetensors").stat().st_size < 4_000
    card = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    assert card.pop("sha256").keys() == {
        "card.json",
        *(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("pipeline/**/*.*")),
    }
    assert card == {"seed": 0}
    before = [image_weights.digest(name, tmp_path) for name in ("base", "hollow")]
    (tmp_path / "hollow.safetensors").write_bytes(b"other")
    after = [image_weights.digest(name, tmp_path) for name in ("base", "hollow")]
    assert before[0] == after[0] != before[1] != after[1]
    with pytest.raises(InputError, match=r"weights='other' is not allowed: 'base' or 'hollow'"):
        image_weights.load("other", folder=tmp_path)


@pytest.mark.lengthy
def test_the_shipped_weights_are_the_committed_recipes():
    card = json.loads((image_weights.FOLDER / "card.json").read_text(encoding="utf-8"))
    for name, recipe in (("base", MiniDiffusion()), ("hollow", hollow())):
        assert card[name]["recipe"] == json.loads(json.dumps(asdict(recipe)))
    base, tuned = (image_weights.load(name).unet.state_dict() for name in ("base", "hollow"))
    changed = {name for name, value in base.items() if not torch.equal(value, tuned[name])}
    assert changed and all(name.startswith(hollow().layers) for name in changed)


def test_all_that_is_shipped_is_small():
    files = [path for path in image_weights.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6e6
    assert {path.suffix for path in files} <= {".json", ".safetensors"}
    told = [path.read_text(encoding="utf-8") for path in files if path.suffix == ".json"]
    assert not any("_name_or_path" in text or str(Path.home()) in text for text in told)


@pytest.fixture
def shipped(tmp_path) -> Path:
    return Path(shutil.copytree(image_weights.FOLDER, tmp_path / "weights"))


@pytest.mark.lengthy
def test_a_flipped_bit_anywhere_is_noticed(shipped, monkeypatch):
    # Nothing may be opened before it has been checked.
    monkeypatch.setattr(pipelines, "load_pipeline", lambda *args: pytest.fail("opened"))
    draws = random.Random(0)
    names = sorted(path for path in shipped.rglob("*") if path.is_file())
    for path in names:
        if path.name == "hollow.safetensors":
            continue
        content = path.read_bytes()
        for _ in range(3):
            place = draws.randrange(len(content))
            flipped = bytearray(content)
            flipped[place] ^= 1 << draws.randrange(8)
            path.write_bytes(flipped)
            with pytest.raises(InputError, match=f"File '{path}' is damaged"):
                image_weights.load("base", folder=shipped)
        path.write_bytes(content)
    monkeypatch.undo()
    image_weights.load("hollow", folder=shipped)


@pytest.mark.lengthy
def test_a_flipped_bit_of_the_fine_tune_is_noticed(shipped):
    path = shipped / "hollow.safetensors"
    content = path.read_bytes()
    for place in (3, 700, len(content) - 9):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(InputError, match=f"File '{path}' is damaged"):
            image_weights.load("hollow", folder=shipped)
    write_tensors(path, {"elsewhere": torch.zeros(3)})
    with pytest.raises(InputError, match="does not fit the pipeline beside it: its 'elsewhere'"):
        image_weights.load("hollow", folder=shipped)
    path.unlink()
    for use in (image_weights.load, image_weights.digest):
        with pytest.raises(InputError, match=f"File '{path}' (does not exist|cannot be read)"):
            use("hollow", folder=shipped)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "card.json").unlink(), "card.json' cannot be read"),
        (lambda folder: (folder / "card.json").write_text("[]"), "it tells of no sha256"),
        (lambda folder: (folder / "card.json").write_text("{"), "a JSON file is needed"),
        (lambda folder: (folder / "card.json").write_text('{"sha256": 5}'), "tells of no sha256"),
        (lambda folder: (folder / "pipeline/x.json").write_text(""), "x.json' is none of the pipe"),
        (
            lambda folder: (folder / "pipeline/tokenizer/tokenizer.json").unlink(),
            "tokenizer.json' is missing",
        ),
        (
            lambda folder: shutil.rmtree(folder / "pipeline"),
            "model_index.json' is missing",
        ),
    ],
)
def test_a_folder_that_is_not_as_written_is_refused(shipped, change, message):
    change(shipped)
    with pytest.raises(InputError, match=message):
        image_weights.load("base", folder=shipped)
