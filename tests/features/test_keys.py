"""A key is another one where anything is that features depend on, and the same where nothing is."""

from __future__ import annotations

import copy
import importlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from frostline.features.boundary import find_boundary
from frostline.features.code import code_of
from frostline.features.keys import arithmetic, body_hash, body_tensors, feature_key, kin_of


def model(name: str = "test_resnet", **settings: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 5, **settings})


def hash_of(found: nn.Module) -> str:
    return body_hash(found, find_boundary(found))


def test_the_classifier_is_not_of_the_body() -> None:
    one, other = model(), model()
    nn.init.normal_(other.get_classifier().weight)
    other.reset_classifier(7)
    assert hash_of(one) == hash_of(other)
    names = [name for name, _ in body_tensors(one, find_boundary(one))]
    assert "bn1.running_mean" in names or any("running_mean" in name for name in names)
    assert not any(name.startswith("fc.") for name in names)


def test_modes_and_gradients_are_not_of_the_body() -> None:
    one = model()
    before = hash_of(one)
    one.eval().requires_grad_(False)
    assert hash_of(one) == before


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_each_parameter_and_buffer_counts(name: str) -> None:
    found = model(name)
    boundary = find_boundary(found)
    seen = {body_hash(found, boundary)}
    tensors = list(body_tensors(found, boundary))[:: 8 if name != "test_resnet" else 3]
    for _, tensor in tensors:
        changed = tensor.detach().view(-1)[:1]
        kept = changed.clone()
        changed.copy_(changed + 1)
        seen.add(body_hash(found, boundary))
        changed.copy_(kept)
    assert len(seen) == len(tensors) + 1
    assert body_hash(found, boundary) in seen


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("test_resnet", {"act_layer": "silu"}),
        ("test_vit", {"global_pool": "avg", "fc_norm": False}),
        ("test_vit", {"num_heads": 1}),
        ("test_convnext", {"norm_eps": 1e-3}),
    ],
)
def test_a_setting_without_a_tensor_counts(name: str, settings: dict[str, object]) -> None:
    plain, other = model(name), model(name, **settings)
    assert [*dict(plain.named_parameters())] == [*dict(other.named_parameters())]
    other.load_state_dict(plain.state_dict())
    assert hash_of(plain) != hash_of(other)


@pytest.mark.slow
def test_the_scale_of_an_adapter_counts() -> None:
    peft = pytest.importorskip("peft")

    def adapted(alpha: int) -> nn.Module:
        found = model("test_vit")
        torch.manual_seed(1)
        config = peft.LoraConfig(r=2, lora_alpha=alpha, target_modules=r".*\.attn\.qkv")
        peft.inject_adapter_in_model(config, found)
        return found

    one, other = adapted(2), adapted(4)
    tensors = dict(one.named_parameters())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in other.named_parameters())
    assert hash_of(one) == hash_of(adapted(2))
    assert hash_of(one) != hash_of(other)
    matrices = dict(one.named_parameters())
    with torch.no_grad():
        next(tensor for name, tensor in matrices.items() if "lora_A" in name).add_(1)
        assert hash_of(one) == hash_of(adapted(2))  # B is zero
        next(tensor for name, tensor in matrices.items() if "lora_B" in name)[0, 0] = 1
    assert hash_of(one) != hash_of(adapted(2))
    # the code of peft is known by its version
    assert list(code_of(list(one.modules()))) == []


def test_a_copy_and_another_dtype() -> None:
    one = model()
    assert hash_of(copy.deepcopy(one)) == hash_of(one)
    assert hash_of(copy.deepcopy(one).bfloat16()) != hash_of(one)


@pytest.mark.slow
def test_another_process_has_the_same_hash() -> None:
    code = """
        import timm, torch
        from frostline.features import body_hash, find_boundary
        torch.manual_seed(0)
        model = timm.create_model("test_efficientnet", num_classes=5)
        print(body_hash(model, find_boundary(model)))
    """
    found = model("test_efficientnet")
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split()[-1] == hash_of(found)


