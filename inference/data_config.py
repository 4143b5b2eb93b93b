"""The table ``data`` of a configuration, and what every table is."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Section(BaseModel):
    """A table of the configuration: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


READING = ("workers", "memory")  # fields of DataConfig that do not change what is read


class DataConfig(Section):
    """``data``: where images come from. Fields left out take the data set's own defaults."""

    source: str = "sprites"
    size: int | tuple[int, int] | None = None
    crop: Literal["none", "center"] | None = None
    seed: int | None = None
    num_scenes: int | None = Field(default=None, ge=1)
    min_objects: int | None = None
    max_objects: int | None = None
    background: str | None = None
    min_visible: float | None = None
    max_visible: float | None = None
    hues: str | None = None
    variant: str | None = None
    camouflage: float | None = None
    shapes: str | None = None
    masks: str | None = None
    workers: int = Field(default=0, ge=0, description="processes that read images ahead")
    memory: float = Field(
        default=2.0, ge=0, allow_inf_nan=False, description="GiB; images of a split that take more are not kept there"
    )

    options: dict[str, str | bool | int | float] = Field(
        default_factory=dict, description="of a registered data set, those that have no key of their own"
    )

    @field_validator("options")
    @classmethod
    def _have_no_key_of_their_own(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in options:
            if name in cls.model_fields:
                raise ValueError(f"expected options without a key of their own, got {name}, which is data.{name}")
        return options

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``psa.data.open_dataset``."""
        return self.model_dump(exclude={"source", "options", *READING}, exclude_none=True) | self.options
