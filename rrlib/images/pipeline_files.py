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
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import (
    DDIMPipeline,
    DiffusionPipeline,
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from rrlib.disk import read_json, reason
from rrlib.errors import InputError, shown
from rrlib.images.kinds import checks
from rrlib.images.kinds.checks import SCHEDULERS, SETTINGS, ddim, is_adapter
from rrlib.schedules import FLOWS


class Layout(NamedTuple):
    """Of a kind's folders: the class that is made, its parts and their classes, which may lack."""

    made: type
    parts: dict[str, set[tuple[str, str]]]
    optional: tuple[str, ...] = ()


def _of(library: str, *names: str) -> set[tuple[str, str]]:
    return {(library, name) for name in names}


_VAE = _of("diffusers", "AutoencoderKL")
_UNET = _of("diffusers", "UNet2DConditionModel")
_DIFFUSIONS, _FLOWS = _of("diffusers", *SCHEDULERS), _of("diffusers", *FLOWS)
_CLIP = _of("transformers", "CLIPTextModel")
_PROJECTED = _of("transformers", "CLIPTextModelWithProjection")
_T5 = _of("transformers", "T5EncoderModel")
_CLIP_WORDS = _of("transformers", "CLIPTokenizer", "CLIPTokenizerFast")
_T5_WORDS = _of("transformers", "T5Tokenizer", "T5TokenizerFast")

_FIRST = {
    "vae": _VAE,
    "text_encoder": _CLIP,
    "tokenizer": _CLIP_WORDS,
    "unet": _UNET,
    "scheduler": _DIFFUSIONS,
}
_STABLE = Layout(StableDiffusionPipeline, _FIRST)
_SECOND = {"text_encoder_2": _PROJECTED, "tokenizer_2": _CLIP_WORDS}
_THIRD = {"text_encoder_3": _T5, "tokenizer_3": _T5_WORDS}
_FLOW = {"vae": _VAE, "tokenizer": _CLIP_WORDS, "scheduler": _FLOWS}
_PIXELS = Layout(DDIMPipeline, {"unet": _of("diffusers", "UNet2DModel"), "scheduler": _DIFFUSIONS})
LAYOUTS = {
    "StableDiffusionPipeline": _STABLE,
    "StableDiffusionImg2ImgPipeline": _STABLE,
    "StableDiffusionPipelineSafe": _STABLE,
    "StableDiffusionXLPipeline": Layout(StableDiffusionXLPipeline, _FIRST | _SECOND),
    "StableDiffusion3Pipeline": Layout(
        StableDiffusion3Pipeline,
        _FLOW
        | {"text_encoder": _PROJECTED, "transformer": _of("diffusers", "SD3Transformer2DModel")}
        | _SECOND
        | _THIRD,
        tuple(_THIRD),
    ),
    "FluxPipeline": Layout(
        FluxPipeline,
        _FLOW
        | {"text_encoder": _CLIP, "transformer": _of("diffusers", "FluxTransformer2DModel")}
        | {"text_encoder_2": _T5, "tokenizer_2": _T5_WORDS},
    ),
    "DDPMPipeline": _PIXELS,
    "DDIMPipeline": _PIXELS,
}
UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}  # known, and not needed
TEXTS = {  # text encoders, and the settings of theirs that are read
    "CLIPTextModel": (CLIPTextModel, CLIPTextConfig),
    "CLIPTextModelWithProjection": (CLIPTextModelWithProjection, CLIPTextConfig),
    "T5EncoderModel": (T5EncoderModel, T5Config),
}
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
        return Path(DiffusionPipeline.download(model_id, **options))
    except Exception as error:  # the hub's client has many kinds
        raise refusal(
            model_id,
            "the folder or name of a pipeline of images with safetensors weights is needed "
            f"({reason(error)})",
        ) from None


def refusal(model_id: str | Path, why: str) -> InputError:
    """The sentence that this pipeline cannot be used."""
    return InputError(f"model_id={shown(str(model_id), 200)} is not allowed: {why}.")


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
        made[name] = _network(folder, name, told[name][1], dtype)
        vocabulary = made[name].config.vocab_size
        made[words] = _tokenizer(folder, words, told[words][1], vocabulary)
    for name in (name for name in ("vae", "unet", "transformer") if name in told):
        made[name] = _network(folder, name, told[name][1], dtype)
    made |= dict.fromkeys(name for name in layout.optional if name not in told)
    settings = {name: index[name] for name in SETTINGS if isinstance(index.get(name), bool)}
    if layout is _STABLE:
        # Its safety checker would blacken the very images that are to be told apart.
        settings = {"safety_checker": None, "feature_extractor": None}
        settings["requires_safety_checker"] = False
    with _blamed(folder, "what it is made of"):
        return layout.made(**made, **settings)


def _object_of(folder: Path) -> dict[str, Any]:
    if not (folder / "model_index.json").is_file():
        raise refusal(folder, "a folder with a pipeline's model_index.json is needed")
    return _object(folder, "model_index.json")


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


def _network(folder: Path, name: str, kind_name: str, dtype: torch.dtype) -> nn.Module:
    """One network, whole: every weight of its file's, and no weight of it without a use."""
    place = folder / name
    config = _object(folder, f"{name}/config.json")
    if (place / "adapter_config.json").exists():
        raise refusal(folder, f"its {name} is an adapter without its base; fuse the two first")
    if config.get("quantization_config") is not None:
        raise refusal(folder, f"its {name}'s weights are quantised; floating ones are needed")
    read_by_text = kind_name in TEXTS
    variant, files = _weights(folder, name, "model" if read_by_text else STEM)
    shapes = _shapes(folder, files)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "variant": variant}
    if read_by_text:
        kind, settings = TEXTS[kind_name]
        # Of a text encoder's settings only those of its shape: others can name code to be fetched.
        own = {key: config[key] for key in settings.__annotations__ if key in config}
        with _blamed(folder, f"{name}/config.json"):
            config = settings(**own)
        options |= {"config": config}
        if settings is CLIPTextConfig:
            options |= {"attn_implementation": "sdpa"}
    else:
        kind = getattr(diffusers, kind_name)
        options["low_cpu_mem_usage"] = False  # the other way needs accelerate
    meta, most = torch.device("meta"), at_most(len(shapes))
    with meta, most, _blamed(folder, f"{name}/config.json"):
        bare = kind(config) if read_by_text else kind.from_config(config)
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


def _weights(folder: Path, name: str, stem: str) -> tuple[str | None, list[Path]]:
    """The variant ("fp16") and the files of a network's weights; nothing but safetensors."""
    place = folder / name
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
            _object(folder, path.relative_to(folder).as_posix())
    if (place / "tokenizer_config.json").exists():
        _object(folder, f"{name}/tokenizer_config.json")
    with _blamed(folder, f"its {name}"):
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
    config = _object(folder, "scheduler/scheduler_config.json")
    if name in FLOWS:
        with _blamed(folder, "scheduler/scheduler_config.json"):
            steps = config.get("num_train_timesteps", 1000)
            if not checks.whole(steps, 2, checks.MOST_STEPS):
                raise ValueError(f"num_train_timesteps={shown(steps)}")
            return getattr(diffusers, name).from_config(config)
    try:
        return ddim(name, config, pixels=layout is _PIXELS)
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
def at_most(count: int) -> Iterator[None]:
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
