"""SMM (arXiv 2311.04640): set prediction on CLEVR, and objects of ClevrTex. The text at hand states no settings."""

from functools import partial

from psa.experiments.published.data_sets import CLEVR, CLEVRTEX
from psa.experiments.published.parts import MIXTURE, SLOT_ATTENTION, STRIDED, member
from psa.experiments.published.rows import Figure, Tables, merged, row

# Slot Attention's released code for set prediction; its strides 1, 2, 2, 1 are one of 4 here.
SETS: Tables = {
    "encoder": {"stride": 4},
    "training": {
        "steps": 150_000, "batch_size": 512, "learning_rate": 4e-4, "warmup_steps": 1000,
        "decay": "exponential", "half_life": 50_000,
    },
}  # fmt: skip
OBJECTS = merged(MIXTURE, STRIDED, SLOT_ATTENTION)

_row = partial(row, "SMM (arXiv 2311.04640)")
_precision = partial(Figure, "set prediction", "AP, not in the text at hand", "psa.metrics.sets.set_average_precision")
_ari = partial(Figure, "object discovery", ours="foreground_ari")

ROWS = (
    _row("smm.clevr.sa", CLEVR, (MIXTURE, SETS, member("sa", 10)), _precision()),
    _row("smm.clevr.smm", CLEVR, (MIXTURE, SETS, member("smm", 10)), _precision()),
    _row("smm.clevrtex.sa", CLEVRTEX, (OBJECTS, member("sa", 11)), _ari("below SMM's")),
    _row("smm.clevrtex.smm", CLEVRTEX, (OBJECTS, member("smm", 11)), _ari("above SA's")),
)
