"""Rows of figures as a Markdown table, the form in which experiments print what they found."""

from collections.abc import Mapping, Sequence


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """A table with the first row's keys as its heading; floats in three decimals."""
    heading = list(rows[0])
    lines = [heading, ["---"] * len(heading), *[[_cell(row[name]) for name in heading] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
