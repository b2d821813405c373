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


@dataclass
class MonitorSpec:
    """The one validation metric that selects checkpoints, stops early and is the objective of a sweep."""

    metric: str = "val/accuracy"
    mode: Mode = Mode.max


@dataclass
class InputSpec:
    """What the input of a model that is not timm's must look like.

    Attributes:
        size: height and width in pixels; ``data.size`` comes first.
        mean, std: of the normalization, per channel, on a 0..1 scale.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
        crop_pct: the share of the resized picture's side that the evaluation crop keeps.
    """

    size: int = 224
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    interpolation: str = "bilinear"
    crop_pct: float = 0.875


@dataclass
class BackboneSpec:
    """The pretrained feature extractor.

    Attributes:
        name: a timm model name, ``hf-hub:ORG/NAME`` or ``local-dir:FOLDER``.
        weights: ``pretrained`` (what the name comes with), ``none``, a ``.safetensors`` or ``.pth`` file, a timm
            folder, or the folder of another run.
        kwargs: passed on to the constructor, such as ``drop_path_rate``.
        module: in place of a timm model, any ``nn.Module`` that classifies, as a node with ``_target_``.
        head: the path of its classifier, such as ``fc``.
        input: what its input must look like.
    """

    name: str = MISSING
    weights: str = "pretrained"
    kwargs: dict[str, Any] = field(default_factory=dict)
    module: Any = None
    head: str | None = None
    input: InputSpec = field(default_factory=InputSpec)


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


class StartFrom(Enum):
    """``last``: a phase goes on from the weights it finds; ``best``: from the best of the phase before."""

    last = "last"
    best = "best"


class OptimizerState(Enum):
    """What a phase does with the optimizer's momentum and the like as it begins: ``keep`` or ``reset``."""

    keep = "keep"
    reset = "reset"


class WalkOrder(Enum):
    """``top_down``: from the head to the stem; ``bottom_up``: from the stem to the head."""

    top_down = "top_down"
    bottom_up = "bottom_up"


class WalkMode(Enum):
    """``add``: each stage trains more groups; ``solo``: only its own; ``drop``: all at first, then fewer."""

    add = "add"
    solo = "solo"
    drop = "drop"


class DepthSource(Enum):
    """``auto``: timm's matcher where a trace confirms it, else the trace; ``matcher`` or ``trace``: that one alone."""

    auto = "auto"
    matcher = "matcher"
    trace = "trace"


class ClipBy(Enum):
    """Whether ``trainer.gradient_clip_val`` bounds the norm of all gradients together, or of each depth group's."""

    run = "run"
    group = "group"


@dataclass
class DepthSpec:
    """How a model's parameters are put in order of depth.

    Attributes:
        source: where the order comes from.
        bins: join the groups of the body into this many, or leave them where they are fewer; None keeps them.
    """

    source: DepthSource = DepthSource.auto
    bins: int | None = None


@dataclass
class PlateauSpec:
    """Fires when a validation metric has not improved for some validations, counted from the start of the phase.

    Attributes:
        patience: validations without an improvement.
        min_delta: an improvement is more than this.
        metric: such as ``val/loss``; None is the run's monitor.
        mode: which value of ``metric`` is better; None is the monitor's.
    """

    patience: int = 3
    min_delta: float = 0.0
    metric: str | None = None
    mode: Mode | None = None


@dataclass
class ThresholdSpec:
    """Fires when a validation metric has passed a value; give ``above`` or ``below``.

    Attributes:
        metric: such as ``val/loss``; None is the run's monitor.
        above: fires at this value or a larger one.
        below: fires at this value or a smaller one.
    """

    metric: str | None = None
    above: float | None = None
    below: float | None = None


@dataclass
class SettleSpec:
    """Drops the prefix of depth groups whose gradient norms have settled (Liu et al. 2021, AutoFreeze).

    Attributes:
        percentile: a group has settled where the relative change of its gradient norm is at most this percentile
            (0..100) of the changes of all groups that learn.
        every: optimizer steps of an interval, over which norms are averaged; None is an epoch.
    """

    percentile: float = 50.0
    every: int | None = None


@dataclass
class UntilSpec:
    """What ends a phase, counted from its start; the first that is reached.

    Attributes:
        epochs, steps: its longest duration.
        fraction: the same as a share of the whole run, 0..1; where neither of these is stated.
        plateau, threshold: a validation metric ends it earlier.
    """

    epochs: int | None = None
    steps: int | None = None
    fraction: float | None = None
    plateau: PlateauSpec | None = None
    threshold: ThresholdSpec | None = None


