import math
from dataclasses import replace

import pytest
import tiny
import torch
from layouts import write_voc
from tolerances import FLOAT32, assert_close
from torch import Tensor

from psa.inference import evaluation as module
from psa.inference.attention_masks import attention_masks
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.evaluation import evaluate, evaluate_baselines
from psa.inference.images import ImageSet
from psa.inference.objectives import held_out_objective
from psa.inference.reporting import metric_rows
from psa.inference.sessions import prepared_as, run_images, with_classes
from psa.metrics import (
    BASELINES,
    mean_segmentation_covering,
    mean_squared_error,
    score_images,
    score_masks,
    slots_in_use,
    summarise,
    summarise_masks,
)
from psa.records import DecodedScene


class Oracle(SlotAutoencoder):
    """Decodes the images it encoded last, by their true masks."""

    truth: ImageSet

    def encode(self, images: Tensor) -> tuple:
        self.encoded = images
        return super().encode(images)

    def decode(self, slots: Tensor, active: Tensor | None = None) -> DecodedScene:
        known = self.truth.batch(slice(None))
        index = [int((known == image).flatten(1).all(1).nonzero()[0, 0]) for image in self.encoded]
        log_masks = torch.nn.functional.one_hot(self.truth.masks[index], 5).movedim(-1, 1).float().log().clamp(min=-50)
        return DecodedScene(self.encoded[:, None].expand(-1, 5, -1, -1, -1), log_masks)


def oracle(truth: ImageSet) -> Oracle:
    plain = tiny.tiny_autoencoder(tiny.WITH_KL, "slots.num_slots=5")
    model = Oracle(plain.model, plain.guide, plain.config, plain.size)
    model.truth = truth
    return model.eval()


@pytest.fixture(scope="module")
def trained() -> SlotAutoencoder:
    trainer = tiny.tiny_trainer(tiny.WITH_KL)
    trainer.fit()
    return trainer.autoencoder


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return tiny.tiny_images(20, "test")


def test_a_model_that_decodes_the_truth_scores_the_best(images):
    result = evaluate(oracle(images), images)
    assert result.segmentation is not None
    for figure in ("foreground_ari", "foreground_ari_all", "ari", "msc"):
        assert_close(getattr(result.segmentation, figure), 1.0)
    decoder = result.masks["decoder"]
    for figure in ("mbo_instance", "ap", "pq", "precision", "recall"):
        assert_close(getattr(decoder, figure), 1.0)
    assert result.masks["attention"].mbo_instance < 0.9
    assert_close(result.mse, 0.0)
    assert result.health.problems == ()
    assert_close(result.health.unexplained, 0.0)


def test_slots_in_use_of_the_truth_are_its_segments(images):
    """Every object here covers at least 1 % of the image, so that the counts agree."""
    result = evaluate(oracle(images), images)
    assert images.masks is not None
    segments = sum(len(mask.unique()) for mask in images.masks) / len(images)
    assert_close(result.slots_in_use, segments)
    assert result.slot_count_error == 0


def test_the_figures_are_those_of_the_metrics(trained, images):
    result = evaluate(trained, images)
    scene = trained.decode(trained.encode(images.images)[1])
    x = images.batch(slice(None))
    assert images.masks is not None
    assert result.segmentation == summarise(score_images(scene.labels, images.masks, images.background))
    assert_close(result.mse, float(mean_squared_error(scene.mean, x).mean()), FLOAT32)
    assert_close(result.objective, held_out_objective(trained, x), FLOAT32)
    assert_close(result.slots_in_use, slots_in_use(scene.labels, 3).double().mean())
    assert result.num_images == 20


def test_both_kinds_of_masks_are_scored_and_the_background_is_named(trained, images):
    result = evaluate(trained, images)
    posterior, _, decoded = trained.encode(images.images)
    attention = attention_masks(trained.guide.encoder, posterior, trained.size)
    for kind, masks in (("decoder", decoded), ("attention", attention)):
        assert result.masks[kind] == summarise_masks([score_masks(masks, images.masks, images.background)])
    flat = result.to_json()
    assert list(flat["masks"]) == ["decoder", "attention"]
    assert (flat["background"], flat["true_labels"]) == ((0,), "instance")
    assert flat["masks"]["decoder"]["foreground_ari"] == flat["foreground_ari"]
    assert flat["masks"]["decoder"]["mbo_instance"] == flat["msc"]
    assert flat["masks"]["decoder"]["mbo_class"] is None
    shown = {row.name: row for row in metric_rows(result, {})}
    assert shown["attention masks: AP"].value == result.masks["attention"].ap
    assert shown["attention masks: AP"].meaning == "background labels: 0; true labels: instance"
    assert "decoder masks: mBO, classes" not in shown


