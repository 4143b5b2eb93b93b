"""Issue 7: E/M steps on a million tokens, forward and backward, in flat memory, equal to the unchunked (a minute)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tolerances import CONVERGED
from torch import Tensor

STEPS = """
import json, resource, sys
import torch
from psa.inference import slot_moments, token_chunks
from psa.inference.variants import build

N, K, D = int(sys.argv[3]), 8, 64
dtype = getattr(torch, sys.argv[4])
if sys.argv[1] == "unchunked":
    token_chunks.CACHED_BYTES = slot_moments.SQUARES_BYTES = 1 << 40
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
tokens = torch.randn(1, N, D, generator=generator, dtype=dtype)
tokens += 3.0 * torch.randn(K, D, generator=generator, dtype=dtype)[torch.randint(K, (1, N), generator=generator)]
tokens.requires_grad_()
initial = tokens.detach()[:, :K] + torch.randn(1, K, D, generator=generator, dtype=dtype)
member = build("em", num_slots=K, input_dim=D, slot_dim=D)


def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


before = peak()
posterior = member(tokens, initial=initial)
(posterior.loc.square().sum() + posterior.var.log().sum()).backward()
found = {"loc": posterior.loc, "var": posterior.var, "gradient": tokens.grad[:, ::1000] * N}
torch.save({name: value.detach() for name, value in found.items()}, sys.argv[2])
print(json.dumps({"peak": peak() - before, "tokens": 4 * N * D, "responsibilities": 4 * N * K}))
"""


def run_steps(path: Path, mode: str, num_tokens: int, dtype: str) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Bytes by name, and what was found."""
    command = [sys.executable, "-c", STEPS, mode, str(path), str(num_tokens), dtype]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout), torch.load(path, weights_only=True)


@pytest.mark.slow
def test_a_million_tokens_take_flat_memory(tmp_path: Path):
    found, _ = run_steps(tmp_path / "found", "chunked", 1_000_000, "float32")
    print({name: f"{value / 2**20:.0f} MiB" for name, value in found.items()})
    # the centred tokens in two orders, their gradient in two; two arrays of slots x tokens for each of three steps
    assert found["peak"] < 4.5 * found["tokens"] + 10 * found["responsibilities"]


@pytest.mark.slow
def test_many_tokens_in_chunks_equal_the_unchunked(tmp_path: Path):
    _, chunked = run_steps(tmp_path / "chunked", "chunked", 200_000, "float64")
    _, whole = run_steps(tmp_path / "whole", "unchunked", 200_000, "float64")
    for name, value in chunked.items():
        assert float((value - whole[name]).abs().max()) < CONVERGED * float(value.abs().max()), name