@dataclass
class EachSpec:
    """What moves a walk on to its next stage, counted from the stage's start; the first that is reached.

    Attributes:
        epochs, steps: its longest duration.
        fraction: the same as a share of the phase, 0..1; where neither of these is stated.
        plateau: a validation metric ends it earlier.
        settle: gradient norms that have settled end it earlier.
    """

    epochs: int | None = None
    steps: int | None = None
    fraction: float | None = None
    plateau: PlateauSpec | None = None
    settle: SettleSpec | None = None


@dataclass
class WalkSpec:
    """One phase that moves through depth, in stages.

    Attributes:
        order: where it begins.
        by: depth groups that each stage adds, moves by or drops.
        mode: what a stage trains.
        each: what ends a stage; None spreads the stages evenly over the phase.
        hold: the share of the phase, 0..1, by which the first stage lasts longer than ``each`` says; without it, the
            share that it lasts.
        keep: a selector of parameters that learn in every stage.
        anneal: for ``drop``: take a group's learning rate to zero, on a half cosine, before it drops (Brock et al.
            2017, FreezeOut).
    """

    order: WalkOrder = WalkOrder.top_down
    by: int = 1
    mode: WalkMode = WalkMode.add
    each: EachSpec | None = None
    hold: float = 0.0
    keep: str | None = None
    anneal: bool = False


@dataclass
class PhaseLrSpec:
    """A phase's own learning rate: a scale on the base, and a curve where it differs from the run's."""

    scale: float = 1.0
    curve: Curve | None = None
    warmup: WarmupSpec | None = None


class BatchNormMode(Enum):
    """``eval``: a batch norm uses and keeps its running statistics; ``batch``: it uses the batch's and updates them."""

    eval = "eval"
    batch = "batch"


class BatchNormAffine(Enum):
    """Whether scale and shift of batch norms learn: as the selector says (``follow``), always, or never."""

    follow = "follow"
    train = "train"
    freeze = "freeze"


@dataclass
class BatchNormSpec:
    """What batch norms do; statistics and affine parameters separately.

    Attributes:
        frozen: the statistics of batch norms in frozen depth groups, or with frozen parameters.
        trainable: the statistics of all others.
        affine: their scale and shift.
    """

    frozen: BatchNormMode = BatchNormMode.eval
    trainable: BatchNormMode = BatchNormMode.batch
    affine: BatchNormAffine = BatchNormAffine.follow


class FrozenMode(Enum):
    """``eval``: dropout and drop path of frozen depth groups are off; ``train``: they are on."""

    eval = "eval"
    train = "train"


class CacheMode(Enum):
    """``auto``: where it holds and pays; ``off``: never; ``require``: where it cannot hold, the run is refused."""

    auto = "auto"
    off = "off"
    require = "require"


@dataclass
class CacheSpec:
    """Whether a phase that freezes the front of the network computes what comes out of that once, and keeps it.

    Attributes:
        mode: ``auto``, ``off`` or ``require``.
        views: above 1: training pictures are augmented in so many fixed ways, of which epoch e takes ``e mod views``,
            cached or not, unless the augmentation changes nothing; 1 keeps what the augmentation does, and caches
            where that changes nothing.
    """

    mode: CacheMode = CacheMode.auto
    views: int = 1


@dataclass
class PhaseSpec:
    """A span of training with one absolute set of trainable parameters, or a walk through several.

    Attributes:
        train: a selector expression; of a walk, what it walks through, which is ``all`` where nothing is stated.
        walk: move through the depth groups of ``train`` in stages.
        until: the phase's end; the last phase may leave it out and takes the rest of the run.
        start: the weights it starts from.
        optimizer: what becomes of the optimizer's state as it begins.
        lr: the phase's learning rate.
        rewarm: a rise of the learning rate of each depth group from when it thaws in this phase.
        bn: what batch norms do, where it differs from the schedule's.
        cache: whether features that stay the same in it are computed once.
    """

    train: str | None = None
    walk: WalkSpec | None = None
    until: UntilSpec | None = None
    start: StartFrom = StartFrom.last
    optimizer: OptimizerState = OptimizerState.keep
    lr: PhaseLrSpec = field(default_factory=PhaseLrSpec)
    rewarm: WarmupSpec | None = None
    bn: BatchNormSpec | None = None
    cache: CacheSpec = field(default_factory=CacheSpec)


