"""Pipelines' folders: damaged, incomplete, hostile or of another kind they get one sentence."""

import json
import random
import shutil
from pathlib import Path

import pytest
import tiny_pipelines as tiny
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.images import pipelines
from rrlib.images.guided import Guided
from rrlib.images.miniature import pipeline as miniature

TINY = miniature.Size(pixels=16, vae=(8, 16), unet=(8, 16), text=16, layers=1, tokens=8)
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
TOKENIZER = "tokenizer/tokenizer.json"
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "pipeline"
    miniature.pipeline(TINY, ("red", "blue"), 0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(source):
    return pipelines.load_pipeline(source)


@pytest.fixture
def folder(source, tmp_path) -> Path:
    shutil.copytree(source, tmp_path / "own")
    return tmp_path / "own"


def configured(name: str, **changes):
    """Changes of a JSON file; None removes nothing, it is JSON's null."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(content | changes), encoding="utf-8")

    return change


def without(name: str, key: str):
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        del content[key]
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return change


def tensors(name: str, edit):
    """A weight file after `edit(tensors)`."""

    def change(folder: Path) -> None:
        found = load_file(folder / name)
        edit(found)
        save_file(found, folder / name)

    return change


def spoilt(key: str, value: float):
    def edit(found) -> None:
        found[key].view(-1)[0] = value

    return edit


def renamed(old: str, new: str):
    """A weight file under another name."""
    return lambda folder: (folder / old).rename(folder / new)


def indexed(name: str, file: str):
    """An index in place of a weight file; the weights are where it says."""

    def change(folder: Path) -> None:
        names = list(load_file(folder / name))
        (folder / name).rename((folder / name).parent / file)
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, file)}
        (folder / f"{name}.index.json").write_text(json.dumps(index), encoding="utf-8")

    return change


def written(name: str, text: str):
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def removed(name: str):
    return lambda folder: (folder / name).unlink()


def another_unet(**changes):
    """A U-Net of other settings, with its own weights."""

    def change(folder: Path) -> None:
        config = UNet2DConditionModel.load_config(folder / "unet")
        shutil.rmtree(folder / "unet")
        UNet2DConditionModel.from_config(config | changes).save_pretrained(folder / "unet")

    return change


def words(edit):
    """A tokenizer after `edit(its model)`."""

    def change(folder: Path) -> None:
        content = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
        edit(content["model"])
        (folder / TOKENIZER).write_text(json.dumps(content), encoding="utf-8")

    return change


def emptied(model) -> None:
    model["merges"] = []
    model["vocab"] = {piece: k for piece, k in model["vocab"].items() if k < 2}


WEIGHTS = {
    "a missing weight of the U-Net": (
        tensors(UNET, lambda t: t.pop("conv_in.bias")),
        r"its unet's file lacks 'conv_in.bias' \(1 such|asks for \d+ weights",
    ),
    "a missing weight of the VAE": (
        tensors(VAE, lambda t: t.pop("quant_conv.bias")),
        r"asks for \d+ weights and its file holds \d+",
    ),
    "a missing weight beside one too many": (
        tensors(TEXT, lambda t: t.update(other=t.pop("final_layer_norm.weight"))),
        r"its text_encoder's file lacks 'final_layer_norm.weight' \(1 such weights\)",
    ),
    "a weight without a use": (
        tensors(UNET, lambda t: t.update(more=torch.zeros(3))),
        r"its unet's file holds, with no use for it, 'more' \(1 such",
    ),
    "an adapter's weights": (
        tensors(UNET, lambda t: t.update({"conv_in.lora_A.default.weight": torch.zeros(3)})),
        r"an adapter's weights \('conv_in.lora_A.default.weight'\); fuse the adapter",
    ),
    "weights behind an adapter": (
        tensors(UNET, lambda t: t.update({"conv_in.base_layer.bias": t.pop("conv_in.bias")})),
        r"an adapter's weights \('conv_in.base_layer.bias'\); fuse the adapter",
    ),
    "a shape": (
        tensors(UNET, lambda t: t.update({"conv_in.bias": torch.zeros(16)})),
        "unet's (file holds in another shape|weights cannot be used)",
    ),
    "a NaN": (
        tensors(VAE, spoilt("quant_conv.weight", float("nan"))),
        "its vae's weights 'quant_conv.weight' are not all finite",
    ),
    "an infinity": (
        tensors(TEXT, spoilt("final_layer_norm.bias", float("inf"))),
        "its text_encoder's weights 'final_layer_norm.bias' are not all finite",
    ),
    "integers": (
        tensors(UNET, lambda t: t.update({"conv_in.bias": torch.zeros(8, dtype=torch.int32)})),
        r"holds 'conv_in.bias' as I32 and floating",
    ),
    "no tokenizer": (removed(TOKENIZER), r"its tokenizer lacks tokenizer.json"),
    "no words": (words(emptied), r"its tokenizer knows no words"),
    "words without a row": (
        words(lambda model: model["vocab"].update({"red</w>": 900})),
        r"numbers words up to 900 and its text encoder has \d+",
    ),
    "no limit of tokens": (
        without("tokenizer/tokenizer_config.json", "model_max_length"),
        r"its tokenizer's model_max_length=\d+ is no number from 3 to the 8 tokens",
    ),
    "no configuration": (removed("unet/config.json"), r"unet/config.json is missing"),
    "half a file": (
        lambda folder: (folder / UNET).write_bytes((folder / UNET).read_bytes()[:9_000]),
        r"model.safetensors cannot be used \(SafetensorError",
    ),
    "a quantised network": (
        configured("unet/config.json", quantization_config={"quant_method": "bitsandbytes"}),
        r"its unet's weights are quantised",
    ),
    "an adapter in place of a network": (
        written("text_encoder/adapter_config.json", "{}"),
        r"its text_encoder is an adapter without its base",
    ),
    "two variants": (
        lambda folder: [
            (folder / UNET).rename((folder / UNET).with_suffix(".fp16.safetensors")),
            shutil.copy(
                (folder / UNET).with_suffix(".fp16.safetensors"),
                (folder / UNET).with_suffix(".ema.safetensors"),
            ),
        ],
        r"its unet holds \S+ema.safetensors and \S+fp16.safetensors, of which one is needed",
    ),
}

SETTINGS = {
    "deep JSON": (written("unet/config.json", "[" * 100_000), r"config.json' is damaged"),
    "no object": (written("vae/config.json", "[1]"), r"vae/config.json is no JSON object"),
    "NaN": (configured(SCHEDULER, beta_end=float("nan")), "do not make noise grow"),
    "NaN where a network divides": (
        configured("unet/config.json", norm_eps=float("nan")),
        "its networks do not turn finite latents into finite latents",
    ),
    "no groups": (
        configured("unet/config.json", norm_num_groups=0),
        r"unet/config.json cannot be used \(ZeroDivisionError",
    ),
    "channels of 80 000": (
        configured("unet/config.json", block_out_channels=[80_000, 80_000]),
        r"asks for \d+ weights and its file holds \d+",
    ),
    "layers without end": (
        configured("unet/config.json", layers_per_block=10**9),
        r"asks for more than the \d+ weights of its file",
    ),
    "a text encoder without end": (
        configured("text_encoder/config.json", num_hidden_layers=10**9),
        r"asks for more than the \d+ weights of its file",
    ),
    "no steps": (
        configured(SCHEDULER, num_train_timesteps=0),
        r"num_train_timesteps=0 is no number from 1 to 100000",
    ),
    "steps without end": (
        configured(SCHEDULER, num_train_timesteps=10**11),
        r"num_train_timesteps=100000000000 is no number from 1",
    ),
    "betas of another length": (
        configured(SCHEDULER, trained_betas=[0.1, 0.2]),
        r"do not make noise grow",
    ),
    "betas that shrink the noise": (
        configured(SCHEDULER, beta_schedule="linear", beta_start=-0.5, beta_end=-0.1),
        r"do not make noise grow",
    ),
    "another schedule": (
        configured(SCHEDULER, beta_schedule="x"),
        r"its scheduler's settings make none \(NotImplementedError: x is not implemented",
    ),
    "another spacing": (
        configured(SCHEDULER, timestep_spacing="x"),
        "timestep_spacing='x' is none",
    ),
    "no prediction": (
        configured(SCHEDULER, prediction_type="x"),
        "prediction_type='x' is none of 'epsilon', 'v_prediction', 'sample'",
    ),
    "noise alone at the end": (
        configured(SCHEDULER, rescale_betas_zero_snr=True),
        r"ends in noise alone \(rescale_betas_zero_snr\)",
    ),
    "thresholds": (configured(SCHEDULER, thresholding=True), "thresholding=True is not for such"),
    "flows": (configured(SCHEDULER, use_flow_sigmas=True), "use_flow_sigmas=True is not for such"),
    "no scale": (
        configured("vae/config.json", scaling_factor=0),
        "scaling_factor=0 is no number ab",
    ),
    "a shift": (configured("vae/config.json", shift_factor=0.1), "in another way .shift_factor"),
    "no size": (configured("unet/config.json", sample_size=None), "sample_size=None is no side"),
    "a size of three": (
        configured("unet/config.json", sample_size=[8, 8, 8]),
        r"sample_size=\[8, 8, 8\] is no side of a latent from 1 to 4096, nor two",
    ),
    "heads that do not divide": (
        configured("text_encoder/config.json", num_attention_heads=3),
        r"text_encoder/config.json cannot be used",
    ),
}

KINDS = {
    "SDXL": (
        configured("model_index.json", text_encoder_2=["transformers", "CLIPTextModel"]),
        r"its part 'text_encoder_2' would be left out",
    ),
    "LCM's pipeline": (
        configured("model_index.json", _class_name="LatentConsistencyModelPipeline"),
        r"its class is 'LatentConsistencyModelPipeline' and one of StableDiffusionPipeline, .* is",
    ),
    "LCM's scheduler": (
        configured("model_index.json", scheduler=["diffusers", "LCMScheduler"]),
        r"its scheduler is \['diffusers', 'LCMScheduler'\] and \w+ or \w+ or \w+ is needed",
    ),
    "flow matching": (
        configured("model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"]),
        r"its scheduler is .* is needed",
    ),
    "code of its own": (
        configured("model_index.json", unet=["network", "UNet2DConditionModel"]),
        r"its unet is \['network', 'UNet2DConditionModel'\] and UNet2DConditionModel is needed",
    ),
    "a class that is no name": (
        configured("model_index.json", unet=["diffusers", ["UNet2DConditionModel"]]),
        r"its unet is \['diffusers', \['UNet2DConditionModel'\]\] and",
    ),
    "a version that is no text": (
        configured("unet/config.json", _diffusers_version={}),
        r"what it is made of cannot be used \(TypeError",
    ),
    "no VAE": (without("model_index.json", "vae"), r"its model_index.json tells of no vae"),
    "inpainting": (another_unet(in_channels=9), r"takes 9 channels and gives 4"),
    "classes": (another_unet(num_class_embeds=10), r"told a class: num_class_embeds=10"),
    "distillation": (another_unet(time_cond_proj_dim=16), r"\(LCM\): time_cond_proj_dim=16"),
    "texts of another width": (
        another_unet(cross_attention_dim=24),
        r"texts of 24 numbers a token and its text encoder writes 16",
    ),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("name", WEIGHTS | SETTINGS | KINDS)
def test_a_folder_that_is_not_whole_or_of_another_kind_is_refused(folder, name):
    change, message = (WEIGHTS | SETTINGS | KINDS)[name]
    change(folder)
    with pytest.raises(InputError, match=message) as caught:
        pipelines.load_pipeline(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (indexed(TEXT, "x.bin"), r"names 'x.bin'; a file of this folder that ends in .safetensors"),
        (indexed(UNET, "x.bin"), r"names 'x.bin'"),
        (indexed(VAE, "../x.safetensors"), r"names '../x.safetensors'"),
        (indexed(VAE, "x.bin.safetensors"), None),
        (renamed(UNET, "unet/diffusion_pytorch_model.bin"), "may be pickles"),
        (renamed(TEXT, "text_encoder/pytorch_model.bin"), "may be pickles"),
        (written(f"{UNET}.index.json", "{}"), "of which one is needed"),
        (written("unet/diffusion_pytorch_model.bin", "pickle"), None),
        (written("text_encoder/pytorch_model.bin", "pickle"), None),
        (written("unet/adapter_model.bin", "pickle"), None),
    ],
)
def test_no_way_leads_to_a_pickle(folder, monkeypatch, change, message):
    opened = []
    monkeypatch.setattr(torch, "load", lambda *args, **options: opened.append(args))
    change(folder)
    if message:
        with pytest.raises(InputError, match=message):
            pipelines.load_pipeline(folder)
    else:
        pipelines.load_pipeline(folder)
    assert not opened


def test_sizes_are_refused_before_they_are_allocated(folder, monkeypatch):
    configured("unet/config.json", block_out_channels=[80_000, 80_000])(folder)
    asked = []
    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", lambda *a, **k: asked.append(a))
    with pytest.raises(InputError, match="asks for"):
        pipelines.load_pipeline(folder)
    assert not asked


def older(folder: Path) -> None:
    """The names and files of the first Stable Diffusions."""
    attention = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def vae(found) -> None:
        for key in [key for key in found if "attentions.0.to_" in key]:
            new = next(v for k, v in attention.items() if k in key)
            old = next(k for k in attention if k in key)
            found[key.replace(old, new)] = found.pop(key)

    def text(found) -> None:
        for key in list(found):
            found[f"text_model.{key}"] = found.pop(key)
        found["text_model.embeddings.position_ids"] = torch.arange(8)[None]

    tensors(VAE, vae)(folder)
    tensors(TEXT, text)(folder)
    model = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "tokenizer/vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (folder / "tokenizer/merges.txt").write_text(
        "\n".join(["#version: 0.2", *merges]), encoding="utf-8"
    )
    (folder / TOKENIZER).unlink()
    told = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    configured("model_index.json", **told)(folder)


def in_shards(folder: Path) -> None:
    whole = pipelines.load_pipeline(folder)
    for name in ("unet", "vae", "text_encoder"):
        shutil.rmtree(folder / name)
        getattr(whole, name).save_pretrained(folder / name, max_shard_size="5KB")
    assert len(list(folder.glob("*/*00001-of-*.safetensors"))) == 3


def in_variants(folder: Path) -> None:
    whole = pipelines.load_pipeline(folder)
    shutil.rmtree(folder)
    whole.save_pretrained(folder, variant="fp16")
    assert (folder / "unet/diffusion_pytorch_model.fp16.safetensors").exists()


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "change",
    [
        older,
        in_shards,
        in_variants,
        renamed(UNET, "unet/diffusion_pytorch_model.fp16.safetensors"),
        configured("text_encoder/config.json", _attn_implementation="kernels-community/x"),
        configured("text_encoder/config.json", auto_map={"AutoModel": "evil.Model"}),
    ],
)
def test_other_forms_of_the_same_folder_are_read_to_the_same_pipeline(folder, pipeline, change):
    change(folder)
    found = pipelines.load_pipeline(folder)
    for name in ("unet", "vae", "text_encoder"):
        mine, other = (getattr(p, name).state_dict() for p in (found, pipeline))
        assert mine.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in mine.items())
    texts = ["red blue", "blue bed"]
    assert_close(pipelines.embed(found, texts), pipelines.embed(pipeline, texts), rtol=0, atol=0)


def test_a_latent_may_have_two_sides(folder):
    configured("unet/config.json", sample_size=[4, 8])(folder)
    found = pipelines.load_pipeline(folder)
    guided = Guided(found, 2)
    assert guided.shape == (4, 4, 8)
    x = torch.randn(2, *guided.shape, generator=torch.Generator().manual_seed(0))
    pictures = pipelines.decode(found, x)
    assert pictures[0].size == (16, 8)
    assert pipelines.encode(found, pictures).shape == x.shape
    turned = pipelines.encode(found, [picture.transpose(2) for picture in pictures])
    assert turned.shape == x.shape  # cut and resized


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        (Path("none"), r"model_id='none' is not allowed: there is no such folder"),
        ("./none", r"there is no such folder, and it is no name of the hub"),
        ("a/b/c", r"there is no such folder, and it is no name of the hub"),
        ("x" * 5000, r"it can be no folder \(File name too long\)|no name of the hub"),
        ("a\0b", r"is not allowed"),
        (__file__, r"it is a file; a folder with a pipeline's model_index.json is needed"),
        (5, r"model_id='5' is not allowed"),
        ("nobody/nothing", r"the folder or name of a pipeline of images"),
    ],
)
def test_what_is_no_folder_is_named(model_id, message):
    with pytest.raises(InputError, match=message):
        pipelines.load_pipeline(model_id)


@pytest.mark.lengthy
def test_no_mutation_of_a_folder_ends_in_anything_but_a_sentence(folder, source):
    draws = random.Random(0)
    names = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    refused = 0
    for k in range(30):
        name = names[k % len(names)]
        content = bytearray((source / name).read_bytes())
        head = min(len(content), 4_000)  # of weights: their header, mostly
        if k % 3 == 0:
            content = content[: draws.randrange(head)]
        for _ in range(4):
            if content:
                content[draws.randrange(min(head, len(content)))] = draws.randrange(256)
        (folder / name).write_bytes(content)
        try:
            pipelines.load_pipeline(folder)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
        (folder / name).write_bytes((source / name).read_bytes())
    assert refused > 15


# Other kinds -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> Path:
    """A folder of each other kind."""
    place = tmp_path_factory.mktemp("kinds")
    made = {
        "pixels": tiny.unconditional(0),
        "XL": tiny.stable_diffusion_xl(0),
        "3": tiny.stable_diffusion_3(0),
        "3 without T5": tiny.stable_diffusion_3(0, third=False),
        "Flux": tiny.flux(0),
    }
    for name, one in made.items():
        one.save_pretrained(place / name)
    return place


T5 = "text_encoder_3/model.safetensors"
OTHER = {
    "T5 alone": (
        "3",
        configured("model_index.json", tokenizer_3=[None, None]),
        "tells of text_encoder_3 or tokenizer_3 alone",
    ),
    "a missing weight of T5": (
        "3",
        tensors(T5, lambda t: t.pop("encoder.final_layer_norm.weight")),
        "its text_encoder_3's file lacks|asks for",
    ),
    "no words of T5": (
        "Flux",
        removed("tokenizer_2/tokenizer.json"),
        "lacks tokenizer.json .or sp",
    ),
    "another transformer": (
        "Flux",
        configured("model_index.json", transformer=["diffusers", "SD3Transformer2DModel"]),
        "and FluxTransformer2DModel is needed",
    ),
    "a scheduler of DDPM's kind": (
        "Flux",
        configured("model_index.json", scheduler=["diffusers", "DDIMScheduler"]),
        "its scheduler is .* and FlowMatchEulerDiscreteScheduler or",
    ),
    "no shift": ("3", configured(SCHEDULER, shift="x"), "scheduler_config.json cannot be used"),
    "a negative shift": ("3", configured(SCHEDULER, shift=-3.0), "shift=-3.0 is not allowed"),
    "steps without end": ("3", configured(SCHEDULER, num_train_timesteps=10**11), "cannot be used"),
    "more channels than latents": (
        "3",
        configured("transformer/config.json", in_channels=8),
        "asks for|cannot be used",
    ),
    "a pickle": (
        "XL",
        renamed("text_encoder_2/model.safetensors", "text_encoder_2/pytorch_model.bin"),
        "may be pickles",
    ),
    "numbers that do not add up": (
        "XL",
        configured("unet/config.json", addition_time_embed_dim=16),
        "is told 64 numbers beside the texts, and a pooled text and six sizes are 112",
    ),
    "classes of pixels": (
        "pixels",
        configured("model_index.json", unet=["diffusers", "UNet2DConditionModel"]),
        "and UNet2DModel is needed",
    ),
    "pixels in parts": (
        "pixels",
        configured("unet/config.json", sample_size=0),
        "sample_size=0 is no side",
    ),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("name", OTHER)
def test_a_folder_of_another_kind_is_looked_at_as_well(kinds, tmp_path, name):
    source, change, message = OTHER[name]
    shutil.copytree(kinds / source, tmp_path / "own")
    change(tmp_path / "own")
    with pytest.raises(InputError, match=message) as caught:
        pipelines.load_pipeline(tmp_path / "own")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["pixels", "XL", "3", "3 without T5", "Flux"])
def test_a_folder_in_half_precision_is_loaded_as_its_variant(kinds, tmp_path, name):
    shutil.copytree(kinds / name, tmp_path / "own")
    for path in (tmp_path / "own").rglob("*model.safetensors"):
        found = {key: value.half() for key, value in load_file(path).items()}
        save_file(found, path.with_suffix(".fp16.safetensors"))
        path.unlink()
    half = pipelines.load_pipeline(tmp_path / "own")
    whole = pipelines.load_pipeline(kinds / name)
    for part in ("unet", "transformer", "text_encoder_2"):
        if getattr(whole, part, None) is not None:
            mine, other = (getattr(one, part).state_dict() for one in (half, whole))
            assert mine.keys() == other.keys()
            assert all(torch.equal(mine[key], other[key].half().float()) for key in other)
