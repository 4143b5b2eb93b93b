"""Data sets of scenes: generators and readers behind ``open_dataset``, and the batches that models take."""

from psa.data.brady import BradyScenes
from psa.data.catalogue import open_dataset, open_images
from psa.data.clevr import ClevrScenes
from psa.data.clevrtex import ClevrTexScenes
from psa.data.coco import CocoScenes
from psa.data.conversion import Conversion, convert
from psa.data.description import DatasetInfo, Points, PointsDataset, Scene, SceneBatch, SceneDataset, as_float, collate
from psa.data.dsprites import DspritesScenes
from psa.data.folder import FolderScenes
from psa.data.hdf5 import Hdf5Scenes
from psa.data.mixture_2d import Mixture2d, Mixture2dOptions
from psa.data.multi_dsprites import MultiDsprites, MultiDspritesOptions
from psa.data.named import DATASETS, register_dataset
from psa.data.object_counts import ObjectRange, count_objects
from psa.data.prepare import Preparation
from psa.data.shapestacks import ShapeStacksScenes
from psa.data.splits import SPLITS, split_indices
from psa.data.sprites import SpriteOptions, Sprites
from psa.data.streaming import Indices, streamed
from psa.data.tetrominoes import Tetrominoes, TetrominoOptions
from psa.data.tfrecords import TfrecordScenes
from psa.data.token_points import TokenPoints
from psa.data.voc import VocScenes
from psa.data.webdataset import WebdatasetScenes

__all__ = [
    "DATASETS",
    "SPLITS",
    "BradyScenes",
    "ClevrScenes",
    "ClevrTexScenes",
    "CocoScenes",
    "Conversion",
    "DatasetInfo",
    "DspritesScenes",
    "FolderScenes",
    "Hdf5Scenes",
    "Indices",
    "Mixture2d",
    "Mixture2dOptions",
    "MultiDsprites",
    "MultiDspritesOptions",
    "ObjectRange",
    "Points",
    "PointsDataset",
    "Preparation",
    "Scene",
    "SceneBatch",
    "SceneDataset",
    "ShapeStacksScenes",
    "SpriteOptions",
    "Sprites",
    "TetrominoOptions",
    "Tetrominoes",
    "TfrecordScenes",
    "TokenPoints",
    "VocScenes",
    "WebdatasetScenes",
    "as_float",
    "collate",
    "convert",
    "count_objects",
    "open_dataset",
    "open_images",
    "register_dataset",
    "split_indices",
    "streamed",
]
