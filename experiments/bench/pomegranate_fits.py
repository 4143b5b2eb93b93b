"""Many small mixtures by pomegranate, an optional peer of `psa bench --suite fits` (pip install psa-slots[bench]).

It fits one set at a time by maximum likelihood, EM without a prior, so it computes less than variational Bayes. Its
time is that of as many iterations on the same tokens, from the same first means.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

MIN_VARIANCE = 1e-3


def fit_pomegranate(
    tokens: Float[Tensor, "batch tokens features"], owned: Int64[Tensor, "batch slots"], num_iterations: int
) -> list[tuple[Tensor, Tensor]]:
    """A loop over sets, from unit variances about the owned tokens.

    Args:
        tokens: (B, N, D).
        owned: (B, K), the tokens at which means start.
        num_iterations: All are taken.

    Returns:
        Means (K, D) and variances (K, D) of each set.
    """
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    found = []
    for values, first in zip(tokens, owned, strict=True):
        one = torch.ones_like(values[0])
        parts = [Normal(mean, one.clone(), covariance_type="diag", min_cov=MIN_VARIANCE) for mean in values[first]]
        priors = values.new_full((len(parts),), 1.0 / len(parts))
        # a tolerance below 0 takes all iterations: it stops when the likelihood rises by less
        GeneralMixtureModel(parts, priors=priors, max_iter=num_iterations, tol=-torch.inf).fit(values)
        found.append((torch.stack([part.means for part in parts]), torch.stack([part.covs for part in parts])))
    return found
