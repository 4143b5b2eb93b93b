"""Rows of figures as a Markdown table, the form in which experiments print what they found."""

import math
from collections.abc import Mapping, Sequence


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """A table with the first row's keys as its heading; cells as :func:`cell` writes them."""
    heading = list(rows[0])
    lines = [heading, ["---"] * len(heading), *[[cell(row[name]) for name in heading] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: object) -> str:
    """Three decimals; small numbers with an exponent, a dash for None and for what is not finite."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "\N{EN DASH}"
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
    return str(value)
