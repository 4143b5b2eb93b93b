from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor, nn

from psa.metrics.compositional_contrast import compositional_contrast
from psa.models.decoders import BroadcastDecoder, JointDecoder, PatchDecoder
from psa.models.decoders.grid import coordinate_grid

SLOT_DIM = 6


class DecoderContract:
    """What every decoder keeps; a subclass names the decoder, its small settings and a size it refuses."""

    decoder: type[nn.Module]
    settings: dict[str, Any]
    refused: tuple[tuple[int, int], str]

    def build(self, size: tuple[int, int] = (8, 16)) -> nn.Module:
        torch.manual_seed(0)
        return self.decoder(SLOT_DIM, size, **self.settings).double()

    def slots(self, batch: int = 2, num_slots: int = 3) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return 3 * torch.randn(batch, num_slots, SLOT_DIM, dtype=torch.float64, generator=generator)

    @pytest.mark.parametrize(("batch", "num_slots"), [(1, 1), (1, 4), (3, 1), (2, 5)])
    def test_pictures_and_masks_have_the_size_asked_for(self, batch, num_slots):
        scene = self.build()(self.slots(batch, num_slots))
        assert scene.rgb.shape == (batch, num_slots, 3, 8, 16)
        assert scene.log_masks.shape == (batch, num_slots, 8, 16)
        assert scene.mean.shape == (batch, 3, 8, 16)
        assert scene.labels.shape == (batch, 8, 16)

    def test_masks_sum_to_one_over_slots(self):
        masks = self.build()(self.slots()).masks
        assert bool((masks >= 0).all())
        assert_close(masks.sum(1), torch.ones(2, 8, 16))

    def test_one_slot_owns_every_pixel(self):
        scene = self.build()(self.slots(2, 1))
        assert_close(scene.masks, torch.ones(2, 1, 8, 16))
        assert_close(scene.mean, scene.rgb[:, 0])

    def test_permuting_slots_permutes_pictures_and_masks_and_leaves_the_image(self):
        decoder, slots = self.build(), self.slots(2, 4)
        order = torch.tensor([2, 0, 3, 1])
        scene, permuted = decoder(slots), decoder(slots[:, order])
        assert_close(permuted.rgb, scene.rgb[:, order])
        assert_close(permuted.log_masks, scene.log_masks[:, order])
        assert_close(permuted.mean, scene.mean)

    def test_images_of_a_batch_do_not_meet(self):
        decoder, slots = self.build(), self.slots(3)
        assert_close(decoder(slots[1:2]).mean[0], decoder(slots).mean[1])

    def test_slots_left_out_have_no_part_in_the_scene(self):
        decoder, slots = self.build(), self.slots(2, 4)
        active = torch.tensor([[True, False, True, True], [False, True, True, True]])
        scene = decoder(slots, active)
        for image in range(2):
            alone = decoder(slots[image : image + 1, active[image]])
            assert_close(scene.mean[image], alone.mean[0])
            assert_close(scene.masks[image, active[image]], alone.masks[0])
        assert not bool(scene.masks[~active].any())
        with pytest.raises(ValueError, match="active must keep at least one slot an image, image 1 has none"):
            decoder(slots, active & torch.tensor([[True], [False]]))

    def test_places_differ(self):
        """Without positions every patch would be the same."""
        rgb = self.build()(self.slots()).rgb
        assert float((rgb[..., :4, :4] - rgb[..., 4:, 12:]).detach().abs().max()) > 1e-3

    def test_gradients_reach_the_slots_and_every_parameter(self):
        decoder, slots = self.build(), self.slots().requires_grad_()
        decoder(slots).mean.square().sum().backward()
        assert slots.grad is not None
        assert bool((slots.grad.abs().sum(-1) > 0).all())
        assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in decoder.parameters())

    def test_a_size_that_does_not_divide_is_refused(self):
        size, message = self.refused
        with pytest.raises(ValueError, match=message):
            self.build(size)
        with pytest.raises(ValueError, match=message.replace("10 x 16", "16 x 10")):
            self.build((size[1], size[0]))


class MaskedContract(DecoderContract):
    def test_the_picture_of_a_slot_does_not_depend_on_the_others(self):
        decoder, slots = self.build(), self.slots()
        changed = slots.clone()
        changed[:, 1:] += 1
        assert_close(decoder(changed).rgb[:, 0], decoder(slots).rgb[:, 0])


class TestPatchDecoder(MaskedContract):
    decoder = PatchDecoder
    settings = {"hidden_dim": 7, "num_layers": 2, "patch": 4}  # noqa: RUF012
    refused = ((10, 16), "image size must be a multiple of decoder.patch 4, got 10 x 16")

    def test_a_patch_is_laid_out_as_its_position_in_the_image(self):
        """The output of the position (r, c) is the square of rows 4r..4r+3 and columns 4c..4c+3, in row-major order."""
        decoder = self.build()
        last = decoder.mlp[-1]
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(torch.arange(4 * 16, dtype=torch.float64))
        rgb = decoder(self.slots()).rgb
        tile = torch.arange(16, dtype=torch.float64).reshape(4, 4).repeat(2, 4)
        for channel in range(3):
            assert_close(rgb[0, 0, channel], 16 * channel + tile)


class TestBroadcastDecoder(MaskedContract):
    decoder = BroadcastDecoder
    settings = {"hidden_dim": 7, "num_upsamplings": 2}  # noqa: RUF012
    refused = ((10, 16), "image size must be a multiple of 4, got 10 x 16")

    def test_without_upsampling_any_size_is_decoded(self):
        decoder = BroadcastDecoder(SLOT_DIM, (5, 7), hidden_dim=4, num_upsamplings=0).double()
        assert decoder(self.slots()).mean.shape == (2, 3, 5, 7)


