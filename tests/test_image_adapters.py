"""One pipeline, its adapters on or off: as two fused copies, in the memory of one."""

import copy
import warnings

import pytest
import tiny_pipelines as tiny
import torch
from peft import LoraConfig
from torch import nn
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.images import comparisons as image_extraction
from rrlib.images import pairs as image_pairs
from rrlib.images import pipelines
from rrlib.images.adapters import layers
from rrlib.images.guided import Guided
from rrlib.images.kinds.choice import kind_of
from rrlib.images.pairs import Fit
from rrlib.images.pipeline_digest import digest
from rrlib.training import finish, stream

STEPS, SCALE = 3, 4.0
PROMPTS = ["red circle", "blue square"]
TARGETS = {"unet": ["to_q", "to_v"], "transformer": ["to_q"], "text_encoder": ["q_proj"]}


def adapt(network: nn.Module, name: str, targets: list[str]) -> None:
    """Give a network an adapter of random weights; others that it has stay."""
    torch.manual_seed(len(name))
    config = LoraConfig(r=2, lora_alpha=6, target_modules=targets, init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that there is one already
        network.add_adapter(config, adapter_name=name)


@pytest.fixture
def whole():
    """A pipeline with two adapters of its U-Net, one of them of its text encoder, too."""
    made = tiny.stable_diffusion(0)
    for name in ("style", "mood"):
        adapt(made.unet, name, TARGETS["unet"])
    adapt(made.text_encoder, "style", TARGETS["text_encoder"])
    made.set_adapters(["mood"], [0.5])
    return made


def fused(pipeline, names: list[str], scales: list[float]):
    """A copy of the pipeline, these adapters in its weights and none beside them."""
    made = copy.deepcopy(pipeline)
    if names:
        made.set_adapters(names, scales)
        made.fuse_lora(components=["unet", "text_encoder"], adapter_names=names)
    made.unload_lora_weights()
    assert not layers(made)
    return made


def run(base: Guided, expert: Guided) -> dict[str, torch.Tensor]:
    """Both samplers' noise of the same latents, and the expert's minus the base's."""
    x = base.start(2, stream(0, "x"))
    texts = [sampler.condition(PROMPTS) for sampler in (base, expert)]
    found = [
        torch.stack([one.noise(x, step, told)[0] for step in range(STEPS)])
        for one, told in zip((base, expert), texts, strict=True)
    ]
    return {"base": found[0], "expert": found[1], "difference": found[1] - found[0]}


def state(pipeline) -> list:
    """All that a call could change."""
    found = [
        (layer.active_adapter, layer.disable_adapters, dict(layer.scaling), layer.training)
        for layer in layers(pipeline)
    ]
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    flags = [value.requires_grad for one in networks for value in one.parameters()]
    return [found, flags, digest(pipeline)]


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("names", "weights"),
    [(("style",), None), (("style",), (0.25,)), (("mood",), None), (("mood", "style"), (2.0, -1))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_and_off_is_two_fused_copies(whole, names, weights, dtype):
    whole.to(dtype)
    before = state(whole)
    one = [
        Guided(whole, STEPS, SCALE, adapters=()),
        Guided(whole, STEPS, SCALE, adapters=names, weights=weights),
    ]
    two = [
        Guided(fused(whole, [], []), STEPS, SCALE),
        Guided(fused(whole, [*names], list(weights or [1.0])), STEPS, SCALE),
    ]
    mine, theirs = run(*one), run(*two)
    size = theirs["difference"].norm() if dtype == torch.float64 else theirs["base"].norm()
    for name, value in theirs.items():  # single precision itself rounds a small difference by more
        assert (mine[name] - value).norm() < 1e-5 * size, name
    assert mine["difference"].norm() > 0.01 * mine["base"].norm()
    x = one[0].start(2, stream(1, "x"))
    shards = [
        image_extraction.run(pair, [g.condition(PROMPTS) for g in pair], x, 1)["differences"]
        for pair in (one, two)
    ]
    assert_close(*shards, rtol=1e-3, atol=1e-4)  # in half precision
    assert state(whole) == before


def storages(*pipelines) -> int:
    """Bytes of all weights and buffers, each counted once."""
    networks = [
        part for one in pipelines for part in one.components.values() if isinstance(part, nn.Module)
    ]
    values = [value for one in networks for value in (*one.parameters(), *one.buffers())]
    return sum(
        {
            value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in values
        }.values()
    )


@pytest.mark.lengthy
def test_the_weights_are_in_memory_once(whole, tmp_path):
    pointers = {name: value.data_ptr() for name, value in whole.unet.named_parameters()}
    before = storages(whole)
    pair = Guided(whole, STEPS, SCALE, adapters=()), Guided(whole, STEPS, SCALE, adapters=("mood",))
    finish(image_pairs.compare(*pair, PROMPTS, tmp_path, batch=2, seed=0), "")
    assert storages(*(sampler.pipeline for sampler in pair)) == before
    assert {name: value.data_ptr() for name, value in whole.unet.named_parameters()} == pointers
    assert pair[0].pipeline is pair[1].pipeline is whole


@pytest.mark.lengthy
def test_a_pair_of_one_pipeline_is_compared_fitted_and_steered(whole, tmp_path):
    before = state(whole)
    base = Guided(whole, STEPS, SCALE, adapters=())
    expert = Guided(whole, STEPS, SCALE, adapters=("style",))
    finish(image_pairs.compare(base, expert, PROMPTS * 5, tmp_path, batch=5, seed=0), "")
    reward = image_pairs.learn(tmp_path, Fit(0.5, (8,), steps=2, batch=4))
    assert reward.score(base.start(2, stream(0, "x"))).isfinite().all()
    assert reward.steers(base, 1.0)(base.start(1, stream(0, "x")), 0).abs().max() > 0
    told = reward.about["comparisons"]["about"]
    assert told["base"]["model"] != told["expert"]["model"]
    assert state(whole) == before
    for other in (
        Guided(whole, STEPS, SCALE, adapters=("mood",)),
        Guided(whole, STEPS, SCALE, adapters=("style",), weights=(0.5,)),
    ):
        with pytest.raises(InputError, match="holds shards of other prompts or settings"):
            next(image_pairs.compare(base, other, PROMPTS * 5, tmp_path, batch=5, seed=0))
    with torch.no_grad():
        layers(whole)[0].lora_B["style"].weight.mul_(2)
    with pytest.raises(InputError, match="holds shards of other prompts or settings"):
        next(image_pairs.compare(base, expert, PROMPTS * 5, tmp_path, batch=5, seed=0))


@pytest.mark.lengthy
def test_the_same_adapters_twice_are_no_pair(whole, tmp_path):
    on = Guided(whole, STEPS, SCALE, adapters=("style",))
    as_it_is = Guided(whole, STEPS, SCALE)
    for base, expert in (
        (on, Guided(whole, STEPS, SCALE, adapters=("style",), weights=(1.0,))),
        (as_it_is, Guided(whole, STEPS, SCALE, adapters=("mood",), weights=(0.5,))),
    ):
        with pytest.raises(InputError, match=r"own weights and settings|no difference from the b"):
            next(image_pairs.compare(base, expert, PROMPTS, tmp_path, batch=2, seed=0))


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"adapters": ("stile",)},
            r"adapters: 'stile' is not allowed: .*one of \['mood', 'style'\]",
        ),
        ({"adapters": "style"}, r"adapters='style' is not allowed: a tuple of names"),
        ({"adapters": (1,)}, r"adapters=\(1,\) is not allowed"),
        ({"adapters": 1}, "adapters=1 is not allowed: a tuple of names"),
        ({"adapters": ("mood", "mood")}, "each name once is needed"),
        (
            {"adapters": ("mood",), "weights": ()},
            r"weights=\(\) is not allowed: a finite number for",
        ),
        ({"adapters": ("mood",), "weights": 1.0}, "weights=1.0 is not allowed"),
        ({"adapters": ("mood",), "weights": (float("nan"),)}, r"weights=\(nan,\) is not allowed"),
        ({"weights": (1.0,)}, r"weights=\(1.0,\) is not allowed without adapters"),
    ],
)
def test_adapters_that_are_none_are_named(whole, given, message):
    with pytest.raises(InputError, match=message) as caught:
        Guided(whole, STEPS, **given)
    assert "\n" not in str(caught.value)


