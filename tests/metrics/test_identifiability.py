"""SMCC: exact pairs, invariances, the null, and what the published definition makes of the same pairs."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.kernel_ridge import KernelRidge
from tolerances import ALGEBRA, CONVERGED, FLOAT32, assert_all_close, assert_close
from torch import Tensor

from psa.metrics import Identifiability, smcc

FIXED = 1e-8  # of the score, where only the coordinates of a side change
SCORES = ("smcc", "r2", "smcc_reverse", "r2_reverse", "canonical", "null_smcc", "null_r2", "share_excluded")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def invertible(size: int, seed: int) -> Tensor:
    """Not orthogonal, of condition number 4 at most."""
    left, right = (torch.linalg.qr(draw(size, size, seed=s))[0] for s in (seed, seed + 1))
    return left @ torch.linspace(0.5, 2.0, size, dtype=torch.float64).diag() @ right


def shuffled(slots: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Each image's slots in a random order, and where each slot of old went."""
    order = torch.rand(slots.shape[:2], generator=seeded(seed)).argsort(1)
    return slots.take_along_dim(order[..., None], 1), order.argsort(1)


def own_pixels(slots: Tensor) -> Tensor:
    """(M, K, K) masks that say which slot is which: slot k owns pixel k."""
    return torch.eye(slots.shape[1]).expand(len(slots), -1, -1)


def masks_of(place: Tensor) -> Tensor:
    """Masks of shuffled slots, (M, K, K): the slot that came from k owns pixel k."""
    return torch.nn.functional.one_hot(place).mT.float()


def scores(record: Identifiability) -> list[float]:
    return [getattr(record, name) for name in SCORES]


@given(
    st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 30), st.booleans(), st.integers(0, 10**6)
)
def test_exact_pairs_score_one_whatever_their_shape(slots, features, mapped, more, by_overlap, seed):
    # as few images as there may be: rows of rank D + 1; the start of `alternate` needs means of that rank
    needed = max(features, mapped) + 1
    half = (math.ceil(needed / slots) if by_overlap else needed) + more + 1
    a = draw(2 * half, slots, features, seed=seed)
    b, place = shuffled(a @ draw(features, mapped, seed=seed + 1) + 5 * draw(mapped, seed=seed + 2), seed)
    masks = {"masks_a": own_pixels(a), "masks_b": masks_of(place)} if by_overlap else {}
    found = smcc(a, b, **masks, generator=seeded(seed))
    assert_close(found.smcc, 1.0, CONVERGED)
    assert_close(found.r2, 1.0, CONVERGED)
    assert_close(found.canonical, 1.0, CONVERGED)
    assert torch.equal(found.matching, place)
    assert_close(found.affine(a), b.take_along_dim(place[..., None], 1), CONVERGED)
    if mapped == features:
        assert_close(found.smcc_reverse, 1.0, CONVERGED)
        assert_close(found.r2_reverse, 1.0, CONVERGED)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_an_affine_map_of_the_mapped_side_changes_nothing_while_the_matching_stays(slots, features, mapped, seed):
    a = draw(40, slots, features, seed=seed)
    b = a @ draw(features, mapped, seed=seed + 1) + draw(40, slots, mapped, seed=seed + 2)
    masks = {"masks_a": own_pixels(a), "masks_b": own_pixels(b)}
    found = smcc(a, b, **masks, num_bootstrap=20, generator=seeded())
    moved = smcc(a @ invertible(features, seed) + 7, b, **masks, num_bootstrap=20, generator=seeded())
    for name in ("smcc", "r2", "canonical", "null_smcc", "null_r2"):
        assert_close(getattr(moved, name), getattr(found, name), FIXED)
    assert_all_close(moved.interval, found.interval, FIXED)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_canonical_correlation_does_not_change_under_affine_maps_of_both_sides(features, mapped, seed):
    a = draw(60, 3, features, seed=seed)
    b = a @ draw(features, mapped, seed=seed + 1) + draw(60, 3, mapped, seed=seed + 2)
    masks = {"masks_a": own_pixels(a), "masks_b": own_pixels(b)}
    found = smcc(a, b, **masks, generator=seeded())
    moved = smcc(a @ invertible(features, seed) + 7, b @ invertible(mapped, seed + 9) - 3, **masks, generator=seeded())
    assert_close(moved.canonical, found.canonical, FIXED)