class TestBroadcastDecoderAsInBoQsa(TestBroadcastDecoder):
    """Table 10's layers: 5 x 5 ones, as many of stride 1 as asked for, and a last one of 3 x 3."""

    settings = {"hidden_dim": 7, "num_upsamplings": 2, "kernel": 5, "num_convolutions": 2}  # noqa: RUF012

    def test_its_layers_are_the_papers(self):
        layers = [layer for layer in self.build().convolutions if not isinstance(layer, nn.ReLU)]
        found = [(type(layer).__name__, layer.kernel_size[0], layer.stride[0], layer.out_channels) for layer in layers]
        up, plain = ("ConvTranspose2d", 5, 2, 7), ("Conv2d", 5, 1, 7)
        assert found == [up, up, plain, plain, ("Conv2d", 3, 1, 4)]


class TestPatchDecoderWithLearnedPositions(MaskedContract):
    decoder = PatchDecoder
    settings = {"hidden_dim": 7, "num_layers": 2, "patch": 4, "learned_positions": True}  # noqa: RUF012
    refused = ((10, 16), "image size must be a multiple of decoder.patch 4, got 10 x 16")

    def test_the_vector_of_a_position_changes_its_patch_alone(self):
        decoder, slots = self.build(), self.slots()
        before = decoder(slots).rgb
        with torch.no_grad():
            decoder.learned[1] += 3.0
        moved = (decoder(slots).rgb - before).abs().sum((0, 1, 2))
        assert bool((moved[:4, 4:8] > 0).any())
        moved[:4, 4:8] = 0.0
        assert not bool(moved.any())


class TestJointDecoder(DecoderContract):
    decoder = JointDecoder
    settings = {"hidden_dim": 7, "num_layers": 2, "patch": 4}  # noqa: RUF012
    refused = ((10, 16), "image size must be a multiple of decoder.patch 4, got 10 x 16")

    def build(self, size: tuple[int, int] = (8, 16)) -> nn.Module:
        return super().build(size).eval()

    def test_it_is_not_additive(self):
        """What one slot adds to the picture depends on the other."""
        decoder, (one, other) = self.build(), self.slots(2, 2)

        def picture(first: Tensor, second: Tensor) -> Tensor:
            return decoder.picture(torch.stack([first, second])[None])

        with_other = picture(one[0], other[1]) - picture(other[0], other[1])
        with_own = picture(one[0], one[1]) - picture(other[0], one[1])
        assert float((with_other - with_own).detach().abs().max()) > 1e-3
        assert compositional_contrast(lambda slots: decoder.picture(slots[None]), one[None]).contrast > 1e-3

    def test_it_is_piecewise_affine(self):
        """On a line short enough to cross no kink, in almost all directions, second differences vanish."""
        decoder, slots, step = self.build(), self.slots(20, 3), 1e-4 * self.slots(20, 3).flip(1)
        before, at, after = (decoder.picture(slots + k * step).detach() for k in (-1, 0, 1))
        first, second = (after - at).abs().amax((1, 2, 3)), (after - 2 * at + before).abs().amax((1, 2, 3))
        assert float(first.min()) > 1e-6
        assert float((second < 1e-10 * first.max()).double().mean()) > 0.5
        allowed = (nn.Linear, nn.Conv2d, nn.LeakyReLU, nn.PixelShuffle, nn.Unflatten, nn.Sequential, JointDecoder)
        assert all(isinstance(module, allowed) for module in decoder.modules())

    def test_masks_are_the_shares_of_what_changes_without_a_slot(self):
        decoder, slots = self.build(), self.slots(2, 3)
        scene = decoder(slots)
        without = torch.stack([decoder.picture(slots[:, [j for j in range(3) if j != k]]) for k in range(3)], 1)
        change = (scene.mean[:, None] - without).square().sum(2).sqrt()
        assert_close(scene.masks, change / change.sum(1, keepdim=True))
        assert_close(scene.mean, decoder.picture(slots))

    def test_training_has_the_same_picture_and_equal_masks(self):
        decoder, slots = self.build(), self.slots(2, 4)
        expected = decoder(slots).mean
        scene = decoder.train()(slots)
        assert_close(scene.mean, expected)
        assert_close(scene.masks, torch.full_like(scene.masks, 1 / 4))

    def test_no_gradient_flows_through_the_masks(self):
        """They cancel in the mean, up to rounding over the change: noise, where little changes."""
        scene = self.build()(self.slots(1, 3).requires_grad_())
        assert scene.rgb.requires_grad
        assert not scene.log_masks.requires_grad


@given(height=st.integers(2, 9), width=st.integers(2, 9))
def test_the_grid_runs_row_major_from_corner_to_corner(height, width):
    grid = coordinate_grid(height, width, like=torch.zeros(1, dtype=torch.float64)).reshape(height, width, 2)
    for row in range(height):
        for column in range(width):
            expected = [2 * row / (height - 1) - 1, 2 * column / (width - 1) - 1]
            assert_close(grid[row, column], torch.tensor(expected, dtype=torch.float64))


def test_a_grid_of_one_cell_is_finite_and_follows_its_pattern():
    like = torch.zeros(1, dtype=torch.float64)
    grid = coordinate_grid(1, 1, like=like)
    assert grid.shape == (1, 2)
    assert grid.dtype == like.dtype
    assert bool(grid.isfinite().all())
