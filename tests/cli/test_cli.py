from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from frostline.cli import main
from frostline.cli.completion import candidates
from frostline.config import COMMANDS


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


def test_alone_it_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_explains_groups_and_quoting(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--help") == 0
    text = capsys.readouterr().out
    assert f"frostline {command}" in text
    assert "Quoting" in text
    assert "Examples" in text
    if command in ("train", "pretrain", "inspect"):
        assert "digits, folder, hf, npz, pictures, table, torchvision, webdataset" in text


def test_cfg_job_prints_a_config_that_loads(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "--cfg", "job", "seed=5") == 0
    config = OmegaConf.create(capsys.readouterr().out)
    assert config.seed == 5
    assert "hydra" not in config


def test_cfg_job_shows_a_part_and_resolves(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "--cfg", "job", "--resolve", "--package", "callbacks.checkpoint", "folder=/f") == 0
    assert OmegaConf.create(capsys.readouterr().out).folder == "/f/checkpoints"
    assert call("train", "--cfg", "job", "-p", "seed") == 0
    assert capsys.readouterr().out == "0\n"


def test_cfg_job_works_with_values_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "--cfg", "job", "data=folder") == 0
    assert "root: ???" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["trian"], "'train'"),
        (["train", "optimizer.lrr=1"], "'lr'"),
        (["train", "--mutlirun"], "--mutlirun"),
        (["train", "data=foldr"], "'folder'"),
        (["train", "-m", "seed=0,x", "optimizer.lrr=1,2"], "optimizer.lrr"),
        (["predict", "-m", "run=a,b"], "-m is for"),
        (["train", "--config-dir", "/no/such/folder"], "is not a folder"),
    ],
)
def test_faults_exit_with_2_and_one_message(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert part in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_help_config_and_faults_do_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from frostline.cli import main\n"
        "for line in (['train', '-h'], ['train', '--cfg', 'job'], ['train', 'seed=x'], ['train', '-m', 'sed=0,1']):\n"
        "    try: main(line)\n"
        "    except SystemExit: pass\n"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'lightning', 'timm', 'sklearn', 'numpy')))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_completion_knows_the_command_word() -> None:
    assert "train " in candidates("frostline tr")
    assert "freeze=linear_probe" in candidates("frostline train freeze=l")
    assert "optimizer.lr=" in candidates("frostline train seed=1 optimizer.l")
    assert "data=folder" in candidates("frostline pretrain data=")
    assert not any("schema" in item for item in candidates("frostline train freeze="))
    assert candidates("frostline nonsense fre") == []


def test_completion_completes_files(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    assert candidates(f"frostline train data.root={tmp_path}/pic") == [f"data.root={tmp_path}/pictures"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_pass_the_whole_line(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("completion", f"install={shell}") == 0
    assert "completion query" in capsys.readouterr().out


def test_bash_completion_works_in_bash(tmp_path: Path) -> None:
    program = tmp_path / "frostline"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m frostline.cli "$@"\n')
    program.chmod(0o755)
    script = (
        f'export PATH="{tmp_path}:$PATH"; eval "$(frostline completion install=bash)"\n'
        'COMP_LINE="frostline train freeze=linear"; COMP_POINT=${#COMP_LINE}\n'
        'COMP_WORDS=(frostline train freeze=linear); COMP_CWORD=2; _frostline_complete; echo "${COMPREPLY[@]}"\n'
    )
    shell = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert shell.stdout.strip() == "freeze=linear_probe"


def test_a_requeued_job_whose_run_is_done_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from frostline.config import compose
    from frostline.runs import slurm
    from frostline.runs.starting import prepare

    overrides = ["seed=3", f"output={tmp_path}"]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    done = prepare(compose("train", overrides), overrides)
    slurm.remember(done, overrides)
    done.metrics.write_text("{}")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert call("train", *overrides) == 0
    assert capsys.readouterr().out == f"done before: {done.path}\n"
