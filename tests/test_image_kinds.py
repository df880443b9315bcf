"""Every kind of pipeline against diffusers' own sampling of it, and from folder to steering."""

import copy
from collections.abc import Callable

import pytest
import tiny_pipelines as tiny
import torch
from diffusers import (
    ControlNetModel,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusionControlNetPipeline,
)
from PIL import Image
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.images import guided as images
from rrlib.images import pairs as image_pairs
from rrlib.images import pipelines
from rrlib.images.guided import Guided
from rrlib.images.kinds.choice import kind_of
from rrlib.images.pairs import Fit
from rrlib.images.pipeline_digest import digest
from rrlib.images.safety import CONFIGURATIONS
from rrlib.training import finish, stream

STEPS, SCALE = 3, 4.0
PROMPTS = ["red circle", "blue square"]
KINDS: dict[str, Callable] = {
    "pixels": tiny.unconditional,
    "v": lambda seed: tiny.stable_diffusion(seed, "v_prediction"),
    "XL": tiny.stable_diffusion_xl,
    "3": tiny.stable_diffusion_3,
    "Flux": tiny.flux,
}


@pytest.fixture(scope="module")
def made() -> dict:
    """One pipeline of each kind."""
    return {name: make(0) for name, make in KINDS.items()}


def sampler(pipeline, steps: int = STEPS, **options) -> Guided:
    size = (16, 16) if isinstance(pipeline, FluxPipeline) else None
    return Guided(pipeline, steps, SCALE, size=size, **options)


def asked(guided: Guided, n: int = 2):
    """What a sampler of any kind is asked for n images."""
    return (PROMPTS * n)[:n] if guided.model.tokenizers else n


def last(guided: Guided, x: torch.Tensor) -> torch.Tensor:
    *_, (_, found) = images.denoise(guided, guided.condition(asked(guided, len(x))), x)
    return found


def ddim(scheduler, **changes) -> DDIMScheduler:
    """DDIM of a scheduler's own betas and prediction."""
    names = ("beta_start", "beta_end", "beta_schedule", "prediction_type")
    return DDIMScheduler(**{name: scheduler.config[name] for name in names} | changes)


