"""Precision far from the origin, memory, and denormal numbers."""

import statistics
import time

import pytest
import torch
from contracts import draw, loss_of
from largest_tensor import largest_tensor
from tolerances import FLOAT32
from torch import Tensor

from psa.inference.attention import attend
from psa.inference.em import MixtureState
from psa.inference.slot_inference import SlotInference
from psa.inference.variants import VARIANTS, build


@pytest.mark.parametrize("name", ["em", "psa-proj", "vb"])
@pytest.mark.parametrize("seed", range(3))
def test_float32_agrees_with_float64_a_thousand_spreads_from_the_origin(name: str, seed: int):
    tokens = (1e3 + draw(2, 200, 4, seed=seed)).float()
    initial = tokens[:, :3].clone()
    start = MixtureState(initial, torch.ones(2, 3, 4), torch.full((2, 3), 1 / 3).log())
    module = build(name, num_slots=3, input_dim=4, slot_dim=4, num_iterations=3, projections="none")
    single = module(tokens, initial=start)
    double = module(tokens.double(), initial=start.map(Tensor.double))
    assert single.loc.dtype == torch.float32
    assert double.loc.dtype == torch.float64
    assert float((single.responsibilities - double.responsibilities).abs().max()) < 1e-4
    assert float((single.var / double.var - 1).abs().max()) < 1e-4
    assert float(((single.loc - double.loc).abs() / double.var.sqrt()).max()) < 1e-3


B, K, N, D = 3, 7, 11, 8


def test_the_probe_sees_made_and_saved_tensors():
    tokens = draw(B, N, D, seed=1).requires_grad_()
    slots = draw(B, K, D, seed=2)
    with largest_tensor() as probe:
        (tokens[:, None] - slots[:, :, None]).square().sum()
    assert probe.largest == B * K * N * D
    with largest_tensor() as probe:
        torch.cdist(tokens, slots).sum().backward()
    assert B * K * N <= probe.largest < B * K * N * D


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("unchecked")
def test_no_tensor_of_every_image_slot_token_and_feature_is_made(name: str, masked: bool):
    module = build(name, num_slots=K, input_dim=D, slot_dim=D, hidden_dim=4).double()
    tokens, initial = draw(B, N, D, seed=1).requires_grad_(), draw(B, K, D, seed=2)
    mask = torch.arange(N).expand(B, -1) < 9 if masked else None
    with largest_tensor() as probe:
        for start in (initial, None):
            loss_of(module, module(tokens, mask, initial=start)).backward()
    # the first: responsibilities of three steps side by side
    others = (3 * B * K * N, B * N * (2 * D + 1), 3 * B * K * D, 2 * B * K * D, 3 * D * D)
    assert max(others) < B * K * N * D / 2
    assert max(others) >= probe.largest >= B * K * N
    assert probe.largest < B * K * N * D


def wide(scale: float) -> tuple[Tensor, Tensor]:
    """Tokens in five groups and where five slots start: log responsibilities spread over about scale^2 nats."""
    centres = draw(16, 5, 16, seed=1)
    index = torch.arange(256) % 5
    tokens = scale * centres[:, index] + draw(16, 256, 16, seed=2)
    return tokens.float().requires_grad_(), (scale * centres).float()


def identity_psa_proj() -> SlotInference:
    module = build("psa-proj", num_slots=5, input_dim=16, slot_dim=16)
    with torch.no_grad():
        for layer in (module.projections.query, module.projections.key, module.projections.value):
            layer.weight.copy_(torch.eye(16))
    return module


def denormal(tensor: Tensor) -> Tensor:
    return (tensor != 0) & (tensor.abs() < torch.finfo(tensor.dtype).tiny)


@pytest.mark.parametrize("scale", [1.0, 1.7, 2.5, 4.0])
def test_no_responsibility_attention_or_gradient_is_denormal(scale: float):
    tokens, initial = wide(scale)
    posterior = identity_psa_proj()(tokens, initial=initial)
    assert not bool(denormal(posterior.responsibilities).any())
    for dtype in (torch.float32, torch.float64):
        spread = torch.linspace(0, 1500, 4096, dtype=dtype).reshape(1, 2, 2048) * scale
        scores = spread.clone().requires_grad_()
        attention = attend(scores)
        for part in (attention.responsibilities, attention.attention):
            assert not bool(denormal(part).any())
            assert not bool(denormal(part.square()).any())
            assert not bool(denormal(part**3).any())
        (attention.responsibilities.sum() + attention.attention[..., 0].sum()).backward()
        assert not bool(denormal(scores.grad).any())


@pytest.mark.usefixtures("unchecked")
def test_extreme_responsibilities_do_not_slow_a_training_step():
    module, problems = identity_psa_proj(), {"ordinary": wide(1.0), "extreme": wide(2.2)}
    naive = module(*problems["extreme"][:1], initial=problems["extreme"][1], num_iterations=1)
    assert float((naive.responsibilities == 0).double().mean()) > 0.5  # exp would have made denormals and zeros
    seconds: dict[str, list[float]] = {name: [] for name in problems}
    for _ in range(25):
        for name, (tokens, initial) in problems.items():
            tokens.grad = None
            begin = time.perf_counter()
            posterior = module(tokens, initial=initial)
            (posterior.loc.square().sum() + posterior.var.log().sum()).backward()
            seconds[name].append(time.perf_counter() - begin)
    ordinary, extreme = (statistics.median(seconds[name][5:]) for name in problems)
    assert extreme < 2 * ordinary


@torch.no_grad()
def test_tolerance_of_parity_is_met_near_the_origin():
    for name in VARIANTS:
        torch.manual_seed(0)
        tokens, initial = draw(2, 30, 4, seed=1).float(), draw(2, 3, 4, seed=2).float()
        module = build(name, num_slots=3, input_dim=4, slot_dim=4, num_iterations=2)
        single = module(tokens, initial=initial)
        double = module.double()(tokens.double(), initial=initial.double())
        assert float((single.responsibilities - double.responsibilities).abs().max()) < FLOAT32
        assert float((single.loc - double.loc).abs().max()) < FLOAT32
