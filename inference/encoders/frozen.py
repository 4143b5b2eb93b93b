"""Image -> tokens: features of a frozen network, found anew at every call, where pixels are what is observed."""

from jaxtyping import Float
from torch import Tensor

from psa.inference.config import FeaturesConfig
from psa.inference.encoders.features import FeatureEncoder
from psa.inference.frozen_network import FrozenNetwork, open_network


class FrozenEncoder(FeatureEncoder):
    """A frozen network, then LayerNorm and an MLP per position: DINOSAUR's encoder below an image's reconstruction.

    The network is opened at the first image, and is no part of the module: no gradient reaches it, and checkpoints do
    not hold it.

    Args:
        settings: Of the network.
        shape: (F, rows, columns) of its maps.
        channels: Width of the MLP.
        token_dim: Features of a token.
    """

    def __init__(
        self, settings: FeaturesConfig, shape: tuple[int, int, int], channels: int = 32, token_dim: int = 32
    ) -> None:
        super().__init__(shape, channels, token_dim)
        self._settings = settings
        self._network: FrozenNetwork | None = None

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens features"]:
        """Tokens (B, N, token_dim) in row-major order of the network's map of the images (B, 3, H, W), in [0, 1].

        Raises:
            PsaError: If the network is not to be had, or is another than the run was made with.
        """
        self._network = self._network or open_network(self._settings)
        return super().forward(self._network.maps(images).to(images))
