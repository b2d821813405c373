"""What averaged weights are tried with: the model that they are put into, the pictures, and how it is scored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from lightning import Trainer
from omegaconf import DictConfig
from torch import Tensor

from frostline.averaging import Named, layers_with, put, renew_statistics, unlike
from frostline.backbones import Backbone, SavedModel, classifier_tensors, create_backbone
from frostline.config import build, check_targets, spec_of, trusted_targets
from frostline.data import ImageData
from frostline.data.stratify import canonical_order
from frostline.errors import ConfigError, DataError, FrostlineError, suggestion
from frostline.runs.evaluate import require_classes, require_pictures, run_data, scoring_task
from frostline.runs.parts import SUPPLIED, rank_count, validation_metrics
from frostline.runs.saved import load_saved
from frostline.runs.scoring import validate
from frostline.runs.soup_runs import Chooser, Ingredient
from frostline.runs.trainers import scoring_trainer
from frostline.specs import BackboneSpec, SoupNode, SoupSpec
from frostline.tasks import ScoringTask

UPDATE = ("auto", True, False)


@dataclass
class SoupParts:
    """The model that weights are put into, and what it is scored with.

    Attributes:
        run: the config of the run whose data, loss and metrics score.
        saved: the model, whose weights change, with its labels and input.
        data: prepared.
        task, trainer: score it.
        renewed: paths of the batch norms whose statistics are computed anew.
        pictures: at most so many training pictures for that; None takes all.
    """

    run: DictConfig
    saved: SavedModel
    data: ImageData
    task: ScoringTask
    trainer: Trainer
    renewed: tuple[str, ...]
    pictures: int | None

    def score(self, tensors: Named, *, mixed: bool) -> dict[str, float]:
        """Put weights into the model, renew its statistics where no training has made them, and score validation.

        Args:
            tensors: all of the model.
            mixed: whether they are of several models.
        """
        put(self.saved.model, tensors)
        if mixed and self.renewed:
            self._renew()
        return validate(self.trainer, self.task, self.data, "val")

    def weights(self) -> dict[str, Tensor]:
        """A copy of what is in the model, on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.saved.model.state_dict().items()}

    def _renew(self) -> None:
        device, precision = self.trainer.strategy.root_device, self.trainer.precision_plugin
        self.saved.model.to(device)

        def forward(images: Tensor) -> object:
            with precision.forward_context():
                return self.task(precision.convert_input(images))

        batches = (images.to(device) for images in self._training_pictures())
        if not renew_statistics(self.saved.model, self.renewed, batches, forward):
            raise DataError(
                "no batch of two training pictures could be read to compute the statistics of batch norms with",
                mend="Raise batch_size, or set soup.update_bn=false.",
            )

    def _training_pictures(self) -> Iterator[Tensor]:
        """Batches of training pictures as evaluation sees them, in an order that depends on their content alone."""
        order = canonical_order(self.data.splits["train"])
        # an order by class would give each batch the variance of one class
        mixed = order[np.random.default_rng(0).permutation(len(order))][: self.pictures]
        for batch, unreadable in self.data.deliveries("train", train=False, positions=mixed.tolist()):
            if unreadable and self.data.on_error != "skip":
                raise unreadable[0].fault
            if batch is not None:
                yield batch.images


@dataclass(frozen=True)
class Start:
    """The backbone that a run began with.

    Attributes:
        tensors: of its body, by name.
        fresh: names of tensors of the body that its weights did not have.
    """

    tensors: Mapping[str, Tensor]
    fresh: tuple[str, ...]


def check_soup(config: DictConfig) -> SoupSpec:
    """What was asked for, once all of it holds that can be known before the runs are read.

    Raises:
        ConfigError: with every fault.
    """
    spec = spec_of(config, SoupSpec)
    faults = list(_faults(spec.soup))
    if rank_count(config.trainer) != 1:
        faults.append(ConfigError("soup scores on one device", mend="Use trainer=auto, cpu or gpu."))
    if faults:
        raise ConfigError.of(faults)
    return spec


