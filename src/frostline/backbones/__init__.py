"""Backbones: creating models, loading their weights, their depth groups, and saving them as folders."""

from __future__ import annotations

from frostline.backbones.building import classifier_tensors
from frostline.backbones.creating import Backbone, create_backbone, resolve_preprocessing
from frostline.backbones.depth import depth_groups
from frostline.backbones.folders import SavedModel, load_timm_folder, save_timm_folder
from frostline.backbones.loading import LoadReport
from frostline.backbones.module_config import holds_module
from frostline.backbones.module_folders import load_module_folder, save_module_folder
from frostline.backbones.saved_facts import SavedFacts, read_saved_facts

__all__ = [
    "Backbone",
    "LoadReport",
    "SavedFacts",
    "SavedModel",
    "classifier_tensors",
    "create_backbone",
    "depth_groups",
    "holds_module",
    "load_module_folder",
    "load_timm_folder",
    "read_saved_facts",
    "resolve_preprocessing",
    "save_module_folder",
    "save_timm_folder",
]
