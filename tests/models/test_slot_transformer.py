"""The autoregressive transformer: causality by perturbation, steps against the whole, attention, slots left out."""

import pytest
import torch
from tolerances import assert_close, assert_mean_is
from torch import Tensor

from psa.models.decoders import SlotTransformer
from psa.models.decoders.dropout import GivenDropout

LENGTH, HIDDEN, SLOT_DIM = 6, 8, 5


def transformer(dropout: float = 0.0) -> SlotTransformer:
    torch.manual_seed(0)
    return SlotTransformer(SLOT_DIM, LENGTH, HIDDEN, num_layers=2, num_heads=2, dropout=dropout).double().eval()


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(batch: int = 2) -> Tensor:
    return draw(batch, LENGTH - 1, HIDDEN)


def slots(batch: int = 2, num_slots: int = 3) -> Tensor:
    return draw(batch, num_slots, SLOT_DIM, seed=2)


@pytest.mark.parametrize("path", ["whole", "attended"])
@pytest.mark.parametrize("place", range(LENGTH - 1))
def test_a_later_input_never_changes_an_earlier_output(path, place):
    """Perturb u_place: the outputs up to it are the same bit by bit, all after it change."""
    net = transformer()
    run = net if path == "whole" else lambda u, s: net.attended(u, s)[0]
    changed = inputs()
    changed[:, place] *= -1.0  # a shift of all features would not pass the norm
    with torch.no_grad():
        before, after = run(inputs(), slots()), run(changed, slots())
    assert torch.equal(after[:, : place + 1], before[:, : place + 1])
    assert bool(((after - before)[:, place + 1 :].abs().amax(-1) > 1e-6).all())


def test_layer_by_layer_with_weights_is_torchs_own_layer():
    net = transformer()
    assert_close(net.attended(inputs(), slots())[0], net(inputs(), slots()))


def test_step_by_step_with_the_past_kept_is_the_whole_at_once():
    net, found, given = transformer(), [], inputs()

    def continued(hidden: Tensor) -> Tensor:
        found.append(hidden)
        return given[:, len(found) - 1] if len(found) < LENGTH else hidden

    attention = net.generate(slots(), continued)
    whole, whole_attention = net.attended(given, slots())
    assert_close(torch.stack(found, 1), whole)
    assert_close(attention, whole_attention)


def test_attention_sums_to_one_over_slots():
    attention = transformer().attended(inputs(), slots())[1]
    assert attention.shape == (2, 3, LENGTH)
    assert_close(attention.sum(1), torch.ones(2, LENGTH))


def test_the_order_of_slots_does_not_matter():
    net, order = transformer(), torch.tensor([2, 0, 1])
    (hidden, attention), (again, permuted) = (net.attended(inputs(), slots()[:, o]) for o in (slice(None), order))
    assert_close(again, hidden)
    assert_close(permuted, attention[:, order])


def test_slots_left_out_are_not_looked_at():
    net, active = transformer(), torch.tensor([[True, False, True], [False, True, True]])
    hidden, attention = net.attended(inputs(), slots(), active)
    assert_close(net(inputs(), slots(), active), hidden)
    assert not bool(attention[~active].any())
    for image in range(2):
        one = slice(image, image + 1)
        assert_close(net(inputs()[one], slots()[one, active[image]]), hidden[one])
    with pytest.raises(ValueError, match="active must keep at least one slot an image, image 1 has none"):
        net(inputs(), slots(), active & torch.tensor([[True], [False]]))


def test_images_of_a_batch_do_not_meet():
    net = transformer()
    assert_close(net(inputs()[1:], slots()[1:]), net(inputs(), slots())[1:])


def test_every_parameter_gets_a_gradient_and_so_do_slots():
    net, memory = transformer(), slots().requires_grad_()
    net(inputs(), memory).square().mul(draw(2, LENGTH, HIDDEN, seed=3)).sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in net.parameters())
    assert memory.grad is not None
    assert bool((memory.grad.abs().sum(-1) > 0).all())


def test_dropout_acts_in_training_alone():
    net = transformer(0.5)
    assert_close(net(inputs(), slots()), net(inputs(), slots()))
    torch.manual_seed(0)
    assert float((net.train()(inputs(), slots()) - net(inputs(), slots())).detach().abs().max()) > 1e-3


def test_dropout_acts_where_torchs_own_layer_drops(monkeypatch):
    """In place of draws every place multiplies by a factor of its own, here and in torch's layer."""
    net = transformer(0.5).train()
    factors = iter(range(2, 14))
    attention = torch.nn.functional.scaled_dot_product_attention
    scales, expected = [], net._inputs(inputs())
    for layer, places in zip(net.layers, net.dropouts, strict=True):
        own = {name: float(next(factors)) for name, _ in places.named_children()}
        for name, place in places.named_children():
            monkeypatch.setattr(place, "forward", lambda values, scale=own[name]: scale * values)
        for name, torchs in (
            ("looked", "dropout1"),
            ("found", "dropout2"),
            ("hidden", "dropout"),
            ("wide", "dropout3"),
        ):
            monkeypatch.setattr(getattr(layer, torchs), "forward", lambda values, scale=own[name]: scale * values)
        scales += [own["attention"], own["cross_attention"]]

    def scaled(query: Tensor, key: Tensor, value: Tensor, *rest: object, **more: object) -> Tensor:
        return scales.pop(0) * attention(query, key, value, *rest, **more)

    found = net(inputs(), slots())
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", scaled)
    for layer in net.layers:
        later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        expected = layer(expected, net.memory(slots()), tgt_mask=later, tgt_is_causal=True)
    assert scales == []
    assert_close(found, net.norm(expected))


def test_what_is_kept_is_what_the_draws_say_scaled_so_that_the_mean_stays():
    dropout, values = GivenDropout(0.25).double(), draw(3, 4, 5)
    kept = torch.arange(60).reshape(3, 4, 5) % 4 > 0
    asked = []
    dropout.keep = lambda shape, share: asked.append((tuple(shape), share)) or kept
    assert_close(dropout(values), values * kept / 0.75)
    assert asked == [((4, 5), 0.25)]
    assert torch.equal(dropout.eval()(values), values)
    assert torch.equal(GivenDropout(0.0)(values), values)
    torch.manual_seed(0)
    drawn = GivenDropout(0.25)(torch.ones(200, 500))
    assert_close(drawn.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert_mean_is(drawn.flatten(), 1.0)


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"decoder\.hidden_dim must be a multiple of num_heads 3, got 8"):
        SlotTransformer(SLOT_DIM, LENGTH, HIDDEN, num_heads=3)
