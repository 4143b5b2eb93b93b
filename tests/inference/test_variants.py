"""The table of members: what each promises, and that every column can be overridden."""

import itertools
import re
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
import torch
from contracts import Problem, SlotInferenceContract, draw, loss_of, tensors_of
from tolerances import assert_close

from psa.inference.gradients import GRADIENTS
from psa.inference.initialisers import INITIALISERS
from psa.inference.readouts import READOUTS
from psa.inference.slot_inference import SlotInference
from psa.inference.updates import UPDATES
from psa.inference.variants import AGREEMENTS, PROJECTIONS, VARIANTS, VariantSpec, build, specify
from psa.models.local_mixture import COVARIANCES

FULL = ("em", "vb")  # the members that may have full covariances


@pytest.mark.parametrize("name", VARIANTS)
class TestEveryMember(SlotInferenceContract):
    pass


@pytest.mark.parametrize("name", FULL)
class TestFullCovariances(SlotInferenceContract):
    def make(self, name: str, problem: Problem, device: torch.device, **options: Any) -> SlotInference:
        return super().make(name, problem, device, **({"covariance": "full"} | options))


def runs(name: str, **overrides: Any) -> None:
    """Builds, infers, reads out and differentiates; all numbers finite."""
    torch.manual_seed(0)
    overrides = {"hidden_dim": 4, "num_iterations": 2} | overrides
    module = build(name, num_slots=2, input_dim=3, slot_dim=3, **overrides)
    tokens = draw(1, 5, 3, seed=1, dtype=torch.float32).requires_grad_()
    initial = draw(1, 2, 3, seed=2, dtype=torch.float32) if module.spec.initialiser == "given" else None
    posterior = module(tokens, initial=initial)
    assert all(bool(value.isfinite().all()) for value in tensors_of(posterior).values())
    loss_of(module, posterior).backward()
    assert tokens.grad is not None
    assert bool(tokens.grad.isfinite().all())


STEPS = [(a, u) for a, u in itertools.product(AGREEMENTS, UPDATES) if a != "variational" or u == "conjugate"]


@pytest.mark.parametrize(("agreement", "update"), STEPS)
@pytest.mark.usefixtures("unchecked")
def test_every_combination_of_columns_runs(agreement: str, update: str):
    booleans = (False, True)
    for neural, gradient, normalise, projections in itertools.product(booleans, GRADIENTS, booleans, PROJECTIONS):
        columns = {"agreement": agreement, "update": update, "neural": neural, "gradient": gradient}
        runs("psa-proj", normalise=normalise, projections=projections, bias=normalise, token_start=neural, **columns)
    for initialiser, gradient in itertools.product(INITIALISERS, GRADIENTS):
        runs("psa-proj", agreement=agreement, update=update, gradient=gradient, initialiser=initialiser)
    for readout, neural in itertools.product(READOUTS, booleans):
        runs("psa-proj", agreement=agreement, update=update, readout=readout, neural=neural)


OVERRIDES = [
    *[("initialiser", value) for value in INITIALISERS],
    *[("gradient", value) for value in GRADIENTS],
    *[("readout", value) for value in READOUTS],
    *[("projections", value) for value in PROJECTIONS],
    *[(column, value) for column in ("neural", "normalise", "token_start", "bias") for value in (False, True)],
    *[("epsilon", 0.0), ("epsilon", 1e-2), ("power", 0.5), ("power", 2), ("variance_floor", 0.1), ("hidden_dim", 1)],
]


