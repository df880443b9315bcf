"""Guided samplers against diffusers' own pipelines, and pipelines in and out of folders."""

import shutil
import warnings
from dataclasses import astuple
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DModel,
)
from diffusers.pipelines.deprecated.stable_diffusion_safe import (
    SafetyConfig,
    StableDiffusionPipelineSafe,
)
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.images import guided as images
from rrlib.images import pipelines
from rrlib.images.guided import Guided
from rrlib.images.miniature import pipeline as miniature
from rrlib.images.prompts import read_prompts
from rrlib.images.safety import CONCEPT, CONFIGURATIONS, SafeGuidance, safe_direction
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


@pytest.mark.lengthy
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_safe_guidance_is_that_of_diffusers(pipeline, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and says so
        parts = (pipeline.vae, pipeline.text_encoder, pipeline.tokenizer, pipeline.unet)
        peer = StableDiffusionPipelineSafe(*parts, pipeline.scheduler, None, None)
        peer.set_progress_bar_config(disable=True)
        assert peer.safety_concept == CONCEPT
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
    safety = SafeGuidance(0, 2.0, 0.1, 0.5, 0.75)
    empty, prompt = torch.zeros(3), torch.tensor([0.0, 0.0, 0.5])
    concept, momentum = torch.tensor([0.2, 4.0, 0.1]), torch.tensor([1.0, 2.0, 4.0])
    direction, after = safe_direction(safety, empty, prompt, concept, momentum)
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


def test_a_denoiser_knows_whether_its_step_is_of_the_warm_up(pipeline):
    guided = Guided(pipeline, 10, 4.0, SafeGuidance(3, 5000, 1.0, 0.5, 0.7), "cross")
    plain = Guided(pipeline, 10, 4.0)
    texts = guided.condition(PROMPTS)
    x, t = noise(guided), torch.tensor([500, 500])
    found = {step: guided.denoiser(texts, step).epsilon(x, t) for step in (2, 3)}
    usual = plain.denoiser((texts[0][:2],)).epsilon(x, t)
    assert_close(found[2], usual)
    assert (found[3] - usual).abs().max() > 1e-3


def test_a_sampler_cuts_long_prompts_only_when_told(pipeline):
    for safety in (None, CONFIGURATIONS["max"]):
        guided = Guided(pipeline, 10, safety=safety)  # whose concept is longer than the tokenizer
        with pytest.raises(InputError, match="of 9 tokens is not allowed"):
            guided.condition(["red " * 7])
        (cut,) = guided.condition(["red " * 7], truncate=True)
        assert torch.equal(cut, *guided.condition(["red " * 6]))
        assert torch.equal(cut[0], *pipelines.embed(pipeline, [""], blank=True))
        assert len(cut) == (3 if safety else 2)


def test_a_shift_is_added_to_every_step(pipeline):
    guided = Guided(pipeline, 4)
    texts, x = guided.condition(PROMPTS), noise(guided)
    run = list(images.denoise(guided, texts, x, lambda x, step: 0.1 * x + step))
    assert [left for left, _ in run] == [4, 3, 2, 1, 0]
    for step, ((_, before), (_, after)) in enumerate(pairwise(run)):
        ahead = guided.advance(before, guided.noise(before, step, texts)[0], step)
        assert_close(after, ahead + 0.1 * before + step)


@pytest.mark.lengthy
def test_too_few_steps_for_the_warm_up_are_warned_of(pipeline):
    with pytest.warns(UserWarning, match=r"steps=10 is no more than the warm-up of 10 steps"):
        guided = Guided(pipeline, 10, 7.5, CONFIGURATIONS["medium"], "cross")
    x = noise(guided)
    assert torch.equal(last(guided, PROMPTS, x), last(Guided(pipeline, 10), PROMPTS, x))
    assert torch.equal(CONFIGURED, torch.tensor([astuple(c) for c in CONFIGURATIONS.values()]))


# Schramowski et al. 2022, appendix; delta, s_S, lambda, s_m, beta_m.
CONFIGURED = torch.tensor(
    [
        [15, 20, 0.0, 0.0, 0.0],
        [10, 1000, 0.01, 0.3, 0.4],
        [7, 2000, 0.025, 0.5, 0.7],
        [0, 5000, 1.0, 0.5, 0.7],
    ]
)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "steps=0 is not allowed"),
        ({"steps": 1001}, "steps=1001 is not allowed: a number from 1 to the pipeline's 1000"),
        ({"steps": 10.0}, r"steps=10.0 is not allowed"),
        ({"steps": True}, "steps=True is not allowed"),
        ({"scale": float("nan")}, "scale=nan is not allowed: a finite number"),
        ({"scale": "7"}, "scale='7' is not allowed"),
        ({"safety": "max"}, r"safety='max' is not allowed: .* such as CONFIGURATIONS\['max'\]"),
        ({"concept": None}, "concept=None is not allowed: a text"),
        ({"negative_prompt": "red"}, r"negative_prompt='red' is not allowed: guidance starts at"),
    ],
)
def test_a_setting_that_is_none_is_named(pipeline, given, message):
    with pytest.raises(InputError, match=message):
        Guided(pipeline, **given)