def test_an_affine_map_of_the_other_side_changes_the_score_of_a_pair_that_is_not_exact():
    a = draw(400, 1, 2)
    b = a + torch.tensor([0.1, 3.0]) * draw(400, 1, 2, seed=1)
    masks = {"masks_a": own_pixels(a), "masks_b": own_pixels(b)}
    turned = b @ torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert smcc(a, b, **masks, generator=seeded()).smcc - smcc(a, turned, **masks, generator=seeded()).smcc > 0.1


@pytest.mark.parametrize("matching", ["overlap", "alternate"])
def test_independent_slots_score_as_the_null_does(matching):
    a, b = draw(2000, 4, 4), draw(2000, 4, 4, seed=1)  # 16,000 held-out numbers
    masks = (torch.rand(2000, 4, 9, generator=seeded(s)) for s in (2, 3)) if matching == "overlap" else (None, None)
    found = smcc(a, b, **dict(zip(("masks_a", "masks_b"), masks, strict=True)), generator=seeded())
    assert abs(found.smcc - found.null_smcc) < 0.05
    assert abs(found.r2 - found.null_r2) < 0.05
    # matching alone finds agreement: what the null is for
    assert found.null_smcc > 0.3 if matching == "alternate" else abs(found.null_smcc) < 0.05


def test_the_null_keeps_what_all_images_share_and_nothing_of_what_one_image_says():
    a = draw(2000, 3, 2)
    b, place = shuffled(a @ invertible(2, 0), 1)
    masks = {"masks_a": own_pixels(a), "masks_b": masks_of(place)}
    found = smcc(a, b, **masks, generator=seeded())
    assert_close(found.smcc, 1.0, CONVERGED)
    assert abs(found.null_smcc) < 0.05
    assert abs(found.null_r2) < 0.05
    # slots of a type of their own, which the masks tell: between types a variance of 54 beside 1 within them
    typed = a + 9 * torch.arange(3)[:, None]
    b, place = shuffled(typed @ invertible(2, 0), 1)
    found = smcc(typed, b, masks_a=own_pixels(a), masks_b=masks_of(place), generator=seeded())
    assert abs(found.null_smcc - 54 / 55) < 0.01


@pytest.mark.parametrize("mapped", [2, 4])
def test_the_reverse_is_the_score_with_the_sides_exchanged(mapped):
    a = draw(60, 2, 3)
    b = a @ draw(3, mapped, seed=1) + 0.5 * draw(60, 2, mapped, seed=2)
    found = smcc(a, b, masks_a=own_pixels(a), masks_b=own_pixels(b), generator=seeded())
    other = smcc(b, a, masks_a=own_pixels(b), masks_b=own_pixels(a), generator=seeded())
    assert_close(found.smcc_reverse, other.smcc)
    assert_close(found.r2_reverse, other.r2)
    assert_close(found.canonical, other.canonical)
    assert found.smcc_reverse != found.smcc


@given(st.integers(0, 10**6), st.booleans())
def test_more_of_the_same_noise_scores_lower(seed, by_overlap):
    a = draw(600, 3, 3, seed=seed)
    b, noise = a @ invertible(3, seed) + 2, draw(600, 3, 3, seed=seed + 5)
    masks = {"masks_a": own_pixels(a), "masks_b": own_pixels(b)} if by_overlap else {}
    scales = (0.0, 0.1, 0.3, 1.0) if not by_overlap else (0.0, 0.1, 0.3, 1.0, 3.0)
    found = [smcc(a, b + scale * noise, **masks, generator=seeded(seed)) for scale in scales]
    for name in ("smcc", "r2", "canonical"):
        values = [getattr(record, name) for record in found]
        assert all(more > less for more, less in itertools.pairwise(values)), (name, values)


def test_the_score_of_noisy_pairs_is_the_population_value():
    """b_d = (a H)_d + s_d e_d: r_d^2 = R2_d = |H_d|^2 / (|H_d|^2 + s_d^2)."""
    matrix, scale = invertible(3, 4), torch.tensor([0.2, 0.8, 2.0], dtype=torch.float64)
    a = draw(40_000, 2, 3)
    b = a @ matrix + scale * draw(40_000, 2, 3, seed=1)
    found = smcc(a, b, masks_a=own_pixels(a), masks_b=own_pixels(b), generator=seeded())
    r2 = matrix.square().sum(0) / (matrix.square().sum(0) + scale.square())
    assert_close(found.r2, r2.mean(), 0.01)
    assert_close(found.smcc, r2.sqrt().mean(), 0.01)


