"""The code in the prose pages runs, and does what the text around it says."""

import re
from pathlib import Path

import torch

from rrlib import miniature, pipelines, scenes, steering
from rrlib.denoisers import PlanNetwork, cosine_scheduler

ROOT = Path(__file__).resolve().parent.parent


def blocks() -> list[str]:
    """The code of the first page."""
    page = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)


def test_the_calls_for_two_pipelines(tmp_path, monkeypatch):
    size = miniature.Size(pixels=16, vae=(8, 16), unet=(16, 32), text=16, layers=1)
    for seed, name in enumerate(("model", "fine-tune")):
        made = miniature.pipeline(size, scenes.WORDS, seed)
        pipelines.save_pipeline(made, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    _, code = blocks()
    for large, small in (("6_000", "2"), ("batch=8", "batch=50"), ("(folder))", "(folder), 3)")):
        assert large in code
        code = code.replace(large, small)
    images = pipelines.decode(made, torch.randn(4, 4, 8, 8))
    names = {"prompts": scenes.prompts(50, 0), "images": images}
    exec(code, names)
    assert names["reward"].score(images, names["base"].pipeline).shape == (4,)


def test_the_three_calls_of_the_first_page():
    code, _ = blocks()
    for large, small in (("20_000", "64"), ("3_000", "3"), ("512", "16")):
        assert large in code
        code = code.replace(large, small)
    torch.manual_seed(0)
    names = {
        "network_1": PlanNetwork(6, (8, 16)),
        "network_2": PlanNetwork(6, (8, 16)),
        "scheduler": cosine_scheduler(10),
        "base_data": torch.rand(20, 32, 6) * 2 - 1,
        "expert_data": torch.rand(20, 32, 6) * 2 - 1,
    }
    exec(code, names)
    x, t = torch.rand(5, 32, 6), torch.arange(5)
    assert names["reward"](x, t).shape == (5,)
    drawn = steering.sample(names["base"], (2, 32, 6), torch.Generator(), reward=names["reward"])
    assert torch.isfinite(drawn).all()
