"""``frostline report run=RUN``: a finished run, or a sweep, as one page that needs nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from frostline.config import build, check_targets, load_config, spec_of, trusted_targets
from frostline.data.fingerprint import split_fingerprint
from frostline.errors import ConfigError, FrostlineError, Interrupted, StorageError
from frostline.reports import run_page
from frostline.runs.compare_runs import is_sweep
from frostline.runs.evaluate import require_classes, run_data
from frostline.runs.folder import RunFolder
from frostline.runs.identity import recorded_splits
from frostline.runs.parts import SUPPLIED
from frostline.runs.predict import device_of
from frostline.runs.report_pictures import Gallery, Source, gallery
from frostline.runs.report_run import Recorded, page_of
from frostline.runs.report_sweep import sweep_report
from frostline.runs.saved import load_saved
from frostline.specs import ReportSpec


def report(config: DictConfig) -> Path:
    """Write the page of a run or of a sweep from its files, its model and its pictures; where it is.

    Raises:
        ConfigError: there is no such run, it is none of ``train`` or ``soup``, or its config names a target that is not
            trusted.
        StorageError: the page cannot be written.
    """
    spec = spec_of(config, ReportSpec)
    path = Path(spec.run).expanduser().absolute()
    target = None if spec.output is None else Path(spec.output).expanduser().absolute()
    if is_sweep(path):
        page = target or path / "report.html"
        _written(page, lambda: sweep_report(path, page, spec))
    else:
        folder = RunFolder.existing(path)
        page = target or folder.report
        _written(page, lambda: _write(page, folder, spec))
    print(f"report: {page}", flush=True)
    return page


def _written(page: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        mend = "Choose another place: output=FILE.html."
        raise StorageError(f"{page} cannot be written: {error.strerror or error}", mend=mend) from error


def _write(page: Path, folder: RunFolder, spec: ReportSpec) -> None:
    recorded = Recorded.of(folder)
    made_by = recorded.provenance.get("command", "train")
    if made_by not in ("train", "soup"):
        raise ConfigError(
            f"run={folder.path} is of `{made_by}`, which scores no model as `train` does",
            mend="A report is of a run of `train` or `soup`, or of a sweep.",
        )
    run = load_config(folder.config)
    check_targets(run, allowed=trusted_targets(spec.config_dirs), trust=spec.trust, supplied=SUPPLIED)
    source, why_none = _source(folder, run, spec, recorded.split)
    if why_none:
        print(f"note: {why_none}")
    write_page_of(page, recorded, source, why_none)


def _source(folder: RunFolder, run: DictConfig, spec: ReportSpec, split: str) -> tuple[Source | None, str]:
    """Where the pictures of a split come from; None, and a sentence on why, where they are not those of the run."""
    saved = load_saved(folder, trust=spec.trust, config_dirs=spec.config_dirs)
    try:
        data = run_data(run, division=folder.splits, root=spec.root)
        require_classes(data, saved.labels)
    except FrostlineError as error:
        return None, f"Without pictures, which cannot be read: {error.problem.rstrip('.')}."
    known = recorded_splits(folder).get(split)
    if split not in data.splits or (known is not None and known != split_fingerprint(data.splits[split])):
        return None, f"Without pictures: those of the {split} split are not the ones that the run had."
    device = device_of(spec.device)
    augmentation = build(run.augment, "augment")
    model = saved.model.to(device).eval()
    return Source(data, augmentation, saved.preprocessing, model, int(run.seed), device), ""


def write_page_of(page: Path, recorded: Recorded, source: Source | None, why_none: str = "") -> None:
    """Write the page of a run.

    Args:
        page: the file.
        recorded: what the run has written.
        source: its pictures and its model; None for a page without them.
        why_none: a sentence on that.

    Raises:
        OSError: the page cannot be written.
    """
    predictions = recorded.predictions()
    if predictions is None:
        pictures = Gallery(note=f"Without pictures: predictions/{recorded.split}.parquet cannot be read.")
    else:
        pictures = gallery(predictions, recorded.split, source, why_none)
    run_page(page, page_of(recorded, pictures))


def report_at_end(folder: RunFolder, source: Source) -> None:
    """Write the page of a run that has just ended; what goes wrong with it is told, and is no fault of the run.

    Args:
        folder: of the run, which is whole.
        source: its pictures and its model.
    """
    try:
        write_page_of(folder.report, Recorded.of(folder), source)
    except Interrupted:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"warning: no report was written: {reason}", file=sys.stderr, flush=True)
        return
    print(f"report: {folder.report}", flush=True)
