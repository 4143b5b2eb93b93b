"""The fused kernels against double precision: on a CUDA device, or in Triton's interpreter (test_fused_moments.py)."""

import os
from dataclasses import dataclass, replace

import pytest
import torch
from tolerances import FLOAT32, assert_close
from torch import Tensor

from psa.inference import fused_moments as fused
from psa.inference import kernel_launches as host
from psa.inference.fused_moments import fused_moments
from psa.inference.slot_moments import slot_moments
from psa.inference.variants import build

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1 on a CPU", allow_module_level=True)
pytest.importorskip("triton", reason="needs Triton: pip install psa-slots[triton]")

DEVICE = "cpu" if INTERPRETED else "cuda"
on_device = pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device: too large for the interpreter")
FOUND = ("log_mass", "mean", "second", "responsibilities")
SIXTEEN_BITS = 2.0**-15  # sums of shares that are rounded to 2^-17, relative to their largest terms


@dataclass(frozen=True)
class Problem:
    """Tokens, parameters and weights as the kernels get them, and the gradient that comes in for each thing found."""

    keys: Tensor
    values: Tensor
    natural: Tensor
    weights: Tensor | None
    incoming: tuple[Tensor, ...]

    def in_double(self) -> "Problem":
        """The same numbers in double precision."""
        keys = self.keys.double()
        values = keys if self.values is self.keys else self.values.double()
        weights = None if self.weights is None else self.weights.double()
        return Problem(keys, values, self.natural.double(), weights, tuple(g.double() for g in self.incoming))


def problem(
    *shape: int, dtype: torch.dtype = torch.float32, same: bool = False, weighted: bool = False, seed: int = 0
) -> Problem:
    """Standard normal tokens (B, N, D) and K slots with precisions up to 1.5, of shape (B, N, K, D)."""
    batch, num_tokens, num_slots, num_features = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(DEVICE)

    keys = draw(batch, num_tokens, num_features).to(dtype)
    values = keys if same else draw(batch, num_tokens, num_features).to(dtype)
    natural = draw(batch, num_slots, 2 * num_features + 1) / num_features**0.5
    natural[..., :num_features] = -0.5 * natural[..., :num_features].abs()
    weights = draw(batch, num_tokens).relu() if weighted else None
    moments = draw(2, batch, num_slots, num_features)
    incoming = (draw(batch, num_slots), *moments, draw(batch, num_slots, num_tokens))
    return Problem(keys, values, natural, weights, incoming)


def expected(problem: Problem) -> dict[str, Tensor]:
    """A = softmax over slots, Ahat over tokens, each in log space, and sums; without :mod:`psa.inference`."""
    features = torch.cat([problem.keys.square(), problem.keys], dim=-1)
    scores = problem.natural[..., :-1] @ features.mT + problem.natural[..., -1:]
    log_a = scores.log_softmax(1)
    log_share = log_a if problem.weights is None else log_a + problem.weights.log()[:, None]
    ahat = log_share.softmax(2)
    return {
        "log_mass": log_share.logsumexp(2),
        "mean": ahat @ problem.values,
        "second": ahat @ problem.values.square(),
        "responsibilities": log_a.exp(),
    }


def found(problem: Problem, keep: bool = True) -> dict[str, Tensor]:
    moments = fused_moments(problem.keys, problem.values, problem.natural, problem.weights, keep_responsibilities=keep)
    return {name: getattr(moments, name) for name in FOUND if getattr(moments, name) is not None}


