"""Kinds of scenes, to train on and to be shown without further training."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from psa.experiments.segmented import score_labels
from psa.inference.autoencoder import SlotAutoencoder, build_autoencoder
from psa.inference.config import DataConfig
from psa.inference.images import ImageSet, read_images
from psa.inference.initialisers import Queries
from psa.inference.sessions import open_split
from psa.metrics import BASELINES

SPRITES = {"source": "sprites", "min_visible": 1.0}
TETROMINOES = {"source": "tetrominoes"}
MULTI_DSPRITES = {"source": "multi-dsprites", "variant": "colored_on_grayscale", "min_objects": 1, "max_objects": 4}
# Each is what a model may be trained on.
HOMES: Mapping[str, Mapping[str, Any]] = {"sprites": SPRITES, "tetrominoes": TETROMINOES}
DOMAINS: Mapping[str, Mapping[str, Any]] = {
    **HOMES,
    "sprites, unseen hues": {**SPRITES, "hues": "unseen"},
    "sprites, gray ground": {**SPRITES, "background": "gray"},
    "sprites, 5 or 6": {**SPRITES, "min_objects": 5, "max_objects": 6, "min_visible": 0.5},
    "tetrominoes, unseen hues": {**TETROMINOES, "hues": "unseen"},
    "multi-dsprites": {**MULTI_DSPRITES, "min_visible": 0.5},
}
MORE, MORE_SLOTS = "sprites, 5 or 6", 7  # a slot for each object and one for the ground


@cache
def scenes_of(domain: str, size: int, num_scenes: int) -> ImageSet:
    """Test scenes of a kind."""
    return read_images(open_split(DataConfig(size=size, num_scenes=num_scenes, **DOMAINS[domain]), "test"))


def with_slots(autoencoder: SlotAutoencoder, num_slots: int) -> SlotAutoencoder | None:
    """The same run with another number of slots; None where each slot has a learned start of its own."""
    if isinstance(autoencoder.guide.inference.initialiser, Queries):
        return None
    config = autoencoder.config
    slots = config.slots.model_copy(update={"num_slots": num_slots})
    wider = build_autoencoder(config.model_copy(update={"slots": slots}), autoencoder.size)
    wider.load_state_dict(autoencoder.state_dict())
    return wider.to(autoencoder.model.prior_loc.device).train(autoencoder.training)


def segment_without_learning(name: str, scenes: ImageSet, num_slots: int) -> float:
    """Foreground ARI of a segmentation of ``psa.metrics.BASELINES``."""
    return score_labels(BASELINES[name](scenes.images, num_slots), scenes)
