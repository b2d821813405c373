"""Run folders of someone else: configs that name code, models that are pickles, checkpoints that point elsewhere."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf

import frostline
from frostline.checkpoints import Keeping, newest_loadable, read_checkpoint, write_checkpoint
from frostline.config import load_config
from frostline.errors import ConfigError, FrostlineError, StorageError
from frostline.runs.evaluate import evaluate
from frostline.runs.parts import build_parts
from frostline.runs.predict import predict
from frostline.runs.report import report
from frostline.runs.resuming import prepare_resume

Change = Callable[[dict[str, Any]], None]
Traps = dict[str, Any]


def spoil(run: Path, change: Change) -> None:
    """Change the config of a run as anyone could, in an editor."""
    content = yaml.safe_load((run / "config.yaml").read_text())
    change(content)
    (run / "config.yaml").write_text(yaml.safe_dump(content))


def evaluated(run: Path, *overrides: str) -> None:
    evaluate(frostline.compose([f"run={run}", "trainer=cpu", *overrides], command="evaluate"))


def predicted(run: Path, pictures: Path) -> None:
    output = run.parent / "predictions.csv"
    predict(frostline.compose([f"run={run}", f"images={pictures}", f"output={output}"], command="predict"))


COMMANDS: dict[str, Callable[[Path], Any]] = {
    "evaluate": evaluated,
    "report": lambda run: report(frostline.compose([f"run={run}"], command="report")),
    "resume": lambda run: prepare_resume(run, ["trainer.max_epochs=2"]),
}


@pytest.fixture(params=COMMANDS)
def read(request: pytest.FixtureRequest) -> Callable[[Path], Any]:
    """Each way in which the config of a run is read."""
    return COMMANDS[request.param]


def refused(read: Callable[[Path], Any], run: Path) -> str:
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(ConfigError) as caught:
        read(run)
    assert (run / "config.yaml").read_bytes() == before, "what is refused stays as it was"
    return str(caught.value)


def payload(canary: Path) -> dict[str, Any]:
    """A node that makes the canary when it is built, by a function that Hydra itself does not refuse."""
    return {"_target_": "shutil.copyfile", "src": __file__, "dst": str(canary)}


def payloads(canary: Path) -> dict[str, Any]:
    touch = f"touch {canary}"
    return {
        "copyfile": payload(canary),
        "system": {"_target_": "os.system", "command": touch},
        "popen": {"_target_": "subprocess.Popen", "args": touch, "shell": True},
        "exec": {"_target_": "builtins.exec", "_args_": [f"open({str(canary)!r}, 'w')"]},
        "instantiate": {"_target_": "hydra.utils.instantiate", "config": payload(canary)},
        "call": {"_target_": "hydra.utils.call", "_args_": [payload(canary)]},
        "get_method": {"_target_": "hydra.utils.get_method", "path": "os.system"},
        "get_object": {"_target_": "hydra.utils.get_object", "path": "shutil.copyfile"},
        "partial": {"_target_": "shutil.copyfile", "_partial_": True, "src": __file__, "dst": str(canary)},
        "through a module of ours": {"_target_": "frostline.runs.folder.os.system", "command": touch},
        "through a class of ours": {"_target_": "frostline.data.FolderData.__init__.__globals__"},
        "torch's loader": {"_target_": "torch.load", "f": "evil.pth", "weights_only": False},
        "torch's hub": {"_target_": "torch.hub.load", "repo_or_dir": "evil", "model": "x", "source": "local"},
        "timm's loader": {"_target_": "timm.create_model", "model_name": "x", "checkpoint_path": "evil.pth"},
        "a spaced name": {"_target_": " os.system", "command": touch},
        "a name on two lines": {"_target_": "os.system\n", "command": touch},
    }


PLACES: dict[str, Callable[[Any], Change]] = {
    "as the data": lambda evil: lambda config: config.update(data=evil),
    "as the loss": lambda evil: lambda config: config.update(loss=evil),
    "as a metric": lambda evil: lambda config: config["metrics"].update(evil=evil),
    "in a list": lambda evil: lambda config: config["augment"].update(transforms=[[evil]]),
    "as an argument": lambda evil: lambda config: config["data"].update(size=evil),
    "in _args_": lambda evil: lambda config: config["loss"].update(_args_=[evil]),
    "in a backbone's arguments": lambda evil: lambda config: config["backbone"]["kwargs"].update(block=evil),
    "as a callback": lambda evil: lambda config: config["callbacks"].update(evil=evil),
    "as a logger": lambda evil: lambda config: config["logger"].update(evil=evil),
    "as a plugin of the trainer": lambda evil: lambda config: config["trainer"].update(plugins=[evil]),
    "by reference": lambda evil: lambda config: config["data"].update(size="${.hidden}", hidden=evil),
}


def test_the_payload_works_where_it_is_built(canary: Path) -> None:
    instantiate(OmegaConf.create(payload(canary)))
    assert canary.exists()
    canary.unlink()


@pytest.mark.parametrize("place", PLACES)
def test_a_target_is_refused_wherever_it_stands(
    run: Path, canary: Path, read: Callable[[Path], Any], place: str
) -> None:
    spoil(run, PLACES[place](payload(canary)))
    assert "_target_=shutil.copyfile is not one of Frostline's own" in refused(read, run)


@pytest.mark.parametrize("name", payloads(Path()))
def test_a_target_is_refused_whatever_it_names(run: Path, canary: Path, read: Callable[[Path], Any], name: str) -> None:
    spoil(run, PLACES["as the loss"](payloads(canary)[name]))
    assert "is not one of Frostline's own" in refused(read, run)


INDIRECT: dict[str, Any] = {
    "another key": {"_target_": "${.name}", "name": "shutil.copyfile"},
    "a key that changes later": {"_target_": "${.names.${.workers}}", "names": {"auto": "shutil.copyfile"}},
    "a key that the program adds": {"_target_": "${.names.${.num_classes}}", "names": {10: "shutil.copyfile"}},
    "the environment": {"_target_": "${oc.env:FROSTLINE_NOT_SET,shutil.copyfile}"},
    "a piece": {"_target_": "shutil.${oc.env:FROSTLINE_NOT_SET,copyfile}"},
}
COMPUTED = [
    "${oc.create:'{_target_: shutil.copyfile, src: SRC, dst: DST}'}",
    "${oc.create:{_target_:shutil.copyfile,src:'SRC',dst:'DST'}}",
    "${oc.decode:'{_target_: shutil.copyfile, src: SRC, dst: DST}'}",
    "${oc.select:nowhere,{_target_:shutil.copyfile,src:'SRC',dst:'DST'}}",
    "${${.resolver}:'{_target_: shutil.copyfile, src: SRC, dst: DST}'}",
    "${oc.dict.values:loss}",
    "${hydra:runtime.cwd}",
    "${eval:1}",
]


@pytest.mark.parametrize("where", INDIRECT)
@pytest.mark.parametrize("place", ["as the data", "as the loss", "as a metric"])
def test_a_target_may_not_be_written_in_a_roundabout_way(
    run: Path, canary: Path, read: Callable[[Path], Any], where: str, place: str
) -> None:
    evil = {**payload(canary), **INDIRECT[where], "workers": 0}
    spoil(run, PLACES[place](evil))
    text = refused(read, run)
    assert "which the config of a run may not" in text or "is not one of Frostline's own" in text


@pytest.mark.parametrize("text", COMPUTED)
def test_a_node_may_not_be_computed(run: Path, canary: Path, read: Callable[[Path], Any], text: str) -> None:
    value = text.replace("SRC", __file__).replace("DST", str(canary))
    spoil(run, lambda config: config["data"].update(size=value, resolver="oc.create"))
    assert "computes its value" in refused(read, run)


def test_all_is_named_at_once(run: Path, canary: Path, read: Callable[[Path], Any]) -> None:
    for place in ("as the loss", "as a logger", "in a list"):
        spoil(run, PLACES[place](payload(canary)))
    text = refused(read, run)
    for key in ("loss._target_", "logger.evil._target_", "augment.transforms.0.0._target_"):
        assert key in text


def test_what_is_trusted_by_prefix_is_not_what_it_imports(run: Path, canary: Path) -> None:
    evil = {"_target_": "torchvision.datasets.utils.os.system", "command": f"touch {canary}"}
    spoil(run, PLACES["as the loss"](evil))
    with pytest.raises(ConfigError, match="outside what you trust"):
        evaluated(run, "trust=[torchvision]")


def test_the_worker_looks_at_what_the_names_lead_to(run: Path, canary: Path) -> None:
    evil = {"_target_": "torchvision.datasets.utils.os.system", "command": f"touch {canary}"}
    spoil(run, PLACES["as the loss"](evil))
    prepare_resume(run, ["trainer.max_epochs=2"], trust=["torchvision"])
    with pytest.raises(ConfigError, match="outside what you trust"):
        build_parts(load_config(run / "config.yaml"))


@pytest.mark.parametrize(
    "key", ["unknown", "hydra", "__class__", "defaults", "_target_", "a\x1b[2J", "../x", "<script>"]
)
def test_a_key_that_no_run_has_is_no_crash(run: Path, canary: Path, key: str) -> None:
    spoil(run, lambda config: config.update({key: [{"override": payload(canary)["dst"]}]}))
    with pytest.raises(ConfigError):
        prepare_resume(run, ["trainer.max_epochs=2"])


@pytest.mark.slow
def test_code_beside_a_run_is_not_imported(run: Path, canary: Path) -> None:
    for name in ("frostline.py", "torch.py", "sitecustomize.py", "conftest.py"):
        (run / name).write_text(f"open({str(canary)!r}, 'w').close()\n")
    done = public("evaluate", f"run={run}", "trainer=cpu", "split=val", cwd=run)
    assert done.returncode == 0, done.stderr


# --- models and checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_model_that_is_a_pickle_is_refused(run: Path, traps: Traps, name: str, tmp_path: Path) -> None:
    (run / "model" / "model.safetensors").unlink()
    torch.save({"x": traps["exec"]}, run / "model" / name)
    picture = tmp_path / "picture.png"
    shutil.copyfile(picture_of(tmp_path), picture)
    for use in (evaluated, lambda path: predicted(path, picture), lambda path: frostline.load(path).model):
        with pytest.raises(StorageError, match=name):
            use(run)
    with pytest.raises(StorageError, match=name):
        frostline.train(["trainer=cpu", f"backbone.weights={run}", "backbone.name=test_resnet", f"output={tmp_path}"])


def picture_of(folder: Path) -> Path:
    from PIL import Image

    path = folder / "digit.png"
    Image.new("RGB", (8, 8)).save(path)
    return path


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*.ckpt"))[-1]


def with_sum(path: Path) -> None:
    """Whoever writes a checkpoint can write its checksum."""
    import hashlib

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")


@pytest.mark.parametrize("kind", ["system", "exec", "eval", "touch"])
def test_a_checkpoint_with_code_is_refused(run: Path, traps: Traps, kind: str) -> None:
    path = newest(run)
    content = read_checkpoint(path)
    for place in ("callbacks", "state_dict", "frostline"):
        torch.save({**content, place: {**content[place], "evil": traps[kind]}}, path)
        with_sum(path)
        with pytest.raises(StorageError, match="tensors and plain types"):
            read_checkpoint(path)
    with pytest.raises(StorageError, match="no checkpoint to go on from"):
        newest_loadable(run / "checkpoints")


@pytest.mark.slow
def test_a_checkpoint_with_code_does_not_resume(run: Path, traps: Traps) -> None:
    path = newest(run)
    torch.save({**read_checkpoint(path), "evil": traps["system"]}, path)
    with_sum(path)
    done = public("train", f"run={run}", "resume=true", "trainer.max_epochs=2")
    assert done.returncode == StorageError.exit_code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04" + b"\0" * 100, b"\x80\x02." * 3])
def test_a_checkpoint_that_is_none_is_refused(run: Path, content: bytes) -> None:
    newest(run).write_bytes(content)
    with_sum(newest(run))
    with pytest.raises(StorageError):
        newest_loadable(run / "checkpoints")


def test_a_damaged_checkpoint_is_refused_however_it_is_damaged(run: Path) -> None:
    import random

    path = newest(run)
    write_checkpoint({"frostline": {}, "a": torch.ones(3)}, path)
    whole = path.read_bytes()
    choose = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[choose.randrange(700)] = choose.randrange(256)
        path.write_bytes(damaged)
        with_sum(path)
        with contextlib.suppress(StorageError):
            read_checkpoint(path)


OUTSIDE = ["/tmp/victim", "../victim", "..", "", "a/step-00000001.ckpt", "step-00000001.ckpt\n", "x.ckpt", 5]


@pytest.mark.parametrize("file", OUTSIDE)
def test_a_checkpoint_names_no_file_that_lies_elsewhere(file: Any) -> None:
    keeping = Keeping(keep_best=1, keep_latest=1, larger_is_better=True)
    with pytest.raises(StorageError):
        keeping.load_state_dict({"records": [{"file": file, "step": 1, "score": None}]})


@pytest.mark.slow
def test_a_checkpoint_does_not_delete_what_lies_elsewhere(run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (run / "victim").write_text("mine")
    path = newest(run)
    content = read_checkpoint(path)
    key = next(key for key in content["callbacks"] if "Checkpointing" in key)
    evil = [{"file": file, "step": 1, "score": None} for file in (str(victim), "../../victim", "../victim")]
    records = [*evil, *content["callbacks"][key]["records"]]
    write_checkpoint({**content, "callbacks": {**content["callbacks"], key: {"records": records}}}, path)
    done = public("train", f"run={run}", "resume=true", "trainer.max_epochs=2")
    assert done.returncode == StorageError.exit_code, done.stderr
    assert victim.read_text() == "mine"
    assert (run / "victim").read_text() == "mine"


LINKS = ["metrics.json.part", ".config.before.yaml", ".config.yaml.part", "metrics.csv", "checkpoints/.x.part", ".lock"]


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("there", [True, False])
def test_a_link_out_of_a_run_is_not_written_through(
    run: Path, tmp_path: Path, read: Callable[[Path], Any], name: str, there: bool
) -> None:
    victim = tmp_path / "victim"
    if there:
        victim.write_text("mine")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim)
    assert str(run / name) in refused(read, run)
    assert victim.read_text() == "mine" if there else not victim.exists()


def test_a_run_may_hold_links_to_itself_and_folders_that_lie_elsewhere(run: Path, tmp_path: Path) -> None:
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (run / "latest.csv").symlink_to("metrics.csv")
    prepare_resume(run, ["trainer.max_epochs=2"])


# --- the public command -----------------------------------------------------------------------------------------------


def public(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-P", "-m", "frostline.cli", *arguments]
    return subprocess.run(
        line, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, **environment}, timeout=120
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_the_public_command_refuses_a_foreign_target(run: Path, canary: Path, command: str) -> None:
    spoil(run, PLACES["as the data"](payload(canary)))
    more = ["resume=true"] if command == "train" else ["trainer=cpu"]
    done = public(command, f"run={run}", *more)
    assert done.returncode == ConfigError.exit_code
    assert "data._target_=shutil.copyfile is not one of Frostline's own" in done.stderr
    assert "Traceback" not in done.stderr


def test_prediction_does_not_read_the_config_of_the_run(run: Path, canary: Path, tmp_path: Path) -> None:
    spoil(run, PLACES["as the data"](payload(canary)))
    predicted(run, picture_of(tmp_path))
    assert (tmp_path / "predictions.csv").is_file()


def test_a_run_does_not_lift_the_limits_on_pictures(run: Path) -> None:
    from frostline.data import PIXEL_LIMIT
    from frostline.runs.evaluate import run_data

    spoil(run, lambda config: config["data"].update(pixel_limit=10**15))
    assert run_data(load_config(run / "config.yaml")).pixel_limit == PIXEL_LIMIT


def test_a_run_does_not_lift_the_limit_on_files(run: Path, tmp_path: Path) -> None:
    from frostline.data.decoding import FILE_LIMIT
    from frostline.runs.evaluate import run_data

    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            picture_of(tmp_path / "set" / split / name)
    node = {"_target_": "frostline.data.FolderData", "root": str(tmp_path / "set"), "file_limit": 10**15}
    spoil(run, lambda config: config.update(data=node))
    assert run_data(load_config(run / "config.yaml")).file_limit == FILE_LIMIT


def test_values_of_the_wrong_kind_are_no_crash(run: Path) -> None:
    for key, value in {"pixel_limit": "evil", "batch_size": -1, "size": "x", "on_error": "y"}.items():
        before = (run / "config.yaml").read_bytes()
        spoil(run, lambda config, key=key, value=value: config["data"].update({key: value}))  # type: ignore[misc]
        with pytest.raises(FrostlineError):
            evaluated(run)
        (run / "config.yaml").write_bytes(before)
