"""A discrete VAE: an image as a grid of words, each one of a vocabulary (docs/decoders.md).

Words are what the papers call image tokens; tokens here are what the E/M steps group.
"""

import math

from jaxtyping import Float, Int64
from torch import Tensor, nn

from psa.models.decoders.grid import patch_grid

DRAWS = ("relaxed", "straight-through")


class CodeEncoder(nn.Module):
    """Image -> log-probabilities of the word of each patch: a convolution with the patch's stride, then 1 x 1.

    Args:
        size: (H, W) of the image; multiples of ``patch``.
        vocabulary: Number of words.
        channels: Width of the convolutions.
        patch: Pixels a side that one word stands for.
        kernel: Odd; the first convolution sees (kernel - 1) / 2 patches around its own. 1 is SLATE's, 3 BO-QSA's.

    Raises:
        ValueError: If the size is not a multiple of the patch, or the kernel is even.
    """

    def __init__(
        self, size: tuple[int, int], vocabulary: int = 64, channels: int = 32, patch: int = 4, kernel: int = 1
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"code.kernel must be odd, got {kernel}")
        self.grid = patch_grid(size, patch)
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, channels, patch, stride=patch),
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2),
            nn.ReLU(),
            nn.Conv2d(channels, vocabulary, 1),
        )

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch words vocabulary"]:
        """(B, L, V) in row-major order, normalised over the vocabulary; images in [0, 1]."""
        return self.convolutions(images * 2.0 - 1.0).flatten(2).transpose(1, 2).log_softmax(-1)

    def words(self, images: Float[Tensor, "batch 3 height width"]) -> Int64[Tensor, "batch words"]:
        """The most probable words, (B, L)."""
        return self(images).argmax(-1)


class CodeDecoder(nn.Module):
    """Code -> image: every word an embedding, convolutions 3 x 3 on the grid, a patch of pixels for each position.

    Args:
        grid: Rows and columns of words.
        vocabulary: Number of words.
        channels: Width of the convolutions.
        patch: Pixels a side that one word stands for.
    """

    def __init__(self, grid: tuple[int, int], vocabulary: int = 64, channels: int = 32, patch: int = 4) -> None:
        super().__init__()
        self.grid, self.vocabulary = grid, vocabulary
        self.convolutions = nn.Sequential(
            nn.Conv2d(vocabulary, channels, 1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 3 * patch * patch, 1),
            nn.PixelShuffle(patch),
        )

    def forward(self, code: Float[Tensor, "batch words vocabulary"]) -> Float[Tensor, "batch 3 height width"]:
        """The picture of a code (B, L, V), one-hot or relaxed: rows sum to 1."""
        return self.convolutions(code.transpose(1, 2).unflatten(2, self.grid))

    def picture(self, words: Int64[Tensor, "batch words"]) -> Float[Tensor, "batch 3 height width"]:
        """The picture of words (B, L)."""
        return self(one_hot(words, self.vocabulary, like=next(self.parameters())))


def one_hot(words: Int64[Tensor, "*batch"], vocabulary: int, like: Tensor) -> Float[Tensor, "*batch vocabulary"]:
    """A code of words, in the dtype of ``like``."""
    return nn.functional.one_hot(words, vocabulary).to(like.dtype)


def temperature_at(progress: float, start: float, end: float, share: float) -> float:
    """Temperature after a share of training: from start to end by half a cosine over the first ``share``, then end."""
    done = 1.0 if progress >= share else progress / share
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * done))


def draw_code(
    log_probs: Float[Tensor, "*batch vocabulary"],
    uniform: Float[Tensor, "*batch vocabulary"],
    temperature: float,
    draw: str = "relaxed",
) -> Float[Tensor, "*batch vocabulary"]:
    """A re-parameterised draw of words: the Gumbel-softmax relaxation of independent categoricals.

        z = softmax((log p + g) / temperature),    g = -log(-log u)

    Its largest entry is a draw of the categorical at every temperature; as that falls to 0, z becomes one-hot.

    Args:
        log_probs: Of the words.
        uniform: u, in (0, 1), independent.
        temperature: Above 0.
        draw: ``relaxed``, z itself; ``straight-through``, one-hot at its largest entry, with the gradient of z.

    Raises:
        ValueError: If the draw is unknown.
    """
    if draw not in DRAWS:
        raise ValueError(f"code.draw must be one of {', '.join(DRAWS)}, got {draw!r}")
    # in the noise's own precision: -log(-log u) of a float32 next to 1 is infinite
    gumbel = -(-uniform.log()).log()
    relaxed = ((log_probs + gumbel.to(log_probs.dtype)) / temperature).softmax(-1)
    if draw == "relaxed":
        return relaxed
    return one_hot(relaxed.argmax(-1), relaxed.shape[-1], like=relaxed) + relaxed - relaxed.detach()
