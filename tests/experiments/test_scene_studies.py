"""The studies of samples and counts run on a tiny run, and their figures are what they say."""

import math
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from psa.experiments.object_counts import score_counts
from psa.experiments.prior_in_the_loop import AFTER, GAUSSIAN, IN_THE_LOOP, compare_priors, train
from psa.experiments.scene_samples import open_study
from psa.inference.counting import count_objects
from psa.inference.images import ImageSet
from psa.inference.roles import find_roles
from psa.metrics import num_objects


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run")
    tiny.tiny_trainer(tiny.WITH_KL, path=path).fit()
    return path


def test_every_scheme_is_measured_beside_the_images(run: Path, tmp_path: Path):
    study, training = open_study(run, num_held_out=12)
    rows = study.qualities(training)
    assert [row.pictures for row in rows[:2]] == ["held-out images", "their reconstructions"]
    assert [row.temperature for row in rows[2:]] == [1.0, 0.0] * 5
    assert rows[0].variation == 0.0
    assert rows[0].frechet == pytest.approx(0.0, abs=1e-9)
    for row in rows:
        assert 0.0 <= row.accuracy <= row.one_background <= 1.0
        assert 0.0 <= row.variation_true <= 1.0
    study.save_pictures(training, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert picture.size == (8 * 144 + 16, 2 * (2 * 128 + 4 + 16) + 16)


def test_count_scores_are_those_of_the_counts(run: Path):
    model, images = open_study(run, num_held_out=12)[0].run, tiny.tiny_images(40)
    few = num_objects(images.masks, images.background) <= 3  # as many as the run's slots
    images = ImageSet(images.images[few], images.masks[few], images.background)
    scores, bins = score_counts(model, images, num_draws=4)
    true = num_objects(images.masks, images.background)
    found = count_objects(model, images, 4, torch.Generator().manual_seed(0))
    errors = [
        abs(next(n for n in range(found.shape[1]) if found[i, : n + 1].sum() >= 0.5) - int(true[i]))
        for i in range(len(true))
    ]
    assert scores.median_error == pytest.approx(sum(errors) / len(true))
    at_means = find_roles(model.decode(model.encode(images.images)[1])).num_objects
    assert scores.means_error == pytest.approx(float((at_means - true).abs().double().mean()))
    assert scores.log_score == pytest.approx(
        sum(math.log(found[i, true[i]]) for i in range(len(true))) / len(true), rel=1e-4
    )
    assert scores.constant_error <= float(true.double().std()) * 2
    assert sum(one.pairs for one in bins) == found.numel()
    assert sum(one.observed for one in bins) == len(true)


def test_priors_are_compared_on_the_same_images(tmp_path: Path):
    settings = (*tiny.SETTINGS, *tiny.SPRITES, "objective.prior_refresh=5", "objective.prior_components=4")
    paths = train(tmp_path, seed=0, steps=10, settings=settings)
    rows = compare_priors(paths, 0, num_images=4)
    assert [row.prior for row in rows] == [GAUSSIAN, AFTER, IN_THE_LOOP]
    assert rows[0].difference == rows[0].difference_error == 0.0
    assert all(row.difference == pytest.approx(row.log_evidence - rows[0].log_evidence, abs=1e-6) for row in rows)
    assert rows[1].difference != 0.0
    assert rows[1].foreground_ari == rows[0].foreground_ari  # the same run
