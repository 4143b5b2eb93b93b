"""Does a run meet the assumptions of the identifiability theorem? What ``psa diagnose`` measures (docs/diagnose.md)."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from psa.errors import RunError
from psa.inference import assumptions
from psa.inference.assumptions import Finding, Pieces
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.images import ImageSet
from psa.inference.scene_priors import LEAST_SCALE, NUM_COMPONENTS, slot_aggregate
from psa.inference.sessions import run_images
from psa.metrics.affine_pieces import operations, straightness
from psa.metrics.component_separation import ComponentSeparation, component_separation
from psa.metrics.compositional_contrast import Decoder, compositional_contrast
from psa.metrics.same_pictures import SamePictures, same_pictures
from psa.metrics.slot_jacobian import (
    Interaction,
    SharedPixels,
    SlotRanks,
    interaction,
    pushforward,
    shared_pixels,
    slot_ranks,
)
from psa.models.aggregate import AggregatePrior
from psa.models.decoders import JointDecoder, MaskedDecoder

NUM_DRAWS = 2  # starts of a search, beside the two along the weakest direction
JOINT_SHARE = 4  # one scene in so many, but two, is searched for with all slots free: it has K times the directions
AGGREGATE_IMAGES = 2048  # training images that an aggregate is built from where the run has none
IMAGES, PRIOR, JOINT = "slot of an image", "slot of the prior", "whole scene"


@dataclass(frozen=True)
class Subject:
    """A decoder and its slots, float64, every feature in deviations of the aggregate from its mean.

    Attributes:
        decode: Slots (K, D) of a scene -> the mean picture's pixels.
        paint: The same -> RGB and mask logits of every slot alone; None where slots are not painted alone.
        scenes: Slots (K, D) of each held-out image; those that the run's rule drops are left out.
        draws: n -> slots (n, K, D) from the aggregate.
        separation: Of the aggregate's components.
        slot_variances: (S,), the smallest variance of each posterior slot, over the aggregate's mean variance.
    """

    decode: Decoder
    paint: Decoder | None
    scenes: Sequence[Tensor]
    draws: Callable[[int], Tensor]
    separation: ComponentSeparation
    slot_variances: Tensor


@dataclass(frozen=True)
class Diagnosis:
    """What was measured, and the findings.

    Attributes:
        picture: Operations and bends of the picture.
        painting: The same of the slots' paintings, or None.
        ranks: Of each scene, by where its slots are from.
        probes: Searches for slots of the same picture, by what was searched for.
        interaction: Distance from a sum over slots.
        shared: Of each scene of an image.
        separation: Of the aggregate's components.
        slot_variances: As in :class:`Subject`.
    """

    picture: Pieces
    painting: Pieces | None
    ranks: dict[str, list[SlotRanks]]
    probes: dict[str, list[SamePictures]]
    interaction: Interaction
    shared: list[SharedPixels]
    separation: ComponentSeparation
    slot_variances: Tensor

    @property
    def movers(self) -> Tensor:
        """(K + 1,), the share of pixels that 0, 1, ... slots move, mean over images."""
        most = max(len(one.counts) for one in self.shared)
        return torch.stack([pad(one.counts, (0, most - len(one.counts))) for one in self.shared]).mean(0)

    @property
    def findings(self) -> list[Finding]:
        """The verdict on each assumption, in the order of the page."""
        return [
            assumptions.piecewise_affine(self.picture, self.painting),
            assumptions.full_rank(self.ranks),
            assumptions.weakly_injective(self.probes),
            assumptions.additive(self.interaction, self.shared),
            assumptions.non_degenerate(self.separation, self.slot_variances),
            assumptions.separate(self.separation),
        ]


def diagnose_run(
    autoencoder: SlotAutoencoder,
    images: ImageSet,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Diagnosis:
    """Measure a run on held-out images.

    Args:
        autoencoder: A run; it is not changed. Where it has no prior, an aggregate of its training images is built in
            memory.
        images: Held-out images.
        seed: Of all random numbers.
        progress: Called with the probes done, and of all.

    Raises:
        PsaError: If the training images are needed and cannot be read, or the decoder has an operation that torch
            cannot differentiate forward.
    """
    if not autoencoder.has_pixel_density:
        raise RunError(
            "decoder: expected one whose picture is a differentiable function of the slots, "
            f"got {autoencoder.config.decoder.kind}, which decodes one position after the other"
        )
    generator = torch.Generator().manual_seed(seed)
    subject = subject_of(autoencoder, images, _aggregate(autoencoder, seed), generator)
    try:  # one direction, before the minute that the rest takes
        pushforward(lambda factor: subject.decode(factor * subject.scenes[0]), subject.scenes[0].new_ones(1, 1))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"decoder: expected forward derivatives of its operations ({reason})") from None
    return diagnose(subject, generator, progress)


def _aggregate(autoencoder: SlotAutoencoder, seed: int) -> AggregatePrior:
    if autoencoder.scene_prior is not None:
        return autoencoder.scene_prior.aggregate
    training = run_images(autoencoder, autoencoder.config.data, "train", AGGREGATE_IMAGES)
    return slot_aggregate(autoencoder, training, NUM_COMPONENTS, len(training), seed)


@torch.no_grad()
def subject_of(
    autoencoder: SlotAutoencoder, images: ImageSet, aggregate: AggregatePrior, generator: torch.Generator
) -> Subject:
    """A run's decoder and the slots it is probed at.

    Args:
        autoencoder: A run; it is not changed.
        images: Held-out images.
        aggregate: Its aggregate mixture, with diagonal covariances.
        generator: Source of the draws.
    """
    aggregate = aggregate.to(torch.float64)
    assert aggregate.var is not None
    loc, mean_var = aggregate.mean, aggregate.variance.mean()
    scale = aggregate.variance.clamp(min=LEAST_SCALE**2 * mean_var).sqrt()
    guide = autoencoder.guide
    posterior = guide.posterior(autoencoder.prepare(images.batch(slice(None))))
    slots, deviations = guide.slot_moments(posterior)
    active = guide.active(posterior)
    kept = torch.ones_like(posterior.weights, dtype=torch.bool) if active is None else active
    decoder = copy.deepcopy(autoencoder.model.decoder).double().eval().requires_grad_(False)

    def decode(units: Tensor) -> Tensor:
        scene = (loc + scale * units)[None]
        # a joint picture is the mean, without the masks, which cost one picture a slot
        return (decoder.picture(scene) if isinstance(decoder, JointDecoder) else decoder(scene).mean).flatten()

    def paint(units: Tensor) -> Tensor:
        assert isinstance(decoder, MaskedDecoder)
        return decoder.paint(loc + scale * units).flatten()

    def draws(number: int) -> Tensor:
        return (aggregate.sample_components((number, slots.shape[1]), generator)[0] - loc) / scale

    return Subject(
        decode,
        paint if isinstance(decoder, MaskedDecoder) else None,
        [(image[own].double() - loc) / scale for image, own in zip(slots, kept, strict=True)],
        draws,
        component_separation(aggregate.weights, aggregate.loc, aggregate.var),
        deviations.double().square().amin(2)[kept] / mean_var,
    )


def diagnose(
    subject: Subject,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Diagnosis:
    """Measure what each assumption says.

    Args:
        subject: The decoder and its slots.
        generator: Of directions and of which slots are searched for.
        progress: Called with the steps done, and of all.
    """
    scenes, drawn = subject.scenes, list(subject.draws(len(subject.scenes)))
    joint = scenes[: max(2, len(scenes) // JOINT_SHARE)]
    total, done = 2 * (len(scenes) + len(drawn)) + len(joint), 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    ranks: dict[str, list[SlotRanks]] = {IMAGES: [], PRIOR: []}
    probes: dict[str, list[SamePictures]] = {IMAGES: [], PRIOR: [], JOINT: []}
    shared = []
    for name, some in ((IMAGES, scenes), (PRIOR, drawn)):
        for slots in some:
            jacobian = pushforward(subject.decode, slots)[1]
            ranks[name].append(slot_ranks(jacobian))
            if name == IMAGES:
                contrast = compositional_contrast(subject.decode, slots[None]).contrast
                shared.append(shared_pixels(jacobian.norm(dim=2).T, contrast, assumptions.MOVED))
            step()
            chosen = torch.randint(len(slots), (1,), generator=generator)
            probes[name].append(_search(subject, slots, chosen))
            step()
    for slots in joint:
        probes[JOINT].append(_search(subject, slots, torch.arange(len(slots))))
        step()
    return Diagnosis(
        _pieces(subject.decode, scenes, generator),
        None if subject.paint is None else _pieces(subject.paint, scenes, generator),
        ranks,
        probes,
        interaction(subject.decode, scenes, drawn),
        shared,
        subject.separation,
        subject.slot_variances,
    )


def _pieces(decode: Decoder, scenes: Sequence[Tensor], generator: torch.Generator | None) -> Pieces:
    return operations(decode, scenes[0]), straightness(decode, scenes, generator)


def _search(subject: Subject, slots: Tensor, free: Tensor) -> SamePictures:
    starts = subject.draws(NUM_DRAWS)[:, : len(free)]
    return same_pictures(subject.decode, slots, free, starts, assumptions.SAME_PICTURE, assumptions.DISTANT)
