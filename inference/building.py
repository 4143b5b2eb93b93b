"""From a configuration to the parts of a run: encoder, decoder with its likelihood, and the code's guide.

The slot module is built before all of these, so that its initial weights depend on none of them.
"""

from torch import nn

from psa.errors import ConfigError
from psa.inference.code_guide import CodeGuide
from psa.inference.config import RunConfig
from psa.inference.encoders.cnn import CnnEncoder
from psa.inference.encoders.words import WordEncoder
from psa.models.code_scene import CodeSceneModel
from psa.models.decoders import BroadcastDecoder, JointDecoder, PatchDecoder, SlotTransformer
from psa.models.decoders.code import CodeTransformerDecoder
from psa.models.decoders.grid import patch_grid
from psa.models.dvae import CodeDecoder, CodeEncoder
from psa.models.scene import SceneModel

Size = tuple[int, int]


def token_dim(config: RunConfig) -> int:
    """Features of the encoder's tokens."""
    return config.encoder.token_dim or config.slots.slot_dim


def build_code(config: RunConfig, size: Size) -> CodeGuide | None:
    """The discrete VAE's encoder as a part of the guide; None where the decoder has no words."""
    if config.decoder.kind != "transformer":
        return None
    code = config.code
    return CodeGuide(CodeEncoder(size, code.vocabulary, code.channels, config.decoder.patch, code.kernel), code)


def build_encoder(config: RunConfig, code: CodeGuide | None) -> nn.Module:
    """Images -> tokens.

    Raises:
        ConfigError: If it takes words and there are none.
    """
    encoder = config.encoder
    if encoder.kind == "words":
        if code is None:
            raise ConfigError(
                f"encoder.kind = words: expected decoder.kind = transformer, which has words, got {config.decoder.kind}"
            )
        return WordEncoder(code.encoder, config.code.vocabulary, encoder.channels, token_dim(config))
    return CnnEncoder(encoder.channels, encoder.num_layers, encoder.stride, token_dim(config))


def build_scene_model(config: RunConfig, size: Size) -> SceneModel:
    """The scene program: the decoder and the likelihood that goes with it.

    Raises:
        ValueError: If the settings do not fit each other or the size.
    """
    slots, objective = config.slots, config.objective
    kind = CodeSceneModel if config.decoder.kind == "transformer" else SceneModel
    return kind(
        build_decoder(config, size),
        slots.num_slots,
        slots.slot_dim,
        objective.likelihood,
        objective.sigma,
        objective.kl_weight,
        drops_slots=config.decoder.relevance != "none",
    )


def build_decoder(config: RunConfig, size: Size) -> nn.Module:
    """Slots -> a picture and masks.

    Raises:
        ValueError: If the settings do not fit each other or the size.
    """
    decoder, slot_dim = config.decoder, config.slots.slot_dim
    if decoder.kind == "broadcast":
        return BroadcastDecoder(slot_dim, size, decoder.hidden_dim, decoder.num_upsamplings)
    if decoder.kind == "transformer":
        grid = patch_grid(size, decoder.patch)
        transformer = SlotTransformer(
            slot_dim, grid[0] * grid[1], decoder.hidden_dim, decoder.num_layers, decoder.num_heads, decoder.dropout
        )
        painter = CodeDecoder(grid, config.code.vocabulary, config.code.channels, decoder.patch)
        return CodeTransformerDecoder(transformer, painter)
    masked = PatchDecoder if decoder.kind == "patch" else JointDecoder
    return masked(slot_dim, size, decoder.hidden_dim, decoder.num_layers, decoder.patch)