def test_classes_are_read_beside_objects_where_the_data_set_has_both(trained, tmp_path):
    data = prepared_as(trained, str(write_voc(tmp_path)))
    instances = with_classes(run_images(trained, data, "test"), data, "test").in_memory()
    data = data.model_copy(update={"masks": "class"})
    classes = with_classes(run_images(trained, data, "test"), data, "test").in_memory()
    assert torch.equal(instances.classes, classes.masks.to(torch.int16))
    labels = trained.encode(instances.images)[2].argmax(1)
    best = [mean_segmentation_covering(labels, truth.masks, truth.background).mean() for truth in (instances, classes)]
    by_object, by_class = evaluate(trained, instances), evaluate(trained, classes)
    assert (by_object.true_labels, by_class.true_labels) == ("instance", "class")
    assert_close(by_object.masks["decoder"].mbo_instance, best[0])
    assert_close(by_object.masks["decoder"].mbo_class, best[1])
    assert_close(by_class.masks["decoder"].mbo_class, best[1])
    assert by_class.masks["decoder"].mbo_instance is None


def test_other_data_sets_have_no_classes(trained, images):
    data = prepared_as(trained, None)
    assert with_classes(images, data, "test") is images


@pytest.mark.parametrize("chunk", [1, 3, 19])
def test_chunks_do_not_matter(trained, images, monkeypatch, chunk):
    whole = evaluate(trained, images)
    seen = []
    monkeypatch.setattr(module, "CHUNK", chunk)
    parts = evaluate(trained, images, seen.append)
    assert seen[-1] == 20
    assert len(seen) == math.ceil(20 / chunk)
    assert_close(parts.mse, whole.mse, FLOAT32)
    assert_close(parts.objective, whole.objective, FLOAT32)
    assert_close(parts.segmentation.foreground_ari, whole.segmentation.foreground_ari, FLOAT32)
    for kind, summary in whole.masks.items():
        assert_close(parts.masks[kind].ap, summary.ap, FLOAT32)
        assert_close(parts.masks[kind].pq, summary.pq, FLOAT32)
    assert_close(parts.health.layout_agreement, whole.health.layout_agreement, FLOAT32)
    assert parts.slots_in_use == whole.slots_in_use


def test_without_masks_there_is_no_score_but_all_the_rest(trained, images):
    with_masks = evaluate(trained, images)
    result = evaluate(trained, ImageSet(images.images, None, ()))
    assert (result.segmentation, result.slot_count_error) == (None, None)
    assert (result.mse, result.objective, result.health) == (with_masks.mse, with_masks.objective, with_masks.health)
    assert {"foreground_ari", "slot_count_error", "masks", "background", "true_labels"}.isdisjoint(result.to_json())
    assert evaluate_baselines(ImageSet(images.images, None, ()), 3) == {}


def test_the_main_figure_comes_first_in_json_and_none_is_left_out(trained, images):
    result = evaluate(trained, images)
    flat = result.to_json()
    assert next(iter(flat)) == "foreground_ari"
    assert {
        "mse",
        "objective",
        "slots_in_use",
        "slot_count_error",
        "num_images",
        "description",
        "health",
    } <= flat.keys()
    assert flat["health"]["problems"] == list(result.health.problems)


def test_every_baseline_is_scored_on_the_same_images(images):
    scores = evaluate_baselines(images, 5)
    assert scores.keys() == BASELINES.keys()
    assert images.masks is not None
    for name, segment in BASELINES.items():
        assert scores[name] == summarise(score_images(segment(images.images, 5), images.masks, images.background))


def test_evaluation_leaves_the_mode_and_the_weights_alone(trained, images):
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    for training in (True, False):
        trained.train(training)
        evaluate(trained, images)
        assert trained.training is training
    trained.eval()
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_masks_without_background_count_their_segments_alone(trained, images):
    """A label set with no background: every segment is an object, and the background adds none."""
    assert images.masks is not None
    everything = replace(images, background=())
    a, b = evaluate(oracle(images), everything), evaluate(oracle(images), images)
    assert a.slot_count_error == b.slot_count_error == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (tiny.WITH_KL, "trained on the ELBO with slots drawn from q"),
        (tiny.WITHOUT_KL, "without the KL term (slots a point, not drawn)"),
        ({**tiny.WITH_KL, "objective": {"sample": True, "kl_weight": 0.5}}, "KL weighted by 0.5: not a bound"),
        ({**tiny.WITH_KL, "objective": {"sample": True, "kl_weight": 0.0}}, "without the KL term (slots drawn from q)"),
    ],
)
def test_a_run_says_what_its_objective_was(images, values, words):
    assert words in evaluate(tiny.tiny_autoencoder(values), images).description
