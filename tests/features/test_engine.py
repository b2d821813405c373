"""The forward engine: the same numbers, never slower, and a choice that is kept."""

from __future__ import annotations

import contextlib
import gc
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from frostline.features import Boundary, ForwardEngine, FrozenBody, engine, find_boundary
from frostline.features.engine_record import Record, read_record
from frostline.features.engine_ways import CHANNELS_LAST, FUSED, Way, ways
from frostline.specs import Engine

MANY = 1_000_000  # pictures: enough to measure everything


class FakeMachine:
    """A clock that goes on by what each way takes for a picture, and counts what was made and run."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.made: list[str] = []
        self.ran: list[tuple[str, int]] = []
        self.said: list[str] = []
        self.folder = folder
        self.part = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()

    def clock(self) -> float:
        return self.now

    def run(self, name: str, seconds: float, change: float = 0.0) -> Callable[[Tensor], Tensor]:
        def run(images: Tensor) -> Tensor:
            self.now += seconds * len(images)
            self.ran.append((name, len(images)))
            features: Tensor = self.part(images)
            return features + change * features.abs().max()

        return run

    def way(self, name: str, seconds: float, *, ready: float = 0.0, guess: float = 0.0, change: float = 0.0) -> Way:
        def make(part: nn.Module, chunk: Tensor) -> Callable[[Tensor], Tensor]:
            self.made.append(name)
            self.now += ready
            return self.run(name, seconds, change)

        return Way(name, make, guess)

    def engine(self, *choices: Way, plain: float = 1.0, pictures: int = MANY, **more: Any) -> ForwardEngine:
        return ForwardEngine(
            self.run("plain", plain),
            self.part,
            more.pop("wanted", Engine.auto),
            pictures,
            say=self.said.append,
            folder=self.folder,
            clock=self.clock,
            choices=choices or None,
            **more,
        )


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path / "engine")


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 3, 2, 2)


def body_of(name: str, **kwargs: Any) -> FrozenBody:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **kwargs)
    return FrozenBody(model, find_boundary(model), model.forward)


def engine_of(body: FrozenBody, wanted: Engine, **more: Any) -> ForwardEngine:
    return ForwardEngine(body.plain, body.boundary.part(body.model), wanted, MANY, **more)


# --- the choice


def test_the_fastest_is_chosen_and_said(machine: FakeMachine, images: Tensor) -> None:
    chosen = machine.engine(machine.way("slow", 2.0), machine.way("fast", 0.25), machine.way("middle", 0.5))
    chosen(images)
    assert chosen.chosen == "fast"
    assert machine.said == ["engine: fast 4/s, middle 2/s, plain 1/s, slow 0.5/s"]


@pytest.mark.parametrize(("seconds", "expected"), [(0.9, "other"), (0.96, "plain"), (1.0, "plain"), (1.5, "plain")])
def test_another_way_is_taken_where_it_is_more_than_a_twentieth_faster(
    machine: FakeMachine, images: Tensor, seconds: float, expected: str
) -> None:
    chosen = machine.engine(machine.way("other", seconds))
    chosen(images)
    assert chosen.chosen == expected


def test_the_plain_way_is_left_where_more_pictures_come_than_it_was_taken_for(
    machine: FakeMachine, images: Tensor
) -> None:
    chosen = machine.engine(machine.way("fast", 0.25), pictures=5)
    chosen(images)
    chosen.expect(5)
    chosen(images)
    assert (chosen.chosen, machine.made) == ("plain", [])
    chosen.expect(MANY)
    chosen(images)
    chosen.expect(3)
    chosen(images)
    assert (chosen.chosen, machine.made) == ("fast", ["fast"])


def test_a_pass_of_one_batch_is_no_measure_for_others(machine: FakeMachine) -> None:
    body = body_of("test_resnet")
    body.ahead = MANY
    body.engine = ForwardEngine(body.plain, body.boundary.part(body.model), Engine.channels_last, MANY)
    body.expect(2, 1000)
    body(torch.randn(2, 3, 32, 32))
    assert (body.engine.chosen, body.engine.pictures) == ("", MANY * 2 // 1000)
    body.expect(500, 1000)
    body(torch.randn(2, 3, 32, 32))
    assert (body.engine.chosen, body.engine.pictures) == ("channels_last", MANY // 2)
    body.met(MANY - 700)
    body.expect(600, 600)
    assert body.engine.pictures == 700
    body.met(MANY)
    body.expect(600, 600)
    assert body.engine.pictures == 600


def test_a_disturbance_of_one_round_does_not_decide(machine: FakeMachine, images: Tensor) -> None:
    other = machine.way("other", 0.5)
    calls = 0

    def make(part: nn.Module, chunk: Tensor) -> Callable[[Tensor], Tensor]:
        inner = other.make(part, chunk)

        def run(pictures: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            machine.now += 100.0 if calls == 2 else 0.0
            return inner(pictures)

        return run

    chosen = machine.engine(Way("other", make))
    chosen(images)
    assert chosen.chosen == "other"


def test_a_short_pass_is_not_measured(machine: FakeMachine, images: Tensor) -> None:
    chosen = machine.engine(machine.way("other", 0.1), pictures=700)
    chosen(images)
    assert (chosen.chosen, machine.made, machine.ran, machine.said) == ("plain", [], [("plain", 8)], [])


def test_a_quick_pass_is_measured_no_further_than_the_plain_way(machine: FakeMachine, images: Tensor) -> None:
    chosen = machine.engine(machine.way("other", 1e-7), plain=9e-6)  # 9 s in all
    chosen(images)
    assert (chosen.chosen, machine.made, machine.said) == ("plain", [], [])


@pytest.mark.parametrize("pictures", [900, 2_000, 10_000, 100_000])
def test_measuring_takes_a_twentieth_of_the_pass_at_most(machine: FakeMachine, images: Tensor, pictures: int) -> None:
    others = [machine.way(name, 1.0, ready=guess, guess=guess) for name, guess in (("a", 0.0), ("b", 2.0), ("c", 60.0))]
    machine.engine(*others, pictures=pictures)(images)
    # the rounds that have begun are ended
    assert machine.now - len(images) <= 0.05 * pictures + len(images) * 4
    assert machine.made[:1] == ["a"]
    assert ("c" in machine.made) == (pictures >= 10_000)


def test_what_takes_long_to_make_has_to_pay_for_it() -> None:
    record = Record({"plain": 10.0, "quick": 20.0, "compiled": 40.0, "broken": 0.0}, {"compiled": 100.0})
    names = ["quick", "compiled", "broken"]
    assert record.best(3_000, names) == "quick"
    assert record.best(5_000, names) == "compiled"
    assert record.best(5_000, ["compiled", "unknown"]) == "compiled"
    assert record.best(1_000, ["compiled"]) == "plain"
    assert record.best(5_000, []) == "plain"


def test_a_way_that_needs_a_longer_pass_is_measured_when_there_is_one(machine: FakeMachine, images: Tensor) -> None:
    others = [machine.way("quick", 0.5), machine.way("compiled", 0.2, ready=60.0, guess=60.0)]
    machine.engine(*others, pictures=1_000)(images)
    assert machine.made == ["quick"]
    longer = machine.engine(*others)
    longer(images)
    assert machine.made == ["quick", "quick", "compiled"]
    assert longer.chosen == "compiled"


# --- what is off, fails or differs


def test_plain_is_off(machine: FakeMachine, images: Tensor) -> None:
    chosen = machine.engine(wanted=Engine.plain)
    assert torch.equal(chosen(images), machine.part(images))
    assert (chosen.chosen, machine.ran) == ("plain", [("plain", 8)])
    assert not machine.folder.exists()


@pytest.mark.parametrize(("change", "expected"), [(5e-6, "other"), (2e-5, "plain"), (float("nan"), "plain")])
def test_single_precision_is_within_a_hundred_thousandth(
    machine: FakeMachine, images: Tensor, change: float, expected: str
) -> None:
    chosen = machine.engine(machine.way("other", 0.1, change=change))
    features = chosen(images)
    assert chosen.chosen == expected
    assert (expected == "plain") == torch.equal(features, machine.part(images))
    assert bool([line for line in machine.said if "left out: its features differ" in line]) == (expected == "plain")


def test_half_precision_is_within_a_hundredth(machine: FakeMachine, images: Tensor) -> None:
    for change, expected in ((5e-3, "half"), (2e-2, "plain")):
        way = machine.way("half", 0.1, change=change)
        chosen = machine.engine(Way("half", way.make, is_half=True))
        chosen(images)
        assert chosen.chosen == expected
        shutil.rmtree(machine.folder)


def test_one_that_cannot_be_made_is_left_out_and_not_tried_again(machine: FakeMachine, images: Tensor) -> None:
    def fails(part: nn.Module, chunk: Tensor) -> Callable[[Tensor], Tensor]:
        machine.made.append("broken")
        raise RuntimeError("no compiler\nand a long story")

    for _ in range(2):
        chosen = machine.engine(Way("broken", fails), machine.way("other", 0.5))
        chosen(images)
        assert chosen.chosen == "other"
    assert machine.made.count("broken") == 1
    assert machine.said[0] == "engine: broken is left out: no compiler"
    assert "broken not possible" in machine.said[-1]


def test_one_that_fails_later_gives_way_to_the_plain_one(machine: FakeMachine, images: Tensor) -> None:
    machine.engine(machine.way("other", 0.5))(images)
    later = machine.engine(machine.way("other", 0.5, change=1.0))
    assert torch.equal(later(images), machine.part(images))
    assert later.chosen == "plain"
    assert "left out" in machine.said[-1]


# --- what is kept


def test_the_choice_is_kept(machine: FakeMachine, images: Tensor) -> None:
    machine.engine(machine.way("other", 0.5))(images)
    said, spent = machine.said[-1], machine.now
    again = machine.engine(machine.way("other", 3.0))
    again(images)
    assert again.chosen == "other"
    assert machine.said[-1] == said
    assert machine.now - spent == 8 * (1.0 + 3.0 + 3.0)  # compared once, then run
    assert not list(machine.folder.glob("*.lock"))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"rates": {}, "ready": {}}',
        '{"rates": {"plain": NaN}, "ready": {}}',
        '{"rates": 3}',
        "\0",
    ],
)
def test_a_damaged_record_is_measured_anew(machine: FakeMachine, images: Tensor, content: str) -> None:
    machine.engine(machine.way("other", 0.5))(images)
    (path,) = machine.folder.glob("*.json")
    path.write_text(content)
    assert read_record(path) is None
    anew = machine.engine(machine.way("other", 2.0))
    anew(images)
    assert anew.chosen == "plain"
    assert read_record(path) is not None


def test_another_model_input_precision_or_number_of_threads_is_measured_by_itself(
    machine: FakeMachine, images: Tensor
) -> None:
    def count() -> int:
        machine.engine(machine.way("other", 0.5))(images)
        return len(list(machine.folder.glob("*.json")))

    assert [count(), count()] == [1, 1]
    machine.part[1].weight.data.add_(1)  # other numbers are as fast
    assert count() == 1
    machine.part = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    assert count() == 2
    images = images[:7]
    assert count() == 3
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert count() == 4
    finally:
        torch.set_num_threads(threads)


def test_of_two_at_once_one_measures(machine: FakeMachine, images: Tensor) -> None:
    engines = [machine.engine(machine.way("other", 0.5)) for _ in range(2)]
    threads = [threading.Thread(target=one, args=(images,)) for one in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.chosen for one in engines] == ["other", "other"]
    # seen and measured in five rounds by one, and compared once by the other
    assert [name for name, _ in machine.ran].count("plain") == 1 + 5 + 1


def test_a_folder_that_cannot_be_written_is_no_obstacle(machine: FakeMachine, images: Tensor, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    machine.folder = tmp_path / "file" / "engine"
    chosen = machine.engine(machine.way("other", 0.5))
    chosen(images)
    assert chosen.chosen == "other"


# --- how it runs


def test_ways_run_on_whole_chunks_and_the_rest_goes_the_plain_way(
    machine: FakeMachine, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_CHUNK", 3 * 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        chosen = machine.engine(machine.way("other", 0.5))
        chosen(images)
        machine.ran.clear()
        features = chosen(images)
    finally:
        torch.set_num_threads(threads)
    assert machine.ran == [("other", 3), ("other", 3), ("plain", 2)]
    assert torch.equal(features, machine.part(images))
    machine.ran.clear()
    chosen(torch.randn(8, 3, 4, 1))  # another size than it was measured for
    assert machine.ran == [("plain", 8)]


def test_a_part_that_was_written_to_is_made_ready_anew() -> None:
    body = body_of("test_resnet")
    body.engine = engine_of(body, Engine.fused)
    pictures = torch.randn(4, 3, 64, 64)
    first = body(pictures)
    assert body.engine.chosen == "fused"
    with torch.no_grad():
        next(body.model.parameters()).mul_(1.5)
    second = body(pictures)
    assert not torch.allclose(first, second)
    body.engine = None
    torch.testing.assert_close(second, body(pictures), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", [Engine.channels_last, Engine.fused])
@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050", "test_convnext", "test_vit"])
def test_each_way_gives_the_same_features_and_leaves_everything_alone(name: str, wanted: Engine) -> None:
    body = body_of(name, drop_rate=0.1)
    body.model.train()
    size = 160 if name == "test_vit" else 64
    pictures = torch.randn(5, 3, size, size)
    plain = body(pictures)
    tensors = {key: (value.data_ptr(), value.stride(), value.clone()) for key, value in body.model.state_dict().items()}
    state = torch.get_rng_state()
    said: list[str] = []
    body.engine = engine_of(body, wanted, say=said.append)
    features = body(pictures)
    torch.testing.assert_close(features, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))
    traces = wanted is not Engine.fused or name != "test_vit"
    assert body.engine.chosen == (wanted.value if traces else "plain"), said
    assert torch.equal(torch.get_rng_state(), state)
    assert not features.requires_grad
    assert all(module.training for module in body.model.modules())
    assert all(parameter.requires_grad for parameter in body.model.parameters())
    for key, value in body.model.state_dict().items():
        pointer, stride, content = tensors[key]
        assert (value.data_ptr(), value.stride()) == (pointer, stride)
        assert torch.equal(value, content)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
def test_compiled_code_gives_the_same_features_and_goes_when_it_is_let_go() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))
    body = FrozenBody(model, Boundary("4"), model.forward)
    pictures = torch.randn(6, 3, 8, 8)
    plain = body(pictures)
    body.engine = engine_of(body, Engine.compiled)
    features = body(pictures)
    assert body.engine.chosen == "compiled"
    torch.testing.assert_close(features, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))
    made = weakref.ref(body.engine._run)
    body.release()
    gc.collect()
    assert made() is None


def test_what_was_made_goes_when_it_is_let_go(machine: FakeMachine, images: Tensor) -> None:
    kept: list[weakref.ref[Any]] = []

    def make(part: nn.Module, chunk: Tensor) -> Callable[[Tensor], Tensor]:
        run = machine.run("other", 0.5)
        kept.append(weakref.ref(run))
        return run

    chosen = machine.engine(Way("other", make))
    chosen(images)
    assert kept[0]() is not None
    chosen.release()
    assert kept[0]() is None
    chosen(images)
    assert len(kept) == 2


def test_a_compiler_that_fails_leaves_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any, **named: Any) -> None:
        raise RuntimeError("InvalidCxxCompiler")

    monkeypatch.setattr(torch, "compile", fails)
    said: list[str] = []
    body = body_of("test_resnet")
    pictures = torch.randn(2, 3, 32, 32)
    plain = body(pictures)
    body.engine = engine_of(body, Engine.compiled, say=said.append)
    assert torch.equal(body(pictures), plain)
    assert said == ["engine: compiled is left out: InvalidCxxCompiler"]


def test_ways_run_in_the_precision_of_the_run(tmp_path: Path) -> None:
    class Double:
        def convert_input(self, data: Any) -> Any:
            return data.double()

        def forward_context(self) -> Any:
            return contextlib.nullcontext()

    part = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double().eval()
    run = ForwardEngine(lambda images: part(images.double()), part, Engine.channels_last, MANY, Double())
    pictures = torch.randn(8, 3, 2, 2)
    with torch.no_grad():
        assert torch.equal(run(pictures), part(pictures.double()))
    assert run.chosen == "channels_last"


# --- the ways there are, and the part they run


def test_the_ways_are_those_that_the_config_allows() -> None:
    def names(wanted: Engine, kind: str = "cpu", *, autocast: bool = False) -> list[str]:
        return [way.name for way in ways(wanted, torch.device(kind), autocast=autocast)]

    assert names(Engine.plain) == []
    assert names(Engine.auto) == ["channels_last", "fused", "compiled"]
    assert names(Engine.auto, autocast=True) == names(Engine.bf16, autocast=True) == ["channels_last", "compiled"]
    assert names(Engine.bf16) == ["channels_last", "channels_last+bf16", "fused", "compiled+bf16"]
    assert names(Engine.auto, "mps") == []
    for wanted, way in ((Engine.channels_last, CHANNELS_LAST), (Engine.fused, FUSED)):
        assert names(wanted) == [way.name]


def test_bf16_is_computed_in_half_and_given_in_single_precision(tmp_path: Path) -> None:
    body = body_of("test_resnet")
    pictures = torch.randn(4, 3, 64, 64)
    plain = body(pictures)
    half = [way for way in ways(Engine.bf16, torch.device("cpu"), autocast=False) if way.name == "channels_last+bf16"]
    body.engine = engine_of(body, Engine.bf16, choices=half, folder=tmp_path)
    body.engine.chosen, body.engine._chunk, body.engine._shape = half[0].name, 4, (3, 64, 64)
    features = body(pictures)
    assert body.engine.chosen == half[0].name
    assert features.dtype == torch.float32
    difference = float((features - plain).abs().max() / plain.abs().max())
    assert 1e-5 < difference < 1e-2


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_convnext", "test_vit", "test_efficientnet", "test_nfnet", "mixer_s32_224"]
)
def test_a_model_below_its_classifier_gives_what_comes_into_it(name: str) -> None:
    body = body_of(name)
    body.model.eval()
    size = timm.get_pretrained_cfg(name).input_size
    part = body.boundary.part(body.model)
    with torch.no_grad():
        assert torch.equal(part(torch.ones(2, *size)), body.plain(torch.ones(2, *size)))
    assert type(body.boundary.classifier(body.model)) is not nn.Identity
    own = {id(parameter) for parameter in body.model.parameters()}
    assert {id(parameter) for parameter in part.parameters()} < own


def test_a_part_that_is_not_what_comes_into_the_classifier_is_left_out() -> None:
    class Scaled(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = super().forward(images)
            return logits * 2

    model = Scaled(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2))
    body = FrozenBody(model, Boundary("2"), model.forward)
    said: list[str] = []
    body.engine = engine_of(body, Engine.channels_last, say=said.append)
    pictures = torch.randn(4, 3, 2, 2)
    assert torch.equal(body(pictures), model[1](model[0](pictures)))
    assert "differ by" in said[0]
