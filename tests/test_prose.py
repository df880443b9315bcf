"""The code in the prose pages runs, and does what the text around it says."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from torch import Tensor

import rrlib
from rrlib.images import pipelines
from rrlib.images.miniature import pipeline as miniature
from rrlib.images.miniature import scenes
from rrlib.method.noise.schedulers import cosine_scheduler
from rrlib.plans.networks import temporal_unet

ROOT = Path(__file__).resolve().parent.parent


def blocks(name: str = "intro") -> list[str]:
    """The code of a page, the first by default."""
    page = (ROOT / "book" / f"{name}.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)


def test_the_readme_has_the_first_pages_sample():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first, _ = blocks()
    assert first in readme
    assert len(first.splitlines()) <= 7 and first.count("import") == 1


@pytest.mark.lengthy
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


@pytest.fixture
def image_names(tmp_path, monkeypatch) -> dict:
    """What the page on pipelines begins with, in a folder with all that it names."""
    for name, seed in (("model", 0), ("fine-tune", 1)):
        pipelines.save_pipeline(tiny.stable_diffusion(seed), tmp_path / name)
    for name, seed in (("digits", 0), ("even", 1)):
        pipelines.save_pipeline(tiny.unconditional(seed), tmp_path / name)
    adapted = tiny.stable_diffusion(0)
    config = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    adapted.unet.add_adapter(config, adapter_name="any")
    layers = get_peft_model_state_dict(adapted.unet, adapter_name="any")
    adapted.save_lora_weights(tmp_path, unet_lora_layers=layers, weight_name="lora.safetensors")
    for name in ("one.png", "two.jpg"):
        Image.new("RGB", (20, 30), "red").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    images = [Image.new("RGB", (9, 9)), Image.new("RGB", (16, 20), "blue")]
    names = {"prompts": ["red circle", "blue square"] * 6, "images": images}
    exec(blocks("pipelines")[0], names)
    return names


SHORTER = (
    ("6_000", "2"),
    ("2_000", "12"),
    ("batch=100", "batch=12"),
    ("batch=8", "batch=12"),
    ("Fit(", "Fit(0.5, (8,), "),
    ("channels=(32, 64), ", ""),
    ("(name)) for", "(name), 3) for"),
    ("(name), 25)", "(name), 3)"),
    ("whole, ", "whole, 3, "),
)


def shortened(code: str) -> str:
    """The same code, of fewer and smaller steps."""
    for large, small in SHORTER:
        code = code.replace(large, small)
    return code


@pytest.mark.lengthy
def test_the_page_on_pipelines(image_names):
    _, pair, lora, digits, use = blocks("pipelines")
    for code in (pair, lora, digits):
        assert len(code.splitlines()) <= 6
        exec(shortened(code), image_names)
        assert image_names["reward"].about["held_out"]
    assert image_names["scores"].shape == (2,)
    exec(use, image_names)
    assert len(image_names["pictures"]) == 4 and image_names["scores"].shape == (2,)


# Two humps of plans [32, 6], of which the expert prefers the first, both a little moved.
DEVIATION = 0.3
HUMPS = {"base": ((0.5, 0.5), 0.0), "expert": ((0.85, 0.15), 1.5)}


def humps(name: str) -> tuple[Tensor, Tensor]:
    """Log weights [2] and means [2, 32, 6] of one side's mixture."""
    weights, moved = HUMPS[name]
    directions = torch.randn(3, 32, 6, generator=torch.Generator().manual_seed(0))
    directions *= DEVIATION / directions.flatten(1).norm(dim=1)[:, None, None]
    return torch.tensor(weights).log(), 3 * directions[:2] + moved * directions[2]


def plans(name: str, n: int, seed: int) -> Tensor:
    """Plans [n, 32, 6] of one side."""
    generator = torch.Generator().manual_seed(seed)
    logs, means = humps(name)
    which = torch.multinomial(logs.exp(), n, True, generator=generator)
    return means[which] + DEVIATION * torch.randn(n, 32, 6, generator=generator)


def log_parts(name: str, x: Tensor, abar: Tensor) -> tuple[Tensor, Tensor]:
    """Log of each hump's share of the density of noised plans, [n, 2], and x less its mean."""
    logs, means = humps(name)
    off = x[:, None] - abar.sqrt() * means
    variance = abar * DEVIATION**2 + 1 - abar
    return logs - (off.square() / (2 * variance)).sum((2, 3)), off / variance


def exact(name: str, scheduler) -> Callable[[Tensor, Tensor], Tensor]:
    """E[x_0 | x_t] of one side, as a network says it."""

    def x0(x: Tensor, t: Tensor) -> Tensor:
        abar = scheduler.alphas_cumprod[t][:, None, None, None]
        logs, pull = log_parts(name, x, abar)
        score = -(logs.softmax(1)[..., None, None] * pull).sum(1)
        return (x + (1 - abar[:, 0]) * score) / abar[:, 0].sqrt()

    return x0


