import numpy as np
import pytest
import torch

from psa.data import Scene, SpriteOptions, Sprites, as_float, collate


def scenes(*with_mask: bool) -> list[Scene]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(with_mask), 5, 7, 3)).astype(np.uint8)
    masks = rng.integers(0, 4, (len(with_mask), 5, 7))
    return [Scene(image, mask if has else None) for image, mask, has in zip(images, masks, with_mask, strict=True)]


def test_collate_stacks_images_and_masks_in_order():
    items = scenes(True, True, True)
    batch = collate(items)
    assert batch.images.dtype == torch.uint8
    assert batch.masks.dtype == torch.int64
    for i, scene in enumerate(items):
        assert np.array_equal(batch.images[i], scene.image)
        assert np.array_equal(batch.masks[i], scene.mask)


@pytest.mark.parametrize("with_mask", [(False, False), (True, False)])
def test_a_batch_has_masks_only_if_every_scene_has_one(with_mask):
    assert collate(scenes(*with_mask)).masks is None


def test_as_float_is_the_image_over_255_with_channels_first():
    batch = collate(scenes(True, True))
    floats = as_float(batch.images)
    assert floats.dtype == torch.float32
    assert floats.is_contiguous()
    assert torch.equal(floats, batch.images.float().permute(0, 3, 1, 2) / 255)


def test_a_torch_loader_with_collate_yields_batches():
    sprites = Sprites(SpriteOptions(size=8), num_scenes=5)
    loader = torch.utils.data.DataLoader(sprites, batch_size=2, collate_fn=collate)
    assert np.array_equal(torch.cat([batch.images for batch in loader]), sprites.images)
