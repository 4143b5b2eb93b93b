"""The gradient column: what reaches where slots started."""

from dataclasses import dataclass

import pytest
import torch
from contracts import draw, scrambled
from tolerances import assert_close
from torch import Tensor

from psa.inference.em import MixtureState
from psa.inference.gradients import GRADIENTS, iterate
from psa.inference.slot_inference import SlotInference
from psa.inference.variants import VARIANTS, build
from psa.records import SlotPosterior


def member(name: str, **options) -> SlotInference:
    torch.manual_seed(0)
    options = {"num_iterations": 3, "hidden_dim": 6} | options
    return scrambled(build(name, num_slots=3, input_dim=4, slot_dim=4, **options).double())


@pytest.mark.parametrize("name", ["i-sa", "i-qsa"])
@pytest.mark.parametrize("num_iterations", [1, 3])
def test_implicit_gradients_leave_the_initialiser_none(name: str, num_iterations: int):
    module, tokens = member(name, num_iterations=num_iterations), draw(2, 6, 4, seed=1).requires_grad_()
    module(tokens).loc.square().sum().backward()
    gradients = {part: parameter.grad for part, parameter in module.named_parameters()}
    assert all(gradient is None for part, gradient in gradients.items() if part.startswith("initialiser"))
    assert all(gradient is not None for part, gradient in gradients.items() if not part.startswith("initialiser"))
    assert bool((tokens.grad != 0).any())


@pytest.mark.parametrize("name", VARIANTS)
def test_implicit_gradients_are_those_of_one_step_from_a_constant_state(name: str):
    module, tokens = member(name, gradient="implicit"), draw(2, 6, 4, seed=1).requires_grad_()
    initial = draw(2, 3, 4, seed=2)
    state = module(tokens.detach(), initial=initial, num_iterations=2)
    if module.spec.update == "mean":
        start: object = state.loc.detach()
    else:
        start = _state_of(state)
    unrolled = member(name, gradient="unrolled")
    weights, results = draw(2, 3, 4, seed=3), []
    for maker, options in ((module, {"initial": initial}), (unrolled, {"initial": start, "num_iterations": 1})):
        posterior = maker(tokens, **options)
        inputs = {"tokens": tokens} | dict(maker.named_parameters())
        loss = (posterior.loc * weights).sum() + posterior.var.log().sum()
        gradients = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
        results.append((posterior, dict(zip(inputs, gradients, strict=True))))
    (whole, ours), (last, expected) = results
    assert_close(whole.loc, last.loc)
    assert_close(whole.var, last.var)
    for part, gradient in expected.items():
        assert (gradient is None) == (ours[part] is None), part
        if gradient is not None:
            assert_close(ours[part], gradient, message=part)


def _state_of(posterior: SlotPosterior) -> MixtureState:
    state = MixtureState(
        posterior.loc,
        posterior.var,
        posterior.weights.log(),
        posterior.covariance,
        posterior.concentration,
        posterior.loc_strength,
        posterior.precision_shape,
        posterior.precision_rate,
    )
    return state.map(Tensor.detach)


def test_bo_qsa_queries_get_the_last_steps_jacobian_alone():
    module, tokens = member("bo-qsa").eval(), draw(1, 6, 4, seed=1)
    queries = module.get_parameter("initialiser.queries")
    before_last = module(tokens, num_iterations=2).loc.detach()

    def last_step(slots: Tensor) -> Tensor:
        return member_step(module, tokens, slots)

    jacobian = torch.autograd.functional.jacobian(last_step, before_last).reshape(12, 12)
    loc = module(tokens).loc.flatten()
    ours = torch.stack([torch.autograd.grad(entry, queries, retain_graph=True)[0].flatten() for entry in loc])
    assert_close(ours, jacobian)
    unrolled = member("bo-qsa", gradient="unrolled").eval()(tokens, initial=queries).loc.flatten()
    whole = torch.stack([torch.autograd.grad(entry, queries, retain_graph=True)[0].flatten() for entry in unrolled])
    assert float((whole - jacobian).abs().max()) > 1e-3  # the test can tell


def member_step(module: SlotInference, tokens: Tensor, slots: Tensor) -> Tensor:
    """One step of the unrolled member with the same weights."""
    unrolled = member(module.spec.name, gradient="unrolled").eval()
    return unrolled(tokens, initial=slots, num_iterations=1).loc


def test_gradients_do_not_change_values():
    tokens, initial = draw(2, 6, 4, seed=1), draw(2, 3, 4, seed=2)
    for name in ("sa", "smm", "psa-proj", "vb"):
        expected = member(name)(tokens, initial=initial)
        for gradient in ("implicit", "straight-through"):
            actual = member(name, gradient=gradient)(tokens, initial=initial)
            assert_close(actual.loc, expected.loc)
            assert_close(actual.var, expected.var)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_steps_record_gradients_only_where_they_are_wanted(gradient: str):
    @dataclass(frozen=True)
    class Result:
        state: MixtureState

    recorded = []

    def step(state: MixtureState) -> Result:
        recorded.append(torch.is_grad_enabled())
        return Result(state)

    start = MixtureState(draw(1, 2, 3, seed=1), torch.ones(1, 2, 3).double(), torch.zeros(1, 2).double())
    iterate(step, start, 3, gradient)
    assert recorded == [gradient == "unrolled"] * 2 + [True]
    recorded.clear()
    with torch.no_grad():
        iterate(step, start, 3, gradient)
    assert recorded == [False] * 3
