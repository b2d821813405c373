"""The comparison with the peers: that it is fair, as far as no clock is needed, and whole where a peer is not."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SPEED = ROOT / "scripts" / "bench" / "speed"
PEERS = SPEED / "peers"
NAMES = {path.stem for folder in (SPEED, PEERS) for path in folder.glob("*.py")}


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports a file of the comparison, as its own scripts do."""
    for folder in (PEERS, SPEED):
        monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def job(part: Callable[[str], Any], tmp_path: Path) -> Any:
    """A probe of three epochs on 60 pictures in colors that tell the class."""
    pictures, generator = part("pictures"), np.random.default_rng(0)
    for split, count in (("train", 36), ("val", 12), ("test", 12)):
        for number in range(count):
            folder = tmp_path / "pictures" / split / "abcd"[number % 4]
            folder.mkdir(parents=True, exist_ok=True)
            color = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40)][number % 4])
            noisy = np.clip(color + generator.normal(0, 20, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"{number:02d}.jpg")
    pictures.make_weights(tmp_path / "weights", "test_resnet", tmp_path / "pictures", 32)
    (tmp_path / "scratch").mkdir()
    return part("job").Job(
        root=str(tmp_path / "pictures"),
        weights=str(tmp_path / "weights"),
        scratch=str(tmp_path / "scratch"),
        size=32,
        batch_size=12,
        head_epochs=3,
        full_epochs=0,
        head_lr=0.01,
        full_lr=0.001,
        seed=0,
        workers=0,
        device="cpu",
    )


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    # its files import each other, which a run's own processes may not
    own = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    return subprocess.run([sys.executable, SPEED / "bench.py", *arguments], capture_output=True, text=True, env=own)


def test_it_says_how_it_is_run() -> None:
    done = command("--help")
    assert done.returncode == 0
    assert "scripts/bench/speed/run --folder PICTURES" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    done = command("--device", "cuda", "--output", str(tmp_path / "out"))
    assert done.returncode == 1
    assert done.stderr == "error: --device cuda: no CUDA device here\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [["--rate-epochs", "1"], ["--repeats", "0"], ["--only", "az"], ["--device", "tpu"]]
)
def test_what_cannot_be_measured_is_refused(part: Callable[[str], Any], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        part("bench").parse(arguments)
    assert refused.value.code == 2


def test_quick_leaves_what_is_said_beside_it(part: Callable[[str], Any]) -> None:
    found = part("bench").parse(["--quick", "--epochs", "5"])
    assert (found.epochs, found.backbone, found.peers_python) == (5, "test_resnet", sys.executable)


# what the peers are


def test_each_entrant_names_a_way_that_its_file_knows(part: Callable[[str], Any]) -> None:
    ways = {path.name: ways_of(path) for path in PEERS.glob("*.py")}
    entrants = part("contest").ENTRANTS
    assert all(entrant.way in ways[entrant.file] for entrant in entrants)
    assert {(entrant.file, entrant.way) for entrant in entrants} == {
        (file, way) for file, known in ways.items() for way in known
    }


def ways_of(path: Path) -> set[str]:
    """The keys of what a peer's file gives to ``main``, read without running it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "main" and node.args:
            [given] = node.args
            return (
                {key.value for key in given.keys if isinstance(key, ast.Constant)}
                if isinstance(given, ast.Dict)
                else set()
            )
    return set()


def test_what_the_peers_share_with_frostline_is_in_its_locked_set() -> None:
    locked, own = (
        set(re.findall(r"^([\w.-]+)==", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
        for path in (
            ROOT / "requirements.txt",
            SPEED / "requirements.txt",
        )
    )
    fastai = {"torch", "torchvision", "matplotlib", "pandas", "requests", "pyyaml", "pillow", "scikit-learn", "scipy"}
    fasthtml = {"starlette", "uvicorn", "python-dateutil"}
    assert fastai | fasthtml | {"cloudpickle", "packaging", "lightning", "timm"} <= locked
    assert "fastai" in own
    assert not own & {"torch", "torchvision", "timm", "lightning"}


# the same pictures, weights and steps

# timm's dataset leaves the closing of its files to the garbage collector
unclosed = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@unclosed
def test_frostline_and_its_peers_see_the_same_pictures(
    part: Callable[[str], Any], job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from frostline.config import compose, load_config
    from frostline.runs.parts import build_parts
    from frostline.runs.starting import prepare

    config = compose("train", part("frostline_run").overrides(job, cache="auto", decoded="null"))
    data = build_parts(load_config(prepare(config, []).config)).data
    timm_loop, model = part("timm_loop"), part("job").make_model(job)
    for split in ("val", "test"):
        own = list(data.loader(split))
        images, targets = torch.cat([batch.images for batch in own]), torch.cat([batch.targets for batch in own])
        for loader in (part("job").make_loader(job, split), timm_loop.make_batches(job, model, split)):
            theirs = list(loader)
            assert torch.equal(targets, torch.cat([batch[1] for batch in theirs]))
            # within a level of 255 on the average, whichever way they are decoded
            assert (images - torch.cat([batch[0] for batch in theirs])).abs().mean() < 1 / 255 / 0.2
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [36, 12, 12]


@unclosed
def test_training_pictures_are_those_of_evaluation_for_timm_too(part: Callable[[str], Any], job: Any) -> None:
    training = part("timm_loop").make_batches(job, part("job").make_model(job), "train").dataset
    plain = part("job").make_loader(job, "train").dataset
    assert len(training) == len(plain) == job.pictures
    assert torch.equal(training[5][0], plain[5][0])


@unclosed
@pytest.mark.parametrize(
    ("file", "way"),
    [("by_hand", "train"), ("timm_loop", "train"), ("lightning_loop", "callback"), ("lightning_loop", "guide")],
)
def test_a_peer_learns_the_head_and_then_everything(part: Callable[[str], Any], job: Any, file: str, way: str) -> None:
    module = part(file)
    ways = {"train": module.train, "callback": lambda one: module.train(one, guide=False)}
    ways["guide"] = lambda one: module.train(one, guide=True)
    probe = ways[way](job)
    assert len(probe.epochs) == 3
    assert probe.pictures == 36
    assert probe.accuracy > 0.5  # of four classes
    if way != "guide":
        changed = part("job").Job(**{**vars(job), "head_epochs": 1, "full_epochs": 2, "scratch": f"{job.scratch}/both"})
        Path(changed.scratch).mkdir()
        both = ways[way](changed)
        assert len(both.epochs) == 3
        assert 0 <= both.accuracy <= 1


def test_fastai_learns_the_head_and_then_everything(part: Callable[[str], Any], job: Any) -> None:
    pytest.importorskip("fastai", reason="fastai comes with the throw-away environment alone")
    both = part("fastai_loop").train(part("job").Job(**{**vars(job), "full_epochs": 1}))
    assert len(both.epochs) == 4


def test_features_kept_by_hand_and_the_bounds_run(part: Callable[[str], Any], job: Any) -> None:
    by_hand = part("by_hand")
    assert by_hand.train_on_kept_features(job).accuracy > 0.5
    assert by_hand.one_pass(job).accuracy is None
    assert len(by_hand.one_batch(job).epochs) == by_hand.STEPS


def test_the_body_of_a_probe_is_untouched_and_the_head_begins_at_zero(part: Callable[[str], Any], job: Any) -> None:
    module, peer = part("job"), part("timm_loop")
    model = module.make_model(job)
    assert not module.head_of(model).weight.any()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    peer.freeze(model, peer.body_of(model))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {"fc.weight", "fc.bias"}
    model.train()(torch.randn(4, 3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# the user's pictures


def test_class_folders_are_divided_without_loss(part: Callable[[str], Any], tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for number in range(10):
            color = (number * 20, 40 * (name == "cat"), 0)
            Image.new("RGB", (8, 8), color).save(tmp_path / "own" / name / f"{number}.PNG")
        (tmp_path / "own" / name / "notes.txt").write_text("no picture")
    root = part("pictures").divided(tmp_path / "own", tmp_path / "split")
    found = {
        split: sorted(path.read_bytes() for path in (root / split).rglob("*.png")) for split in ("train", "val", "test")
    }
    assert {split: len(files) for split, files in found.items()} == {"train": 12, "val": 4, "test": 4}
    assert len({content for files in found.values() for content in files}) == 20


def test_a_folder_with_splits_is_taken_as_it_is(part: Callable[[str], Any], tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
    assert part("pictures").divided(tmp_path, tmp_path / "unused") == tmp_path
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("inside", [[], ["cat"], ["train", "test"]])
def test_a_folder_without_classes_is_refused(part: Callable[[str], Any], tmp_path: Path, inside: list[str]) -> None:
    for name in inside:
        (tmp_path / name).mkdir()
    pictures = part("pictures")
    with pytest.raises(pictures.FolderError, match="two or more class folders"):
        pictures.divided(tmp_path, tmp_path / "split")


# clocks, memory and failures


@pytest.fixture
def peer(part: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Measures a peer whose file holds the given lines after those that read the command line."""
    measuring = part("measuring")
    monkeypatch.setattr(measuring, "PEERS", tmp_path)

    def run(*lines: str, limit: float = 60) -> Any:
        head = ["import json, os, sys, time", "way, job, result = sys.argv[1:]"]
        (tmp_path / "peer.py").write_text("\n".join([*head, *lines]))
        fields = {"scratch": str(tmp_path / "scratch")}
        return measuring.measure(sys.executable, "peer.py", "way", fields, cache=tmp_path / "cache", limit=limit)

    return run


GIVES = (
    "open(result, 'w').write(json.dumps(dict(wall=1.5, cpu=2.5, accuracy=0.5, epochs=[3, 1, 2], pictures=30, more=1)))"
)


def test_what_a_peer_gives_is_taken_with_its_memory_and_its_cache(peer: Callable[..., Any], tmp_path: Path) -> None:
    result = peer("filled = b'x' * 100_000_000", "time.sleep(1)", GIVES, "print(os.environ['XDG_CACHE_HOME'])")
    assert (result.wall, result.cpu, result.accuracy) == (1.5, 2.5, 0.5)
    assert result.whole >= 1
    assert result.rate == 20  # the first epoch is not counted
    assert (tmp_path / "scratch" / "output.txt").read_text().strip() == str(tmp_path / "cache")
    if sys.platform == "linux":
        assert 95 < result.peak_mib < 200


def test_a_peer_that_fails_gives_its_last_line(peer: Callable[..., Any]) -> None:
    assert peer("print('begun')", "raise ValueError('no such | thing')").reason == "ValueError: no such | thing"


def test_a_peer_that_fails_without_a_word_gives_its_code(peer: Callable[..., Any]) -> None:
    assert peer("sys.exit(3)").reason == "exit code 3"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_peer_that_hangs_is_ended_with_its_children(peer: Callable[..., Any], tmp_path: Path) -> None:
    child = tmp_path / "child"
    lines = [
        "import subprocess",
        f"one = subprocess.Popen(['sleep', '60']); open({str(child)!r}, 'w').write(str(one.pid))",
    ]
    assert peer(*lines, "time.sleep(60)", limit=3).reason == "not done after 3 s"
    for _ in range(100):
        if not is_running(int(child.read_text())):
            return
        time.sleep(0.1)
    pytest.fail("the child still runs")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


# figures


def test_each_repeat_begins_with_another_and_a_second_run_follows_the_first(part: Callable[[str], Any]) -> None:
    contest = part("contest")
    entrants = contest.entrants_of("probe")
    orders = [[entrant.name for entrant in contest.turns(entrants, repeat)] for repeat in range(3)]
    assert len({order[0] for order in orders}) == 3
    for order in orders:
        assert sorted(order) == sorted(entrant.name for entrant in entrants)
        place = order.index(contest.OWN)
        assert order[place + 1] == "Frostline, the next run, another seed"


def test_an_interval_is_students(part: Callable[[str], Any]) -> None:
    interval = part("contest").Interval.of([0.80, 0.82, 0.84])
    assert interval.mean == pytest.approx(0.82)
    assert interval.half == pytest.approx(4.303 * 0.02 / 3**0.5, rel=1e-3)
    assert np.isnan(part("contest").Interval.of([0.8]).half)


@pytest.fixture
def held(part: Callable[[str], Any]) -> Any:
    """A probe in which the loop by hand is four times as slow, timm is worse, and fastai is not there."""
    contest, measuring = part("contest"), part("measuring")
    made = contest.Contest("probe", 100)
    for own, accuracy in ((1.0, 0.80), (2.0, 0.82), (1.5, 0.81)):
        made.add(contest.OWN, measuring.Measured(own, own, 9, 100.0, accuracy))
        made.add("PyTorch by hand", measuring.Measured(4 * own, 5 * own, 9, 100.0, accuracy - 0.005))
        made.add("timm's training loop", measuring.Measured(9 * own, 9 * own, 9, None, accuracy - 0.1))
        made.add("fastai, `freeze`, `fit`", measuring.Failed("No module | named 'fastai'"))
        made.add(contest.ONE_PASS, measuring.Measured(own, own, 9))
    return made


def test_ratios_are_of_the_same_repeat(held: Any) -> None:
    assert held.ratio("PyTorch by hand", "wall") == 4
    assert held.ratio("PyTorch by hand", "cpu") == 5
    assert held.best_peer("wall") == "PyTorch by hand"


def test_accuracies_are_equal_within_a_picture_or_the_interval_and_else_not(held: Any) -> None:
    assert held.is_equal(held.difference("PyTorch by hand"))
    assert not held.is_equal(held.difference("timm's training loop"))


def test_the_table_tells_who_failed_who_differs_and_whether_the_goals_are_met(
    part: Callable[[str], Any], held: Any
) -> None:
    text = part("tables").section(held, "What was done.")
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("|")}
    assert "failed: No module \\| named 'fastai'" in rows["fastai, `freeze`, `fit`"]
    assert "(**differs**)" in rows["timm's training loop"]
    assert "(equal)" in rows["PyTorch by hand"]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows.values()}) == 1
    assert "4.0 times PyTorch by hand on the wall, 5.0 in processor time. **Missed.**" in text
    assert "1.00 times on the wall, 1.00 in processor time. Met." in text


