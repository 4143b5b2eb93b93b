"""How well slots tell the words of images, and words the images: figures of a run with a code (docs/decoders.md)."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psa.inference.autoencoder import SlotAutoencoder
from psa.models.decoders.code import CodeTransformerDecoder


@dataclass(frozen=True)
class WordFigures:
    """Figures of the likeliest words of a set of images.

    Attributes:
        cross_entropy: Of the words given the slots and the words before, nats a word.
        unigram_entropy: Of the words' frequencies in these images, nats: reached without slots and words before.
        in_use: Words that occur.
        code_mse: Mean squared error of the pictures that the words themselves give, image range [0, 1].
    """

    cross_entropy: float
    unigram_entropy: float
    in_use: int
    code_mse: float


@dataclass
class WordCounts:
    """Sums over batches of images."""

    autoencoder: SlotAutoencoder
    nats: float = 0.0
    squares: float = 0.0
    values: int = 0
    counts: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def add(
        self,
        images: Float[Tensor, "batch channels height width"],
        slots: Float[Tensor, "batch slots features"],
        active: Bool[Tensor, "batch slots"] | None,
    ) -> None:
        """Take in a batch with its slots."""
        code, decoder = self.autoencoder.guide.code, self.autoencoder.model.decoder
        assert code is not None
        assert isinstance(decoder, CodeTransformerDecoder)
        words = code.encoder.words(images)
        log_probs = decoder.log_probs(words, slots, active)
        self.nats -= float(log_probs.gather(-1, words[..., None]).double().sum())
        self.squares += float((decoder.painter.picture(words) - images).square().double().sum())
        self.values += images.numel()
        self.counts = self.counts + torch.bincount(words.flatten(), minlength=decoder.painter.vocabulary).cpu()

    def figures(self) -> WordFigures:
        """Means over all batches."""
        frequencies = self.counts.double() / self.counts.sum()
        return WordFigures(
            cross_entropy=self.nats / float(self.counts.sum()),
            unigram_entropy=float(torch.special.entr(frequencies).sum()),
            in_use=int((self.counts > 0).sum()),
            code_mse=self.squares / self.values,
        )