@dataclass
class LrScaleSpec:
    """Discriminative learning rates: factors on the base for the head and for the rest."""

    head: float = 1.0
    body: float = 1.0


@dataclass
class FreezeSpec:
    """A freeze schedule.

    Attributes:
        depth: how the depth groups are made.
        phases: name to phase, in order. The values are checked against ``PhaseSpec`` after composition, so that
            ``freeze.phases.full={train: all}`` can add one.
        lr_decay: layer-wise decay; a group at depth d gets the factor ``lr_decay ** (D - d)``.
        lr_scale: factors for the head and the body.
        bn: what batch norms do.
        frozen: the mode of the other layers of frozen depth groups.
        clip: what ``trainer.gradient_clip_val`` bounds.
    """

    depth: DepthSpec = field(default_factory=DepthSpec)
    phases: dict[str, Any] = field(default_factory=dict)
    lr_decay: float = 1.0
    lr_scale: LrScaleSpec = field(default_factory=LrScaleSpec)
    bn: BatchNormSpec = field(default_factory=BatchNormSpec)
    frozen: FrozenMode = FrozenMode.eval
    clip: ClipBy = ClipBy.run


class Engine(Enum):
    """How the frozen part of a model is run where its features are computed once.

    - ``auto``: in the way that ends first by a short measurement, among those that are within 1e-5 of ``plain``; the
      measurement is kept in the cache folder.
    - ``bf16``: as ``auto``, and in bfloat16 too, within 1e-2, where the run computes in single precision.
    - ``plain``: as the run does without.
    - ``channels_last``, ``fused`` (batch norms folded, convolutions joined with what follows), ``compiled``: this one,
      if it is within 1e-5.
    """

    auto = "auto"
    bf16 = "bf16"
    plain = "plain"
    channels_last = "channels_last"
    fused = "fused"
    compiled = "compiled"


@dataclass
class SpeedSpec:
    """What changes how fast a model runs and what memory it takes, not what it computes.

    Attributes:
        channels_last: the memory format of pictures and activations; null takes it for a model with grouped
            convolutions, such as mobilenet and efficientnet, of which most are faster in it.
        grad_checkpointing: compute activations again in the backward pass in place of keeping them.
        compile: run the model through ``torch.compile``.
        compile_backend: what it compiles with.
        engine: how features that are computed once are computed: ``auto``, ``bf16``, ``plain``, ``channels_last``,
            ``fused`` or ``compiled``; see `Engine`. Nothing else asks for it.
        keep_memory: freed memory of the host stays with the process, which asks the system for less at every step.
    """

    channels_last: bool | None = None
    grad_checkpointing: bool = False
    compile: bool = False
    compile_backend: str = "inductor"
    engine: Engine = Engine.auto
    keep_memory: bool = True


class OnNan(Enum):
    """``stop``: end the run at the first loss or gradient that is not finite; ``skip``: leave that step out."""

    stop = "stop"
    skip = "skip"


@dataclass
class OnNanSpec:
    """What a loss or gradient that is not finite does to a run.

    Attributes:
        action: ``stop`` or ``skip``.
        at_most: steps that may be left out in the whole run; one more stops it.
    """

    action: OnNan = OnNan.stop
    at_most: int = 10


class ClassWeights(Enum):
    """What the loss weighs a class by: the inverse of its share of the training pictures, or of its effective number.

    Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples", arXiv:1901.05555.
    """

    none = "none"
    balanced = "balanced"
    effective = "effective"


@dataclass
class PaperSpec:
    """A published result that the runs of an experiment are to reproduce; ``compare`` sets it beside theirs.

    Attributes:
        value: as ``metrics.json`` would have it: an accuracy of 91.2 % is 0.912; None is no published result.
        source: where it is published, such as "Kumar et al. 2022, table 1".
        metric: what it is a value of.
    """

    value: float | None = None
    source: str | None = None
    metric: str = "test/accuracy"


