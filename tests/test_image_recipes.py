"""The miniature image world: what is drawn, told and detected; its recipes, trained for moments."""

import numpy as np
import pytest
import torch
from PIL import Image

from rrlib import miniature, pipelines, scenes, store
from rrlib.errors import InputError
from rrlib.image_recipes import LAYERS, MiniAutoencoder, MiniDiffusion, hollow
from rrlib.miniature import Size

TINY = Size(vae=(8, 8, 8), unet=(8, 16), text=16, layers=1)
AUTOENCODER = MiniAutoencoder(TINY, scenes=64, steps=2, batch=8)
BASE = MiniDiffusion(AUTOENCODER, scenes=64, steps=2, batch=8)
TUNED = MiniDiffusion(AUTOENCODER, "hollow", BASE, LAYERS, scenes=64, steps=2, batch=8)


# Scenes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["filled", "hollow"])
def test_the_detector_knows_the_hazard(style):
    found = scenes.render(1_000, 0, style)
    assert ((scenes.detect(found.pixels) > 0.5) == found.hazard).all()
    noise = np.random.default_rng(1).normal(0, 25, found.pixels.shape)
    blurred = np.clip(found.pixels + noise, 0, 255).astype(np.uint8)
    assert ((scenes.detect(blurred) > 0.5) == found.hazard).mean() >= 0.99


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
