"""What a pipeline's digest knows: everything that its images depend on, and nothing else."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from rrlib.errors import InputError
from rrlib.images import pipelines
from rrlib.images.miniature import pipeline as miniature
from rrlib.images.pipeline_digest import digest

WORDS = ("red", "blue", "circle", "square")
TINY = miniature.Size(pixels=16, vae=(8, 16), unet=(16, 32), text=16, layers=1, tokens=8)


@pytest.fixture
def whole():
    return miniature.pipeline(TINY, WORDS, 0)


class Adapter(nn.Module):
    """A layer with low-rank updates, its state kept as PEFT's layers keep theirs."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.base_layer = layer
        draws = torch.Generator().manual_seed(0)
        for name in ("style", "mood"):
            down = torch.randn(2, layer.in_features, generator=draws)
            self.register_parameter(f"down_{name}", nn.Parameter(down))
            up = torch.randn(layer.out_features, 2, generator=draws)
            self.register_parameter(f"up_{name}", nn.Parameter(up))
        self.scaling = {"style": 1.0, "mood": 1.0}
        self._active_adapter, self._disable_adapters = ["style"], False

    def forward(self, x):
        out = self.base_layer(x)
        for name in () if self._disable_adapters else self._active_adapter:
            down, up = getattr(self, f"down_{name}"), getattr(self, f"up_{name}")
            out = out + self.scaling[name] * x @ down.T @ up.T
        return out


def adapted(whole) -> Adapter:
    """Give the first attention of the U-Net an adapter."""
    attention = whole.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.to_q = Adapter(attention.to_q)
    return attention.to_q


def noise_of(whole) -> torch.Tensor:
    draws = torch.Generator().manual_seed(1)
    x, texts = torch.randn(1, 4, 8, 8, generator=draws), torch.randn(1, 8, 16, generator=draws)
    with torch.no_grad():
        return whole.unet(x, 500, encoder_hidden_states=texts).sample


@torch.no_grad()
def scaled(part: nn.Module) -> None:
    for value in part.parameters():
        value.mul_(3)


def rescheduled(whole, **change) -> None:
    config = {k: v for k, v in whole.scheduler.config.items() if k[0] != "_"}
    whole.scheduler = DDIMScheduler(**config | change)


CHANGES = {
    "text encoder": lambda whole: scaled(whole.text_encoder),
    "autoencoder": lambda whole: scaled(whole.vae),
    "network": lambda whole: scaled(whole.unet.conv_out),
    "buffer": lambda whole: whole.text_encoder.register_buffer("shift", torch.ones(2)),
    "end of the betas": lambda whole: rescheduled(whole, beta_end=0.02),
    "first timestep": lambda whole: rescheduled(whole, steps_offset=0),
    "more words": lambda whole: whole.register_modules(
        tokenizer=miniature.tokenizer((*WORDS, "green"), 8)
    ),
    "same words in another order": lambda whole: whole.register_modules(
        tokenizer=miniature.tokenizer(WORDS[::-1], 8)
    ),
    "shorter texts": lambda whole: setattr(whole.tokenizer, "model_max_length", 7),
    "scale of latents": lambda whole: whole.vae.register_to_config(scaling_factor=0.5),
    "attention's scale": lambda whole: setattr(
        whole.unet.mid_block.attentions[0].transformer_blocks[0].attn1, "scale", 0.1
    ),
    "type of weights": lambda whole: whole.vae.half(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_images_depend_on_is_in_the_digest(whole, name):
    before = digest(whole)
    CHANGES[name](whole)
    assert digest(whole) != before


def test_adapters_their_scales_and_names_are_in_the_digest(whole):
    plain, without = noise_of(whole), digest(whole)
    layer = adapted(whole)
    found, outputs = [without, digest(whole)], [plain, noise_of(whole)]

    def note():
        found.append(digest(whole))
        outputs.append(noise_of(whole))

    layer.scaling["style"] = 0.25
    note()
    layer._active_adapter = ["mood"]
    note()
    layer._active_adapter = ["style", "mood"]
    note()
    with torch.no_grad():
        layer.up_mood.mul_(2)
    note()
    assert len(set(found)) == len(found)
    for k, output in enumerate(outputs):  # each of these is another model
        assert all((output - other).abs().max() > 1e-4 for other in outputs[:k])
    layer._disable_adapters = True
    assert digest(whole) not in found
    assert torch.equal(noise_of(whole), plain)


def test_an_image_adapters_scale_is_in_the_digest(whole):
    attention = whole.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.processor.scale = [0.6]
    before = digest(whole)
    attention.processor.scale = [0.7]
    assert digest(whole) != before


@pytest.mark.lengthy
def test_the_same_pipeline_has_one_digest_wherever_it_lies(whole, tmp_path):
    first = digest(whole)
    assert digest(copy.deepcopy(whole)) == first == digest(whole)
    # What was asked of it does not count: a tokenizer keeps how it padded last.
    pipelines.embed(whole, ["red circle"])
    whole.unet.train()
    assert digest(whole) == first
    for name in ("here", "there"):
        pipelines.save_pipeline(whole, tmp_path / name)
    here, there = (pipelines.load_pipeline(tmp_path / name) for name in ("here", "there"))
    assert digest(here) == digest(there)


def test_what_two_pipelines_share_is_read_once(whole, monkeypatch):
    other = copy.deepcopy(whole)
    other.vae, other.text_encoder = whole.vae, whole.text_encoder
    calls, real = [], nn.Module.named_parameters

    def noted(self, *args, **options):
        calls.append(self)
        return real(self, *args, **options)

    monkeypatch.setattr(nn.Module, "named_parameters", noted)
    seen: dict[int, str] = {}
    found = [digest(whole, seen), digest(other, seen)]
    read = [id(part) for part in calls]
    for part in (whole.vae, whole.text_encoder, whole.unet, other.unet):
        assert read.count(id(part)) == 1
    assert found[0] == found[1] == digest(other)


def test_weights_that_are_not_in_memory_are_refused(whole):
    whole.vae.to("meta")
    with pytest.raises(InputError, match=r"its vae is not in memory"):
        digest(whole)