def _faults(node: SoupNode) -> Iterator[ConfigError]:
    if not node.alphas or not all(math.isfinite(alpha) and 0 <= alpha <= 1 for alpha in node.alphas):
        yield ConfigError(
            f"soup.alphas={node.alphas} are not shares from 0 to 1", mend="Such as 'soup.alphas=[0,0.25,0.5,0.75,1]'."
        )
    if node.update_bn not in UPDATE:
        yield ConfigError(f"soup.update_bn={node.update_bn}: there is no such choice", mend="auto, true or false.")
    if node.bn_pictures is not None and node.bn_pictures < 2:
        yield ConfigError(f"soup.bn_pictures={node.bn_pictures}", mend="A batch norm takes two pictures or more.")


def build_soup(
    config: DictConfig, spec: SoupSpec, runs: Sequence[Ingredient], chooser: Chooser, start: Start | None
) -> SoupParts:
    """The parts, from the first run's config and data.

    Raises:
        ConfigError: its config names what is not trusted, or has no such metric.
        DataError: the pictures are not those of the runs.
    """
    first = runs[0]
    saved = load_saved(first.folder, trust=config.trust, config_dirs=config.config_dirs)
    run = first.config
    data = run_data(run, division=first.folder.splits, root=spec.root, batch_size=spec.batch_size)
    require_classes(data, saved.labels)
    for split in data.splits:
        require_pictures(data, split, first.folder, moved=False)
    if "val" not in data.splits:
        raise DataError("the runs have no validation split, by which weights are chosen", mend="Train with one.")
    names = validation_metrics(run, len(data.classes))
    if chooser.metric not in names:
        problem = f"metric={chooser.metric}: the runs have no such metric"
        raise ConfigError(problem, mend=suggestion(chooser.metric, names, known_as="metrics"))
    data.prepare(saved.preprocessing, build(run.augment, "augment"), seed=run.seed)
    return SoupParts(
        run,
        saved,
        data,
        scoring_task(run, data, saved.model),
        scoring_trainer(config.trainer),
        _renewed(spec.soup, saved, runs, start),
        spec.soup.bn_pictures,
    )


def check_trust(config: DictConfig, run: Ingredient) -> None:
    """Raise where the config of a run names what is not trusted, before anything of it is built.

    Raises:
        ConfigError: listing all that is not trusted.
    """
    allowed = trusted_targets(config.config_dirs)
    check_targets(run.config, allowed=allowed, trust=config.trust, supplied=SUPPLIED)


def _renewed(node: SoupNode, saved: SavedModel, runs: Sequence[Ingredient], start: Start | None) -> tuple[str, ...]:
    if node.update_bn is False:
        return ()
    if node.update_bn is True:
        return layers_with(saved.model)
    return layers_with(saved.model, unlike([run.weights for run in runs], None if start is None else start.tensors))


def start_of(run: Ingredient) -> Start:
    """The pre-trained backbone of a run, loaded again as the run had it.

    Raises:
        ConfigError: it cannot be loaded, or is another than the run began with.
    """
    source = run.start["source"]
    config = run.config
    module = config.backbone.module
    try:
        backbone: Backbone = create_backbone(
            spec_of(config.backbone, BackboneSpec),
            num_classes=len(run.facts.labels),
            size=config.data.get("size"),
            module=None if module is None else build(module, "backbone.module"),
        )
    except FrostlineError as fault:
        raise ConfigError(
            f"{run.folder.path} began at {source}, which cannot be loaded now: {fault.problem}", mend=fault.mend
        ) from fault
    if backbone.report.sha256 != run.start["sha256"]:
        raise ConfigError(
            f"{run.folder.path} began at {source}, which holds other weights now: SHA-256 {backbone.report.sha256}, "
            f"then {run.start['sha256']}",
            mend="Put back the file that the run began with.",
        )
    head = classifier_tensors(backbone.model, backbone.head)
    fresh = frozenset(backbone.report.missing) - head
    body = {name: tensor.detach() for name, tensor in backbone.model.state_dict().items() if name not in head | fresh}
    return Start(body, tuple(sorted(fresh)))
