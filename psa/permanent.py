"""The permanent of small non-negative matrices in log space: sums over all matchings of slots to slots."""

from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

MAX_SIZE = 14  # 2^14 partial sums a matrix; each further slot doubles them


def log_permanent(log_matrix: Float[Tensor, "*batch slots slots"]) -> Float[Tensor, "*batch"]:
    """log sum over permutations s of prod_k exp(M[k, s(k)]), by dynamic programming over sets of columns.

    Every term is added, none subtracted, so that nothing cancels; K 2^(K-1) sums, exact up to rounding.

    Args:
        log_matrix: (..., K, K), K <= 14; entries may be minus infinity.

    Raises:
        ValueError: If the matrix is not square or has more than 14 rows.
    """
    size = log_matrix.shape[-1]
    if log_matrix.shape[-2] != size or not 1 <= size <= MAX_SIZE:
        raise ValueError(f"log_matrix must be square with 1 to {MAX_SIZE} rows, got {tuple(log_matrix.shape)}")
    # partial[set of columns] = the permanent of the first rows on these columns, the sets of one size side by side
    sets: dict[tuple[int, ...], int] = {(): 0}
    partial = log_matrix.new_zeros(*log_matrix.shape[:-2], 1)
    for row in range(size):
        wider = list(combinations(range(size), row + 1))
        without = [[sets[columns[:i] + columns[i + 1 :]] for i in range(row + 1)] for columns in wider]
        entry = log_matrix[..., row, torch.tensor(wider, device=log_matrix.device)]
        partial = (partial[..., torch.tensor(without, device=log_matrix.device)] + entry).logsumexp(-1)
        sets = {columns: index for index, columns in enumerate(wider)}
    return partial[..., 0]
