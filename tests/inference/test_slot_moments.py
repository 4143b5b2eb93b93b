"""Moments of an E-step against plain loops in double precision."""

import torch
from contracts import draw
from tolerances import assert_close
from torch import Tensor

from psa.inference.slot_moments import slot_moments


def by_loops(keys: Tensor, values: Tensor, natural: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """One slot and one token at a time, of one image; exact for slots of any mass."""
    num_features, (num_slots, num_tokens) = keys.shape[1], (len(natural), len(keys))
    second, first, constant = natural.split([num_features, num_features, 1], dim=-1)
    log_joint = torch.stack([(second * key.square() + first * key).sum(-1) + constant[:, 0] for key in keys], dim=1)
    log_a = torch.stack([log_joint[:, n] - log_joint[:, n].logsumexp(0) for n in range(num_tokens)], dim=1)
    found: dict[str, list[Tensor]] = {"log_mass": [], "mean": [], "second": []}
    for k in range(num_slots):
        log_share = log_a[k] + weights.log()
        share = log_share.softmax(0)
        found["log_mass"].append(log_share.logsumexp(0))
        found["mean"].append(sum(share[n] * values[n] for n in range(num_tokens)))
        found["second"].append(sum(share[n] * values[n].square() for n in range(num_tokens)))
    return {name: torch.stack(parts) for name, parts in found.items()}


def test_moments_are_those_of_plain_loops():
    keys, values, natural = draw(2, 9, 3, seed=1), draw(2, 9, 3, seed=2), draw(2, 4, 7, seed=3)
    natural[0, 1, -1] -= 300.0  # a slot of tiny mass
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 1.0, 0.0, 3.0, 1.0], dtype=torch.float64).expand(2, -1)
    for given in (weights, None):
        moments = slot_moments(keys, values, natural, given)
        for b in range(2):
            expected = by_loops(keys[b], values[b], natural[b], torch.ones(9) if given is None else weights[b])
            for name, value in expected.items():
                assert_close(getattr(moments, name)[b], value, message=name)


def test_a_slot_of_no_mass_is_empty_and_has_no_moments():
    natural = draw(1, 3, 7, seed=3)
    natural[0, 1, -1] = -torch.inf
    moments = slot_moments(draw(1, 5, 3, seed=1), draw(1, 5, 3, seed=2), natural)
    assert moments.empty.flatten().tolist() == [False, True, False]
    assert float(moments.log_mass[0, 1]) == -torch.inf
    assert not bool(moments.mean[0, 1].any() or moments.second[0, 1].any())
