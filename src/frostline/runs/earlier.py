"""What earlier runs have done of a job: all of it, a part that can be gone on with, or nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from frostline.config import build, targets_of
from frostline.runs.folder import RunFolder
from frostline.runs.identity import find_earlier, recorded_fingerprint
from frostline.runs.jobs import ask_forked


def earlier_runs(config: DictConfig, fingerprints: dict[str, str | None]) -> list[RunFolder]:
    """Earlier runs of the same config on the same data, and those that have not come to load theirs; newest first.

    Args:
        config: of the job, with absolute paths.
        fingerprints: what is known of data as it is now; what is asked here is added, so that it is asked once.
    """
    found = find_earlier(Path(config.output) / str(config.name), config)
    recorded = [recorded_fingerprint(folder) for folder in found]
    if not any(recorded):
        return found
    now = _fingerprint(config, fingerprints)
    return [folder for folder, known in zip(found, recorded, strict=True) if known is None or known == now]


def _fingerprint(config: DictConfig, known: dict[str, str | None]) -> str | None:
    """The fingerprint of the job's data as it is now; None where it cannot be read."""
    node = OmegaConf.to_container(config.data, resolve=True)
    key = json.dumps(node, sort_keys=True, default=str)
    if key not in known:
        known[key] = ask_forked(read_fingerprint, node)
    return known[key]


def read_fingerprint(node: dict[str, Any]) -> str:
    """The fingerprint of the data that a ``data`` node names; needs torch.

    Raises:
        FrostlineError: the data cannot be read.
    """
    return str(build(OmegaConf.create(node), "data").fingerprint())


def go_on_with(command: str, config: DictConfig, earlier: Sequence[RunFolder]) -> RunFolder | None:
    """The newest of ``earlier`` that has a checkpoint, made ready to go on; None where there is none.

    Args:
        command: ``train`` or ``pretrain``: what they are runs of.
        config: of the job, which was asked for now.
        earlier: runs of the same, newest first.

    Raises:
        ConfigError: its config names what ``config`` does not.
    """
    from frostline.runs.resuming import is_started, prepare_resume

    folder = next((folder for folder in earlier if is_started(folder)), None)
    if folder is None:
        return None
    # what this command line names is trusted: the run was asked for the same
    trust = [*config.get("trust", []), *targets_of(config)]
    prepared = prepare_resume(folder.path, command=command, config_dirs=config.get("config_dirs", []), trust=trust)
    # what ended it before must not be taken for what ends it now
    folder.failure.unlink(missing_ok=True)
    return prepared
