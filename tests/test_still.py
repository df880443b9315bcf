"""Networks that would answer otherwise each time, and samples that are no numbers, are refused."""

import pytest
import tiny_pipelines
import torch

from rrlib.errors import InputError
from rrlib.estimators.noised import elbo_difference
from rrlib.estimators.particles import best_of, sample_weighted
from rrlib.images.guided import Guided
from rrlib.method.comparisons import compare
from rrlib.method.denoisers import Denoiser
from rrlib.method.exact import ExactDifference
from rrlib.method.guidance import sample
from rrlib.method.noise.schedulers import cosine_scheduler


class Restless(torch.nn.Module):
    """A network with a layer that training mode changes."""

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x, t):
        return 0.5 * self.layer(x)


@pytest.mark.parametrize(
    "layer",
    [torch.nn.Dropout(0.1), torch.nn.BatchNorm1d(3), torch.nn.GRU(3, 3, 2, dropout=0.2)],
    ids=["dropout", "statistics", "recurrent"],
)
def test_a_network_in_training_mode_is_refused_where_that_changes_what_it_says(layer):
    scheduler = cosine_scheduler(10, clip=False)
    base, plain = Denoiser(Restless(layer), scheduler), Denoiser(lambda x, t: 0.3 * x, scheduler)
    named = f"a network in training mode, with a {type(layer).__name__}, is not allowed"
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(2, 30, 3, generator=generator)
    for call in (
        lambda: sample(base, (4, 3)),
        lambda: sample_weighted(base, (2, 3), ExactDifference(plain, plain), particles=2),
        lambda: ExactDifference(plain, base),
        lambda: compare(base, plain, tuple(data), n=20),
        lambda: compare(plain, base, tuple(data), n=20),
        lambda: elbo_difference(plain, base, data[0]),
    ):
        with pytest.raises(InputError, match=named):
            call()
    base.network.eval()
    if not isinstance(layer, torch.nn.GRU):  # its answer is a pair
        assert sample(base, (4, 3)).isfinite().all()
        assert len(compare(base, plain, tuple(data), n=20).x) == 20


def test_layers_that_training_mode_does_not_change_are_taken():
    layers = torch.nn.Sequential(
        torch.nn.Dropout(0.0), torch.nn.LayerNorm(3), torch.nn.Linear(3, 3)
    )
    base = Denoiser(Restless(layers), cosine_scheduler(10, clip=False))
    assert layers.training and sample(base, (4, 3)).shape == (4, 3)


@pytest.mark.parametrize("t_of_nan", [0, 9])
def test_samples_that_are_not_finite_are_refused(t_of_nan):
    def network(x, t):
        return torch.where((t == t_of_nan)[:, None], torch.nan, 0.5 * x)

    base = Denoiser(network, cosine_scheduler(10, clip=False))
    with pytest.raises(InputError, match=r"^sample: numbers that are not finite .*"):
        sample(base, (4, 3))
    steering = ExactDifference(base, Denoiser(lambda x, t: 0.4 * x, base.scheduler))
    with pytest.raises(InputError, match=r"^sample: numbers that are not finite .*"):
        sample_weighted(base, (2, 3), steering, particles=2)
    sound = Denoiser(lambda x, t: 0.5 * x, base.scheduler)
    with pytest.raises(InputError, match=r"^reward: its values: numbers that are not finite .*"):
        best_of(sound, (2, 3), lambda x, t: torch.full((len(x),), torch.nan), 3)


def test_a_pipeline_in_training_mode_is_refused():
    pipeline = tiny_pipelines.stable_diffusion(0)
    pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_out[1].p = 0.1
    guided = Guided(pipeline, steps=2)
    pipeline.unet.train()
    with pytest.raises(InputError, match=r"^pipeline: a network in training mode, with a Dropout"):
        guided.condition(["a boat"])
    pipeline.unet.eval()
    assert guided.condition(["a boat"])[0].shape[1] == 1