def test_a_failed_repeat_leaves_no_figures_that_could_mislead(part: Callable[[str], Any], held: Any) -> None:
    held.add("PyTorch by hand", part("measuring").Failed("killed"))
    assert held.ratio("PyTorch by hand", "wall") is None
    assert held.best_peer("wall") == "timm's training loop"


def test_the_plot_is_small_and_the_same_again(part: Callable[[str], Any], held: Any, tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        part("plot").draw([held], tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.svg").stat().st_size < 50_000


def test_of_what_another_script_prints_the_tables_are_kept(part: Callable[[str], Any]) -> None:
    text = "loading\n\nresnet18, 2 threads\n\n| a |\n|---|\n| 1 |\n\n| b |\n|---|\ndone"
    assert part("comparison").tables_of(text) == "resnet18, 2 threads\n\n| a |\n|---|\n| 1 |\n\n| b |\n|---|"


def test_a_script_that_is_not_there_or_fails_is_a_line(
    part: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = part("comparison")
    monkeypatch.setattr(module, "BENCH", tmp_path)
    arguments = part("bench").parse(["--only", "d", "--output", str(tmp_path / "out")])
    (tmp_path / "scratch").mkdir()
    script = module.SCRIPTS[0]
    comparison = module.Comparison(arguments, tmp_path / "scratch")
    assert comparison._output_of(script) == "Left out: there is no grid.py."
    (tmp_path / "grid.py").write_text("raise SystemExit('no memory')")
    assert comparison._output_of(script) == "failed: no memory"
    (tmp_path / "grid.py").write_text("print('| heads |')")
    table, _, took = comparison._output_of(script).partition("\n\n")
    assert table == "| heads |"
    assert re.fullmatch(r"All of this took \d+ s, \d+ s of the processors(, at most \d+ MiB at once)?\.", took)


@pytest.mark.slow
def test_the_command_writes_a_table_a_plot_and_the_raw_figures(tmp_path: Path) -> None:
    done = command("--quick", "--only", "a", "--entrants", "Frostline$|timm", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert "failed" not in text
    assert "| Frostline | " in text
    assert "| timm's training loop | " in text
    assert (tmp_path / "speed.svg").stat().st_size < 200_000
    assert (tmp_path / "speed.json").exists()
