"""Proof: a phase whose frozen features are computed once is the phase without, and never one of other features."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import timm.models
import torch
from going_on import command, rows, state, stopped_at, to_the_end
from PIL import Image
from torch import nn

from frostline.config import compose
from frostline.runs.folder import RunFolder
from frostline.runs.starting import prepare
from frostline.runs.worker import work

SWIN = "backbone.kwargs={embed_dim: 8, depths: [1,1,1,1], num_heads: [1,1,2,2], window_size: 2}"
MODELS: dict[str, list[str]] = {
    "test_resnet": [],
    "test_convnext": [],
    "test_efficientnet": [],
    "test_vit": [],
    "test_nfnet": [],
    "deit_tiny_patch16_224": ["backbone.kwargs={depth: 2}"],
    "mobilenetv3_small_050": [],
    "swin_tiny_patch4_window7_224": [SWIN, "data.size=64"],
    "mixer_s32_224": [],
}
PLAIN = [
    "freeze=linear_probe",
    "augment=none",
    "data.workers=0",
    "trainer.log_every_n_steps=1",
    "logger=csv",
]
OFF = "freeze.phases.probe.cache.mode=off"
REQUIRED = "freeze.phases.probe.cache.mode=require"
TIMES = ("seconds", "images_per_second")


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another has computed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run(tiny: list[str], pictures: Path, tmp_path: Path) -> Callable[..., RunFolder]:
    """Trains with overrides; its folder."""

    def trained(*more: str, root: Path | None = pictures, code: int = 0) -> RunFolder:
        where = [] if root is None else ["data=folder", f'data.root="{root}"']
        overrides = [*tiny, *where, *PLAIN, "trainer.max_epochs=3", f'output="{tmp_path / "out"}"', *more]
        folder = prepare(compose("train", overrides), overrides)
        assert work("train", folder.path) == code
        return folder

    return trained


@contextmanager
def pictures_seen(kind: type[nn.Module]) -> Iterator[list[int]]:
    """How many pictures each forward pass of a body of a kind had."""
    seen: list[int] = []
    forward = kind.forward_features

    def counted(self: nn.Module, images: torch.Tensor, *more: Any, **named: Any) -> Any:
        if not images.is_meta:  # a trace of the depth of layers computes nothing
            seen.append(len(images))
        return forward(self, images, *more, **named)

    kind.forward_features = counted
    try:
        yield seen
    finally:
        kind.forward_features = forward


def scores(folder: RunFolder) -> dict[str, float]:
    return {name: value for name, value in folder.read_metrics().items() if name not in TIMES}


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    return state(folder)["state_dict"]


def assert_same(one: RunFolder, other: RunFolder, tolerance: float = 0.0) -> None:
    """Weights, scores, logs and predictions agree: bitwise, or within a tolerance."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.allclose(tensor, second[name], rtol=tolerance, atol=tolerance), name
    assert scores(one) == pytest.approx(scores(other), rel=tolerance, abs=tolerance)
    logged = [rows(folder.path / "metrics.csv") for folder in (one, other)]
    assert [row.keys() for row in logged[0]] == [row.keys() for row in logged[1]]
    for row, twin in zip(*logged, strict=True):
        for key, value in row.items():
            assert value == twin[key] or float(value) == pytest.approx(float(twin[key]), rel=tolerance, abs=tolerance)
    assert rows(one.schedule) == rows(other.schedule)
    said = [pyarrow.parquet.read_table(folder.predictions("test")).to_pydict() for folder in (one, other)]
    assert said[0].keys() == said[1].keys()
    for column, values in said[0].items():
        numbers = isinstance(values[0], float)
        assert values == (pytest.approx(said[1][column], rel=tolerance, abs=tolerance) if numbers else said[1][column])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_cached_equals_uncached(name: str, run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"backbone.name={name}", *MODELS[name], "data.batch_size=7", "optimizer.lr=0.05"]
    cached = run(*settings, REQUIRED)
    shown = capsys.readouterr().out
    assert all(f"features of {count} {split} pictures" in shown for split, count in (("train", 30), ("val", 12)))
    # other pictures come together in a batch, and 2 in the last of an epoch. Measured: bitwise the same weights for the
    # convolutional ones and test_vit; deit, swin and test_efficientnet differ in the last bits
    plain = run(*settings, OFF)
    assert "features of" not in capsys.readouterr().out
    assert_same(cached, plain, tolerance=1e-5)


