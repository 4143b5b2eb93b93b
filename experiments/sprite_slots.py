"""Models of sprite scenes that differ in how slots are found and decoded, and in nothing else; figures of each."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from psa.experiments.sprite_factors import KnownScenes, agreement, draw_scenes
from psa.inference.autoencoder import SlotAutoencoder, build_autoencoder
from psa.inference.config import RunConfig, parse_config
from psa.inference.encoders.cnn import CnnEncoder
from psa.inference.encoders.whole import WholeImageEncoder
from psa.inference.training import Trainer, seed_everything
from psa.metrics import foreground_ari
from psa.metrics.compositional_contrast import compositional_contrast
from psa.models.decoders import JointDecoder

STRIDE = 2  # pixels a side of a token
CHUNK = 250


@dataclass(frozen=True)
class Row:
    """A model.

    Attributes:
        member: Of the family; None is the plain autoencoder, whose latent is cut into K equal parts.
        additive: Whether each slot is painted alone (the patch decoder) or all together (the joint one).
        drawn: Whether slots are drawn from a Normal read-out in training, as PSA's papers do; else means are decoded.
    """

    member: str | None
    additive: bool
    drawn: bool = False

    def slots(self, num_slots: int, slot_dim: int) -> dict[str, Any]:
        """The table ``slots`` of the configuration.

        The plain autoencoder is one slot: the mean of the one token that tells the whole image.
        """
        if self.member is None:
            parts = {"num_slots": 1, "slot_dim": num_slots * slot_dim, "overrides": {"readout": "mean"}}
            return {"variant": "em"} | parts
        return {"variant": self.member, "num_slots": num_slots, "slot_dim": slot_dim}


@dataclass(frozen=True)
class SpriteSlots:
    """What all models share.

    Attributes:
        num_objects: Of every scene; the slots are one more.
        size: Pixels a side.
        num_training: Scenes.
        num_test: Scenes.
        num_contrast: Test scenes at which the compositional contrast is taken.
        steps: Of training.
        batch_size: Images a step.
        learning_rate: After 200 steps of warm-up; a cosine takes it to 0.
        slot_dim: D, of slots and tokens.
        channels: Of the encoder's three convolutions.
        hidden_dim: Of the decoders: channels of the joint one, width of the other's MLP; two hidden layers each.
        num_iterations: E/M steps, the last one included.
    """

    num_objects: int = 2
    size: int = 24
    num_training: int = 8192
    num_test: int = 1000
    num_contrast: int = 32
    steps: int = 3000
    batch_size: int = 16
    learning_rate: float = 2e-3
    slot_dim: int = 16
    channels: int = 32
    hidden_dim: int = 64
    num_iterations: int = 3

    def scenes(self, split: str) -> KnownScenes:
        """The training or test scenes, the same for every row and seed."""
        count = self.num_training if split == "train" else self.num_test
        return draw_scenes(self.num_objects, self.size, STRIDE, split, count)

    def config(self, row: Row, seed: int, device: str) -> RunConfig:
        """A row's whole configuration."""
        slots = row.slots(self.num_objects + 1, self.slot_dim)
        return parse_config(
            {
                "encoder": {"channels": self.channels, "num_layers": 3, "stride": STRIDE, "token_dim": self.slot_dim},
                "slots": {"num_iterations": self.num_iterations} | slots,
                "decoder": {
                    "kind": "patch" if row.additive else "joint",
                    "hidden_dim": self.hidden_dim,
                    "num_layers": 2,
                },
                "objective": {"sample": row.drawn, "kl_weight": 0.0},
                "training": {
                    "steps": self.steps,
                    "max_skipped": 0,  # that a run diverges is a result
                    "batch_size": self.batch_size,
                    "learning_rate": self.learning_rate,
                    "seed": seed,
                    "threads": 1,
                    "device": device,
                },
            }
        )

    def trainer(self, row: Row, seed: int, device: str) -> Trainer:
        """A row at step 0."""
        config = self.config(row, seed, device)
        seed_everything(seed)
        autoencoder = self._build(row, config).to(device)
        images = self.scenes("train").images
        return Trainer(autoencoder, images, images, config.training)

    def _build(self, row: Row, config: RunConfig) -> SlotAutoencoder:
        size = (self.size, self.size)
        if row.member is not None:
            return build_autoencoder(config, size)
        latent_dim, num_tokens = config.slots.slot_dim, (self.size // STRIDE) ** 2
        sized = config.model_copy(update={"encoder": config.encoder.model_copy(update={"token_dim": latent_dim})})
        autoencoder = build_autoencoder(sized, size)
        encoder = CnnEncoder(self.channels, 3, STRIDE, self.slot_dim)
        autoencoder.guide.encoder = WholeImageEncoder(encoder, num_tokens * self.slot_dim, latent_dim)
        return autoencoder

    @torch.no_grad()
    def look(
        self, row: Row, autoencoder: SlotAutoencoder, test: KnownScenes
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Figures of a model on the test images; its slots (M, K, D), and their responsibilities in 255ths.

        Members start at random: their starts are those of one seed, and training goes on as if nothing was drawn.
        """
        autoencoder.eval()
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        errors, slots, masks = [], [], []
        for start in range(0, len(test.images), CHUNK):
            images = autoencoder.prepare(test.images.batch(slice(start, start + CHUNK)))
            posterior, found, _ = autoencoder.encode(images)
            errors.append((autoencoder.decode(found).mean - images).square().flatten(1).mean(1).cpu())
            slots.append(found.cpu().unflatten(-1, (-1, self.slot_dim)).flatten(1, 2))
            masks.append((255 * posterior.responsibilities).round().byte().cpu())
        torch.random.set_rng_state(state)
        tensors = {"slots": torch.cat(slots)}
        if row.member is not None:
            tensors["masks"] = torch.cat(masks)
        figures = {"mse": float(torch.cat(errors).mean()), "contrast": self._contrast(autoencoder, tensors["slots"])}
        figures |= agreement(tensors["slots"], tensors.get("masks"), test)
        if row.member is not None:
            true = test.masks.roll(1, 1).argmax(1)  # the background comes last there, and has label 0 here
            figures["foreground_ari"] = float(foreground_ari(tensors["masks"].argmax(1), true).mean())
        return figures, tensors

    def _contrast(self, autoencoder: SlotAutoencoder, slots: Tensor) -> float:
        """The compositional contrast per standard deviation of the slots, feature by feature.

        Rows have slots of different scales, and the contrast is in squared units of pixel per unit of slot.
        """
        decoder, num_slots = autoencoder.model.decoder, autoencoder.model.num_slots
        slots = slots.to(autoencoder.model.prior_loc)
        loc, scale = slots.mean((0, 1)), slots.std((0, 1))
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))

        def decode(standard: Tensor) -> Tensor:
            slots = (loc + scale * standard).reshape(1, num_slots, -1)
            return decoder.picture(slots) if isinstance(decoder, JointDecoder) else decoder(slots).mean

        return compositional_contrast(decode, (slots[: self.num_contrast] - loc) / scale).contrast
