"""Have the shipped rewards say what raw data they are for: rewrite the texts of their files.

    python workflow/tell_rewards.py

A reward's file names the order, widths and ranges of its data's numbers and the models that it
comes from, so that recorded data can be scored (`RelativeReward.score`). Chapters write that by
themselves; what they wrote before is told here. Tensors stay as they are, bit for bit, and what
has been told already is left alone.
"""

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from rrlib.lab.images import experiments as image_experiments
from rrlib.lab.locomotion import files as locomotion_files
from rrlib.lab.mazes import experiments as maze_experiments
from rrlib.mazes import world as mazes
from rrlib.plans.layouts import PlanLayout
from rrlib.tensor_files import read_tensors, write_tensors

FULL = Path(__file__).resolve().parent.parent / "results" / "full"
Texts = dict[str, str]


def mazes_told(texts: Texts, tensors: dict[str, Tensor]) -> Texts:
    """Of rewards in mazes: their layout, and the two diffusers."""
    found = json.loads(texts["rewards"])
    for entry in found.values():
        about = entry["about"]
        order = {"order": ["actions", "observations"]}
        widths = {"actions": mazes.ACTION, "observations": mazes.OBSERVATION}
        layout = PlanLayout.of(about | order | {"widths": widths})
        named = {"models": maze_experiments.models(about["maze"], about["goal"])}
        entry["about"] = {key: about[key] for key in ("maze", "goal", "seed")} | named
        entry["about"] |= layout.about()
    return texts | {"rewards": json.dumps(found)}


def images_told(kind: str) -> Callable[[Texts, dict[str, Tensor]], Texts]:
    """Of a reward of images: the two samplers."""

    def told(texts: Texts, tensors: dict[str, Tensor]) -> Texts:
        found = json.loads(texts["rewards"])
        about = found["reward"]["about"]
        named = image_experiments.models(kind, about["configuration"], "", "")
        found["reward"]["about"] = {**about, "models": named}
        return texts | {"rewards": json.dumps(found)}

    return told


TOLD: dict[str, Callable[[Texts, dict[str, Tensor]], Texts]] = {
    "maze2d-rewards": mazes_told,
    "locomotion-models": locomotion_files.told,
    **{f"images-{kind}": images_told(kind) for kind in ("safe", "rival", "style")},
}


def main() -> None:
    for name, tell in TOLD.items():
        path = FULL / f"{name}.safetensors"
        tensors, texts = read_tensors(path)
        if (said := tell(texts, tensors)) != texts:
            write_tensors(path, tensors, said)
            print(path)


if __name__ == "__main__":
    main()
