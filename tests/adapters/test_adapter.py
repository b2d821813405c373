from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from frostline.adapters import Adapter, Lora, NoAdapter
from frostline.config import build, check_targets, conf_folder

MakeSubject = Callable[[str], Any]


def test_no_adapter_leaves_all_as_it_is(subject_of: MakeSubject) -> None:
    subject = subject_of("test_resnet")
    adapter: Adapter = NoAdapter()
    assert adapter.apply(subject.model, subject.groups, subject.size) == subject.groups
    names = {name for name, _ in subject.model.named_parameters()}
    assert adapter.allowed(subject.model, subject.groups) == names == adapter.renamed(subject.model, names)
    assert adapter.merge(subject.model) is subject.model
    assert adapter.sentence() == ""
    state = subject.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in subject.plain.state_dict().items())


@pytest.mark.parametrize(("option", "kind"), [("none", NoAdapter), ("lora", Lora)])
def test_an_option_of_the_config_is_built(option: str, kind: type) -> None:
    if option == "lora":
        pytest.importorskip("peft")
    node = OmegaConf.create({"adapter": OmegaConf.load(conf_folder() / "adapter" / f"{option}.yaml")})
    check_targets(node)
    adapter = build(node.adapter, "adapter")
    assert type(adapter) is kind
    arguments = {key: value for key, value in node.adapter.items() if key != "_target_"}
    assert arguments == {key: getattr(adapter, key) for key in inspect.signature(kind).parameters}
