"""The discrete VAE: its relaxation, its gradients, what a word sees, and that training makes the pictures better."""

import pytest
import torch
from tolerances import ALGEBRA, STANDARD_ERRORS, assert_close
from torch import Tensor
from torch.distributions import RelaxedOneHotCategorical

from psa.models.dvae import CodeDecoder, CodeEncoder, draw_code, one_hot, temperature_at

VOCABULARY = 5


def log_probs(batch: int = 1, words: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, words, VOCABULARY, dtype=torch.float64, generator=generator).log_softmax(-1)


def images(batch: int = 2, size: int = 16) -> Tensor:
    return torch.rand(batch, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def within_errors(counts: Tensor, probs: Tensor, draws: int) -> bool:
    error = (probs * (1 - probs) / draws).sqrt()
    return bool(((counts / draws - probs).abs() <= STANDARD_ERRORS * error).all())


def drawn(values: Tensor, temperature: float, draw: str = "relaxed", seed: int = 7) -> Tensor:
    """A draw with the noise of a seed."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(values.shape, dtype=torch.float64, generator=generator)
    return draw_code(values.log_softmax(-1), uniform, temperature, draw)


@pytest.mark.parametrize("draw", ["relaxed", "straight-through"])
@pytest.mark.parametrize("temperature", [1.0, 1e-3])
def test_at_every_temperature_the_largest_entry_is_a_draw_of_the_categorical(draw, temperature):
    """Gumbel-max: the noise decides the word, the temperature only how sharp it is."""
    draws = 20_000
    words = drawn(log_probs().expand(draws, -1, -1), temperature, draw).argmax(-1)
    counts = torch.bincount(words.flatten(), minlength=VOCABULARY).double()
    assert within_errors(counts, log_probs()[0, 0].exp(), draws)


def test_draws_are_those_of_torchs_relaxation_by_their_density():
    """Of 2000 draws the mean log density is that of torch's own draws, within 6 standard errors."""
    reference = RelaxedOneHotCategorical(torch.tensor(0.7, dtype=torch.float64), logits=log_probs()[0, 0])
    torch.manual_seed(0)
    own, theirs = drawn(log_probs().expand(2000, -1, -1), 0.7)[:, 0], reference.sample(torch.Size((2000,)))
    found = [reference.log_prob(draws / draws.sum(-1, keepdim=True)) for draws in (own, theirs)]
    error = sum(float(values.var()) / len(values) for values in found) ** 0.5
    assert abs(float(found[0].mean() - found[1].mean())) <= STANDARD_ERRORS * error


def test_as_the_temperature_falls_draws_become_one_hot():
    sharp = [float(drawn(log_probs().expand(2000, -1, -1), t).amax(-1).mean()) for t in (1.0, 0.1, 1e-4)]
    assert sharp == sorted(sharp)
    assert sharp[0] < 0.9
    assert_close(sharp[2], 1.0, 1e-3)


def test_the_relaxed_gradient_is_the_derivative_of_the_draw_at_fixed_noise():
    assert torch.autograd.gradcheck(lambda v: drawn(v, 0.7), log_probs(1, 2).requires_grad_())


def test_the_straight_through_draw_is_one_hot_with_the_relaxed_gradient():
    weights = torch.randn(2, 3, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = []
    for draw in ("relaxed", "straight-through"):
        values = log_probs(2, 3).requires_grad_()
        code = drawn(values, 0.7, draw)
        (code * weights).sum().backward()
        gradients.append(values.grad)
    assert_close(code, one_hot(drawn(log_probs(2, 3), 0.7).argmax(-1), VOCABULARY, like=code))
    assert_close(gradients[1], gradients[0], ALGEBRA)
    assert float(gradients[0].abs().max()) > 1e-3


def test_a_draw_of_another_name_is_refused():
    with pytest.raises(ValueError, match=r"code.draw must be one of relaxed, straight-through, got 'hard'"):
        draw_code(log_probs(), torch.full_like(log_probs(), 0.5), 1.0, "hard")


def test_the_temperature_cools_from_start_to_end_over_its_share():
    schedule = [temperature_at(progress, 1.0, 0.1, 0.4) for progress in (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)]
    assert schedule == sorted(schedule, reverse=True)
    assert_close(torch.tensor([schedule[i] for i in (0, 2, 4, 5)]), torch.tensor([1.0, 0.55, 0.1, 0.1]), 1e-6)


@pytest.mark.parametrize(("kernel", "reach"), [(1, 0), (3, 1)])
def test_a_word_sees_its_patch_and_what_the_kernel_reaches(kernel, reach):
    torch.manual_seed(0)
    encoder = CodeEncoder((16, 16), VOCABULARY, 8, 4, kernel).double()
    changed = images(1)
    changed[:, :, 4:8, 8:12] = 1 - changed[:, :, 4:8, 8:12]  # the patch of row 1, column 2
    moved = (encoder(changed) - encoder(images(1))).abs().amax(-1).unflatten(1, (4, 4))[0] > 1e-9
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    assert torch.equal(moved, ((rows - 1).abs() <= reach) & ((columns - 2).abs() <= reach))


def test_a_word_paints_where_it_stands():
    torch.manual_seed(0)
    decoder = CodeDecoder((4, 4), VOCABULARY, 8, 4).double()
    words = torch.zeros(1, 16, dtype=torch.int64)
    other = words.clone()
    other[0, 7] = 3  # row 1, column 3
    moved = (decoder.picture(other) - decoder.picture(words)).abs().amax((0, 1)) > 1e-9
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[0:12, 8:16] = True  # the patch and its neighbours
    assert torch.equal(moved, expected)


def test_training_makes_the_pictures_better():
    """Patches of one of four colours: words find them."""
    torch.manual_seed(0)
    colours = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    patches = colours[torch.randint(4, (16, 2, 2))].permute(0, 3, 1, 2)
    batch = patches.repeat_interleave(4, 2).repeat_interleave(4, 3)
    encoder, decoder = CodeEncoder((8, 8), 16, 16), CodeDecoder((2, 2), 16, 16)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-2)

    def error() -> float:
        return float((decoder.picture(encoder.words(batch)) - batch).detach().square().mean())

    before = error()
    for step in range(100):
        code = drawn(encoder(batch), temperature_at(step / 100, 1.0, 0.1, 1.0), seed=step)
        loss = (decoder(code) - batch).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert error() < 0.25 * float((batch - batch.mean(0)).square().mean()) < before


@pytest.mark.parametrize("size", [(10, 16), (16, 10)])
def test_a_size_that_does_not_divide_is_refused(size):
    with pytest.raises(ValueError, match=f"must be a multiple of decoder.patch 4, got {size[0]} x {size[1]}"):
        CodeEncoder(size)


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match=r"code\.kernel must be odd, got 2"):
        CodeEncoder((16, 16), kernel=2)
