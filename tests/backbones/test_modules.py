"""A module that is not timm's as a backbone: its head, its input, its weights, and its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.backbones import (
    Backbone,
    create_backbone,
    holds_module,
    load_module_folder,
    load_timm_folder,
    save_module_folder,
    save_timm_folder,
)
from frostline.errors import ConfigError, StorageError
from frostline.specs import BackboneSpec, InputSpec

LABELS = ("a", "b", "c")


class Net(nn.Module):
    """Two stages and a classifier, registered from its end to its start."""

    def __init__(self, classes: int = 10, width: int = 4, head: nn.Module | None = None) -> None:
        super().__init__()
        self.fc = head or nn.Linear(width, classes)
        self.late = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.early = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.late(self.early(images)).mean((2, 3)))


class ConvNet(nn.Module):
    """Its classifier is a convolution, in a sequence, and known by a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3)
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Conv2d(4, 10, 1, bias=False))
        self.last = self.classifier[1]

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.features(images)).mean((2, 3))


class Scaled(nn.Linear):
    def forward(self, features: Tensor) -> Tensor:
        return 3 * super().forward(features)


class Counting(Net):
    def get_extra_state(self) -> dict[str, int]:
        return {"pictures": 1}

    def set_extra_state(self, state: Any) -> None: ...


def spec(**changes: Any) -> BackboneSpec:
    return BackboneSpec(**{"name": "net", "head": "fc", "input": InputSpec(size=16), "module": {}, **changes})


def create(module: nn.Module | None = None, *, classes: int = 3, size: int | None = None, **changes: Any) -> Backbone:
    module = Net() if module is None else module
    return create_backbone(spec(**changes), num_classes=classes, size=size, module=module)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


class TestHead:
    def test_it_is_made_anew_for_other_classes_and_starts_at_zero(self) -> None:
        module = Net()
        before = tensors(module)
        backbone = create(module)
        assert not backbone.model.eval()(torch.randn(2, 3, 16, 16)).any()
        assert backbone.model.fc.weight.shape == (3, 4)
        assert backbone.report.missing == ("fc.weight", "fc.bias")
        after = tensors(backbone.model)
        assert_same(*({name: state[name] for name in state if "fc" not in name} for state in (before, after)))
        assert "14 tensors as the constructor made them, 2 missing" in backbone.report.sentence()

    def test_it_stays_where_it_has_the_classes(self) -> None:
        module = Net(3)
        before = tensors(module)
        backbone = create(module)
        assert_same(before, tensors(backbone.model))
        assert (backbone.report.missing, backbone.report.loaded) == ((), len(before))

    def test_weights_none_leaves_everything_new_and_nothing_at_zero(self) -> None:
        backbone = create(weights="none")
        assert set(backbone.report.missing) == set(backbone.model.state_dict())
        assert backbone.model(torch.randn(2, 3, 16, 16)).all()

    def test_a_convolution_is_replaced_under_each_of_its_names(self) -> None:
        model = create(ConvNet(), head="classifier.1").model
        assert model(torch.randn(2, 3, 16, 16)).shape == (2, 3)
        assert model.last is model.classifier[1]
        assert model.last.bias is None

    def test_it_is_the_last_depth_group_and_the_body_is_in_the_order_of_use(self) -> None:
        groups = create().groups
        assert [group.name for group in groups if group.is_head] == [groups[-1].name]
        assert groups[-1].parameters == ("fc.weight", "fc.bias")
        body = [name for group in groups[:-1] for name in group.parameters]
        assert [name.partition(".")[0] for name in body] == ["early"] * 4 + ["late"] * 4

    @pytest.mark.parametrize(
        ("module", "head", "says"),
        [
            (Net, None, ["backbone.head is not set", "Its last linear layers: fc."]),
            (Net, "fcc", ["backbone.head=fcc: Net has no such layer", "Did you mean 'fc'?"]),
            (Net, "late.0", ["this layer of Net is a Conv2d", "last linear layers: fc."]),
            (ConvNet, "classifier", ["is a Sequential", "Did you mean 'classifier.1'?"]),
            (lambda: nn.Conv2d(3, 3, 3), "fc", ["neither a Linear nor a 1x1 Conv2d"]),
            (lambda: Net(head=Scaled(4, 10)), "fc", ["is a Scaled with 10 outputs", "number of classes"]),
        ],
    )
    def test_one_that_cannot_be_found_or_made_is_refused(
        self, module: Callable[[], nn.Module], head: str | None, says: list[str]
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            create(module(), head=head)
        assert [part for part in says if part not in str(caught.value)] == []

    def test_one_of_its_own_kind_is_kept_where_it_has_the_classes(self) -> None:
        assert isinstance(create(Net(head=Scaled(4, 3))).model.fc, Scaled)


class TestModule:
    def test_what_is_no_module_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"backbone\.module gives a str"):
            create_backbone(spec(), num_classes=3, module="net")

    def test_a_lazy_layer_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"the shape of fc\.weight is not known"):
            create(Net(head=nn.LazyLinear(3)))

    def test_arguments_for_timm_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"backbone\.kwargs\.drop_rate") as caught:
            create(kwargs={"drop_rate": 0.1})
        assert caught.value.mend == "+backbone.module.drop_rate=VALUE"

    @pytest.mark.parametrize("arguments", [{"num_classes": 0, "module": Net()}, {"num_classes": 3}])
    def test_commands_that_cannot_take_one_say_so(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=r"backbone\.module is for `frostline train`"):
            create_backbone(spec(), **arguments)

    @pytest.mark.parametrize(("key", "value"), [("head", "fc"), ("input", InputSpec(size=16))])
    def test_its_keys_are_refused_for_a_timm_model(self, key: str, value: Any) -> None:
        timm = BackboneSpec(name="test_resnet", weights="none", **{key: value})
        with pytest.raises(ConfigError, match=rf"backbone\.{key}.* is for backbone\.module"):
            create_backbone(timm, num_classes=3)


