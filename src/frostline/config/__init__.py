"""Composing, checking, saving and building configs. Nothing here imports torch at import time."""

from frostline.config.building import build, spec_of
from frostline.config.composing import (
    QUOTING,
    compose,
    compose_job,
    group_options,
    hydra_session,
    override_saved,
    parse,
)
from frostline.config.saving import absolute_paths, flat, load_config, save_config
from frostline.config.schema import COMMANDS, conf_folder, register, weights_folder
from frostline.config.targets import check_targets, check_trusted_names, targets_of, trusted_targets

__all__ = [
    "COMMANDS",
    "QUOTING",
    "absolute_paths",
    "build",
    "check_targets",
    "check_trusted_names",
    "compose",
    "compose_job",
    "conf_folder",
    "flat",
    "group_options",
    "hydra_session",
    "load_config",
    "override_saved",
    "parse",
    "register",
    "save_config",
    "spec_of",
    "targets_of",
    "trusted_targets",
    "weights_folder",
]
