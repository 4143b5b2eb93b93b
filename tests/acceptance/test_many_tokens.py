"""Issue 7: E/M steps on a million tokens, forward and backward, in flat memory, equal to the unchunked (a minute)."""

import json
import subprocess
import sys

import pytest

STEPS = """
import json, resource, sys
import torch
from psa.inference import slot_moments, token_chunks
from psa.inference.variants import build

N, K, D = 1_000_000, 8, 64
if sys.argv[1] == "unchunked":
    token_chunks.CACHED_BYTES = slot_moments.SQUARES_BYTES = 1 << 40
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
tokens = torch.randn(1, N, D, generator=generator)
tokens += 3.0 * torch.randn(K, D, generator=generator)[torch.randint(K, (1, N), generator=generator)]
tokens.requires_grad_()
initial = tokens.detach()[:, :K] + torch.randn(1, K, D, generator=generator)
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


@pytest.mark.slow
def test_a_million_tokens_take_flat_memory_and_equal_the_unchunked(tmp_path):
    import torch

    found, results = {}, {}
    for mode in ("chunked", "unchunked"):
        path = tmp_path / mode
        command = [sys.executable, "-c", STEPS, mode, str(path)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        found[mode], results[mode] = json.loads(run.stdout), torch.load(path, weights_only=True)
    chunked = found["chunked"]
    print({mode: f"{figures['peak'] / 2**20:.0f} MiB" for mode, figures in found.items()})
    # the centred tokens in two orders, their gradient in two; two arrays of slots x tokens for each of three steps
    assert chunked["peak"] < 4.5 * chunked["tokens"] + 10 * chunked["responsibilities"]
    for name, value in results["chunked"].items():
        away = (value - results["unchunked"][name]).abs()
        assert float(away.max()) < 1e-4 * float(value.abs().max()), name
