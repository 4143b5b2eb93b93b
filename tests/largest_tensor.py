"""How large the largest tensor is that some code makes: the same on every machine, unlike its memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Notes the largest number of elements in any tensor that an operation makes, forward or backward."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def note(self, tensor: Tensor) -> Tensor:
        self.largest = max(self.largest, tensor.numel())
        return tensor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return out


@contextmanager
def largest_tensor() -> Iterator[LargestTensor]:
    """The probe, also of what is kept for the backward pass."""
    probe = LargestTensor()
    with torch.autograd.graph.saved_tensors_hooks(probe.note, lambda tensor: tensor), probe:
        yield probe