def test_the_steps_of_a_run_are_counted_from_0(pipeline):
    guided = Guided(pipeline, 4)
    x, texts = noise(guided), guided.condition(PROMPTS)
    for step in (-1, 4):
        for call in (
            lambda step: guided.noise(x, step, texts),
            lambda step: guided.advance(x, x, step),
            guided.step_per_score,
        ):
            with pytest.raises(
                InputError, match=rf"step={step} is not allowed: a number from 0 to 3"
            ):
                call(step)


def test_what_a_score_is_worth_in_steps(pipeline):
    guided = Guided(pipeline, 5)
    x, score = noise(guided), noise(guided).flip(0)
    for step, t in enumerate(guided.scheduler.timesteps):
        deviation = (1 - guided.scheduler.alphas_cumprod[t]).sqrt()
        moved = guided.advance(x, -deviation * score, step) - guided.advance(x, 0 * score, step)
        assert_close(moved, guided.step_per_score(step) * score, atol=1e-5, rtol=1e-4)


def test_latents_that_are_not_finite_end_a_run(pipeline):
    guided = Guided(pipeline, 4)
    x = noise(guided)
    run = images.denoise(guided, guided.condition(PROMPTS), x, lambda x, step: x / (2 - step))
    with pytest.raises(InputError, match="its latents are not finite after step 2: networks"):
        list(run)


@pytest.mark.lengthy
def test_a_pipeline_of_another_kind_makes_no_sampler(pipeline):
    network = UNet2DModel(8, out_channels=6, block_out_channels=(8, 8, 8, 8), norm_num_groups=8)
    with pytest.raises(InputError, match=r"DDPMPipeline is not allowed: .*3 channels and gives 6"):
        Guided(DDPMPipeline(network, DDPMScheduler()))
    with pytest.raises(InputError, match=r"pipeline: str is not allowed: it is none of an uncond"):
        Guided("pipeline")
    other = miniature.pipeline(TINY, WORDS, 0)
    for scheduler, message in (
        (FlowMatchEulerDiscreteScheduler(), "'FlowMatchEulerDiscreteScheduler' has no DDIM steps"),
        (LCMScheduler(), "'LCMScheduler' has no DDIM steps"),
    ):
        other.scheduler = scheduler
        with pytest.raises(InputError, match=message):
            Guided(other)
        with pytest.raises(InputError, match=f"expert: this pipeline is not allowed: .*{message}"):
            pipelines.check_pair(pipeline, other)


