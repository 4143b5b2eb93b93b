"""How a container without splits of its own is divided: by one fixed permutation, 80/10/10."""

import numpy as np
from jaxtyping import Int64

from psa.errors import DataError

SPLITS = ("train", "val", "test", "all")


def split_indices(num_items: int, split: str, source: str = "data set") -> Int64[np.ndarray, " items"]:
    """The items of a split, ascending; train, val and test are disjoint and cover, val and test hold at least one.

    Args:
        num_items: how many items there are, in an order that does not change between runs.
        split: train, val, test or all.
        source: what to name in the error.

    Raises:
        DataError: fewer than 3 items cannot be divided in three.
    """
    if split == "all":
        return np.arange(num_items, dtype=np.int64)
    if num_items < 3:
        raise DataError(
            f"{source}: expected at least 3 images to divide into train, val and test, got {num_items}; "
            "use split 'all' to take every image"
        )
    held_out = max(1, num_items // 10)
    order = np.random.default_rng(0).permutation(num_items).astype(np.int64)
    val, test, train = np.split(order, [held_out, 2 * held_out])
    return np.sort({"train": train, "val": val, "test": test}[split])


def hold_out(num_items: int, split: str, source: str = "data set") -> Int64[np.ndarray, " items"]:
    """The items, ascending, of train or val where the container has a test set but no other: val is a fixed tenth.

    Args:
        num_items: how many items there are, in an order that does not change between runs.
        split: train or val.
        source: what to name in the error.

    Raises:
        DataError: fewer than 2 items cannot be divided in two.
    """
    if num_items < 2:
        raise DataError(f"{source}: expected at least 2 images to divide into train and val, got {num_items}")
    order = np.random.default_rng(0).permutation(num_items).astype(np.int64)
    val, train = np.split(order, [max(1, num_items // 10)])
    return np.sort({"train": train, "val": val}[split])
