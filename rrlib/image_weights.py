"""The miniature's weights as they come with the book: a pipeline, and its fine-tune's changes."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from rrlib import pipelines
from rrlib.errors import InputError

FOLDER = Path(__file__).resolve().parent / "miniature_weights"
BASE, TUNED = "base", "hollow"  # the fine-tune draws hollow shapes


def write(
    folder: Path, base: StableDiffusionPipeline, tuned: StableDiffusionPipeline, card: Mapping
) -> None:
    """Write both, rounded to float16, and how they were made.

    Args:
        folder: gets `pipeline/`, `hollow.safetensors` and `card.json`.
        base: whole.
        tuned: only the tensors of its U-Net that differ from the base's are written.
        card: as JSON has it.
    """
    pipelines.save_pipeline(base, folder / "pipeline")
    for path in folder.glob("pipeline/*/config.json"):  # where it came from is no part of it
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    before = {name: value.half() for name, value in base.unet.state_dict().items()}
    after = {name: value.half() for name, value in tuned.unet.state_dict().items()}
    changed = {k: v.contiguous() for k, v in after.items() if not torch.equal(v, before[k])}
    save_file(changed, folder / f"{TUNED}.safetensors")
    text = json.dumps(card, indent=1, sort_keys=True)
    (folder / "card.json").write_text(text + "\n", encoding="utf-8")


def load(name: str, device: str = "cpu", folder: Path = FOLDER) -> StableDiffusionPipeline:
    """The pipeline BASE or its fine-tune TUNED, in single precision.

    Raises:
        InputError: there are no such weights, or they do not fit.
    """
    _check(name)
    pipeline = pipelines.load_pipeline(folder / "pipeline", device)
    if name != BASE:
        changed = load_file(folder / f"{name}.safetensors", device=device)
        pipeline.unet.load_state_dict(pipeline.unet.state_dict() | changed)
    return pipeline


def digest(name: str, folder: Path = FOLDER) -> str:
    """sha256 of all that `load` reads, so that other weights make other artefacts."""
    _check(name)
    files = [path for path in sorted((folder / "pipeline").rglob("*")) if path.is_file()]
    files += [folder / f"{name}.safetensors"] if name != BASE else []
    found = hashlib.sha256()
    for path in files:
        found.update(path.relative_to(folder).as_posix().encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _check(name: str) -> None:
    if name not in (BASE, TUNED):
        raise InputError(f"weights={name!r} is not allowed: {BASE!r} or {TUNED!r} is needed.")
