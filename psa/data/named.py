"""Data sets that have a name: the generators here, and those that a user registers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from psa.data.description import PointsDataset, SceneDataset
from psa.data.mixture_2d import OPTIONS as MIXTURE_OPTIONS
from psa.data.mixture_2d import Mixture2d, Mixture2dOptions
from psa.data.multi_dsprites import MultiDsprites, MultiDspritesOptions
from psa.data.prepare import Preparation
from psa.data.sprites import SpriteOptions, Sprites
from psa.data.tetrominoes import Tetrominoes, TetrominoOptions
from psa.errors import ConfigError
from psa.registry import Registry, option_names

READER_OPTIONS = tuple(field.name for field in fields(Preparation))
SPRITE_OPTIONS = tuple(field.name for field in fields(SpriteOptions))
STREAM_OPTIONS = ("seed", "num_scenes")

Opener = Callable[..., SceneDataset | PointsDataset]
Opened = TypeVar("Opened", bound=Opener)


@dataclass(frozen=True)
class Source:
    """A data set by name.

    Attributes:
        about: A line for people.
        open: Takes the split, and options by name.
        options: The names of its options; None where it takes any.
    """

    about: str
    open: Opener
    options: tuple[str, ...] | None

    def require_known(self, given: Iterable[str], name: str) -> None:
        """ConfigError for an option that it does not take."""
        if self.options is not None:
            require_known(given, self.options, name)


def require_known(given: Iterable[str], allowed: tuple[str, ...], source: str) -> None:
    """ConfigError for an option that is not among the allowed ones."""
    for option in given:
        if option not in allowed:
            raise ConfigError(f"data.{option}: no such option for {source}, expected {', '.join(allowed) or 'none'}")


def _sprites(split: str, **options: Any) -> Sprites:
    look = {name: value for name, value in options.items() if name in SPRITE_OPTIONS}
    stream = {name: value for name, value in options.items() if name in STREAM_OPTIONS}
    return Sprites(SpriteOptions(**look), split, **stream)


def _mixture(split: str, **options: Any) -> Mixture2d:
    stream = {name: value for name, value in options.items() if name in STREAM_OPTIONS}
    return Mixture2d(Mixture2dOptions(**{n: v for n, v in options.items() if n not in stream}), split, **stream)


def _generator(about: str, make: Callable[..., SceneDataset], look: type) -> Source:
    """One of :class:`psa.data.generated.GeneratedScenes`, whose images are prepared as files are."""
    look_options = tuple(field.name for field in fields(look))

    def opened(split: str, **options: Any) -> SceneDataset:
        groups = (look_options, READER_OPTIONS, STREAM_OPTIONS)
        seen, prepared, stream = ({n: options[n] for n in names if n in options} for names in groups)
        return make(look(**seen), split, preparation=Preparation.from_options(**prepared), **stream)

    return Source(about, opened, (*look_options, *STREAM_OPTIONS, *READER_OPTIONS))


_OWN: Mapping[str, Source] = {
    "sprites": Source(
        "squares, circles and triangles of colliding colours that occlude one another",
        _sprites,
        (*STREAM_OPTIONS, *SPRITE_OPTIONS),
    ),
    "tetrominoes": _generator(
        "three pieces of four squares that do not overlap, 35 x 35 pixels", Tetrominoes, TetrominoOptions
    ),
    "multi-dsprites": _generator(
        "squares, ellipses and hearts that occlude one another, 64 x 64 pixels", MultiDsprites, MultiDspritesOptions
    ),
    "mixture-2d": Source(
        "points in the plane, a few Gaussian objects an image, each of one of a few types", _mixture, MIXTURE_OPTIONS
    ),
}
DATASETS: Registry[Source] = Registry("data set", _OWN)


def register_dataset(name: str, about: str = "") -> Callable[[Opened], Opened]:
    """A decorator that makes a data set known to ``open_dataset``, and as a value of ``data.source``.

    What it decorates, a class or a function, takes the split (``train``, ``val``, ``test``, ``all``) and options by
    name, and gives a :class:`psa.data.SceneDataset` or :class:`psa.data.PointsDataset`. The names of its parameters are
    the options that users may set; those that the table ``data`` lacks are set in ``data.options``.

    Args:
        name: Free, of letters, digits and ``. _ + -``. It comes before a folder of the same name.
        about: A line for ``psa data list``.

    Raises:
        ValueError: If the name is taken.
    """

    def registered(opener: Opened) -> Opened:
        DATASETS.register(name, Source(about, opener, option_names(opener)))
        return opener

    return registered
