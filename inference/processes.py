"""The processes that train one run together: this one alone, or several that Lightning Fabric started.

Every process has all weights and its share of each batch. What must be one for all of them is summed, or told by the
first: gradients, whether to stop, the prior in the loop.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from psa.errors import ConfigError
from psa.inference.config import TrainingConfig

# lightning_fabric.Fabric, whose import takes about a second: only what needs it pays.
Fabric: TypeAlias = Any
T = TypeVar("T")

for part in ("distributed", "rank_zero"):  # which tell how many processes there are, and of the precision
    logging.getLogger(f"lightning_fabric.utilities.{part}").setLevel(logging.WARNING)


class Processes:
    """This process alone, in the precision of the weights.

    Attributes:
        rank: Of this process, from 0; the first one writes, evaluates and shows progress.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def device(self, config: TrainingConfig) -> torch.device:
        """Where this process keeps its weights."""
        return torch.device(config.device)

    def autocast(self) -> AbstractContextManager:
        """The precision of the forward pass."""
        return nullcontext()

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process; all get the same answer."""
        return flag

    def told(self, value: T) -> T:
        """What the first process has for a value."""
        return value


class FabricProcesses(Processes):
    """Processes, device and precision of a Fabric that was launched.

    Args:
        fabric: Launched.
        stopping: Whether someone outside asks this process to stop.
    """

    def __init__(self, fabric: Fabric, stopping: Callable[[], bool] = lambda: False) -> None:
        self.fabric, self.stopping = fabric, stopping
        self.rank, self.size = fabric.global_rank, fabric.world_size

    def device(self, config: TrainingConfig) -> torch.device:
        """The one that Fabric gave this process."""
        return self.fabric.device

    def autocast(self) -> AbstractContextManager:
        """Lower precision where ``training.precision`` says so; the E/M steps leave it by themselves."""
        return self.fabric.autocast()

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes: one message for all of them."""
        if self.size == 1:
            return
        flat = self.fabric.all_reduce(torch.cat([tensor.flatten() for tensor in tensors]), reduce_op="sum")
        assert isinstance(flat, Tensor)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process, or one was asked to stop."""
        mine = torch.tensor([float(flag or self.stopping())], device=self.fabric.device)
        self.add([mine])
        return bool(mine > 0)

    def told(self, value: T) -> T:
        """What the first process has for a value."""
        return self.fabric.broadcast(value)


def build_fabric(config: TrainingConfig) -> Fabric:
    """A Fabric for the settings device, devices and precision; not launched.

    Raises:
        ConfigError: If the device is not to be had here, or is not one of Fabric's.
    """
    import lightning_fabric
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    kind, _, number = config.device.partition(":")
    first = int(number) if number.isdigit() else 0
    chosen: int | list[int] = config.devices if kind == "cpu" else [first + i for i in range(config.devices)]
    strategy = "ddp_spawn" if config.devices > 1 else "auto"
    try:
        return lightning_fabric.Fabric(accelerator=kind, devices=chosen, strategy=strategy, precision=config.precision)
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        wanted = f"{config.devices} of {config.device!r}" if config.devices > 1 else repr(config.device)
        raise ConfigError(f"training.device: {wanted} is not to be had here ({reason})") from None


def this_process(config: TrainingConfig) -> Processes:
    """For a run that one process trains.

    Raises:
        ConfigError: If the settings ask for several, which :mod:`psa.inference.launching` starts.
    """
    if config.devices > 1:
        raise ConfigError(
            f"training.devices: expected 1, got {config.devices}; several processes are started by psa train alone"
        )
    if config.precision == "32-true":
        return Processes()
    fabric = build_fabric(config)
    fabric.launch()
    return FabricProcesses(fabric)
