"""Learning-rate facts that hold before a run starts: a group's factor, a phase's warm-up and curve."""

from __future__ import annotations

from collections.abc import Sequence

from frostline.errors import ConfigError
from frostline.freezing.phase import PhaseLr, Warmup
from frostline.specs import Curve, FreezeSpec, LrSpec, PhaseLrSpec, WarmupSpec
from frostline.types import DepthGroup


def lr_factor(spec: FreezeSpec, group: DepthGroup, groups: Sequence[DepthGroup]) -> float:
    """A depth group's constant factor on the base learning rate.

    The scale of the head or the body (Howard and Ruder 2018, arXiv:1801.06146, "discriminative fine-tuning") times
    ``lr_decay ** (D - depth)``, with D the depth of the head (layer-wise decay as in Clark et al. 2020,
    arXiv:2003.10555, and Bao et al. 2021, arXiv:2106.08254).
    """
    deepest = max(other.depth for other in groups)
    scale: float = spec.lr_scale.head if group.is_head else spec.lr_scale.body
    decay: float = spec.lr_decay ** (deepest - group.depth)
    return scale * decay


def rate_faults(spec: FreezeSpec, run_lr: LrSpec) -> list[ConfigError]:
    """What is wrong with the numbers of the whole run."""
    share = "It is a share of the peak, from 0 to 1."
    return [
        ConfigError(f"{key} is {value}.", mend=mend)
        for key, value, right, mend in (
            ("freeze.lr_decay", spec.lr_decay, 0 < spec.lr_decay <= 1, "It is a factor per depth in (0, 1]."),
            ("freeze.lr_scale.head", spec.lr_scale.head, spec.lr_scale.head > 0, _POSITIVE),
            ("freeze.lr_scale.body", spec.lr_scale.body, spec.lr_scale.body > 0, _POSITIVE),
            ("lr.floor", run_lr.floor, 0 <= run_lr.floor <= 1, share),
            ("lr.gamma", run_lr.gamma, 0 < run_lr.gamma <= 1, "It is a factor in (0, 1]."),
            ("lr.milestones", run_lr.milestones, all(0 < m < 1 for m in run_lr.milestones), "Shares between 0 and 1."),
        )
        if not right
    ]


_POSITIVE = "It must be above 0; to keep parameters as they are, leave them out of freeze.phases.<name>.train."


def resolve_lr(name: str, spec: PhaseLrSpec, run_lr: LrSpec, *, steps: int, steps_per_epoch: int) -> PhaseLr:
    """The learning rate of phase ``name``, which lasts ``steps``: its own where stated, else the run's.

    Raises:
        ConfigError: a scale that is not positive; a warm-up that is ambiguous, negative or longer than the phase.
    """
    key = f"freeze.phases.{name}.lr"
    if spec.scale <= 0:
        raise ConfigError(f"{key}.scale is {spec.scale}.", mend=_POSITIVE)
    own = spec.warmup is not None
    warmup = spec.warmup if spec.warmup is not None else run_lr.warmup
    where = f"{key}.warmup" if own else "lr.warmup"
    return PhaseLr(
        scale=spec.scale,
        curve=Curve(spec.curve if spec.curve is not None else run_lr.curve),
        warmup=resolve_warmup(warmup, where, name, steps=steps, steps_per_epoch=steps_per_epoch),
        floor=run_lr.floor,
        milestones=tuple(run_lr.milestones),
        gamma=run_lr.gamma,
    )


def resolve_warmup(spec: WarmupSpec, key: str, phase: str, *, steps: int, steps_per_epoch: int) -> Warmup:
    """A warm-up in optimizer steps, or as a share of the phase, which may begin earlier than planned.

    Raises:
        ConfigError: it is ambiguous, negative or longer than the phase, which has ``steps``.
    """
    stated = {
        unit: (value, value * scale)
        for unit, value, scale in (
            ("steps", spec.steps, 1),
            ("epochs", spec.epochs, steps_per_epoch),
            ("fraction", spec.fraction, steps),
        )
        if value is not None
    }
    if len(stated) > 1:
        *others, last = stated
        raise ConfigError(
            f"{key} states {' and '.join(stated)}.",
            mend=f"Give one: set the others to null, such as {key}.{others[0]}=null to keep {last}.",
        )
    for unit, (value, length) in stated.items():
        if value < 0:
            raise ConfigError(f"{key}.{unit} is {value}.", mend="A warm-up cannot be negative; 0 is none.")
        if length > steps:
            raise ConfigError(
                f"{key}.{unit}={value} is {round(length)} optimizer steps, but phase '{phase}' has {steps}.",
                mend=f"Shorten {key}.{unit}, or lengthen the phase.",
            )
        return Warmup(fraction=float(value)) if unit == "fraction" else Warmup(steps=round(length))
    return Warmup()
