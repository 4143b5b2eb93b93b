"""The trained object a user holds: a scene program and its guide, with ``encode``, ``decode`` and ``sample``."""

from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from psa.data import as_float
from psa.errors import ConfigError, RunError
from psa.inference.attention_masks import attention_masks, resized
from psa.inference.bottleneck import Bottleneck
from psa.inference.building import build_code, build_encoder, build_scene_model, token_dim
from psa.inference.config import DecoderConfig, RunConfig, parse_config
from psa.inference.encoders.cnn import MIN_IMAGE_SIZE
from psa.inference.frozen_network import FrozenNetwork, open_network
from psa.inference.guide import SceneGuide
from psa.inference.relevance import RULES, Relevance
from psa.inference.roles import SceneRoles, find_roles, roles_of_masks
from psa.inference.scene_draws import draw_seen_scenes
from psa.inference.variants import build
from psa.models.decoders import JointDecoder
from psa.models.decoders.code import CodeTransformerDecoder
from psa.models.decoders.features import FeatureTransformerDecoder
from psa.models.scene import SceneModel
from psa.models.scene_prior import NO_COMPONENT, ScenePrior, SlotDraw
from psa.records import DecodedScene, SlotPosterior
from psa.runs import RunDirectory, load_tensors

SCHEMES = ("scene", "independent")