def test_a_reversed_feature_that_the_map_cannot_follow_counts_negative():
    """The correlation is signed: a map fitted where the slope is the other way is worse than none."""
    a = draw(60, 1, 1).abs() + 0.5
    train = torch.randperm(60, generator=seeded()) < 30
    b = torch.where(train[:, None, None], a, -a)
    found = smcc(a, b, masks_a=own_pixels(a), masks_b=own_pixels(b), generator=seeded())
    assert_close(found.smcc, -1.0)
    assert found.r2 < -1


# What the published code does (design, papers.md)


def published_smcc(a: Tensor, b: Tensor, num_train: int) -> float:
    """Slots matched by distance between unaligned latents; an RBF kernel ridge a -> b, correlated with a itself."""
    order = [linear_sum_assignment(cost)[1] for cost in torch.cdist(a, b).numpy()]
    matched = b.take_along_dim(torch.from_numpy(np.stack(order))[..., None], 1)
    fit_a, fit_b = a[:num_train].flatten(0, 1).numpy(), matched[:num_train].flatten(0, 1).numpy()
    held = a[num_train:].flatten(0, 1).numpy()
    predicted = KernelRidge(kernel="rbf").fit(fit_a, fit_b).predict(held)
    return float(np.mean([np.corrcoef(predicted[:, d], held[:, d])[0, 1] for d in range(a.shape[2])]))


def rotation(angle: float) -> Tensor:
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)


def five_types(seed: int = 0) -> Tensor:
    """The 2-D study's slots: 3 of 5 Gaussian types in each of 200 images."""
    types = torch.rand(200, 5, generator=seeded(seed)).argsort(1)[:, :3]
    return 4 * draw(5, 2, seed=seed + 1)[types] + 0.3 * draw(200, 3, 2, seed=seed + 2)


def test_a_rotated_run_is_the_same_run_where_the_published_score_says_57():
    a = five_types()
    b, place = shuffled(a @ rotation(math.pi / 3) + 1, 3)
    assert abs(published_smcc(a, b, 100) - 0.57) < 0.02
    found = smcc(a, b, generator=seeded())
    assert_close(found.smcc, 1.0, CONVERGED)
    assert_close(found.r2, 1.0, CONVERGED)
    assert torch.equal(found.matching, place)


def test_unrelated_runs_are_unrelated_where_the_published_score_finds_them_alike():
    a, b = draw(400, 5, 1), draw(400, 5, 1, seed=1)
    found = smcc(a, b, generator=seeded())
    assert published_smcc(a, b, 200) > 0.9
    assert abs(found.smcc - found.null_smcc) < 0.05


def test_a_folded_run_scores_nothing_where_the_published_regressor_follows_it():
    """b = a^2 is told by a, but by no affine map of it."""
    a = draw(500, 2, 1)
    b = a.square()
    found = smcc(a, b, masks_a=own_pixels(a), masks_b=own_pixels(b), generator=seeded())
    x, y = a.flatten(0, 1).numpy(), b.flatten(0, 1).numpy()
    assert KernelRidge(kernel="rbf").fit(x[:500], y[:500]).score(x[500:], y[500:]) > 0.95
    assert abs(found.smcc) < 0.2
    assert found.r2 < 0.1


# Inactive slots


def with_inactive(seed: int) -> tuple[dict[str, Tensor], Tensor, float]:
    """A noisy pair of which b has a slot more than a in every third image, inactive slots still to be filled."""
    a = draw(90, 5, 2, seed=seed)
    weights_a = (torch.rand(90, 5, generator=seeded(seed)) < 0.7).float() * 0.3
    weights_a[:, 0] = 0.5
    b = a @ invertible(2, seed) + 0.05 * draw(90, 5, 2, seed=seed + 3)
    weights_b = weights_a.clone()
    for image in range(0, 90, 3):
        spare = (weights_a[image] == 0).nonzero().flatten()[:1]
        weights_b[image, spare] = 0.02
    b, place = shuffled(b, seed)
    weights_b = weights_b.gather(1, place.argsort(1))
    given = {"weights_a": weights_a, "weights_b": weights_b, "masks_a": own_pixels(a), "masks_b": masks_of(place)}
    return given | {"slots_a": a, "slots_b": b}, place, float((weights_a == 0).double().mean())