@dataclass
class TrainSpec:
    """A run. The fields typed ``Any`` are open nodes: plain YAML that names its constructor in ``_target_``.

    Attributes:
        name: the experiment; runs lie in ``output/name/``.
        seed: of everything random.
        test: score the test split once at the end; None means yes for a single run and no in a sweep.
        report: write ``report.html`` at the end; None means yes for a single run and no in a sweep.
        debug: show tracebacks.
        output: the folder of all experiments.
        folder: this run's folder; filled in when it is made.
        class_weights: weights of the classes in the loss.
        class_weights_beta: of ``effective``: 0 weighs all alike, towards 1 it comes to the inverse of the counts.
        lr_find: measure a learning rate before training and use it in place of ``optimizer.lr``.
        adapter: what is put into the layers of the body to learn in their place.
        regularizer: what is added to the loss for the weights.
        run: the folder of the run that ``resume`` continues; without it, of no effect.
        resume: go on where ``run`` stopped, in its folder and with its config.
        rerun: in a sweep, train again the jobs that an earlier sweep has done.
        trust: import prefixes that a ``_target_`` in the config of ``run`` may have beside those of Frostline's conf.
        config_dirs: the folders given with ``--config-dir``, whose targets are trusted too; filled in.
        on_nan: what a loss that is not finite does.
        paper: a published result to set beside the run's own; training does not look at it.
    """

    name: str = "train"
    seed: int = 0
    test: bool | None = None
    report: bool | None = None
    debug: bool = False
    output: str = "outputs"
    folder: str | None = None
    class_weights: ClassWeights = ClassWeights.none
    class_weights_beta: float = 0.999
    lr_find: bool = False
    run: str | None = None
    resume: bool = False
    rerun: bool = False
    trust: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)
    on_nan: OnNanSpec = field(default_factory=OnNanSpec)
    paper: PaperSpec = field(default_factory=PaperSpec)
    monitor: MonitorSpec = field(default_factory=MonitorSpec)
    data: Any = None
    backbone: BackboneSpec = field(default_factory=BackboneSpec)
    freeze: FreezeSpec = field(default_factory=FreezeSpec)
    adapter: Any = None
    optimizer: Any = None
    lr: LrSpec = field(default_factory=LrSpec)
    augment: Any = None
    loss: Any = None
    regularizer: Any = None
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


class FeatureChoice(Enum):
    """What of a frozen backbone a probe learns on.

    ``last``: what comes into the classifier. ``last4``: the last four blocks or stages, each as its class token or the
    mean of its map, side by side (Caron et al. 2021, arXiv:2104.14294). ``pooled``: the mean of the final patch tokens
    or map. ``class_token``: the final class token.
    """

    last = "last"
    last4 = "last4"
    pooled = "pooled"
    class_token = "class_token"


class ProbeOptimizer(Enum):
    """The update rule of a probe's heads: ``adamw``, or ``sgd`` with momentum."""

    adamw = "adamw"
    sgd = "sgd"


class ProbeStart(Enum):
    """How heads start: ``random``, as ``nn.Linear`` does under the head's seed, or at ``zero``, as in ``train``."""

    random = "random"
    zero = "zero"


class Reference(Enum):
    """What a probe's heads are compared with: ``logistic`` regression by L-BFGS; ``knn``, the nearest neighbors."""

    logistic = "logistic"
    knn = "knn"


@dataclass
class ProbeNode:
    """The grid of a probe: a head for each combination of the four lists, all trained together.

    Attributes:
        lr: peak learning rates.
        weight_decay: of the weights; biases have none.
        seeds: of the start and the order of the pictures.
        features: what the heads learn on.
        epochs: the longest that a head is trained.
        patience: epochs without an improvement of the monitor after which a head stops; None never stops one.
        optimizer: the update rule.
        momentum: of ``sgd``.
        clip: the largest norm of a head's gradient; None does not clip.
        start: how heads start.
        standardize: bring each feature to mean 0 and deviation 1 over the training pictures first.
        views: above 1: training pictures are augmented in so many fixed ways, of which epoch e takes ``e mod views``.
        references: what else is fitted and may be selected.
        logistic_c: inverse strengths of the penalty of the logistic regression.
        logistic_iterations: of L-BFGS, at most.
        knn_k: numbers of neighbors; those above the number of training pictures are left out.
        knn_temperature: of the weights ``exp(similarity / temperature)`` of neighbors.
        shown: candidates in the table on the screen.
    """

    lr: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 1e-1])
    weight_decay: list[float] = field(default_factory=lambda: [0.0, 1e-1])
    seeds: list[int] = field(default_factory=lambda: [0])
    features: list[FeatureChoice] = field(default_factory=lambda: [FeatureChoice.last])
    epochs: int = 50
    patience: int | None = 10
    optimizer: ProbeOptimizer = ProbeOptimizer.adamw
    momentum: float = 0.9
    clip: float | None = None
    start: ProbeStart = ProbeStart.random
    standardize: bool = False
    views: int = 1
    references: list[Reference] = field(default_factory=lambda: [Reference.logistic, Reference.knn])
    logistic_c: list[float] = field(default_factory=lambda: [0.01, 0.1, 1.0, 10.0])
    logistic_iterations: int = 1000
    knn_k: list[int] = field(default_factory=lambda: [5, 10, 20, 100])
    knn_temperature: float = 0.07
    shown: int = 8


