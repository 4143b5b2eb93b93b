"""When the fused kernels are chosen, and that they pass their tests in Triton's interpreter on a CPU."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from contracts import draw

from psa.errors import ConfigError
from psa.inference import fused_moments as host
from psa.inference.fused_moments import chosen, fused_moments, unfit
from psa.inference.slot_moments import slot_moments

ROOT = Path(__file__).resolve().parents[2]
OF_THE_INTERPRETER = ("tests/inference/test_kernels.py", "tests/experiments/test_bench_fused.py")
FLOAT = torch.float32


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: pip install psa-slots[triton]")
def test_kernels_pass_their_tests_in_the_interpreter():
    """In a process of its own: Triton looks at TRITON_INTERPRET when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *OF_THE_INTERPRETER]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.fixture
def _with_triton(monkeypatch):
    monkeypatch.setattr(host, "installed", lambda: True)
    monkeypatch.setattr(host, "interpreted", lambda: False)


@pytest.mark.usefixtures("_with_triton")
@pytest.mark.parametrize(
    ("tokens", "num_slots", "reason"),
    [
        (draw(1, 3, 2, seed=0), 2, "tokens are torch.float64 and torch.float64, not both float32"),
        (draw(1, 3, 2, seed=0, dtype=FLOAT), 65, "65 slots of 2 features are more than 64 of 256"),
        (draw(1, 3, 257, seed=0, dtype=FLOAT), 2, "2 slots of 257 features are more than 64 of 256"),
        (torch.empty(1, 2**24, 128, device="meta"), 2, "16777216 tokens of 128 features an image are 2"),
        (draw(1, 3, 2, seed=0, dtype=FLOAT), 2, "tokens are on cpu, not on a CUDA device"),
    ],
)
def test_what_the_kernels_cannot_do_is_said(tokens, num_slots, reason):
    assert str(unfit(tokens, tokens, num_slots)).startswith(reason)
    natural = torch.zeros(1, num_slots, 2 * tokens.shape[2] + 1)
    with pytest.raises(ValueError, match=f"the fused kernels cannot run: {reason}"):
        fused_moments(tokens, tokens, natural)


def test_without_triton_a_message_names_the_extra(monkeypatch):
    monkeypatch.setattr(host, "installed", lambda: False)
    monkeypatch.setenv("PSA_FUSED", "always")
    tokens = draw(1, 3, 2, seed=0, dtype=FLOAT)
    with pytest.raises(ConfigError, match=r"^PSA_FUSED=always: Triton is not installed \(pip install psa-slots\[trito"):
        chosen(tokens, tokens, 2)


def test_slot_moments_heeds_the_setting(monkeypatch):
    monkeypatch.setattr(host, "installed", lambda: False)
    tokens, natural = draw(1, 3, 2, seed=0, dtype=FLOAT), draw(1, 2, 5, seed=1, dtype=FLOAT)
    monkeypatch.setenv("PSA_FUSED", "always")
    with pytest.raises(ConfigError, match=r"^PSA_FUSED=always: "):
        slot_moments(tokens, tokens, natural)
    monkeypatch.setenv("PSA_FUSED", "never")
    assert bool(slot_moments(tokens, tokens, natural).mean.isfinite().all())


def test_a_cpu_never_asks_for_triton_by_itself(monkeypatch):
    def asked() -> bool:
        raise AssertionError("asked for Triton")

    monkeypatch.setattr(host, "installed", asked)
    tokens = draw(1, 3, 2, seed=0, dtype=FLOAT)
    monkeypatch.delenv("PSA_FUSED", raising=False)
    assert not chosen(tokens, tokens, 2)
    monkeypatch.setenv("PSA_FUSED", "never")
    assert not chosen(tokens, tokens, 2)


def test_another_setting_is_refused(monkeypatch):
    monkeypatch.setenv("PSA_FUSED", "yes")
    tokens = draw(1, 3, 2, seed=0, dtype=FLOAT)
    with pytest.raises(ConfigError, match=r"^PSA_FUSED=yes: expected one of auto, always, never$"):
        chosen(tokens, tokens, 2)