def test_a_pipeline_without_adapters_has_none(whole, tmp_path):
    plain = tiny.stable_diffusion(0)
    assert Guided(plain, STEPS, adapters=()).adapters == ()
    with pytest.raises(InputError, match=r"no such adapter; load_lora_weights first is needed"):
        Guided(plain, STEPS, adapters=("style",))
    whole.fuse_lora(components=["unet"])
    with pytest.raises(InputError, match=r"on a pipeline with fused ones: unfuse_lora\(\) first"):
        Guided(whole, STEPS, adapters=())
    Guided(whole, STEPS)  # as it is


def test_an_error_in_a_call_leaves_the_pipeline_as_it_was(whole):
    before = state(whole)
    guided = Guided(whole, STEPS, SCALE, adapters=("style",))
    texts = guided.condition(PROMPTS)
    with pytest.raises(RuntimeError):
        guided.noise(torch.zeros(2, 3, 8, 8), 0, texts)
    assert state(whole) == before


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "make", [tiny.stable_diffusion_xl, tiny.stable_diffusion_3, tiny.flux], ids=["XL", "3", "Flux"]
)
def test_adapters_of_other_kinds(make):
    whole = make(0)
    network = kind_of(whole).network
    adapt(network, "style", TARGETS["transformer"])
    size = (16, 16)
    base = Guided(whole, STEPS, SCALE, size=size, adapters=())
    found = run(base, Guided(whole, STEPS, SCALE, size=size, adapters=("style",)))
    plain = run(base, Guided(whole, STEPS, SCALE, size=size, adapters=("style",), weights=(0,)))
    assert found["difference"].norm() > 1e-3 * found["base"].norm()
    assert plain["difference"].norm() < 1e-5 * plain["base"].norm()