@dataclass
class ProbeSpec:
    """Many heads on one frozen backbone. The fields typed ``Any`` are open nodes.

    Attributes:
        name: probes lie in ``output/name/``.
        seed: of everything random beside the heads, which have ``probe.seeds``.
        test: score the test split once, with what was selected.
        device: of the backbone and the heads: ``auto``, ``cpu`` or ``cuda``.
        class_weights, class_weights_beta, monitor: as in ``TrainSpec``.
        config_dirs: the folders given with ``--config-dir``; filled in.
        lr: the curve over a head's steps.
    """

    name: str = "probe"
    seed: int = 0
    test: bool = True
    debug: bool = False
    output: str = "outputs"
    folder: str | None = None
    device: str = "auto"
    class_weights: ClassWeights = ClassWeights.none
    class_weights_beta: float = 0.999
    config_dirs: list[str] = field(default_factory=list)
    monitor: MonitorSpec = field(default_factory=MonitorSpec)
    probe: ProbeNode = field(default_factory=ProbeNode)
    data: Any = None
    backbone: BackboneSpec = field(default_factory=BackboneSpec)
    lr: LrSpec = field(default_factory=LrSpec)
    augment: Any = None
    loss: Any = None
    metrics: Any = None
    speed: SpeedSpec = field(default_factory=SpeedSpec)


@dataclass
class AuditNode:
    """What an audit looks for, and what it leaves behind.

    Attributes:
        labels: look for label errors and for drift of features, which takes a forward pass of every picture.
        folds: of the cross-validation that judges labels.
        exclude: where to write the list for ``data.exclude``, beside the one in the audit's folder.
        exclude_kinds: kinds of findings whose pictures are listed beside those that are always: ``label_error``,
            ``dark``, ``bright``, ``blurred``, ``odd_size``, ``odd_aspect``, ``exif_turned`` or ``odd_mode``.
        shown: findings of a kind that the page shows; all are in ``findings.csv``.
        thresholds: from where on a picture is blank, dark, blurred ..., as a node with ``_target_``.
    """

    labels: bool = True
    folds: int = 5
    exclude: str | None = None
    exclude_kinds: list[str] = field(default_factory=list)
    shown: int = 60
    thresholds: Any = None


@dataclass
class AuditSpec:
    """A look at a data set.

    Attributes:
        name: the ending of the audit's folder, ``output/audit/<date_time>-<name>``.
        seed: of the folds in which labels are judged.
        device: of the backbone: ``auto``, ``cpu`` or ``cuda``.
        config_dirs: the folders given with ``--config-dir``; filled in.
    """

    name: str = "audit"
    seed: int = 0
    debug: bool = False
    output: str = "outputs"
    folder: str | None = None
    device: str = "auto"
    config_dirs: list[str] = field(default_factory=list)
    data: Any = None
    backbone: BackboneSpec = field(default_factory=BackboneSpec)
    audit: AuditNode = field(default_factory=AuditNode)


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


class OnError(Enum):
    """What becomes of a picture that cannot be read: ``stop`` raises, ``skip`` lists it and goes on."""

    stop = "stop"
    skip = "skip"


