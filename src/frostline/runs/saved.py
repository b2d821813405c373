"""The model of a run: saved in its folder, and loaded again, ready to label pictures."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from frostline.backbones import (
    SavedModel,
    holds_module,
    load_module_folder,
    load_timm_folder,
    save_module_folder,
    save_timm_folder,
)
from frostline.config import build, check_targets, load_config, trusted_targets
from frostline.errors import ConfigError
from frostline.runs.folder import RunFolder
from frostline.types import Preprocessing


def save_model(
    model: nn.Module, folder: RunFolder, *, labels: Sequence[str], preprocessing: Preprocessing, head: str | None
) -> None:
    """Write ``model/``: a timm folder, or the weights of a module that is not timm's.

    Args:
        model: with its classifier.
        folder: of the run.
        labels: the classes by index.
        preprocessing: what the input looked like in training.
        head: the path of the classifier of a module; None for a timm model.

    Raises:
        ConfigError: the labels are not those of the model.
        StorageError: the folder cannot be written.
    """
    if head is None:
        save_timm_folder(model, folder.model, labels=labels, preprocessing=preprocessing)
    else:
        save_module_folder(model, folder.model, labels=labels, preprocessing=preprocessing, head=head)


def load_saved(folder: RunFolder, *, trust: Sequence[str] | None = (), config_dirs: Sequence[str] = ()) -> SavedModel:
    """Load ``model/``; where it is a module that is not timm's, build that as the run's config says, if that may run.

    Args:
        folder: of a finished run.
        trust: import prefixes that ``backbone.module`` of its config may name beside the targets of Frostline's conf;
            None where the config is this program's own.
        config_dirs: the user's own folders, whose targets are trusted too.

    Raises:
        ConfigError: the config names a target that is not trusted, or builds another module than was saved.
        StorageError: the model is missing or damaged.
    """
    if not holds_module(folder.model):
        return load_timm_folder(folder.model)
    # what the rest of the config names is not built here, and need not be trusted
    config = OmegaConf.masked_copy(load_config(folder.config), ["backbone"])
    allowed = None if trust is None else trusted_targets(config_dirs)
    try:
        check_targets(config, allowed=allowed, trust=trust or ())
        module = build(_module_node(config, folder), "backbone.module")
    except OmegaConfBaseException as error:
        raise ConfigError(f"backbone.module of {folder.config} cannot be read: {str(error).splitlines()[0]}") from error
    return load_module_folder(folder.model, module)


def _module_node(config: DictConfig, folder: RunFolder) -> DictConfig:
    node = OmegaConf.select(config, "backbone.module")
    if not isinstance(node, DictConfig) or "_target_" not in node:
        problem = f"{folder.model} holds a module, but {folder.config} names none in backbone.module"
        raise ConfigError(problem, mend="Put back the config that the run was trained with.")
    return node
