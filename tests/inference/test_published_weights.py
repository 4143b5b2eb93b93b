"""Weights of other implementations: what they compute, as loops over their own tensors; what is refused."""

import oracles
import pytest
import slot_attention
import torch
from contracts import draw, scrambled
from safetensors.torch import save_file
from tolerances import assert_close
from torch import Tensor, nn

from psa.errors import DataError
from psa.inference.published_weights import load_published, match

DIM, HIDDEN, K = 4, 6, 3


def linear(outputs: int, inputs: int, bias: bool = True) -> dict[str, Tensor]:
    return dict(nn.Linear(inputs, outputs, bias=bias).double().state_dict())


def norm(size: int) -> dict[str, Tensor]:
    return {"weight": draw(size, seed=7), "bias": draw(size, seed=8)}


def port(names: dict[str, str], bias: bool, prefix: str = "") -> dict[str, Tensor]:
    """A slot module's tensors; ``names`` from the transcription's name of a part to the port's."""
    parts = {
        "query": linear(DIM, DIM, bias),
        "key": linear(DIM, 5, bias),
        "value": linear(DIM, 5, bias),
        "gru": dict(nn.GRUCell(DIM, DIM).double().state_dict()),
        "norm_tokens": norm(5),
        "norm_slots": norm(DIM),
        "norm": norm(DIM),
        "mlp.0": linear(HIDDEN, DIM),
        "mlp.2": linear(DIM, HIDDEN),
    }
    return {f"{prefix}{names[part]}.{leaf}": t for part, leaves in parts.items() for leaf, t in leaves.items()}


CLEVR_PORT = {
    "query": "to_q", "key": "to_k", "value": "to_v", "gru": "gru", "norm_tokens": "norm_input",
    "norm_slots": "norm_slots", "norm": "norm_pre_ff", "mlp.0": "fc1", "mlp.2": "fc2",
}  # fmt: skip
BO_QSA = {
    "query": "project_q", "key": "project_k", "value": "project_v", "gru": "gru", "norm_tokens": "norm_feature",
    "norm_slots": "norm_slots", "norm": "norm_mlp", "mlp.0": "mlp.0", "mlp.2": "mlp.2",
}  # fmt: skip


def transcribed(state: dict[str, Tensor], names: dict[str, str], prefix: str = "") -> dict[str, Tensor]:
    """The port's tensors by the names of the transcriptions."""
    found = {}
    for part, theirs in names.items():
        for name, value in state.items():
            if name.startswith(f"{prefix}{theirs}."):
                found[part + name.removeprefix(prefix + theirs)] = value
    return found


def test_the_package_in_a_larger_model_gives_its_slots(tmp_path):
    torch.manual_seed(0)
    package = scrambled(slot_attention.SlotAttention(K, DIM).double())
    state = {f"slot_attention.{name}": value for name, value in package.state_dict().items()}
    save_file(state | {"encoder.fc1.weight": draw(2, 2, seed=1)}, tmp_path / "model.safetensors")
    module, report = load_published(tmp_path / "model.safetensors", num_slots=K)
    tokens = draw(2, 9, DIM, seed=1)
    torch.manual_seed(3)
    theirs = package(tokens)
    torch.manual_seed(3)
    assert_close(module(tokens).loc, theirs)
    assert module.spec.name == "sa"
    assert report.unused == ("encoder.fc1.weight",)
    assert report.matched["slot_attention.to_q.weight"] == "projections.query.weight"
    assert len(report.matched) == len(package.state_dict())
    assert "encoder.fc1.weight" in str(report)
    assert "not used" in str(report)


@pytest.mark.parametrize("start", [{"slots_mu": 1, "slots_log_sigma": 1}, {"slots_mu": 1, "slots_sigma": 1}])
@pytest.mark.parametrize("bias", [True, False])
def test_a_port_of_the_clevr_model_becomes_sa(start: dict[str, int], bias: bool):
    starts = {f"slot_attention.{name}": draw(1, 1, DIM, seed=5).square() for name in start}
    around = {"fc1.weight": draw(3, 3, seed=2), "encoder_cnn.conv1.weight": draw(3, 3, 5, 5, seed=3)}
    state = around | port(CLEVR_PORT, bias, "slot_attention.") | starts
    module, report = load_published(state, num_slots=K, epsilon=1e-3)
    tokens, initial = draw(2, 7, 5, seed=1), draw(2, K, DIM, seed=2)
    parameters = transcribed(state, CLEVR_PORT, "slot_attention.")
    slots, a = oracles.slot_attention(tokens, initial, parameters, 3, 1e-3, "unrolled")
    posterior = module(tokens, initial=initial)
    assert_close(posterior.loc, slots)
    assert_close(posterior.responsibilities, a)
    assert report.unused == tuple(around)
    scale = draw(1, 1, DIM, seed=5).square()
    expected = scale if "slots_sigma" in start else scale.exp()
    assert_close(module.initialiser.log_scale.exp(), expected)
    assert_close(module.initialiser.loc, scale)


