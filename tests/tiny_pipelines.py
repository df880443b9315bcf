"""Pipelines of every kind with tiny random weights, of diffusers' and transformers' own classes."""

import string

import torch
from diffusers import (
    AutoencoderKL,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from rrlib.images.miniature import pipeline as miniature

WORDS = ("red", "blue", "circle", "square")
TOKENS, WIDTH = 8, 16
SIZE = miniature.Size(pixels=16, vae=(8, 16), unet=(8, 16), text=WIDTH, layers=2, tokens=TOKENS)


def stable_diffusion(seed: int, prediction: str = "epsilon") -> DiffusionPipeline:
    """Of version 1, or 2 with "v_prediction"."""
    made = miniature.pipeline(SIZE, WORDS, seed)
    made.scheduler.register_to_config(prediction_type=prediction)
    return made


def unconditional(seed: int, channels: int = 1, prediction: str = "epsilon") -> DDPMPipeline:
    """Of pixels, 8 x 8."""
    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    return quiet(DDPMPipeline(unet, DDPMScheduler(prediction_type=prediction)))


def t5() -> tuple[T5EncoderModel, T5Tokenizer]:
    """An encoder, and a tokenizer in which each of `WORDS` is a piece."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -1.0) for word in WORDS]
    pieces += [(letter, -9.0) for letter in string.ascii_lowercase]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TOKENS)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=2 * WIDTH,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config).eval(), tokenizer


def vae(channels: int, **settings) -> AutoencoderKL:
    """Two resolutions: a latent's number is 2 x 2 pixels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=16,
        **settings,
    ).eval()


def clip(known, kind: type, **settings):
    """A text encoder of these words."""
    config = CLIPTextConfig(
        vocab_size=len(known),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=known.bos_token_id,
        eos_token_id=known.eos_token_id,
        pad_token_id=known.pad_token_id,
        projection_dim=WIDTH,
        **settings,
    )
    return kind(config).eval()


def stable_diffusion_xl(seed: int) -> StableDiffusionXLPipeline:
    """Two text encoders, a pooled text of 16 numbers and six sizes of 8."""
    torch.manual_seed(seed)
    known = [miniature.tokenizer(WORDS, TOKENS) for _ in range(2)]
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    encoders = clip(known[0], CLIPTextModel), clip(known[1], CLIPTextModelWithProjection)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    own = vae(4, scaling_factor=0.13025)
    return quiet(StableDiffusionXLPipeline(own, *encoders, *known, unet.eval(), scheduler))


def stable_diffusion_3(seed: int, third: bool = True) -> StableDiffusion3Pipeline:
    """Two CLIP encoders and T5, unless it is left out."""
    torch.manual_seed(seed)
    known = [miniature.tokenizer(WORDS, TOKENS) for _ in range(2)]
    encoders = [clip(one, CLIPTextModelWithProjection) for one in known]
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
    )
    encoder, words = t5() if third else (None, None)
    made = StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False),
        text_encoder=encoders[0],
        tokenizer=known[0],
        text_encoder_2=encoders[1],
        tokenizer_2=known[1],
        text_encoder_3=encoder,
        tokenizer_3=words,
    )
    return quiet(made)


def flux(seed: int, guidance: bool = False) -> FluxPipeline:
    """CLIP and T5; told its guidance, or not."""
    torch.manual_seed(seed)
    known = miniature.tokenizer(WORDS, TOKENS)
    encoder, words = t5()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance,
    )
    with torch.no_grad():  # published as zeros, of which no reward can be made
        transformer.proj_out.weight.normal_(0, 0.1)
    made = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False),
        text_encoder=clip(known, CLIPTextModel),
        tokenizer=known,
        text_encoder_2=encoder,
        tokenizer_2=words,
        transformer=transformer.eval(),
    )
    return quiet(made)


def quiet(pipeline):
    """The same without a progress bar."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
