"""Backbones: creating timm models, loading their weights, their depth groups, and saving them as timm folders."""

from __future__ import annotations

from frostline.backbones.creating import Backbone, create_backbone, resolve_preprocessing
from frostline.backbones.depth import depth_groups
from frostline.backbones.folders import TimmFolder, load_timm_folder, save_timm_folder
from frostline.backbones.loading import LoadReport

__all__ = [
    "Backbone",
    "LoadReport",
    "TimmFolder",
    "create_backbone",
    "depth_groups",
    "load_timm_folder",
    "resolve_preprocessing",
    "save_timm_folder",
]