@pytest.mark.slow
def test_the_calls_of_the_first_page_find_a_known_log_ratio(tmp_path, monkeypatch):
    """With the page's own settings, a third of its steps and of its points."""
    code, _ = blocks()
    for large, small in (("20_000", "7_000"), ("1_500", "500")):
        assert large in code
        code = code.replace(large, small)
    monkeypatch.chdir(tmp_path)
    scheduler = cosine_scheduler(50)
    names = {
        "network_1": exact("base", scheduler),
        "network_2": exact("expert", scheduler),
        "scheduler": scheduler,
        "base_data": plans("base", 3000, 1),
        "expert_data": plans("expert", 3000, 2),
    }
    exec(code, names)
    x = torch.cat([plans("base", 300, 3), plans("expert", 300, 4)])
    clean = torch.ones(len(x), 1, 1, 1)
    of_base, of_expert = (log_parts(name, x, clean)[0].logsumexp(1) for name in HUMPS)
    with torch.no_grad():
        found = names["reward"](x, torch.zeros(len(x), dtype=torch.long))
    truth = of_expert - of_base
    assert torch.corrcoef(torch.stack([found, truth]))[0, 1] >= 0.97
    slope = ((found - found.mean()) * (truth - truth.mean())).mean() / truth.var()
    assert 0.5 < slope < 1.5  # in nats
    assert names["steered"].shape == (64, 32, 6) and torch.isfinite(names["steered"]).all()
    again = rrlib.load_reward("reward.safetensors")
    with torch.no_grad():
        kept = again(x, torch.zeros(len(x), dtype=torch.long))
    torch.testing.assert_close(kept, found, rtol=1e-2, atol=1e-2)
    # Steered by its own reward the base draws more of what the expert prefers.
    first = [
        log_parts("base", drawn, clean[: len(drawn)])[0].softmax(1)[:, 0].mean()
        for drawn in (rrlib.sample(names["base"], (64, 32, 6), seed=1), names["steered"])
    ]
    assert first[1] > first[0] + 0.1


# The page on models of one's own


class Told(torch.nn.Module):
    """A small network under a condition, which any diffusion model may have been."""

    def __init__(self, side: float):
        super().__init__()
        self.side = side

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return 0.5 * x + self.side * condition[:, None, :2]


def unet(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return temporal_unet(
        6,
        6,
        (32, 64),
        act_fn="mish",
        norm_num_groups=8,
        downsample_each_block=False,
        up_block_types=("UpResnetBlock1D",),
        mid_block_type="MidResTemporalBlock1D",
        out_block_type="OutConv1DBlock",
    )


@pytest.mark.lengthy
def test_the_calls_for_two_models_of_ones_own():
    ddpm = cosine_scheduler(30, clip=False)
    ruler = rrlib.Normaliser(np.float32([-2, -1]), np.float32([2, 1]))
    names = {
        "scheduler": ddpm,
        "unet_1": unet(0),
        "unet_2": unet(1),
        "base_data": torch.randn(50, 16, 6),
        "expert_data": torch.randn(50, 16, 6),
        "velocity": lambda x, s: 0.3 * x,
        "network": lambda x, t: 0.4 * x + 0.1,
        "points_1": torch.randn(200, 2),
        "points_2": torch.randn(200, 2) + 0.3,
        "ruler_1": ruler,
        "ruler_2": rrlib.Normaliser(2 * ruler.low, 2 * ruler.high),
        "network_1": lambda x, t: 0.4 * x,
        "network_2": lambda x, t: 0.4 * x + 0.1,
        "policy_1": Told(-0.3),
        "policy_2": Told(0.3),
        **{f"chunks_{k}": torch.randn(60, 8, 2) for k in (1, 2)},
        **{f"seen_{k}": torch.rand(60, 4) for k in (1, 2)},
        "observation": torch.rand(5, 4),
        "planner_1": rrlib.Denoiser(lambda x, t: 0.4 * x, ddpm),
        "planner_2": rrlib.Denoiser(lambda x, t: 0.4 * x + 0.1, ddpm),
        **{f"plans_{k}": torch.rand(60, 16, 6) for k in (1, 2)},
        "first": torch.rand(7, 4),
    }
    codes = blocks("models")
    assert len(codes) == 5
    for code in codes:
        assert len(code.split("import rrlib\n\n", 1)[1].splitlines()) <= 6
        for large, small in (("steps=200", "steps=20"), ("n=2_000", "n=400")):
            code = code.replace(large, small)
        exec(code, names)
        assert names["pairs"].x.isfinite().all()
    assert names["factor"] == 0.5 and names["expert"].schedule.prediction == "sample"
    assert names["actions"].shape == (5, 8, 2)
    assert torch.equal(names["plans"][:, 0, 2:], names["first"])
