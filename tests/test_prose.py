"""The code in the prose pages runs, and does what the text around it says."""

import re
from pathlib import Path

import torch

from rrlib import steering
from rrlib.denoisers import PlanNetwork, cosine_scheduler

ROOT = Path(__file__).resolve().parent.parent


def test_the_three_calls_of_the_first_page():
    page = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
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