def test_bo_qsa_weights_keep_their_queries_and_its_gradient():
    queries = draw(K, DIM, seed=6)
    state = port(BO_QSA, False, "slot_attn.slot_attention.") | {
        "slot_attn.slots_init.weight": queries,
        "slot_attn.mlp.1.weight": draw(DIM, 8, seed=2),  # of the features, not of the slots
    }
    module, report = load_published(state)
    assert (module.spec.name, module.spec.gradient, module.num_slots) == ("bo-qsa", "straight-through", K)
    tokens = draw(2, 7, 5, seed=1)
    parameters = transcribed(state, BO_QSA, "slot_attn.slot_attention.")
    slots, _ = oracles.slot_attention(tokens, queries.expand(2, -1, -1), parameters, 3, 1e-8, "straight-through")
    assert_close(module.eval()(tokens).loc, slots)
    assert report.unused == ("slot_attn.mlp.1.weight",)


def test_a_variant_may_be_named_and_columns_overridden():
    state = port(CLEVR_PORT, True) | {"slots_mu": draw(DIM, seed=1), "slots_log_sigma": draw(DIM, seed=2)}
    module, _ = load_published(state, "i-sa", num_slots=2, num_iterations=5, epsilon=0.5)
    assert (module.spec.name, module.num_iterations, module.spec.epsilon, module.num_slots) == ("i-sa", 5, 0.5, 2)
    with pytest.raises(DataError, match=r"weights: expected the parts of qsa: .*initialiser\.queries"):
        load_published(state, "qsa", num_slots=2)


def without(state: dict[str, Tensor], *ends: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.endswith(ends)}


def test_what_cannot_be_taken_is_said_in_a_line(tmp_path):
    whole = port(CLEVR_PORT, True) | {"slots_mu": draw(DIM, seed=1), "slots_log_sigma": draw(DIM, seed=2)}
    for state, expected in (
        ({"conv.weight": whole["to_q.weight"]}, r"weights: expected one slot module, .*to_q or project_q.*found none"),
        (
            whole | {f"other.{name}": value for name, value in whole.items()},
            "expected one slot module, .* found at the top, below other",
        ),
        (without(whole, "gru.weight_ih"), r"expected the parts of sa: Missing .*neural\.gru\.weight_ih"),
        (whole | {"slots_mu": draw(1, K, DIM, seed=1)}, r"expected the parts of sa: size mismatch .*initialiser\.loc"),
        (whole | {"to_v.weight": draw(DIM, 6, seed=1)}, r"size mismatch for projections\.value\.weight"),
        (
            without(whole, "log_sigma") | {"slots_sigma": -draw(DIM, seed=2).square()},
            "expected slots_sigma above 0, got -",
        ),
    ):
        with pytest.raises(DataError, match=expected) as caught:
            load_published(state, num_slots=K)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="weights: expected num_slots, since the file has no query for each slot"):
        load_published(whole)
    torch.save(whole, tmp_path / "model.pt")
    for name in ("model.pt", "none.safetensors"):
        with pytest.raises(DataError, match=rf"{name}: expected a safetensors file, .*safetensors\.torch\.save_file"):
            load_published(tmp_path / name)


def test_parts_of_another_module_of_the_model_are_not_taken():
    names = ["a.to_q.weight", "a.gru.weight_ih", "b.gru.weight_ih", "a.fc1.weight", "slots_mu", "b.slots_mu"]
    assert match(names, "file") == {
        "a.to_q.weight": "projections.query.weight",
        "a.gru.weight_ih": "neural.gru.weight_ih",
        "a.fc1.weight": "neural.mlp.0.weight",
        "slots_mu": "initialiser.loc",
    }
