from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

from frostline.runs.folder import RunFolder
from frostline.runs.ledger import LEDGER, Looks, ledger_of, look

SPLIT, OTHER = "a" * 64, "b" * 64


def run_in(output: Path, name: str, weights: bytes = b"weights") -> RunFolder:
    folder = RunFolder(output / "train" / name)
    folder.model.mkdir(parents=True)
    (folder.model / "model.safetensors").write_bytes(weights)
    return folder


def seen(folder: RunFolder, command: str = "evaluate", split: str = SPLIT, output: Path | None = None) -> Looks:
    return look(folder, split, pictures=9, command=command, output=str(output) if output else None)


def test_looks_are_counted_over_the_runs_of_an_output_folder(tmp_path: Path) -> None:
    one, two = run_in(tmp_path, "one"), run_in(tmp_path, "sweep/two")
    assert seen(one, "train", output=tmp_path).sentence == "test split scored once"
    assert seen(one, output=tmp_path).sentence == "test split scored 2 times, all by this run"
    assert seen(two, "train", output=tmp_path).sentence == "test split scored 3 times, by this run and 1 other"
    # another division of the data, or other data
    assert seen(two, split=OTHER, output=tmp_path).count == 1
    lines = [json.loads(line) for line in (tmp_path / LEDGER).read_text().splitlines()]
    assert [line["run"] for line in lines] == ["train/one", "train/one", "train/sweep/two", "train/sweep/two"]
    assert set(lines[0]) == {"date", "split", "pictures", "run", "command", "model"}


def test_a_training_that_is_resumed_counts_again_only_with_another_model(tmp_path: Path) -> None:
    folder = run_in(tmp_path, "one")
    assert [seen(folder, "train", output=tmp_path).count for _ in range(3)] == [1, 1, 1]
    (folder.model / "model.safetensors").write_bytes(b"after more epochs")
    assert seen(folder, "train", output=tmp_path).count == 2
    assert [seen(folder, output=tmp_path).count for _ in range(2)] == [3, 4]


def test_an_output_folder_that_was_moved_keeps_its_count(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    seen(run_in(before, "one"), "train", output=before)
    shutil.move(before, after)
    moved = RunFolder(after / "train" / "one")
    assert seen(moved, output=before).count == 2
    assert not before.exists()
    assert ledger_of(moved, str(before)) == after / LEDGER
    # a run alone, whose output folder is elsewhere
    alone = run_in(tmp_path / "alone", "one")
    assert ledger_of(alone, str(before)) == alone.path.parent / LEDGER


def test_a_link_to_a_run_does_not_start_anew(tmp_path: Path) -> None:
    output, elsewhere = tmp_path / "output", tmp_path / "elsewhere"
    folder = run_in(output, "one")
    seen(folder, "train", output=output)
    elsewhere.mkdir()
    (elsewhere / "best").symlink_to(folder.path)
    (tmp_path / "linked").symlink_to(output)
    for path in (elsewhere / "best", tmp_path / "linked" / "train" / "one"):
        for named in (output, tmp_path / "linked", None):
            assert ledger_of(RunFolder(path), str(named) if named else None) == output / LEDGER
    found = seen(RunFolder(elsewhere / "best"), output=output)
    assert found.sentence == "test split scored 2 times, all by this run"


def test_a_line_that_was_cut_short_costs_that_line_alone(tmp_path: Path) -> None:
    folder = run_in(tmp_path, "one")
    seen(folder, output=tmp_path)
    with (tmp_path / LEDGER).open("ab") as file:
        file.write(b'{"date": "2026-11-2\xff')
    assert seen(folder, output=tmp_path).count == 2
    with (tmp_path / LEDGER).open("ab") as file:
        file.write(b"[1, 2]\nnull\n\n")
    assert seen(folder, output=tmp_path).count == 3


def _look_often(output: str, name: str) -> None:
    for _ in range(25):
        seen(RunFolder(Path(output) / "train" / name), output=Path(output))


def test_processes_that_write_at_once_lose_no_line(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    names = ["one", "two", "three", "four"]
    for name in names:
        run_in(tmp_path, name)
    writers = [context.Process(target=_look_often, args=(str(tmp_path), name)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    lines = [json.loads(line) for line in (tmp_path / LEDGER).read_text().splitlines()]
    assert len(lines) == 100
    found = seen(RunFolder(tmp_path / "train" / "one"), output=tmp_path)
    assert (found.count, found.other_runs) == (101, 3)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_ledger_that_cannot_be_written_is_a_note(tmp_path: Path) -> None:
    folder = run_in(tmp_path, "one")
    seen(folder, output=tmp_path)
    (tmp_path / LEDGER).chmod(0o444)
    found = seen(folder, output=tmp_path)
    assert found.count == 2
    assert found.fault == "Permission denied"


def test_a_link_or_a_folder_in_its_place_is_left_alone_and_said(tmp_path: Path) -> None:
    folder = run_in(tmp_path / "out", "one")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    ledger = tmp_path / "out" / LEDGER
    ledger.symlink_to(victim)
    found = seen(folder, output=tmp_path / "out")
    assert victim.read_text() == "mine"
    assert found.count == 1
    assert f"this look is not in {ledger}" in found.sentence
    ledger.unlink()
    ledger.mkdir()
    assert seen(folder, output=tmp_path / "out").fault
    ledger.rmdir()
    os.mkfifo(ledger)
    assert seen(folder, output=tmp_path / "out").fault
