"""A pipeline found and put together from its folder."""

import re
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from transformers import CLIPTokenizer, T5Tokenizer

from rrlib.disk import reason
from rrlib.errors import shown
from rrlib.images.folders.content import blamed, read_object, refusal
from rrlib.images.folders.layouts import LAYOUTS, PIXELS, STABLE, UNUSED, Layout
from rrlib.images.folders.networks import network
from rrlib.images.kinds import checks
from rrlib.images.kinds.checks import SETTINGS, ddim
from rrlib.method.noise.schedulers import FLOWS


def located(model_id: str | Path, download: bool) -> Path:
    """The folder of a pipeline: this one, or the hub's in its local cache.

    Args:
        model_id: a folder, or a name of the hub.
        download: fetch what the cache lacks; else nothing is asked of a network.

    Raises:
        InputError: there is neither.
    """
    try:
        if Path(model_id).is_dir():
            return Path(model_id)
        found = Path(model_id).exists()
    except (OSError, ValueError, TypeError) as error:
        raise refusal(model_id, f"it can be no folder ({reason(error)})") from None
    if found:
        raise refusal(
            model_id, "it is a file; a folder with a pipeline's model_index.json is needed"
        )
    if isinstance(model_id, Path) or not re.fullmatch(r"[\w.-]*\w(/[\w.-]*\w)?", model_id):
        raise refusal(model_id, "there is no such folder, and it is no name of the hub")
    try:
        options = {"local_files_only": not download, "use_safetensors": True}
        return Path(DiffusionPipeline.download(model_id, **options))
    except Exception as error:  # the hub's client has many kinds
        raise refusal(
            model_id,
            "the folder or name of a pipeline of images with safetensors weights is needed "
            f"({reason(error)})",
        ) from None


def assembled(folder: Path, dtype: torch.dtype) -> DiffusionPipeline:
    """A pipeline on the CPU, without a safety checker; a schedule of DDPM's kind as DDIM.

    Args:
        folder: with `model_index.json`, as `save_pretrained` writes it.
        dtype: of the weights.

    Raises:
        InputError: it is no folder of a class in `LAYOUTS`, a file is missing, damaged or not
            safetensors, weights are missing, too many, of other shapes or not finite.
    """
    # What is quick to refuse comes first.
    index = _object_of(folder)
    layout, told = _index(folder, index)
    made: dict[str, Any] = {"scheduler": _scheduler(folder, told["scheduler"][1], layout)}
    for name in (name for name in told if "text_encoder" in name):
        words = name.replace("text_encoder", "tokenizer")
        made[name] = network(folder, name, told[name][1], dtype)
        vocabulary = made[name].config.vocab_size
        made[words] = _tokenizer(folder, words, told[words][1], vocabulary)
    for name in (name for name in ("vae", "unet", "transformer") if name in told):
        made[name] = network(folder, name, told[name][1], dtype)
    made |= dict.fromkeys(name for name in layout.optional if name not in told)
    settings = {name: index[name] for name in SETTINGS if isinstance(index.get(name), bool)}
    if layout is STABLE:
        # Its safety checker would blacken the very images that are to be told apart.
        settings = {"safety_checker": None, "feature_extractor": None}
        settings["requires_safety_checker"] = False
    with blamed(folder, "what it is made of"):
        return layout.made(**made, **settings)


def _object_of(folder: Path) -> dict[str, Any]:
    if not (folder / "model_index.json").is_file():
        raise refusal(folder, "a folder with a pipeline's model_index.json is needed")
    return read_object(folder, "model_index.json")


def _index(folder: Path, index: dict[str, Any]) -> tuple[Layout, dict[str, tuple]]:
    """The layout of a `model_index.json` that tells of parts that fit, and these."""
    kind = index.get("_class_name")
    layout = LAYOUTS.get(kind) if isinstance(kind, str) else None
    if layout is None:
        raise refusal(
            folder, f"its class is {shown(kind)} and one of {', '.join(LAYOUTS)} is needed"
        )
    told = {
        key: tuple(value)
        for key, value in index.items()
        if isinstance(value, list) and any(part is not None for part in value)
    }
    further = sorted(set(told) - set(layout.parts) - UNUSED)
    if further:
        raise refusal(
            folder, f"its part {shown(further[0])} would be left out; a {kind} without is needed"
        )
    for name, allowed in layout.parts.items():
        if name not in told:
            if name in layout.optional:
                continue
            raise refusal(folder, f"its model_index.json tells of no {name}")
        if told[name] not in list(allowed):  # what a file tells need not be hashable
            names = " or ".join(sorted(kind for _, kind in allowed)[:3])
            raise refusal(folder, f"its {name} is {shown(list(told[name]))} and {names} is needed")
    for encoder, words in (("text_encoder_3", "tokenizer_3"),):
        if (encoder in told) != (words in told):
            raise refusal(folder, f"its model_index.json tells of {encoder} or {words} alone")
    return layout, told


def _tokenizer(folder: Path, name: str, kind: str, size: int) -> Any:
    """A tokenizer, with words of its own, each a row of its text encoder's table."""
    place, clip = folder / name, kind.startswith("CLIP")
    whole = place / "tokenizer.json"
    older = [place / "vocab.json", place / "merges.txt"] if clip else [place / "spiece.model"]
    for path in [whole] if whole.is_file() else older:
        if not path.is_file():
            lacking = " and ".join(path.name for path in older)
            raise refusal(folder, f"its {name} lacks tokenizer.json (or {lacking})")
        if path.suffix == ".json":
            read_object(folder, path.relative_to(folder).as_posix())
    if (place / "tokenizer_config.json").exists():
        read_object(folder, f"{name}/tokenizer_config.json")
    with blamed(folder, f"its {name}"):
        made = (CLIPTokenizer if clip else T5Tokenizer).from_pretrained(
            place, local_files_only=True
        )
    vocabulary = made.get_vocab()
    if not set(vocabulary) - set(made.all_special_tokens):
        raise refusal(folder, f"its {name} knows no words")
    if max(vocabulary.values()) >= size:
        raise refusal(
            folder,
            f"its {name} numbers words up to {max(vocabulary.values())} and its text encoder "
            f"has {size}",
        )
    needed = [made.eos_token_id, made.pad_token_id, *([made.bos_token_id] if clip else [])]
    if None in needed:
        raise refusal(folder, f"its {name} lacks the token of a start, an end or a blank")
    return made


def _scheduler(folder: Path, name: str, layout: Layout) -> Any:
    config = read_object(folder, "scheduler/scheduler_config.json")
    if name in FLOWS:
        with blamed(folder, "scheduler/scheduler_config.json"):
            steps = config.get("num_train_timesteps", 1000)
            if not checks.whole(steps, 2, checks.MOST_STEPS):
                raise ValueError(f"num_train_timesteps={shown(steps)}")
            return getattr(diffusers, name).from_config(config)
    try:
        return ddim(name, config, pixels=layout is PIXELS)
    except ValueError as error:
        raise refusal(folder, str(error)) from None
