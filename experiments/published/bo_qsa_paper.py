"""BO-QSA (arXiv 2210.08990): tables 1, 2, 4, 5, 7 and 8, by the settings of its tables 9 to 13."""

from functools import partial

from psa.experiments.published import data_sets as on
from psa.experiments.published.parts import (
    BROADCAST_64,
    MIXTURE,
    SLOT_ATTENTION,
    SLOTS,
    STRIDED,
    TRANSFORMER,
    WORDS,
    member,
)
from psa.experiments.published.rows import SQUARED_ERROR, Figure, Tables, merged, row

# T steps, and one more that alone is seen by the gradient (algorithm 1), here T = 3.
STEPS: Tables = {"slots": {"num_iterations": 4}}
QUIET: Tables = {"slots": {"overrides": {"initialiser": "queries"}}}  # Cars and Flowers: no noise on queries

PAINTED = merged(MIXTURE, {"training": {"schedule": "bo-qsa-mixture"}})
TOLD = merged(TRANSFORMER, {"training": {"schedule": "bo-qsa-transformer"}})
# The baselines, by the settings of their papers but for the number of steps.
BASELINE = merged(MIXTURE, SLOT_ATTENTION, {"training": {"steps": 250_000}})
SLATE = merged(
    SQUARED_ERROR,
    SLOTS,
    WORDS,
    {"encoder": {"kind": "words", "channels": 64, "token_dim": 64}, "code": {"kernel": 1}},
    {"training": {"schedule": "bo-qsa-transformer"}},
)

STACKS, ROOM = merged(PAINTED, STRIDED), merged(PAINTED, BROADCAST_64)
SMALL: Tables = {"data": {"size": 96}}  # SLATE on ShapeStacks

_row = partial(row, "BO-QSA (arXiv 2210.08990)")
_table1 = partial(Figure, "table 1, ARI-FG / MSC-FG", ours="foreground_ari, msc")
_table2 = partial(Figure, "table 2, ARI-FG (full)", ours="foreground_ari")
_table4 = partial(Figure, "table 4, AP / PQ / Pre / Rec", ours="ap, pq, precision, recall")
_table5 = partial(Figure, "table 5, IoU / Dice", ours="foreground_iou, foreground_dice")
_stacks7 = partial(Figure, "table 7, ARI-FG / MSC-FG", ours="foreground_ari, msc")
_dogs7 = partial(Figure, "table 7, IoU / Dice", ours="foreground_iou, foreground_dice")
_scannet8 = partial(Figure, "table 8, on ScanNet", ours="ap, pq, precision, recall")
_coco8 = partial(Figure, "table 8, on COCO", ours="ap, pq, precision, recall")

