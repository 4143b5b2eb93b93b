"""What every member of the E/M family promises: one suite, which inference/test_variants.py gives every member."""

import re
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import ALGEBRA, BFLOAT16, FLOAT32, assert_all_close, assert_close
from torch import Tensor

from psa.inference.slot_inference import SlotInference
from psa.inference.variants import build
from psa.records import SlotPosterior

FLOOR = 1e-3


@dataclass(frozen=True)
class Problem:
    """Tokens (B, N, D), where K slots start (B, K, D), and the seed of whatever else is drawn."""

    tokens: Tensor
    initial: Tensor
    seed: int

    @property
    def num_slots(self) -> int:
        return self.initial.shape[1]

    def permutation(self, size: int) -> Tensor:
        return torch.randperm(size, generator=torch.Generator().manual_seed(self.seed))


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@st.composite
def problems(drawer: st.DrawFn, least_tokens: int = 1, least_slots: int = 1) -> Problem:
    """Random sizes (B = 1, K = 1, N = 1 and K > N among them) and normal numbers."""
    batch, features = drawer(st.integers(1, 3)), drawer(st.integers(2, 4))
    num_tokens, num_slots = drawer(st.integers(least_tokens, 7)), drawer(st.integers(least_slots, 5))
    seed = drawer(st.integers(0, 10_000))
    tokens = draw(batch, num_tokens, features, seed=seed)
    return Problem(tokens, draw(batch, num_slots, features, seed=seed + 1), seed)


def tensors_of(posterior: SlotPosterior) -> dict[str, Tensor]:
    """The record's tensors by name, without those that are None."""
    named = {field.name: getattr(posterior, field.name) for field in fields(posterior)}
    return {name: value for name, value in named.items() if value is not None}


def assert_same(actual: SlotPosterior, expected: SlotPosterior, tolerance: float = ALGEBRA) -> None:
    """Equal in every tensor."""
    ours, theirs = tensors_of(actual), tensors_of(expected)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert_close(value, theirs[name], tolerance, name)


TRANSCRIBED = {
    "query": "projections.query",
    "key": "projections.key",
    "value": "projections.value",
    "norm_tokens": "projections.norm_tokens",
    "norm_slots": "projections.norm_slots",
    "gru": "neural.gru",
    "norm": "neural.norm",
    "mlp": "neural.mlp",
}


def parameters_of(module: SlotInference) -> dict[str, Tensor]:
    """The module's parameters by the names of the transcriptions."""
    short = {theirs: ours for ours, theirs in TRANSCRIBED.items()}
    named = {}
    for name, value in module.named_parameters():
        head = ".".join(name.split(".")[:2])
        if head in short:
            named[short[head] + name.removeprefix(head)] = value
    return named


