"""The program whose image is a code, held to sums over all codes, to hand-computed parts, and to what trains what."""

import itertools

import pyro
import pytest
import torch
from tolerances import CONVERGED, STANDARD_ERRORS, assert_close
from torch import Tensor

from psa.models.code_scene import CodeSceneModel, SlotCode
from psa.models.decoders import SlotTransformer
from psa.models.decoders.code import CodeTransformerDecoder, grid_masks
from psa.models.dvae import CodeDecoder, one_hot

VOCABULARY, GRID, PATCH = 3, (2, 2), 4
LENGTH, SLOT_DIM, SIGMA = 4, 5, 0.3
CODES = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))  # all 81


def decoder() -> CodeTransformerDecoder:
    torch.manual_seed(0)
    transformer = SlotTransformer(SLOT_DIM, LENGTH, 8, num_layers=2, num_heads=2)
    found = CodeTransformerDecoder(transformer, CodeDecoder(GRID, VOCABULARY, 8, PATCH)).double().eval()
    with torch.no_grad():  # probabilities far from uniform
        found.head.weight.mul_(4.0)
        found.embedding.weight.mul_(20.0)
    return found


def slots(batch: int = 1, num_slots: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.randn(batch, num_slots, SLOT_DIM, dtype=torch.float64, generator=generator)


def images(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def code_of(words: Tensor) -> Tensor:
    return one_hot(words, VOCABULARY, like=images())


def log_probs_of_all() -> Tensor:
    with torch.no_grad():
        return SlotCode(decoder(), slots().expand(len(CODES), -1, -1)).log_prob(code_of(CODES))


def test_probabilities_of_all_codes_sum_to_one():
    found = log_probs_of_all().exp()
    assert_close(found.sum(), 1.0)
    assert float(found.max()) > 3 / len(CODES)


def test_a_code_has_the_product_of_the_conditionals_of_its_words():
    """Each conditional from the words before alone, the rest of the code made up."""
    net, expected = decoder(), torch.zeros(len(CODES), dtype=torch.float64)
    with torch.no_grad():
        for place in range(LENGTH):
            seen = CODES.clone()
            seen[:, place:] = 0
            table = net.log_probs(seen, slots().expand(len(CODES), -1, -1))[:, place]
            expected += table.gather(1, CODES[:, place, None])[:, 0]
    assert_close(log_probs_of_all(), expected)


def test_draws_have_the_probabilities():
    torch.manual_seed(0)
    draws = 4000
    codes = SlotCode(decoder(), slots()).sample(torch.Size((draws,)))[:, 0].argmax(-1)
    places = VOCABULARY ** torch.arange(LENGTH - 1, -1, -1)
    counts = torch.bincount((codes * places).sum(1), minlength=len(CODES)).double()
    probs = log_probs_of_all().exp()
    error = (probs * (1 - probs) / draws).sqrt()
    assert bool(((counts / draws - probs).abs() <= STANDARD_ERRORS * error).all())


def test_the_decoded_code_takes_the_likeliest_word_after_the_words_before():
    net, chosen = decoder(), torch.zeros(1, LENGTH, dtype=torch.int64)
    with torch.no_grad():
        for place in range(LENGTH):
            chosen[:, place] = net.log_probs(chosen, slots())[:, place].argmax(-1)
        assert_close(net(slots()).mean, net.painter.picture(chosen))


def test_a_relaxed_code_counts_as_its_words_and_gets_no_gradient():
    words = CODES[[5, 40]]
    relaxed = (0.6 * code_of(words) + 0.4 / VOCABULARY).requires_grad_()
    both = slots().expand(2, -1, -1).clone().requires_grad_()
    found = SlotCode(decoder(), both).log_prob(relaxed)
    assert_close(found, log_probs_of_all()[[5, 40]])
    found.sum().backward()
    assert relaxed.grad is None
    assert both.grad is not None
    assert float(both.grad.abs().sum()) > 0


def model(kl_weight: float = 1.0) -> CodeSceneModel:
    return CodeSceneModel(decoder(), 3, SLOT_DIM, "normal", SIGMA, kl_weight).double()


@pytest.mark.parametrize("kl_weight", [1.0, 0.0])
def test_the_log_joint_is_the_words_and_the_pixels_and_the_weighted_prior(kl_weight):
    program, words, found = model(kl_weight), CODES[[7, 60]], slots(2)
    trace = pyro.poutine.trace(pyro.condition(program, {"slot": found, "code": code_of(words)})).get_trace(images())
    table = program.decoder.log_probs(words, found)
    log_words = sum(float(table[b, n, words[b, n]].detach()) for b in range(2) for n in range(LENGTH))
    picture = program.decoder.painter.picture(words)
    log_pixels = torch.distributions.Normal(picture, SIGMA).log_prob(images()).sum()
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(found).sum()
    assert_close(trace.log_prob_sum(), log_words + log_pixels + kl_weight * log_prior)


def test_the_program_draws_words_from_the_slots_and_pixels_from_the_words():
    pyro.set_rng_seed(0)
    program = model()
    trace = pyro.poutine.trace(pyro.poutine.uncondition(program)).get_trace(images(50))
    code, picture = trace.nodes["code"]["value"], trace.nodes["image"]["value"]
    assert_close(code.sum(-1), torch.ones(50, LENGTH))
    residual = (picture - program.decoder.painter(code)).detach() / SIGMA
    assert_close(residual.square().mean(), 1.0, STANDARD_ERRORS * (2 / residual.numel()) ** 0.5)
    drawn = program.draw_images(slots(50))
    assert drawn.shape == (50, 3, 8, 8)
    assert float((drawn - program.decoder.draw(slots(50)).mean).detach().std()) > 0.5 * SIGMA


def test_masks_of_cells_sum_to_one_and_keep_the_cells_centres():
    shares = torch.rand(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    shares = shares / shares.sum(1, keepdim=True)
    masks = grid_masks(shares, GRID, (6, 6)).exp()
    assert_close(masks.sum(1), torch.ones(2, 6, 6))
    centres = masks[:, :, 1::3, 1::3].flatten(2)
    assert_close(centres, shares, CONVERGED)


def test_slots_left_out_have_no_part_in_a_decoded_code():
    net, both, active = decoder(), slots(2, 4), torch.tensor([[True, False, True, True], [False, True, True, True]])
    scene = net(both, active)
    for image in range(2):
        alone = net(both[image : image + 1, active[image]])
        assert_close(scene.mean[image], alone.mean[0])
        assert_close(scene.masks[image, active[image]], alone.masks[0])
    assert not bool(scene.masks[~active].any())