@pytest.mark.parametrize("matching", ["overlap", "alternate"])
@pytest.mark.parametrize("junk", [1e3, math.nan, math.inf])
def test_inactive_slots_may_hold_anything(matching, junk):
    given, place, share = with_inactive(0)
    found = smcc(**given, matching=matching, num_bootstrap=10, generator=seeded())
    filled = dict(given)
    for side in ("a", "b"):
        inactive = given[f"weights_{side}"] == 0
        noise = torch.full_like(given[f"slots_{side}"], junk) if junk != 1e3 else junk * draw(90, 5, 2, seed=8)
        filled[f"slots_{side}"] = torch.where(inactive[..., None], noise, given[f"slots_{side}"])
        filled[f"masks_{side}"] = torch.where(
            inactive[..., None], torch.rand(90, 5, 5, generator=seeded(9)), given[f"masks_{side}"]
        )
    again = smcc(**filled, matching=matching, num_bootstrap=10, generator=seeded())
    assert scores(again) == scores(found)
    assert again.interval == found.interval
    assert_close(found.share_excluded, share)
    assert found.smcc > 0.95
    if matching == "overlap":  # every active slot of a has its own in b, although b has more of them
        active = given["weights_a"] > 0
        assert torch.equal(found.matching[active], place[active])


def test_booleans_and_weights_say_the_same_of_which_slots_are_active():
    given, _, _ = with_inactive(1)
    found = smcc(**given, generator=seeded())
    flags = {name: given[name] >= 0.01 for name in ("weights_a", "weights_b")}
    assert scores(smcc(**given | flags, generator=seeded())) == scores(found)


def test_without_weights_nothing_is_excluded():
    assert smcc(draw(30, 3, 2), draw(30, 3, 2, seed=1), generator=seeded()).share_excluded == 0.0


# The interval, repeatability, types


def test_the_interval_covers_a_known_value_in_about_its_share():
    """Rows of an image share most of signal and noise, so that an interval over rows would cover far less often."""
    true, covered, simulations = 1 / math.sqrt(1 + 0.5), 0, 200
    for seed in range(simulations):
        image, noise = draw(120, 1, 1, seed=seed), draw(120, 1, 1, seed=seed + 1000)
        a = (0.9**0.5 * image + 0.1**0.5 * draw(120, 6, 1, seed=seed + 2000)).contiguous()
        b = a + 0.5**0.5 * (0.9**0.5 * noise + 0.1**0.5 * draw(120, 6, 1, seed=seed + 3000))
        masks = {"masks_a": own_pixels(a), "masks_b": own_pixels(b)}
        low, high = smcc(a, b, **masks, num_bootstrap=200, generator=seeded(seed)).interval
        assert low <= high
        covered += low <= true <= high
    # 0.95 less what percentiles of 60 images lose; its standard error is 0.016
    assert 0.87 <= covered / simulations <= 0.99, covered / simulations


def test_equal_seeds_give_equal_results_and_others_others():
    a, b = draw(50, 3, 2), draw(50, 3, 2, seed=1)
    one, same, other = (smcc(a, b, num_bootstrap=30, generator=seeded(seed)) for seed in (0, 0, 1))
    assert scores(one) == scores(same)
    assert one.interval == same.interval
    assert torch.equal(one.matching, same.matching)
    assert scores(one) != scores(other)
    assert one.interval != other.interval