@dataclass
class PredictSpec:
    """Labels for pictures.

    Attributes:
        run: the run's folder.
        images: a picture, a folder (searched in depth), a ``.txt`` list with a path a line, a table (``.csv``,
            ``.tsv``, ``.parquet``, JSON lines), a ``.tar`` shard as ``data=webdataset`` has them, or a pattern of
            pictures or shards such as ``new/*.jpg`` or ``shard-{000..127}.tar``. The rows have this order and these
            names. Paths of a list or a table are relative to its folder.
        image_column: of a table: the paths.
        keep_columns: of a table: columns that go into the output.
        image_key: of shards: the extension of the pictures, ``jpg;png`` where a sample has one of them; None takes
            those that name a picture.
        output: a ``.csv`` or ``.parquet`` file. While it is made, finished parts are kept in the folder
            ``OUTPUT.parts``, from which the same command goes on.
        overwrite: replace an output that is there.
        calibrated: divide the logits by the temperature that the run fitted on validation, as ``serve`` and exported
            models do; false gives the probabilities of the run's own ``predictions/``.
        top_k: columns of the most probable classes up to this place, in place of a column of each class.
        on_error: what becomes of a picture that cannot be read; ``skip`` lists it in ``OUTPUT.errors.csv``, without the
            output's own suffix.
        batch_size: pictures at a time; None keeps the run's.
        workers: processes that decode; ``auto`` takes one per usable core, up to 8.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``32-true`` or ``bf16-mixed``.
        pixel_limit: width times height above which a picture is refused.
        file_limit: bytes above which a picture file is refused.
        trust: import prefixes that ``backbone.module`` of the run's own config may name; only of use for such a run.
        config_dirs: the folders given with ``--config-dir``, whose targets are trusted too; filled in.
    """

    run: str = MISSING
    images: str = MISSING
    image_column: str = "path"
    keep_columns: list[str] = field(default_factory=list)
    image_key: str | None = None
    output: str = "predictions.csv"
    overwrite: bool = False
    calibrated: bool = True
    top_k: int | None = None
    on_error: OnError = OnError.stop
    batch_size: int | None = None
    workers: Any = "auto"
    device: str = "auto"
    precision: str = "32-true"
    pixel_limit: int = 178_956_970
    file_limit: int = 268_435_456
    trust: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)
    debug: bool = False


class Against(Enum):
    """Which rows of a comparison are tested: each against the ``best`` one, or ``all`` against each other."""

    best = "best"
    all = "all"


@dataclass
class CompareSpec:
    """A table over finished runs.

    Attributes:
        runs: the folder of a sweep or a run, a pattern such as ``outputs/train/*``, or a list of these.
        by: the columns: config groups and keys, such as ``[freeze,optimizer.lr]``; None takes what the runs differ in,
            but for seeds and folds, which are averaged over.
        metric: of ``metrics.json``.
        mode: whether a larger or a smaller value is better; None knows it by the metric's name.
        against: which rows are tested.
        output: the folder of the files; None is ``compare/`` in the folder of a single sweep, else a new one in
            ``outputs/compare/``.
        resamples: of the bootstrap over pictures.
        seed: of the bootstrap.
        config_dirs: the folders given with ``--config-dir``, where names of your own options are found; filled in.
    """

    runs: Any = MISSING
    by: list[str] | None = None
    metric: str = "test/accuracy"
    mode: Mode | None = None
    against: Against = Against.best
    output: str | None = None
    resamples: int = 2000
    seed: int = 0
    config_dirs: list[str] = field(default_factory=list)
    debug: bool = False


class SoupKind(Enum):
    """How the weights of runs become one model."""

    greedy = "greedy"
    uniform = "uniform"
    wise = "wise"


@dataclass
class SoupNode:
    """How weights are averaged.

    Attributes:
        kind: ``greedy`` or ``uniform`` is a mean of runs (Wortsman et al. 2022, arXiv:2203.05482); ``wise`` is the best
            point between the backbone that one run began with and the one that it ended with (Wortsman et al. 2022,
            arXiv:2109.01903), under the head of its end.
        alphas: of ``wise``: shares of the end, from 0 to 1.
        update_bn: compute running statistics of batch norms anew on training pictures: ``auto`` those that are not the
            same in all that is averaged (which training has moved), ``true`` all, ``false`` none (they are averaged).
        bn_pictures: at most so many training pictures for that; None takes all.
    """

    kind: SoupKind = SoupKind.greedy
    alphas: list[float] = field(default_factory=lambda: [round(0.1 * step, 1) for step in range(11)])
    update_bn: Any = "auto"
    bn_pictures: int | None = 10_000


