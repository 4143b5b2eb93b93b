"""What sprites_identifiability measures, and how it decides."""

from dataclasses import replace

import pytest
import torch
from tolerances import assert_close

from psa.experiments.experiment import Outcome
from psa.experiments.sprite_factors import KnownScenes, agreement, draw_scenes, independent_features
from psa.experiments.sprite_slots import Row
from psa.experiments.sprites_identifiability import CLAIMED, ROWS, SCALES, Agreement, agreements, decide

SHARED = SCALES["smoke"].shared  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def scenes() -> KnownScenes:
    return draw_scenes(2, 16, 2, "test", 200)


def test_masks_of_things_share_every_token_and_the_background_is_last(scenes):
    assert_close(scenes.masks.sum(1), torch.ones(200, 64))
    assert scenes.images.masks is not None
    background = (scenes.images.masks == 0).double().mean((1, 2))
    assert_close(scenes.masks[:, -1].double().mean(1), background, 1e-6)
    assert scenes.present.sum(1).unique().tolist() == [2]
    assert not bool(scenes.factors[:, -1].any())


def test_factors_are_on_the_circle_and_of_one_shape(scenes):
    objects = scenes.factors[:, :2]
    assert_close(objects[..., 3:5].square().sum(-1), torch.ones(200, 2), 1e-5)
    assert_close(objects[..., 5:].sum(-1), torch.ones(200, 2))


def affine_of(scenes: KnownScenes, features: int = 7) -> torch.Tensor:
    """Slots that are an affine map of the factors (of those that are independent) and of nothing else."""
    generator = torch.Generator().manual_seed(0)
    return scenes.factors[..., :features].double() @ torch.randn(7, 7, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("masked", [True, False])
def test_slots_that_are_an_affine_map_of_the_factors_tell_all_of_them(scenes, masked):
    order = torch.rand(200, 3, generator=torch.Generator().manual_seed(1)).argsort(1)
    slots = affine_of(scenes).take_along_dim(order[..., None], 1)
    masks = scenes.masks.take_along_dim(order[..., None], 1) if masked else None
    found = agreement(slots, masks, scenes)
    if masked:
        assert_close(torch.tensor([found["smcc"], found["r2"], found["matched"]]), torch.ones(3), 1e-6)
        assert found["sis"] > 0.9
        assert abs(found["null_smcc"]) < 0.2
    assert found["smcc"] > found["null_smcc"] + 0.3
    assert found["null_sis"] < 0.2


def test_swapping_masks_of_objects_is_noticed(scenes):
    """With the masks of the other object, slots tell nothing of the one they are matched with."""
    found = agreement(affine_of(scenes), scenes.masks[:, [1, 0, 2]], scenes)
    assert found["smcc"] < 0.3
    assert found["sis"] == 0.0


def test_features_that_follow_from_the_others_are_left_out_and_nothing_is_lost():
    slots = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0))
    assert independent_features(slots).shape == (50, 3, 4)
    centred = slots - slots.mean(2, keepdim=True)
    kept = independent_features(centred)
    assert_close(kept, centred[..., :3])
    assert_close(-kept.sum(2), centred[..., 3], 1e-5)


def test_rows_differ_in_what_they_say_and_nothing_else():
    configs = {name: SHARED.config(row, 1, "cpu") for name, row in ROWS.items()}
    assert len({config.training for config in configs.values()}) == 1
    assert len({config.encoder for config in configs.values()}) == 1
    first, *others = (replace_kind(config.decoder) for config in configs.values())
    assert all(other == first for other in others)
    assert configs["psa-noa"].slots == configs["psa-proj"].slots
    assert configs["psa-proj-drawn"].slots == configs["psa-proj"].slots
    assert [name for name in ROWS if configs[name].objective.sample] == ["psa-proj-drawn"]
    assert not any(config.objective.kl_weight for config in configs.values())


def replace_kind(decoder):
    return decoder.model_copy(update={"kind": "patch"})


def test_rows_of_a_seed_see_the_same_batches():
    trainers = [SHARED.trainer(ROWS[name], 1, "cpu") for name in ("ae", "psa")]
    assert torch.equal(trainers[0].images.images, trainers[1].images.images)
    for step in (0, 3):
        assert torch.equal(trainers[0]._source.batch(step).index, trainers[1]._source.batch(step).index)


def test_the_autoencoders_parts_are_the_latent_cut():
    shared, row = replace(SHARED, num_test=5), Row(None, additive=False)
    autoencoder = shared.trainer(row, 0, "cpu").autoencoder
    test = shared.scenes("test")
    posterior, latent, _ = autoencoder.eval().encode(test.images.batch(slice(None)))
    expected = autoencoder.guide.encoder(test.images.batch(slice(None)))
    assert_close(latent, expected, 1e-5)
    assert latent.shape == (5, 1, 12)
    assert posterior.responsibilities.shape[2] == 1


def test_looking_changes_nothing_that_is_drawn_afterwards():
    trainer, test = SHARED.trainer(ROWS["psa"], 0, "cpu"), SHARED.scenes("test")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, _ = SHARED.look(ROWS["psa"], trainer.autoencoder, test)
    assert torch.equal(torch.rand(3), expected)
    assert SHARED.look(ROWS["psa"], trainer.autoencoder, test)[0] == first


def scored(values: dict[str, float]) -> dict[str, dict[str, list[Agreement]]]:
    """Three pairs of seeds a row, 0.02 apart; the autoencoder has no masks to overlap."""
    pairs = ((0, 1), (0, 2), (1, 2))
    found = {}
    for row in ROWS:
        some = [Agreement(pair, values[row] + 0.01 * i, 0.0, 0.0, 0.0) for i, pair in enumerate(pairs)]
        found[row] = {"overlap": [] if row == "ae" else some, "alternate": some}
    return found


CLAIM = {"ae": 0.1, "sa": 0.4, "sa-noa": 0.2, "psa": 0.6, "psa-proj": 0.6, "psa-noa": 0.3, "psa-proj-drawn": 0.9}


def test_the_claim_holds_where_every_comparison_does():
    assert decide(scored(CLAIM), 3)[0] == "holds"


@pytest.mark.parametrize(("first", "second"), CLAIMED)
def test_it_fails_where_one_is_the_other_way_round_and_is_open_where_seeds_overlap(first, second):
    high = CLAIM[first]
    swapped = scored(CLAIM)
    swapped[second] = scored(CLAIM | {second: high + 0.1})[second]
    assert decide(swapped, 3)[0] == "fails"
    overlapping = scored(CLAIM)
    overlapping[second] = scored(CLAIM | {second: high})[second]
    assert decide(overlapping, 3)[0] == "not decided at this scale"


def test_two_seeds_decide_nothing():
    assert decide(scored(CLAIM), 2)[0] == "not decided at this scale"


def test_runs_that_failed_are_left_out_of_the_pairs():
    slots = torch.randn(60, 3, 2, generator=torch.Generator().manual_seed(0))
    whole = Outcome({}, {"slots": slots, "masks": torch.eye(3).expand(60, 3, 3)})
    found = agreements([whole, Outcome({"failed_at": 3}), whole])
    assert [pair.seeds for pair in found["overlap"]] == [(1, 3)]
    assert_close(found["overlap"][0].smcc, 1.0, 1e-6)
    assert agreements([whole, Outcome({"failed_at": 3})])["alternate"] == []