def test_without_a_generator_the_global_one_is_used():
    a, b = draw(50, 3, 2), draw(50, 3, 2, seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        one = smcc(a, b)
        torch.manual_seed(3)
        assert scores(smcc(a, b)) == scores(one)
    assert one.interval is None


def test_float32_slots_score_as_their_float64_copies(device):
    a = draw(80, 3, 4).float()
    b = (a.double() @ invertible(4, 0) + 0.1 * draw(80, 3, 4, seed=1)).float()
    found = smcc(a.to(device), b.to(device), generator=seeded())
    for one, other in zip(scores(found), scores(smcc(a.double(), b.double(), generator=seeded())), strict=True):
        assert_close(one, other, FLOAT32 if device.type != "cpu" else ALGEBRA)
    assert found.affine.matrix.dtype == torch.float64
    assert found.matching.dtype == torch.int64
    assert found.matching.device.type == device.type


def test_the_record_says_the_score_of_its_own_map_and_matching():
    """With half of the images in both halves twice, what is held out is what was trained on: plain regression."""
    a = draw(40, 3, 2)
    b = a @ invertible(2, 1) + 0.5 * draw(40, 3, 2, seed=1)
    found = smcc(a, b, generator=seeded())
    held = ~(torch.randperm(40, generator=seeded()) < 20)
    matrix, offset = found.affine
    mapped = (a[held] @ matrix + offset).flatten(0, 1)
    true = b.take_along_dim(found.matching[..., None], 1)[held].flatten(0, 1)
    r = [np.corrcoef(mapped[:, d], true[:, d])[0, 1] for d in range(2)]
    assert_close(found.smcc, float(np.mean(r)))
    assert dataclasses.is_dataclass(found)


# Errors


def test_too_few_training_rows_are_an_error_and_not_a_number():
    a, b = draw(6, 2, 8), draw(6, 2, 8, seed=1)  # 6 training rows for 9 parameters an output
    masks = {"masks_a": own_pixels(a), "masks_b": own_pixels(b)}
    with pytest.raises(ValueError, match=r"slots_a: expected at least D \+ 1 = 9 training rows .*, came 6"):
        smcc(a, b, **masks, generator=seeded())
    with pytest.raises(ValueError, match=r"slots_b: expected at least D \+ 1 = 9 training rows .*, came 6"):
        smcc(a[..., :2].contiguous(), b, **masks, generator=seeded())
    with pytest.raises(ValueError, match=r"slots_a, means per image.*D \+ 1 = 6 training rows .*, came 3"):
        smcc(a[..., :5].contiguous(), b, generator=seeded())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_training_rows_without_rank_are_an_error(dtype, offset):
    a = draw(50, 2, 3)
    masks = {"masks_a": own_pixels(a), "masks_b": own_pixels(a)}
    copied = torch.cat([a, a[..., :1]], dim=2).to(dtype) + offset
    with pytest.raises(ValueError, match=r"slots_a: expected training rows of rank D \+ 1 = 5, came rank 4 in 50 rows"):
        smcc(copied, a, **masks, generator=seeded())
    constant = torch.cat([a, torch.full_like(a[..., :1], 0.1)], dim=2).to(dtype)
    with pytest.raises(ValueError, match=r"slots_a: .*rank D \+ 1 = 5, came rank 4"):
        smcc(constant, a, **masks, generator=seeded())
    with pytest.raises(ValueError, match=r"slots_b: expected features that vary over held-out rows, feature 3 does"):
        smcc(a, constant, **masks, generator=seeded())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots_a": torch.zeros(30, 3)}, r"slots_a: expected floating point \(M, K, D\)"),
        ({"slots_a": torch.zeros(30, 3, 2, dtype=torch.int64)}, "slots_a: expected floating point"),
        ({"slots_b": draw(30, 4, 2)}, r"slots_b: expected \(M, K\) = \(30, 3\) as slots_a has, came \(30, 4\)"),
        ({"slots_b": torch.full((30, 3, 2), math.nan)}, "slots_b: expected finite numbers in active slots"),
        ({"masks_a": torch.ones(30, 3, 4)}, "masks_a and masks_b: expected both or none"),
        (
            {"masks_a": torch.ones(30, 3, 4), "masks_b": torch.ones(30, 3, 5)},
            "masks_b: expected 4 pixels as masks_a has, came 5",
        ),
        ({"masks_a": torch.ones(30, 3)}, r"masks_a: expected \(M, K, ...\)"),
        ({"masks_b": -torch.ones(30, 3, 4)}, "masks_b: expected finite numbers >= 0"),
        ({"weights_a": torch.ones(30, 4)}, r"weights_a: expected \(M, K\) as slots_a has"),
        ({"weights_b": torch.full((30, 3), math.nan)}, "weights_b: expected finite numbers >= 0"),
        ({"matching": "nearest"}, "matching: expected one of overlap, alternate, came 'nearest'"),
        ({"matching": "overlap"}, "matching: expected masks_a and masks_b for 'overlap'"),
        ({"train_fraction": 1.0}, "train_fraction: expected a number between 0 and 1, came 1.0"),
        ({"num_bootstrap": -1}, "num_bootstrap: expected at least 0, came -1"),
        ({"slots_a": draw(1, 3, 2), "slots_b": draw(1, 3, 2)}, "slots_a: expected at least 2, .* came 1"),
        ({"weights_a": torch.zeros(30, 3)}, r"slots_a.*: expected at least D \+ 1 = 3 training rows .*, came 0"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        smcc(**{"slots_a": draw(30, 3, 2), "slots_b": draw(30, 3, 2, seed=1), "generator": seeded()} | change)
