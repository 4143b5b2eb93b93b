"""The trained object a user holds: a scene program and its guide, with ``encode``, ``decode`` and ``sample``."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psa.data import as_float
from psa.errors import ConfigError, RunError
from psa.inference.config import RunConfig, parse_config
from psa.inference.encoders.cnn import MIN_IMAGE_SIZE, CnnEncoder
from psa.inference.guide import SceneGuide
from psa.inference.variants import build
from psa.models.decoders import BroadcastDecoder, PatchDecoder
from psa.models.scene import SceneModel
from psa.records import DecodedScene, SlotPosterior
from psa.runs import RunDirectory, load_tensors


class SlotAutoencoder(nn.Module):
    """p(x, s) and q(s | x) of one run.

    Args:
        model: The scene program.
        guide: The amortised guide.
        config: What they were built from.
        size: (H, W) of the images.
    """

    def __init__(self, model: SceneModel, guide: SceneGuide, config: RunConfig, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.guide, self.config, self.size = model, guide, config, size

    def prepare(self, images: Tensor) -> Float[Tensor, "batch channels height width"]:
        """Images as the encoder takes them: (B, H, W, 3) uint8, or (B, 3, H, W) float in [0, 1] (kept as it is).

        Raises:
            ValueError: If the shape, dtype or size is another.
        """
        if images.dtype == torch.uint8 and images.ndim == 4 and images.shape[-1] == 3:
            images = as_float(images)
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                "images must be (batch, height, width, 3) uint8 or (batch, 3, height, width) float in [0, 1], "
                f"got {tuple(images.shape)} {images.dtype}"
            )
        if tuple(images.shape[-2:]) != tuple(self.size):
            raise ValueError(f"images must be {self.size[0]} x {self.size[1]}, got {tuple(images.shape[-2:])}")
        return images.to(self.model.prior_loc)

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[SlotPosterior, Tensor, Tensor]:
        """The posterior, the slots (B, K, D) that are decoded (read-outs, no draw), and the masks (B, K, H, W).

        Args:
            images: (B, H, W, 3) uint8, or (B, 3, H, W) float in [0, 1].
        """
        posterior = self.guide.posterior(self.prepare(images))
        slots = self.guide.inference.slots(posterior)
        return posterior, slots, self.decode(slots).masks

    @torch.no_grad()
    def decode(self, slots: Float[Tensor, "batch slots features"]) -> DecodedScene:
        """Pictures and masks of slots (B, K, D)."""
        return self.model.decoder(slots)

    @torch.no_grad()
    def sample(self, n: int) -> tuple[Float[Tensor, "batch channels height width"], Tensor]:
        """n new scenes (n, 3, H, W) and their slots (n, K, D), each slot drawn from p(s).

        p(s) is one diagonal Gaussian until an aggregate prior is built: independent slots from a single mode.
        """
        slots = self.model.slot_prior.sample(torch.Size((n, self.model.num_slots)))
        return self.decode(slots).mean.clamp(0.0, 1.0), slots


def build_autoencoder(config: RunConfig, size: tuple[int, int]) -> SlotAutoencoder:
    """An untrained model for images of a size.

    Raises:
        ConfigError: If the settings do not fit each other or the size.
    """
    if min(size) < MIN_IMAGE_SIZE:
        raise ConfigError(
            f"images of {size[0]} x {size[1]}: the encoder needs {MIN_IMAGE_SIZE} pixels a side or more (set data.size)"
        )
    slots, decoder, objective = config.slots, config.decoder, config.objective
    token_dim = config.encoder.token_dim or slots.slot_dim
    if slots.overrides.get("initialiser") == "given":
        raise ConfigError("slots.overrides.initialiser: 'given' has no start of its own, and a scene model needs one")
    try:
        inference = build(
            slots.variant,
            num_slots=slots.num_slots,
            input_dim=token_dim,
            slot_dim=slots.slot_dim,
            num_iterations=slots.num_iterations,
            **slots.overrides,
        )
        encoder = CnnEncoder(**config.encoder.model_dump(exclude={"token_dim"}), token_dim=token_dim)
        guide = SceneGuide(encoder, inference, objective.sample, objective.kl_weight)
        painter: nn.Module
        if decoder.kind == "patch":
            painter = PatchDecoder(slots.slot_dim, size, decoder.hidden_dim, decoder.num_layers, decoder.patch)
        else:
            painter = BroadcastDecoder(slots.slot_dim, size, decoder.hidden_dim, decoder.num_upsamplings)
        model = SceneModel(
            painter, slots.num_slots, slots.slot_dim, objective.likelihood, objective.sigma, objective.kl_weight
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return SlotAutoencoder(model, guide, config, size)


def load_run(path: Path) -> SlotAutoencoder:
    """The model of a run directory, on the CPU, ready for use.

    Raises:
        RunError: If the directory is not a run, or its files do not fit together.
    """
    run = RunDirectory(path)
    config = parse_config(run.read_config(), str(run.config))
    tensors, notes = load_tensors(run.checkpoint)
    if "size" not in notes:
        raise RunError(f"{run.checkpoint}: expected a checkpoint written by psa, got one that lacks the images' size")
    model = build_autoencoder(config, tuple(notes["size"]))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise RunError(f"{run.checkpoint}: expected the weights of {run.config} ({reason})") from None
    return model.eval()
