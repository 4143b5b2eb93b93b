"""The one place where ArviZ is met: groups from plain arrays, their netCDF files, and the diagnostics we quote.

Works with ArviZ 0.x, whose container is an ``InferenceData``, and with 1.x, whose container is xarray's ``DataTree``.
``Data`` below stands for either. Both map a group's name to its data set. Nothing here imports torch.
"""

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psa.errors import DataError
from psa.files import write_atomically

with warnings.catch_warnings():
    # Once a day ArviZ 0.23 announces 1.x when it is imported. Both are supported here, and the user did not ask.
    warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)
    import arviz

Data = Any
Array = NDArray[np.floating]

# Variables of these groups start with the axes (chain, draw), of equal sizes within a set.
SAMPLED = (
    ("posterior", "posterior_predictive", "log_likelihood", "sample_stats"),
    ("prior", "prior_predictive"),
)
GROUPS = (*(name for names in SAMPLED for name in names), "observed_data")
MIN_CHAINS, MIN_DRAWS = 2, 4  # what R-hat of chains split in halves is defined for
MIN_RATIOS = 25  # the tail is a fifth of them, and 5 is the least that it is fitted to
UNDERFLOW = 700.0  # nats: the exponential of minus this is hardly a number
BEFORE_1 = arviz.__version__.startswith("0.")


@dataclass(frozen=True)
class Loo:
    """Leave-one-out cross-validation by Pareto-smoothed importance sampling, in nats (Vehtari et al. 2017).

    Attributes:
        elpd: Expected log pointwise predictive density, the sum of ``pointwise``.
        se: Its standard error, from the spread of ``pointwise``: the root of N times their unbiased variance, as in
            ArviZ 1.x; 0.x divides by N. NaN for one observation.
        p_loo: Effective number of parameters, log pointwise predictive density less elpd.
        pareto_k: (N,), tail index of each observation's importance ratios; above 0.7 its term cannot be trusted.
        max_pareto_k: The largest of them.
        pointwise: (N,), log p(v_n | the others).
    """

    elpd: float
    se: float
    p_loo: float
    pareto_k: Array
    max_pareto_k: float
    pointwise: Array


def inference_data(
    groups: Mapping[str, Mapping[str, Any]],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Sequence[Any]] | None = None,
    attrs: Mapping[str, str | int | float] | None = None,
) -> Data:
    """Arrays as ArviZ groups with named axes.

    Args:
        groups: Group, variable, array: whatever ``numpy.asarray`` makes numbers or booleans of. Every array starts with
            the axes (chain, draw), except in ``observed_data``. These two sizes agree among posterior,
            posterior_predictive, log_likelihood and sample_stats, and among prior and prior_predictive.
        dims: Names of a variable's other axes, in every group it is in; none where it is not listed. A variable of
            ``log_likelihood`` may lack the last of them: a density is joint over those. A name has one size throughout.
        coords: Labels along a name; 0, 1, ... where it is not listed.
        attrs: Notes on the whole.

    Raises:
        ValueError: If a group is unknown or empty, or names, axes and sizes do not fit together.
        TypeError: If a note is neither text nor a number, and no file could hold it.
    """
    arrays = {group: {name: np.asarray(value) for name, value in found.items()} for group, found in groups.items()}
    _check_groups(arrays)
    _check_dims(dims)
    sizes = _sizes(arrays, dims)
    _check_notes(attrs or {})
    labels = {name: np.asarray(found) for name, found in (coords or {}).items()}
    for name, found in labels.items():
        if found.shape != (sizes.get(name),):
            size = sizes.get(name, "a name in dims")
            raise ValueError(f"coords[{name!r}]: expected shape ({size},), got {found.shape}")
    names = {name: list(axes) for name, axes in dims.items()}
    notes: dict[str, Any] = dict(attrs or {})
    if not BEFORE_1:
        return arviz.from_dict(arrays, coords=labels, dims=names, attrs={"/": notes}, check_conventions=False)
    with warnings.catch_warnings():
        # ArviZ 0.x takes a short run of many chains for a transposed array, and a statistic called log_likelihood for
        # the group; which is which is certain here.
        warnings.filterwarnings("ignore", "More chains|log_likelihood variable found")
        return arviz.from_dict(**dict[str, Any](arrays), coords=labels, dims=names, attrs=notes)


