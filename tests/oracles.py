"""Plain transcriptions of the design's equations: loops over images, slots and tokens, nothing from psa.

Parameters come as a dictionary of tensors by name ("query.weight", "gru.weight_ih", ...); loops are differentiable.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import scipy.special
import scipy.stats
import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]


@dataclass
class Mixture:
    """One image's slots as lists: K means, K variances (both (D,)), K weights."""

    loc: list[Tensor]
    var: list[Tensor]
    weights: list[Tensor]


@dataclass
class Inferred:
    """What a transcription returns: the last state, A (K, N) of the last step, its sums over tokens over N."""

    loc: Tensor
    var: Tensor
    weights: Tensor
    responsibilities: Tensor


def linear(x: Tensor, parameters: Parameters, name: str) -> Tensor:
    """W x + b; the identity where there is no W."""
    if f"{name}.weight" not in parameters:
        return x
    y = parameters[f"{name}.weight"] @ x
    return y + parameters[f"{name}.bias"] if f"{name}.bias" in parameters else y


def layer_norm(x: Tensor, parameters: Parameters, name: str) -> Tensor:
    """(x - mean) / sqrt(biased variance + 1e-5) * gain + offset; the identity where there is no norm."""
    if f"{name}.weight" not in parameters:
        return x
    mean = sum(x) / len(x)
    var = sum((xi - mean) ** 2 for xi in x) / len(x)
    return (x - mean) / (var + 1e-5).sqrt() * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]


def gru(x: Tensor, h: Tensor, parameters: Parameters) -> Tensor:
    """Cho et al. 2014: reset and update gates, candidate; hidden state h."""
    from_x = parameters["gru.weight_ih"] @ x + parameters["gru.bias_ih"]
    from_h = parameters["gru.weight_hh"] @ h + parameters["gru.bias_hh"]
    d = len(h)
    reset = 1 / (1 + (-(from_x[:d] + from_h[:d])).exp())
    update = 1 / (1 + (-(from_x[d : 2 * d] + from_h[d : 2 * d])).exp())
    candidate = (from_x[2 * d :] + reset * from_h[2 * d :]).tanh()
    return (1 - update) * candidate + update * h


def neural(mean: Tensor, previous: Tensor, parameters: Parameters) -> Tensor:
    """GRU(input = mean, hidden = raw previous mean), then mu + MLP(LayerNorm(mu))."""
    slot = gru(mean, previous, parameters)
    hidden = linear(layer_norm(slot, parameters, "norm"), parameters, "mlp.0").clamp(min=0)
    return slot + linear(hidden, parameters, "mlp.2")


def softmax(logits: list[Tensor]) -> list[Tensor]:
    """Over the list."""
    top = max(float(logit.detach()) for logit in logits)
    powers = [(logit - top).exp() for logit in logits]
    return [power / sum(powers) for power in powers]


def log_normal(x: Tensor, loc: Tensor, var: Tensor) -> Tensor:
    """log Normal(x; loc, diag var)."""
    return sum(-((x[d] - loc[d]) ** 2) / (2 * var[d]) - (2 * math.pi * var[d]).log() / 2 for d in range(len(x)))


def slot_attention_step(tokens: Tensor, slots: list[Tensor], parameters: Parameters, epsilon: float) -> tuple:
    """One step of Locatello et al. 2020, algorithm 1, on an image (N, C): new slots, A[n][k]."""
    tokens = [layer_norm(z, parameters, "norm_tokens") for z in tokens]
    keys = [linear(z, parameters, "key") for z in tokens]
    values = [linear(z, parameters, "value") for z in tokens]
    queries = [linear(layer_norm(slot, parameters, "norm_slots"), parameters, "query") for slot in slots]
    a = [softmax([query @ key / math.sqrt(len(query)) for query in queries]) for key in keys]
    new = []
    for k, slot in enumerate(slots):
        total = sum(a[n][k] + epsilon for n in range(len(keys)))
        mean = sum((a[n][k] + epsilon) / total * values[n] for n in range(len(keys)))
        new.append(neural(mean, slot, parameters))
    return new, a


def slot_attention(
    tokens: Tensor, initial: Tensor, parameters: Parameters, num_iterations: int, epsilon: float, gradient: str
) -> tuple[Tensor, Tensor]:
    """Slots (B, K, D) and A (B, K, N) of sa, i-sa and bo-qsa: they differ before the last step alone."""
    slots_of, a_of = [], []
    for b in range(len(tokens)):
        start = list(initial[b])
        slots = start
        for step in range(num_iterations):
            if step == num_iterations - 1 and gradient == "implicit":
                slots = [slot.detach() for slot in slots]
            if step == num_iterations - 1 and gradient == "straight-through":
                slots = [slot.detach() + s0 - s0.detach() for slot, s0 in zip(slots, start, strict=True)]
            slots, a = slot_attention_step(tokens[b], slots, parameters, epsilon)
        slots_of.append(torch.stack(slots))
        a_of.append(torch.stack([torch.stack(row) for row in a]).T)
    return torch.stack(slots_of), torch.stack(a_of)


