"""A key is another one where anything is that features depend on, and the same where nothing is."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap

import pytest
import timm
import torch
from torch import nn

from frostline.features.boundary import find_boundary
from frostline.features.keys import arithmetic, body_hash, body_tensors, feature_key


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


def test_a_copy_and_another_dtype() -> None:
    one = model()
    assert hash_of(copy.deepcopy(one)) == hash_of(one)
    assert hash_of(copy.deepcopy(one).bfloat16()) != hash_of(one)


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
    key = feature_key(content)
    assert len(key) == 64
    assert feature_key(dict(reversed(content.items()))) == key
    assert feature_key({**content, "view": 1}) != key
    assert feature_key({**content, "settings": arithmetic(torch.device("cuda"))}) != key
