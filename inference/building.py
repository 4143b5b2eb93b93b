"""From a configuration to the parts of a run: encoder, decoder with its likelihood, and the code's guide.

The slot module is built before all of these, so that its initial weights depend on none of them.
"""

import math

from torch import nn

from psa.errors import ConfigError
from psa.inference.code_guide import CodeGuide
from psa.inference.config import RunConfig
from psa.inference.encoders.cnn import CnnEncoder
from psa.inference.encoders.features import FeatureEncoder
from psa.inference.encoders.frozen import FrozenEncoder
from psa.inference.encoders.whole import WholeImageEncoder
from psa.inference.encoders.words import WordEncoder
from psa.models.code_scene import CodeSceneModel
from psa.models.decoders import DecoderPlan, SlotTransformer, decoder_of_kind
from psa.models.decoders.code import CodeTransformerDecoder
from psa.models.decoders.features import FeatureTransformerDecoder
from psa.models.decoders.grid import patch_grid
from psa.models.dvae import CodeDecoder, CodeEncoder
from psa.models.feature_scene import FeatureSequenceModel
from psa.models.scene import SceneModel

Size = tuple[int, int]


def token_dim(config: RunConfig) -> int:
    """Features of the encoder's tokens."""
    return config.encoder.token_dim or config.slots.slot_dim


def observed(config: RunConfig, size: Size) -> tuple[int, Size]:
    """Channels and (H, W) of what the program observes: the image, or the map of features."""
    if config.encoder.kind != "features":
        return 3, size
    channels, rows, columns = feature_shape(config)
    return channels, (rows, columns)


def feature_shape(config: RunConfig) -> tuple[int, int, int]:
    """(F, rows, columns) of the maps that are observed.

    Raises:
        ConfigError: If it is not known yet.
    """
    if config.features.shape is None:
        raise ConfigError("features.shape: expected what psa train finds and writes, got none")
    return config.features.shape


def build_code(config: RunConfig, size: Size) -> CodeGuide | None:
    """The discrete VAE's encoder as a part of the guide; None where the decoder has no words."""
    if config.decoder.kind != "transformer" or config.encoder.kind == "features":
        return None
    code = config.code
    return CodeGuide(CodeEncoder(size, code.vocabulary, code.channels, config.decoder.patch, code.kernel), code)


def build_encoder(config: RunConfig, code: CodeGuide | None, size: Size) -> nn.Module:
    """What is observed -> tokens.

    Raises:
        ConfigError: If it takes words and there are none, or features of no known shape.
        ValueError: If the settings do not fit each other.
    """
    encoder = config.encoder
    if encoder.kind == "words":
        if code is None:
            raise ConfigError(
                f"encoder.kind = words: expected decoder.kind = transformer, which has words, got {config.decoder.kind}"
            )
        return WordEncoder(code.encoder, config.code.vocabulary, encoder.channels, token_dim(config))
    if encoder.kind == "features":
        return FeatureEncoder(feature_shape(config), encoder.channels, token_dim(config))
    if encoder.kind == "frozen":
        return FrozenEncoder(config.features, feature_shape(config), encoder.channels, token_dim(config))
    whole = encoder.kind == "whole"
    each = encoder.channels if whole else token_dim(config)
    tokens = CnnEncoder(encoder.channels, encoder.num_layers, encoder.stride, each, kernel=encoder.kernel)
    return WholeImageEncoder(tokens, each * math.prod(tokens.grid(*size)), token_dim(config)) if whole else tokens


def build_scene_model(config: RunConfig, size: Size) -> SceneModel:
    """The scene program: the decoder and the likelihood that goes with it.

    Raises:
        ValueError: If the settings do not fit each other or the size.
    """
    slots, objective = config.slots, config.objective
    kind = SceneModel
    if config.decoder.kind == "transformer":
        kind = FeatureSequenceModel if config.encoder.kind == "features" else CodeSceneModel
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
    decoder = config.decoder
    channels, size = observed(config, size)
    features = config.encoder.kind == "features"  # whose grid is coarse: no patches, no steps up to it
    plan = DecoderPlan(
        config.slots.slot_dim,
        size,
        channels,
        decoder.hidden_dim,
        decoder.num_layers,
        1 if features else decoder.patch,
        0 if features else decoder.num_upsamplings,
        decoder.num_heads,
        decoder.dropout,
        decoder.kernel,
        decoder.num_convolutions,
        learned_positions=features,
    )
    built = decoder_of_kind(decoder.kind, plan, decoder.options)
    if decoder.kind != "transformer":
        return built
    assert isinstance(built, SlotTransformer)
    grid = patch_grid(size, plan.patch)
    if features:
        return FeatureTransformerDecoder(built, (channels, *grid))
    return CodeTransformerDecoder(built, CodeDecoder(grid, config.code.vocabulary, config.code.channels, plan.patch))
