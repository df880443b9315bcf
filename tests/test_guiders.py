"""A reward in diffusers' modular pipelines, against the same loop written out."""

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from rrlib.errors import InputError
from rrlib.images.guided import Guided
from rrlib.images.guiders import RewardGuidance
from rrlib.images.miniature import pipeline as miniature
from rrlib.images.miniature import scenes
from rrlib.images.rewards import EncoderReward
from rrlib.images.scoring import schedule
from rrlib.method.rewards import RelativeReward

STEPS = 5


def components() -> dict:
    """The parts of a tiny Stable Diffusion XL, of random weights."""
    torch.manual_seed(0)
    tokens = miniature.tokenizer(scenes.WORDS, 16)
    text = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=37, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=16, projection_dim=32,
        bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=8, in_channels=4,
        out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=80,
        cross_attention_dim=64, norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8,
        sample_size=16,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    return {
        "unet": unet, "vae": vae, "scheduler": scheduler, "tokenizer": tokens,
        "tokenizer_2": tokens, "text_encoder": CLIPTextModel(text),
        "text_encoder_2": CLIPTextModelWithProjection(text),
    }  # fmt: skip


def reward(target="score", steps=STEPS, place="x_t") -> RelativeReward:
    torch.manual_seed(1)
    unit = torch.linspace(0.5, 1.5, steps)
    tables = torch.zeros(steps, 4, 8, 8), torch.ones(steps, 4, 8, 8)
    return RelativeReward(EncoderReward(*tables, unit, (8, 16)), target, place)


@pytest.fixture(scope="module")
def pipeline():
    made = StableDiffusionXLAutoBlocks().init_pipeline()
    made.update_components(**components(), force_zeros_for_empty_prompt=True)
    made.set_progress_bar_config(disable=True)
    return made


def drawn(pipeline, guider) -> torch.Tensor:
    """Latents that a guider leads to."""
    pipeline.update_components(guider=guider)
    options = {"height": 16, "width": 16, "num_inference_steps": STEPS, "output_type": "latent"}
    with torch.no_grad():
        return pipeline(
            prompt="a red circle", generator=torch.Generator().manual_seed(3), output="images",
            **options,
        )  # fmt: skip


@pytest.mark.lengthy
@pytest.mark.parametrize("target", ["score", "mean"])
def test_a_step_adds_the_gradient_to_the_noise(pipeline, target):
    """With a network that says nothing, only the reward moves the latents beyond DDIM's scaling."""
    rho, weights = reward(target), [p.detach().clone() for p in pipeline.unet.parameters()]
    try:
        with torch.no_grad():
            pipeline.unet.conv_out.weight.zero_()
            pipeline.unet.conv_out.bias.zero_()
        scheduler = pipeline.scheduler
        found = drawn(pipeline, RewardGuidance(rho, scheduler, 0.7, guidance_scale=3.0))
        plain = drawn(pipeline, ClassifierFreeGuidance(guidance_scale=3.0))
    finally:
        with torch.no_grad():
            for parameter, kept in zip(pipeline.unet.parameters(), weights, strict=True):
                parameter.copy_(kept)
    # The literal loop, from the same noise: DDIM of no noise at all gives it back.
    schedule = DDIMScheduler.from_config(scheduler.config)
    schedule.set_timesteps(STEPS)
    scale = 1.0
    for k in schedule.timesteps:
        scale *= schedule.step(torch.zeros(1), k, torch.ones(1)).prev_sample.item()
    x = plain / scale
    for step, k in enumerate(schedule.timesteps):
        t = torch.full((1,), STEPS - 1 - step)
        shift, deviation = 0.7 * rho.gradient(x, t), (1 - schedule.alphas_cumprod[k]).sqrt()
        if target == "score":
            x = schedule.step(-deviation * shift, k, x).prev_sample
        else:
            x = schedule.step(torch.zeros_like(x), k, x).prev_sample + shift
    assert_close(found, x, rtol=1e-4, atol=1e-4)
    assert (found - plain).abs().max() > 1e-2


@pytest.mark.lengthy
def test_without_weight_it_is_classifier_free_guidance(pipeline):
    mine = RewardGuidance(reward(), pipeline.scheduler, 0.0, guidance_scale=3.0)
    assert_close(drawn(pipeline, mine), drawn(pipeline, ClassifierFreeGuidance(guidance_scale=3.0)))
    off = RewardGuidance(reward(), pipeline.scheduler, 1.0, guidance_scale=3.0, enabled=False)
    said = torch.ones(1, 4, 8, 8)
    assert off.forward(said).pred is said
    assert not pipeline.unet._forward_pre_hooks


def test_what_cannot_be_right_is_refused(pipeline):
    with pytest.raises(InputError, match="num_inference_steps=5 is not allowed: 9, the steps"):
        drawn(pipeline, RewardGuidance(reward(steps=9), pipeline.scheduler))
    with pytest.raises(InputError, match="place='mu_base' is not allowed"):
        RewardGuidance(reward(place="mu_base"), pipeline.scheduler)
    velocity = DDIMScheduler(prediction_type="v_prediction")
    with pytest.raises(InputError, match="a DDIMScheduler that predicts noise is needed"):
        RewardGuidance(reward(), velocity)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_a_unit_of_score_is_worth_what_a_sampler_says(spacing):
    made = miniature.pipeline(miniature.Size(16, (8, 16), (16, 32), 16, 1), scenes.WORDS, 0)
    made.scheduler.register_to_config(timestep_spacing=spacing)
    guided = Guided(made, STEPS)
    scheduler = DDIMScheduler.from_config(guided.scheduler.config)
    scheduler.set_timesteps(STEPS)
    guider = RewardGuidance(reward(), scheduler)
    nothing, one = torch.zeros(1), torch.ones(1)
    for step, t in enumerate(scheduler.timesteps):
        deviation, per_score = guider._tables(step)
        assert deviation == pytest.approx((1 - float(scheduler.alphas_cumprod[t])) ** 0.5)
        assert per_score == pytest.approx(guided.step_per_score(step), rel=1e-4)
        moved = scheduler.step(one, t, nothing).prev_sample  # by a noise of one
        assert per_score == pytest.approx(-deviation * float(moved), rel=1e-4)


def test_levels_of_another_schedule_than_the_fits_are_refused():
    fitted = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    fitted.set_timesteps(STEPS)
    rho = reward()
    rho = RelativeReward(
        rho.network, rho.target, rho.place, {"comparisons": {"about": schedule(fitted)}}
    )
    assert len(RewardGuidance(rho, fitted)._tables(0)) == 2
    other = DDIMScheduler(timestep_spacing="linspace")
    other.set_timesteps(STEPS)
    with pytest.raises(InputError, match=r"^scheduler: timesteps from 999 to 0 are not allowed"):
        RewardGuidance(rho, other)._tables(0)
