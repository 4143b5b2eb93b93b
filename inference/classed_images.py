"""Images of which two data sets tell: the masks of their objects, and those of their classes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import tee

from psa.data import Indices
from psa.inference.images import Images, ImageSet


@dataclass(frozen=True)
class ClassedImages(Images):
    """Images with the masks of their objects and, from a second data set of the same images, those of their classes.

    Attributes:
        images: Those with objects.
        classes: Those with classes.
    """

    images: Images
    classes: Images

    def __len__(self) -> int:
        return len(self.images)

    @property
    def background(self) -> tuple[int, ...]:  # type: ignore[override]
        """Mask labels that are no objects."""
        return self.images.background

    @property
    def label_kind(self) -> str:  # type: ignore[override]
        """What labels of masks stand for."""
        return self.images.label_kind

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.images.size

    @property
    def has_masks(self) -> bool:
        """Whether there are masks of objects."""
        return self.images.has_masks

    @contextmanager
    def stream(self, order: Iterable[Indices], with_masks: bool = True) -> Iterator[Iterator[ImageSet]]:
        """The images of each list of indices, read twice."""
        one, other = tee(order)
        with self.images.stream(one, with_masks) as sets, self.classes.stream(other, with_masks) as classed:
            yield (replace(part, classes=second.classes) for part, second in zip(sets, classed, strict=True))

    def in_memory(self) -> ImageSet:
        """All of them: a set of the kind that the images are, of features too."""
        return replace(self.images.in_memory(), classes=self.classes.in_memory().classes)

    def first(self, count: int) -> "ClassedImages":
        """The first so many, or all where there are fewer."""
        return ClassedImages(self.images.first(count), self.classes.first(count))
