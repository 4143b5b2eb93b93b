import itertools
import math

import pyro
import pytest
import torch
from tolerances import assert_close, assert_mean_is

from psa.models.active_slots import NonEmptySubset
from psa.models.decoders import PatchDecoder
from psa.models.scene import SceneModel

LIKE = torch.zeros(1, dtype=torch.float64)


@pytest.mark.parametrize("num_slots", [1, 2, 5])
def test_the_sets_that_are_not_empty_share_all_probability_alike(num_slots):
    sets = torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_slots)), dtype=torch.float64)
    density = NonEmptySubset(num_slots, LIKE).log_prob(sets).exp()
    assert float(density[0]) == 0.0
    assert_close(density.sum(), 1.0)
    assert_close(density[1:], density[1].expand(len(sets) - 1))


def test_draws_are_never_empty_and_have_the_frequencies_of_the_density():
    torch.manual_seed(0)
    draws = NonEmptySubset(3, LIKE).sample(torch.Size((7_000,)))
    assert bool(draws.any(-1).all())
    codes = torch.nn.functional.one_hot((draws @ torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)).long(), 8)
    assert_mean_is(codes[:, 1:], 1 / 7)


def test_draws_follow_shape_dtype_and_device():
    draw = NonEmptySubset(4, LIKE).sample(torch.Size((2, 3)))
    assert (draw.shape, draw.dtype) == ((2, 3, 4), torch.float64)


def test_the_program_draws_scenes_of_its_own_and_scores_them():
    """Without a guide: the active slots, the slots and the picture are drawn, and the joint density is that by hand."""
    torch.manual_seed(0)
    model = SceneModel(PatchDecoder(4, (8, 8), 6, 1), 3, 4, "normal", 0.3, drops_slots=True).double()
    images = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    trace = pyro.poutine.trace(model).get_trace(images)
    active, slots = trace.nodes["active"]["value"].bool(), trace.nodes["slot"]["value"]
    assert active.shape == (5, 3)
    assert len(active.unique(dim=0)) > 1
    scene = model.decoder(slots, active)
    expected = (
        -5 * math.log(7)
        + torch.distributions.Normal(0.0, 1.0).log_prob(slots[active]).sum()
        + torch.distributions.Normal(scene.mean, 0.3).log_prob(images).sum()
    )
    assert_close(trace.log_prob_sum(), expected)