# Against diffusers -------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_unconditional_sampling_is_that_of_diffusers(prediction):
    whole = tiny.unconditional(0, 3, prediction)
    with torch.no_grad():
        whole.unet.conv_out.weight.mul_(0.2)  # images within their range
    peer = tiny.quiet(DDIMPipeline(whole.unet, ddim(whole.scheduler, clip_sample=False)))
    guided = Guided(whole, 4)
    with torch.no_grad():
        options = {"batch_size": 2, "num_inference_steps": 4, "output_type": "pt"}
        expected = peer(generator=stream(0, "x"), **options).images
    found = last(guided, guided.start(2, stream(0, "x")))
    assert_close((found / 2 + 0.5).clamp(0, 1), expected, atol=1e-4, rtol=0)


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["v", "XL"])
def test_guided_sampling_is_that_of_diffusers(made, name):
    whole = made[name]
    guided = sampler(whole, 5)
    x = guided.start(2, stream(0, "x"))
    peer = copy.copy(whole)
    options = {"set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
    peer.register_modules(scheduler=ddim(whole.scheduler, clip_sample=False, **options))
    options = {"num_inference_steps": 5, "guidance_scale": SCALE, "output_type": "latent"}
    with torch.no_grad():
        expected = peer(PROMPTS, latents=x, **options).images
    assert_close(last(guided, x), expected, atol=1e-3, rtol=1e-3)
    assert expected.abs().max() > 0.5


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (tiny.stable_diffusion_3, {"guidance_scale": SCALE}),
        (lambda seed: tiny.stable_diffusion_3(seed, third=False), {"guidance_scale": SCALE}),
        (tiny.flux, {"true_cfg_scale": SCALE, "negative_prompt": ["", ""]}),
        (lambda seed: tiny.flux(seed, guidance=True), {"guidance_scale": SCALE}),
    ],
)
def test_sampling_of_flows_is_that_of_diffusers(make, options):
    """From half a step below noise alone, by Euler's steps in the flow's own numbers."""
    whole = make(0)
    guided = sampler(whole, 4)
    x = guided.start(2, stream(0, "x"))
    levels = [1 - 0.5 / 4, 3 / 4, 2 / 4, 1 / 4]  # before the shift
    ours = guided.levels.schedule
    abar = torch.tensor(ours.abar[-1])
    s = (1 - abar).sqrt() / (abar.sqrt() + (1 - abar).sqrt())
    own = x * ((1 - s) ** 2 + s**2).sqrt()
    flux = isinstance(whole, FluxPipeline)
    length = {} if guided.model.tokenizers[2:] else {"max_sequence_length": 256}
    length = {"max_sequence_length": 8} if flux or guided.model.tokenizers[2:] else length
    packed = FluxPipeline._pack_latents(own, 2, 4, 8, 8) if flux else own
    with torch.no_grad():
        expected = whole(
            PROMPTS,
            latents=packed,
            sigmas=levels,
            num_inference_steps=4,
            height=16,
            width=16,
            output_type="latent",
            **length,
            **options,
        ).images
    expected = FluxPipeline._unpack_latents(expected, 16, 16, 2) if flux else expected
    assert_close(last(guided, x), expected, atol=1e-4, rtol=1e-4)
    assert_close(torch.tensor(float(whole.scheduler.sigmas[0])), s, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", KINDS)
def test_a_sampler_of_any_kind_meets_the_denoiser_contract(made, name):
    guided = sampler(made[name])
    texts, x = guided.condition(asked(guided)), guided.start(2, stream(0, "x"))
    model = guided.denoiser(texts)
    for step, t in enumerate(guided.scheduler.timesteps):
        epsilon, _ = guided.noise(x, step, texts)
        abar = guided.scheduler.alphas_cumprod[t]
        x0 = model.x0(x, t.repeat(2))
        assert_close(x0, (x - (1 - abar).sqrt() * epsilon) / abar.sqrt())
        if step == STEPS - 1:
            later = guided.scheduler.final_alpha_cumprod
        else:
            later = guided.scheduler.alphas_cumprod[guided.scheduler.timesteps[step + 1]]
        ahead = later.sqrt() * x0 + (1 - later).sqrt() * epsilon
        if name in ("3", "Flux", "pixels") or step < STEPS - 1:
            assert_close(guided.advance(x, epsilon, step), ahead, atol=1e-3, rtol=1e-3)
        worth = guided.advance(x, epsilon + 1, step) - guided.advance(x, epsilon, step)
        score = -1 / (1 - abar).sqrt()
        assert_close(
            worth.mean() / score, torch.tensor(guided.step_per_score(step)), rtol=1e-3, atol=1e-5
        )


def test_safe_guidance_turns_a_flow_too(made):
    whole = made["3"]
    safe = sampler(whole, safety=CONFIGURATIONS["max"], concept="blue")
    x = safe.start(2, stream(0, "x"))
    assert safe.condition(PROMPTS)[0].shape[:2] == (3, 2)
    assert (last(safe, x) - last(sampler(whole), x)).abs().max() > 1e-3


# From folders to steering ------------------------------------------------------------------------


def changed(pipeline):
    """A fine-tune: the same with other weights in its network."""
    other = copy.copy(pipeline)
    network = copy.deepcopy(kind_of(pipeline).network)
    draws = stream(1, "weights")
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=draws))
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    other.register_modules(**{name: network})
    return other


@pytest.mark.lengthy
@pytest.mark.parametrize("name", KINDS)
def test_a_pair_of_folders_is_compared_fitted_scored_saved_and_steered(made, name, tmp_path):
    for folder, pipeline in (("base", made[name]), ("tuned", changed(made[name]))):
        pipelines.save_pipeline(pipeline, tmp_path / folder)
    base, expert = (
        sampler(pipelines.load_pipeline(tmp_path / folder)) for folder in ("base", "tuned")
    )
    assert digest(base.pipeline) == digest(pipelines.load_pipeline(tmp_path / "base"))
    assert digest(base.pipeline) != digest(expert.pipeline)
    run = image_pairs.compare(base, expert, asked(base, 10), tmp_path / "c", batch=5, seed=0)
    finish(run, "")
    reward = image_pairs.learn(tmp_path / "c", Fit(0.5, (8,), steps=2, batch=4))
    pictures = [Image.new("RGBA", (40, 30), "red"), Image.new("L", (5, 9), 100)]
    scores = reward.score(pictures, base.pipeline)
    assert scores.shape == (2,) and scores.isfinite().all() and scores[0] != scores[1]
    reward.save(tmp_path / "reward.safetensors")
    again = image_pairs.load(tmp_path / "reward.safetensors")
    assert_close(again.score(pictures, base.pipeline), scores, rtol=1e-2, atol=1e-2)
    x, texts = base.start(2, stream(0, "x")), base.condition(asked(base))
    *_, (_, plain) = images.denoise(base, texts, x)
    *_, (_, steered) = images.denoise(base, texts, x, again.steers(base, 1.0))
    assert steered.isfinite().all() and not torch.equal(plain, steered)
    assert len(pipelines.decode(base.pipeline, steered)) == 2


