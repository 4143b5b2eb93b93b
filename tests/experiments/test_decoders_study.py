"""What decoders shares between rows, what it measures, and how it decides."""

from collections.abc import Mapping, Sequence

import pytest
import torch

from psa.experiments.decoder_runs import DecoderRuns
from psa.experiments.decoders import JOINT, ROWS, SCALES, Decoders, decide
from psa.experiments.sprites_identifiability import Agreement

SMOKE = SCALES["smoke"]
assert isinstance(SMOKE, Decoders)
SHARED: DecoderRuns = SMOKE.shared


def ignore(step: int, steps: int) -> None:
    pass


def test_rows_differ_in_their_decoder_alone():
    configs = {row: SHARED.config(own, 1, "cpu") for row, own in ROWS.items()}
    assert {config.decoder.kind for config in configs.values()} == set(ROWS)
    for part in ("data", "encoder", "slots", "bottleneck"):
        assert len({repr(getattr(config, part)) for config in configs.values()}) == 1
    # the discrete VAE is a part of the decoder
    assert len({repr(c.training.model_copy(update={"code_learning_rate": None})) for c in configs.values()}) == 1
    assert not any(config.objective.sample or config.objective.kl_weight for config in configs.values())


def test_rows_start_from_the_same_encoder_and_slot_module():
    guides = [SHARED.trainer(own, 5, "cpu").autoencoder.guide for own in ROWS.values()]
    for part in ("encoder", "inference"):
        first, *others = (getattr(guide, part).state_dict() for guide in guides)
        for other in others:
            assert all(torch.equal(first[name], value) for name, value in other.items())


@pytest.mark.parametrize("row", ["joint", "transformer"])
def test_figures_are_the_same_at_every_look_and_do_not_disturb_training(row: str):
    states = []
    for looked in (False, True):
        trainer = SHARED.trainer(ROWS[row], 5, "cpu")
        trainer.train_steps(2)
        if looked:
            one, two = (SHARED.look(trainer.autoencoder, SHARED.scenes("test")) for _ in range(2))
            assert one[0] == two[0]
            assert all(torch.equal(value, two[1][name]) for name, value in one[1].items())
        trainer.train_steps(2)
        states.append(trainer.autoencoder.state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_both_kinds_of_masks_are_scored_and_words_where_there_are_words():
    found = {
        row: SHARED.look(SHARED.trainer(own, 5, "cpu").autoencoder, SHARED.scenes("test"))[0]
        for row, own in ROWS.items()
    }
    for row, figures in found.items():
        assert {"decoder_ari", "attention_ari", "smcc", "null_smcc", "mse"} <= set(figures)
        assert ("cross_entropy" in figures) == (row == "transformer")
    attention = {figures["attention_ari"] for figures in found.values()}
    assert len(attention) == 1  # untrained, the attention is that of every row
    assert len({figures["decoder_ari"] for figures in found.values()}) > 1


def pairs(excesses: Mapping[str, Sequence[float]]) -> dict[str, list[Agreement]]:
    return {
        row: [Agreement((1, 2), value + 0.1, 0.0, 0.1, 0.0) for value in excesses.get(row, [0.6, 0.7, 0.8])]
        for row in ROWS
    }


@pytest.mark.parametrize(
    ("excesses", "seeds", "verdict"),
    [
        ({JOINT: [0.1, 0.2, 0.3]}, 3, "holds"),
        ({JOINT: [0.1, 0.2, 0.65]}, 3, "not decided at this scale"),
        ({JOINT: [0.1, 0.2, 0.3], "broadcast": [0.0, 0.02, 0.05]}, 3, "fails"),
        ({JOINT: [0.1]}, 2, "not decided at this scale"),
        ({JOINT: []}, 3, "not decided at this scale"),
    ],
)
def test_the_verdict_asks_for_every_pair_of_seeds(excesses: dict[str, list[float]], seeds: int, verdict: str):
    found, reason = decide(pairs(excesses), seeds)
    assert found == verdict
    assert "joint" in reason
