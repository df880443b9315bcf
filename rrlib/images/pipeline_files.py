"""A pipeline's folder: what is in it is looked at before a library may open it, and after.

The libraries draw a missing weight at random, make an empty tokenizer of a missing one, and open a
pickle where an index names it. Here a folder holds all that its networks need and nothing else, or
it is refused. Each network is first built without memory and held against its weights' headers, so
a file of numbers that are too large costs nothing.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rrlib.disk import read_json, reason
from rrlib.errors import InputError, shown
from rrlib.images.pipeline_checks import PARTS, SCHEDULERS, ddim, is_adapter

CLASSES = {"StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"} | {
    "StableDiffusionPipelineSafe"
}
KINDS = {
    "vae": {("diffusers", "AutoencoderKL")},
    "text_encoder": {("transformers", "CLIPTextModel")},
    "tokenizer": {("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast")},
    "unet": {("diffusers", "UNet2DConditionModel")},
    "scheduler": {("diffusers", name) for name in SCHEDULERS},
}
UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}  # known, and not needed
NETWORKS = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel, "unet": UNet2DConditionModel}
STEMS = {"text_encoder": "model"}  # of weight files; of diffusers' networks:
STEM = "diffusion_pytorch_model"
FLOATS = {"F16", "BF16", "F32", "F64"}
POSITIONS = "position_ids"  # 0, 1, 2, ...: older files keep them, no network needs them


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
        return Path(StableDiffusionPipeline.download(model_id, **options))
    except Exception as error:  # the hub's client has many kinds
        raise refusal(
            model_id,
            "the folder or name of a Stable Diffusion pipeline with safetensors weights is needed "
            f"({reason(error)})",
        ) from None


def refusal(model_id: str | Path, why: str) -> InputError:
    """The sentence that this pipeline cannot be used."""
    return InputError(f"model_id={shown(str(model_id), 200)} is not allowed: {why}.")


def parts(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """A pipeline's parts by name, on the CPU; its schedule as DDIM.

    Args:
        folder: with `model_index.json`, as `save_pretrained` writes it.
        dtype: of the weights.

    Raises:
        InputError: it is no folder of Stable Diffusion's classes, a file is missing, damaged or not
            safetensors, weights are missing, too many, of other shapes or not finite.
    """
    # What is quick to refuse comes first.
    scheduler = _scheduler(folder, _index(folder))
    text = _network(folder, "text_encoder", dtype)
    tokenizer = _tokenizer(folder, text.config.vocab_size)
    networks = {name: _network(folder, name, dtype) for name in ("vae", "unet")}
    return networks | {"text_encoder": text, "tokenizer": tokenizer, "scheduler": scheduler}


def _index(folder: Path) -> str:
    """The scheduler's class, of a `model_index.json` that tells of parts that fit."""
    if not (folder / "model_index.json").is_file():
        raise refusal(folder, "a folder with a pipeline's model_index.json is needed")
    index = _object(folder, "model_index.json")
    kind = index.get("_class_name")
    told = {
        key: tuple(value)
        for key, value in index.items()
        if isinstance(value, list) and any(part is not None for part in value)
    }
    further = sorted(set(told) - set(PARTS) - UNUSED)
    if further:
        raise refusal(
            folder,
            f"its part {shown(further[0])} would be left out; a Stable Diffusion pipeline of one "
            "text encoder, is needed",
        )
    if kind not in CLASSES:
        raise refusal(folder, f"its class is {shown(kind)} and a StableDiffusionPipeline is needed")
    for name in PARTS:
        if name not in told:
            raise refusal(folder, f"its model_index.json tells of no {name}")
        if told[name] not in KINDS[name]:
            allowed = " or ".join(sorted(kind for _, kind in KINDS[name])[:3])
            raise refusal(
                folder, f"its {name} is {shown(list(told[name]))} and {allowed} is needed"
            )
    return told["scheduler"][1]


def _network(folder: Path, name: str, dtype: torch.dtype) -> nn.Module:
    """One network, whole: every weight of its file's, and no weight of it without a use."""
    place = folder / name
    config = _object(folder, f"{name}/config.json")
    if (place / "adapter_config.json").exists():
        raise refusal(folder, f"its {name} is an adapter without its base; fuse the two first")
    if config.get("quantization_config") is not None:
        raise refusal(folder, f"its {name}'s weights are quantised; floating ones are needed")
    variant, files = _weights(folder, name)
    shapes = _shapes(folder, files)
    kind = NETWORKS[name]
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "variant": variant}
    if kind is CLIPTextModel:
        # Of a text encoder's settings only those of its shape: others can name code to be fetched.
        own = {key: config[key] for key in CLIPTextConfig.__annotations__ if key in config}
        with _blamed(folder, f"{name}/config.json"):
            config = CLIPTextConfig(**own)
        options |= {"config": config, "attn_implementation": "sdpa"}
    else:
        options["low_cpu_mem_usage"] = False  # the other way needs accelerate
    meta, most = torch.device("meta"), _at_most(len(shapes))
    with meta, most, _blamed(folder, f"{name}/config.json"):
        bare = kind(config) if kind is CLIPTextModel else kind.from_config(config)
    asked = sum(value.numel() for value in bare.parameters())
    if asked > sum(shapes.values()):
        raise refusal(
            folder,
            f"{name}/config.json asks for {asked} weights and its file holds "
            f"{sum(shapes.values())}",
        )
    with _blamed(folder, f"{name}'s weights"):
        made, found = kind.from_pretrained(
            place, local_files_only=True, output_loading_info=True, **options
        )
    _complete(folder, name, found)
    for key, value in made.state_dict().items():
        if not value.isfinite().all():
            raise refusal(folder, f"its {name}'s weights {shown(key)} are not all finite")
    return made.eval()