class SlotAutoencoder(nn.Module):
    """p(x, s) and q(s | x) of one run.

    Args:
        model: The scene program.
        guide: The amortised guide.
        config: What they were built from.
        size: (H, W) of the images.

    Attributes:
        scene_prior: What scenes are drawn from, if it was built (:meth:`use_prior`).
    """

    def __init__(self, model: SceneModel, guide: SceneGuide, config: RunConfig, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.guide, self.config, self.size = model, guide, config, size
        self.scene_prior: ScenePrior | None = None
        self._network: FrozenNetwork | None = None

    def use_prior(self, prior: ScenePrior) -> None:
        """Make a prior the run's: its aggregate mixture is p(s) from now on.

        Raises:
            ValueError: If it is of another number of slots or of features.
        """
        expected = (self.model.num_slots, len(self.model.prior_loc))
        found = (prior.num_slots, prior.aggregate.loc.shape[1])
        if found != expected:
            raise ValueError(f"prior must be of {expected[0]} slots of {expected[1]} features, got {found}")
        self.scene_prior = prior.to(self.model.prior_loc)
        self.model.aggregate = self.scene_prior.aggregate

    def prepare(self, images: Tensor) -> Float[Tensor, "batch channels height width"]:
        """Images as the encoder takes them: (B, H, W, 3) uint8, or (B, 3, H, W) float in [0, 1] (kept as it is).

        Of a run on features, their maps, or the maps themselves (B, F, rows, columns), kept as they are.

        Raises:
            ValueError: If the shape, dtype or size is another.
            PsaError: If the network that makes features is not to be had.
        """
        on_features = self.config.encoder.kind == "features"
        if on_features and tuple(images.shape[1:]) == self.config.features.shape:
            return images.to(self.model.prior_loc)
        if images.dtype == torch.uint8 and images.ndim == 4 and images.shape[-1] == 3:
            images = as_float(images)
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                "images must be (batch, height, width, 3) uint8 or (batch, 3, height, width) float in [0, 1], "
                f"got {tuple(images.shape)} {images.dtype}"
            )
        if tuple(images.shape[-2:]) != tuple(self.size):
            raise ValueError(f"images must be {self.size[0]} x {self.size[1]}, got {tuple(images.shape[-2:])}")
        if on_features:
            self._network = self._network or open_network(self.config.features)
            images = self._network.maps(images.float().cpu())
        return images.to(self.model.prior_loc)

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[SlotPosterior, Tensor, Tensor]:
        """The posterior, the slots (B, K, D) that are decoded (read-outs, no draw), and the masks (B, K, H, W).

        Masks are of the run's ``mask_kind``. Slots that the run's rule drops are not decoded; their masks are 0.

        Args:
            images: (B, H, W, 3) uint8, or (B, 3, H, W) float in [0, 1].
        """
        posterior = self.guide.posterior(self.prepare(images))
        slots = self.guide.inference.slots(posterior)
        active = self.guide.active(posterior)
        if self.mask_kind == "attention":
            return posterior, slots, self.attended(posterior, active)
        return posterior, slots, resized(self.decode(slots, active).masks, self.size)

    @property
    def mask_kind(self) -> str:
        """Whose masks are the run's own: ``decoder``; or ``attention``, where no slot has a picture of its own."""
        one_by_one = (CodeTransformerDecoder, FeatureTransformerDecoder)
        return "attention" if isinstance(self.model.decoder, one_by_one) else "decoder"

    @property
    def has_pixel_density(self) -> bool:
        """Whether p(x | s) is a density of pixels about a differentiable picture, as comparing runs needs."""
        return type(self.model) is SceneModel and self.config.encoder.kind != "features"

    def labels(
        self, scene: DecodedScene, masks: Float[Tensor, "batch slots height width"]
    ) -> Int64[Tensor, "batch height width"]:
        """The slot that owns each pixel by the run's own masks, given those of :meth:`encode`."""
        return scene.labels if self.has_pixel_density else masks.argmax(1)

    def attended(
        self, posterior: SlotPosterior, active: Bool[Tensor, "batch slots"] | None = None
    ) -> Float[Tensor, "batch slots height width"]:
        """The slots' attention as masks (B, K, H, W): responsibilities, interpolated; those of dropped slots are 0."""
        masks = attention_masks(self.guide.encoder, posterior, self.size)
        if masks is None:
            raise ValueError("encoder must make a grid of tokens for masks of the attention, got one that makes none")
        if active is None:
            return masks
        kept = (masks + torch.finfo(masks.dtype).tiny) * active[:, :, None, None]
        return kept / kept.sum(1, keepdim=True)

    @torch.no_grad()
    def roles(self, posterior: SlotPosterior, slots: Float[Tensor, "batch slots features"]) -> SceneRoles:
        """What each slot of an image is: by its picture, or where slots have none, by the run's own masks."""
        active = self.guide.active(posterior)
        if self.has_pixel_density:
            return find_roles(self.decode(slots, active))
        if self.mask_kind == "attention":
            return roles_of_masks(self.attended(posterior, active))
        return roles_of_masks(self.decode(slots, active).masks)

    @torch.no_grad()
    def decode(
        self, slots: Float[Tensor, "batch slots features"], active: Bool[Tensor, "batch slots"] | None = None
    ) -> DecodedScene:
        """Pictures and masks of slots (B, K, D).

        Args:
            slots: Any slots.
            active: (B, K), those to decode, at least one an image; all by default. ``guide.active(posterior)`` is the
                run's own rule.
        """
        return self.model.decoder(slots) if active is None else self.model.decoder(slots, active)

    @torch.no_grad()
    def realise(self, draw: SlotDraw, generator: torch.Generator | None = None) -> DecodedScene:
        """Pictures and masks of drawn slots; where a picture consists of words, these are drawn too."""
        if isinstance(self.model.decoder, CodeTransformerDecoder):
            return self.model.decoder.draw(draw.slots, draw.active, generator)
        return self.decode(draw.slots, draw.active)

    @torch.no_grad()
    def sample(
        self, n: int, scheme: str = "independent", temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch slots features"]]:
        """n new scenes (n, 3, H, W), the mean pictures of slots drawn from the prior, and these slots (n, K, D).

        Where a picture consists of words, they are drawn given the slots. Of a run on features, maps of these.

        Args:
            n: Scenes.
            scheme: ``independent``, every slot from p(s) (the paper's), which is one diagonal Gaussian until an
                aggregate prior is built; or ``scene``, a background and a number of objects
                (:func:`psa.inference.scene_draws.draw_seen_scenes`).
            temperature: Factor of the aggregate's covariances, >= 0.
            generator: Source of random numbers, on the model's device; the global one where None.

        Raises:
            ValueError: If the scheme is unknown, or needs a prior that the run does not have.
            ConfigError: If the scheme needs a picture of each slot, and the decoder is joint.
        """
        draw = self.draw(n, scheme, temperature, generator)
        mean = self.realise(draw, generator).mean
        return mean if self.config.encoder.kind == "features" else mean.clamp(0.0, 1.0), draw.slots

    @torch.no_grad()
    def draw(
        self, n: int, scheme: str = "scene", temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> SlotDraw:
        """The slots of n new scenes, and the component each came from. Arguments are those of :meth:`sample`."""
        if scheme not in SCHEMES:
            raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
        if scheme == "scene" and isinstance(self.model.decoder, JointDecoder):
            raise ConfigError("scheme scene: expected a decoder that paints each slot, got joint (use independent)")
        if self.scene_prior is not None:
            if scheme == "scene" and not self.has_pixel_density:
                return self.scene_prior.draw_scenes(n, generator, temperature)
            if scheme == "scene":
                return draw_seen_scenes(self.decode, self.scene_prior, n, generator, temperature)
            return self.scene_prior.draw_independent(n, generator, temperature)
        if scheme == "scene" or temperature != 1.0 or generator is not None:
            raise ValueError(f"scheme {scheme!r} needs the run's aggregate prior (psa sample builds it)")
        slots = self.model.slot_prior.sample(torch.Size((n, self.model.num_slots)))
        active = torch.ones(slots.shape[:2], dtype=torch.bool, device=slots.device)
        return SlotDraw(slots, active, torch.full(active.shape, NO_COMPONENT, device=slots.device))


def build_autoencoder(config: RunConfig, size: tuple[int, int]) -> SlotAutoencoder:
    """An untrained model for images of a size.

    Raises:
        ConfigError: If the settings do not fit each other or the size.
    """
    if min(size) < MIN_IMAGE_SIZE:
        raise ConfigError(
            f"images of {size[0]} x {size[1]}: the encoder needs {MIN_IMAGE_SIZE} pixels a side or more (set data.size)"
        )
    slots, decoder, objective = config.slots, config.decoder, config.objective
    if slots.overrides.get("initialiser") == "given":
        raise ConfigError("slots.overrides.initialiser: 'given' has no start of its own, and a scene model needs one")
    try:
        inference = build(
            slots.variant,
            num_slots=slots.num_slots,
            input_dim=token_dim(config),
            slot_dim=slots.slot_dim,
            num_iterations=slots.num_iterations,
            **slots.overrides,
        )
        code = build_code(config, size) if config.encoder.kind == "words" else None
        encoder = build_encoder(config, code, size)
        model = build_scene_model(config, size)
        guide = SceneGuide(
            encoder,
            inference,
            objective.sample,
            objective.kl_weight,
            _relevance(decoder, model),
            code or build_code(config, size),
        )
        if objective.prior == "aggregate":
            if objective.kl_weight == 0:
                raise ValueError(
                    "objective.prior = aggregate: expected kl_weight above 0, else no prior is in the loop"
                )
            model.refresh_in_training(objective.prior_components)
        if config.bottleneck.is_on:  # last, so that the other weights are those of the seed without it
            model.factors = Bottleneck(config.bottleneck, slots.slot_dim)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return SlotAutoencoder(model, guide, config, size)


def _relevance(decoder: DecoderConfig, model: SceneModel) -> Relevance | None:
    if decoder.relevance == "none":
        return None
    threshold = RULES[decoder.relevance] if decoder.relevance_threshold is None else decoder.relevance_threshold
    return Relevance(decoder.relevance, threshold, model, decoder.relevance_start)


def load_run(path: Path) -> SlotAutoencoder:
    """The model of a run directory, on the CPU, ready for use.

    Raises:
        RunError: If the directory is not a run, or its files do not fit together.
    """
    run = RunDirectory(path)
    config = parse_config(run.read_config(), str(run.config))
    remedy = f"psa train --resume --out {path} writes it anew, or restore it from a copy"
    tensors, notes = load_tensors(run.checkpoint, remedy)
    if "size" not in notes:
        raise RunError(f"{run.checkpoint}: expected a checkpoint written by psa, got one that lacks the images' size")
    if notes.get("run", run.name) != run.name:
        raise RunError(f"{run.checkpoint}: expected the weights of run {run.name}, got {notes['run']}'s; {remedy}")
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise RunError(f"{run.checkpoint}: has weights that are not finite; {remedy}")
    model = build_autoencoder(config, tuple(notes["size"]))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise RunError(f"{run.checkpoint}: expected the weights of {run.config} ({reason}); {remedy}") from None
    if run.prior.exists():
        _use_saved_prior(model, run, notes.get("step"))
    return model.eval()


def _use_saved_prior(model: SlotAutoencoder, run: RunDirectory, step: int | None) -> None:
    """Give a run the prior in its directory, unless training went on since it was made."""
    prior, of_step = ScenePrior.load(run.prior)
    if of_step == step:
        try:
            model.use_prior(prior)
        except ValueError as error:
            raise RunError(f"{run.prior}: expected the prior of {run.config} ({error})") from None
