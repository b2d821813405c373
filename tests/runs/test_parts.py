"""How the parts of a run go together, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from frostline.config import compose, load_config, save_config
from frostline.errors import ConfigError
from frostline.runs.parts import Parts, build_parts, class_weights

Build = Callable[..., Parts]


@pytest.fixture
def parts(tmp_path: Path) -> Build:
    def build(*overrides: str) -> Parts:
        own = ["backbone.name=test_vit", "backbone.weights=none", "data.labels_per_class=7", "trainer=cpu"]
        config = compose("train", [*own, *overrides])
        config.folder = str(tmp_path)
        return build_parts(config)

    return build


@pytest.fixture
def weights(tmp_path: Path, parts: Build) -> str:
    """A file of weights without a head, so that all but the head counts as loaded."""
    from safetensors.torch import save_file

    state = parts().task.model.state_dict()
    path = tmp_path / "weights.safetensors"
    save_file({name: value for name, value in state.items() if not name.startswith("head.")}, path)
    return f"backbone.weights={path}"


def test_a_run_as_one_expects_it_has_no_notes(parts: Build) -> None:
    assert parts("freeze=lp_ft").notes == ()


def test_an_adapter_that_no_phase_trains_is_told(parts: Build, weights: str) -> None:
    pytest.importorskip("peft")
    found = parts(weights, "adapter=lora", "freeze=bitfit")
    assert found.schedule.phases[0].trainable == {"head.weight", "head.bias"}
    assert any("no phase trains the adapter" in note for note in found.notes)


def test_with_an_adapter_its_matrices_and_the_head_learn_and_nothing_else(parts: Build, weights: str) -> None:
    pytest.importorskip("peft")
    found = parts(weights, "adapter=lora", "freeze=full")
    learning = found.schedule.phases[0].trainable
    assert {"head.weight", "head.bias"} < learning
    assert all("lora_" in name for name in learning if not name.startswith("head."))
    assert found.notes == ()
    # without weights all is new, and what is new is no reason to let all of it learn
    assert parts("adapter=lora", "freeze=full").schedule.phases[0].trainable == learning


def test_a_regularizer_on_top_of_the_weight_decay_that_it_replaces_is_told(parts: Build) -> None:
    assert any("optimizer.weight_decay=0" in note for note in parts("regularizer=l2_sp").notes)
    assert parts("regularizer=l2_sp", "optimizer.weight_decay=0").notes == ()


def test_gradients_are_checkpointed_where_nothing_else_changes_with_it(parts: Build) -> None:
    assert parts("speed.grad_checkpointing=true").task.model.grad_checkpointing
    with pytest.raises(ConfigError, match="twice a batch"):
        parts("speed.grad_checkpointing=true", "backbone.name=test_resnet")


def test_clipping_by_depth_group_without_a_bound_is_refused(parts: Build) -> None:
    with pytest.raises(ConfigError, match=r"(?s)freeze\.clip=group has no bound.*trainer\.gradient_clip_val"):
        parts("freeze.clip=group")
    with pytest.raises(ConfigError, match="bounds norms"):
        parts("freeze.clip=group", "trainer.gradient_clip_val=1", "trainer.gradient_clip_algorithm=value")


def test_class_weights_are_those_of_the_training_pictures_that_are_left(parts: Build) -> None:
    # seven of each class are kept, of classes of 121 to 128
    for kind in ("balanced", "effective"):
        weight = parts(f"class_weights={kind}").task.loss.weight
        torch.testing.assert_close(weight, torch.ones(10))
    assert parts().task.loss.weight is None


def test_the_kind_and_beta_of_class_weights_reach_the_loss_as_they_are_saved(tmp_path: Path) -> None:
    config = compose("train", ["class_weights=effective", "class_weights_beta=0.5"])
    expected = class_weights(config, [1, 2])
    assert expected is not None
    # (1 - b) / (1 - b^n) is 1 and 2/3
    torch.testing.assert_close(expected, torch.tensor([1.2, 0.8]))
    config.folder = str(tmp_path)
    save_config(config, tmp_path / "config.yaml")
    saved = load_config(tmp_path / "config.yaml")
    torch.testing.assert_close(class_weights(saved, [1, 2]), expected)
    saved.class_weights = "efective"
    with pytest.raises(ConfigError, match="effective"):
        class_weights(saved, [1, 2])


@pytest.mark.parametrize("beta", ["1", "-0.1", "1.5", "nan"])
def test_a_beta_out_of_its_range_is_refused(beta: str) -> None:
    with pytest.raises(ConfigError, match="class_weights_beta"):
        class_weights(compose("train", ["class_weights=effective", f"class_weights_beta={beta}"]), [1, 2])


def test_class_weights_beside_a_balanced_sampler_are_told(parts: Build) -> None:
    assert any("both even out" in note for note in parts("class_weights=effective", "data.sampler=balanced").notes)
    assert parts("data.sampler=balanced").notes == ()
    assert parts("class_weights=effective").notes == ()


@pytest.mark.parametrize(
    ("name", "override", "taken"),
    [
        ("test_efficientnet", "speed.channels_last=null", True),
        ("test_efficientnet", "speed.channels_last=false", False),
        ("test_resnet", "speed.channels_last=null", False),
        ("test_resnet", "speed.channels_last=true", True),
        ("test_vit", "speed.channels_last=null", False),
    ],
)
def test_grouped_convolutions_run_in_channels_last(name: str, override: str, taken: bool, parts: Build) -> None:
    task = parts(f"backbone.name={name}", override).task
    assert task.channels_last is taken
    kernels = [it for it in task.model.parameters() if it.ndim == 4 and min(it.shape[1:]) > 1]
    assert all(it.is_contiguous(memory_format=torch.channels_last) is taken for it in kernels)