def _complete(folder: Path, name: str, found: dict[str, Any]) -> None:
    """Refuse what the libraries only log."""
    further = [key for key in found["unexpected_keys"] if not key.endswith(POSITIONS)]
    foreign = [key for key in further if is_adapter(key)]
    if foreign:
        raise refusal(
            folder,
            f"its {name}'s file holds an adapter's weights ({shown(foreign[0])}); fuse the adapter "
            "and unload it before saving",
        )
    for what, keys in (
        ("lacks", found["missing_keys"]),
        ("holds, with no use for it,", further),
        ("holds in another shape", found["mismatched_keys"]),
    ):
        if keys:
            first = sorted(map(str, keys))[0]
            raise refusal(
                folder, f"its {name}'s file {what} {shown(first)} ({len(keys)} such weights)"
            )


def _weights(folder: Path, name: str) -> tuple[str | None, list[Path]]:
    """The variant ("fp16") and the files of a network's weights; nothing but safetensors."""
    place, stem = folder / name, STEMS.get(name, STEM)
    pattern = re.compile(
        rf"{stem}(?:\.(?P<a>[\w-]+?))?\.safetensors(?P<index>\.index(?:\.(?P<b>[\w-]+))?\.json)?"
    )
    found = [match for path in sorted(place.glob("*")) if (match := pattern.fullmatch(path.name))]
    found = [match for match in found if not re.search(r"\d{5}-of-\d{5}", match[0])]  # shards
    if not found:
        raise refusal(
            folder, f"its {name} lacks {stem}.safetensors (weights in other files may be pickles)"
        )
    plain = [match for match in found if not (match["a"] or match["b"])]
    chosen = plain or found
    if len(chosen) > 1:
        several = " and ".join(match[0] for match in chosen)
        raise refusal(folder, f"its {name} holds {several}, of which one is needed")
    only = chosen[0]
    files = [place / only[0]]
    if only["index"]:
        index = _object(folder, f"{name}/{only[0]}")
        names = index.get("weight_map")
        if not isinstance(names, dict) or not names:
            raise refusal(folder, f"{name}/{only[0]} has no weight_map")
        for file in names.values():
            if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
                raise refusal(
                    folder,
                    f"{name}/{only[0]} names {shown(file)}; a file of this folder that ends in "
                    ".safetensors is needed",
                )
        files = [place / file for file in sorted(set(names.values()))]
    return only["a"] or only["b"], files


def _shapes(folder: Path, files: list[Path]) -> dict[str, int]:
    """Numbers in each tensor, of the files' headers."""
    found: dict[str, int] = {}
    for path in files:
        told = path.relative_to(folder).as_posix()
        if not path.is_file():
            raise refusal(folder, f"{told} is missing")
        with _blamed(folder, told), safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                view = file.get_slice(name)
                if view.get_dtype() not in FLOATS and not name.endswith(POSITIONS):
                    raise refusal(
                        folder,
                        f"{told} holds {shown(name)} as {view.get_dtype()} and floating numbers "
                        "are needed",
                    )
                found[name] = torch.Size(view.get_shape()).numel()
    return found


def _tokenizer(folder: Path, size: int) -> CLIPTokenizer:
    """The tokenizer, with words of its own, each a row of the text encoder's table."""
    place = folder / "tokenizer"
    whole = place / "tokenizer.json"
    for path in [whole] if whole.is_file() else [place / "vocab.json", place / "merges.txt"]:
        if not path.is_file():
            raise refusal(
                folder, "its tokenizer lacks tokenizer.json (or vocab.json and merges.txt)"
            )
        if path.suffix == ".json":
            _object(folder, path.relative_to(folder).as_posix())
    if (place / "tokenizer_config.json").exists():
        _object(folder, "tokenizer/tokenizer_config.json")
    with _blamed(folder, "its tokenizer"):
        made = CLIPTokenizer.from_pretrained(place, local_files_only=True)
    vocabulary = made.get_vocab()
    if not set(vocabulary) - set(made.all_special_tokens):
        raise refusal(folder, "its tokenizer knows no words")
    if max(vocabulary.values()) >= size:
        raise refusal(
            folder,
            f"its tokenizer numbers words up to {max(vocabulary.values())} and its text encoder "
            f"has {size}",
        )
    if None in (made.bos_token_id, made.eos_token_id, made.pad_token_id):
        raise refusal(folder, "its tokenizer lacks the token of a start, an end or a blank")
    return made


def _scheduler(folder: Path, name: str) -> DDIMScheduler:
    config = _object(folder, "scheduler/scheduler_config.json")
    try:
        return ddim(name, config)
    except ValueError as error:
        raise refusal(folder, str(error)) from None


def _object(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the folder."""
    if not (folder / name).is_file():
        raise refusal(folder, f"{name} is missing")
    found = read_json(folder / name)
    if not isinstance(found, dict):
        raise refusal(folder, f"{name} is no JSON object")
    return found


@contextmanager
def _blamed(folder: Path, what: str) -> Iterator[None]:
    """Whatever a library raises over a folder's content is the folder's fault."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # what a damaged file makes of a library is no fixed list
        raise refusal(
            folder, f"{what} cannot be used ({type(error).__name__}: {reason(error)})"
        ) from None


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """No more weights are built than the files can fill: a depth of 10**9 would take for ever."""
    built = 0

    def counted(*_: Any) -> None:
        nonlocal built
        built += 1
        if built > 2 * count + 100:  # some are made twice
            raise ValueError(f"it asks for more than the {count} weights of its file")

    handle = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()
