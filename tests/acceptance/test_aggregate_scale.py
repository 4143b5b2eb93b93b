"""Issue 4: the slots of 1,000,000 images (K = 7, D = 64) become 64 components in under 2 GiB (5 to 10 minutes)."""

import json
import subprocess
import sys

import pytest

NUM_IMAGES = 1_000_000
GIB = 1 << 30
REDUCE = """
import json, resource, sys, time
import torch
from psa.inference.aggregate import reduce
from psa.inference.posterior_stream import SlotChunk
from psa.inference.reduction import ReductionOptions

NUM_IMAGES, SLOTS, FEATURES, TYPES, AT_ONCE = int(sys.argv[1]), 7, 64, 40, 4000
torch.set_num_threads(1)
types = 2.0 * torch.randn(TYPES, FEATURES, generator=torch.Generator().manual_seed(0))
began, sums = [], torch.zeros(3, FEATURES, dtype=torch.float64)


def posteriors():
    began.append(time.monotonic())
    for first in range(0, NUM_IMAGES, AT_ONCE):
        generator = torch.Generator().manual_seed(1 + first)
        size = (min(AT_ONCE, NUM_IMAGES - first), SLOTS)
        own = torch.randint(TYPES, size, generator=generator)
        loc = types[own] + torch.randn(*size, FEATURES, generator=generator)
        var = 0.1 + 0.1 * torch.rand(*size, FEATURES, generator=generator)
        weights = torch.rand(*size, generator=generator).softmax(1)
        if len(began) == 1:
            share = weights[..., None] / NUM_IMAGES
            for row, part in zip(sums, (share * loc, share * loc.square(), share * var)):
                row += part.sum((0, 1), dtype=torch.float64)
        yield SlotChunk(weights, loc, var)


prior = reduce(posteriors, 64, options=ReductionOptions(num_passes=4, num_restarts=2, tol=0.0))
began.append(time.monotonic())
mean, variance = sums[0], sums[1] + sums[2] - sums[0].square()
print(json.dumps({
    "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    "readings": [later - earlier for earlier, later in zip(began, began[1:])],
    "components": prior.num_components,
    "mean": float((prior.mean - mean).abs().max()),
    "variance": float((prior.variance / variance - 1).abs().max()),
    "away": float(torch.cdist(types, prior.loc).amin(1).max()),
}))
"""


@pytest.mark.slow
def test_a_million_images_are_reduced_in_two_gibibytes():
    run = subprocess.run([sys.executable, "-c", REDUCE, str(NUM_IMAGES)], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    readings = ", ".join(f"{seconds:.0f}" for seconds in found["readings"])
    print(
        f"{NUM_IMAGES:,} images, 7 slots, 64 features, float32: {found['components']} components, peak "
        f"{found['peak'] / GIB:.2f} GiB; seconds: survey, sample with its EM, passes: {readings}; mean off by "
        f"{found['mean']:.1e}, variances by {found['variance']:.1e}; the farthest of 40 types is {found['away']:.2f} "
        "from a component"
    )
    assert found["peak"] < 2 * GIB
    assert found["mean"] < 1e-5
    assert found["variance"] < 1e-5
