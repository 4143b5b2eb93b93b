"""The data sets of the papers' tables, and how their images are prepared (docs/data.md has the layouts)."""

from psa.experiments.published.rows import Dataset

CLEVR_WITH_MASKS = Dataset("CLEVR with masks (TFRecords)", "CLEVR_MASKS", {"size": 128, "crop": "center"})
CLEVR = Dataset("CLEVR v1.0 (folder)", "CLEVR_V1.0", {"size": 128})
OBJECTS_ROOM = Dataset("ObjectsRoom (TFRecords)", "OBJECTS_ROOM", {"size": 64})
MULTI_DSPRITES = Dataset("Multi-dSprites, coloured on coloured (TFRecords)", "MULTI_DSPRITES", {"size": 64})
SHAPESTACKS = Dataset("ShapeStacks (folder)", "SHAPESTACKS", {"size": 128, "crop": "center"})
CLEVRTEX = Dataset("ClevrTex, full (folder)", "CLEVRTEX", {"size": 128, "crop": "center"})
BIRDS = Dataset("CUB200 Birds (folder of images and masks)", "BIRDS", {"size": 128, "crop": "center"})
DOGS = Dataset("Stanford Dogs (folder of images and masks)", "DOGS", {"size": 128, "crop": "center"})
CARS = Dataset("Stanford Cars (folder of images and masks)", "CARS", {"size": 128, "crop": "center"})
FLOWERS = Dataset("Caltech Flowers (folder of images and masks)", "FLOWERS", {"size": 128, "crop": "center"})
YCB = Dataset("YCB of Yang and Yang (folder of images and masks)", "YCB", {"size": 128, "crop": "center"})
SCANNET = Dataset("ScanNet of Yang and Yang (folder of images and masks)", "SCANNET", {"size": 128, "crop": "center"})
YANG_COCO = Dataset("COCO of Yang and Yang (folder of images and masks)", "COCO", {"size": 128, "crop": "center"})
COCO = Dataset("COCO 2017 (folder)", "COCO2017", {"crop": "center"})
VOC = Dataset("PASCAL VOC 2012 (folder)", "VOC2012", {"crop": "center"})
