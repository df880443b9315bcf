"""Stable Diffusion: 1.x and 2.x of one text encoder, XL of two."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rrlib.errors import shown
from rrlib.images.kinds.checks import (
    asked_for_more,
    lacking,
    odd_limit,
    odd_scale,
    odd_size,
    schedule,
    stepped,
)
from rrlib.images.kinds.latents import Latents
from rrlib.images.kinds.protocol import Levels, device_of
from rrlib.images.kinds.unets import OfUNet

ADDED = ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")


def inverted(pipeline: Any, prompts: list[str], tokenizer: Any) -> list[str]:
    """Texts in which a word of textual inversion stands for all of its vectors."""
    convert = getattr(pipeline, "maybe_convert_prompt", None)
    return convert(prompts, tokenizer) if convert else prompts


@dataclass(frozen=True)
class StableDiffusion(OfUNet, Latents):
    """See `Kind`: version 1 and 2, predicting noise, v or the latents."""

    parts: ClassVar[tuple[str, ...]] = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    guided: ClassVar[bool] = True

    @property
    def tokenizers(self) -> tuple:
        """One."""
        return (self.pipeline.tokenizer,)

    def fault(self) -> str | None:
        """See `Kind`."""
        found = lacking(self.pipeline, self.parts)
        if found:
            return f"{found}, so it makes no image of a text"
        if getattr(self.pipeline, "text_encoder_2", None) is not None:
            return "it has a second text encoder, which its U-Net does not read"
        text = self.pipeline.text_encoder.config
        return self._fault_of_unet(text.hidden_size) or odd_limit(
            self.pipeline.tokenizer, text.max_position_embeddings
        )

    def _fault_of_unet(self, width: int, without: tuple[str, ...] = ()) -> str | None:
        unet, vae = self.network.config, self.pipeline.vae.config
        found = asked_for_more(unet, without)
        if found:
            return found
        if not unet.in_channels == unet.out_channels == vae.latent_channels:
            return (
                f"its U-Net takes {unet.in_channels} channels and gives {unet.out_channels}, which "
                f"must both be the {vae.latent_channels} of its latents (other numbers are for "
                "inpainting, depth or learned variances)"
            )
        if unet.cross_attention_dim != width:
            return (
                f"its U-Net reads texts of {shown(unet.cross_attention_dim)} numbers a token and "
                f"its text encoder writes {width}"
            )
        found = odd_size(unet.sample_size, "U-Net") or odd_scale(vae, shifted=False)
        if found:
            return found
        try:
            schedule(self.pipeline.scheduler)
        except ValueError as error:
            return str(error)
        return None

    def noise(self) -> dict[str, Any]:
        """See `Kind`."""
        return dict(schedule(self.pipeline.scheduler).config)

    def levels(self, steps: int, shape: tuple[int, int, int]) -> Levels:
        """See `Kind`."""
        return stepped(schedule(self.pipeline.scheduler), steps)

    def embed(self, prompts: list[str]) -> tuple[Tensor, ...]:
        """The encoder's last hidden states, [B, L, d]."""
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        limit = tokenizer.model_max_length
        options = {"padding": "max_length", "max_length": limit, "truncation": True}
        texts = inverted(self.pipeline, prompts, tokenizer)
        tokens = tokenizer(texts, return_tensors="pt", **options)
        # Stable Diffusion's encoders take no mask, as the pipelines of diffusers have it.
        return (encoder(tokens.input_ids.to(encoder.device))[0],)

    def predict(self, x: Tensor, time: Tensor, told: tuple[Tensor, ...], guidance: float) -> Tensor:
        """See `Kind`."""
        return self.network(x, time, encoder_hidden_states=told[0]).sample


@dataclass(frozen=True)
class StableDiffusionXL(StableDiffusion):
    """See `Kind`: two text encoders; the U-Net is told a pooled text and sizes, too."""

    parts: ClassVar[tuple[str, ...]] = (
        "vae",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "unet",
        "scheduler",
    )

    @property
    def tokenizers(self) -> tuple:
        """Two."""
        return self.pipeline.tokenizer, self.pipeline.tokenizer_2

    def fault(self) -> str | None:
        """See `Kind`."""
        found = lacking(self.pipeline, self.parts)
        if found:
            return f"{found}, as Stable Diffusion XL has"
        unet = self.network.config
        first, second = (getattr(self.pipeline, n).config for n in self.parts[1:3])
        if unet.addition_embed_type != "text_time":
            return (
                f"its U-Net is told more than texts and sizes: addition_embed_type="
                f"{shown(unet.addition_embed_type)}"
            )
        numbers = 6 * unet.addition_time_embed_dim + second.projection_dim
        if unet.projection_class_embeddings_input_dim != numbers:
            return (
                f"its U-Net is told {unet.projection_class_embeddings_input_dim} numbers beside "
                f"the texts, and a pooled text and six sizes are {numbers} (others are a refiner's)"
            )
        width = first.hidden_size + second.hidden_size
        return (
            self._fault_of_unet(width, ADDED)
            or odd_limit(self.pipeline.tokenizer, first.max_position_embeddings)
            or odd_limit(self.pipeline.tokenizer_2, second.max_position_embeddings, "tokenizer_2")
        )

    def embed(self, prompts: list[str]) -> tuple[Tensor, ...]:
        """Both encoders' last hidden states but one, [B, L, d], and the second's pooled, [B, p]."""
        states, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=device_of(self.network), do_classifier_free_guidance=False
        )
        if self.pipeline.config.get("force_zeros_for_empty_prompt"):
            told = torch.tensor([bool(prompt) for prompt in prompts], device=states.device)
            states, pooled = states * told[:, None, None], pooled * told[:, None]
        return states, pooled

    def predict(self, x: Tensor, time: Tensor, told: tuple[Tensor, ...], guidance: float) -> Tensor:
        """See `Kind`: the images are told to be of the size that is drawn, uncropped."""
        states, pooled = told
        size = [side * self.factor for side in x.shape[-2:]]
        shape = {"dtype": pooled.dtype, "device": x.device}
        columns = [torch.full((len(x),), n, **shape) for n in (*size, 0, 0, *size)]
        added = {"text_embeds": pooled, "time_ids": torch.stack(columns, 1)}
        options = {"encoder_hidden_states": states, "added_cond_kwargs": added}
        return self.network(x, time, **options).sample
