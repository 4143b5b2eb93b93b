"""Equalities between the slot methods: each compares two ways to one number on a random problem (model.md section 2).

One way is this library's; the other a formula written out here, another library's, or another member of the family
whose parts make it the same. All in float64.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro.infer import TraceEnum_ELBO
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from psa.inference.em import MixtureState
from psa.inference.evidence import exact_log_evidence
from psa.inference.fits import LocalMixtureFit
from psa.inference.slot_inference import SlotInference
from psa.inference.variants import VARIANTS, build
from psa.inference.variational import fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior, local_mixture
from psa.records import SlotPosterior

FLOOR = 1e-2
NO_FLOOR = 1e-12
LEAST_LOG_MASS = -600.0
PLAIN: Mapping[str, Any] = {"projections": "none", "normalise": False, "neural": False, "epsilon": 0.0}


@dataclass(frozen=True)
class Problem:
    """One random problem: tokens (B, N, D) in clumps, where K slots start (B, K, D), and its seed."""

    tokens: Tensor
    initial: Tensor
    seed: int

    def member(self, name: str, **overrides: Any) -> SlotInference:
        """A member with scattered weights, the same ones wherever names and shapes are."""
        torch.manual_seed(self.seed)
        size = self.tokens.shape[2]
        settings = {"num_slots": self.initial.shape[1], "input_dim": size, "slot_dim": size, "num_iterations": 3}
        module = build(name, **{**settings, "variance_floor": FLOOR, **overrides}).double().eval()
        with torch.no_grad():
            for index, (_, parameter) in enumerate(sorted(module.named_parameters())):
                generator = torch.Generator().manual_seed(1000 * self.seed + index)
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        return module


def problem(seed: int) -> Problem:
    """Sizes and numbers of a seed: eight tokens or more around every clump, near which a slot starts.

    So hardly a slot ends on a single token or on none, where a formula written out divides by nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, share, num_slots, size = (int(n) for n in torch.randint(2, 6, (4,), generator=generator))
    clumps = 3 * torch.randn(batch, num_slots, size, generator=generator, dtype=torch.float64)
    tokens = clumps.repeat(1, 4 * share, 1)
    tokens = tokens + torch.randn(tokens.shape, generator=generator, dtype=torch.float64)
    near = 0.5 * torch.randn(clumps.shape, generator=generator, dtype=torch.float64)
    return Problem(tokens, clumps + near, seed)


def off(ours: Tensor, theirs: Tensor) -> float:
    """Largest deviation over 1 + the largest number."""
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max() / (1.0 + theirs.abs().max()))


def apart(ours: SlotPosterior, theirs: SlotPosterior, *names: str) -> float:
    """The largest deviation of some tensors of two posteriors."""
    names = names or ("loc", "var", "weights", "responsibilities")
    return max(off(getattr(ours, name), getattr(theirs, name)) for name in names)


def dot_is_a_mixture(p: Problem) -> float:
    """Responsibilities of a plain dot member against torch's densities."""
    found = p.member("sa", **PLAIN, num_iterations=1)(p.tokens, initial=p.initial)
    scale = math.sqrt(p.tokens.shape[2])
    normal = torch.distributions.Normal(p.initial[:, :, None], math.sqrt(scale))
    log_weights = (p.initial.square().sum(-1) / (2 * scale)).log_softmax(1)
    joint = normal.log_prob(p.tokens[:, None]).sum(-1) + log_weights[..., None]
    return off(found.responsibilities, joint.softmax(1))


def soft_k_means(p: Problem) -> float:
    """Gaussian agreement with mean updates against three steps written out."""
    found = p.member("psa", **PLAIN, update="mean")(p.tokens, initial=p.initial)
    loc = p.initial
    for _ in range(3):
        a = (-0.5 * torch.cdist(loc, p.tokens).square()).softmax(1)
        loc = a @ p.tokens / a.sum(2, keepdim=True)
    return max(off(found.loc, loc), off(found.responsibilities, a))


def lloyd(p: Problem) -> float:
    """The same at E-step power 1e6 against scikit-learn's k-means, three iterations, where no slot goes empty."""
    found = p.member("psa", **PLAIN, update="mean", power=1e6)(p.tokens, initial=p.initial)
    worst = 0.0
    for image, tokens in enumerate(p.tokens.numpy()):
        if bool((found.weights[image] > 0).all()):
            start = p.initial[image].numpy()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                fit = KMeans(len(start), init=start, n_init=1, max_iter=3, tol=0.0, algorithm="lloyd").fit(tokens)
            if _never_empty(tokens, start):
                worst = max(worst, off(found.loc[image], torch.from_numpy(fit.cluster_centers_)))
    return worst


