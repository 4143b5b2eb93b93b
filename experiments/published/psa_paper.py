"""PSA (arXiv 2406.07141): tables 2 and 4, relevance, and VOC 2012. The text at hand is a summary without settings."""

from functools import partial

from psa.experiments.published.data_sets import CLEVR_WITH_MASKS, OBJECTS_ROOM, VOC
from psa.experiments.published.parts import (
    BROADCAST,
    BROADCAST_64,
    DINOSAUR,
    SLOT_ATTENTION,
    SLOT_MODEL,
    TRANSFORMER,
    WEIGHTS,
    member,
)
from psa.experiments.published.rows import Figure, Tables, merged, row

DRAWN: Tables = {"objective": {"sample": True}}
JOINT: Tables = {"decoder": {"kind": "joint", "hidden_dim": 64, "num_layers": 3, "patch": 8}}
PRUNED: Tables = {"decoder": {"relevance": "weights"}}
STABLE: Tables = {"training": {"schedule": "psa-transformer"}}


def _autoencoder(num_slots: int) -> Tables:
    """One slot on one token, as long as all slots of the other systems."""
    latent = 64 * num_slots
    return merged(
        {"encoder": {"kind": "whole", "stride": 8, "token_dim": latent}},
        member("em", 1, slot_dim=latent, num_iterations=1),
        {"slots": {"overrides": {"readout": "mean"}}},
    )


TRAINED = merged(SLOT_MODEL, SLOT_ATTENTION)
CLEVR = merged(TRAINED, BROADCAST)
ROOM = merged(CLEVR, BROADCAST_64)
WORDS = merged(TRANSFORMER, STABLE, {"code": {"kernel": 1}, "training": {"code_learning_rate": 3e-4}})
IMAGES = merged(DINOSAUR, {"training": {"steps": 300_000}})
ATTENTIVE: Tables = {"decoder": {"kind": "transformer", "hidden_dim": 768, "num_layers": 4, "num_heads": 4}}

_row = partial(row, "PSA (arXiv 2406.07141)")
_agreement = partial(Figure, "table 2, SMCC / R2", ours="smcc, r2 of psa.metrics.smcc")
_ari = partial(Figure, "table 4, FG-ARI", ours="foreground_ari")
_count = partial(Figure, "relevance: slot-count MAE, FLOPs saved", ours="slot_count_error, share_not_decoded")
_overlap = partial(Figure, "VOC 2012, mBO_i / mBO_c", ours="mbo_instance, mbo_class")

# fmt: off
ROWS = (
    _row("psa.clevr.ae", CLEVR_WITH_MASKS, (TRAINED, JOINT, _autoencoder(11)), _agreement(".43 / .26")),
    _row("psa.clevr.sa", CLEVR_WITH_MASKS, (CLEVR, member("sa", 11)), _agreement(".56 / .55"), _ari(".96")),
    _row("psa.clevr.sa-noa", CLEVR_WITH_MASKS, (TRAINED, member("sa", 11), JOINT), _agreement(".23 / .24")),
    _row("psa.clevr.psa-noa", CLEVR_WITH_MASKS, (TRAINED, member("psa-proj", 11), DRAWN, JOINT), _agreement(".56 / .42")),
    _row("psa.clevr.psa", CLEVR_WITH_MASKS, (CLEVR, member("psa", 11), DRAWN), _agreement(".58 / .48"), _ari(".85")),
    _row("psa.clevr.psa-proj", CLEVR_WITH_MASKS, (CLEVR, member("psa-proj", 11), DRAWN), _agreement(".66 / .62"), _ari(".95")),
    _row("psa.clevr.psa-transformer", CLEVR_WITH_MASKS, (WORDS, member("psa-proj", 11), DRAWN), _agreement(".73 / .55")),
    _row("psa.clevr.psa-ard", CLEVR_WITH_MASKS, (CLEVR, member("psa", 11), DRAWN, PRUNED), _count("1.03, 41 %")),
    _row("psa.objects-room.ae", OBJECTS_ROOM, (TRAINED, JOINT, _autoencoder(5)), _agreement(".46 / .45")),
    _row("psa.objects-room.sa", OBJECTS_ROOM, (ROOM, member("sa", 5)), _agreement(".66 / .54"), _ari(".79")),
    _row("psa.objects-room.sa-noa", OBJECTS_ROOM, (TRAINED, member("sa", 5), JOINT), _agreement(".48 / .47")),
    _row("psa.objects-room.psa-noa", OBJECTS_ROOM, (TRAINED, member("psa-proj", 5), DRAWN, JOINT), _agreement(".44 / .45")),
    _row("psa.objects-room.psa", OBJECTS_ROOM, (ROOM, member("psa", 5), DRAWN), _agreement(".66 / .64"), _ari(".78")),
    _row("psa.objects-room.psa-proj", OBJECTS_ROOM, (ROOM, member("psa-proj", 5), DRAWN), _agreement(".71 / .62"), _ari(".81")),
    _row("psa.objects-room.psa-ard", OBJECTS_ROOM, (ROOM, member("psa", 5), DRAWN, PRUNED), _count(".58, 62 %")),
    _row("psa.voc.sa", VOC, (IMAGES, member("sa", 6)), _overlap(".384 / .397"), needs=WEIGHTS),
    _row("psa.voc.psa", VOC, (IMAGES, member("psa", 6), DRAWN), _overlap(".389 / .422"), needs=WEIGHTS),
    _row("psa.voc.psa-transformer", VOC, (IMAGES, member("psa", 6), DRAWN, ATTENTIVE, STABLE), _overlap(".447 / .521"), needs=WEIGHTS),
)
# fmt: on
