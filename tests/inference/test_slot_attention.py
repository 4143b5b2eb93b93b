"""The members with dot agreement, against the slot-attention package and against plain loops."""

import inspect
import math

import oracles
import pytest
import slot_attention
import torch
from contracts import draw, parameters_of, scrambled
from tolerances import assert_close

from psa.errors import DataError
from psa.inference.attention import attend, slot_scores
from psa.inference.em import dot_natural
from psa.inference.slot_attention import SlotAttention
from psa.inference.variants import build
from psa.records import SlotPosterior


def package_and_ours(num_slots: int = 3, dim: int = 5, **options) -> tuple[torch.nn.Module, SlotAttention]:
    torch.manual_seed(0)
    package = scrambled(slot_attention.SlotAttention(num_slots, dim, **options).double())
    return package, SlotAttention(num_slots, dim, **options).double().load_package_weights(package.state_dict())


OURS_BY_PACKAGE = {
    "slots_mu": "initialiser.loc",
    "slots_logsigma": "initialiser.log_scale",
    "to_q": "projections.query",
    "to_k": "projections.key",
    "to_v": "projections.value",
    "gru": "neural.gru",
    "mlp": "neural.mlp",
    "norm_input": "projections.norm_tokens",
    "norm_slots": "projections.norm_slots",
    "norm_pre_ff": "neural.norm",
}


@pytest.mark.parametrize("options", [{}, {"iters": 1}, {"iters": 5, "eps": 1e-2, "hidden_dim": 7}])
def test_sa_equals_the_package_in_values_and_gradients(options: dict):
    package, ours = package_and_ours(**options)
    ours_in, theirs_in = (draw(2, 9, 5, seed=1).requires_grad_() for _ in range(2))
    torch.manual_seed(3)
    theirs = package(theirs_in)
    torch.manual_seed(3)  # one draw each: the same noise
    slots = ours(ours_in)
    assert_close(slots, theirs)
    weights = draw(*slots.shape, seed=4)
    (slots * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert_close(ours_in.grad, theirs_in.grad)
    named = dict(ours.inference.named_parameters())
    for name, parameter in package.named_parameters():
        head, _, rest = name.partition(".")
        gradient = named.pop(".".join(filter(None, (OURS_BY_PACKAGE[head], rest)))).grad
        assert_close(gradient, parameter.grad, message=name)
    assert not named


def test_sa_from_a_given_start_equals_the_package():
    package, ours = package_and_ours()
    tokens = draw(2, 9, 5, seed=1)
    torch.manual_seed(3)
    noise = torch.randn(2, 3, 5, dtype=torch.float64)
    initial = package.slots_mu + package.slots_logsigma.exp() * noise
    torch.manual_seed(3)
    assert_close(ours.posterior(tokens, initial=initial).loc, package(tokens))


def test_drop_in_has_the_package_constructor_and_call():
    for method in ("__init__", "forward"):
        theirs = inspect.signature(getattr(slot_attention.SlotAttention, method)).parameters.values()
        ours = list(inspect.signature(getattr(SlotAttention, method)).parameters.values())
        assert [(p.name, p.default) for p in theirs] == [(p.name, p.default) for p in ours[: len(theirs)]]
        extra = ours[len(theirs) :]
        assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in extra)
    package, ours = package_and_ours()
    tokens = draw(2, 9, 5, seed=1)
    assert ours(tokens).shape == package(tokens).shape
    assert ours(tokens, num_slots=4).shape == package(tokens, num_slots=4).shape
    assert ours(tokens, 4).shape == package(tokens, 4).shape


def test_drop_in_hides_any_member():
    module = SlotAttention(3, 5, variant="psa-proj", hidden_dim=4, power=0.5)
    assert module.inference.spec.name == "psa-proj"
    assert module.inference.spec.hidden_dim == 5  # at least dim, as in the package
    assert module.inference.spec.power == 0.5
    assert isinstance(module.posterior(draw(2, 9, 5, seed=1, dtype=torch.float32)), SlotPosterior)