@dataclass
class SoupSpec:
    """A run whose weights are made of those of finished runs.

    Attributes:
        runs: the folder of a sweep or a run, a pattern such as ``outputs/train/*``, or a list of these.
        name: the result lies in ``output/name/``.
        metric: of validation, by which is chosen; None is the monitor of the runs.
        mode: whether a larger or a smaller value is better; None knows it by the monitor or by the metric's name.
        test: score the test split once, with what was selected.
        root: where the pictures of the runs lie now, if they moved.
        batch_size: None keeps the runs'.
        trust: import prefixes that a ``_target_`` in the runs' configs may have beside those of Frostline's conf.
        config_dirs: the folders given with ``--config-dir``, whose targets are trusted too; filled in.
    """

    runs: Any = MISSING
    name: str = "soup"
    metric: str | None = None
    mode: Mode | None = None
    test: bool = True
    debug: bool = False
    output: str = "outputs"
    root: str | None = None
    batch_size: int | None = None
    trust: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)
    soup: SoupNode = field(default_factory=SoupNode)
    trainer: Any = None


@dataclass
class ReportSpec:
    """A page of a finished run, or of a sweep.

    Attributes:
        run: the folder of a run or of a sweep.
        output: the page; None is ``report.html`` in that folder.
        metric: of a sweep, what its runs are compared by; None is their monitor.
        mode: whether a larger or a smaller value of ``metric`` is better; None knows it by the monitor, or by its name.
        axis: of a sweep, the hyper-parameter over which the scores are drawn; None takes the number with most values.
        root: where the pictures of the run lie now, if they moved.
        device: where the maps of what the model looked at are computed: ``auto``, ``cpu`` or ``cuda``.
        trust: import prefixes that a ``_target_`` in the run's own config may have beside those of Frostline's conf.
        config_dirs: the folders given with ``--config-dir``, whose targets are trusted too; filled in.
    """

    run: str = MISSING
    output: str | None = None
    metric: str | None = None
    mode: Mode | None = None
    axis: str | None = None
    root: str | None = None
    device: str = "auto"
    trust: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)
    debug: bool = False


@dataclass
class ExportSpec:
    """A finished model in other formats.

    Attributes:
        run: the run's folder.
        format: ``onnx``, ``torch_export``, ``timm`` or ``openvino``, or a list of them.
        output: where the formats go; None is ``export/`` in the run's folder.
        calibrated: whether the probabilities in the graph are those at the run's temperature; the logits never are.
        int8: write ``onnx`` and ``openvino`` in 8 bits as well, by the range of activations on training pictures.
        agreement: the least share of pictures to which the model in 8 bits must give the same label.
        split: whose pictures the formats are compared on; labels are not looked at.
        pictures: how many of them at most.
        images: other pictures to compare on and to quantise by: a file, a folder or a ``.txt`` list.
        root: where the pictures of the run lie now, if they moved.
        push: ``ORG/NAME`` of a hub's repository that gets ``model/`` with its card.
        private: whether a new repository is hidden from others.
        trust: import prefixes that a ``_target_`` in the run's own config may have beside those of Frostline's conf.
        config_dirs: the folders given with ``--config-dir``, whose targets are trusted too; filled in.
    """

    run: str = MISSING
    format: Any = "onnx"
    output: str | None = None
    calibrated: bool = True
    int8: bool = False
    agreement: float = 0.95
    split: str = "val"
    pictures: int = 128
    images: str | None = None
    root: str | None = None
    push: str | None = None
    private: bool = True
    trust: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)
    debug: bool = False


@dataclass
class ServeSpec:
    """Prediction over HTTP.

    Attributes:
        run: the run's folder.
        host: the address to bind to; the default is reached from this machine alone.
        port: 0 takes a free one.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch_size: pictures that the model is given at once.
        wait: seconds that a picture waits for others to fill a batch.
        queue: pictures that may be on their way at once; above it requests are answered 429.
        connections: at once; above it they are answered 503.
        body: bytes of a request.
        pictures: of a request.
        seconds: from the first byte of a request to its answer.
        pixel_limit: width times height above which a picture is refused.
        trust: import prefixes that ``backbone.module`` of the run's own config may name; only of use for such a run.
        config_dirs: the folders given with ``--config-dir``, whose targets are trusted too; filled in.
    """

    run: str = MISSING
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    batch_size: int = 32
    wait: float = 0.005
    queue: int = 256
    connections: int = 256
    body: int = 20_000_000
    pictures: int = 32
    seconds: float = 30.0
    pixel_limit: int = 50_000_000
    trust: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)
    debug: bool = False
