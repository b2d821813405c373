"""What a probe is made of: data, a frozen backbone, the features of each split, and the settings of all heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lightning
import torch
from omegaconf import DictConfig
from torch import Tensor

from frostline.backbones import Backbone
from frostline.config import build, check_targets, spec_of
from frostline.data import ImageData
from frostline.data.geometry import resized
from frostline.data.samplers import BalancedSampler, TrainingSampler
from frostline.data.stratify import canonical_order
from frostline.errors import ConfigError, DataError, FrostlineError, NumericsError
from frostline.features import Boundary, FeatureStore, NotCached, body_hash, default_store, is_known
from frostline.freezing.rates import rate_faults, resolve_lr
from frostline.optim import curve_factor, warmup_factor
from frostline.probing import check_grid
from frostline.probing.choices import Extractor, FastExtractor
from frostline.probing.features import SplitFeatures, SplitPass, key_of, split_features
from frostline.probing.training import Batches, LabelledFeatures, Settings
from frostline.runs.caching import body_settings, show
from frostline.runs.parts import SUPPLIED, make_backbone, takes_channels_last
from frostline.runs.predict import device_of
from frostline.specs import (
    FeatureChoice,
    FreezeSpec,
    LrSpec,
    Mode,
    MonitorSpec,
    PhaseLrSpec,
    ProbeNode,
    SpeedSpec,
)

MONITORS = {"val/accuracy": Mode.max, "val/loss": Mode.min}


def check_probe(config: DictConfig) -> ProbeNode:
    """The grid of a probe, once all of its config that can be looked at before the data holds.

    Raises:
        ConfigError: with every fault.
    """
    node = spec_of(config.probe, ProbeNode)
    faults: list[FrostlineError] = []
    checks: tuple[Callable[[], None], ...] = (
        partial(check_targets, config, supplied=SUPPLIED),
        partial(check_grid, node),
        partial(_check_monitor, spec_of(config.monitor, MonitorSpec)),
        partial(_check_speed, spec_of(config.speed, SpeedSpec)),
    )
    for check in checks:
        try:
            check()
        except ConfigError as fault:
            faults.append(fault)
    faults += rate_faults(FreezeSpec(), spec_of(config.lr, LrSpec))
    if faults:
        raise ConfigError.of(faults)
    return node


def _check_monitor(monitor: MonitorSpec) -> None:
    mode = MONITORS.get(monitor.metric)
    if mode is None:
        raise ConfigError(
            f"monitor.metric={monitor.metric}: a probe selects by {' or '.join(MONITORS)}",
            mend="Choose one; the selected head is scored by all metrics.",
        )
    if monitor.mode is not mode:
        raise ConfigError(
            f"monitor.metric={monitor.metric} with monitor.mode={monitor.mode.name}",
            mend=f"Add monitor.mode={mode.name}.",
        )


def _check_speed(speed: SpeedSpec) -> None:
    for key in ("compile", "grad_checkpointing"):
        if getattr(speed, key):
            problem = f"speed.{key}: a probe runs the backbone once, forward"
            raise ConfigError(problem, mend=f"Set speed.{key}=false.")


@dataclass
class ProbeParts:
    """Data and backbone of a probe, and the features that have been asked for.

    Attributes:
        extract: what runs on pictures, and gives the same as ``extractor``.
        body: all that makes the features of a picture beside it, as plain types.
        views: of training pictures.
        seconds: that passes over pictures have taken.
    """

    data: ImageData
    backbone: Backbone
    extractor: Extractor
    extract: FastExtractor
    store: FeatureStore
    body: dict[str, Any]
    views: int
    device: torch.device
    seconds: float = 0.0
    _left_out: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def is_found(self, choices: Sequence[FeatureChoice]) -> bool:
        """Whether the store has what heads are trained and selected on, and the backbone need not run."""
        return self._is_stored("val", choices, train=False, view=0) and all(
            self._is_stored("train", choices, train=True, view=view) for view in range(self.views)
        )

    def train(self, choices: Sequence[FeatureChoice]) -> dict[FeatureChoice, LabelledFeatures]:
        """The training pictures, all views one behind the other; one that cannot be read may be left out.

        Raises:
            DataError: one cannot be read, and ``data.on_error`` is ``stop``.
            NumericsError: a feature is no number.
        """
        found = [self._split("train", choices, train=True, view=view) for view in range(self.views)]
        self._left_out = torch.unique(torch.cat([one.unreadable() for one in found]))
        if len(self._left_out):
            print(f"note      {len(self._left_out)} training pictures cannot be read and are left out")
        return {
            choice: self._labelled("train", _joined([one.features[choice] for one in found]), self._left_out)
            for choice in choices
        }

    def evaluated(self, split: str, choices: Sequence[FeatureChoice]) -> dict[FeatureChoice, LabelledFeatures]:
        """The pictures of ``val`` or ``test``.

        Raises:
            DataError: one cannot be read.
            NumericsError: a feature is no number.
        """
        found = self._split(split, choices, train=False, view=0)
        return {choice: self._labelled(split, features) for choice, features in found.features.items()}

    def plain(self, train: LabelledFeatures) -> LabelledFeatures:
        """The first view of the training pictures that can be read, for what takes no epochs."""
        kept = torch.ones(len(train.labels), dtype=torch.bool)
        kept[self._left_out] = False
        return LabelledFeatures(train.features[: len(train.labels)][kept], train.labels[kept])

    def batches(self) -> Batches:
        """The batches of an epoch, as ``train`` has them: their order follows from the seed and the epoch."""
        pictures = self.data.splits["train"]
        count, size = len(pictures), self.data.batch_size
        order = canonical_order(pictures)
        left_out = self._left_out.to(self.device)

        def of_epoch(seed: int, epoch: int) -> Sequence[Tensor]:
            drop = self.data.drop_last
            sampler = (
                BalancedSampler(pictures.labels[order], size, seed=seed, drop_last=drop)
                if self.data.sampler == "balanced"
                else TrainingSampler(count, size, seed=seed, drop_last=drop)
            )
            indices, repeats = sampler.order(epoch)
            rows = torch.from_numpy(order[indices] + (epoch + repeats) % self.views * count).to(self.device)
            batches: Sequence[Tensor] = torch.split(rows, size)
            if not len(left_out):
                return batches
            return [batch[torch.isin(batch % count, left_out, invert=True)] for batch in batches]

        return of_epoch

    def _labelled(self, split: str, features: Tensor, left_out: Tensor | None = None) -> LabelledFeatures:
        labels = torch.from_numpy(self.data.splits[split].labels.astype("int64"))
        finite = features.isfinite().all(dim=1)
        if left_out is not None and len(left_out):
            finite |= torch.isin(torch.arange(len(features)) % len(labels), left_out)
        if not finite.all():
            at = int((~finite).nonzero()[0]) % len(labels)
            raise self._no_number(split, at)
        return LabelledFeatures(features, labels)

    def _no_number(self, split: str, index: int) -> NumericsError:
        return NumericsError(
            f"the backbone makes features of '{self.data.splits[split].name(index)}' ({split}) that are no numbers",
            mend="Look at backbone.weights; speed.channels_last=false may help.",
        )

    def _split(self, split: str, choices: Sequence[FeatureChoice], *, train: bool, view: int) -> SplitFeatures:
        data = self.data
        deliveries = partial(data.deliveries, split, train=train, view=view)
        work = SplitPass(
            self._keys(split, choices, train=train, view=view),
            choices,
            len(data.splits[split]),
            deliveries,
            self.extract,
            data.input_digests(split, train=train),
            partial(self._expect, split),
            show,
        )
        noted = len(self.store.notes)
        found = self._found(work)
        skips, empty = train and data.on_error == "skip", found.unreadable().tolist()
        readable = self._readable(deliveries, empty, skips=skips)
        self.seconds += found.seconds
        if readable is not None and len(found.lacking) < len(choices):  # it could not be read at that time
            found = self._found(work, anew=True)
            readable = self._readable(deliveries, found.unreadable().tolist(), skips=skips)
            self.seconds += found.seconds
        _tell(split, view if self.views > 1 and train else None, found)
        for note in self.store.notes[noted:]:
            show(note)
        if readable is not None:
            raise self._no_number(split, readable)
        return found

    def _found(self, work: SplitPass, *, anew: bool = False) -> SplitFeatures:
        try:
            return split_features(self.store, work, anew=anew)
        except NotCached as reason:
            problem = f"the features of {type(self.backbone.model).__name__} cannot be probed: {reason}"
            raise ConfigError(problem, mend="Choose others: probe.features=[pooled].") from reason

    def _readable(self, deliveries: Callable[..., Any], empty: Sequence[int], *, skips: bool) -> int | None:
        """The first of some pictures without features that can be read; raises for the first that cannot.

        Args:
            deliveries: reads pictures of some positions.
            empty: their positions.
            skips: whether to pass over those that cannot.
        """
        for batch, unreadable in deliveries(positions=empty) if empty else ():
            if unreadable and not skips:
                raise unreadable[0].fault
            if batch is not None:
                return int(batch.indices[0])
        return None

    def _keys(
        self, split: str, choices: Sequence[FeatureChoice], *, train: bool, view: int
    ) -> Mapping[FeatureChoice, str] | None:
        recipe = self.data.recipe(split, train=train)
        if recipe is None:
            return None
        content = {**self.body, "input": recipe, "view": view}
        pictures = self.data.pictures_hash(split)
        shares = self.extractor.is_same_in_training
        return {choice: key_of(choice, content, pictures, shares=shares) for choice in choices}

    def _is_stored(self, split: str, choices: Sequence[FeatureChoice], *, train: bool, view: int) -> bool:
        keys, digests = self._keys(split, choices, train=train, view=view), self.data.input_digests(split, train=train)
        return keys is not None and all(is_known(self.store, key, digests) for key in keys.values())

    def _expect(self, split: str, wanted: int) -> None:
        """Say how many pictures of a split are to come; it is taken that as many of those after it lack features."""
        sizes = {name: len(pictures) for name, pictures in self.data.splits.items()}
        ahead = sizes["train"] * self.views + sizes["val"] if split == "train" else sizes[split]
        self.extract.expect(wanted, round(ahead * wanted / sizes[split]))


def _joined(views: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(views)) if len(views) > 1 else views[0]


def _tell(split: str, view: int | None, found: SplitFeatures) -> None:
    names = ", ".join(f"{choice.value} {features.shape[1]}" for choice, features in found.features.items())
    how, count = found.how, len(next(iter(found.features.values())))
    if found.lacking and len(found.lacking) < len(found.features):
        how = f"{', '.join(found.lacking)} {how}, the others found"
    which = "" if view is None else f", view {view}"
    show(f"features of {count:,} {split} pictures{which} ({names}): {how}")


def build_probe(config: DictConfig, node: ProbeNode) -> ProbeParts:
    """Data and backbone of a probe, prepared.

    Raises:
        FrostlineError: a part cannot be built, the backbone does not offer what is asked for, the data has no
            validation split, or training pictures change in each epoch.
    """
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    data: ImageData = build(config.data, "data")
    data.load()
    if not data.labelled:
        raise ConfigError(f"{config.data._target_} has no labels to learn", mend="Class folders are data=folder.")
    if "val" not in data.splits:
        problem = "this data set has no validation split, by which a head is selected"
        raise DataError(problem, mend="Split some off: data.val_fraction=0.15.")
    backbone = make_backbone(config, len(data.classes), FreezeSpec())
    backbone.preprocessing = resized(backbone.preprocessing, data.resize)
    augmentation = build(config.augment, "augment")
    data.prepare(backbone.preprocessing, augmentation, seed=config.seed)
    _check_input(data, augmentation.mixing(), node.views)
    device = device_of(config.device)
    backbone.model.requires_grad_(False).to(device)
    last = takes_channels_last(spec_of(config.speed, SpeedSpec), backbone.model)
    extractor = Extractor(backbone.model, backbone.head, channels_last=last)
    boundary = extractor.boundary if isinstance(extractor.boundary, Boundary) else Boundary("")
    body = {
        "body": body_hash(backbone.model, boundary),
        "boundary": boundary.key,
        "settings": body_settings(config, device, precision="32-true", channels_last=last),
    }
    fast = FastExtractor(extractor, spec_of(config.speed, SpeedSpec).engine, show)
    parts = ProbeParts(data, backbone, extractor, fast, default_store(), body, node.views, device)
    if not parts.is_found(node.features):
        extractor.check(node.features, backbone.preprocessing.size)
    return parts


def _check_input(data: ImageData, mixing: str, views: int) -> None:
    if mixing:
        raise ConfigError(f"augment: {mixing} mixes pictures, and features are of one", mend="Set augment=none.")
    if data.changes_each_epoch and views == 1:
        raise ConfigError(
            "augment changes each training picture in each epoch, and a probe computes its features once",
            mend="Set augment=none, or probe.views=4 for four fixed views in turn.",
        )
    if views > 1 and not data.changes_each_epoch:
        raise ConfigError(
            f"probe.views={views}: augment changes nothing, so that all views are the same",
            mend="Set augment=light, or probe.views=1.",
        )


def settings_of(config: DictConfig, node: ProbeNode, data: ImageData) -> Settings:
    """What all heads have in common.

    Raises:
        ConfigError: the warm-up is ambiguous or longer than the training.
    """
    each = data.batches_per_epoch()
    steps = each * node.epochs
    lr = resolve_lr("probe", PhaseLrSpec(), spec_of(config.lr, LrSpec), steps=steps, steps_per_epoch=each)
    warmup = lr.warmup.length(steps)
    return Settings(
        epochs=node.epochs,
        factors=[warmup_factor(step, warmup) * curve_factor(lr, step, steps) for step in range(steps)],
        patience=node.patience,
        optimizer=node.optimizer,
        momentum=node.momentum,
        clip=node.clip,
        start=node.start,
        by_loss=config.monitor.metric == "val/loss",
    )
