"""Data sets of scenes: generators and readers behind ``open_dataset``, and the batches that models take."""

from psa.data.catalogue import DATASETS, open_dataset, open_images
from psa.data.description import DatasetInfo, Points, Scene, SceneBatch, SceneDataset, as_float, collate
from psa.data.folder import FolderScenes
from psa.data.hdf5 import Hdf5Scenes
from psa.data.prepare import Preparation
from psa.data.splits import SPLITS, split_indices
from psa.data.sprites import SpriteOptions, Sprites
from psa.data.tfrecords import TfrecordScenes

__all__ = [
    "DATASETS",
    "SPLITS",
    "DatasetInfo",
    "FolderScenes",
    "Hdf5Scenes",
    "Points",
    "Preparation",
    "Scene",
    "SceneBatch",
    "SceneDataset",
    "SpriteOptions",
    "Sprites",
    "TfrecordScenes",
    "as_float",
    "collate",
    "open_dataset",
    "open_images",
    "split_indices",
]