def scrambled(module: SlotInference, seed: int = 0) -> SlotInference:
    """Every parameter moved, so that no bias is 0 and no gain 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


def loss_of(module: SlotInference, posterior: SlotPosterior) -> Tensor:
    """A number that depends on the read-out and on every part of the record."""
    slots = module.slots(posterior)
    loss = slots.square().mean() + posterior.var.log().mean() + posterior.weights.square().sum()
    loss = loss + (posterior.responsibilities[..., 0] * torch.arange(1, slots.shape[1] + 1).to(slots)).sum()
    return loss if posterior.elbo is None else loss + posterior.elbo.sum()


class SlotInferenceContract:
    """Inherited by a class whose tests get ``name``, a key of VARIANTS."""

    def make(self, name: str, problem: Problem, device: torch.device, **options: Any) -> SlotInference:
        """The member with seeded weights, in float64 and with a floor unless told otherwise."""
        torch.manual_seed(problem.seed)
        dtype = options.pop("dtype", torch.float64)
        options = {"num_slots": problem.num_slots, "variance_floor": FLOOR, "hidden_dim": 8} | options
        dim = problem.tokens.shape[-1]
        return build(name, input_dim=dim, slot_dim=dim, **options).to(device, dtype)

    @staticmethod
    def generator(device: torch.device, seed: int = 0) -> torch.Generator:
        return torch.Generator(device).manual_seed(seed)

    @given(problem=problems())
    def test_permuting_the_initial_slots_permutes_the_slots(self, name: str, device: torch.device, problem: Problem):
        module, tokens = self.make(name, problem, device), problem.tokens.to(device)
        order, initial = problem.permutation(problem.num_slots).to(device), problem.initial.to(device)
        posterior, permuted = module(tokens, initial=initial), module(tokens, initial=initial[:, order])
        for part, value in tensors_of(posterior).items():
            expected = value if part == "elbo" else value[:, order]
            assert_close(getattr(permuted, part), expected, ALGEBRA, part)

    @given(problem=problems())
    def test_permuting_the_tokens_permutes_the_responsibilities_alone(
        self, name: str, device: torch.device, problem: Problem
    ):
        module, tokens = self.make(name, problem, device), problem.tokens.to(device)
        order, initial = problem.permutation(tokens.shape[1]).to(device), problem.initial.to(device)
        posterior, permuted = module(tokens, initial=initial), module(tokens[:, order], initial=initial)
        for part, value in tensors_of(posterior).items():
            expected = value[..., order] if part == "responsibilities" else value
            assert_close(getattr(permuted, part), expected, ALGEBRA, part)

    @given(problem=problems(), padding=st.integers(1, 4), filler=st.sampled_from([float("nan"), float("inf"), 1e30]))
    def test_padding_changes_nothing_whatever_it_holds(
        self, name: str, device: torch.device, problem: Problem, padding: int, filler: float
    ):
        module = self.make(name, problem, device)
        batch, num_tokens, dim = problem.tokens.shape
        place = problem.permutation(num_tokens + padding)
        padded = torch.cat([problem.tokens, torch.full((batch, padding, dim), filler, dtype=torch.float64)], 1)
        padded = padded[:, place].to(device).requires_grad_()
        mask = (place < num_tokens).expand(batch, -1).to(device)
        initial = problem.initial.to(device)
        expected = module(problem.tokens.to(device), initial=initial)
        actual = module(padded, mask, initial=initial)
        for part, value in tensors_of(expected).items():
            ours = getattr(actual, part)
            ours = ours[..., place.argsort()[:num_tokens]] if part == "responsibilities" else ours
            assert_close(ours, value, ALGEBRA, part)
        assert bool(actual.responsibilities.isfinite().all())
        assert_close(actual.responsibilities.sum(1), torch.ones(batch, num_tokens + padding))
        loss_of(module, actual).backward()
        assert padded.grad is not None
        assert bool(padded.grad.isfinite().all())
        assert bool((padded.grad[~mask] == 0).all())
        assert all(bool(p.grad.isfinite().all()) for p in module.parameters() if p.grad is not None)

    def test_padding_does_not_change_where_slots_start(self, name: str, device: torch.device):
        tokens, initial = draw(2, 9, 3, seed=1), draw(2, 4, 3, seed=2)
        module = self.make(name, Problem(tokens, initial, 3), device)
        padded = torch.cat([tokens, torch.full((2, 3, 3), torch.nan)], 1).to(device)
        mask = (torch.arange(12) < 9).expand(2, -1).to(device)
        expected = module(tokens.to(device), generator=self.generator(device)).initial_loc
        actual = module(padded, mask, generator=self.generator(device)).initial_loc
        assert_close(actual, expected)

    @given(problem=problems())
    def test_every_image_is_inferred_by_itself(self, name: str, device: torch.device, problem: Problem):
        module, tokens, initial = (
            self.make(name, problem, device),
            problem.tokens.to(device),
            problem.initial.to(device),
        )
        together = module(tokens, initial=initial)
        for b in range(len(tokens)):
            alone = module(tokens[b : b + 1], initial=initial[b : b + 1])
            for part, value in tensors_of(alone).items():
                assert_close(value[0], getattr(together, part)[b], ALGEBRA, part)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("sizes", [(1, 6, 3), (2, 6, 1), (2, 1, 3), (1, 1, 1), (2, 2, 5), (2, 40, 3)])
    def test_weights_and_responsibilities_sum_to_one_and_variances_keep_the_floor(
        self, name: str, device: torch.device, sizes: tuple[int, int, int], dtype: torch.dtype
    ):
        batch, num_tokens, num_slots = sizes
        tokens = draw(batch, num_tokens, 3, seed=1, dtype=dtype)
        problem = Problem(tokens, draw(batch, num_slots, 3, seed=2), seed=3)
        posterior = self.make(name, problem, device, dtype=dtype)(tokens.to(device))
        tolerance = ALGEBRA if dtype == torch.float64 else FLOAT32
        assert_close(posterior.weights.sum(1), torch.ones(batch), tolerance)
        assert_close(posterior.responsibilities.sum(1), torch.ones(batch, num_tokens), tolerance)
        assert posterior.responsibilities.shape == (batch, num_slots, num_tokens)
        assert posterior.loc.shape == posterior.var.shape == posterior.initial_loc.shape == (batch, num_slots, 3)
        assert bool((posterior.var >= torch.tensor(FLOOR, dtype=dtype)).all())
        assert {value.dtype for value in tensors_of(posterior).values()} == {dtype}
        assert {value.device.type for value in tensors_of(posterior).values()} == {device.type}

    def test_weights_are_the_mean_responsibility_over_valid_tokens(self, name: str, device: torch.device):
        tokens, mask = draw(2, 9, 3, seed=4).to(device), torch.ones(2, 9, dtype=torch.bool, device=device)
        mask[0, 5:] = False
        module = self.make(name, Problem(tokens, draw(2, 3, 3, seed=5), 6), device)
        posterior = module(tokens, mask)
        share = (posterior.responsibilities * mask[:, None]).sum(-1)
        if posterior.concentration is None:
            assert_close(posterior.weights, share / mask.sum(1)[:, None])
        else:
            assert_close(posterior.concentration, module.spec.prior.concentration + share)
            assert_close(posterior.weights, posterior.concentration / posterior.concentration.sum(1, keepdim=True))

    def test_autocast_keeps_responsibilities_in_float32_and_close(self, name: str, device: torch.device):
        tokens = draw(2, 24, 8, seed=7, dtype=torch.float32).to(device)
        initial = draw(2, 3, 8, seed=8, dtype=torch.float32).to(device)
        module = self.make(name, Problem(tokens, initial, 9), device, dtype=torch.float32, num_iterations=2)
        plain = module(tokens, initial=initial)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            posterior = module(tokens, initial=initial)
            module.slots(posterior)
        assert posterior.responsibilities.dtype == torch.float32
        assert {value.dtype for value in tensors_of(posterior).values()} == {torch.float32}
        assert_close(posterior.responsibilities, plain.responsibilities, BFLOAT16)
        assert_close(posterior.loc, plain.loc, BFLOAT16)

    def test_bfloat16_tokens_are_computed_in_float32(self, name: str, device: torch.device):
        tokens = draw(2, 9, 3, seed=7, dtype=torch.bfloat16).to(device)
        initial = draw(2, 2, 3, seed=8, dtype=torch.float32).to(device)
        module = self.make(name, Problem(tokens, initial, 9), device, dtype=torch.float32)
        assert_same(module(tokens, initial=initial), module(tokens.float(), initial=initial), FLOAT32)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("case", ["identical tokens", "one token", "outlier", "more slots than distinct tokens"])
    def test_values_and_gradients_are_finite(self, name: str, device: torch.device, case: str, dtype: torch.dtype):
        tokens = {
            "identical tokens": draw(1, 1, 3, seed=1).expand(2, 8, 3),
            "one token": draw(2, 1, 3, seed=1),
            "outlier": torch.cat([draw(2, 8, 3, seed=1), torch.full((2, 1, 3), 1e6)], 1),
            "more slots than distinct tokens": draw(2, 2, 3, seed=1).repeat(1, 4, 1),
        }[case]
        tokens = tokens.to(device, dtype, copy=True).requires_grad_()
        problem = Problem(tokens, draw(2, 4, 3, seed=2), 3)
        module = self.make(name, problem, device, dtype=dtype, variance_floor=1e-6)
        posterior = module(tokens, generator=self.generator(device))
        assert all(bool(value.isfinite().all()) for value in tensors_of(posterior).values())
        loss_of(module, posterior).backward()
        assert tokens.grad is not None
        assert bool(tokens.grad.isfinite().all())
        for part, parameter in module.named_parameters():
            assert parameter.grad is None or bool(parameter.grad.isfinite().all()), part

    def test_initial_means_may_be_shared_by_the_images(self, name: str, device: torch.device):
        problem = Problem(draw(2, 6, 3, seed=1).to(device), draw(4, 3, seed=2)[None].to(device), 3)
        module, shared = self.make(name, problem, device), problem.initial[0]
        posterior = module(problem.tokens, initial=shared)
        assert_same(posterior, module(problem.tokens, initial=shared.expand(2, 4, 3)))
        assert_close(posterior.initial_loc, shared.expand(2, 4, 3))

    def test_num_iterations_of_a_call_counts_every_step(self, name: str, device: torch.device):
        problem = Problem(draw(2, 6, 3, seed=1).to(device), draw(2, 4, 3, seed=2).to(device), 3)
        module = self.make(name, problem, device, num_iterations=5)
        for steps in (1, 2, 4):
            expected = self.make(name, problem, device, num_iterations=steps)(problem.tokens, initial=problem.initial)
            assert_same(module(problem.tokens, initial=problem.initial, num_iterations=steps), expected)
        first, last = (module(problem.tokens, initial=problem.initial, num_iterations=t) for t in (1, 5))
        assert not torch.allclose(first.loc, last.loc)

    def test_generator_reproduces_the_start(self, name: str, device: torch.device):
        problem = Problem(draw(2, 6, 3, seed=1).to(device), draw(2, 4, 3, seed=2), 3)
        module = self.make(name, problem, device)
        one, same, other = (module(problem.tokens, generator=self.generator(device, seed)) for seed in (1, 1, 2))
        assert_same(one, same, 0.0)
        drawn = module.spec.initialiser in ("standard-normal", "learned-gaussian", "noisy-queries", "kmeans++")
        assert torch.equal(one.initial_loc, other.initial_loc) is not drawn
        sampled = [module.slots(one, sample=True, generator=self.generator(device, seed)) for seed in (1, 1, 2)]
        assert torch.equal(sampled[0], sampled[1])
        assert torch.equal(sampled[0], sampled[2]) is (module.spec.readout != "normal")

    def test_fewer_slots_take_the_first_queries_and_more_are_refused(self, name: str, device: torch.device):
        problem = Problem(draw(2, 6, 3, seed=1).to(device), draw(2, 4, 3, seed=2), 3)
        module = self.make(name, problem, device).eval()
        posterior = module(problem.tokens, num_slots=2)
        assert posterior.loc.shape == (2, 2, 3)
        if "queries" not in module.spec.initialiser:
            assert module(problem.tokens, num_slots=6).loc.shape == (2, 6, 3)
            return
        queries = module.get_parameter("initialiser.queries")
        assert_close(posterior.initial_loc, queries[:, :2].expand(2, -1, -1))
        with pytest.raises(ValueError, match="num_slots must be at most the 4 learned queries, got 5"):
            module(problem.tokens, num_slots=5)

    def test_a_fully_masked_image_is_refused_by_its_number(self, name: str, device: torch.device):
        problem = Problem(draw(3, 6, 3, seed=1).to(device), draw(3, 2, 3, seed=2), 3)
        mask = torch.ones(3, 6, dtype=torch.bool, device=device)
        mask[1] = False
        with pytest.raises(ValueError, match="mask must keep at least one token an image, image 1 has none"):
            self.make(name, problem, device)(problem.tokens, mask)

    @pytest.mark.usefixtures("unchecked")
    def test_wrong_shapes_are_refused_by_name(self, name: str, device: torch.device):
        tokens = draw(2, 6, 3, seed=1).to(device)
        module = self.make(name, Problem(tokens, draw(2, 4, 3, seed=2), 3), device)
        long, mask = torch.ones(2, 6, device=device, dtype=torch.int64), torch.ones(2, 6, device=device) > 0
        start = draw(2, 4, 3, seed=2).to(device)
        cases: list[tuple[tuple, dict[str, Any], str]] = [
            ((tokens[0],), {}, "tokens must be (batch, tokens, 3), got (6, 3)"),
            ((tokens[..., :2],), {}, "tokens must be (batch, tokens, 3), got (2, 6, 2)"),
            ((tokens[:, :0],), {}, "tokens must hold at least one token an image, got none"),
            ((tokens, long), {}, "mask must be bool (2, 6), got torch.int64 (2, 6)"),
            ((tokens, mask[:1]), {}, "mask must be bool (2, 6), got torch.bool (1, 6)"),
            ((tokens,), {"initial": start[:1]}, "initial must be (2, 4, 3), got (1, 4, 3)"),
            ((tokens,), {"initial": start[..., :2]}, "initial must be (2, 4, 3), got (2, 4, 2)"),
            ((tokens,), {"initial": start[0, 0]}, "initial must be (2, K, 3) or (K, 3), got (3,)"),
            ((tokens,), {"initial": start, "num_slots": 3}, "initial must be (2, 3, 3), got (2, 4, 3)"),
            ((tokens,), {"num_slots": 0}, "num_slots must be an integer of at least 1, got 0"),
            ((tokens,), {"num_iterations": 0}, "num_iterations must be an integer of at least 1, got 0"),
            ((tokens,), {"num_iterations": 1.5}, "num_iterations must be an integer of at least 1, got 1.5"),
        ]
        for args, options, message in cases:
            with pytest.raises(ValueError, match=re.escape(message)):
                module(*args, **options)

    def test_state_dict_restores_the_member(self, name: str, device: torch.device):
        problem = Problem(draw(2, 6, 3, seed=1).to(device), draw(2, 4, 3, seed=2).to(device), 3)
        module, other = self.make(name, problem, device), self.make(name, Problem(*vars(problem).values()), device)
        torch.nn.utils.vector_to_parameters(
            torch.ones(sum(p.numel() for p in other.parameters()), dtype=torch.float64, device=device),
            other.parameters(),
        )
        other.load_state_dict(module.state_dict())
        ours, theirs = (m(problem.tokens, generator=self.generator(device)) for m in (module, other))
        assert_same(ours, theirs, 0.0)
        assert_all_close([module.slots(ours)], [other.slots(theirs)], 0.0)
