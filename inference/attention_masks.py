"""Masks from the slots' attention: responsibilities over the tokens' grid, resized to the image."""

from jaxtyping import Float
from torch import Tensor, nn

from psa.records import SlotPosterior


def attention_masks(
    encoder: nn.Module, posterior: SlotPosterior, size: tuple[int, int]
) -> Float[Tensor, "batch slots height width"] | None:
    """The responsibilities as pictures, bilinearly resized (half-pixel centres); None where tokens are no grid.

    The posterior probability of each slot for a token is the attention of Slot Attention and its kin. Resizing takes
    weighted means of tokens, so that masks still sum to 1 over slots in every pixel.

    Args:
        encoder: What made the tokens; one whose tokens are a grid has ``grid(height, width) -> (rows, columns)``.
        posterior: Of tokens in row-major order.
        size: (H, W) of the image.
    """
    grid = getattr(encoder, "grid", None)
    if grid is None:
        return None
    return resized(posterior.responsibilities.unflatten(-1, grid(*size)), size)


def resized(
    masks: Float[Tensor, "batch slots rows columns"], size: tuple[int, int]
) -> Float[Tensor, "batch slots height width"]:
    """Masks of an image's size: weighted means of the given ones, which they are if they have it."""
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    return nn.functional.interpolate(masks, size=size, mode="bilinear", align_corners=False)
