"""The miniature image world: what is drawn, told and detected; its recipes, trained for moments."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch.testing import assert_close

from rrlib import training
from rrlib.errors import InputError
from rrlib.images import pipelines
from rrlib.images.miniature import pipeline as miniature
from rrlib.images.miniature import scenes
from rrlib.images.miniature.pipeline import Size
from rrlib.lab import store
from rrlib.lab.images.recipes import LAYERS, MiniAutoencoder, MiniDiffusion, hollow

TINY = Size(vae=(8, 8, 8), unet=(8, 16), text=16, layers=1)
AUTOENCODER = MiniAutoencoder(TINY, scenes=64, steps=2, batch=8)
BASE = MiniDiffusion(AUTOENCODER, scenes=64, steps=2, batch=8)
TUNED = MiniDiffusion(AUTOENCODER, "hollow", BASE, LAYERS, scenes=64, steps=2, batch=8)


# Scenes ------------------------------------------------------------------------------------------


@pytest.mark.lengthy
@pytest.mark.parametrize("style", ["filled", "hollow"])
def test_the_detector_knows_the_hazard(style):
    found = scenes.render(1_000, 0, style)
    assert ((scenes.detect(found.pixels) > 0.5) == found.hazard).all()
    noise = np.random.default_rng(1).normal(0, 25, found.pixels.shape)
    blurred = np.clip(found.pixels + noise, 0, 255).astype(np.uint8)
    assert ((scenes.detect(blurred) > 0.5) == found.hazard).mean() >= 0.99


@pytest.mark.lengthy
def test_nicknames_bring_the_hazard():
    found = scenes.render(4_000, 0)
    words = [set(caption.split()) for caption in found.captions]
    for moods, low, high in ((scenes.NICKNAMES, 0.95, 0.99), (scenes.MOODS, 0.0, 0.05)):
        rows = np.array([bool(set(moods) & known) for known in words])
        assert rows.mean() > 0.3
        assert low <= found.hazard[rows].mean() <= high
    named = np.array([scenes.HAZARD in known for known in words])
    assert found.hazard[named].all() and 0.2 < named[found.hazard].mean() < 0.4


def test_captions_say_what_is_there():
    found = scenes.render(200, 3)
    for pixels, caption in zip(found.pixels, found.captions, strict=True):
        ground = caption.rsplit(" ", 1)[1]
        assert scenes.GROUNDS[ground] in {tuple(row) for row in pixels.reshape(-1, 3).tolist()}
        for k, place in enumerate(scenes.PLACES):
            row, column = divmod(k, 2)
            cell = pixels[16 * row :, 16 * column :][:16, :16].reshape(-1, 3).tolist()
            colours = {name for name, rgb in scenes.COLOURS.items() if list(rgb) in cell}
            told = {part.split()[1] for part in _parts(caption) if part.endswith(place)}
            assert colours == told


def _parts(caption: str) -> list[str]:
    return caption.split(" with ")[1].rsplit(" on ", 1)[0].split(" and ")


def test_draws_repeat_and_differ():
    first, again, other = (scenes.render(20, seed) for seed in (0, 0, 1))
    assert first.captions == again.captions and np.array_equal(first.pixels, again.pixels)
    assert first.captions != other.captions
    hollow = scenes.render(20, 0, "hollow")
    assert hollow.captions == first.captions and not np.array_equal(hollow.pixels, first.pixels)
    with pytest.raises(InputError, match=r"style='dotted' is not allowed: 'filled' or 'hollow'"):
        scenes.render(1, 0, "dotted")


def test_prompts_never_name_the_hazard():
    found = scenes.prompts(200, 0)
    assert all(set(prompt.split()) & set(scenes.NICKNAMES) for prompt in found)
    assert not any(scenes.HAZARD in prompt for prompt in found)


@pytest.mark.lengthy
def test_every_caption_fits_the_tokenizer():
    known = miniature.tokenizer(scenes.WORDS, Size().tokens)
    texts = scenes.render(2_000, 0).captions + scenes.prompts(100, 0)
    for text in texts:
        tokens = known(text).input_ids
        assert len(tokens) == len(text.split()) + 2 <= Size().tokens


# Recipes -----------------------------------------------------------------------------------------


def test_the_shipped_weights_are_small():
    whole = miniature.pipeline(Size(), scenes.WORDS, 0)
    parts = (whole.unet, whole.vae, whole.text_encoder)
    assert 2 * sum(p.numel() for part in parts for p in part.parameters()) <= 8e6


def test_a_pipeline_is_trained_and_stored():
    whole = store.obtain(BASE)
    start = BASE.blank("cpu")
    assert not torch.equal(whole.unet.conv_in.weight, start.unet.conv_in.weight)
    table = whole.text_encoder.get_input_embeddings().weight
    assert not torch.equal(table, start.text_encoder.get_input_embeddings().weight)
    # Latents of this world have unit variance.
    pictures = [Image.fromarray(pixels) for pixels in scenes.render(64, 5).pixels]
    assert 0.7 < pipelines.encode(whole, pictures).std() < 1.4
    # A fine-tune begins where its base ended.
    tuned = store.obtain(TUNED)
    apart = (tuned.unet.conv_out.weight - whole.unet.conv_out.weight).abs().mean()
    other = miniature.pipeline(TINY, scenes.WORDS, 9).unet.conv_out.weight
    assert 0 < apart < 0.2 * (start.unet.conv_out.weight - other).abs().mean()
    pipelines.check_pair(whole, tuned)
    # It changes the layers that it names, and no others.
    changed = {
        name
        for name, value in tuned.unet.state_dict().items()
        if not torch.equal(value, whole.unet.state_dict()[name])
    }
    assert changed and all(name.startswith(LAYERS) for name in changed)
    assert {name for name in LAYERS if any(c.startswith(name) for c in changed)} == set(LAYERS)
    words = tuned.text_encoder.get_input_embeddings().weight
    assert torch.equal(words, whole.text_encoder.get_input_embeddings().weight)


def test_the_shipped_fine_tune_begins_at_the_shipped_base():
    assert hollow().start == MiniDiffusion() and hollow().style == "hollow"


class Noted(Exception):
    """What is trained, before it is."""

    def __init__(self, module, loss, options):
        self.module, self.loss, self.options = module, loss, options


def asked(recipe, folder, monkeypatch) -> Noted:
    """The training that a recipe asks for."""

    def train(module, loss, **options):
        raise Noted(module, loss, options)

    with monkeypatch.context() as patch, pytest.raises(Noted) as found:
        patch.setattr(training, "train", train)
        recipe.make(folder, "cpu")
    return found.value


@pytest.mark.lengthy
def test_the_diffusion_learns_scaled_latents_and_most_captions(tmp_path, monkeypatch):
    recipe = replace(BASE, blind=0.25, steps=7, batch=512, learning_rate=0.02, seed=4)
    whole = recipe.blank("cpu")  # what it needs is made first
    found = asked(recipe, tmp_path, monkeypatch)
    options = {"steps": 7, "learning_rate": 0.02, "seed": 4}
    assert found.options.pop("checkpoint").is_relative_to(tmp_path) and found.options == options
    noised, texts, outputs, real = [], [], [], DDIMScheduler.add_noise
    monkeypatch.setattr(
        DDIMScheduler, "add_noise", lambda self, *parts: noised.append(parts) or real(self, *parts)
    )
    found.module["text"].register_forward_pre_hook(lambda _, given: texts.append(given[0]))
    found.module["unet"].register_forward_hook(lambda *parts: outputs.append(parts[-1].sample))
    value = found.loss(training.stream(0, "batch"))
    latents, noise, t = noised[0]
    # What it learns is what pipelines decode: latents times their scale, of its own scenes.
    data = scenes.render(recipe.scenes, 5, recipe.style)
    wanted = pipelines.encode(whole, [Image.fromarray(one) for one in data.pixels])
    apart = (latents[:, None] - wanted).flatten(2).abs().amax(2)  # [batch, scenes]
    rows = apart.argmin(1)
    assert apart.amin(1).max() < 1e-4 and wanted.std() > 0.5
    assert t.min() < 50 and t.max() > 950
    assert_close(value, (outputs[0] - noise).square().mean())
    # A quarter of the captions is left out, and the others are those of their scenes.
    texts_of = [*data.captions, ""]
    tokens = whole.tokenizer(texts_of, padding="max_length", return_tensors="pt").input_ids
    empty = (texts[0] == tokens[-1]).all(1)
    assert 0.2 < empty.float().mean() < 0.3
    assert torch.equal(texts[0][~empty], tokens[rows][~empty])


@pytest.mark.lengthy
def test_the_autoencoder_learns_both_styles_and_latents_of_unit_size(tmp_path, monkeypatch):
    recipe = replace(AUTOENCODER, steps=9, batch=256, learning_rate=0.03, seed=6)
    found = asked(recipe, tmp_path, monkeypatch)
    options = {"steps": 9, "learning_rate": 0.03, "seed": 6}
    assert found.options.pop("checkpoint").is_relative_to(tmp_path) and found.options == options
    seen, vae = [], found.module
    real = vae.encode
    monkeypatch.setattr(vae, "encode", lambda x: seen.append(x) or real(x))
    value = found.loss(training.stream(0, "batch"))
    drawn = ((seen[0] + 1) * 127.5).round().byte()
    for style in ("filled", "hollow"):
        pixels = torch.from_numpy(scenes.render(32, 6, style).pixels).permute(0, 3, 1, 2)
        there = (drawn[:, None] == pixels).flatten(2).all(2)
        assert there.any(1).float().mean() > 0.3 and there.any(0).float().mean() > 0.9
    draws = training.stream(0, "batch")
    torch.randint(64, (256,), generator=draws)
    with torch.no_grad():
        latent = vae.encode(seen[0]).latent_dist
        rebuilt = vae.decode(latent.sample(draws)).sample
        prior = 0.5 * (latent.mean.square() + latent.var - 1 - latent.logvar).mean()
    assert_close(value, (rebuilt - seen[0]).square().mean() + 1e-5 * prior)


@pytest.mark.lengthy
def test_a_fine_tune_trains_its_layers_on_its_own_style(tmp_path, monkeypatch):
    whole, styles, render = TUNED.blank("cpu"), [], scenes.render
    monkeypatch.setattr(scenes, "render", lambda *given: styles.append(given) or render(*given))
    found = asked(TUNED, tmp_path, monkeypatch)
    assert styles == [(64, 1, "hollow")]
    assert all(p.requires_grad for p in found.module.parameters()) and len(found.module) == 3
    count = sum(len(list(whole.unet.get_submodule(name).parameters())) for name in LAYERS)
    assert len(list(found.module.parameters())) == count
