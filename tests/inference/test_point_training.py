import pyro
import torch
from pyro.infer import Trace_ELBO
from tolerances import FLOAT32, assert_all_close, assert_close

from psa.data.mixture_2d import Mixture2d, Mixture2dOptions
from psa.inference.point_slots import PointSlots, fit_point_slots
from psa.inference.point_training import PointTraining, train_points
from psa.models.points import PointGuide, PointModel, perceptron

SLOTS = PointSlots(num_restarts=2)
SHORT = PointTraining(steps=30, batch_size=4)


def points() -> torch.Tensor:
    tokens = Mixture2d(Mixture2dOptions(num_points=20), num_scenes=40).tokens
    return (tokens - tokens.mean((0, 1))) / tokens.std()


def programs() -> tuple[PointModel, PointGuide]:
    pyro.set_rng_seed(0)
    return PointModel(perceptron()), PointGuide(perceptron())


def trained(training: PointTraining = SHORT, seed: int = 0) -> tuple[PointModel, PointGuide, list[float]]:
    model, guide = programs()
    losses = train_points(model, guide, points(), SLOTS, training, torch.Generator().manual_seed(seed))
    return model, guide, losses


def test_training_lowers_the_loss_of_held_mixtures():
    data = points()

    def loss(model: PointModel, guide: PointGuide) -> float:
        pyro.set_rng_seed(1)
        with torch.no_grad():
            mixture = fit_point_slots(guide.draw(data, torch.Generator().manual_seed(0)), SLOTS)
            return float(Trace_ELBO()(model, guide)(data, mixture)) / data[..., 0].numel()

    model, guide, losses = trained()
    assert len(losses) == SHORT.steps
    assert loss(model, guide) < 0.7 * loss(*programs())


def test_the_first_step_is_adam_on_pyros_elbo_of_a_batch_with_its_own_mixtures():
    data, (model, guide) = points(), programs()
    generator = torch.Generator().manual_seed(0)
    batch = data[torch.randint(len(data), (4,), generator=generator)]
    mixture = fit_point_slots(
        guide.draw(batch, generator), PointSlots(num_restarts=2, num_iterations=SHORT.em_iterations), generator
    )
    loss = Trace_ELBO()(model, guide)(batch, mixture) / batch[..., 0].numel()
    loss.backward()
    parameters = [*model.parameters(), *guide.parameters()]
    # Adam's first step is the learning rate against the gradient's sign
    stepped = [p - SHORT.learning_rate * p.grad / (p.grad.abs() + 1e-8) for p in parameters if p.grad is not None]
    found_model, found_guide, losses = trained(PointTraining(steps=1, batch_size=4))
    assert_close(losses[0], loss, FLOAT32)
    assert_all_close([*found_model.parameters(), *found_guide.parameters()], stepped, FLOAT32)


def test_equal_seeds_give_equal_weights_and_other_seeds_others():
    first, second, other = (
        trained(PointTraining(steps=3, batch_size=4), seed)[1].encoder[0].weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_progress_is_told_of_every_step():
    model, guide = programs()
    told = []
    train_points(
        model, guide, points(), SLOTS, PointTraining(steps=3, batch_size=2),
        progress=lambda done, steps: told.append((done, steps)),
    )  # fmt: skip
    assert told == [(1, 3), (2, 3), (3, 3)]