# fmt: off
_SHAPESTACKS = (
    _row("bo-qsa.shapestacks.slot-attention", on.SHAPESTACKS, (BASELINE, member("sa", 8)), _table1(".76 / .70")),
    _row("bo-qsa.shapestacks.slate", on.SHAPESTACKS, (SLATE, SMALL, member("sa", 12)), _table1(".65 / .63")),
    _row("bo-qsa.shapestacks.sa-mixture", on.SHAPESTACKS, (STACKS, member("sa", 8)), _stacks7("86.7 / 84.8")),
    _row("bo-qsa.shapestacks.i-sa-mixture", on.SHAPESTACKS, (STACKS, member("i-sa", 8), STEPS), _table1(".90 / .85"), _stacks7("88.3 / 76.8")),
    _row("bo-qsa.shapestacks.bo-sa-mixture", on.SHAPESTACKS, (STACKS, member("bo-sa", 8), STEPS), _stacks7("87.7 / 66.6")),
    _row("bo-qsa.shapestacks.qsa-mixture", on.SHAPESTACKS, (STACKS, member("qsa", 8)), _stacks7("88.1 / 76.1")),
    _row("bo-qsa.shapestacks.i-qsa-mixture", on.SHAPESTACKS, (STACKS, member("i-qsa", 8), STEPS), _stacks7("84.6 / 81.8")),
    _row("bo-qsa.shapestacks.bo-qsa-mixture", on.SHAPESTACKS, (STACKS, member("bo-qsa", 8), STEPS), _table1(".93 / .89"), _stacks7("92.9 / 89.2")),
    _row("bo-qsa.shapestacks.bo-qsa-transformer", on.SHAPESTACKS, (TOLD, STRIDED, member("bo-qsa", 12), STEPS), _table1(".68 / .70")),
)
_OBJECTS_ROOM = (
    _row("bo-qsa.objects-room.slot-attention", on.OBJECTS_ROOM, (BASELINE, BROADCAST_64, member("sa", 5)), _table1(".79 / .64")),
    _row("bo-qsa.objects-room.slate", on.OBJECTS_ROOM, (SLATE, member("sa", 6)), _table1(".57 / .30")),
    _row("bo-qsa.objects-room.i-sa-mixture", on.OBJECTS_ROOM, (ROOM, member("i-sa", 5), STEPS), _table1(".85 / .76")),
    _row("bo-qsa.objects-room.bo-qsa-mixture", on.OBJECTS_ROOM, (ROOM, member("bo-qsa", 5), STEPS), _table1(".87 / .80")),
    _row("bo-qsa.objects-room.bo-qsa-transformer", on.OBJECTS_ROOM, (TOLD, member("bo-qsa", 6), STEPS), _table1(".68 / .72")),
)
_CLEVRTEX = (
    _row("bo-qsa.clevrtex.slot-attention", on.CLEVRTEX, (BASELINE, member("sa", 11)), _table2("62.40")),
    _row("bo-qsa.clevrtex.i-sa-mixture", on.CLEVRTEX, (STACKS, member("i-sa", 11), STEPS), _table2("78.96")),
    _row("bo-qsa.clevrtex.bo-qsa-mixture", on.CLEVRTEX, (STACKS, member("bo-qsa", 11), STEPS), _table2("80.47")),
)
_FOREGROUND = (
    _row("bo-qsa.birds.slot-attention", on.BIRDS, (BASELINE, member("sa", 3)), _table5("35.6 / 51.5")),
    _row("bo-qsa.birds.slate", on.BIRDS, (SLATE, member("sa", 3)), _table5("36.1 / 51.0")),
    _row("bo-qsa.birds.i-sa-transformer", on.BIRDS, (TOLD, member("i-sa", 3), STEPS), _table5("63.7 / 72.7")),
    _row("bo-qsa.birds.bo-qsa-mixture", on.BIRDS, (PAINTED, member("bo-qsa", 3), STEPS), _table5("25.1 / 39.2")),
    _row("bo-qsa.birds.bo-qsa-transformer", on.BIRDS, (TOLD, member("bo-qsa", 3), STEPS), _table5("71.0 / 82.6")),
    _row("bo-qsa.dogs.slot-attention", on.DOGS, (BASELINE, member("sa", 2)), _table5("39.6 / 55.3")),
    _row("bo-qsa.dogs.slate", on.DOGS, (SLATE, member("sa", 2)), _table5("62.3 / 76.3")),
    _row("bo-qsa.dogs.i-sa-transformer", on.DOGS, (TOLD, member("i-sa", 2), STEPS), _table5("80.6 / 89.1"), _dogs7("80.8 / 89.2")),
    _row("bo-qsa.dogs.bo-qsa-mixture", on.DOGS, (PAINTED, member("bo-qsa", 2), STEPS), _table5("36.8 / 53.6")),
    _row("bo-qsa.dogs.bo-qsa-transformer", on.DOGS, (TOLD, member("bo-qsa", 2), STEPS), _table5("82.5 / 90.3"), _dogs7("82.5 / 90.3")),
    _row("bo-qsa.dogs.sa-transformer", on.DOGS, (TOLD, member("sa", 2)), _dogs7("71.0 / 81.9")),
    _row("bo-qsa.dogs.bo-sa-transformer", on.DOGS, (TOLD, member("bo-sa", 2), STEPS), _dogs7("80.9 / 89.3")),
    _row("bo-qsa.dogs.qsa-transformer", on.DOGS, (TOLD, member("qsa", 2)), _dogs7("64.5 / 72.9")),
    _row("bo-qsa.dogs.i-qsa-transformer", on.DOGS, (TOLD, member("i-qsa", 2), STEPS), _dogs7("59.3 / 77.6")),
    _row("bo-qsa.cars.slot-attention", on.CARS, (BASELINE, member("sa", 2)), _table5("41.3 / 58.3")),
    _row("bo-qsa.cars.slate", on.CARS, (SLATE, member("sa", 2)), _table5("75.5 / 85.9")),
    _row("bo-qsa.cars.i-sa-transformer", on.CARS, (TOLD, member("i-sa", 2), STEPS), _table5("85.9 / 92.3")),
    _row("bo-qsa.cars.bo-qsa-mixture", on.CARS, (PAINTED, member("bo-qsa", 2), STEPS, QUIET), _table5("69.1 / 81.5")),
    _row("bo-qsa.cars.bo-qsa-transformer", on.CARS, (TOLD, member("bo-qsa", 2), STEPS, QUIET), _table5("87.5 / 93.2")),
    _row("bo-qsa.flowers.slot-attention", on.FLOWERS, (BASELINE, member("sa", 2)), _table5("30.8 / 45.9")),
    _row("bo-qsa.flowers.slate", on.FLOWERS, (SLATE, member("sa", 2)), _table5("68.1 / 79.1")),
    _row("bo-qsa.flowers.i-sa-transformer", on.FLOWERS, (TOLD, member("i-sa", 2), STEPS), _table5("75.0 / 83.9")),
    _row("bo-qsa.flowers.bo-qsa-mixture", on.FLOWERS, (PAINTED, member("bo-qsa", 2), STEPS, QUIET), _table5("36.1 / 51.6")),
    _row("bo-qsa.flowers.bo-qsa-transformer", on.FLOWERS, (TOLD, member("bo-qsa", 2), STEPS, QUIET), _table5("78.4 / 86.1")),
)
_SEVERAL = (
    _row("bo-qsa.ycb.slot-attention", on.YCB, (BASELINE, member("sa", 6)), _table4("9.2 / 13.5 / 20.0 / 26.2")),
    _row("bo-qsa.ycb.sa-transformer", on.YCB, (TOLD, member("sa", 6)), _scannet8("1.37 / 4.90 / 11.27 / 6.35"), _coco8("1.20 / 4.97 / 10.48 / 6.73")),
    _row("bo-qsa.ycb.i-sa-transformer", on.YCB, (TOLD, member("i-sa", 6), STEPS), _table4("31.5 / 25.6 / 38.1 / 40.2"), _scannet8("24.23 / 21.65 / 30.20 / 35.79"), _coco8("18.39 / 18.47 / 27.23 / 30.38")),
    _row("bo-qsa.ycb.bo-qsa-transformer", on.YCB, (TOLD, member("bo-qsa", 6), STEPS), _table4("48.0 / 34.8 / 50.8 / 53.6"), _scannet8("28.24 / 25.93 / 36.68 / 39.62"), _coco8("21.62 / 21.81 / 32.32 / 34.19")),
    _row("bo-qsa.scannet.slot-attention", on.SCANNET, (BASELINE, member("sa", 6)), _table4("5.7 / 9.0 / 12.4 / 18.3")),
    _row("bo-qsa.scannet.i-sa-transformer", on.SCANNET, (TOLD, member("i-sa", 6), STEPS), _table4("21.4 / 23.4 / 29.1 / 34.5")),
    _row("bo-qsa.scannet.bo-qsa-transformer", on.SCANNET, (TOLD, member("bo-qsa", 6), STEPS), _table4("28.5 / 26.4 / 37.3 / 42.4")),
    _row("bo-qsa.coco.slot-attention", on.YANG_COCO, (BASELINE, member("sa", 6)), _table4("0.8 / 3.5 / 5.3 / 7.3")),
    _row("bo-qsa.coco.i-sa-transformer", on.YANG_COCO, (TOLD, member("i-sa", 6), STEPS), _table4("12.8 / 13.7 / 20.4 / 24.6")),
    _row("bo-qsa.coco.bo-qsa-transformer", on.YANG_COCO, (TOLD, member("bo-qsa", 6), STEPS), _table4("17.8 / 17.6 / 25.3 / 30.6")),
)
# fmt: on
ROWS = (*_SHAPESTACKS, *_OBJECTS_ROOM, *_CLEVRTEX, *_FOREGROUND, *_SEVERAL)