class TestInput:
    def test_it_is_what_the_spec_says_at_the_size_of_the_run(self) -> None:
        found = create(size=32, input=InputSpec(16, [0.1, 0.2, 0.3], [1.0, 2.0, 3.0], "bicubic", 1.0)).preprocessing
        assert (found.size, found.mean, found.std) == ((3, 32, 32), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
        assert (found.interpolation, found.crop_pct) == ("bicubic", 1.0)
        assert create().preprocessing.size == (3, 16, 16)

    def test_statistics_of_one_channel_mean_gray(self) -> None:
        module = Net()
        module.early[0] = nn.Conv2d(1, 4, 3)
        assert create(module, input=InputSpec(16, [0.5], [0.2])).preprocessing.size == (1, 16, 16)

    def test_every_fault_is_named(self) -> None:
        with pytest.raises(ConfigError) as caught:
            create(input=InputSpec(-1, [0.5] * 4, [0.2, 0.0], "bicubik", 9.0))
        said = str(caught.value)
        for key in ("size=-1", "mean=", "std=", "interpolation=bicubik", "crop_pct=9.0"):
            assert f"backbone.input.{key}" in said
        assert "'bicubic'" in said


class TestWeights:
    @pytest.mark.parametrize("classes", [3, 5])
    def test_a_file_is_loaded_by_name_without_its_classifier(self, tmp_path: Path, classes: int) -> None:
        other = Net(classes)
        torch.save({f"module.{name}": tensor for name, tensor in tensors(other).items()}, tmp_path / "net.pth")
        backbone = create(weights=str(tmp_path / "net.pth"))
        assert torch.equal(backbone.model.late[0].weight, other.late[0].weight)
        assert not backbone.model.fc.weight.any()
        assert backbone.report.missing == backbone.report.left_out[::-1] == ("fc.weight", "fc.bias")

    @pytest.mark.parametrize(
        ("weights", "kind", "says"),
        [
            ("pretraind", ConfigError, "'pretrained'"),
            ("absent.pth", StorageError, "no weight file"),
            (__file__, ConfigError, "is no weight file"),
        ],
    )
    def test_what_is_none_is_refused(self, weights: str, kind: type[Exception], says: str) -> None:
        with pytest.raises(kind, match=says):
            create(weights=weights)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with a module in it, whose weights are no fresh ones."""
    backbone = create()
    for tensor in backbone.model.state_dict().values():
        tensor.add_(1)
    save(backbone, tmp_path / "run" / "model")
    return tmp_path / "run"


def save(backbone: Backbone, folder: Path, labels: tuple[str, ...] = LABELS) -> None:
    preprocessing = backbone.preprocessing
    save_module_folder(backbone.model, folder, labels=labels, preprocessing=preprocessing, head=backbone.head or "")


class TestFolder:
    def test_it_gives_the_same_model_back(self, tmp_path: Path) -> None:
        backbone = create(Net().to(memory_format=torch.channels_last), size=32)
        save(backbone, tmp_path / "model")
        saved = load_module_folder(tmp_path / "model", Net())
        assert_same(tensors(backbone.model), tensors(saved.model))
        assert (saved.labels, saved.preprocessing) == (LABELS, backbone.preprocessing)
        assert not saved.model.training
        assert holds_module(tmp_path / "model")
        assert holds_module(tmp_path)
        assert not holds_module(tmp_path / "absent")

    def test_tied_tensors_are_tied_again(self, tmp_path: Path) -> None:
        save(create(ConvNet(), head="classifier.1"), tmp_path / "model")
        model = load_module_folder(tmp_path / "model", ConvNet()).model
        assert model.last is model.classifier[1]

    @pytest.mark.parametrize("other", [Net(width=5), ConvNet()], ids=["shapes", "names"])
    def test_another_module_is_refused(self, run: Path, other: nn.Module) -> None:
        with pytest.raises(ConfigError, match=r"another .*Net than|no such layer"):
            load_module_folder(run / "model", other)

    def test_labels_of_another_number_and_a_state_that_is_no_tensor_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="2 labels were given for a model with 3 classes"):
            save(create(), tmp_path / "model", labels=("a", "b"))
        with pytest.raises(ConfigError, match="_extra_state"):
            save(create(Counting()), tmp_path / "model")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_of_something_else_is_not_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").touch()
        with pytest.raises(StorageError, match="exists"):
            save(create(), tmp_path)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("module", 5),
            ("head", ["fc"]),
            ("label_names", "abc"),
            ("label_names", [1]),
            ("input", None),
            ("input", {}),
            ("input.size", [3, 10**6, 10**6]),
            ("input.size", [3, 16]),
            ("input.size", [10**9, 16, 16]),
            ("input.mean", [float("nan")] * 3),
            ("input.std", [0.0] * 3),
            ("input.interpolation", "\x1b[2J"),
            ("input.crop_pct", "much"),
            ("input.crop_pct", 1e-9),
        ],
    )
    def test_a_config_that_lies_is_refused(self, run: Path, key: str, value: Any) -> None:
        path = run / "model" / "config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        node, _, last = key.rpartition(".")
        (content[node] if node else content)[last] = value
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(StorageError, match=r"config\.json") as caught:
            load_module_folder(run / "model", Net())
        assert "\x1b" not in str(caught.value)

    @pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "{"])
    def test_a_config_that_is_no_json_object_is_refused(self, run: Path, text: str) -> None:
        (run / "model" / "config.json").write_text(text, encoding="utf-8")
        assert not holds_module(run)
        with pytest.raises(StorageError):
            load_module_folder(run / "model", Net())


class TestRunAsWeights:
    def test_the_same_module_takes_all_of_it(self, run: Path) -> None:
        backbone = create(weights=str(run))
        assert_same(tensors(backbone.model), tensors(load_module_folder(run / "model", Net()).model))
        assert backbone.report.missing == ()

    def test_other_classes_leave_the_classifier_out(self, run: Path) -> None:
        backbone = create(weights=str(run), classes=4)
        assert not backbone.model.fc.weight.any()
        assert backbone.report.missing == ("fc.weight", "fc.bias")
        assert backbone.model.early[0].bias.mean() > 0.5

    def test_another_module_is_refused(self, run: Path) -> None:
        with pytest.raises(ConfigError, match=r"another model than this Net.*early\.0\.bias, early\.0\.weight"):
            create(Net(width=5), weights=str(run))

    @pytest.mark.parametrize("key", ["weights", "name"])
    def test_a_timm_model_refuses_it(self, run: Path, key: str) -> None:
        named = {"name": f"local-dir:{run}"} if key == "name" else {"name": "test_resnet", "weights": str(run)}
        with pytest.raises(ConfigError, match="is the run of a module") as caught:
            create_backbone(BackboneSpec(**named), num_classes=3)
        assert "backbone=module" in str(caught.value)

    def test_the_run_of_a_timm_model_with_the_same_tensors_fits(self, tmp_path: Path) -> None:
        import timm

        trained = create_backbone(BackboneSpec("test_resnet", "none"), num_classes=3)
        save_timm_folder(trained.model, tmp_path / "run" / "model", labels=LABELS, preprocessing=trained.preprocessing)
        same = timm.create_model("test_resnet", num_classes=3)
        backbone = create(same, weights=str(tmp_path / "run"), input=InputSpec(size=32))
        assert_same(tensors(trained.model), tensors(backbone.model))

    def test_a_moved_folder_still_loads(self, run: Path, tmp_path: Path) -> None:
        shutil.move(run, tmp_path / "elsewhere")
        assert holds_module(tmp_path / "elsewhere")
        with pytest.raises(ConfigError, match="no 'architecture'"):
            load_timm_folder(tmp_path / "elsewhere")
