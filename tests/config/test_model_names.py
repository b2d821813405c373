from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import timm.models
from omegaconf import OmegaConf

from frostline.config.model_names import name_faults

pytestmark = pytest.mark.usefixtures("unimported")


@pytest.fixture
def unimported(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a command line is looked at: timm was not imported."""
    monkeypatch.delitem(sys.modules, "timm")


def faults(name: str, **others: object) -> list[str]:
    return [str(fault) for fault in name_faults(OmegaConf.create({"backbone": {"name": name}, **others}))]


def test_every_model_of_timm_is_known() -> None:
    names = timm.list_models()
    assert len(names) > 1000
    assert [name for name in names if faults(name)] == []
    assert [name for name in timm.list_pretrained() if faults(name)] == []


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("resnet81", "Did you mean 'resnet18'"),
        ("mobilenetv2_10", "or 'mobilenetv2_100' or"),
        ("resnet81.a1_in1k", "Did you mean 'resnet18'"),
        ("qqqqqqqq", "timm.list_models() lists the names."),
        ("convnext_tiny_in22ft1k", "It is now called 'convnext_tiny.fb_in22k_ft_in1k'."),
    ],
)
def test_one_that_it_does_not_have_is_told(name: str, mend: str) -> None:
    [said] = faults(name)
    assert said.startswith(f"There is no timm model '{name}'.")
    assert mend in said


def test_every_old_name_is_told_with_its_new_one() -> None:
    renamed = timm.models.get_deprecated_models()
    assert renamed
    for old, new in renamed.items():
        if old not in timm.list_models():
            [said] = faults(old)
            assert f"'{new}'" in said


@pytest.mark.parametrize("name", ["hf-hub:org/model", "local-dir:somewhere", "models/resnet", "my.own.Network", ""])
def test_what_is_no_name_of_timms_is_left_to_the_one_that_creates_it(name: str) -> None:
    assert faults(name) == []


def test_code_of_a_persons_own_may_have_registered_one(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"loss": {"_target_": "my_package.Loss"}, "optimizer": {"_target_": "torch.optim.AdamW"}}
    assert faults("qqqqqqqq", **own) == []
    assert faults("qqqqqqqq", optimizer=own["optimizer"]) != []
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert faults("qqqqqqqq") == []


def test_a_module_has_any_name() -> None:
    config = OmegaConf.create({"backbone": {"name": "mine.Net", "module": {"_target_": "torchvision.models.resnet18"}}})
    assert name_faults(config) == []


def test_a_command_line_with_a_wrong_name_is_answered_without_torch() -> None:
    """And makes no folder."""
    code = (
        "import sys; from frostline.cli import main\n"
        "try: main(['train', 'backbone=timm', 'backbone.name=resnet81', 'output=nowhere'])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules, 'timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False", "False"]
    assert "Did you mean 'resnet18'" in done.stderr
