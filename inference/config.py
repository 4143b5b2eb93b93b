"""A run's configuration: typed, validated, written to config.toml; every key is reachable by ``--set key=value``."""

import tomllib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from psa.errors import ConfigError
from psa.inference.data_config import DataConfig, Section
from psa.inference.schedules import SCHEDULES, schedule_settings
from psa.inference.variants import specify
from psa.models.decoders import DECODERS


class EncoderConfig(Section):
    """``encoder``: the CNN; of the words of the discrete VAE, and of features, only the width and token_dim count."""

    kind: Literal["cnn", "words", "features", "frozen", "whole"] = "cnn"
    channels: int = Field(default=32, ge=1)
    num_layers: int = Field(default=4, ge=1)
    stride: int = Field(default=2, ge=1)
    kernel: int = Field(default=3, ge=1, description="pixels a side that a convolution sees, odd")
    token_dim: int | None = Field(default=None, ge=1, description="features of a token; left out, slots.slot_dim")


class SlotsConfig(Section):
    """``slots``: a member of the family; ``slots.overrides.COLUMN`` reaches every column of its row."""

    variant: str = "psa-proj"
    num_slots: int = Field(default=5, ge=1)
    slot_dim: int = Field(default=16, ge=1)
    num_iterations: int = Field(default=3, ge=1)
    overrides: dict[str, str | bool | int | float] = Field(default_factory=dict)


class CodeConfig(Section):
    """``code``: the discrete VAE of the transformer decoder; a word stands for decoder.patch pixels a side."""

    vocabulary: int = Field(default=64, ge=2)
    channels: int = Field(default=32, ge=1, description="width of its convolutions")
    kernel: int = Field(default=1, ge=1, description="of its encoder, odd: 1 is SLATE's, 3 BO-QSA's")
    draw: Literal["relaxed", "straight-through"] = Field(default="relaxed", description="of the words in training")
    temperature_start: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    temperature_end: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    anneal_share: float = Field(default=0.5, gt=0, le=1, description="share of training that cools, by half a cosine")


class FeaturesConfig(Section):
    """``features``: the frozen network whose features are observed in the pixels' place (``encoder.kind`` features)."""

    architecture: str = Field(default="small", description="small, of random weights, or one that timm knows")
    weights: str | None = Field(default=None, description="a safetensors file of the network")
    options: dict[str, str | bool | int | float] = Field(default_factory=dict, description="of the architecture")
    cache: str = Field(default="runs/features", description="the folder where features are kept")
    shape: tuple[int, int, int] | None = Field(default=None, description="written by psa train")
    checksum: str | None = Field(default=None, description="written by psa train")


class DecoderConfig(Section):
    """``decoder``: patch (an MLP per position), broadcast, joint (not additive), transformer, or a registered kind."""

    kind: str = "patch"
    hidden_dim: int = Field(default=64, ge=1)
    num_layers: int = Field(default=3, ge=1, description="hidden layers, convolutions of joint, transformer layers")
    patch: int = Field(default=4, ge=1, description="pixels a side of what a position emits; not of broadcast")
    num_heads: int = Field(default=4, ge=1, description="of the transformer's attentions")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of the transformer, in training")
    num_upsamplings: int = Field(default=2, ge=0, description="stride-2 layers of the broadcast decoder")
    num_convolutions: int = Field(default=1, ge=0, description="its hidden layers of stride 1, after those")
    kernel: int | None = Field(default=None, ge=1, description="of its layers, odd; left out, 4 in steps up, else 3")
    relevance: Literal["none", "weights", "occupancy", "information"] = Field(
        default="none", description="the rule for slots that are not decoded"
    )
    relevance_threshold: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="in the rule's unit; left out, the rule's own default"
    )
    relevance_start: float = Field(default=0.25, ge=0, le=1, description="share of training that decodes all slots")
    options: dict[str, str | bool | int | float] = Field(default_factory=dict, description="of a registered kind")

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        DECODERS.find(kind)
        return kind


class ObjectiveConfig(Section):
    """``objective``: the ELBO's parts. kl_weight 0 and sample false is the papers' autoencoding objective."""

    likelihood: Literal["normal", "mixture"] = "normal"
    sigma: float = Field(default=0.3, gt=0, allow_inf_nan=False)
    sample: bool = False
    kl_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    prior: Literal["gaussian", "aggregate"] = Field(
        default="gaussian", description="p(s) in training; aggregate: the Gaussian until the first refresh"
    )
    prior_components: int = Field(default=64, ge=1, description="of the aggregate prior in training")
    prior_refresh: int = Field(default=500, ge=1, description="steps between two refreshes")
    prior_images: int = Field(default=4096, ge=1, description="training images, the first ones, that a refresh reads")


class BottleneckConfig(Section):
    """``bottleneck``: losses on the slots, added to the objective in training; weights in nats an image, 0 is off."""

    covariance: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="of c, on projections of slots")
    variance: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="of v, on projections of slots")
    variance_target: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="deviation that v asks for")
    cosine: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="of the cosine loss, on slots")
    projection_dim: int = Field(default=128, ge=1, description="features of a projection, and its hidden layers' width")

    @property
    def is_on(self) -> bool:
        """Whether any weight is above 0."""
        return max(self.covariance, self.variance, self.cosine) > 0


