"""What a small network reads off frozen slots: one probe a factor, on the slot that holds the object."""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from psa.metrics.held_out import training_share
from psa.metrics.slot_matching import mask_overlap, match

EPOCHS = 300  # at most

Rows = Float64[np.ndarray, "rows features"]
Values = Shaped[np.ndarray, " rows"]
HeldRows = Float64[np.ndarray, "held features"]
HeldValues = Shaped[np.ndarray, " held"]


@dataclass(frozen=True)
class ObjectFactors:
    """What is true of the objects of M images.

    Attributes:
        values: By name, (M, O) each. An angle is neither categorical nor continuous: give its cosine and sine.
        present: (M, O), where objects exist.
        categorical: Names of the factors whose values are codes; the others are continuous.

    Raises:
        ValueError: If a categorical factor is unknown.
    """

    values: Mapping[str, Shaped[Tensor, "batch objects"]]
    present: Bool[Tensor, "batch objects"]
    categorical: Collection[str] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.categorical) - set(self.values):
            raise ValueError(f"categorical: expected names of factors, came {', '.join(sorted(unknown))}")


@dataclass(frozen=True)
class ProbeScores:
    """What probes reach on the objects of held-out images, by factor.

    Attributes:
        accuracy: Of categorical factors, in [0, 1].
        chance: The accuracy of always saying the commonest value of the training objects.
        r2: Of continuous factors, at most 1; 0 is what the held-out mean reaches.
        num_objects: Held-out objects.
    """

    accuracy: Mapping[str, float]
    chance: Mapping[str, float]
    r2: Mapping[str, float]
    num_objects: int


def slots_of_objects(
    masks: Shaped[Tensor, "batch slots pixels"], objects: Shaped[Tensor, "batch objects pixels"]
) -> Int64[Tensor, "batch objects"]:
    """The slot of each object: one to one, of largest total overlap of masks (Hungarian).

    Args:
        masks: (M, K, N), of slots, non-negative.
        objects: (M, O, N), of objects; one without a pixel gets a slot that is left. O at most K.

    Raises:
        ValueError: If there are more objects than slots.
    """
    num_slots, num_objects = masks.shape[1], objects.shape[1]
    if num_objects > num_slots:
        raise ValueError(f"objects: expected at most {num_slots}, one a slot, came {num_objects}")
    padded = torch.nn.functional.pad(objects, (0, 0, 0, num_slots - num_objects))
    every = torch.ones(masks.shape[:2], dtype=torch.bool, device=masks.device)
    return match(-mask_overlap(padded, masks), (padded > 0).any(2), every)[:, :num_objects]


def probe_slots(
    slots: Float[Tensor, "batch slots features"],
    factors: ObjectFactors,
    matching: Int64[Tensor, "batch objects"],
    *,
    hidden_dim: int = 64,
    train_fraction: float = 0.5,
    seed: int = 0,
) -> ProbeScores:
    """Train an MLP with one hidden layer for each factor on the slots of training images; score it on the others.

    Scikit-learn's MLPs with Adam and their defaults (ReLU, weight decay 1e-4, batches of 200), at most 300 epochs, on
    slots and continuous factors standardised by the training objects. Images are split, not objects.

    Args:
        slots: (M, K, D), frozen.
        factors: Of the objects; categorical ones have accuracy, continuous ones R2.
        matching: (M, O), the slot of each object, such as :func:`slots_of_objects` finds.
        hidden_dim: Width of the hidden layer.
        train_fraction: Share of the images that probes are trained on.
        seed: Of the split and the probes.

    Raises:
        ValueError: If no object is left to train on or to score.

    Reference: Stange et al., covariance regularisation, section 4.2.2 and table 2, after Dittadi et al., 2021. They
    match objects by the probe's loss; here masks do, so that the matching does not depend on the probe.
    """
    generator = torch.Generator().manual_seed(seed)
    fitted = training_share(len(slots), train_fraction, "slots", generator)[:, None]
    train, held = fitted & factors.present.cpu(), ~fitted & factors.present.cpu()
    if not (train.any() and held.any()):
        raise ValueError("present: expected objects to train on and to score, came none")
    inputs = slots.detach().double().take_along_dim(matching[:, :, None], 1).cpu()
    rows, held_rows = inputs[train].numpy(), inputs[held].numpy()
    accuracy, chance, r2 = {}, {}, {}
    for name, values in factors.values.items():
        known, true = values.cpu()[train].numpy(), values.cpu()[held].numpy()
        if name in factors.categorical:
            accuracy[name] = float((_classify(rows, known, held_rows, hidden_dim, seed) == true).mean())
            codes, counts = np.unique(known, return_counts=True)
            chance[name] = float((true == codes[counts.argmax()]).mean())
        else:
            r2[name] = float(r2_score(true, _regress(rows, known, held_rows, hidden_dim, seed)))
    return ProbeScores(accuracy, chance, r2, int(held.sum()))


def _classify(rows: Rows, codes: Values, held: HeldRows, hidden_dim: int, seed: int) -> HeldValues:
    if len(np.unique(codes)) == 1:
        return np.full(len(held), codes[0])
    probe = MLPClassifier(hidden_layer_sizes=(hidden_dim,), max_iter=EPOCHS, random_state=seed)
    return _fitted(probe, rows, codes).predict(held)


def _regress(rows: Rows, values: Values, held: HeldRows, hidden_dim: int, seed: int) -> HeldValues:
    scale = StandardScaler().fit(values[:, None])
    probe = MLPRegressor(hidden_layer_sizes=(hidden_dim,), max_iter=EPOCHS, random_state=seed)
    predicted = _fitted(probe, rows, scale.transform(values[:, None])[:, 0]).predict(held)
    return scale.inverse_transform(predicted[:, None])[:, 0]


def _fitted(probe: MLPClassifier | MLPRegressor, rows: Rows, values: Values) -> Pipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs is what is asked for
        return make_pipeline(StandardScaler(), probe).fit(rows, values)
