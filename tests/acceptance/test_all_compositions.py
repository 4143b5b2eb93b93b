"""Every variant with every decoder, objective and likelihood: a step each (minutes)."""

import itertools

import pytest
from compositions import DECODERS, OBJECTIVES, compose, steps

from psa.inference.variants import VARIANTS


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("unchecked")
def test_a_variant_steps_with_every_decoder_objective_and_likelihood(variant: str):
    for decoder, values, likelihood in itertools.product(DECODERS, OBJECTIVES, ("normal", "mixture")):
        steps(compose(variant, decoder, values, f"objective.likelihood={likelihood}"))
