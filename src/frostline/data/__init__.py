"""Labelled pictures: sources, splits, decoding, transforms, augmentation, sample order."""

from __future__ import annotations

from frostline.data.archives import extracted
from frostline.data.augmentation import Augmentation
from frostline.data.base import ImageData
from frostline.data.decoding import FILE_LIMIT, PIXEL_LIMIT, open_picture, to_rgb
from frostline.data.digits import DigitsData
from frostline.data.division import write_division
from frostline.data.files import FileData, FileSplit
from frostline.data.folder import FolderData
from frostline.data.hf import HuggingFaceData
from frostline.data.listing import find_pictures
from frostline.data.loading import PictureLoader
from frostline.data.mixing import Mixer
from frostline.data.npz import ArraysData
from frostline.data.pictures import PicturesData
from frostline.data.shards import ShardData
from frostline.data.splits import ImageSplit, LabelledSet
from frostline.data.table import TableData
from frostline.data.torchvision_sets import TorchvisionData
from frostline.data.transforms import evaluation_transform

__all__ = [
    "FILE_LIMIT",
    "PIXEL_LIMIT",
    "ArraysData",
    "Augmentation",
    "DigitsData",
    "FileData",
    "FileSplit",
    "FolderData",
    "HuggingFaceData",
    "ImageData",
    "ImageSplit",
    "LabelledSet",
    "Mixer",
    "PictureLoader",
    "PicturesData",
    "ShardData",
    "TableData",
    "TorchvisionData",
    "evaluation_transform",
    "extracted",
    "find_pictures",
    "open_picture",
    "to_rgb",
    "write_division",
]
