"""How close is equal: one table for all tests. float64 unless said; never 0.1 or more."""

from collections.abc import Iterable

import torch
from torch import Tensor

ALGEBRA = 1e-10  # the same expression, written otherwise
CONVERGED = 1e-6  # the end of an iteration
FLOAT32 = 1e-5  # parity of float32 with float64
BFLOAT16 = 2e-2  # projections under autocast: 8 bits, a few steps
STANDARD_ERRORS = 6.0  # sampling


def assert_close(
    actual: Tensor | float, expected: Tensor | float, tolerance: float = ALGEBRA, message: str = ""
) -> None:
    """|actual - expected| <= tolerance (1 + |expected|), entry by entry; equal shapes; NaN equals nothing."""
    actual, expected = (torch.as_tensor(x, dtype=torch.float64).detach().cpu() for x in (actual, expected))
    assert tolerance < 0.1
    assert actual.shape == expected.shape, f"{message}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    excess = (actual - expected).abs() - tolerance * (1.0 + expected.abs())
    good = (excess <= 0) | (actual == expected)
    assert bool(good.all()), f"{message}: off by up to {float((actual - expected).abs().max()):.3g}, {tolerance=}"


def assert_all_close(
    actual: Iterable[Tensor | float], expected: Iterable[Tensor | float], tolerance: float = ALGEBRA
) -> None:
    """:func:`assert_close` on two sequences of equal length."""
    for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert_close(one, other, tolerance, f"entry {index}")


def assert_mean_is(samples: Tensor, expected: Tensor | float) -> None:
    """The mean over the first axis is within 6 of its own standard errors of the expected value."""
    samples = samples.detach().to(torch.float64)
    error = samples.std(0) / len(samples) ** 0.5
    away = (samples.mean(0) - torch.as_tensor(expected)).abs()
    assert bool((away <= STANDARD_ERRORS * error).all()), f"{float((away / error).max()):.1f} standard errors away"