class TrainingConfig(Section):
    """``training``: the optimiser and its schedule (linear warm-up times a decay), and where it runs.

    A ``schedule`` gives the values of a paper to the keys that are left out.
    """

    steps: int = Field(default=4000, ge=1)
    batch_size: int = Field(default=16, ge=1, description="images that a process has in memory at once")
    schedule: str | None = Field(default=None, description="a paper's, by name; keys set beside it win")
    accumulate: int = Field(default=1, ge=1, description="batches whose gradients make one step")
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    code_learning_rate: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="of the discrete VAE, without warm-up; left out, the same"
    )
    warmup_steps: int = Field(default=200, ge=0)
    decay: Literal["cosine", "linear", "exponential", "constant"] = "cosine"
    half_life: int = Field(default=100_000, ge=1, description="steps of the exponential decay")
    noise_steps: int | None = Field(default=None, ge=1, description="until queries have no noise; left out, all steps")
    clip_norm: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.0, ge=0, lt=1, description="decay of the averaged weights that are used; 0: none")
    seed: int = Field(default=0, ge=0)
    evaluate_every: int = Field(default=250, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    num_held_out: int = Field(default=256, ge=1, description="images of the held-out batch")
    max_skipped: int = Field(default=10, ge=0, description="steps in a row that are not finite and are skipped")
    threads: int = Field(default=2, ge=1)
    device: str = "cpu"
    devices: int = Field(default=1, ge=1, description="processes, each on a device of its own or sharing the CPU")
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    compile: bool = Field(default=False, description="encoder and decoder by torch.compile")
    tensorboard: bool = False

    @model_validator(mode="before")
    @classmethod
    def _fill_from_schedule(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("schedule") is None:
            return values
        return {**schedule_settings(values["schedule"]), **values}


class RunConfig(Section):
    """Everything that defines a run."""

    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    slots: SlotsConfig = SlotsConfig()
    decoder: DecoderConfig = DecoderConfig()
    code: CodeConfig = CodeConfig()
    features: FeaturesConfig = FeaturesConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    bottleneck: BottleneckConfig = BottleneckConfig()
    training: TrainingConfig = TrainingConfig()

    def to_toml(self) -> dict[str, Any]:
        """Plain values without None, as config.toml holds them."""
        return self.model_dump(mode="json", exclude_none=True)


# What `psa train` and `psa demo` start from; docs/scene.md says what each part is for.
RECIPE: Mapping[str, Any] = {
    "slots": {
        "variant": "psa",
        "num_iterations": 8,
        "overrides": {"initialiser": "queries", "readout": "query-mlp", "power": 0.25, "variance_floor": 0.01},
    },
    "decoder": {"kind": "patch", "hidden_dim": 96, "num_layers": 2},
    "objective": {"sample": True, "kl_weight": 1.0, "sigma": 0.8},
    "training": {"learning_rate": 2e-3, "steps": 3000},
}


def published(variant: str) -> dict[str, Any]:
    """A member as its paper trains it: its row of the table, no KL, slots drawn where its read-out is a Normal.

    Raises:
        ConfigError: If there is no such member.
    """
    try:
        sample = specify(variant).readout == "normal"
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return {"slots": {"variant": variant}, "objective": {"sample": sample, "kl_weight": 0.0}}


def parse_config(values: Mapping[str, Any], source: str = "configuration") -> RunConfig:
    """A validated configuration.

    Raises:
        ConfigError: One line that names the first key at fault, what was expected and what came.
    """
    try:
        config = RunConfig.model_validate(values)
        specify(config.slots.variant, **config.slots.overrides)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{source}: {key}: no such key; there are {', '.join(_keys(first['loc']))}") from None
        said = first.get("ctx", {}).get("error") or f"{first['msg']}, got {first['input']!r}"  # a validator's own words
        raise ConfigError(f"{source}: {key}: {said}") from None
    except ValueError as error:
        raise ConfigError(f"{source}: slots: {error}") from None
    return config


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys beside the one at a location."""
    table: Any = RunConfig
    for part in location[:-1]:
        table = table.model_fields[str(part)].annotation
    return list(table.model_fields)


def read_config_file(path: Path) -> dict[str, Any]:
    """The tables of a TOML file of a user's.

    Raises:
        ConfigError: If it cannot be read as TOML.
    """
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: expected a TOML file ({error})") from None
    for name in ("schema", "run"):  # of a run's own file
        values.pop(name, None)
    return values


def override(values: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """The tables with each ``dotted.key=value`` set; values read as TOML, or as a string where that fails.

    Later ones win. ``training.schedule`` sets the keys of that schedule where it stands.

    Raises:
        ConfigError: If a setting has no ``=``, or runs through a key that is not a table.
    """
    result = deepcopy(dict(values))
    for setting in settings:
        key, found, text = setting.partition("=")
        if not found or not key:
            raise ConfigError(f"--set {setting}: expected key=value, as in --set training.steps=500")
        table: Any = result
        *path, last = key.strip().split(".")
        for part in path:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {setting}: {part} is a value, not a table")
        table[last] = _value(text.strip())
        if key.strip() == "training.schedule":
            named = SCHEDULES.get(str(table[last]))  # a name that is none is told when all is parsed
            table.update({} if named is None else named.settings)
    return result


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