@pytest.mark.parametrize("name", FULL)
@pytest.mark.usefixtures("unchecked")
def test_full_covariances_run_with_every_other_column(name: str):
    overrides = [("covariance", "full"), *OVERRIDES]
    for column, value in overrides:
        if column not in ("projections", "neural", "normalise") or value in ("none", False):
            runs(name, **({"covariance": "full"} | {column: value}))
    tokens = draw(1, 9, 3, seed=1)
    posterior = build(name, num_slots=2, input_dim=3, slot_dim=3, covariance="full", variance_floor=1e-3)(tokens)
    assert posterior.covariance is not None
    assert_close(posterior.var, posterior.covariance.diagonal(dim1=-2, dim2=-1))
    diagonal = build(name, num_slots=2, input_dim=3, slot_dim=3)
    assert diagonal(tokens, initial=posterior if name == "em" else posterior.loc).covariance is None


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        *[(name, "projections", value) for name in FULL for value in ("q", "qkv")],
        *[(name, column, True) for name in FULL for column in ("normalise", "neural")],
        *[("em", "update", value) for value in ("mean", "conjugate")],
        *[("em", "agreement", "dot"), ("vb", "agreement", "gaussian"), ("vb", "agreement", "dot")],
        *[(name, "power", 1.0) for name in VARIANTS if name not in FULL],
    ],
)
def test_full_covariances_elsewhere_are_refused(name: str, column: str, value: Any):
    spec = specify(name, **{column: value})
    message = (
        "covariance full needs gaussian agreement with moments, or variational with conjugate, without projections, "
        f"norms or a neural part; got {spec.agreement}, {spec.update}, projections {spec.projections!r}, "
        f"normalise {spec.normalise}, neural {spec.neural}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        specify(name, covariance="full", **{column: value})


def test_a_posterior_of_other_covariances_is_no_start_of_a_conjugate_member():
    tokens = draw(1, 9, 3, seed=1)
    for ours, theirs in (("diagonal", "full"), ("full", "diagonal")):
        posterior = build("vb", num_slots=2, input_dim=3, slot_dim=3, covariance=theirs)(tokens)
        member = build("vb", num_slots=2, input_dim=3, slot_dim=3, covariance=ours)
        with pytest.raises(ValueError, match=f"initial must have {ours} covariances, as this member has"):
            member(tokens, initial=posterior)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.usefixtures("unchecked")
def test_every_column_of_every_row_can_be_overridden(name: str):
    for column, value in OVERRIDES:
        assert getattr(specify(name, **{column: value}), column) == value
        runs(name, **{column: value})
    for agreement, update in STEPS:
        runs(name, agreement=agreement, update=update)


def test_the_table_has_the_rows_of_the_design():
    rows = {
        "sa": ("learned-gaussian", "dot", "mean", True, "unrolled", "mean", True, "qkv"),
        "i-sa": ("learned-gaussian", "dot", "mean", True, "implicit", "mean", True, "qkv"),
        "bo-sa": ("learned-gaussian", "dot", "mean", True, "straight-through", "mean", True, "qkv"),
        "qsa": ("queries", "dot", "mean", True, "unrolled", "mean", True, "qkv"),
        "i-qsa": ("queries", "dot", "mean", True, "implicit", "mean", True, "qkv"),
        "bo-qsa": ("noisy-queries", "dot", "mean", True, "straight-through", "mean", True, "qkv"),
        "smm": ("learned-gaussian", "gaussian", "moments", True, "unrolled", "moments-mlp", True, "qkv"),
        "psa": ("standard-normal", "gaussian", "moments", False, "unrolled", "normal", False, "q"),
        "psa-proj": ("standard-normal", "gaussian", "moments", False, "unrolled", "normal", False, "qkv"),
        "em": ("farthest", "gaussian", "moments", False, "unrolled", "normal", False, "none"),
        "vb": ("farthest", "variational", "conjugate", False, "unrolled", "normal", False, "none"),
    }
    columns = ("initialiser", "agreement", "update", "neural", "gradient", "readout", "normalise", "projections")
    assert {name: tuple(getattr(spec, column) for column in columns) for name, spec in VARIANTS.items()} == rows
    for name, spec in VARIANTS.items():
        dot = spec.agreement == "dot"
        assert (spec.bias, spec.epsilon) == ((True, 1e-8) if dot else (False, 0.0)), name
        assert spec.token_start is (name in ("em", "vb"))
        assert spec.power == 1.0
        assert spec.covariance == "diagonal"


def test_parameters_are_those_of_the_row():
    def parts(name: str) -> set[str]:
        module = build(name, num_slots=2, input_dim=3, slot_dim=3)
        return {".".join(part.split(".")[:-1]) for part, _ in module.named_parameters()}

    assert parts("em") == parts("vb") == set()
    assert parts("psa") == {"projections.query"}
    assert parts("psa-proj") == {"projections.query", "projections.key", "projections.value"}
    assert {"projections.norm_tokens", "neural.gru", "neural.norm", "initialiser", "readout.mlp.0"} <= parts("smm")


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        VARIANTS["sa"] = VARIANTS["em"]  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        VARIANTS["sa"].neural = False  # type: ignore[misc]
    before = VARIANTS["sa"]
    build("sa", num_slots=2, input_dim=3, slot_dim=3, neural=False)
    assert VARIANTS["sa"] is before
    assert before.neural


@pytest.mark.parametrize("update", ["mean", "moments"])
def test_variational_agreement_without_the_conjugate_update_is_refused(update: str):
    with pytest.raises(ValueError, match=f"variational agreement needs the conjugate update, got update '{update}'"):
        build("vb", num_slots=2, input_dim=3, slot_dim=3, update=update)


def test_an_unknown_member_is_refused_with_the_list():
    with pytest.raises(ValueError, match=f"variant must be one of {', '.join(VARIANTS)}, got 'slots'"):
        build("slots", num_slots=2, input_dim=3, slot_dim=3)


def test_an_unknown_column_is_refused_with_the_list():
    columns = ", ".join(field.name for field in fields(VariantSpec) if field.name not in ("name", "source"))
    with pytest.raises(ValueError, match=f"no column 'epsilom' to override; there are {columns}"):
        build("sa", num_slots=2, input_dim=3, slot_dim=3, epsilom=1.0)
    with pytest.raises(ValueError, match="no column 'source' to override"):
        build("sa", num_slots=2, input_dim=3, slot_dim=3, source="mine")


@pytest.mark.parametrize(
    ("column", "allowed"),
    [
        ("initialiser", INITIALISERS),
        ("agreement", AGREEMENTS),
        ("update", UPDATES),
        ("gradient", GRADIENTS),
        ("readout", READOUTS),
        ("projections", PROJECTIONS),
        ("covariance", COVARIANCES),
    ],
)
def test_an_unknown_value_is_refused_with_the_list(column: str, allowed: tuple[str, ...]):
    message = f"{column} must be one of {', '.join(allowed)}, got 'what'".replace("+", r"\+")
    with pytest.raises(ValueError, match=message):
        build("sa", num_slots=2, input_dim=3, slot_dim=3, **{column: "what"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": 0.0}, "power must be a finite number above 0, got 0.0"),
        ({"epsilon": -1e-8}, "epsilon must be a finite number at least 0.0, got -1e-08"),
        ({"variance_floor": float("nan")}, "variance_floor must be a finite number at least 0.0, got nan"),
        ({"hidden_dim": 0}, "hidden_dim must be an integer of at least 1, got 0"),
        ({"neural": 1}, "neural must be true or false, got 1"),
        ({"num_slots": 0}, "num_slots must be an integer of at least 1, got 0"),
        ({"input_dim": True}, "input_dim must be an integer of at least 1, got True"),
        ({"num_iterations": -1}, "num_iterations must be an integer of at least 1, got -1"),
        ({"hidden_dim": 2.5}, "hidden_dim must be an integer of at least 1, got 2.5"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_values_outside_their_support_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        build("sa", **({"num_slots": 2, "input_dim": 3, "slot_dim": 3} | options))


@pytest.mark.parametrize("name", ["em", "vb", "psa"])
def test_dimensions_must_agree_without_w_v(name: str):
    with pytest.raises(ValueError, match="slot_dim must equal input_dim where there is no W_k and W_v"):
        build(name, num_slots=2, input_dim=3, slot_dim=4)
    assert build(name, num_slots=2, input_dim=3, slot_dim=4, projections="qkv").slot_dim == 4


def test_normal_readout_is_sampled_from_the_posterior_and_others_are_points():
    torch.manual_seed(0)
    tokens = draw(1, 5, 3, seed=1)
    for readout in READOUTS:
        module = build("psa", num_slots=2, input_dim=3, slot_dim=3, readout=readout).double()
        posterior = module(tokens)
        point = module.slots(posterior)
        noise = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        sample = module.slots(posterior, sample=True, generator=torch.Generator().manual_seed(0))
        expected = posterior.loc + posterior.var.sqrt() * noise if readout == "normal" else point
        assert_close(sample, expected)
        if readout in ("mean", "normal"):
            assert_close(point, posterior.loc)


def test_moments_readout_sees_mean_and_log_std_and_the_query_readout_its_query():
    tokens = draw(1, 5, 3, seed=1)
    for readout, other in (("moments-mlp", "var"), ("query-mlp", "initial_loc")):
        torch.manual_seed(0)
        module = build("psa", num_slots=2, input_dim=3, slot_dim=3, readout=readout).double()
        posterior, layers = module(tokens), module.readout
        second = 0.5 * posterior.var.log() if other == "var" else posterior.initial_loc
        together = torch.cat([posterior.loc, second], -1)
        if readout == "query-mlp":
            together = (together - together.mean(-1, keepdim=True)) / (
                together.var(-1, keepdim=True, correction=0) + 1e-5
            ).sqrt()
        hidden = (together @ layers.mlp[0].weight.T + layers.mlp[0].bias).clamp(min=0)
        assert_close(module.slots(posterior), hidden @ layers.mlp[2].weight.T + layers.mlp[2].bias)
