"""Diagnoses of decoders of which the truth is known, and of tiny runs."""

from collections.abc import Callable

import pytest
import torch
from tiny import QUERIES, WITH_KL, WITHOUT_KL, tiny_autoencoder, tiny_images, tiny_trainer
from tolerances import FLOAT32, assert_close, assert_mean_is
from torch import Tensor, nn

from psa.errors import RunError
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.diagnose import IMAGES, JOINT, PRIOR, Subject, diagnose, diagnose_run, subject_of
from psa.inference.scene_priors import slot_aggregate
from psa.metrics.component_separation import component_separation

FEATURES, PIXELS = 3, 24
NAMES = (
    "piecewise affine",
    "full rank",
    "weakly injective",
    "additive",
    "aggregate not degenerate",
    "components separate",
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def subject(decode: Callable[[Tensor], Tensor], weights=(0.5, 0.5), var=(1.0, 1.0), apart=6.0) -> Subject:
    """Two slots from a mixture of two components, ``apart`` apart."""
    generator = torch.Generator().manual_seed(0)
    loc = torch.zeros(2, FEATURES, dtype=torch.float64)
    loc[1, 0] = apart
    variances = torch.tensor(var, dtype=torch.float64)[:, None].expand(2, FEATURES)
    return Subject(
        decode,
        None,
        list(draw(2, 2, FEATURES, seed=1)),
        lambda number: torch.randn(number, 2, FEATURES, generator=generator, dtype=torch.float64),
        component_separation(torch.tensor(weights, dtype=torch.float64), loc, variances),
        variances.amin(1),
    )


def verdicts(subject: Subject) -> dict[str, str]:
    found = diagnose(subject, torch.Generator().manual_seed(0)).findings
    return {one.assumption: one.verdict for one in found}


# Each slot has pixels of its own, so that scenes tell their slots too.
BASIS = torch.linalg.qr(draw(2 * PIXELS, 2 * FEATURES))[0].view(2 * PIXELS, 2, FEATURES)
LOST = BASIS.clone()
LOST[:, :, 0] = 0.0
FIRST, SECOND = draw(FEATURES, 32, seed=2), draw(32, 2, PIXELS, seed=3)


def of_each(slots: Tensor, basis: Tensor = BASIS) -> Tensor:
    return torch.einsum("nkd,kd->n", basis, slots)


def network(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A sum over slots of one hidden layer each, onto other pixels for every slot."""
    return lambda slots: torch.einsum("kh,hkn->kn", activation(slots @ FIRST), SECOND).flatten()


DECODERS = {
    "affine": (lambda s: 1.0 + of_each(s), {}),
    "leaky relu": (network(lambda x: nn.functional.leaky_relu(x, 0.3)), {}),
    "tanh": (network(lambda x: torch.tanh(x) + x), {"piecewise affine": "fails"}),
    "a feature lost": (lambda s: of_each(s, LOST), {"full rank": "fails", "weakly injective": "fails"}),
    "absolute value": (lambda s: of_each(s.abs()), {"weakly injective": "fails"}),
    "product of slots": (
        lambda s: torch.cat([of_each(s), s.prod(0)]),
        {"piecewise affine": "fails", "additive": "fails"},
    ),
    "slots meet in a relu": (lambda s: torch.cat([of_each(s), s.sum(0).relu()]), {"additive": "fails"}),
}


@pytest.mark.parametrize("name", DECODERS)
def test_the_assumptions_that_a_decoder_breaks_fail_and_no_others(name):
    decode, broken = DECODERS[name]
    assert verdicts(subject(decode)) == dict.fromkeys(NAMES, "holds") | broken


@pytest.mark.parametrize(
    ("mixture", "broken"),
    [
        ({"var": (1.0, 1e-9)}, {"aggregate not degenerate": "fails"}),
        ({"apart": 0.0}, {"components separate": "fails"}),
        ({"weights": (0.999, 0.001)}, {"components separate": "fails"}),
        ({"apart": 1.5}, {"components separate": "not decided"}),
    ],
)
def test_the_assumptions_that_an_aggregate_breaks_fail_and_no_others(mixture, broken):
    assert verdicts(subject(DECODERS["affine"][0], **mixture)) == dict.fromkeys(NAMES, "holds") | broken


def test_a_scene_of_two_slots_that_are_added_up_is_not_told_apart():
    """x = s_1 + s_2: each slot is found from the other one, but not both."""
    found = diagnose(subject(lambda s: s.sum(0)), torch.Generator().manual_seed(0))
    share = found.findings[2].figures["share"]
    assert (share[IMAGES], share[PRIOR], share[JOINT]) == (0.0, 0.0, 1.0)


def test_progress_counts_every_probe_to_the_end():
    seen: list[tuple[int, int]] = []
    diagnose(subject(DECODERS["affine"][0]), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, seen[-1][1]) for done in range(1, seen[-1][1] + 1)]


@pytest.fixture(scope="module")
def run() -> SlotAutoencoder:
    """A tiny trained run without a prior."""
    trainer = tiny_trainer(WITH_KL)
    trainer.fit()
    return trainer.autoencoder.eval()


def test_slots_are_in_deviations_of_the_aggregate_and_decode_to_the_same_picture(run):
    images = tiny_images(4, "test")
    aggregate = slot_aggregate(run, tiny_images(12), 8, 12)
    found = subject_of(run, images, aggregate, torch.Generator().manual_seed(0))
    draws = found.draws(4000)
    assert_mean_is(draws.flatten(0, 1), torch.zeros(8))
    assert_mean_is(draws.flatten(0, 1).square(), torch.ones(8))
    slots = run.encode(images.batch(slice(None)))[1]
    pictures = run.decode(slots).mean
    for units, picture in zip(found.scenes, pictures, strict=True):
        assert_close(found.decode(units), picture.flatten(), FLOAT32)
    assert found.paint is not None
    assert found.paint(found.scenes[0]).shape == (3 * 4 * 16 * 16,)


def test_a_run_without_a_prior_is_diagnosed_and_left_as_it_was(run):
    before = {name: tensor.clone() for name, tensor in run.state_dict().items()}
    found = diagnose_run(run, tiny_images(3, "test"))
    assert [one.assumption for one in found.findings] == list(NAMES)
    assert found.findings[0].verdict == "fails"
    assert found.findings[0].figures["painting"]["verdict"] == "holds"
    assert found.findings[1].figures["features"] == 8
    assert (run.scene_prior, run.model.aggregate) == (None, None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.state_dict().items())
    assert next(run.model.decoder.parameters()).requires_grad
    assert_close(found.movers.sum(), 1.0)


def test_slots_that_are_points_have_collapsed():
    found = diagnose_run(tiny_autoencoder(WITHOUT_KL).eval(), tiny_images(1, "test"))
    finding = found.findings[4]
    assert (finding.verdict, finding.figures["collapsed_slots"]) == ("fails", 1.0)


def test_slots_that_a_rule_drops_are_left_out():
    rule = ("decoder.relevance=weights", "decoder.relevance_threshold=1.0")
    autoencoder = tiny_autoencoder(WITH_KL, *rule).eval()
    images = tiny_images(2, "test")
    kept = autoencoder.guide.active(autoencoder.guide.posterior(images.batch(slice(None)))).sum(1)
    assert int(kept.min()) < 3
    found = diagnose_run(autoencoder, images)
    assert [len(one.rank) for one in found.ranks[IMAGES]] == kept.tolist()
    assert [len(one.rank) for one in found.ranks[PRIOR]] == [3, 3]
    assert_close(found.movers.sum(), 1.0)


def test_a_joint_decoder_is_piecewise_affine_and_not_additive():
    found = diagnose_run(tiny_autoencoder({"slots": QUERIES}, "decoder.kind=joint").eval(), tiny_images(1, "test"))
    assert found.painting is None
    assert (found.findings[0].verdict, found.findings[3].verdict) == ("holds", "fails")


class Fused(torch.autograd.Function):
    """An operation with a backward derivative alone."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_a_decoder_without_forward_derivatives_is_one_line(monkeypatch):
    autoencoder = tiny_autoencoder(WITH_KL).eval()
    paint = autoencoder.model.decoder.paint
    monkeypatch.setattr(type(autoencoder.model.decoder), "paint", lambda self, slots: Fused.apply(paint(slots)))
    with pytest.raises(RunError, match="decoder: expected forward derivatives") as caught:
        diagnose_run(autoencoder, tiny_images(1, "test"))
    assert len(str(caught.value).splitlines()) == 1
