from __future__ import annotations

import copy

import pytest
import timm
import torch
from lightning import LightningModule
from torch import Tensor, nn

from frostline.tasks.regularization import L2SP, NoRegularizer

NEW = frozenset({"fc.weight", "fc.bias"})


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5)


def names_of(model: nn.Module) -> frozenset[str]:
    return frozenset(name for name, _ in model.named_parameters())


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def move(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.mark.parametrize(("alpha", "beta"), [(0.01, 0.01), (0.5, 0.0), (0.0, 2.0)])
@pytest.mark.parametrize("given", [True, False])
def test_the_penalty_is_its_formula(model: nn.Module, alpha: float, beta: float, given: bool) -> None:
    start = values(model)
    regularizer = L2SP(alpha, beta)
    regularizer.begin(model, dict(start) if given else None, NEW)
    move(model)
    expected = torch.zeros((), dtype=torch.float64)
    for name, now in values(model).items():
        old = torch.zeros_like(now) if name in NEW else start[name]
        expected += (beta if name in NEW else alpha) / 2 * (now.double() - old.double()).square().sum()
    found = regularizer.penalty(model, names_of(model))
    assert (found.shape, found.dtype) == ((), torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-8)


def test_its_gradient_pulls_to_the_start_and_new_ones_to_zero(model: nn.Module) -> None:
    start = values(model)
    regularizer = L2SP(0.3, 0.7)
    regularizer.begin(model, None, NEW)
    move(model)
    regularizer.penalty(model, names_of(model)).backward()
    for name, parameter in model.named_parameters():
        expected = 0.7 * parameter if name in NEW else 0.3 * (parameter - start[name])
        torch.testing.assert_close(parameter.grad, expected.detach())


def test_at_the_start_neither_penalty_nor_gradient_is_there(model: nn.Module) -> None:
    regularizer = L2SP()
    regularizer.begin(model, None, frozenset())
    penalty = regularizer.penalty(model, names_of(model))
    penalty.backward()
    assert penalty.item() == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters() if p.grad is not None)


def test_only_what_learns_is_penalized(model: nn.Module) -> None:
    regularizer = L2SP()
    regularizer.begin(model, None, NEW)
    move(model)
    trainable = frozenset({"conv1.0.weight", "fc.weight"})
    parts = [regularizer.penalty(model, frozenset({name})) for name in sorted(trainable)]
    whole = regularizer.penalty(model, trainable)
    torch.testing.assert_close(whole, sum(parts, torch.zeros(())))
    whole.backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trainable
    assert regularizer.penalty(model, frozenset()).item() == 0


def test_a_parameter_that_the_start_lacks_is_new(model: nn.Module) -> None:
    start = values(model)
    del start["conv1.0.weight"]
    regularizer = L2SP(alpha=0.0, beta=2.0)
    regularizer.begin(model, start, NEW)
    expected = model.get_parameter("conv1.0.weight").square().sum()
    torch.testing.assert_close(regularizer.penalty(model, names_of(model) - NEW), expected)


def test_a_start_of_another_shape_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"the start of 'conv1\.0\.weight' is \(1,\)"):
        L2SP().begin(model, {"conv1.0.weight": torch.zeros(1)}, NEW)


def test_a_start_with_a_name_that_the_model_lacks_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"no parameter 'conv2\.weight'"):
        L2SP().begin(model, values(model) | {"conv2.weight": torch.zeros(1)}, NEW)


@pytest.mark.parametrize(("alpha", "beta"), [(-0.1, 0.0), (0.0, -0.1)])
def test_a_negative_factor_is_refused(alpha: float, beta: float) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        L2SP(alpha, beta)


class Task(LightningModule):
    def __init__(self, model: nn.Module, regularizer: L2SP) -> None:
        super().__init__()
        self.model = model
        self.regularizer = regularizer


def test_it_is_in_no_checkpoint_and_moves_with_its_task(model: nn.Module) -> None:
    start = values(model)
    regularizer = L2SP()
    regularizer.begin(model, start, NEW)
    task = Task(model, regularizer)
    assert list(task.state_dict()) == [f"model.{name}" for name in model.state_dict()]
    assert list(task.buffers()) == list(model.buffers())
    move(model)
    before = regularizer.penalty(model, names_of(model))
    task.double()
    after = regularizer.penalty(model, names_of(model))
    torch.testing.assert_close(before, after)
    twin = copy.deepcopy(task)
    torch.testing.assert_close(twin.regularizer.penalty(twin.model, names_of(model)), after)
    task.to("meta")
    assert regularizer.penalty(model, names_of(model)).device.type == "meta"


def test_a_later_start_takes_the_place_of_the_first_and_is_a_copy(model: nn.Module) -> None:
    regularizer = L2SP()
    regularizer.begin(model, None, frozenset())
    move(model)
    assert regularizer.penalty(model, names_of(model)) > 0
    start = values(model)
    regularizer.begin(model, start, frozenset())
    start["conv1.0.weight"].zero_()
    assert regularizer.penalty(model, names_of(model)).item() == 0


def test_a_resumed_run_has_the_penalty_of_the_one_before(model: nn.Module) -> None:
    regularizer = L2SP()
    regularizer.begin(model, None, NEW)
    again, resumed = copy.deepcopy(model), L2SP()
    resumed.begin(again, None, NEW)
    move(model)
    again.load_state_dict(model.state_dict())
    assert torch.equal(resumed.penalty(again, names_of(model)), regularizer.penalty(model, names_of(model)))


def test_no_regularizer_changes_no_loss(model: nn.Module) -> None:
    regularizer = NoRegularizer()
    regularizer.begin(model, None, NEW)
    assert Task(model, regularizer).regularizer.penalty(model, names_of(model)) is None
