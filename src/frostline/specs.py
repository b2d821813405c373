"""The closed nodes of the configuration as plain dataclasses, read by all layers, without torch.

A misspelt key or a wrong type in one of these fails at composition with the key's path. What is open (data,
optimizer, loss, trainer, ...) is plain YAML with a ``_target_`` and is checked against the signature it names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

MISSING: Any = "???"


class Mode(Enum):
    """Whether a larger or a smaller value of the monitor is better."""

    max = "max"
    min = "min"


class Curve(Enum):
    """The shape of the learning rate over a phase, after warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    step = "step"


class FrozenBatchNorm(Enum):
    """``eval``: a frozen batch norm keeps its running statistics; ``batch``: it goes on updating them."""

    eval = "eval"
    batch = "batch"


@dataclass
class MonitorSpec:
    """The one validation metric that selects checkpoints, stops early and is the objective of a sweep."""

    metric: str = "val/accuracy"
    mode: Mode = Mode.max


@dataclass
class BackboneSpec:
    """The pretrained feature extractor.

    Attributes:
        name: a timm model name, ``hf-hub:ORG/NAME`` or ``local-dir:FOLDER``.
        weights: ``pretrained`` (what the name comes with), ``none``, a ``.safetensors`` or ``.pth`` file, a timm
            folder, or the folder of another run.
        kwargs: passed on to the constructor, such as ``drop_path_rate``.
    """

    name: str = MISSING
    weights: str = "pretrained"
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class WarmupSpec:
    """A linear rise of the learning rate from 0; give one of the three."""

    steps: int | None = None
    epochs: float | None = None
    fraction: float | None = None


@dataclass
class LrSpec:
    """The learning-rate curve of a run; a phase may state its own.

    Attributes:
        curve: the shape after warm-up.
        warmup: the rise before it.
        floor: where ``linear`` and ``cosine`` end, as a share of the peak.
        milestones: for ``step``: shares of the phase's length (0..1) after which the factor ``gamma`` is applied.
        gamma: for ``step``.
    """

    curve: Curve = Curve.cosine
    warmup: WarmupSpec = field(default_factory=WarmupSpec)
    floor: float = 0.0
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])
    gamma: float = 0.1


@dataclass
class UntilSpec:
    """What ends a phase, counted from its start; the first that is reached."""

    epochs: int | None = None
    steps: int | None = None


@dataclass
class PhaseLrSpec:
    """A phase's own learning rate: a scale on the base, and a curve where it differs from the run's."""

    scale: float = 1.0
    curve: Curve | None = None
    warmup: WarmupSpec | None = None


@dataclass
class PhaseSpec:
    """A span of training with one absolute set of trainable parameters.

    Attributes:
        train: a selector expression.
        until: the phase's end; the last phase may leave it out and takes the rest of the run.
        lr: the phase's learning rate.
    """

    train: str = MISSING
    until: UntilSpec | None = None
    lr: PhaseLrSpec = field(default_factory=PhaseLrSpec)


@dataclass
class LrScaleSpec:
    """Discriminative learning rates: factors on the base for the head and for the rest."""

    head: float = 1.0
    body: float = 1.0


@dataclass
class BatchNormSpec:
    """What the running statistics of a frozen batch norm do."""

    frozen: FrozenBatchNorm = FrozenBatchNorm.eval


@dataclass
class FreezeSpec:
    """A freeze schedule.

    Attributes:
        phases: name to phase, in order. The values are checked against ``PhaseSpec`` after composition, so that
            ``freeze.phases.full={train: all}`` can add one.
        lr_decay: layer-wise decay; a group at depth d gets the factor ``lr_decay ** (D - d)``.
    """

    phases: dict[str, Any] = field(default_factory=dict)
    lr_decay: float = 1.0
    lr_scale: LrScaleSpec = field(default_factory=LrScaleSpec)
    bn: BatchNormSpec = field(default_factory=BatchNormSpec)


@dataclass
class SpeedSpec:
    """What changes how fast a model runs, not what it computes.

    Attributes:
        channels_last: the memory format of pictures and activations.
        compile: run the model through ``torch.compile``.
        compile_backend: what it compiles with.
    """

    channels_last: bool = False
    compile: bool = False
    compile_backend: str = "inductor"


class OnNan(Enum):
    """``stop``: end the run at the first loss or gradient that is not finite; ``skip``: leave that step out."""

    stop = "stop"
    skip = "skip"


