"""Parameters of the chapters about images, and what they cost; nothing slow is imported."""

import math
from pathlib import Path
from types import SimpleNamespace

from rrlib import disk
from rrlib.errors import InputError
from rrlib.lab import parameters as rules
from rrlib.lab.costs import CUDA, Cost

# What the chapters' parameters may be; their meaning stands beside each in the chapters.
CONFIGURATIONS = "weak", "medium", "strong", "max"  # of safe guidance
PIPELINES = {  # of both chapters
    "model_id": rules.text(),
    "prompts": rules.existing_file_or_empty(),
    "concept": rules.text(),
    "steps": rules.integer(1, 1000),
    "guidance": rules.real(1, 100),
    "batch": rules.integer(1, 10_000),
    "truncate": rules.boolean(),
    "blur": rules.boolean(),
    "dtype": rules.one_of("float32", "float16"),
    **rules.shared(),
}
SAMPLERS = PIPELINES | {
    "n_prompts": rules.integer(10, 50_000),
    "configurations": rules.several_of(*CONFIGURATIONS),
    "scenes_seen": rules.integer(50, 100_000),
    "stored": rules.integer(1, 10_000),
}
REWARDS = PIPELINES | {
    "expert_id": rules.text(),
    "n_prompts": rules.integer(20, 50_000),
    "style_prompts": rules.integer(20, 50_000),
    "steered": rules.integer(10, 50_000),
    "defeats": rules.integer(5, 10_000),
    "configuration": rules.one_of(*CONFIGURATIONS),
    "reward_steps": rules.integer(0, 1_000_000),
    "n_seeds": rules.integer(1, 50),
    "level": rules.real(0, 1000),
}

# Seconds that one core takes for a step of an image under guidance, and for one of a reward; GB
# that an image of a batch takes. The book's own miniature; a Stable Diffusion of 512 x 512.
SECONDS = {True: (0.01, 0.1, 0.005), False: (5.0, 2.0, 1.0)}


def share(model_id: str) -> float:
    """How large a pipeline's denoiser is beside Stable Diffusion's, as far as its folder says."""
    try:
        config = disk.read_json(Path(model_id).expanduser() / "unet" / "config.json")
        size, widths = config["sample_size"], config["block_out_channels"]
        area = math.prod(size) if isinstance(size, list) else size**2
        return min(float(area / 64**2 * widths[0] / 320), 100.0)
    except (InputError, KeyError, IndexError, TypeError, OverflowError, RuntimeError):
        return 1.0


def cost(asked: SimpleNamespace) -> Cost:
    """What a chapter about images costs by its parameters; those that it lacks cost nothing."""
    numbers = "style_prompts", "steered", "defeats", "reward_steps", "n_seeds", "scenes_seen"
    numbers = *numbers, "stored"
    of = SimpleNamespace(**dict.fromkeys(numbers, 0) | {"configurations": ("max",)} | vars(asked))
    scale = share(of.model_id) if of.model_id else 1.0
    step, fit, gigabytes = (scale * each for each in SECONDS[not of.model_id])
    images = of.n_prompts * (1 + len(of.configurations)) + 2 * of.style_prompts + 12 * of.steered
    images += 18 * of.defeats + 6 * of.stored
    fits = 3 + of.n_seeds  # of both pairs, a rival, and one that settles no levels
    seconds = images * of.steps * step + fits * of.reward_steps * fit
    seconds /= 1 if of.device == "cpu" else CUDA
    at_a_time = min(of.batch, images)
    return Cost(at_a_time * gigabytes + of.scenes_seen * 1e-4, seconds / 3600)