def test_all_of_a_pipeline_is_in_its_digest(made):
    whole = copy.copy(made["XL"])
    before = digest(whole)
    whole.register_to_config(force_zeros_for_empty_prompt=False)
    assert digest(whole) != before
    for name, part in (("3", "text_encoder_3"), ("Flux", "transformer"), ("XL", "text_encoder_2")):
        whole = copy.copy(made[name])
        before = digest(whole)
        other = copy.deepcopy(getattr(whole, part))
        with torch.no_grad():
            next(other.parameters()).add_(1)
        whole.register_modules(**{part: other})
        assert digest(whole) != before
    whole = copy.copy(made["3"])
    before = digest(whole)
    whole.register_modules(scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0))
    assert digest(whole) != before


# Pairs that are none -----------------------------------------------------------------------------


def test_a_pair_that_is_none_is_refused_when_it_is_made(made, tmp_path):
    pairs = {
        "kind": (made["3"], made["v"], r"latents .* \(4, 8, 8, 0.18215\) are not allowed: the ba"),
        "shift": (
            made["3"],
            rescheduled(made["3"], FlowMatchEulerDiscreteScheduler(shift=2.0)),
            "its scheduler's shift=2.0 is not allowed: the base's 3.0 is needed",
        ),
        "channels": (tiny.unconditional(0), tiny.unconditional(0, 3), r"\(3, 8, 8\) are not allow"),
        "betas": (
            made["pixels"],
            rescheduled(made["pixels"], DDPMScheduler(beta_end=0.01)),
            "beta_end=0.01 is not allowed: the base's 0.02 is needed",
        ),
    }
    for base, expert, message in pairs.values():
        with pytest.raises(InputError, match=message):
            image_pairs.compare(
                sampler(base), sampler(expert), PROMPTS, tmp_path / "c", batch=2, seed=0
            )
    pixels, v = sampler(made["pixels"]), sampler(made["v"])
    for guided, prompts, message in (
        (
            pixels,
            PROMPTS,
            r"prompts=\['red circle', 'blue square'\] is not allowed: the pipeline t",
        ),
        (pixels, 0, "prompts=0 is not allowed: the pipeline takes no text, so the number of image"),
        (pixels, True, "prompts=True is not allowed"),
        (v, 5, "prompts with 5 are not allowed: one list of texts"),
    ):
        with pytest.raises(InputError, match=message):
            image_pairs.compare(guided, guided, prompts, tmp_path / "c", batch=2, seed=0)
    with pytest.raises(InputError, match="the pipeline takes no text"):
        pixels.condition(PROMPTS)
    assert not (tmp_path / "c").exists()


def rescheduled(pipeline, scheduler):
    other = copy.copy(pipeline)
    other.register_modules(scheduler=scheduler)
    return other


def test_what_a_kind_does_not_take_is_named(made):
    for name, options, message in (
        (
            "pixels",
            {"safety": CONFIGURATIONS["max"]},
            "safety=.* is not allowed: a pipeline that i",
        ),
        ("3", {"size": (15, 16)}, r"size=\(15, 16\) is not allowed: .* multiples of 4, are needed"),
        ("v", {"size": 16}, "size=16 is not allowed"),
        ("Flux", {"steps": 1}, "steps=1 is not allowed: at least 2 levels"),
    ):
        with pytest.raises(InputError, match=message):
            Guided(made[name], **{"steps": STEPS} | options)
    other = rescheduled(made["3"], DDPMScheduler())
    with pytest.raises(InputError, match="'DDPMScheduler' is not one of flow matching"):
        Guided(other)
    other = rescheduled(made["3"], FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    with pytest.raises(InputError, match="invert_sigmas=True turns time around"):
        Guided(other)
    other = rescheduled(made["pixels"], DDPMScheduler(thresholding=True))
    with pytest.raises(InputError, match="thresholding=True is not for such"):
        Guided(other)
    with pytest.raises(InputError, match=r"prompt='red circle red circle .* of 9 tokens"):
        sampler(made["XL"]).condition(["red circle " * 3 + "red"])


def test_a_part_that_would_be_left_out_is_named(made):
    whole = made["v"]
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    parts = {name: getattr(whole, name) for name in names}
    control = ControlNetModel.from_unet(whole.unet)
    other = StableDiffusionControlNetPipeline(
        **parts,
        controlnet=control,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with pytest.raises(InputError, match="its part 'controlnet' would be left out"):
        Guided(other)


def test_an_image_of_another_size_is_drawn_where_it_is_asked_for(made):
    guided = Guided(made["v"], STEPS, SCALE, size=(8, 24))
    assert guided.shape == (4, 4, 12)
    found = last(guided, guided.start(2, stream(0, "x")))
    assert pipelines.decode(made["v"], found)[0].size == (24, 8)