@pytest.mark.slow
def test_the_digits_are_probed_bitwise_alike(run: Callable[..., RunFolder]) -> None:
    digits = ["data=digits", "data.labels_per_class=32", "data.workers=0", "data.batch_size=32", "lr_find=true"]

    cached, plain = run(*digits, REQUIRED, root=None), run(*digits, OFF, root=None)
    assert_same(cached, plain)
    assert "lr_find/lr" in scores(cached)


@pytest.mark.slow
def test_what_cannot_hold_is_refused_before_the_first_step(
    run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("augment=light", REQUIRED, code=2)
    assert "freeze.phases.probe.cache.views=4" in capsys.readouterr().err
    assert not (folder.path / "metrics.csv").exists()
    run("augment=light", "trainer.max_epochs=2")
    assert capsys.readouterr().out.count("phase probe is not cached: augment changes") == 1


@pytest.mark.slow
def test_a_damaged_entry_is_computed_anew(
    run: Callable[..., RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(REQUIRED)
    for file in (tmp_path / "cache" / "frostline" / "features").glob("*.features"):
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    capsys.readouterr()
    assert_same(first, run(REQUIRED))
    shown = capsys.readouterr().out
    assert "damaged" in shown
    assert shown.count("computed in") == 3


@pytest.mark.slow
def test_without_a_folder_to_keep_them_features_last_for_the_run(
    run: Callable[..., RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache" / "frostline").mkdir(parents=True)
    (tmp_path / "cache" / "frostline" / "features").write_text("in its place")
    with pictures_seen(timm.models.resnet.ResNet) as seen:
        cached = run(REQUIRED)
        # those of validation are computed again for the scores at the end
        assert sum(seen) - 6 <= 30 + 2 * 12 + 6
    assert "cannot be kept" in capsys.readouterr().out
    assert_same(cached, run(OFF), tolerance=1e-5)


# --- the front of the network -----------------------------------------------------------------------------------------


FRONTS: dict[str, list[str]] = {
    "test_resnet": [],
    "test_convnext": ["+backbone.kwargs.drop_path_rate=0.3"],
    "test_efficientnet": ["+backbone.kwargs.drop_path_rate=0.3", "+backbone.kwargs.drop_rate=0.2"],
    "test_vit": ["+backbone.kwargs.drop_path_rate=0.3", "+backbone.kwargs.proj_drop_rate=0.1"],
    "swin_tiny_patch4_window7_224": [SWIN, "data.size=64"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FRONTS)
def test_training_above_a_frozen_front_is_the_same_cached_or_not(
    name: str, run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        f"backbone.name={name}",
        *FRONTS[name],
        "freeze.phases.probe.train='head + top:1'",
        "data.batch_size=8",
        "optimizer=sgd",
        "optimizer.lr=0.05",
    ]
    cached = run(*settings, REQUIRED)
    shown = capsys.readouterr().out
    assert "phase probe computes features once, after" in shown
    assert all(f"features of {count} {split} pictures" in shown for split, count in (("train", 30), ("val", 12)))
    plain = run(*settings, OFF)
    assert "features of" not in capsys.readouterr().out
    # dropout and drop path above the cut draw the same numbers; only the batch that the front came in is another
    assert_same(cached, plain, tolerance=1e-4)


@pytest.mark.slow
def test_an_adapter_above_a_frozen_front_learns_the_same_cached_or_not(
    run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    adapted = ["backbone.name=test_vit", "adapter=lora", "adapter.dropout=0.2", "optimizer=sgd", "optimizer.lr=0.05"]
    adapted += ["freeze.phases.probe.train='head + top:1'", "data.batch_size=8"]
    cached = run(*adapted, REQUIRED)
    assert "phase probe computes features once, after" in capsys.readouterr().out
    learned = {name.split(".")[2] for name, tensor in weights(cached).items() if "lora_B" in name and tensor.any()}
    assert len(learned) == 1
    assert_same(cached, run(*adapted, OFF), tolerance=1e-4)


@pytest.mark.slow
def test_an_adapter_that_has_learned_is_a_part_of_the_front(
    run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the classifier, and below the last block: what the matrices make of a picture is in its features."""
    pytest.importorskip("peft")
    phases = [phases_of(probe="all", head="head", top="head + top:1"), "trainer.max_epochs=6", "data.batch_size=8"]
    phases += ["backbone.name=test_vit", "adapter=lora", "adapter.dropout=0.2", "optimizer.lr=0.02"]
    later = ("+freeze.phases.head.cache.mode", "+freeze.phases.top.cache.mode")
    cached = run(*phases, OFF, *(f"{mode}=require" for mode in later))
    assert capsys.readouterr().out.count("features of 30 train pictures: computed") == 2
    learned = {name.split(".")[2] for name, tensor in weights(cached).items() if "lora_B" in name and tensor.any()}
    assert len(learned) > 1
    assert_same(cached, run(*phases, OFF, *(f"{mode}=off" for mode in later)), tolerance=1e-4)


def phases_of(**trained: str) -> str:
    parts = (f"{name}: {{train: '{train}', until: {{epochs: 2}}}}" for name, train in trained.items())
    return "freeze.phases={" + ", ".join(parts) + "}"


@pytest.mark.slow
def test_each_phase_of_gradual_unfreezing_has_its_own_front(
    run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    phases = [phases_of(probe="head", one="head + top:1", two="head + top:2", all="all"), "trainer.max_epochs=8"]
    phases += ["data.batch_size=8", "optimizer.lr=0.02"]
    cached = run(*phases)
    shown = capsys.readouterr().out
    assert [shown.count(f"phase {name} computes features once") for name in ("probe", "one", "two", "all")] == [
        1,
        1,
        1,
        0,
    ]
    assert shown.count("features of 30 train pictures: computed") == 3
    off = [f"+freeze.phases.{name}.cache.mode=off" for name in ("probe", "one", "two")]
    assert_same(cached, run(*phases, *off), tolerance=1e-4)


@pytest.mark.slow
def test_a_front_that_two_phases_and_another_run_share_is_computed_once(
    run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    phases = [phases_of(probe="head", one="head + top:2", two="head + top:2 - top:1"), "trainer.max_epochs=6"]
    run(*phases, "+freeze.phases.two.start=best", "data.batch_size=8")
    shown = capsys.readouterr().out
    assert shown.count("features of 30 train pictures: computed") == 2
    assert shown.count("features of 30 train pictures: found") == 1
    run("freeze=last_n", "freeze.phases.last_n.cache.mode=require", "seed=0", "optimizer.lr=0.1")
    shown = capsys.readouterr().out
    assert "computed in" not in shown
    assert "features of 6 test pictures: found" in shown


@pytest.mark.slow
def test_a_front_is_cached_in_a_run_that_is_stopped_and_goes_on(
    tiny: list[str], pictures: Path, tmp_path: Path
) -> None:
    phases = [phases_of(probe="head", one="head + top:1"), "trainer.max_epochs=4", "data.batch_size=8", "callbacks=ema"]
    where = ["data=folder", f'data.root="{pictures}"', f'output="{tmp_path / "out"}"']

    def begun(*more: str) -> RunFolder:
        overrides = [*tiny, *PLAIN, *phases, *where, "+backbone.kwargs.drop_rate=0.3", *more]
        return prepare(compose("train", overrides), overrides)

    marks = ["on_train_batch_end:3", "on_train_batch_end:10", "on_validation_end:12"]
    straight, stopped = begun(), begun(stopped_at(tmp_path / "marks", marks))
    assert to_the_end(straight) == 0
    assert to_the_end(stopped) == len(marks)
    assert_same(straight, stopped)


@pytest.mark.slow
def test_two_processes_share_what_one_of_them_computes(tiny: list[str], pictures: Path, tmp_path: Path) -> None:
    """Also after a phase in which each of them had batch-norm statistics of its own."""
    phases = [phases_of(probe="head", all="all", again="head", front="head + top:1"), "trainer.max_epochs=8"]
    own = [*tiny, "data=folder", f'data.root="{pictures}"', *PLAIN, *phases, "data.batch_size=4", "trainer=ddp_cpu"]
    own += ["optimizer=sgd", "optimizer.lr=0.01", "callbacks=no_early_stopping", "backbone.name=test_resnet"]
    found: dict[str, RunFolder] = {}
    for mode in ("require", "off"):
        asked = [f"+freeze.phases.{name}.cache.mode={mode}" for name in ("probe", "again", "front")]
        done = command("train", *own, *asked, f"name={mode}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (folder,) = (tmp_path / "outputs" / mode).iterdir()
        found[mode] = RunFolder(folder)
        # of three bodies, computed by the one or the other
        count = done.stdout.count("features of 30 train pictures")
        assert count == (3 if mode == "require" else 0), done.stdout
    assert len(list((tmp_path / "cache" / "frostline" / "features").glob("*.features"))) == 3 * 2 + 1
    assert_same(found["require"], found["off"], tolerance=1e-4)


# --- nothing is paid for twice ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_run_has_no_forward_pass_through_the_body(run: Callable[..., RunFolder]) -> None:
    with pictures_seen(timm.models.resnet.ResNet) as seen:
        run("optimizer.lr=0.01")
        # two of noise at set-up, in eval and as trained, and in the trial of the input; then each picture once
        assert sum(seen) == 3 * 2 + 30 + 12 + 6
        seen.clear()
        second = run("optimizer.lr=0.1", "optimizer=sgd", "data.batch_size=16", "seed=0")
        assert seen == []
    assert scores(second)["test/count"] == 6


@pytest.mark.slow
def test_heads_of_other_seeds_share_the_features_of_pretrained_weights(
    run: Callable[..., RunFolder], tmp_path: Path
) -> None:
    first = run("seed=1")
    again = [f'backbone.weights="{first.path}"', "+freeze.phases.probe.cache.views=1"]
    with pictures_seen(timm.models.resnet.ResNet) as seen:
        run(*again, "seed=2")
        counted = len(seen)
        run(*again, "seed=3")
        assert len(seen) == counted
    assert counted == 0  # the body is that of the first run


# --- never features of something else ---------------------------------------------------------------------------------


@pytest.fixture
def computed(run: Callable[..., RunFolder]) -> Callable[..., int]:
    """How many pictures a run puts through the body beside those of noise."""

    def count(*more: str, root: Path | None = None) -> int:
        with pictures_seen(timm.models.resnet.ResNet) as seen:
            run(REQUIRED, "trainer.max_epochs=2", *more, **({} if root is None else {"root": root}))
        return sum(seen) - 6 if seen else 0

    return count


@pytest.mark.slow
def test_another_picture_is_another_key(computed: Callable[..., int], pictures: Path, tmp_path: Path) -> None:
    root = shutil.copytree(pictures, tmp_path / "pictures")
    assert computed(root=root) == 48
    assert computed(root=root) == 0
    Image.new("RGB", (40, 40), (200, 10, 10)).save(root / "val" / "red" / "0.png")
    # that one comes through the body, and none of the others, in whatever split they are
    assert computed(root=root) == 1
    (root / "test" / "red" / "0.png").rename(root / "train" / "red" / "from_test.png")
    assert computed(root=root) == 0
    moved = root.rename(tmp_path / "moved")
    assert computed(root=moved) == 0


@pytest.mark.slow
def test_another_input_is_another_key(computed: Callable[..., int]) -> None:
    assert computed() == 48
    assert computed("data.size=40") == 48
    assert computed("data.resize=squash") == 48
    assert computed("trainer.precision=bf16-mixed") == 48
    assert computed("speed.channels_last=true") == 48
    assert computed("backbone.kwargs={act_layer: silu}") == 48
    assert computed() == 0


@pytest.mark.slow
def test_another_tensor_of_the_body_is_another_key(computed: Callable[..., int], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    parts = {
        "none": None,
        "a buffer": "layer1.0.bn1.running_var",
        "a weight": "conv1.0.weight",
        "the head": "fc.weight",
    }
    found = {}
    for title, name in parts.items():
        tensors = {key: value.clone() for key, value in model.state_dict().items()}
        if name is not None:
            tensors[name].flatten()[0] += 1e-3
        file = tmp_path / "weights.safetensors"
        save_file(tensors, str(file))
        found[title] = computed(f'backbone.weights="{file}"')
    assert found == {"none": 48, "a buffer": 48, "a weight": 48, "the head": 0}


# --- in a run with everything -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_end(
    tiny: list[str], pictures: Path, tmp_path: Path
) -> None:
    everything = [REQUIRED, "callbacks=ema", "callbacks.ema.decay=0.8", "trainer.max_epochs=3", "data.batch_size=8"]

    def begun(*more: str) -> RunFolder:
        overrides = [
            *tiny,
            *PLAIN,
            *everything,
            "data=folder",
            f'data.root="{pictures}"',
            f'output="{tmp_path / "out"}"',
            *more,
        ]
        return prepare(compose("train", overrides), overrides)

    straight, stopped = (
        begun(),
        begun(
            stopped_at(
                tmp_path / "marks",
                ["on_train_batch_end:2", "on_train_batch_end:4", "on_validation_end:8", "on_train_batch_end:11"],
            )
        ),
    )
    assert to_the_end(straight) == 0
    assert to_the_end(stopped) == 4
    assert_same(straight, stopped)


@pytest.mark.slow
def test_averaged_heads_are_scored(run: Callable[..., RunFolder]) -> None:
    averaged = ["callbacks=ema", "callbacks.ema.decay=0.5", "data.batch_size=8"]
    assert_same(run(*averaged, REQUIRED), run(*averaged, OFF), tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["adapter=lora", "backbone.name=test_vit"]], ids=["plain", "lora"])
def test_a_probe_is_cached_and_what_follows_it_is_not(
    more: list[str], run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    if "adapter=lora" in more:
        pytest.importorskip("peft")
    both = ["freeze=lp_ft", "trainer.max_epochs=4", "data.batch_size=8", "optimizer.lr=0.02", *more]
    both += ["+freeze.phases.full.cache.mode=off"]
    cached = run(*both, REQUIRED)
    assert "features of 30 train pictures" in capsys.readouterr().out
    assert_same(cached, run(*both, OFF), tolerance=1e-4)


# --- pictures that cannot be read -------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(pictures: Path, tmp_path: Path) -> Path:
    """Pictures of which two training ones are no pictures."""
    root = shutil.copytree(pictures, tmp_path / "spoilt")
    for name in ("blue/0.png", "red/4.png"):
        (root / "train" / name).write_bytes(b"no picture")
    return root


@pytest.mark.slow
def test_a_picture_that_cannot_be_read_is_skipped_alike(run: Callable[..., RunFolder], spoilt: Path) -> None:
    skipping = ["data.on_error=skip", "data.batch_size=8"]
    plain = run(*skipping, OFF, root=spoilt)
    # computed, then found
    for _ in range(2):
        cached = run(*skipping, REQUIRED, root=spoilt)
        assert_same(cached, plain, tolerance=1e-5)
        assert scores(cached)["skipped_pictures"] == 2
        assert rows(cached.path / "skipped.csv") == rows(plain.path / "skipped.csv")


@pytest.mark.slow
def test_a_picture_that_cannot_be_read_stops_a_run_that_says_so(
    run: Callable[..., RunFolder], spoilt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("data.on_error=skip", "data.batch_size=8", REQUIRED, root=spoilt)
    capsys.readouterr()
    assert run("data.batch_size=8", REQUIRED, root=spoilt, code=3) is not None
    assert "blue/0.png" in capsys.readouterr().err


# --- fixed views ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
def test_fixed_views_are_the_same_cached_or_not(
    sampler: str, run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    two = ["augment=light", "freeze.phases.probe.cache.views=2", "trainer.max_epochs=5", f"data.sampler={sampler}"]
    two += ["data.labels_per_class=9"] if sampler == "shuffle" else []
    cached = run(*two, REQUIRED)
    shown = capsys.readouterr().out
    assert "view 1: computed" in shown
    assert shown.count("train pictures") == 2
    assert_same(cached, run(*two, OFF), tolerance=1e-5)
    assert weights(cached).keys() == weights(run("augment=light", "trainer.max_epochs=5")).keys()


@pytest.mark.slow
def test_fixed_views_are_not_fresh_ones(run: Callable[..., RunFolder]) -> None:
    augmented = ["augment=light", "trainer.max_epochs=3", OFF]
    one, other = run(*augmented), run(*augmented, "freeze.phases.probe.cache.views=2")
    logged = [
        [row["train/loss"] for row in rows(folder.path / "metrics.csv") if row["train/loss"]] for folder in (one, other)
    ]
    assert logged[0][:2] == logged[1][:2]
    assert logged[0][2] != logged[1][2]
