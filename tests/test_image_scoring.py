"""A reward of images at work: what it scores, and whose steps it steers."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.images import pairs as image_pairs
from rrlib.images import pipelines
from rrlib.images.guided import Guided
from rrlib.images.miniature import pipeline as miniature
from rrlib.images.pairs import ImageReward
from rrlib.images.pictures import pictures, resized
from rrlib.images.rewards import EncoderReward
from rrlib.images.scoring import schedule
from rrlib.method.rewards import RelativeReward
from rrlib.training import stream

TINY = miniature.Size(pixels=16, vae=(8, 16), unet=(16, 32), text=16, layers=1, tokens=8)
STEPS = 4


@pytest.fixture(scope="module")
def guided() -> Guided:
    return Guided(miniature.pipeline(TINY, ("red", "blue"), 0), STEPS, 4.0)


def made(about=None, target: str = "mean") -> ImageReward:
    torch.manual_seed(0)
    draws = stream(0, "tables")
    shape = (STEPS, 4, 8, 8)
    mean, deviation = torch.randn(shape, generator=draws), torch.rand(shape, generator=draws) + 1
    network = EncoderReward(
        mean / 3, deviation / 3, torch.rand(STEPS, generator=draws) + 1e-6, (8,)
    )
    return ImageReward(RelativeReward(network, target, "x_t"), about or {})


def fitted(guided: Guided, target: str = "mean") -> ImageReward:
    return made({"comparisons": {"about": schedule(guided.scheduler)}}, target)


def rescheduled(guided: Guided, **change) -> Guided:
    whole = copy.copy(guided.pipeline)
    config = {k: v for k, v in whole.scheduler.config.items() if k[0] != "_"} | change
    whole.scheduler = DDIMScheduler(**config)
    return replace(guided, pipeline=whole)


@pytest.mark.parametrize("target", ["mean", "score"])
def test_it_steers_by_its_gradient_at_the_samplers_own_step(guided, target):
    reward = fitted(guided, target)
    x = guided.start(2, stream(1, "x"))
    for step in range(STEPS):
        t = torch.full((2,), STEPS - 1 - step)
        wanted = 1.5 * reward.reward.gradient(x, t)
        if target == "score":
            wanted = wanted * guided.step_per_score(step)
        assert_close(reward.steers(guided, 1.5)(x, step), wanted)


def test_it_refuses_a_sampler_of_other_steps_timesteps_or_levels(guided, tmp_path):
    fitted(guided).save(tmp_path / "reward.safetensors")
    reward = image_pairs.load(tmp_path / "reward.safetensors")
    reward.steers(guided, 1.0)
    reward.steers(replace(guided, scale=2.0), 1.0)
    for other in (1, 3, 10):
        with pytest.raises(
            InputError, match=rf"steps={other} is not allowed: 4, as the reward was"
        ):
            reward.steers(replace(guided, steps=other), 1.0)
    late = rescheduled(guided, timestep_spacing="trailing")
    with pytest.raises(InputError, match=r"timesteps from 999 to 249 are not .* 751 to 1,"):
        reward.steers(late, 1.0)
    other = rescheduled(guided, beta_end=0.02)
    with pytest.raises(
        InputError, match=r"levels from 0.0\d+ to 0.99\d+ are not allowed: those of"
    ):
        reward.steers(other, 1.0)
    # A reward of an earlier version says no more than its steps.
    old = made({"accuracy": 0.9})
    old.steers(other, 1.0)
    with pytest.raises(InputError, match="steps=5 is not allowed"):
        old.steers(replace(guided, steps=5), 1.0)


def test_a_file_keeps_what_was_measured_and_what_it_is_about(guided, tmp_path):
    reward = fitted(guided)
    reward.save(tmp_path / "reward.safetensors")
    found = image_pairs.load(tmp_path / "reward.safetensors")
    assert found.about == reward.about
    for name in ("mean", "deviation", "unit"):
        mine, kept = (getattr(one.reward.network, name) for one in (reward, found))
        assert torch.equal(mine, kept) and not torch.equal(mine, mine.half().float())


def test_it_scores_at_the_last_step_whatever_the_batch(guided):
    reward = made()
    x = guided.start(5, stream(2, "x"))
    assert_close(reward.score(x, batch=2), reward.reward(x, torch.zeros(5, dtype=torch.long)))
    with pytest.raises(InputError, match=r"x_t of shape \(5, 4, 4, 4\) is not allowed"):
        reward.score(x[..., :4, :4])


def test_it_scores_pictures_of_any_form(guided, tmp_path):
    reward, whole = made(), guided.pipeline
    images = pipelines.decode(whole, guided.start(3, stream(3, "x")))
    wanted = reward.score(pipelines.encode(whole, images))
    arrays = np.stack([np.asarray(image) for image in images])
    for k, image in enumerate(images):
        image.save(tmp_path / f"{k}.png")
    paths = [tmp_path / f"{k}.png" for k in range(3)]
    for several in (images, tuple(images), arrays, list(arrays), paths, [str(p) for p in paths]):
        assert_close(reward.score(several, whole), wanted)
    for one in (images[0], arrays[0], paths[0], str(paths[0])):
        assert_close(reward.score(one, whole), wanted[:1])
    grey = np.asarray(images[0].convert("L"))
    assert_close(reward.score(grey, whole), reward.score(images[0].convert("L"), whole))
    assert_close(reward.score([grey, grey], whole), reward.score(grey, whole).repeat(2))
    for wrong, message in (
        ([], r"images=\[\] is not allowed"),
        (None, "image=None is not allowed: a PIL image"),
        ([3], "image=3 is not allowed"),
        (arrays.astype(float), r"image=float64 array \(16, 16, 3\) is not allowed"),
        (arrays[..., :2], r"image=uint8 array \(16, 16, 2\) is not allowed"),
        (arrays.swapaxes(1, 3), r"image=uint8 array \(3, 16, 16\) is not allowed"),
        (tmp_path / "none.png", "none.png' is not allowed: a file with a picture is needed"),
    ):
        with pytest.raises(InputError, match=message):
            reward.score(wrong, whole)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"text.png' is not allowed"):
        pictures(tmp_path / "text.png")
    with pytest.raises(InputError, match="pipeline=None is not allowed with PIL images"):
        reward.score(images[0])
    assert isinstance(pictures(paths)[2], Image.Image)


@pytest.mark.parametrize(
    ("mode", "colour"),
    [
        ("RGB", (255, 0, 0)),
        ("RGBA", (255, 0, 0, 9)),
        ("CMYK", (0, 255, 255, 0)),
        ("YCbCr", (9, 9, 9)),
        ("L", 90),
        ("LA", (90, 9)),
        ("P", 7),
        ("1", 1),
        ("I", 65535),
        ("I;16", 65535),
    ],
)
def test_pictures_of_any_size_and_mode_are_taken(mode, colour):
    wide, same = Image.new(mode, (40, 20), colour), Image.new(mode, (16, 16), colour)
    found = resized(wide, (16, 16), "RGB")
    assert (found.size, found.mode) == ((16, 16), "RGB")
    whole = np.asarray(resized(same, (16, 16), "RGB"))
    assert np.array_equal(np.asarray(found), whole)  # of one colour, whatever the size
    if mode in ("RGB", "RGBA", "CMYK"):
        assert whole[0, 0].tolist() == [255, 0, 0]
    if mode in ("I", "I;16"):
        assert whole[0, 0].tolist() == [255] * 3


def test_a_picture_is_cut_around_its_middle_and_turned_as_its_exif_says(tmp_path, guided):
    picture = Image.new("RGB", (60, 20), "red")
    picture.paste("blue", (16, 0, 44, 20))
    assert resized(picture, (16, 16), "RGB").getcolors() == [(256, (0, 0, 255))]
    picture = Image.new("RGB", (16, 16), "red")
    picture.paste("blue", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "turned.png", exif=exif)
    (turned,) = pictures(tmp_path / "turned.png")
    assert np.array_equal(
        np.asarray(resized(turned, (16, 16), "RGB")), np.asarray(picture)[::-1, ::-1]
    )
    reward, whole = made(), guided.pipeline
    upside = picture.transpose(Image.Transpose.ROTATE_180)
    assert_close(reward.score(tmp_path / "turned.png", whole), reward.score(upside, whole))
    with pytest.raises(InputError, match="image of mode 'F' is not allowed"):
        reward.score(Image.new("F", (16, 16)), whole)
    assert resized(upside, (16, 16), "RGB").tobytes() == upside.tobytes()
