"""The miniature's weights as they come with the book: a pipeline, and its fine-tune's changes."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from rrlib import disk
from rrlib.errors import InputError
from rrlib.images import pipelines
from rrlib.tensor_files import read_tensors, write_tensors

FOLDER = Path(__file__).resolve().parent / "files"
BASE, TUNED = "base", "hollow"  # the fine-tune draws hollow shapes
CARD, PIPELINE, CHECKSUMS = "card.json", "pipeline", "sha256"


def write(
    folder: Path, base: StableDiffusionPipeline, tuned: StableDiffusionPipeline, card: Mapping
) -> None:
    """Write both, rounded to float16, and how they were made, with the sha256 of all of it.

    Args:
        folder: gets `pipeline/`, `hollow.safetensors` and `card.json`.
        base: whole.
        tuned: only the tensors of its U-Net that differ from the base's are written.
        card: as JSON has it.
    """
    pipelines.save_pipeline(base, folder / PIPELINE)
    for path in folder.glob(f"{PIPELINE}/*/config.json"):  # where it came from is no part of it
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    before = {name: value.half() for name, value in base.unet.state_dict().items()}
    after = {name: value.half() for name, value in tuned.unet.state_dict().items()}
    changed = {k: v for k, v in after.items() if not torch.equal(v, before[k])}
    write_tensors(folder / f"{TUNED}.safetensors", changed)
    seal(folder, card)


def seal(folder: Path, card: Mapping) -> None:
    """Write the card of a folder that is complete: how it was made, and its pipeline's sha256.

    Args:
        folder: has `pipeline/`; the fine-tune's file carries a checksum of its own.
        card: as JSON has it.
    """
    files = {path.relative_to(folder).as_posix(): disk.sha256(path) for path in _files(folder)}
    whole = {**card, CHECKSUMS: files}
    disk.write_json(folder / CARD, whole | {CHECKSUMS: files | {CARD: disk.digest(whole)}})


def load(name: str, device: str = "cpu", folder: Path = FOLDER) -> StableDiffusionPipeline:
    """The pipeline BASE or its fine-tune TUNED, in single precision.

    Raises:
        InputError: there are no such weights, or a file is missing or not what was written.
    """
    _check(name)
    _verify(folder)
    pipeline = pipelines.load_pipeline(folder / PIPELINE, device)
    if name != BASE:
        path = folder / f"{name}.safetensors"
        changed, _ = read_tensors(path, device)
        whole = pipeline.unet.state_dict()
        for key, value in changed.items():
            if key not in whole or whole[key].shape != value.shape:
                raise InputError(
                    f"File '{path}' does not fit the pipeline beside it: its {key!r} is another's."
                )
        pipeline.unet.load_state_dict(whole | changed)
    return pipeline


def digest(name: str, folder: Path = FOLDER) -> str:
    """sha256 of all that `load` reads, so that other weights make other artefacts.

    Raises:
        InputError: there are no such weights.
    """
    _check(name)
    files = _files(folder)
    files += [folder / f"{name}.safetensors"] if name != BASE else []
    found = hashlib.sha256()
    for path in files:
        found.update(path.relative_to(folder).as_posix().encode())
        try:
            found.update(path.read_bytes())
        except OSError as error:
            raise InputError(f"File '{path}' cannot be read ({disk.reason(error)}).") from None
    return found.hexdigest()


def _files(folder: Path) -> list[Path]:
    """All of the pipeline's."""
    return [path for path in sorted((folder / PIPELINE).rglob("*")) if path.is_file()]


def _verify(folder: Path) -> None:
    """Raise InputError unless the pipeline's files and the card are those that were written."""
    card = disk.read_json(folder / CARD)
    told = card.get(CHECKSUMS) if isinstance(card, dict) else None
    if not isinstance(told, dict):
        raise InputError(f"File '{folder / CARD}' is damaged: it tells of no sha256.")
    files = {name: value for name, value in told.items() if name != CARD}
    if told.get(CARD) != disk.digest(card | {CHECKSUMS: files}):
        raise InputError(f"File '{folder / CARD}' is damaged: its content is not what was written.")
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    for name in sorted(files.keys() ^ found.keys()):
        fault = "is missing" if name in files else "is none of the pipeline's"
        raise InputError(f"File '{folder / name}' {fault}.")
    for name, path in found.items():
        try:
            told = disk.sha256(path)
        except OSError as error:
            raise InputError(f"File '{path}' cannot be read ({disk.reason(error)}).") from None
        if told != files[name]:
            raise InputError(
                f"File '{path}' is damaged: its content is not what '{CARD}' says of it."
            )


def _check(name: str) -> None:
    if name not in (BASE, TUNED):
        raise InputError(f"weights={name!r} is not allowed: {BASE!r} or {TUNED!r} is needed.")