# Other ways to be another model ------------------------------------------------------------------


def test_a_textual_inversion_of_several_vectors_is_a_word_of_a_prompt():
    whole = tiny.stable_diffusion(0)
    with pytest.raises(InputError, match="letters and signs of the tokenizer's vocabulary"):
        Guided(whole, STEPS).condition(["<hat>"])
    vectors = torch.randn(2, tiny.WIDTH, generator=stream(0, "vectors"))
    whole.load_textual_inversion({"<hat>": vectors}, token="<hat>")
    (texts,) = Guided(whole, STEPS, SCALE).condition(["red <hat>"])
    with torch.no_grad():
        expected = whole.encode_prompt(["red <hat>"], "cpu", 1, False)[0]
    assert_close(texts[1], expected)
    (other,) = Guided(whole, STEPS, SCALE).condition(["red red"])
    assert not torch.equal(texts, other)


def test_a_fine_tune_may_share_all_but_its_text_encoder(tmp_path):
    whole = tiny.stable_diffusion(0)
    other = copy.copy(whole)
    encoder = copy.deepcopy(whole.text_encoder)
    with torch.no_grad():
        for value in encoder.parameters():
            value.mul_(1.5)
    other.register_modules(text_encoder=encoder)
    base, expert = Guided(whole, STEPS, SCALE), Guided(other, STEPS, SCALE)
    finish(image_pairs.compare(base, expert, PROMPTS, tmp_path, batch=2, seed=0), "")
    assert other.vae is whole.vae and other.unet is whole.unet
    (image,) = pipelines.decode(other, base.start(1, stream(0, "x")))
    assert image.size == (16, 16)
