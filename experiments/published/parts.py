"""Parts of published configurations that several papers share."""

from psa.experiments.published.rows import SQUARED_ERROR, Tables, merged

# BO-QSA, tables 9 to 11; the same layers as in Slot Attention's released code.
CNN: Tables = {"encoder": {"channels": 64, "kernel": 5, "num_layers": 4, "stride": 1, "token_dim": 64}}
STRIDED: Tables = {"encoder": {"stride": 2}}
SLOTS: Tables = {"slots": {"slot_dim": 64, "num_iterations": 3, "overrides": {"hidden_dim": 128}}}
BROADCAST: Tables = {
    "decoder": {"kind": "broadcast", "hidden_dim": 64, "kernel": 5, "num_upsamplings": 4, "num_convolutions": 1}
}
BROADCAST_64: Tables = {"decoder": {"num_upsamplings": 3, "num_convolutions": 2}}  # table 10, in parentheses
SLOT_ATTENTION: Tables = {"training": {"schedule": "slot-attention"}}
SLOT_MODEL = merged(SQUARED_ERROR, CNN, SLOTS)
MIXTURE = merged(SLOT_MODEL, BROADCAST)

# BO-QSA, table 12.
WORDS: Tables = {
    "slots": {"slot_dim": 256, "overrides": {"hidden_dim": 512}},
    "decoder": {
        "kind": "transformer", "hidden_dim": 256, "num_layers": 4, "num_heads": 4, "dropout": 0.1, "patch": 4
    },
    "code": {
        "vocabulary": 1024, "channels": 64, "kernel": 3,
        "temperature_start": 1.0, "temperature_end": 0.1, "anneal_share": 0.12,
    },
}  # fmt: skip
TRANSFORMER = merged(SLOT_MODEL, WORDS)

# DINOSAUR, the released configuration of its authors for COCO with DINO's ViT-B/16.
VIT: Tables = {
    "encoder": {"channels": 768, "token_dim": 256},
    "features": {"architecture": "vit_base_patch16_224.dino"},
    "slots": {"variant": "sa", "num_slots": 7, "slot_dim": 256, "num_iterations": 3, "overrides": {"hidden_dim": 1024}},
}
MLP: Tables = {
    "data": {"size": 224},
    "encoder": {"kind": "features"},
    "decoder": {"kind": "patch", "hidden_dim": 2048, "num_layers": 3},
}
DINOSAUR = merged(SQUARED_ERROR, VIT, MLP, SLOT_ATTENTION)
WEIGHTS = {"features.weights": "DINO.safetensors"}


def member(variant: str, num_slots: int, **others: int) -> Tables:
    """A member of the family with so many slots, and other keys of ``slots``."""
    return {"slots": {"variant": variant, "num_slots": num_slots, **others}}
