"""Covariance regularisation (Stange et al.): tables 1 to 3."""

from functools import partial

from psa.experiments.published.data_sets import COCO, MULTI_DSPRITES
from psa.experiments.published.parts import (
    BROADCAST,
    BROADCAST_64,
    DINOSAUR,
    MIXTURE,
    SLOT_ATTENTION,
    VIT,
    WEIGHTS,
    member,
)
from psa.experiments.published.rows import SQUARED_ERROR, Figure, Tables, merged, row


def _covloss(slot_dim: int) -> Tables:
    """Weight 1; projections of four times the slots' features, where the paper says many times."""
    return {"bottleneck": {"covariance": 1.0, "projection_dim": 4 * slot_dim}}


COSINELOSS: Tables = {"bottleneck": {"cosine": 1.0}}
SPRITES = merged(MIXTURE, BROADCAST_64, SLOT_ATTENTION, member("sa", 5))
# The same frozen network, with pixels observed; slots of 64 features.
PIXELS = merged(
    SQUARED_ERROR,
    VIT,
    BROADCAST,
    SLOT_ATTENTION,
    {"data": {"size": 128}, "encoder": {"kind": "frozen", "token_dim": 64}},
    {"slots": {"slot_dim": 64, "overrides": {"hidden_dim": 256}}},
)
LARGE: Tables = {"encoder": {"token_dim": 1024}, "slots": {"slot_dim": 1024, "overrides": {"hidden_dim": 4096}}}

_row = partial(row, "Covariance regularisation (Stange et al.)")
_coco = partial(_row, needs=WEIGHTS)
_ari = partial(Figure, ours="foreground_ari")
_probes = partial(Figure, "table 2, shape acc. / R2 of colour, scale, x, y", ours="psa.metrics.probes.probe_slots")

# fmt: off
ROWS = (
    _row("covariance.multi-dsprites.sa", MULTI_DSPRITES, (SPRITES,), _ari("table 1", "90.71"), _probes(".8472 / .9485, .7865, .9734, .9726")),
    _row("covariance.multi-dsprites.covloss", MULTI_DSPRITES, (SPRITES, _covloss(64)), _ari("table 1", "87.42"), _probes(".8438 / .9359, .7675, .9641, .9694")),
    _row("covariance.multi-dsprites.cosineloss", MULTI_DSPRITES, (SPRITES, COSINELOSS), _ari("table 1", "88.82"), _probes(".8984 / .9199, .8124, .9592, .9626")),
    _coco("covariance.coco.sa", COCO, (PIXELS,), _ari("table 1", "20")),
    _coco("covariance.coco.covloss", COCO, (PIXELS, _covloss(64)), _ari("table 1", "29.55")),
    _coco("covariance.coco.cosineloss", COCO, (PIXELS, COSINELOSS), _ari("table 1", "34.23")),
    _coco("covariance.coco.dinosaur", COCO, (DINOSAUR,), _ari("table 3", "43.86")),
    _coco("covariance.coco.dinosaur-covloss", COCO, (DINOSAUR, _covloss(256)), _ari("table 3", "42.64")),
    _coco("covariance.coco.dinosaur-1024", COCO, (DINOSAUR, LARGE), _ari("table 3", "15.25, unstable")),
    _coco("covariance.coco.dinosaur-1024-covloss", COCO, (DINOSAUR, LARGE, _covloss(1024)), _ari("table 3", "35.35")),
)
# fmt: on
