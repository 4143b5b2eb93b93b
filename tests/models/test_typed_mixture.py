"""The program of typed slots against the program without types and scipy; the record of types and its file."""

import re
from dataclasses import replace
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from contracts import draw
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from safetensors.torch import save_file
from tolerances import FLOAT32, STANDARD_ERRORS, assert_close
from torch import Tensor

from psa.errors import RunError
from psa.models.local_mixture import LocalMixturePrior, local_mixture
from psa.models.typed_mixture import TypePrior, typed_mixture
from psa.runs import save_tensors


def doubles(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


TYPES = TypePrior(
    doubles([0.5, 0.3, 0.2]),
    doubles([[0.7, -0.2], [4.0, 1.0], [-3.0, 2.0]]),
    doubles([0.3, 1.0, 4.0]),
    doubles([1.5, 2.0, 3.0]),
    doubles([[0.8, 1.0], [0.4, 0.6], [2.0, 0.5]]),
)
NAMES = ("weights", "loc", "loc_strength", "precision_shape", "precision_rate")


def values_of(num_images: int, num_slots: int, num_tokens: int, seed: int = 0) -> dict[str, Tensor]:
    """Values of all latent sites."""
    pyro.set_rng_seed(seed)
    return {
        "weights": dist.Dirichlet(torch.ones(num_slots).double()).sample((num_images, 1)),
        "type": torch.randint(TYPES.num_types, (num_images, num_slots)),
        "precision": draw(num_images, num_slots, 2, seed=seed).exp(),
        "loc": 2 * draw(num_images, num_slots, 2, seed=seed + 1),
        "assignment": torch.randint(num_slots, (num_images, num_tokens)),
    }


def log_joint(program, values: dict[str, Tensor], *arguments) -> dict[str, Tensor]:
    """log density of every site by name, summed."""
    trace = poutine.trace(poutine.condition(program, values)).get_trace(*arguments)
    trace.compute_log_prob()
    return {name: trace.nodes[name]["log_prob_sum"] for name in (*values, "values")}


def test_every_site_has_the_density_of_the_equations():
    tokens, values = draw(2, 5, 2, seed=3), values_of(2, 3, 5)
    found = log_joint(typed_mixture, values, tokens, TYPES, 3, 0.4)
    v = {name: value.numpy() for name, value in values.items()}
    gamma, normal = scipy.stats.gamma, scipy.stats.norm
    own = v["type"]
    a, rate = TYPES.precision_shape.numpy()[own][..., None], TYPES.precision_rate.numpy()[own]
    scale = (TYPES.loc_strength.numpy()[own][..., None] * v["precision"]) ** -0.5
    of_token = [[(v["loc"][b, k], v["precision"][b, k]) for k in v["assignment"][b]] for b in range(2)]
    expected = {
        "weights": sum(scipy.stats.dirichlet([0.4] * 3).logpdf(v["weights"][b, 0]) for b in range(2)),
        "type": TYPES.weights.log().numpy()[own].sum(),
        "precision": gamma(a, scale=1 / rate).logpdf(v["precision"]).sum(),
        "loc": normal(TYPES.loc.numpy()[own], scale).logpdf(v["loc"]).sum(),
        "assignment": sum(values["weights"][b, 0, k].log() for b in range(2) for k in values["assignment"][b]),
        "values": sum(
            normal(m, p**-0.5).logpdf(tokens[b, n].numpy()).sum()
            for b in range(2)
            for n, (m, p) in enumerate(of_token[b])
        ),
    }
    for name, value in expected.items():
        assert_close(found[name], float(value), message=name)


def test_with_one_type_it_is_the_local_mixture():
    one = TypePrior(torch.ones(1).double(), *(getattr(TYPES, name)[1:2] for name in NAMES[1:]))
    prior = LocalMixturePrior(
        0.4, one.loc[0], float(one.loc_strength), float(one.precision_shape), one.precision_rate[0]
    )
    tokens, values = draw(2, 5, 2, seed=3), values_of(2, 3, 5) | {"type": torch.zeros(2, 3, dtype=torch.long)}
    typed = log_joint(typed_mixture, values, tokens, one, 3, 0.4)
    assert_close(typed.pop("type"), 0.0)
    del values["type"]
    plain = log_joint(local_mixture, values, tokens, prior, 3)
    assert_close(torch.stack(list(typed.values())), torch.stack(list(plain.values())))


def test_types_enumerated_in_the_program_are_summed_out():
    tokens, values = draw(2, 5, 2, seed=3), values_of(2, 3, 5)
    del values["type"]
    program = poutine.condition(config_enumerate(typed_mixture), values)
    loss = TraceEnum_ELBO(max_plate_nesting=2).loss(program, lambda *_: None, tokens, TYPES, 3, 0.4)
    joints = torch.empty(3, 2, 3, dtype=torch.float64)
    components = TYPES.components(tokens)
    for g in range(3):
        joints[g] = TYPES.weights[g].log()
        for b in range(2):
            for k in range(3):
                at = values["loc"][b, k], values["precision"][b, k]
                joints[g, b, k] += components.log_density(*at)[g]
    fixed = log_joint(typed_mixture, values_of(2, 3, 5), tokens, TYPES, 3, 0.4)
    rest = sum(fixed[name] for name in ("weights", "assignment", "values"))
    assert_close(-loss, float(rest + joints.logsumexp(0).sum()))


@pytest.mark.parametrize("kind", ["bool", "weights"])
def test_tokens_left_out_count_nowhere_and_may_hold_anything(kind: str):
    tokens, values = draw(1, 5, 2, seed=3), values_of(1, 3, 5)
    weights = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0]]).double()
    keep = weights[0] > 0
    tokens[:, ~keep] = torch.nan
    masked = log_joint(typed_mixture, values, tokens, TYPES, 3, 0.4, weights > 0 if kind == "bool" else weights)
    short = values | {"assignment": values["assignment"][:, keep]}
    alone = log_joint(typed_mixture, short, tokens[:, keep], TYPES, 3, 0.4)
    for name, value in alone.items():
        assert_close(masked[name], value, message=name)


