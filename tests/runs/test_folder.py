from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from frostline.errors import ConfigError, StorageError
from frostline.runs.folder import RunFolder, make_folder, overrides_hash, write_json


def test_a_folder_is_never_reused(tmp_path: Path) -> None:
    made = {make_folder(tmp_path / "deep", "x") for _ in range(20)}
    assert len(made) == 20
    assert all(path.is_dir() for path in made)


def _make(parent: str, results: multiprocessing.Queue[str]) -> None:
    for _ in range(20):
        results.put(str(make_folder(Path(parent), "x")))


def test_processes_that_start_at_once_share_no_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[str] = context.Queue()
    workers = [context.Process(target=_make, args=(str(tmp_path), results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    made = [results.get(timeout=60) for _ in range(60)]
    for worker in workers:
        worker.join()
    assert len(set(made)) == 60


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot hold a run"):
        make_folder(tmp_path / "x", "y")


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "outputs").touch()
    with pytest.raises(StorageError, match="cannot hold a run"):
        make_folder(tmp_path / "outputs" / "train", "y")


def test_the_hash_tells_overrides_apart_and_not_their_order() -> None:
    assert overrides_hash(["a=1", "b=2"]) == overrides_hash(["b=2", "a=1"]) != overrides_hash(["a=1"])


def test_json_is_whole_or_absent(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "m.json", {"val/accuracy": 0.5, "name": "é"})
    assert json.loads((tmp_path / "a" / "m.json").read_text()) == {"val/accuracy": 0.5, "name": "é"}
    assert os.listdir(tmp_path / "a") == ["m.json"]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run"):
        RunFolder.existing(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match="did not finish"):
        RunFolder.existing(tmp_path)
    assert RunFolder(tmp_path).read_metrics() == {}
