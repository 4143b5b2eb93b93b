"""What a fitted map is judged by: the share it did not see, unrelated pairs, and the spread over images."""

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

COVERAGE = 0.95  # of the bootstrap interval


def training_share(
    count: int, share: float, name: str, generator: torch.Generator | None = None
) -> Bool[Tensor, " batch"]:
    """Which of ``count`` to fit on: a random share, at least one, and never all.

    Args:
        count: Images, or rows; at least 2.
        share: In (0, 1).
        name: What is split, as an error calls it.
        generator: Source of the split; the global one where None.

    Raises:
        ValueError: If there are fewer than 2, or the share is outside (0, 1).
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"train_fraction: expected a number between 0 and 1, came {share}")
    if count < 2:
        raise ValueError(f"{name}: expected at least 2, to fit on and to hold out, came {count}")
    return _permutation(count, generator) < min(max(round(share * count), 1), count - 1)


def cycle(length: int, generator: torch.Generator | None = None) -> Int64[Tensor, " batch"]:
    """A permutation that is one random cycle, so that nothing stays where it was (length at least 2)."""
    order = _permutation(length, generator)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def _permutation(length: int, generator: torch.Generator | None) -> Int64[Tensor, " batch"]:
    return torch.randperm(length, generator=generator, device=None if generator is None else generator.device)


def correlation_interval(
    predicted: Float64[Tensor, "rows features"],
    true: Float64[Tensor, "rows features"],
    rows_of_image: Int64[Tensor, " images"],
    num_resamples: int,
    generator: torch.Generator | None = None,
) -> tuple[float, float]:
    """The 95 % percentile interval of the mean correlation over features, resampling whole images (Efron 1979).

    Rows of one image are not independent, so that a resample of rows would be too sure. What was fitted stays as it is.
    Each image counts by its sums of 1, x, y, x^2, y^2 and x y: one matrix product does all resamples.

    Args:
        predicted: x, (rows, D), image after image.
        true: y, (rows, D).
        rows_of_image: How many rows each image has, 0 or more.
        num_resamples: At least 1.
        generator: Source of the resamples; the global one where None.
    """
    x, y = (rows - rows.mean(0) for rows in (predicted, true))
    features = torch.cat([torch.ones_like(x[:, :1]), x, y, x * x, y * y, x * y], dim=1)
    num_images = len(rows_of_image)
    image = torch.arange(num_images, device=x.device).repeat_interleave(rows_of_image)
    sums = x.new_zeros(num_images, features.shape[1]).index_add_(0, image, features)
    device = None if generator is None else generator.device
    drawn = torch.randint(num_images, (num_resamples, num_images), generator=generator, device=device).to(x.device)
    counts = x.new_zeros(num_resamples, num_images).scatter_add_(1, drawn, x.new_ones(()).expand(drawn.shape))
    total, moments = (counts @ sums).tensor_split([1], dim=1)
    mean_x, mean_y, xx, yy, xy = (moments / total.clamp(min=1.0)).chunk(5, dim=1)
    spread = ((xx - mean_x.square()) * (yy - mean_y.square())).clamp(min=0.0).sqrt()
    r = (xy - mean_x * mean_y) / torch.where(spread > 0, spread, torch.inf)
    tail = (1.0 - COVERAGE) / 2.0
    low, high = torch.quantile(r.clamp(-1.0, 1.0).mean(1), r.new_tensor([tail, 1.0 - tail])).tolist()
    return low, high
