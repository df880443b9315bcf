"""Networks of a folder: whole, of safetensors alone, and no larger than their files."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from rrlib.errors import shown
from rrlib.images.folders.content import blamed, read_object, refusal
from rrlib.images.kinds.checks import is_adapter

TEXTS = {  # text encoders, and the settings of theirs that are read
    "CLIPTextModel": (CLIPTextModel, CLIPTextConfig),
    "CLIPTextModelWithProjection": (CLIPTextModelWithProjection, CLIPTextConfig),
    "T5EncoderModel": (T5EncoderModel, T5Config),
}

STEM = "diffusion_pytorch_model"

FLOATS = {"F16", "BF16", "F32", "F64"}

POSITIONS = "position_ids"  # 0, 1, 2, ...: older files keep them, no network needs them


def network(folder: Path, name: str, kind_name: str, dtype: torch.dtype) -> nn.Module:
    """One network, whole: every weight of its file's, and no weight of it without a use."""
    place = folder / name
    config = read_object(folder, f"{name}/config.json")
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
        with blamed(folder, f"{name}/config.json"):
            config = settings(**own)
        options |= {"config": config}
        if settings is CLIPTextConfig:
            options |= {"attn_implementation": "sdpa"}
    else:
        kind = getattr(diffusers, kind_name)
        options["low_cpu_mem_usage"] = False  # the other way needs accelerate
    meta, most = torch.device("meta"), at_most(len(shapes))
    with meta, most, blamed(folder, f"{name}/config.json"):
        bare = kind(config) if read_by_text else kind.from_config(config)
    asked = sum(value.numel() for value in bare.parameters())
    if asked > sum(shapes.values()):
        raise refusal(
            folder,
            f"{name}/config.json asks for {asked} weights and its file holds "
            f"{sum(shapes.values())}",
        )
    with blamed(folder, f"{name}'s weights"):
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
        index = read_object(folder, f"{name}/{only[0]}")
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
        with blamed(folder, told), safe_open(path, "pt") as file:
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
