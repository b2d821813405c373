from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from frostline.backbones.tracing import first_uses

SIZE = (3, 8, 8)


class Late(nn.Module):
    """Uses its parts in another order than it registers them, a tensor of its own among them, and one part never."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.never = nn.Linear(4, 4)
        self.token = nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.norm = nn.BatchNorm2d(4)
        self.entry = nn.Conv2d(3, 4, 1)
        self.register_buffer("calls", torch.zeros(()))
        self.scale = torch.ones(4, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.entry(images)) * self.scale + self.token
        return self.last(features.mean((2, 3)))


def in_order(model: nn.Module) -> list[str]:
    trace = first_uses(model, SIZE)
    assert trace.fault is None
    return sorted(trace.ranks, key=lambda name: (trace.ranks[name], name))


def test_parameters_are_ordered_by_their_first_use_tensors_of_the_model_too() -> None:
    names = ["entry.bias", "entry.weight", "norm.bias", "norm.weight", "token", "last.bias", "last.weight"]
    assert [name.partition(".")[0] for name in in_order(Late())] == [name.partition(".")[0] for name in names]
    assert set(in_order(Late())) == set(names)


def test_what_one_operation_takes_together_shares_a_position() -> None:
    ranks = first_uses(Late(), SIZE).ranks
    assert ranks["entry.weight"] == ranks["entry.bias"] < ranks["norm.weight"] == ranks["norm.bias"] < ranks["token"]


def test_the_model_and_the_generator_stay_as_they_are() -> None:
    model = timm.create_model("test_resnet", num_classes=3).train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    generator = torch.get_rng_state()
    assert first_uses(model, (3, 64, 64)).fault is None
    assert [module.training for module in model.modules()] == modes
    assert [id(tensor) for tensor in (*model.parameters(), *model.buffers())] == tensors
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_no_memory_is_taken_for_a_large_model() -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # four terabytes, of which one number is stored
            self.table = nn.Parameter(torch.zeros(1).expand(10**12))
            self.register_buffer("other", torch.zeros(1).expand(10**12))
            self.loose = torch.zeros(1).expand(10**12)

        def forward(self, images: Tensor) -> Tensor:
            return self.table + self.other + self.loose

    assert in_order(Large()) == ["table"]


def test_tied_parameters_are_used_when_the_first_of_them_is() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[4].weight = model[2].weight
    assert [name for name in in_order(model) if name.endswith("weight")] == ["1.weight", "2.weight", "3.weight"]


class Choosy(Late):
    """Looks at values, which a meta tensor has none of, and counts."""

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        torch.rand(1)
        return super().forward(images) if images.sum() == 0 else images


def test_a_model_that_looks_at_values_is_run_on_its_parameters_and_left_as_it_was() -> None:
    model = Choosy()
    generator = torch.get_rng_state()
    assert in_order(model)[0].startswith("entry")
    assert model.calls == 0
    assert model.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_on_the_meta_device_it_cannot_be_run() -> None:
    with torch.device("meta"):
        model = Choosy()
    trace = first_uses(model, SIZE)
    assert not trace.ranks
    assert "meta" in str(trace.fault)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 5)), "RuntimeError"),
        (nn.Module(), "NotImplementedError"),
        (nn.Sequential(nn.Flatten()), "no parameter"),
    ],
)
def test_a_forward_pass_that_fails_says_why(model: nn.Module, message: str) -> None:
    trace = first_uses(model, SIZE)
    assert not trace.ranks
    assert message in str(trace.fault)


def test_a_lazy_layer_is_not_given_a_shape() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    assert "lazy" in str(first_uses(model, SIZE).fault)
    assert nn.parameter.is_lazy(model[1].weight)


class Recurrent(nn.Module):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.after = nn.Linear(14 if kwargs.get("bidirectional") else 7, 2)
        self.cells = nn.LSTM(3, 7, batch_first=True, **kwargs)
        self.before = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        features, (hidden, _) = self.cells(self.before(images.flatten(2).transpose(1, 2)))
        assert hidden.shape[1:] == (len(images), 7)
        return self.after(features)


@pytest.mark.parametrize("kwargs", [{}, {"bidirectional": True}, {"num_layers": 2}])
def test_a_long_sequence_through_an_lstm_takes_no_time(kwargs: dict[str, Any]) -> None:
    # 90,000 steps, were it unrolled
    trace = first_uses(Recurrent(**kwargs), (3, 300, 300))
    model = sorted(trace.ranks, key=lambda name: trace.ranks[name])
    assert list(dict.fromkeys(name.partition(".")[0] for name in model)) == ["before", "cells", "after"]


def test_the_layers_that_are_answered_at_once_give_the_shapes_that_torch_gives() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.Flatten(2), nn.LayerNorm(64), nn.Linear(64, 5)
    )
    order = [int(name.partition(".")[0]) for name in in_order(model)]
    assert order == sorted(order)
    assert len(order) == 10