@dataclass
class OnNanSpec:
    """What a loss or gradient norm that is not finite does to a run.

    Attributes:
        action: ``stop`` or ``skip``.
        at_most: steps that may be left out in the whole run; one more stops it.
    """

    action: OnNan = OnNan.stop
    at_most: int = 10


class ClassWeights(Enum):
    """``balanced``: the loss weighs a class by the inverse of its share of the training pictures."""

    none = "none"
    balanced = "balanced"


@dataclass
class TrainSpec:
    """A run. The fields typed ``Any`` are open nodes: plain YAML that names its constructor in ``_target_``.

    Attributes:
        name: the experiment; runs lie in ``output/name/``.
        seed: of everything random.
        test: score the test split once at the end; None means yes for a single run and no in a sweep.
        debug: show tracebacks.
        output: the folder of all experiments.
        folder: this run's folder; filled in when it is made.
        class_weights: weights of the classes in the loss.
        lr_find: measure a learning rate before training and use it in place of ``optimizer.lr``.
        run: the folder of the run that ``resume`` continues; without it, of no effect.
        resume: go on where ``run`` stopped, in its folder and with its config.
        rerun: in a sweep, train again the jobs that an earlier sweep has done.
        trust: import prefixes that a ``_target_`` in the config of ``run`` may have beside those of Frostline's conf.
        config_dirs: the folders given with ``--config-dir``, whose targets are trusted too; filled in.
        on_nan: what a loss that is not finite does.
    """

    name: str = "train"
    seed: int = 0
    test: bool | None = None
    debug: bool = False
    output: str = "outputs"
    folder: str | None = None
    class_weights: ClassWeights = ClassWeights.none
    lr_find: bool = False
    run: str | None = None
    resume: bool = False
    rerun: bool = False
    trust: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)
    on_nan: OnNanSpec = field(default_factory=OnNanSpec)
    monitor: MonitorSpec = field(default_factory=MonitorSpec)
    data: Any = None
    backbone: BackboneSpec = field(default_factory=BackboneSpec)
    freeze: FreezeSpec = field(default_factory=FreezeSpec)
    optimizer: Any = None
    lr: LrSpec = field(default_factory=LrSpec)
    augment: Any = None
    loss: Any = None
    metrics: Any = None
    trainer: Any = None
    callbacks: Any = None
    logger: Any = None
    speed: SpeedSpec = field(default_factory=SpeedSpec)


@dataclass
class PretrainSpec:
    """A pre-training without labels. The fields typed ``Any`` are open nodes.

    Attributes:
        run, resume, rerun, trust, config_dirs, on_nan: as in ``TrainSpec``.
        pretraining: the task: how pictures are spoilt, and what they are restored from.
    """

    name: str = "pretrain"
    seed: int = 0
    debug: bool = False
    output: str = "outputs"
    folder: str | None = None
    run: str | None = None
    resume: bool = False
    rerun: bool = False
    trust: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)
    on_nan: OnNanSpec = field(default_factory=OnNanSpec)
    data: Any = None
    backbone: BackboneSpec = field(default_factory=BackboneSpec)
    pretraining: Any = None
    optimizer: Any = None
    lr: LrSpec = field(default_factory=LrSpec)
    augment: Any = None
    trainer: Any = None
    callbacks: Any = None
    logger: Any = None
    speed: SpeedSpec = field(default_factory=SpeedSpec)


@dataclass
class EvaluateSpec:
    """A second look at a finished run.

    Attributes:
        run: the run's folder.
        split: ``train``, ``val`` or ``test``.
        root: where the pictures lie now, if they moved since the run.
        batch_size: None keeps the run's.
        trust: import prefixes that a ``_target_`` in the run's own config may have beside those of Frostline's conf.
        config_dirs: the folders given with ``--config-dir``, whose targets are trusted too; filled in.
    """

    run: str = MISSING
    split: str = "test"
    root: str | None = None
    batch_size: int | None = None
    trust: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)
    trainer: Any = None
    debug: bool = False


@dataclass
class PredictSpec:
    """Labels for pictures.

    Attributes:
        run: the run's folder.
        images: a file, a folder (searched in depth) or a ``.txt`` list with one path a line.
        output: a ``.csv`` or ``.parquet`` file.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    run: str = MISSING
    images: str = MISSING
    output: str = "predictions.csv"
    batch_size: int = 64
    device: str = "auto"
    debug: bool = False
