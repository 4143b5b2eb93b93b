"""What `psa bench --suite em` compares is comparable, and what it counts is counted. Speed itself is left to it."""

import importlib
import json
import math

import pytest
import torch
from contracts import draw
from tolerances import assert_all_close, assert_close

from psa.cli import main
from psa.experiments.bench.em import (
    Machine,
    bench_em,
    exponent,
    measure_machine,
    must_compute,
    must_move,
    peak_bytes,
    roofline_ms,
)
from psa.experiments.bench.em_forms import PackageSteps, Size, forms

TINY = Size(B=2, N=9, K=3, D=4, T=2)


def test_the_broadcast_form_computes_what_psa_proj_does():
    contenders = forms(TINY, "cpu")
    inputs = [draw(2, 9, 4, seed=1).requires_grad_(), draw(2, 3, 4, seed=2).requires_grad_()]
    found, gradients = [], []
    for name in ("psa-proj", "broadcast"):
        form = contenders[name].double()
        found.append(form(*inputs))
        weights = [layer.weight for layer in form.modules() if isinstance(layer, torch.nn.Linear)]
        loss = (found[-1] * draw(2, 3, 8, seed=3)).sum()
        gradients.append(torch.autograd.grad(loss, [*inputs, *weights[:3]]))
    assert_close(*found)
    assert_all_close(*gradients)


def test_the_bare_package_is_projections_agreement_and_mean():
    torch.manual_seed(0)
    form = PackageSteps(TINY, bare=True)
    tokens, module = draw(2, 9, 4, seed=1).float(), form.module
    torch.manual_seed(1)
    found = form(tokens, tokens[:, :3])
    torch.manual_seed(1)
    slots = module.slots_mu + module.slots_logsigma.exp() * torch.randn(2, 3, 4)
    keys, values = module.to_k(tokens), module.to_v(tokens)
    for _ in range(TINY.T):
        share = (module.to_q(slots) @ keys.mT / 2.0).softmax(1)
        slots = (share / share.sum(-1, keepdim=True)) @ values
    assert_close(found, slots, 1e-5)


def test_the_roofline_is_the_longer_of_moving_and_computing():
    # x, k, v; k and v in each of two steps, there and back; their gradients there and back; x again, and its own
    assert must_move(TINY) == 4 * (3 + 4 * 2 + 4 + 2) * 2 * 9 * 4
    assert must_compute(TINY) == 2 * 3 * 2 * 2 * 9 * 4 * 4 + 2 * 7 * 2 * 2 * 9 * 3 * 8
    slow = Machine(must_move(TINY) / 2.0, must_compute(TINY) / 1.0)
    assert roofline_ms(TINY, slow) == 2000.0
    assert roofline_ms(TINY, Machine(math.inf, slow.flops)) == 1000.0


def test_peak_memory_is_what_was_held_at_once():
    def work() -> None:
        one = torch.empty(1000)
        two = one + 1.0
        del one
        torch.empty(500)
        del two

    assert 8000 <= peak_bytes(work) < 8200


def test_an_exponent_is_the_slope_on_logarithmic_axes():
    assert_close(exponent({1: 5.0, 2: 20.0, 4: 80.0}), 2.0)


def test_all_forms_are_measured_at_all_sizes_and_ours_along_the_axes():
    seen: list[str] = []
    report = bench_em("cpu", (TINY,), 2, {"N": (4, 8), "T": (1, 2)}, seen.append)
    assert [cost.form for cost in report.costs] == [
        "psa-proj",
        "slot attention",
        "slot attention, whole",
        "broadcast",
    ]
    for cost in report.costs:
        assert 0 < cost.ms_low <= cost.ms <= cost.ms_high < math.inf
        assert 0 < cost.ratio_low <= cost.ratio <= cost.ratio_high
        assert cost.peak_bytes > 0
        assert (cost.roofline_ms > 0) == (cost.form == "psa-proj")
    assert report.costs[0].ratio == 1.0
    assert {axis: list(times) for axis, times in report.times.items()} == {"N": [4, 8], "T": [1, 2]}
    assert len(seen) == 9
    machine = measure_machine("cpu", 1, 1 << 16, 16)
    assert machine.bandwidth > 0
    assert machine.flops > 0


def test_broadcasting_takes_the_memory_of_slots_x_tokens_x_features():
    size = Size(B=2, N=256, K=7, D=32, T=3)
    report = bench_em("cpu", (size,), 1, {})
    peaks = {cost.form: cost.peak_bytes for cost in report.costs}
    assert peaks["broadcast"] > 4 * size.B * size.K * size.N * size.D * 3 * size.T
    assert peaks["broadcast"] > 10 * peaks["psa-proj"]


@pytest.mark.parametrize("suite", ["em", "aggregate"])
def test_the_command_prints_a_table_and_json(
    suite: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    steps = importlib.import_module("psa.cli.bench_steps")
    problem = steps.ReductionProblem(num_images=20, num_features=3, num_types=2, num_components=2, num_passes=2)
    for name, value in (("GRID", (TINY,)), ("AXES", {"N": (4, 8)}), ("EM_BLOCKS", 1), ("REDUCTION", problem)):
        monkeypatch.setattr(steps, name, value)
    monkeypatch.setattr(steps, "REDUCTION_BLOCKS", 1)
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--suite", suite, "--json"])
    assert caught.value.code == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    if suite == "em":
        assert [cost["form"] for cost in result["costs"]][::3] == ["psa-proj", "broadcast"]
        assert set(result["exponents"]) == {"N"}
    else:
        assert [cost["method"] for cost in result["costs"]] == ["psa", "scikit-learn"]
        assert all(cost["gaussians_per_second"] > 0 and cost["peak_bytes"] > 0 for cost in result["costs"])
        assert result["costs"][1]["speedup"] == 1.0