def test_load_package_weights_refuses_what_is_not_the_package():
    package, ours = package_and_ours()
    with pytest.raises(DataError, match=r"expected the parameters of a SlotAttention module, got 'to_o\.weight'"):
        ours.load_package_weights(package.state_dict() | {"to_o.weight": torch.zeros(5, 5)})
    incomplete = {name: value for name, value in package.state_dict().items() if name != "slots_mu"}
    with pytest.raises(DataError, match="Missing key"):
        ours.load_package_weights(incomplete)
    with pytest.raises(DataError, match="size mismatch"):
        SlotAttention(3, 6).load_package_weights(package.state_dict())


@pytest.mark.parametrize("seed", range(5))
def test_dot_agreement_is_the_posterior_of_an_isotropic_mixture(seed: int):
    keys, queries = 2 * draw(2, 9, 4, seed=seed), 2 * draw(2, 3, 4, seed=seed + 100)
    origin = keys.mean(1, keepdim=True)
    scores = slot_scores(keys - origin, dot_natural(queries, origin))
    agreement = attend(scores).responsibilities
    assert_close(agreement, torch.stack([oracles.isotropic_posterior(keys[b], queries[b]) for b in range(2)]))


def test_dot_members_infer_the_isotropic_posterior():
    module = build("sa", num_slots=3, input_dim=4, slot_dim=4, num_iterations=1, projections="none", normalise=False)
    tokens, initial = draw(2, 9, 4, seed=1), draw(2, 3, 4, seed=2)
    posterior = module.double()(tokens, initial=initial)
    expected = torch.stack([oracles.isotropic_posterior(tokens[b], initial[b]) for b in range(2)])
    assert_close(posterior.responsibilities, expected)


@pytest.mark.parametrize("name", ["sa", "i-sa", "bo-sa", "qsa", "i-qsa", "bo-qsa"])
@pytest.mark.parametrize("num_iterations", [1, 3])
def test_member_equals_its_transcription_in_values_and_gradients(name: str, num_iterations: int):
    torch.manual_seed(0)
    module = scrambled(
        build(name, num_slots=3, input_dim=4, slot_dim=5, num_iterations=num_iterations, hidden_dim=6, epsilon=1e-3)
        .double()
        .eval()
    )
    gradient = {"i": "implicit", "bo": "straight-through"}.get(name.split("-")[0], "unrolled")
    tokens = draw(2, 6, 4, seed=1).requires_grad_()
    initial = draw(2, 3, 5, seed=2).requires_grad_()
    posterior = module(tokens, initial=initial)
    parameters = parameters_of(module)
    slots, a = oracles.slot_attention(tokens, initial, parameters, num_iterations, 1e-3, gradient)
    assert_close(posterior.loc, slots)
    assert_close(posterior.responsibilities, a)
    weights, more = draw(*slots.shape, seed=3), draw(*a.shape, seed=4)
    inputs = [tokens, *parameters.values()] + [initial] * (gradient != "implicit")
    ours = torch.autograd.grad((posterior.loc * weights).sum() + (posterior.responsibilities * more).sum(), inputs)
    theirs = torch.autograd.grad((slots * weights).sum() + (a * more).sum(), inputs)
    for one, other, label in zip(ours, theirs, ["tokens", *parameters, "initial"], strict=False):
        assert_close(one, other, message=label)


def test_mean_updates_report_the_variance_of_what_each_slot_attends_to():
    module = scrambled(build("sa", num_slots=3, input_dim=4, slot_dim=5, variance_floor=0.01).double())
    tokens, initial = draw(1, 6, 4, seed=1), draw(1, 3, 5, seed=2)
    posterior = module(tokens, initial=initial)
    parameters = parameters_of(module)
    values = [oracles.linear(oracles.layer_norm(z, parameters, "norm_tokens"), parameters, "value") for z in tokens[0]]
    for k in range(3):
        a = posterior.responsibilities[0, k] + 1e-8
        share = a / a.sum()
        mean = sum(share[n] * values[n] for n in range(6))
        var = sum(share[n] * (values[n] - mean) ** 2 for n in range(6)) + 0.01
        assert_close(posterior.var[0, k], var)


def test_power_of_dot_agreement_scales_its_logits():
    keys = draw(1, 7, 4, seed=1)
    module = build("sa", num_slots=3, input_dim=4, slot_dim=4, projections="none", normalise=False, power=0.3).double()
    initial = draw(1, 3, 4, seed=2)
    expected = (0.3 * initial @ keys.mT / math.sqrt(4)).softmax(1)
    assert_close(module(keys, initial=initial, num_iterations=1).responsibilities, expected)
