import pytest
import torch
from tolerances import FLOAT32, assert_close
from torch import Tensor

from psa.inference.attention_masks import attention_masks
from psa.inference.encoders.cnn import CnnEncoder
from psa.inference.encoders.whole import WholeImageEncoder
from psa.records import SlotPosterior


def posterior(responsibilities: Tensor) -> SlotPosterior:
    batch, slots, _ = responsibilities.shape
    state = torch.ones(batch, slots, 2)
    return SlotPosterior(responsibilities.mean(-1), state, state, responsibilities, state)


@pytest.mark.parametrize("size", [(16, 16), (17, 15), (8, 24)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_grid_is_that_of_the_encoders_tokens(size, stride):
    encoder = CnnEncoder(channels=4, num_layers=1, stride=stride)
    rows, columns = encoder.grid(*size)
    assert encoder(torch.zeros(1, 3, *size)).shape[1] == rows * columns


@pytest.mark.parametrize("size", [(16, 16), (17, 15)])
def test_masks_are_as_large_as_the_image_and_sum_to_one(size):
    encoder = CnnEncoder(stride=2)
    rows, columns = encoder.grid(*size)
    responsibilities = torch.rand(3, 4, rows * columns, generator=torch.Generator().manual_seed(0)).softmax(1)
    masks = attention_masks(encoder, posterior(responsibilities), size)
    assert masks.shape == (3, 4, *size)
    assert_close(masks.sum(1), torch.ones(3, *size), FLOAT32)
    assert_close(masks.amin(), max(float(masks.amin()), float(responsibilities.amin())), FLOAT32)


def test_a_token_is_where_its_pixels_are():
    """Tokens in row-major order: the slot that owns one owns the middle of its pixels."""
    owners = torch.randint(0, 3, (1, 4, 6), generator=torch.Generator().manual_seed(1))
    responsibilities = torch.nn.functional.one_hot(owners, 3).movedim(-1, 1).flatten(2).float()
    masks = attention_masks(CnnEncoder(stride=3), posterior(responsibilities), (12, 18))
    assert_close(masks[:, :, 1::3, 1::3].flatten(2), responsibilities, FLOAT32)


def test_with_a_token_a_pixel_masks_are_the_responsibilities():
    responsibilities = torch.rand(2, 3, 64).softmax(1)
    masks = attention_masks(CnnEncoder(stride=1), posterior(responsibilities), (8, 8))
    assert torch.equal(masks.flatten(2), responsibilities)


def test_tokens_that_are_no_grid_have_no_masks():
    assert attention_masks(WholeImageEncoder(torch.nn.Flatten(), 12, 3), posterior(torch.ones(1, 2, 1)), (8, 8)) is None
