"""A backbone that is not timm's, from the command to a picture's label."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from going_on import assert_equal, state, stopped_at
from omegaconf import DictConfig

import frostline
from frostline.backbones import Backbone
from frostline.config import load_config, save_config
from frostline.errors import ConfigError
from frostline.runs.evaluate import evaluate
from frostline.runs.parts import build_parts
from frostline.runs.predict import predict
from frostline.runs.resuming import prepare_resume
from frostline.runs.starting import prepare
from frostline.runs.worker import work

RESNET = ["backbone=module", "backbone.module._target_=torchvision.models.resnet18", "backbone.head=fc"]
SHORT = [
    "freeze=lp_ft",
    "freeze.phases.full.start=last",
    "data=folder",
    "data.size=32",
    "data.batch_size=8",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "logger=csv",
]

OWN = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, width, classes=10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.flat = nn.Flatten()
        self.out = nn.Linear(width, classes)


def nothing(path):
    open(path, "w").close()
    return Net(4)
"""


@pytest.fixture(scope="module")
def place(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*SHORT, f'data.root="{pictures}"', f"output={tmp_path_factory.mktemp('modules')}"]


@pytest.fixture(scope="module")
def trained(place: list[str], tmp_path_factory: pytest.TempPathFactory) -> frostline.Run:
    """A resnet18 of torchvision, fine-tuned for an epoch of two phases, in which it was stopped once."""
    stop = stopped_at(tmp_path_factory.mktemp("marks"), ["on_train_batch_end:3"])
    overrides = [*RESNET, *place, "optimizer=sgd", stop]
    folder = prepare(frostline.compose(overrides), overrides)
    assert work("train", folder.path) == 143
    with pytest.raises(ConfigError, match="resnet18 is not one of Frostline's own"):
        frostline.resume(folder.path, trust=["stopping"])
    return frostline.resume(folder.path, trust=["stopping", "torchvision"])


def evaluated(run: Path, *overrides: str) -> dict[str, float]:
    return evaluate(frostline.compose([f"run={run}", "trainer=cpu", *overrides], command="evaluate"))