def test_a_key_is_of_all_its_content() -> None:
    content = {"body": "a", "settings": {"precision": "32-true", **arithmetic(torch.device("cpu"))}, "view": 0}
    key = feature_key(content, "a" * 64)
    assert len(key) == 81
    assert feature_key(dict(reversed(content.items())), "a" * 64) == key
    assert feature_key(content, "b" * 64) != key
    assert kin_of(feature_key(content, "b" * 64)) == kin_of(key)
    for other in ({**content, "view": 1}, {**content, "settings": arithmetic(torch.device("cuda"))}):
        assert kin_of(feature_key(other, "a" * 64)) != kin_of(key)


OWN = """
import torch
from torch import nn
import own_layers
from own_layers import squash

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.last = lambda x: x

    def forward(self, x):
        return self.head(self.pooled(self.last(squash(self.conv(x)))))

    def pooled(self, x):
        return own_layers.scaled(x).mean((2, 3))
"""
LAYERS = """
import torch
SCALE = 1
def squash(x): return torch.tanh(x) if x.device.type in {"cpu", "cuda", "mps"} else x
def scaled(x): return x * SCALE
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("squash(self.conv(x))", "self.conv(x)"),
        ("lambda x: x", "lambda x: x + 1"),
        ("(2, 3)", "(3, 2)"),
        ("torch.tanh(x)", "torch.sigmoid(x)"),
        ("SCALE = 1", "SCALE = 2"),
        ("x * SCALE", "x + SCALE"),
    ],
)
def test_the_code_of_a_module_of_ones_own_counts(
    old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def loaded(net: str, layers: str) -> nn.Module:
        (tmp_path / "own_net.py").write_text(net)
        (tmp_path / "own_layers.py").write_text(layers)
        for name in ("own_net", "own_layers"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        torch.manual_seed(0)
        found: nn.Module = importlib.import_module("own_net").Net()
        return found

    one = loaded(OWN, LAYERS)
    boundary = find_boundary(one, "head")
    before = body_hash(one, boundary)
    for _ in range(20):  # which the interpreter makes faster code of
        one(torch.zeros(1, 3, 8, 8))
    assert body_hash(one, boundary) == before
    assert body_hash(loaded(OWN, LAYERS), boundary) == before
    assert body_hash(loaded(OWN.replace(old, new), LAYERS.replace(old, new)), boundary) != before


def test_the_code_of_ones_own_is_the_same_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_net.py").write_text(OWN)
    (tmp_path / "own_layers.py").write_text(LAYERS)
    script = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from own_net import Net
        from frostline.features.code import code_of
        print(repr(list(code_of([Net()]))))
    """
    # the order of a set follows from it
    seed = next(seed for seed in "123" if seed != os.environ.get("PYTHONHASHSEED"))
    told = subprocess.run(
        [sys.executable, "-B", "-c", textwrap.dedent(script), str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    monkeypatch.syspath_prepend(tmp_path)
    lines = list(code_of([importlib.import_module("own_net").Net()]))
    for name in ("own_net", "own_layers"):
        monkeypatch.delitem(sys.modules, name)
    assert told == repr(lines)
    assert "own_layers.squash" in lines


def test_a_tensor_counts_that_a_module_above_has_too() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 3)
            self.body = nn.Linear(3, 3)
            self.body.weight = self.head.weight

    one = Tied()
    before = body_hash(one, find_boundary(one, "head"))
    with torch.no_grad():
        one.head.weight.add_(1)
    assert body_hash(one, find_boundary(one, "head")) != before


def test_a_tensor_counts_that_is_no_buffer() -> None:
    one = model()
    one.table = torch.zeros(3)
    before = hash_of(one)
    one.table = torch.ones(3)
    assert hash_of(one) != before