def _never_empty(tokens: Any, start: Any) -> bool:
    """Whether three steps of k-means leave every slot a token: scikit-learn moves an empty one, and we keep it."""
    loc, tokens = torch.from_numpy(start), torch.from_numpy(tokens)
    for _ in range(3):
        owned = torch.nn.functional.one_hot(torch.cdist(tokens, loc).argmin(1), len(loc)).to(tokens)
        if not bool(owned.any(0).all()):
            return False
        loc = owned.T @ tokens / owned.sum(0)[:, None]
    return True


def scikit_learn_em(p: Problem) -> float:
    """em against three iterations of scikit-learn's GaussianMixture from the same start."""
    found = p.member("em", variance_floor=NO_FLOOR)(p.tokens, initial=_unit_start(p))
    worst, (_, num_slots, size) = 0.0, p.initial.shape
    for image, tokens in enumerate(p.tokens.numpy()):
        start = {"weights_init": [1 / num_slots] * num_slots, "means_init": p.initial[image].numpy()}
        mixture = GaussianMixture(
            num_slots, covariance_type="diag", max_iter=3, tol=0.0, reg_covar=NO_FLOOR,
            precisions_init=[[1.0] * size] * num_slots, **start,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(tokens)
        for ours, theirs in ((found.loc, mixture.means_), (found.var, mixture.covariances_)):
            worst = max(worst, off(ours[image], torch.from_numpy(theirs)))
        worst = max(worst, off(found.weights[image], torch.from_numpy(mixture.weights_)))
    return worst


def _unit_start(p: Problem) -> MixtureState:
    return MixtureState(p.initial, torch.ones_like(p.initial), torch.full_like(p.initial[..., 0], -_log_slots(p)))


def _log_slots(p: Problem) -> float:
    return math.log(p.initial.shape[1])


def psa_is_em(p: Problem) -> float:
    """psa with W_q = I against em from unit variances and equal weights."""
    ours = p.member("psa", projections="none")(p.tokens, initial=p.initial)
    return apart(ours, p.member("em")(p.tokens, initial=_unit_start(p)))


def projected_em(p: Problem) -> float:
    """psa-proj with W_q = I and W_k = W_v = W against em on the projected tokens."""
    member = p.member("psa-proj")
    weight = member.get_parameter("projections.value.weight")
    with torch.no_grad():
        member.get_parameter("projections.key.weight").copy_(weight)
        member.get_parameter("projections.query.weight").copy_(torch.eye(len(weight)))
    return apart(
        member(p.tokens, initial=p.initial), p.member("em")(p.tokens @ weight.detach().T, initial=_unit_start(p))
    )


def proj_is_psa(p: Problem) -> float:
    """psa-proj with W_k = W_v = I against psa with the same W_q."""
    ours, theirs = p.member("psa-proj"), p.member("psa")
    with torch.no_grad():
        for name in ("key", "value"):
            ours.get_parameter(f"projections.{name}.weight").copy_(torch.eye(p.tokens.shape[2]))
        ours.get_parameter("projections.query.weight").copy_(theirs.get_parameter("projections.query.weight"))
    return apart(ours(p.tokens, initial=p.initial), theirs(p.tokens, initial=p.initial))


def algorithm_1(p: Problem) -> float:
    """psa-proj against PSA's algorithm 1 written out with torch's densities.

    Images where a slot's mass is less than a float can hold are left out: there the algorithm divides 0 by 0.
    """
    member = p.member("psa-proj")
    w_q, w_k, w_v = (member.get_parameter(f"projections.{name}.weight").detach() for name in ("query", "key", "value"))
    keys, values, mu = p.tokens @ w_k.T, p.tokens @ w_v.T, p.initial
    var, log_pi = torch.ones_like(mu), torch.full_like(mu[..., 0], -_log_slots(p))
    alive = torch.ones(len(mu), dtype=torch.bool)
    for _ in range(3):
        normal = torch.distributions.Normal((mu @ w_q.T)[:, :, None], var.sqrt()[:, :, None])
        log_a = (log_pi[..., None] + normal.log_prob(keys[:, None]).sum(-1)).log_softmax(1)
        share = log_a.softmax(2)  # A / sum_n A, also where that is less than a float holds
        mu = share @ values
        var = (share[..., None] * (values[:, None] - mu[:, :, None]).square()).sum(2).clamp(min=FLOOR)
        log_pi = log_a.logsumexp(2) - math.log(keys.shape[1])
        alive &= (log_pi > LEAST_LOG_MASS).all(1)
    found = member(p.tokens, initial=p.initial)
    pairs = ((found.loc, mu), (found.var, var), (found.weights, log_pi.exp()), (found.responsibilities, log_a.exp()))
    return max(off(ours[alive], theirs[alive]) for ours, theirs in pairs) if bool(alive.any()) else 0.0


def smm_is_psa(p: Problem) -> float:
    """smm without norms and neural part against psa-proj of the same weights."""
    ours, theirs = p.member("smm", normalise=False, neural=False), p.member("psa-proj")
    with torch.no_grad():
        for name in ("query", "key", "value"):
            parameter = f"projections.{name}.weight"
            ours.get_parameter(parameter).copy_(theirs.get_parameter(parameter))
    return apart(ours(p.tokens, initial=p.initial), theirs(p.tokens, initial=p.initial))


def gradients_share_values(p: Problem) -> float:
    """i-sa, bo-sa, qsa, i-qsa, bo-qsa against sa with the same weights from the same start."""
    sa, worst = p.member("sa"), 0.0
    theirs = sa(p.tokens, initial=p.initial)
    for name in ("i-sa", "bo-sa", "qsa", "i-qsa", "bo-qsa"):
        member = p.member(name)
        shared = {key: value for key, value in sa.state_dict().items() if not key.startswith("initialiser")}
        member.load_state_dict(shared, strict=False)
        worst = max(worst, apart(member(p.tokens, initial=p.initial), theirs, "loc", "responsibilities"))
    return worst


def straight_through(p: Problem) -> float:
    """bo-sa's gradient to its start against the last step's Jacobian alone."""
    member, plain = p.member("bo-sa"), p.member("sa")
    start = p.initial.clone().requires_grad_()
    before = plain(p.tokens, initial=p.initial, num_iterations=2).loc.detach().requires_grad_()
    ours = member(p.tokens, initial=start).loc.sin().sum()
    last = plain(p.tokens, initial=before, num_iterations=1).loc.sin().sum()
    return off(torch.autograd.grad(ours, start)[0], torch.autograd.grad(last, before)[0])


def bound_is_pyros(p: Problem) -> float:
    """vb's ELBO against single particles of Pyro's TraceEnum_ELBO."""
    prior = LocalMixturePrior(0.5, 0.0, 0.2, 1.5, 1.0)
    fit = fit_local_mixture(p.tokens, prior, p.initial.shape[1], num_iterations=5)
    assert isinstance(fit, LocalMixtureFit)
    worst = 0.0
    for seed in range(3):
        pyro.set_rng_seed(seed)
        estimator = TraceEnum_ELBO(max_plate_nesting=2)
        particle = -estimator.loss(local_mixture, fit.guide(), p.tokens, prior, p.initial.shape[1])
        worst = max(worst, abs(particle - float(fit.elbo.sum())) / (1.0 + abs(particle)))
    return worst


def one_slot_is_exact(p: Problem) -> float:
    """With one slot mean field loses nothing: the ELBO against the exact evidence."""
    prior = LocalMixturePrior(0.5, 0.0, 0.2, 1.5, 1.0)
    fit = fit_local_mixture(p.tokens, prior, 1, num_iterations=5)
    assert isinstance(fit, LocalMixtureFit)
    return off(fit.elbo, exact_log_evidence(p.tokens, prior, 1))


def padding_is_absence(p: Problem) -> float:
    """Every member: masked tokens, of any content, against their absence."""
    padded = torch.cat([p.tokens, torch.full_like(p.tokens[:, :3], torch.nan)], 1)
    mask = torch.arange(padded.shape[1]) < p.tokens.shape[1]
    worst = 0.0
    for name in VARIANTS:
        member = p.member(name)
        ours = member(padded, mask.expand(len(padded), -1), initial=p.initial)
        worst = max(worst, apart(ours, member(p.tokens, initial=p.initial), "loc", "var", "weights"))
    return worst


def orders_do_not_matter(p: Problem) -> float:
    """Every member: slots and tokens in another order give the same slots and responsibilities in that order."""
    generator = torch.Generator().manual_seed(p.seed)
    slots = torch.randperm(p.initial.shape[1], generator=generator)
    tokens = torch.randperm(p.tokens.shape[1], generator=generator)
    worst = 0.0
    for name in VARIANTS:
        member = p.member(name)
        theirs = member(p.tokens, initial=p.initial)
        ours = member(p.tokens[:, tokens], initial=p.initial[:, slots])
        moved = replace(
            theirs,
            loc=theirs.loc[:, slots],
            var=theirs.var[:, slots],
            weights=theirs.weights[:, slots],
            responsibilities=theirs.responsibilities[:, slots][..., tokens],
        )
        worst = max(worst, apart(ours, moved))
    return worst