def gaussian_step(
    tokens: Tensor, state: Mixture, parameters: Parameters, floor: float, power: float = 1.0
) -> tuple[Mixture, list[list[Tensor]]]:
    """One step of PSA algorithm 1 (2 without W_k, W_v) on an image; smm's where there are norms and a GRU."""
    tokens = [layer_norm(z, parameters, "norm_tokens") for z in tokens]
    keys = [linear(z, parameters, "key") for z in tokens]
    values = [linear(z, parameters, "value") for z in tokens]
    num_slots, num_tokens = len(state.loc), len(keys)
    queries = [linear(layer_norm(loc, parameters, "norm_slots"), parameters, "query") for loc in state.loc]
    a = []
    for key in keys:
        logits = [state.weights[k].log() + power * log_normal(key, queries[k], state.var[k]) for k in range(num_slots)]
        a.append(softmax(logits))
    new = Mixture([], [], [])
    for k in range(num_slots):
        total = sum(a[n][k] for n in range(num_tokens))
        mean = sum(a[n][k] / total * values[n] for n in range(num_tokens))
        if "gru.weight_ih" in parameters:
            mean = neural(mean, state.loc[k], parameters)
        var = sum(a[n][k] / total * (values[n] - mean) ** 2 for n in range(num_tokens))
        new.loc.append(mean)
        new.var.append(torch.maximum(var, torch.full_like(var, floor)))
        new.weights.append(total / num_tokens)
    return new, a


def gaussian_mixture(
    tokens: Tensor, initial: Tensor, parameters: Parameters, num_iterations: int, floor: float, power: float = 1.0
) -> Inferred:
    """psa, psa-proj and smm: pi = 1/K, var = 1, then steps."""
    images = []
    for b in range(len(tokens)):
        num_slots, dim = initial.shape[-2:]
        uniform = initial.new_tensor(1 / num_slots)
        state = Mixture(list(initial[b]), [initial.new_ones(dim)] * num_slots, [uniform] * num_slots)
        for _ in range(num_iterations):
            state, a = gaussian_step(tokens[b], state, parameters, floor, power)
        a = torch.stack([torch.stack(row) for row in a]).T
        images.append((torch.stack(state.loc), torch.stack(state.var), torch.stack(state.weights), a))
    return Inferred(*(torch.stack(parts) for parts in zip(*images, strict=True)))


def isotropic_posterior(keys: Tensor, queries: Tensor) -> Tensor:
    """p(k | key) for variance sqrt(D) on every axis and weights proportional to exp(|q|^2 / (2 sqrt D)): (K, N)."""
    num_slots, dim = queries.shape
    var = torch.full((dim,), math.sqrt(dim), dtype=keys.dtype)
    log_weights = [float(queries[k] @ queries[k]) / (2 * math.sqrt(dim)) for k in range(num_slots)]
    rows = [softmax([log_weights[k] + log_normal(key, queries[k], var) for k in range(num_slots)]) for key in keys]
    return torch.stack([torch.stack(row) for row in rows]).T


def power_log_likelihood(tokens: Tensor, weights: Tensor, loc: Tensor, var: Tensor, power: float = 1.0) -> float:
    """sum_n log sum_k pi_k Normal(v_n; mu_k, var_k)^power of an image, by scipy."""
    log_density = [
        scipy.stats.norm(m.numpy(), v.numpy() ** 0.5).logpdf(tokens.numpy()).sum(-1)
        for m, v in zip(loc, var, strict=True)
    ]
    terms = [power * density for density in log_density]
    return float(scipy.special.logsumexp(terms, axis=0, b=weights.numpy()[:, None]).sum())


@dataclass(frozen=True)
class Prior:
    """Dirichlet(alpha, ...) and Normal-Gamma(loc, strength, shape, rate), the same on every axis."""

    alpha: float
    loc: float
    strength: float
    shape: float
    rate: float


def normal_gamma_posterior(values: list[float], weights: list[float], prior: Prior) -> tuple[float, ...]:
    """(m, kappa, a, b) of one axis by the textbook: second moments, uncentred (model.md section 1)."""
    count = sum(weights)
    strength = prior.strength + count
    loc = (prior.strength * prior.loc + sum(w * v for w, v in zip(weights, values, strict=True))) / strength
    second = sum(w * v * v for w, v in zip(weights, values, strict=True))
    rate = prior.rate + 0.5 * (second + prior.strength * prior.loc**2 - strength * loc**2)
    return loc, strength, prior.shape + 0.5 * count, rate


def log_predictive(values: list[float], prior: Prior) -> float:
    """log p(values) of one axis of one slot: a product of Student t predictions, one token after another."""
    loc, strength, shape, rate = prior.loc, prior.strength, prior.shape, prior.rate
    total = 0.0
    for value in values:
        scale = math.sqrt(rate * (strength + 1) / (shape * strength))
        total += float(scipy.stats.t(2 * shape, loc, scale).logpdf(value))
        rate += 0.5 * strength * (value - loc) ** 2 / (strength + 1)
        loc = (strength * loc + value) / (strength + 1)
        strength, shape = strength + 1, shape + 0.5
    return total


def log_urn(assignment: tuple[int, ...], num_slots: int, alpha: float) -> float:
    """log p(assignment): Polya's urn, the Dirichlet-multinomial one token after another."""
    total = 0.0
    for n, k in enumerate(assignment):
        total += math.log((alpha + assignment[:n].count(k)) / (num_slots * alpha + n))
    return total


def exact_log_evidence(tokens: Tensor, prior: Prior, num_slots: int) -> float:
    """log p(tokens) of an image (N, D), by the sum over all K^N assignments."""
    num_tokens, dim = tokens.shape
    group: dict[tuple[int, ...], float] = {}
    for size in range(num_tokens + 1):
        for members in itertools.combinations(range(num_tokens), size):
            columns = [[float(tokens[n, d]) for n in members] for d in range(dim)]
            group[members] = sum(log_predictive(column, prior) for column in columns)
    terms = []
    for assignment in itertools.product(range(num_slots), repeat=num_tokens):
        owned = [tuple(n for n in range(num_tokens) if assignment[n] == k) for k in range(num_slots)]
        terms.append(log_urn(assignment, num_slots, prior.alpha) + sum(group[members] for members in owned))
    return float(scipy.special.logsumexp(terms))
