"""What a composed config must hold, checked without torch and reported all at once."""

from __future__ import annotations

import copy
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from frostline.config.model_names import name_faults
from frostline.errors import ConfigError, suggestion
from frostline.specs import Mode, PhaseSpec

# those of open nodes that are mistyped most: what builds the node would say so too, once it has been imported
_WHOLE_NUMBERS = {
    "trainer.max_epochs": 10,
    "trainer.max_steps": 1000,
    "trainer.accumulate_grad_batches": 4,
    "data.batch_size": 32,
    "data.size": 224,
}


def faults_of(config: DictConfig, *, complete: bool = True) -> list[ConfigError]:
    """Every fault of a composed config; ``complete`` False lets mandatory values be missing."""
    faults = _unresolvable(config, "")
    if complete and not faults:
        faults += [_missing(config, key) for key in sorted(OmegaConf.missing_keys(config))]
    faults += _number_faults(config) if not faults else []
    faults += name_faults(config) if complete and not faults else []
    if "freeze" in config:
        faults += _phase_faults(config.freeze)
    if "monitor" in config:
        faults += _monitor_faults(config)
    if "paper" in config and not faults:
        faults += _paper_faults(config.paper)
    return faults


def _missing(config: DictConfig, key: str) -> ConfigError:
    return ConfigError(f"{key} has no value", mend=f"Add {key}=VALUE.")


def _unresolvable(node: Any, path: str) -> list[ConfigError]:
    faults = []
    names = range(len(node)) if isinstance(node, ListConfig) else list(node)
    for name in names:
        where = f"{path}.{name}" if path else str(name)
        if OmegaConf.is_missing(node, name):
            continue
        try:
            value = node[name]
        except OmegaConfBaseException as error:
            faults.append(ConfigError(f"{where}: {str(error).splitlines()[0]}"))
            continue
        if isinstance(value, DictConfig | ListConfig):
            faults += _unresolvable(value, where)
    return faults


def _number_faults(config: DictConfig) -> list[ConfigError]:
    faults = []
    if not 0 <= int(config.get("seed", 0)) < 2**32:
        faults.append(ConfigError(f"seed={config.seed} is no seed", mend="It is a whole number from 0 to 4294967295."))
    rate = OmegaConf.select(config, "optimizer.lr", default=0.0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or rate < 0:
        faults.append(ConfigError(f"optimizer.lr={rate} is no learning rate", mend="It is a number such as 1e-3."))
    for key, example in _WHOLE_NUMBERS.items():
        value = OmegaConf.select(config, key)
        if isinstance(value, bool | str) or (isinstance(value, float) and not value.is_integer()):
            faults.append(ConfigError(f"{key}={value} is no whole number", mend=f"One is {key}={example}."))
    return faults


def _phase_faults(freeze: DictConfig) -> list[ConfigError]:
    if not freeze.phases:
        return [ConfigError("freeze.phases is empty", mend="Choose a preset: freeze=full.")]
    faults = []
    for name, phase in freeze.phases.items():
        path = f"freeze.phases.{name!s}"
        if not isinstance(phase, DictConfig):
            faults.append(ConfigError(f"{path} is not a phase", mend=f"'{path}={{train: all}}' is one."))
            continue
        faults += _against(PhaseSpec, with_words(phase), path)
        if phase.get("train") is None and phase.get("walk") is None:
            faults.append(ConfigError(f"{path}.train is missing", mend="A phase says what it trains: train: head"))
    return faults


def with_words(phase: DictConfig) -> DictConfig:
    """A phase in which ``cache.mode`` is a word: YAML reads a bare ``off`` as false."""
    if OmegaConf.select(phase, "cache.mode") is not False:
        return phase
    phase = copy.deepcopy(phase)
    phase.cache.mode = "off"
    return phase


def _against(kind: type[Any], node: DictConfig, path: str) -> list[ConfigError]:
    """Merges key by key into a closed node, and those within it, so that each misspelt key and wrong type is named."""
    faults = []
    hints = get_type_hints(kind)
    schema = OmegaConf.structured(kind)
    for key in node:
        where = f"{path}.{key!s}"
        if key not in hints:
            faults.append(ConfigError(f"There is no key '{where}'", mend=suggestion(str(key), list(hints))))
            continue
        inner: Any = next((one for one in (hints[key], *get_args(hints[key])) if is_dataclass(one)), None)
        if inner is not None and isinstance(node[key], DictConfig):
            faults += _against(inner, node[key], where)
            continue
        try:
            merged = OmegaConf.merge(schema, {key: node[key]})
            OmegaConf.resolve(merged)
        except OmegaConfBaseException as error:
            faults.append(ConfigError(f"{where}: {str(error).splitlines()[0]}"))
    return faults


def _monitor_faults(config: DictConfig) -> list[ConfigError]:
    metric = config.monitor.metric
    split = metric.partition("/")[0]
    names = [f"val/{known}" for known in ("loss", *map(str, config.metrics or ()))]
    if split == "test":
        return [
            ConfigError(
                f"monitor.metric={metric}: the test split selects nothing",
                mend=f"It is scored once, after selection. Choose a validation metric: {', '.join(names)}.",
            )
        ]
    if metric == "val/loss" and config.monitor.mode in (Mode.max, Mode.max.name):
        return [ConfigError("monitor.metric=val/loss: a larger loss is not better", mend="Add monitor.mode=min.")]
    if metric in names:
        return []
    return [ConfigError(f"monitor.metric={metric}: no metric provides it", mend=suggestion(metric, names))]


def _paper_faults(paper: DictConfig) -> list[ConfigError]:
    if paper.value is None and paper.source is None:
        return []
    if paper.value is None or not paper.source:
        lacking = "value" if paper.value is None else "source"
        return [ConfigError(f"paper.{lacking} has no value", mend="A published result has both: value and source.")]
    name = str(paper.metric).rpartition("/")[2]
    if name.endswith(("accuracy", "f1", "auroc")) and not 0 <= paper.value <= 1:
        mend = f"Divide a percentage by 100: paper.value={paper.value / 100:g}."
        return [ConfigError(f"paper.value={paper.value:g}: {paper.metric} is from 0 to 1", mend=mend)]
    return []
