"""The triggers of phases and stages, resolved: which metric they watch, in which direction, over how many steps."""

from __future__ import annotations

from dataclasses import dataclass

from frostline.errors import ConfigError, near_misses
from frostline.freezing.phase import Plateau, Settle, Threshold
from frostline.specs import Mode, PlateauSpec, SettleSpec, ThresholdSpec


@dataclass(frozen=True)
class Validation:
    """What a run learns about itself while it trains.

    Attributes:
        metrics: the names of its validation metrics.
        monitor: the one that selects checkpoints.
        larger_is_better: the direction of the monitor.
        every: epochs from one validation to the next; 0 for none at all.
    """

    metrics: tuple[str, ...] = ("val/accuracy", "val/loss")
    monitor: str = "val/accuracy"
    larger_is_better: bool = True
    every: int = 1


def resolve_plateau(spec: PlateauSpec | None, key: str, validation: Validation) -> Plateau | None:
    """The plateau under ``key``, which watches the monitor unless told otherwise.

    Raises:
        ConfigError: nothing is validated, the metric is unknown, or a number is wrong.
    """
    if spec is None:
        return None
    metric = _metric(spec.metric, key, validation)
    if spec.patience < 1:
        raise ConfigError(f"{key}.patience is {spec.patience}.", mend="It is a number of validations, 1 or more.")
    if spec.min_delta < 0:
        raise ConfigError(f"{key}.min_delta is {spec.min_delta}.", mend="It cannot be negative.")
    larger = validation.larger_is_better if spec.mode is None else Mode(spec.mode) is Mode.max
    if spec.mode is None and metric != validation.monitor:
        raise ConfigError(
            f"{key}.metric={metric} is not the monitor, so that it is unknown which of its values are better.",
            mend=f"Set {key}.mode=max or {key}.mode=min.",
        )
    return Plateau(metric, larger, spec.patience, spec.min_delta)


def resolve_threshold(spec: ThresholdSpec | None, key: str, validation: Validation) -> Threshold | None:
    """The threshold under ``key``.

    Raises:
        ConfigError: nothing is validated, the metric is unknown, or not just one of ``above`` and ``below`` is given.
    """
    if spec is None:
        return None
    metric = _metric(spec.metric, key, validation)
    if spec.above is not None and spec.below is None:
        return Threshold(metric, spec.above)
    if spec.below is not None and spec.above is None:
        return Threshold(metric, spec.below, below=True)
    states = "neither 'above' nor 'below'" if spec.above is None else "'above' and 'below'"
    raise ConfigError(f"{key} states {states}.", mend=f"Give one, such as {key}.above=0.9.")


def resolve_settle(spec: SettleSpec | None, key: str, steps_per_epoch: int) -> Settle | None:
    """The settling of gradients under ``key``.

    Raises:
        ConfigError: a number is wrong.
    """
    if spec is None:
        return None
    if not 0 <= spec.percentile <= 100:
        raise ConfigError(f"{key}.percentile is {spec.percentile}.", mend="It lies from 0 to 100.")
    if spec.every is not None and spec.every < 1:
        raise ConfigError(f"{key}.every is {spec.every}.", mend="It is a number of optimizer steps, 1 or more.")
    return Settle(spec.percentile, spec.every or steps_per_epoch)


def _metric(stated: str | None, key: str, validation: Validation) -> str:
    if validation.every < 1:
        raise ConfigError(
            f"{key} watches a validation metric, but this run validates nothing.", mend=f"Leave out {key}."
        )
    metric = stated or validation.monitor
    if metric not in validation.metrics:
        # they all begin with "val/", which would make any of them look near
        short = metric.removeprefix("val/")
        names = [name.removeprefix("val/") for name in validation.metrics]
        near = [name for name in names if name.startswith(short)] or near_misses(short, names)
        mend = f"There are {', '.join(validation.metrics)}."
        if near:
            mend = "Did you mean " + " or ".join(f"'val/{name}'" for name in near) + "?"
        raise ConfigError(f"{key}.metric={metric} is no metric of this run.", mend=mend)
    return metric
