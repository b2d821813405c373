"""The command line: composes and validates without importing torch, then hands over to a worker."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from frostline.cli.completion import complete
from frostline.cli.help import command_help, overview
from frostline.config import COMMANDS, absolute_paths, compose_job, hydra_session
from frostline.errors import ConfigError, FrostlineError, StorageError, suggestion

if TYPE_CHECKING:
    from frostline.runs.folder import RunFolder

__all__ = ["main"]

STARTS_A_RUN = ("train", "pretrain")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, mend="`frostline COMMAND --help` shows the options and how overrides are written.")


def _parser() -> _Parser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd", action="append", default=[])
    return parser


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``frostline ARGV`` and exit: 0, or the exit code of the error tree, or 1 when a sweep has a failed job."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        sys.exit(_dispatch(arguments))
    except FrostlineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(StorageError.exit_code)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(overview())
        return 0
    command, rest = arguments[0], arguments[1:]
    if command == "--version":
        from importlib.metadata import version

        print(version("frostline"))
        return 0
    if command == "completion":
        return complete(rest)
    if command not in COMMANDS:
        raise ConfigError(f"There is no command '{command}'", mend=suggestion(command, COMMANDS, known_as="commands"))
    options = _parser().parse_intermixed_args(rest)
    with hydra_session(options.config_dir) as hydra:
        if options.help:
            print(command_help(hydra, command))
            return 0
        if options.cfg:
            _show(hydra, command, options)
            return 0
        if options.multirun:
            return _sweep(hydra, command, options.overrides)
        # a resumed run has its own config, to which the other overrides belong
        asks = _asks_to_resume(options.overrides) if command in STARTS_A_RUN else []
        config = compose_job(hydra, command, asks) if asks else None
        if config is None or not config.resume:
            config = compose_job(hydra, command, options.overrides)
    if "config_dirs" in config:
        config.config_dirs = [str(Path(folder).absolute()) for folder in options.config_dir]
    return _start(command, config, options.overrides)


def _asks_to_resume(overrides: Sequence[str]) -> list[str]:
    from frostline.runs.resuming import is_of_the_command

    return [item for item in overrides if is_of_the_command(item)]


def _start(command: str, config: DictConfig, overrides: Sequence[str]) -> int:
    if command in STARTS_A_RUN:
        from frostline.runs.starting import become_worker

        folder = _run_folder(command, config, overrides)
        if folder is None:
            return 0
        become_worker(command, folder)
    from frostline.runs.worker import execute

    absolute_paths(config)
    return execute(command, config)


def _run_folder(command: str, config: DictConfig, overrides: Sequence[str]) -> RunFolder | None:
    """The folder of a new run, or of the one to go on with; None where a requeued job had finished its run."""
    from frostline.runs import slurm
    from frostline.runs.folder import RunFolder
    from frostline.runs.resuming import is_started, prepare_resume
    from frostline.runs.starting import prepare

    earlier = _earlier_run(command, config)
    trusted = {"command": command, "config_dirs": config.config_dirs, "trust": config.trust}
    if earlier is not None:
        return prepare_resume(earlier, overrides, **trusted)
    restarted = slurm.restarted_run(Path(config.output).absolute() / str(config.name), overrides)
    if restarted and RunFolder(restarted).finished:
        print(f"done before: {restarted}", flush=True)
        return None
    if restarted and is_started(RunFolder(restarted)):
        print(f"requeued: going on with {restarted}", flush=True)
        return prepare_resume(restarted, **trusted)
    folder = prepare(config, overrides)
    slurm.remember(folder, overrides)
    return folder


def _earlier_run(command: str, config: DictConfig) -> Path | None:
    if config.resume and not config.run:
        raise ConfigError(
            "resume=true: which run?", mend=f"Name its folder: frostline {command} run=FOLDER resume=true"
        )
    if config.run and not config.resume:
        mend = "To go on with it add resume=true; to start from its weights: backbone.weights=FOLDER."
        raise ConfigError(f"run={config.run} without resume=true has no meaning for {command}", mend=mend)
    return Path(config.run) if config.run else None


def _show(hydra: Hydra, command: str, options: argparse.Namespace) -> None:
    if options.cfg == "job":
        config = compose_job(hydra, command, options.overrides, complete=False)
    else:
        config = hydra.compose_config(command, options.overrides, run_mode=RunMode.RUN)
        if options.cfg == "hydra":
            config = OmegaConf.masked_copy(config, "hydra")
    if options.package:
        config = OmegaConf.select(config, options.package)
        if config is None:
            raise ConfigError(f"--package {options.package}: there is no such key in the config")
    if not OmegaConf.is_config(config):
        print(config)
        return
    print(OmegaConf.to_yaml(config, resolve=options.resolve), end="")


def _sweep(hydra: Hydra, command: str, overrides: Sequence[str]) -> int:
    if command not in STARTS_A_RUN:
        raise ConfigError(f"-m is for {' and '.join(STARTS_A_RUN)}, not for {command}")
    if any(item.split("=", 1)[0] in ("run", "resume") for item in overrides):
        mend = "Repeat the sweep's own command: it goes on with what is missing."
        raise ConfigError("run= and resume= go on with a single run, without -m", mend=mend)
    from frostline.runs import sweep, sweep_means
    from frostline.runs.tables import print_table

    settings = hydra.compose_config(
        command, [item for item in overrides if item.startswith("hydra")], run_mode=RunMode.RUN
    )
    if settings.hydra.sweeper._target_.endswith("BasicSweeper"):
        count = sweep.check_jobs(hydra, command, overrides)
        print(f"sweep: {count} jobs", flush=True)
    parent, jobs = sweep.sweep(hydra, command, overrides)
    header, rows = sweep.table(jobs)
    sweep.write_table(parent, header, rows)
    print_table(header, rows)
    sweep_means.report_means(parent, jobs)
    failed = [job for job in jobs if job.exit_code]
    for job in failed:
        print(f"failed: job {job.number} ({' '.join(job.overrides)}): {job.failure}", file=sys.stderr)
    print(f"sweep: {parent}")
    return sweep.exit_code(jobs)
