"""Frostline from Python: compose, train, resume, load, predict."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from frostline import config as configs
from frostline.runs.folder import RunFolder
from frostline.runs.resuming import prepare_resume
from frostline.runs.starting import prepare, raise_failure, worker_command

if TYPE_CHECKING:
    from PIL import Image

    from frostline.backbones import SavedModel


@dataclass(frozen=True)
class Prediction:
    """The label of one picture.

    Attributes:
        label: the most probable class.
        probabilities: class to probability; they sum to 1.
    """

    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder.

    Attributes:
        path: the run folder.
        trust: import prefixes, or whole names, that its config may name for a backbone that is not timm's, beside those
            of Frostline's conf; None for a run of this program's own config.
    """

    path: Path
    trust: tuple[str, ...] | None = field(default=(), compare=False, repr=False)

    @property
    def folder(self) -> RunFolder:
        """The files of the run."""
        return RunFolder(self.path)

    @property
    def metrics(self) -> dict[str, float]:
        """The flat ``split/metric`` scores of ``metrics.json``."""
        return self.folder.read_metrics()

    @property
    def config(self) -> DictConfig:
        """The resolved config."""
        return configs.load_config(self.folder.config)

    @cached_property
    def _saved(self) -> SavedModel:
        from frostline.runs.saved import load_saved

        return load_saved(self.folder, trust=self.trust)

    @property
    def model(self) -> Any:
        """The fine-tuned ``torch.nn.Module``, in eval: ``[B, C, H, W]`` float32 in, ``[B, K]`` logits out.

        Raises:
            ConfigError: it is of a module that is not trusted.
        """
        return self._saved.model.eval()

    @property
    def labels(self) -> tuple[str, ...]:
        """The K class names, in the order of the logits."""
        return tuple(self._saved.labels)

    def predict(
        self,
        pictures: Sequence[Image.Image | str | Path],
        *,
        device: str = "cpu",
        calibrated: bool = True,
        workers: int = 0,
    ) -> list[Prediction]:
        """Label pictures, given as PIL images or as paths, as ``frostline predict`` does.

        Args:
            pictures: any number; the command keeps what is done where they are very many.
            device: ``auto``, ``cpu`` or ``cuda``.
            calibrated: divide the logits by the temperature that the run fitted on validation, where it has one.
            workers: processes that decode; 0 decodes in this one.

        Raises:
            ConfigError: it is a run of a module that is not trusted.
            DataError: a file cannot be read.
        """
        from frostline.runs.labelling import GivenPictures, labeller_of
        from frostline.runs.predict import device_of

        if not pictures:
            return []
        labeller = labeller_of(self.folder, self._saved, device=device_of(device), calibrated=calibrated)
        found = []
        for labelled in labeller.label(GivenPictures(pictures), range(len(pictures)), workers=workers):
            if labelled.unreadable:
                raise labelled.unreadable[0].fault
            found += [dict(zip(self.labels, row, strict=True)) for row in labelled.probabilities.tolist()]
        return [Prediction(max(row, key=row.__getitem__), row) for row in found]


def compose(
    overrides: Sequence[str] = (), *, command: str = "train", config_dirs: Sequence[str | Path] = ()
) -> DictConfig:
    """The checked config of a command, as ``frostline COMMAND OVERRIDES --cfg job`` shows it.

    Args:
        overrides: ``["freeze=linear_probe", "optimizer.lr=1e-4"]``.
        command: ``train`` or ``pretrain``, or another command.
        config_dirs: folders of your own configs.

    Raises:
        ConfigError: with every fault.
    """
    return configs.compose(command, overrides, config_dirs)


def train(config: DictConfig | Sequence[str] = ()) -> Run:
    """Train in this process and return the finished run.

    Args:
        config: from ``compose``, possibly changed since; or overrides.

    Raises:
        FrostlineError: what the command line would print.
    """
    chosen = config if isinstance(config, DictConfig) else compose(config)
    chosen = chosen.copy()
    return _trained(prepare(chosen, []), trust=None)


def resume(path: str | Path, overrides: Sequence[str] = (), *, trust: Sequence[str] = ()) -> Run:
    """Go on with a run where it stopped, in this process, and return it finished.

    Args:
        path: the run's folder.
        overrides: what may change, such as ``["trainer.max_epochs=20"]``.
        trust: import prefixes of your own that the run's config names.

    Raises:
        FrostlineError: what the command line would print; a run that has changed is refused.
    """
    return _trained(prepare_resume(Path(path), overrides, trust=trust), trust=tuple(trust))


def _trained(folder: RunFolder, trust: tuple[str, ...] | None) -> Run:
    from frostline.runs import train as command
    from frostline.runs.parts import rank_count
    from frostline.runs.worker import make_steps_cheap, quiet_frameworks

    config = configs.load_config(folder.config)
    quiet_frameworks()
    make_steps_cheap(config)
    if rank_count(config.trainer) != 1:
        # Lightning starts the other ranks by running the main program again, which has to be the worker
        raise_failure(subprocess.run(worker_command("train", folder), check=False).returncode, folder)
    else:
        command.train(config)
    return Run(folder.path, trust)


def load(path: str | Path, *, trust: Sequence[str] = ()) -> Run:
    """A finished run, by its folder.

    Args:
        path: the run's folder.
        trust: import prefixes of your own that the run's config may name for a backbone that is not timm's.

    Raises:
        ConfigError: there is no finished run at ``path``.
    """
    return Run(RunFolder.existing(path).path, tuple(trust))
