"""The miniature's shipped weights: written and read back, small, and of the committed recipe."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from rrlib import image_weights, miniature, scenes
from rrlib.errors import InputError
from rrlib.image_recipes import MiniDiffusion, hollow
from rrlib.miniature import Size

TINY = Size(vae=(8, 8, 8), unet=(8, 16), text=16, layers=1)


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
    assert json.loads((tmp_path / "card.json").read_text()) == {"seed": 0}
    before = [image_weights.digest(name, tmp_path) for name in ("base", "hollow")]
    (tmp_path / "hollow.safetensors").write_bytes(b"other")
    after = [image_weights.digest(name, tmp_path) for name in ("base", "hollow")]
    assert before[0] == after[0] != before[1] != after[1]
    with pytest.raises(InputError, match=r"weights='other' is not allowed: 'base' or 'hollow'"):
        image_weights.load("other", folder=tmp_path)


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