def predicted(run: Path, images: Path, output: Path, *overrides: str) -> list[dict[str, str]]:
    own = [f'run="{run}"', f'images="{images}"', f'output="{output}"', "device=cpu", *overrides]
    predict(frostline.compose(own, command="predict"))
    with output.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_it_trains_in_phases_and_says_what_it_is(trained: frostline.Run) -> None:
    with trained.folder.schedule.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["phase"], row["trainable_parameters"]) for row in rows] == [("probe", "1539"), ("full", "11178051")]
    assert trained.config.backbone.name == "torchvision.models.resnet18"
    assert sorted(path.name for path in trained.folder.model.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert trained.labels == ("blue, deep", "gréen", "red=1")


def test_it_evaluates_where_it_is_trusted(trained: frostline.Run) -> None:
    with pytest.raises(ConfigError, match=r"trust='\[torchvision"):
        evaluated(trained.path)
    scores = evaluated(trained.path, "trust=[torchvision,stopping]")
    assert scores["test/loss"] == pytest.approx(trained.metrics["test/loss"], rel=1e-5)
    assert scores["test/count"] == 21


def test_it_predicts_where_it_is_trusted(trained: frostline.Run, pictures: Path, tmp_path: Path) -> None:
    images = pictures / "test" / "red=1"
    with pytest.raises(ConfigError, match=r"trust='\[torchvision"):
        predicted(trained.path, images, tmp_path / "table.csv")
    rows = predicted(trained.path, images, tmp_path / "table.csv", "trust=[torchvision]")
    own = trained.predict(sorted(images.iterdir()))
    assert [row["prediction"] for row in rows] == [found.label for found in own]
    assert len(rows) == 7


def test_it_loads_in_python_where_it_is_trusted(trained: frostline.Run) -> None:
    with pytest.raises(ConfigError, match="is not one of Frostline's own"):
        _ = frostline.load(trained.path).model
    loaded = frostline.load(trained.path, trust=["torchvision"])
    assert_equal(trained.model.state_dict(), loaded.model.state_dict())


def test_another_run_starts_from_its_weights(trained: frostline.Run, place: list[str]) -> None:
    def parts(*overrides: str) -> Backbone:
        config = frostline.compose([*place, f"backbone.weights={trained.path}", *overrides])
        return build_parts(config).backbone

    backbone = parts(*RESNET)
    assert_equal(trained.model.state_dict(), backbone.model.state_dict())
    assert backbone.report.missing == ()
    with pytest.raises(ConfigError, match="holds another model than this ResNet"):
        parts(*RESNET, "backbone.module._target_=torchvision.models.resnet34")
    with pytest.raises(ConfigError, match="is the run of a module"):
        parts("backbone=timm")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A package and a folder of configs of a person's own."""
    place = tmp_path_factory.mktemp("own")
    (place / "ownnets").mkdir()
    (place / "ownnets" / "__init__.py").write_text(OWN, encoding="utf-8")
    (place / "conf" / "backbone").mkdir(parents=True)
    (place / "conf" / "backbone" / "own.yaml").write_text(
        "defaults: [module, _self_]\nmodule: {_target_: ownnets.Net, width: 6}\nhead: out\n", encoding="utf-8"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        yield place


def compose_own(own: Path, place: list[str], *overrides: str) -> DictConfig:
    return frostline.compose(["backbone=own", *place, *overrides], config_dirs=[own / "conf"])


@pytest.fixture(scope="module")
def own_run(own: Path, place: list[str]) -> frostline.Run:
    return frostline.train(compose_own(own, place, "augment=standard", "callbacks=ema"))


@pytest.mark.slow
def test_a_persons_own_module_trains_and_evaluates(own_run: frostline.Run) -> None:
    assert own_run.model.out.out_features == 3
    scores = evaluated(own_run.path, "trust=[ownnets]")
    assert scores["test/loss"] == pytest.approx(own_run.metrics["test/loss"], rel=1e-5)


@pytest.mark.slow
def test_it_goes_on_bitwise_the_same(own: Path, own_run: frostline.Run, place: list[str], tmp_path: Path) -> None:
    stop = stopped_at(tmp_path / "marks", ["on_train_batch_end:1", "on_train_batch_end:3"])
    folder = prepare(compose_own(own, place, "augment=standard", "callbacks=ema", f"output={tmp_path}", stop), [])
    assert work("train", folder.path) == 143
    for code in (143, 0):
        assert work("train", prepare_resume(folder.path, trust=["stopping", "ownnets"]).path) == code
    assert_equal(state(own_run.folder)["state_dict"], state(folder)["state_dict"])
    assert_equal(own_run.model.state_dict(), frostline.load(folder.path, trust=["ownnets"]).model.state_dict())


@pytest.mark.parametrize(
    ("freeze", "reaches_the_stem"), [("gradual", True), ("llrd", True), ("last_n", False)], ids=lambda value: str(value)
)
def test_it_takes_every_kind_of_schedule(own: Path, place: list[str], freeze: str, reaches_the_stem: bool) -> None:
    rest = [item for item in place if not item.startswith("freeze")]
    fewer = ["freeze.phases.last_n.train=head + top:1"] if freeze == "last_n" else []
    schedule = build_parts(compose_own(own, rest, f"freeze={freeze}", "data.batch_size=2", *fewer)).schedule
    assert [group.parameters[0] for group in schedule.groups] == ["stem.0.weight", "block.0.weight", "out.weight"]
    learning = [stage.trainable for phase in schedule.phases for stage in phase.stages]
    assert all({"out.weight", "out.bias"} <= names for names in learning)
    assert ("stem.0.weight" in learning[-1]) is reaches_the_stem


@pytest.fixture
def copy(own_run: frostline.Run, tmp_path: Path) -> Path:
    """A run that someone else has had in hand."""
    shutil.copytree(own_run.path, tmp_path / "copy")
    return tmp_path / "copy"


def set_module(run: Path, module: dict[str, object] | None) -> None:
    config = load_config(run / "config.yaml")
    config.backbone.module = module
    save_config(config, run / "config.yaml")


@pytest.mark.parametrize("trust", [[], ["torchvision"], ["ownnets.Net"]])
def test_a_target_put_into_a_runs_config_is_not_built(copy: Path, tmp_path: Path, trust: list[str]) -> None:
    set_module(copy, {"_target_": "ownnets.nothing", "path": str(tmp_path / "made")})
    with pytest.raises(ConfigError, match=r"ownnets\.nothing is not one of"):
        frostline.load(copy, trust=trust).predict([tmp_path / "picture.jpg"])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (None, r"names none in backbone\.module"),
        ({"_target_": "ownnets.Net", "width": 7}, r"another ownnets\.Net than the config of the run builds"),
        ({"_target_": "ownnets.Net", "width": "${oc.env:ABSENT}"}, r"backbone\.module of .* cannot be read"),
        ({"_target_": "ownnets.Net"}, r"lacks 'width'"),
        ({"_target_": "ownnets.nothing", "path": "/absent/made"}, "No such file"),
    ],
)
def test_a_module_that_was_changed_is_named(copy: Path, module: dict[str, object] | None, says: str) -> None:
    set_module(copy, module)
    with pytest.raises(ConfigError, match=says):
        _ = frostline.load(copy, trust=["ownnets"]).model


def test_without_a_target_or_a_head_nothing_starts(place: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"backbone\.module\._target_ has no value"):
        frostline.compose(["backbone=module"])
    with pytest.raises(ConfigError, match=r"backbone\.head is not set.*\n.*Its last linear layers: fc\."):
        frostline.train([*RESNET[:2], *place])
