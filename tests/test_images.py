"""Guided samplers against diffusers' own pipelines, and pipelines in and out of folders."""

import shutil
import warnings
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from diffusers.pipelines.deprecated.stable_diffusion_safe import (
    SafetyConfig,
    StableDiffusionPipelineSafe,
)
from PIL import Image
from torch.testing import assert_close

from rrlib import images, miniature, pipelines
from rrlib.errors import InputError
from rrlib.images import CONFIGURATIONS, Guided
from rrlib.training import stream

WORDS = ("red", "blue", "circle", "square", "cross")
TINY = miniature.Size(pixels=16, vae=(8, 16), unet=(16, 32), text=16, layers=1, tokens=8)
PROMPTS = ["red circle", "blue square"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline")
    miniature.pipeline(TINY, WORDS, 0).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipeline(folder):
    return pipelines.load_pipeline(folder)


def last(guided: Guided, prompts: list[str], x: torch.Tensor) -> torch.Tensor:
    return list(images.denoise(guided, guided.condition(prompts), x))[-1][1]


def noise(guided: Guided, n: int = 2) -> torch.Tensor:
    return guided.start(n, stream(0, "noise"))


# Samplers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_safe_guidance_is_that_of_diffusers(pipeline, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and says so
        parts = (pipeline.vae, pipeline.text_encoder, pipeline.tokenizer, pipeline.unet)
        peer = StableDiffusionPipelineSafe(*parts, pipeline.scheduler, None, None)
        peer.set_progress_bar_config(disable=True)
        assert peer.safety_concept == images.CONCEPT
        peer.safety_concept = "cross"
        found = []
        guided = Guided(pipeline, 20, 7.5, CONFIGURATIONS[name], "cross")
        x = noise(guided)
        peer(
            PROMPTS,
            num_inference_steps=20,
            latents=x,
            output_type="np",
            callback=lambda step, t, latents: found.append(latents),
            **getattr(SafetyConfig, name.upper()),
        )
    run = [latents for _, latents in images.denoise(guided, guided.condition(PROMPTS), x)]
    assert len(run) == 21 and len(found) == 20
    for mine, other in zip(run[1:], found, strict=True):
        assert_close(mine, other, atol=1e-4, rtol=0)
    assert not torch.equal(run[-1], last(Guided(pipeline, 20), PROMPTS, x))


def test_plain_guidance_is_that_of_diffusers(pipeline):
    guided = Guided(pipeline, 6, 4.0)
    x = noise(guided)
    options = {"num_inference_steps": 6, "guidance_scale": 4.0, "output_type": "latent"}
    with torch.no_grad():
        expected = pipeline(PROMPTS, latents=x, **options).images
    assert_close(last(guided, PROMPTS, x), expected, atol=1e-4, rtol=0)


def test_the_direction_of_safe_guidance_by_hand():
    safety = images.SafeGuidance(0, 2.0, 0.1, 0.5, 0.75)
    empty, prompt = torch.zeros(3), torch.tensor([0.0, 0.0, 0.5])
    concept, momentum = torch.tensor([0.2, 4.0, 0.1]), torch.tensor([1.0, 2.0, 4.0])
    direction, after = images.safe_direction(safety, empty, prompt, concept, momentum)
    # Apart by -0.2, -4 and 0.4: in part, in full, and not at all (above the threshold).
    expected = torch.tensor([0.2 * 0.4 + 0.5, 4.0 + 1.0, 0.0 + 2.0])
    assert_close(direction, expected)
    assert_close(after, 0.75 * momentum + 0.25 * expected)


def test_a_sampler_meets_the_denoiser_contract(pipeline):
    guided = Guided(pipeline, 10, 4.0, CONFIGURATIONS["max"], "cross")
    texts = guided.condition(PROMPTS)
    x, momentum = noise(guided), 0.1 * noise(guided)
    epsilon, _ = guided.noise(x, 3, texts, momentum)
    model = guided.denoiser(texts, 3, momentum)
    t = guided.scheduler.timesteps[3].repeat(2)
    abar = guided.scheduler.alphas_cumprod[t[0]]
    assert_close(model.x0(x, t), (x - (1 - abar).sqrt() * epsilon) / abar.sqrt())
    assert_close(model.epsilon(x, t), epsilon, atol=1e-4, rtol=1e-4)
    assert_close(model.score(x, t), -epsilon / (1 - abar).sqrt(), atol=1e-3, rtol=1e-3)
    # DDIM's step goes by the same x0.
    before = guided.scheduler.alphas_cumprod[t[0] - 100]
    step = before.sqrt() * model.x0(x, t) + (1 - before).sqrt() * epsilon
    assert_close(guided.advance(x, epsilon, 3), step, atol=1e-4, rtol=1e-4)


def test_a_shift_is_added_to_every_step(pipeline):
    guided = Guided(pipeline, 4)
    texts, x = guided.condition(PROMPTS), noise(guided)
    run = list(images.denoise(guided, texts, x, lambda x, step: 0.1 * x + step))
    assert [left for left, _ in run] == [4, 3, 2, 1, 0]
    for step, ((_, before), (_, after)) in enumerate(pairwise(run)):
        ahead = guided.advance(before, guided.noise(before, step, texts)[0], step)
        assert_close(after, ahead + 0.1 * before + step)


def test_too_few_steps_for_the_warm_up_are_warned_of(pipeline):
    with pytest.warns(UserWarning, match=r"steps=10 is no more than the warm-up of 10 steps"):
        guided = Guided(pipeline, 10, 7.5, CONFIGURATIONS["medium"], "cross")
    x = noise(guided)
    assert torch.equal(last(guided, PROMPTS, x), last(Guided(pipeline, 10), PROMPTS, x))
    for steps in (0, 1001):
        with pytest.raises(InputError, match=rf"steps={steps} is not allowed"):
            Guided(pipeline, steps)


# Pipelines ---------------------------------------------------------------------------------------


def test_a_saved_pipeline_comes_back(pipeline):
    made = miniature.pipeline(TINY, WORDS, 0)
    x = noise(Guided(made))
    assert torch.equal(last(Guided(made, 3), PROMPTS, x), last(Guided(pipeline, 3), PROMPTS, x))


def test_every_word_of_a_tokenizer_is_one_token():
    known = miniature.tokenizer(WORDS, 8)
    assert all(len(known(word).input_ids) == 3 for word in WORDS)
    assert len(known("xyz").input_ids) == 5


def test_what_is_no_pipeline_is_named(folder, tmp_path):
    (tmp_path / "other").mkdir()
    for place in (tmp_path / "other", tmp_path / "none"):
        with pytest.raises(InputError, match=rf"model_id='{place}' is not allowed"):
            pipelines.load_pipeline(place)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(InputError, match=r"broken' is not allowed"):
        pipelines.load_pipeline(broken)
    network = UNet2DModel(8, block_out_channels=(8, 8, 8, 8), norm_num_groups=8)
    other = DDIMPipeline(network, DDIMScheduler())
    other.save_pretrained(tmp_path / "unconditional")
    with pytest.raises(InputError, match=r"unconditional' is not allowed"):
        pipelines.load_pipeline(tmp_path / "unconditional")
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    weights = cut / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cut' is not allowed"):
        pipelines.load_pipeline(cut)
    with pytest.raises(InputError, match=r"dtype=torch.float16 is not allowed on device='cpu'"):
        pipelines.load_pipeline(folder, dtype=torch.float16)


def test_a_pair_shares_latents_and_schedule(pipeline):
    pipelines.check_pair(pipeline, pipeline)
    larger = miniature.pipeline(miniature.Size(**vars(TINY) | {"pixels": 32}), WORDS, 0)
    with pytest.raises(InputError, match=r"latents .*\(4, 16, .* are not allowed"):
        pipelines.check_pair(pipeline, larger)
    other = miniature.pipeline(TINY, WORDS, 0)
    other.scheduler = DDIMScheduler.from_config(other.scheduler.config, beta_end=0.02)
    with pytest.raises(InputError, match=r"beta_end=0.02 is not allowed: the base's 0.012"):
        pipelines.check_pair(pipeline, other)


def test_prompts_are_read_as_i2p_has_them(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text('prompt,categories,sd_seed\n"a, b\nc",x,1\nd,y,2\n', encoding="utf-8")
    assert pipelines.read_prompts(path) == ["a, b\nc", "d"]
    for text, message in (
        ("text\na\n", r"columns \['text'\] is not allowed: a column 'prompt'"),
        ("", r"columns \[\] is not allowed"),
        ("prompt\n", "holds no prompt"),
        ("prompt,x\na,1\n ,2\n", "ends in line 3 is empty"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            pipelines.read_prompts(path)
    with pytest.raises(InputError, match=r"none.csv' is not allowed: a CSV file"):
        pipelines.read_prompts(tmp_path / "none.csv")


def test_prompts_must_fit_the_tokenizer(pipeline):
    for prompts, message in (
        ([], "at least one prompt"),
        (["red", " "], "a text is needed"),
        (["red " * 7], "of 9 tokens is not allowed: at most 8"),
    ):
        with pytest.raises(InputError, match=message):
            pipelines.embed(pipeline, prompts)
    cut = pipelines.embed(pipeline, ["red " * 7], truncate=True)
    assert torch.equal(cut, pipelines.embed(pipeline, ["red " * 6]))


def test_images_and_latents_are_those_of_the_vae(pipeline):
    x = noise(Guided(pipeline))
    found = pipelines.decode(pipeline, x)
    with torch.no_grad():
        scaled = x / pipeline.vae.config.scaling_factor
        expected = pipeline.image_processor.postprocess(pipeline.vae.decode(scaled).sample)
        pixels = pipeline.image_processor.preprocess(found)
        latents = pipeline.vae.encode(pixels).latent_dist.mean
    assert [image.tobytes() for image in found] == [image.tobytes() for image in expected]
    encoded = pipelines.encode(pipeline, found)
    assert_close(encoded, latents * pipeline.vae.config.scaling_factor, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match=r"size \(8, 8\) is not allowed: \(16, 16\)"):
        pipelines.encode(pipeline, [Image.new("RGB", (8, 8))])
