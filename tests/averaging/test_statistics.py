from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from frostline.averaging import layers_with, renew_statistics


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = timm.create_model("test_resnet", num_classes=3)
    return made


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 32, 32, generator=generator) for size in (4, 6, 3)]


def test_it_is_what_torch_computes(model: nn.Module, batches: list[Tensor]) -> None:
    theirs = copy.deepcopy(model)
    update_bn(batches, theirs)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert renew_statistics(model, layers_with(model), batches, model) == 3
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert not torch.equal(before["bn1.running_mean"], model.state_dict()["bn1.running_mean"])
    assert int(model.state_dict()["bn1.num_batches_tracked"]) == 3
    assert not any(module.training for module in model.modules())
    assert {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}


def test_other_layers_stay_and_see_what_they_will_see(model: nn.Module, batches: list[Tensor]) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (chosen,) = layers_with(model, ["bn1.running_var", "bn1.weight", "conv1.weight"])
    assert chosen == "bn1"
    renew_statistics(model, [chosen], batches[:1], model)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"}
    seen = model.get_submodule("conv1")(batches[0])
    assert torch.allclose(model.get_buffer("bn1.running_mean"), seen.mean(dim=(0, 2, 3)), atol=1e-6)
    assert torch.allclose(model.get_buffer("bn1.running_var"), seen.transpose(0, 1).flatten(1).var(dim=1), atol=1e-6)


def test_a_single_picture_has_no_variance_and_no_dropout_acts(batches: list[Tensor]) -> None:
    layers = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False))
    assert layers_with(layers) == ("1",)
    assert renew_statistics(layers, ["1"], [batches[0][:1], batches[1]], layers) == 1
    assert torch.allclose(layers.get_buffer("1.running_mean"), batches[1].mean(dim=(0, 2, 3)), atol=1e-6)


def test_a_fault_on_the_way_leaves_the_model_in_eval(model: nn.Module, batches: list[Tensor]) -> None:
    def broken(images: Tensor) -> None:
        raise OSError(len(images))

    with pytest.raises(OSError, match="4"):
        renew_statistics(model, layers_with(model), batches, broken)
    assert not any(module.training for module in model.modules())