@pytest.mark.lengthy
@pytest.mark.parametrize("kind", ["PNDM", "EulerDiscrete", "DPMSolverMultistep"])
def test_a_schedule_of_another_scheduler_is_that_of_diffusers(folder, tmp_path, kind):
    made = getattr(diffusers, f"{kind}Scheduler")(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    whole = miniature.pipeline(TINY, WORDS, 0)
    for part in (whole.unet, whole.vae):
        for value in part.parameters():
            value.data *= 1.5  # latents beyond [-1, 1], which a clip would cut
    whole.scheduler = made
    whole.save_pretrained(tmp_path)
    found = pipelines.load_pipeline(tmp_path)
    peer = DDIMScheduler.from_config(made.config, set_alpha_to_one=False)
    with warnings.catch_warnings():
        # Diffusers' own pipeline unsets the clip and the offset of a scheduler, and says so.
        warnings.simplefilter("ignore")
        peer = StableDiffusionPipeline(
            **whole.components | {"scheduler": peer}, requires_safety_checker=False
        )
    peer.set_progress_bar_config(disable=True)
    for own in (found, whole):  # from the folder, and as the object with its own scheduler
        guided = Guided(own, 5, 4.0)
        levels = guided.scheduler.timesteps
        assert (levels[:-1] - levels[1:] == 200).all()  # what DDIM's step goes down by
        x = 3 * noise(guided)
        options = {"num_inference_steps": 5, "guidance_scale": 4.0, "output_type": "latent"}
        with torch.no_grad():
            expected = peer(PROMPTS, latents=x, **options).images
        assert expected.abs().max() > 1.5
        assert_close(last(guided, PROMPTS, x), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.lengthy
def test_a_pipeline_with_an_adapter_is_not_saved_without_it(tmp_path):
    made = miniature.pipeline(TINY, WORDS, 0)
    layer = made.unet.conv_in

    class Adapted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer = layer
            self.lora_A = torch.nn.Conv2d(4, 2, 1)

    made.unet.conv_in = Adapted()
    with pytest.raises(
        InputError, match=r"its unet carries an adapter \('conv_in.base_layer.weight'\)"
    ):
        pipelines.save_pipeline(made, tmp_path / "new")
    made.unet.conv_in = layer
    with torch.no_grad():
        layer.bias[0] = 1e6
    with pytest.raises(InputError, match=r"'conv_in.bias' of its unet is not allowed: .* half"):
        pipelines.save_pipeline(made, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with torch.no_grad():
        layer.bias[0] = 0.5
    pipelines.save_pipeline(made, tmp_path / "new")
    pipelines.save_pipeline(made, tmp_path / "new")
    assert pipelines.load_pipeline(tmp_path / "new").unet.conv_in.bias[0] == 0.5
    (tmp_path / "new" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"it holds 'notes.txt'; a new or empty folder"):
        pipelines.save_pipeline(made, tmp_path / "new")


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
    other.vae.register_to_config(scaling_factor=0.5)
    with pytest.raises(
        InputError,
        match=r"\(4, 8, 8, 0.5\) are not allowed: the base's \(4, 8, 8, ",
    ):
        pipelines.check_pair(pipeline, other)
    other = miniature.pipeline(TINY, WORDS, 0)
    other.scheduler = DDIMScheduler.from_config(other.scheduler.config, beta_end=0.02)
    with pytest.raises(InputError, match=r"beta_end=0.02 is not allowed: the base's 0.012"):
        pipelines.check_pair(pipeline, other)


def test_prompts_are_read_as_i2p_has_them(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text('prompt,categories,sd_seed\n"a, b\nc",x,1\nd,y,2\n', encoding="utf-8")
    assert read_prompts(path) == ["a, b\nc", "d"]
    # To the letter: a byte order mark is none, line ends within quotes and blanks are kept.
    path.write_bytes('\ufeffprompt,x\r\n" a ""b""\r\nc ",1\r\n\r\né "5",2\r\n'.encode())
    assert read_prompts(path) == [' a "b"\r\nc ', 'é "5"']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text\na\n", r"columns \['text'\] is not allowed: a column 'prompt'"),
        (b"", r"columns \[\] is not allowed"),
        (b"prompt\n", "holds no prompt"),
        (b"prompt,x\na,1\n ,2\n", "ends in line 3 is empty"),
        (b"prompt,x\na,1\nb, c,2\n", r"ends in line 3 has 3 fields for 2 columns: .* quotes"),
        (b"x,prompt\n1,a\n2\n", r"ends in line 3 has 1 fields for 2 columns"),
        (b'prompt\na\n"b\nc\nd\n', r"row that begins in line 3 cannot be read \(unexpected end"),
        (b'prompt,x\n"a" b,1\n', r"row that begins in line 2 cannot be read"),
        (b"prompt,prompt\na,b\n", r"columns \['prompt', 'prompt'\] is not allowed"),
        (b"prompt\na\nb\0c\n", "line 3 holds a NUL"),
        (b"prompt\na\n\xe9\n", "line 3 is not in UTF-8"),
        ("prompt\na\n".encode("utf-16"), "line 1 is not in UTF-8"),
        (b"prompt\na\n" + b"x" * 200_000, r"begins in line 3 cannot be read \(field larger than"),
    ],
)
def test_a_line_of_prompts_that_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "prompts.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 400


def test_what_is_no_file_of_prompts_is_named(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path, "a red circle, " * 100, "a\0b"):
        with pytest.raises(InputError, match=r"is not allowed: a CSV file in UTF-8"):
            read_prompts(path)


def test_prompts_must_fit_the_tokenizer(pipeline):
    for prompts, message in (
        ([], "at least one prompt"),
        (["red", " "], "a text is needed"),
        (["red " * 7], "of 9 tokens is not allowed: at most 8"),
        ("red circle", r"prompts='red circle' is not allowed: a list of texts"),
        (5, r"prompts=5 is not allowed: a list of texts"),
        (["red", 5], r"prompt=5 is not allowed: a text is needed"),
        (["red 5"], r"prompt='red 5' is not allowed: letters and signs of the tokenizer's"),
        (["red <|endoftext|> blue"], r"letters and signs of the tokenizer's vocabulary"),
    ):
        with pytest.raises(InputError, match=message):
            pipelines.embed(pipeline, prompts)
    (cut,) = pipelines.embed(pipeline, ["red " * 7], truncate=True)
    assert torch.equal(cut, *pipelines.embed(pipeline, ["red " * 6]))


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
    for given, message in (
        (found[0], "a list of PIL images, at least one, is needed"),
        ([], r"images=\[\] is not allowed"),
        (np.zeros((1, 16, 16, 3)), "a list of PIL images"),
        (["picture.png"], "image='picture.png' is not allowed: a PIL image is needed"),
    ):
        with pytest.raises(InputError, match=message):
            pipelines.encode(pipeline, given)