def with_gradients(problem: Problem, function) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a function finds, and the gradients of keys, values and natural."""
    keys = problem.keys.clone().requires_grad_()
    values = keys if problem.values is problem.keys else problem.values.clone().requires_grad_()
    natural = problem.natural.clone().requires_grad_()
    result = function(Problem(keys, values, natural, problem.weights, problem.incoming))
    inputs = {"keys": keys, "natural": natural} | ({} if values is keys else {"values": values})
    gradients = torch.autograd.grad([result[name] for name in FOUND], list(inputs.values()), problem.incoming)
    return result, dict(zip(inputs, gradients, strict=True))


def units(actual: Tensor, reference: Tensor) -> Tensor:
    """How far bfloat16 numbers are from a reference, in units of its last place; 0 counts as 2^-16 of the largest."""
    exponent = reference.abs().clamp(min=float(reference.abs().max()) * 2.0**-16).log2().floor()
    return (actual.double() - reference).abs() / 2.0 ** (exponent - 7)


CASES = {
    "keys and values apart, weights": problem(2, 40, 3, 5, weighted=True),
    "one of everything": problem(1, 1, 1, 1),
    "more features than a block": problem(1, 5, 17, 33, same=True),
    "half precision": problem(1, 33, 4, 8, dtype=torch.float16, weighted=True),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_double_precision(name):
    given = CASES[name]
    values, gradients = with_gradients(given, found)
    true_values, true_gradients = with_gradients(given.in_double(), expected)
    for key, value in values.items():
        assert value.dtype == torch.float32
        assert_close(value, true_values[key], FLOAT32, key)
    for key, value in gradients.items():
        reference = true_gradients[key]
        assert value.dtype == (torch.float32 if key == "natural" else given.keys.dtype)
        tolerance = FLOAT32 if value.dtype == torch.float32 else torch.finfo(value.dtype).eps
        scale = reference.abs().max().clamp(min=1.0)
        assert_close(value / scale, reference / scale, tolerance, key)


@pytest.mark.parametrize("same", [True, False])
def test_bfloat16_is_one_unit_in_the_last_place_from_double_precision(same):
    given = problem(1, 70, 11, 18, dtype=torch.bfloat16, same=same, weighted=not same)
    values, gradients = with_gradients(given, found)
    true_values, true_gradients = with_gradients(given.in_double(), expected)
    for key, value in values.items():
        assert_close(value, true_values[key], FLOAT32, key)
    for key in gradients.keys() - {"natural"}:
        assert gradients[key].dtype == torch.bfloat16
        assert float(units(gradients[key], true_gradients[key]).max()) <= 1.0, key
    scale = true_gradients["natural"].abs().max()
    assert_close(gradients["natural"] / scale, true_gradients["natural"] / scale, SIXTEEN_BITS, "natural")


def test_gradients_are_finite_differences_of_double_precision():
    given = problem(1, 40, 3, 4, weighted=True, seed=1)
    _, gradients = with_gradients(given, found)

    def loss(moved: Problem) -> float:
        return sum(float((expected(moved)[name] * g).sum()) for name, g in zip(FOUND, moved.incoming, strict=True))

    true, step = given.in_double(), 1e-5
    for name, gradient in gradients.items():
        start = getattr(true, name)
        direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        direction = direction.to(DEVICE)
        ends = [Problem(**(vars(true) | {name: start + sign * step * direction})) for sign in (1.0, -1.0)]
        slope = (loss(ends[0]) - loss(ends[1])) / (2.0 * step)
        assert_close(float((gradient.double() * direction).sum()), slope, FLOAT32, name)


def test_a_slot_of_tiny_mass_has_the_mean_of_its_tokens_and_one_of_none_is_empty():
    given = problem(1, 40, 4, 3, seed=3)
    given.natural[0, 1, -1] -= 60.0
    given.natural[0, 2, -1] -= 120.0
    given.natural[0, 3, -1] = -torch.inf
    values, gradients = with_gradients(given, lambda p: found(p))
    true = expected(given.in_double())
    assert_close(values["mean"][0, :2], true["mean"][0, :2], FLOAT32)
    assert_close(values["second"][0, :2], true["second"][0, :2], FLOAT32)
    assert_close(values["log_mass"][0, :2], true["log_mass"][0, :2], FLOAT32)
    moments = fused_moments(given.keys, given.values, given.natural)
    assert moments.empty.flatten().tolist() == [False, False, True, True]
    assert values["log_mass"][0, 2:].tolist() == [-torch.inf] * 2
    assert not bool(values["mean"][0, 2:].any() or values["second"][0, 2:].any())
    assert all(bool(g.isfinite().all()) for g in gradients.values())
    assert not bool(gradients["natural"][0, 3].any())


def test_padding_has_no_part():
    given = problem(1, 30, 3, 4, weighted=True, seed=4)
    cut = problem(1, 30, 3, 4, seed=4)
    assert given.weights is not None
    given.weights[0, 20:] = 0.0
    given.weights[0, :20] = 1.0
    short = Problem(cut.keys[:, :20], cut.values[:, :20], cut.natural, None, cut.incoming)
    whole = Problem(cut.keys, cut.values, cut.natural, given.weights, cut.incoming)
    padded, alone = found(whole, keep=False), found(short, keep=False)
    for name, value in padded.items():
        assert torch.equal(value, alone[name]), name


def test_only_what_is_asked_for_gets_a_gradient():
    given = problem(1, 9, 3, 4, dtype=torch.bfloat16, seed=5)
    _, every = with_gradients(given, found)
    for name, gradient in every.items():
        inputs = {key: getattr(given, key).clone() for key in ("keys", "values", "natural")}
        inputs[name].requires_grad_()
        result = found(Problem(**inputs, weights=None, incoming=given.incoming))
        (alone,) = torch.autograd.grad([result[key] for key in FOUND], [inputs[name]], given.incoming)
        assert torch.equal(alone, gradient), name


def test_slot_moments_are_found_by_the_kernels_where_the_setting_says_so(monkeypatch):
    given = problem(1, 20, 3, 4, weighted=True, seed=8)
    monkeypatch.setenv("PSA_FUSED", "always")
    kernels = slot_moments(given.keys, given.values, given.natural, given.weights)
    monkeypatch.setenv("PSA_FUSED", "never")
    dense = slot_moments(given.keys, given.values, given.natural, given.weights)
    direct = found(given, keep=False)
    for name, value in direct.items():
        assert torch.equal(getattr(kernels, name), value), name
        assert_close(getattr(dense, name), value, FLOAT32, name)
    monkeypatch.delenv("PSA_FUSED")
    automatic = slot_moments(given.keys, given.values, given.natural, given.weights)
    assert torch.equal(automatic.mean, (dense if INTERPRETED else kernels).mean)


@pytest.mark.parametrize("member", ["psa-proj", "sa", "vb"])
def test_members_find_the_same_by_the_kernels(monkeypatch, member):
    torch.manual_seed(0)
    module = build(member, num_slots=3, input_dim=5, slot_dim=5, num_iterations=2).to(DEVICE)
    given = problem(1, 12, 3, 5, weighted=True, seed=9)
    passes: list[int] = []
    monkeypatch.setattr(fused, "forward_pass", lambda *rest: passes.append(1) or host.forward_pass(*rest))
    found = []
    for setting in ("always", "never"):
        monkeypatch.setenv("PSA_FUSED", setting)
        tokens = given.keys.clone().requires_grad_()
        posterior = module(tokens, given.weights > 0.0, initial=given.values[:, :3])
        loss = posterior.loc.square().sum() + posterior.var.sum() + posterior.responsibilities.square().sum()
        parameters = [p for p in module.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, [tokens, *parameters], allow_unused=True, materialize_grads=True)
        found.append([posterior.loc, posterior.var, posterior.weights, posterior.responsibilities, *gradients])
    assert len(passes) == 2  # of the kernels, one a step
    for ours, plain in zip(*found, strict=True):
        scale = plain.abs().max().clamp(min=1.0)
        assert_close(ours / scale, plain / scale, FLOAT32)


def test_ranges_of_tokens_add_up_and_repeat_bit_by_bit(monkeypatch):
    given, blocks_for = problem(1, 100, 3, 4, seed=6), host.blocks_for

    def cut(tokens_each: int) -> None:
        def blocks(keys: Tensor, num_slots: int) -> host.Blocks:
            splits = -(-keys.shape[1] // tokens_each)
            return replace(blocks_for(keys, num_slots), tokens_each=tokens_each, splits=splits)

        monkeypatch.setattr(host, "blocks_for", blocks)

    cut(128)
    whole, gradients = with_gradients(given, found)
    cut(64)
    ranged, of_ranges = with_gradients(given, found)
    for name in FOUND:
        assert_close(ranged[name], whole[name], FLOAT32, name)
    for name, gradient in gradients.items():
        assert_close(of_ranges[name], gradient, FLOAT32, name)
    again = found(given)
    assert all(torch.equal(again[name], ranged[name]) for name in FOUND)


def test_many_ranges_are_added_in_blocks():
    from psa.inference.kernels.forward import finish_kernel

    generator = torch.Generator().manual_seed(7)
    num_splits, num_slots, num_features = 37, 2, 3
    sums = torch.rand(1, num_splits, num_slots, 2 * num_features + 2, generator=generator).to(DEVICE)
    log_mass, inverse = sums.new_empty(2, 1, num_slots)
    mean, second = sums.new_empty(2, 1, num_slots, num_features)
    empty = torch.empty(1, num_slots, 1, dtype=torch.bool, device=DEVICE)
    counts = (num_slots, num_features, num_splits)
    finish_kernel[(num_slots,)](sums, log_mass, mean, second, empty, inverse, *counts, SPLITS=16, WIDTH=16)
    total = sums.double().sum(1)
    mass = total[..., 2 * num_features]
    assert_close(second, total[..., :num_features] / mass[..., None], FLOAT32)
    assert_close(mean, total[..., num_features : 2 * num_features] / mass[..., None], FLOAT32)
    assert_close(log_mass, mass.log() - 32.0 * torch.tensor(2.0, dtype=torch.float64).log(), FLOAT32)
    assert_close(inverse, 1.0 / mass, FLOAT32)
    assert not bool(empty.any())


@on_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 16384, 11, 64), (3, 4097, 7, 256), (2, 1001, 64, 64), (1, 100_000, 24, 128)])
def test_large_problems_are_those_of_double_precision(dtype, shape):
    given = problem(*shape, dtype=dtype, same=True)
    values, gradients = with_gradients(given, found)
    true_values, true_gradients = with_gradients(given.in_double(), expected)
    for key, value in values.items():
        assert_close(value, true_values[key], FLOAT32, key)
    scale = true_gradients["natural"].abs().max()
    tolerance = FLOAT32 if dtype == torch.float32 else SIXTEEN_BITS
    assert_close(gradients["natural"] / scale, true_gradients["natural"] / scale, tolerance, "natural")
    if dtype == torch.bfloat16:
        assert float(units(gradients["keys"], true_gradients["keys"]).max()) <= 1.0
    else:
        assert_close(gradients["keys"], true_gradients["keys"], FLOAT32, "keys")


@on_device
def test_memory_is_that_of_tokens_and_slots():
    given = problem(8, 16384, 11, 64, dtype=torch.bfloat16, same=True)
    keys, natural = given.keys.requires_grad_(), given.natural.requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    moments = fused_moments(keys, keys, natural)
    torch.autograd.grad(moments.mean.sum() + moments.second.sum() + moments.log_mass.sum(), [keys, natural])
    used = torch.cuda.max_memory_allocated() - before
    assert used <= 1.2 * keys.numel() * keys.element_size()  # the gradient, and little else
