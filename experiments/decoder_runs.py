"""Models of sprite scenes that differ in their decoder and in nothing else, and figures of each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from psa.experiments.sprite_factors import KnownScenes, agreement, draw_scenes
from psa.inference.attention_masks import resized
from psa.inference.autoencoder import SlotAutoencoder, build_autoencoder
from psa.inference.config import RunConfig, override, parse_config
from psa.inference.keyed_noise import ImageNoise, Purpose
from psa.inference.training import Trainer, seed_everything
from psa.inference.word_figures import WordCounts
from psa.metrics import foreground_ari

STRIDE = 2  # pixels a side of a token
CHUNK = 250
SHOWN = 8  # test scenes that pictures are kept of


@dataclass(frozen=True)
class DecoderRuns:
    """What all rows share; scenes are of exactly two objects on black, each of a hue of its own.

    Attributes:
        member: Of the family, as published but for its draws: slots are decoded at their means.
        num_objects: Of every scene; the slots are one more.
        size: Pixels a side.
        num_training: Scenes.
        num_test: Scenes.
        steps: Of training.
        batch_size: Images a step.
        learning_rate: After 200 steps of warm-up; a cosine takes it to 0.
        slot_dim: D, of slots and tokens.
        channels: Of the encoder's three convolutions.
        hidden_dim: Of the decoders' hidden layers, where a row does not say its own.
        num_iterations: E/M steps, the last one included.
    """

    member: str = "psa"
    num_objects: int = 2
    size: int = 24
    num_training: int = 8192
    num_test: int = 1000
    steps: int = 1000
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

    def config(self, decoder: Sequence[str], seed: int, device: str) -> RunConfig:
        """A row's whole configuration: ``decoder`` has the settings that are its own."""
        return parse_config(
            override(
                {
                    "encoder": {
                        "channels": self.channels,
                        "num_layers": 3,
                        "stride": STRIDE,
                        "token_dim": self.slot_dim,
                    },
                    "slots": {
                        "variant": self.member,
                        "num_slots": self.num_objects + 1,
                        "slot_dim": self.slot_dim,
                        "num_iterations": self.num_iterations,
                    },
                    "objective": {"sample": False, "kl_weight": 0.0},
                    "training": {
                        "steps": self.steps,
                        "max_skipped": 0,  # that a run diverges is a result
                        "batch_size": self.batch_size,
                        "learning_rate": self.learning_rate,
                        "seed": seed,
                        "threads": 1,
                        "device": device,
                    },
                    "decoder": {"hidden_dim": self.hidden_dim, "num_layers": 2},
                },
                decoder,
            )
        )

    def trainer(self, decoder: Sequence[str], seed: int, device: str) -> Trainer:
        """A row at step 0; at equal seeds encoder and slot module are those of every other row."""
        config = self.config(decoder, seed, device)
        seed_everything(seed)
        autoencoder = build_autoencoder(config, (self.size, self.size)).to(device)
        images = self.scenes("train").images
        return Trainer(autoencoder, images, images, config.training)

    @torch.no_grad()
    def look(self, autoencoder: SlotAutoencoder, test: KnownScenes) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Figures of a model on the test images; its slots (M, K, D), and their responsibilities in 255ths.

        Foreground ARI is of the decoder's masks and of the attention's, apart. An image's slots start at the same
        points in every row, seed and state.
        """
        autoencoder.eval()
        words = None if autoencoder.guide.code is None else WordCounts(autoencoder)
        errors, slots, attention, decoder = [], [], [], []
        for start in range(0, len(test.images), CHUNK):
            images = autoencoder.prepare(test.images.batch(slice(start, start + CHUNK)))
            index = torch.arange(start, start + len(images), device=images.device)
            with autoencoder.guide.drawing(ImageNoise(0, 0, index, Purpose.HELD_OUT)):
                posterior, found, _ = autoencoder.encode(images)
            scene = autoencoder.decode(found)
            if words is not None:
                words.add(images, found, None)
            errors.append((scene.mean - images).square().flatten(1).mean(1).cpu())
            slots.append(found.cpu())
            attention.append((255 * posterior.responsibilities).round().byte().cpu())
            decoder.append(resized(scene.masks, autoencoder.size).argmax(1).byte().cpu())
            if start == 0:
                pictures = (255 * scene.mean[:SHOWN].clamp(0, 1)).round().byte().movedim(1, 3).cpu()
        tensors = {"slots": torch.cat(slots), "masks": torch.cat(attention)}
        tensors |= {"pictures": pictures, "labels": torch.cat(decoder)[:SHOWN]}
        assert test.images.masks is not None
        tokens = test.masks.roll(1, 1).argmax(1)  # the background comes last there, and has label 0 here
        figures = {
            "mse": float(torch.cat(errors).mean()),
            "decoder_ari": float(foreground_ari(torch.cat(decoder).long(), test.images.masks).mean()),
            "attention_ari": float(foreground_ari(tensors["masks"].argmax(1), tokens).mean()),
            **agreement(tensors["slots"], tensors["masks"], test),
        }
        if words is not None:
            told = words.figures()
            figures |= {"cross_entropy": told.cross_entropy, "unigram_entropy": told.unigram_entropy}
        return figures, tensors
