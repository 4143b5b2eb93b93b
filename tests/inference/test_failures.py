import math

import pytest
import tiny
import torch
from tolerances import assert_close

from psa.inference.failures import diagnose
from psa.inference.images import ImageSet
from psa.metrics import quadrants


@pytest.fixture(scope="module")
def scenes() -> ImageSet:
    return tiny.tiny_images(48)


def test_true_masks_and_perfect_reconstructions_have_no_problem(scenes):
    images = scenes.batch(slice(None))
    health = diagnose(scenes.masks, images, images, 5)
    assert health.problems == ()
    assert health.unexplained == 0
    assert health.layout_agreement < 0.35


def test_everything_in_one_slot_is_a_collapse_and_nothing_else(scenes):
    images = scenes.batch(slice(None))
    health = diagnose(torch.full_like(scenes.masks, 2), images, images, 5)
    assert health.largest_share == 1
    (problem,) = health.problems
    assert "collapsed into a single slot" in problem


def test_a_few_stray_pixels_are_still_a_collapse(scenes):
    images, labels = scenes.batch(slice(None)), torch.zeros_like(scenes.masks)
    labels[:, 0, :4] = 1
    health = diagnose(labels, images, images, 5)
    assert_close(health.largest_share, 1 - 4 / 256)
    assert "collapsed" in health.problems[0]


def test_each_image_in_a_slot_of_its_own_is_a_collapse(scenes):
    """The share of an image's largest slot counts, whichever slot it is."""
    images = scenes.batch(slice(None))
    labels = (torch.arange(48) % 5)[:, None, None].expand_as(scenes.masks).contiguous()
    assert "collapsed" in diagnose(labels, images, images, 5).problems[0]


def test_one_slot_alone_cannot_collapse_or_tile(scenes):
    images = scenes.batch(slice(None))
    assert diagnose(torch.zeros_like(scenes.masks), images, images, 1).problems == ()


def test_the_same_quarters_in_every_image_are_a_tiling(scenes):
    images = scenes.batch(slice(None))
    health = diagnose(quadrants(scenes.images), images, images, 5)
    assert_close(health.layout_agreement, 1.0)
    (problem,) = health.problems
    assert "tiled the image" in problem


def test_a_tiling_is_told_whatever_the_slots_are_called(scenes):
    images, labels = scenes.batch(slice(None)), quadrants(scenes.images)
    shuffled = torch.stack([torch.randperm(5)[image] for image in labels])
    assert "tiled the image" in diagnose(shuffled, images, images, 5).problems[0]


def test_unexplained_is_the_share_of_variance_that_the_mean_image_leaves(scenes):
    images = scenes.batch(slice(None))
    mean = images.mean(0).expand_as(images)
    health = diagnose(scenes.masks, images, mean, 5)
    assert_close(health.unexplained, 1.0, 1e-5)
    assert "100% of the images' variance unexplained" in health.problems[0]


def test_problems_of_both_kinds_are_both_told(scenes):
    images = scenes.batch(slice(None))
    health = diagnose(torch.zeros_like(scenes.masks), images, torch.zeros_like(images), 5)
    assert len(health.problems) == 2


def test_images_of_one_colour_do_not_crash():
    images = torch.full((3, 3, 8, 8), 0.5)
    health = diagnose(torch.zeros(3, 8, 8, dtype=torch.int64), images, images, 4)
    assert math.isnan(health.unexplained)
    assert len(health.problems) == 1


def test_a_single_image_cannot_be_told_to_be_tiled(scenes):
    images = scenes.batch(slice(1))
    health = diagnose(quadrants(scenes.images[:1]), images, images, 5)
    assert math.isnan(health.layout_agreement)
    assert health.problems == ()