def test_weights_of_tokens_multiply_their_factors():
    tokens, values = draw(1, 1, 2, seed=3), values_of(1, 3, 1)
    one = log_joint(typed_mixture, values, tokens, TYPES, 3, 0.4)
    often = log_joint(typed_mixture, values, tokens, TYPES, 3, 0.4, torch.full((1, 1), 2.5).double())
    for name in ("assignment", "values"):
        assert_close(often[name], 2.5 * one[name], message=name)


def test_draws_have_the_shares_and_means_of_the_types():
    pyro.set_rng_seed(0)
    trace = poutine.trace(poutine.uncondition(typed_mixture)).get_trace(torch.zeros(4000, 1, 2).double(), TYPES, 2, 0.4)
    types, loc = trace.nodes["type"]["value"], trace.nodes["loc"]["value"]
    share = torch.nn.functional.one_hot(types, 3).double().mean((0, 1))
    error = (TYPES.weights * (1 - TYPES.weights) / types.numel()).sqrt()
    assert bool(((share - TYPES.weights).abs() < STANDARD_ERRORS * error).all())
    for g in range(3):
        own = loc[types == g]  # Student t with 2 a > 2 degrees of freedom
        assert bool(((own.mean(0) - TYPES.loc[g]).abs() < STANDARD_ERRORS * own.std(0) / len(own) ** 0.5).all())


def test_the_file_holds_the_same_types(tmp_path: Path):
    TYPES.save(tmp_path / "types.safetensors")
    loaded = TypePrior.load(str(tmp_path / "types.safetensors"))
    assert all(torch.equal(getattr(loaded, name), getattr(TYPES, name)) for name in NAMES)


def test_foreign_files_are_refused_in_one_line(tmp_path: Path):
    path = tmp_path / "file.safetensors"
    every = {name: getattr(TYPES, name) for name in NAMES}

    def refused(message: str):
        with pytest.raises(RunError, match=message) as caught:
            TypePrior.load(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)

    refused("found nothing of that name")
    TYPES.save(path)
    path.write_bytes(path.read_bytes()[:-8])
    refused("cannot be read")
    save_file(every, path)
    refused("cannot be read")
    save_tensors(path, every, {"kind": "aggregate prior"})
    refused("expected slot types, got a file of tensors of another kind")
    for wrong in ({"loc": TYPES.loc}, every | {"weights": 2 * TYPES.weights}):
        save_tensors(path, wrong, {"kind": "slot types"})
        refused("expected slot types, got a file that holds none")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weights", torch.tensor([0.5, 0.3, 0.3]), "weights must be at least 0 and sum to 1, got a sum of 1.1"),
        ("weights", torch.tensor([0.9, 0.3, -0.2]), "weights must be at least 0 and sum to 1"),
        ("weights", torch.tensor([0.5, 0.5]), "weights must have shape (3,), got (2,)"),
        ("loc", torch.zeros(3), "loc must be (G, D) with G and D of at least 1, got (3,)"),
        ("loc", torch.zeros(0, 2), "loc must be (G, D) with G and D of at least 1, got (0, 2)"),
        ("loc", torch.full((3, 2), torch.nan), "loc must be finite"),
        ("loc_strength", torch.tensor([1.0, 0.0, 1.0]), "loc_strength must be positive, got 0.0"),
        ("precision_shape", torch.tensor([1.0, -1.0, 1.0]), "precision_shape must be positive, got -1.0"),
        ("precision_rate", torch.zeros(3, 2), "precision_rate must be positive, got 0.0"),
        ("precision_rate", torch.ones(3, 3), "precision_rate must have shape (3, 2), got (3, 3)"),
        ("precision_rate", torch.ones(3, 2, 2), "types have diagonal covariances alone: precision_rate must be (G, D)"),
    ],
)
def test_values_outside_their_support_are_refused(name: str, value: Tensor, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(TYPES, **{name: value})


def test_tokens_of_another_number_of_axes_are_refused():
    with pytest.raises(ValueError, match="loc has 2 axes, the tokens have 3"):
        TYPES.components(torch.zeros(1, 5, 3))


def test_components_follow_the_tokens(device: torch.device):
    like = torch.zeros(4, 2, dtype=torch.float32, device=device)
    components = TYPES.components(like)
    for tensor in (components.loc, components.strength, components.shape, components.rate):
        assert (tensor.dtype, tensor.device.type) == (torch.float32, device.type)
    assert_close(components.loc, TYPES.loc, FLOAT32)