def _check_groups(arrays: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
    """Groups are known, hold numbers, and agree in (chain, draw)."""
    if not arrays or not set(arrays) <= set(GROUPS):
        raise ValueError(f"groups: expected some of {', '.join(GROUPS)}, got {', '.join(arrays) or 'none'}")
    for group, variables in arrays.items():
        if not variables:
            raise ValueError(f"groups[{group!r}]: expected variables, got none")
        for name, array in variables.items():
            if array.dtype.kind not in "biuf":
                raise ValueError(f"{group}[{name!r}]: expected real numbers or booleans, got {array.dtype}")
    for family in SAMPLED:
        found = {(group, name): array.shape[:2] for group in family for name, array in arrays.get(group, {}).items()}
        expected = next(iter(found.values()), None)
        for (group, name), shape in found.items():
            if len(shape) < 2 or shape != expected:
                raise ValueError(
                    f"{group}[{name!r}]: expected axes (chain, draw) of sizes {expected}, as in the first"
                    f" variable of {', '.join(family)}, got {shape}"
                )


def _check_dims(dims: Mapping[str, Sequence[str]]) -> None:
    for name, axes in dims.items():
        if isinstance(axes, str) or len(set(axes) | {"chain", "draw"}) != len(axes) + 2:
            raise ValueError(f"dims[{name!r}]: expected different names, none of them chain or draw, got {axes!r}")


def _check_notes(attrs: Mapping[str, Any]) -> None:
    for name, note in attrs.items():
        if isinstance(note, bool) or not isinstance(note, str | int | float):
            raise TypeError(f"attrs[{name!r}]: expected text or a number, got {note!r}")


def _sizes(arrays: Mapping[str, Mapping[str, NDArray[Any]]], dims: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Size of each named axis."""
    sizes: dict[str, int] = {}
    for group, variables in arrays.items():
        for name, array in variables.items():
            shape = array.shape if group == "observed_data" else array.shape[2:]
            axes = dims.get(name, ())
            if len(shape) > len(axes) or (len(shape) < len(axes) and group != "log_likelihood"):
                raise ValueError(f"{group}[{name!r}]: expected the axes {list(axes)} of dims, got sizes {shape}")
            for axis, size in zip(axes, shape, strict=False):  # a log likelihood may lack the last
                if sizes.setdefault(axis, size) != size:
                    raise ValueError(f"{group}[{name!r}]: expected {sizes[axis]} along {axis!r}, as before, got {size}")
    both = {name for variables in arrays.values() for name in variables} & {*sizes, "chain", "draw"}
    if both:
        raise ValueError(f"dims: expected names that no variable has, got {', '.join(sorted(both))}")
    return sizes


def write_netcdf(data: Data, path: str | Path) -> None:
    """Write one netCDF 4 file, and its folder if need be; it appears whole, in place of an older one.

    Raises:
        OSError: If it cannot be written; an older file stays and nothing is left beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: data.to_netcdf(str(temporary), engine="h5netcdf"))


def read_netcdf(path: str | Path) -> Data:
    """What a netCDF file of either ArviZ holds, all of it in memory and the file closed.

    Raises:
        DataError: If there is no file, or it cannot be read, or has none of our groups.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: expected a netCDF file, found none of that name")
    try:
        if BEFORE_1:
            with arviz.rc_context({"data.load": "eager"}):
                data = arviz.from_netcdf(str(path), engine="h5netcdf")
        else:
            with contextlib.closing(arviz.from_netcdf(str(path), engine="h5netcdf")) as lazy:
                data = lazy.load()
    except Exception as error:  # what a damaged file raises depends on where in three libraries it is noticed
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{path}: expected a netCDF file of ArviZ groups, got {reason}") from error
    if not set(data) & set(GROUPS):
        raise DataError(f"{path}: expected some of the groups {', '.join(GROUPS)}, found none")
    return data


def _chains(array: Any) -> Array:
    chains = np.asarray(array, dtype=np.float64)
    if chains.ndim != 2:
        raise ValueError(f"array: expected axes (chain, draw), got shape {chains.shape}")
    return chains


def rhat(array: Any) -> float:
    """Rank-normalised split R-hat of (chain, draw) values, near 1 where chains agree (Vehtari et al. 2021).

    NaN where it is not defined: below 2 chains or 4 draws, a value that is not finite, or all values equal.
    """
    chains = _chains(array)
    if chains.shape[0] < MIN_CHAINS or chains.shape[1] < MIN_DRAWS or not np.isfinite(chains).all():
        return float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):  # no variance within a chain: inf, or NaN
        return float(arviz.rhat(chains))


def ess(array: Any) -> float:
    """Bulk effective sample size of (chain, draw) values (Vehtari et al. 2021).

    NaN where it is not defined: below 4 draws, or a value that is not finite. All draws, where all values are equal.
    """
    chains = _chains(array)
    if chains.shape[0] < 1 or chains.shape[1] < MIN_DRAWS or not np.isfinite(chains).all():
        return float("nan")
    return float(arviz.ess(chains))


def psis(log_ratios: Any) -> tuple[Array, Array]:
    """Pareto-smoothed importance sampling of independent draws (Vehtari et al. 2024).

    Args:
        log_ratios: (..., S), log importance ratios, up to a constant.

    Returns:
        (..., S), smoothed log weights, whose exponentials sum to 1 over S; and (...), the tail index k: above 0.7 the
        weights cannot be trusted. k is inf where none can be fitted: below 25 draws, or the largest ratios all equal
        or hundreds of nats apart; the weights are then not smoothed. Both are NaN where a ratio is NaN or infinite, or
        all are 0.

    Raises:
        ValueError: If there is no draw.
    """
    ratios = np.asarray(log_ratios, dtype=np.float64)
    if ratios.ndim < 1 or ratios.shape[-1] < 1:
        raise ValueError(f"log_ratios: expected axes (..., draw) and a draw, got shape {ratios.shape}")
    weights, tail_index = np.full(ratios.shape, np.nan), np.full(ratios.shape[:-1], np.nan)
    for index in np.ndindex(*tail_index.shape):
        if np.isfinite(ratios[index].max()):
            with np.errstate(all="ignore"):  # both ArviZ let extreme ratios overflow; their k then says enough
                weights[index], tail_index[index] = _smoothed(ratios[index])
    return weights, tail_index


def _smoothed(ratios: Array) -> tuple[Array, Array]:
    """:func:`psis` of one set of draws."""
    unsmoothed = ratios - np.logaddexp.reduce(ratios), np.array(np.inf)
    if ratios.size < MIN_RATIOS:
        return unsmoothed
    if BEFORE_1:
        return arviz.psislw(ratios)
    num_tail = int(min(ratios.size / 5, 3 * ratios.size**0.5))
    if ratios.max() - np.sort(ratios)[-num_tail - 1] > UNDERFLOW:
        return unsmoothed  # 1.x would fit the zeros that the tail's small end turned into, and can find a k near 0
    try:
        # It takes log likelihoods, whose reciprocals are the ratios.
        found = arviz.base.array_stats.psislw(-ratios)  # type: ignore[attr-defined]
    except ValueError:  # a tail of equal ratios
        return unsmoothed
    return found if np.isfinite(found[1]) else unsmoothed


def loo(data: Data) -> Loo:
    """Leave-one-out cross-validation from the one variable of the group log_likelihood; several axes are flattened.

    As ``arviz.loo``: autocorrelation is judged by the parameters in the group posterior, so relabel slots first.
    A large ``pareto_k`` is not warned of.

    Raises:
        ValueError: If a group is missing, there is not one variable, a value is not finite, or a chain is too short.
    """
    if not {"posterior", "log_likelihood"} <= set(data):
        raise ValueError(f"data: expected the groups posterior and log_likelihood, got {', '.join(data)}")
    variables = list(data["log_likelihood"].data_vars.values())
    if len(variables) != 1:
        raise ValueError(f"data: expected one variable in log_likelihood, got {len(variables)}")
    if variables[0].sizes["draw"] < MIN_DRAWS or not np.isfinite(variables[0].values).all():
        raise ValueError(f"data: expected finite log_likelihood of at least {MIN_DRAWS} draws a chain")
    with warnings.catch_warnings():
        # A large k, and a single observation: the record says both.
        warnings.filterwarnings("ignore", "Estimated shape parameter|The point-wise LOO is the same", UserWarning)
        found = arviz.loo(data, pointwise=True, **({"scale": "log"} if BEFORE_1 else {}))
    pointwise = (found.loo_i if BEFORE_1 else found.elpd_i).values.ravel()
    tail_index = found.pareto_k.values.ravel()
    return Loo(
        elpd=float(found.elpd_loo if BEFORE_1 else found.elpd),
        se=float(pointwise.size * pointwise.var(ddof=1)) ** 0.5 if pointwise.size > 1 else float("nan"),
        p_loo=float(found.p_loo if BEFORE_1 else found.p),
        pareto_k=tail_index,
        max_pareto_k=float(tail_index.max()),
        pointwise=pointwise,
    )
