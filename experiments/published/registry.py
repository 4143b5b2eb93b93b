"""Every published row by name."""

from collections.abc import Mapping
from difflib import get_close_matches

from psa.errors import ConfigError
from psa.experiments.published import bo_qsa_paper, covariance_paper, psa_paper, smm_paper
from psa.experiments.published.rows import PublishedRow

_PAPERS = (psa_paper, smm_paper, bo_qsa_paper, covariance_paper)
PUBLISHED: Mapping[str, PublishedRow] = {row.name: row for paper in _PAPERS for row in paper.ROWS}


def find_published(name: str, kinds: str = "a published row") -> PublishedRow:
    """A row by its name.

    Args:
        name: As ``PUBLISHED`` has it.
        kinds: What the user could have named, for the error.

    Raises:
        ConfigError: If there is none; the line has the nearest names.
    """
    if name not in PUBLISHED:
        near = ", ".join(get_close_matches(name, PUBLISHED, 3, 0.0))
        raise ConfigError(f"{name}: expected {kinds}, the nearest are {near} (psa configs lists all)")
    return PUBLISHED[name]
