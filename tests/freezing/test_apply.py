from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.freezing import apply_phase, assert_modes, module_modes, select
from frostline.specs import BatchNormMode, BatchNormSpec, FrozenMode
from frostline.types import DepthGroup

EVAL = BatchNormSpec()
BATCH = BatchNormSpec(frozen=BatchNormMode.batch)
STILL = BatchNormSpec(trainable=BatchNormMode.eval)
MODELS = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet")
SELECTORS = (
    "all",
    "head",
    "body",
    "head + top:2",
    "all - bottom:1",
    "head + type:norm",
    "head + param:bias",
    "bottom:1",
)


def training(model):
    return {name for name, module in model.named_modules() if module.training}


def modes(small, expression, bn=EVAL, frozen=FrozenMode.eval):
    model, groups = small
    found = module_modes(model, groups, select(expression, groups, model), bn, frozen)
    return {name for name, on in found.items() if on}


def test_apply_sets_gradients_absolutely(small):
    model, groups = small
    for expression in ("head", "all", "bottom:1", "head + top:1"):
        trainable = select(expression, groups, model)
        model.requires_grad_(True)
        model(torch.randn(4, 3, 8, 8)).sum().backward()
        apply_phase(model, trainable)
        assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
        assert {name for name, p in model.named_parameters() if p.grad is not None} == trainable


def test_apply_refuses_names_of_another_model(small):
    model, _ = small
    with pytest.raises(ValueError, match=r"no parameter '_orig_mod\.head\.weight'"):
        apply_phase(model, frozenset({"_orig_mod.head.weight"}))


def test_a_frozen_body_is_in_eval_and_what_belongs_to_the_head_is_not(small):
    assert modes(small, "head") == {"", "global_pool", "head_drop", "head"}


def test_a_frozen_head_takes_its_dropout_along(small):
    assert not modes(small, "body") & {"", "global_pool", "head_drop", "head"}
    assert modes(small, "body") >= {"stem.1", "pos_drop", "blocks", "blocks.0.drop", "blocks.2.bn"}


def test_modules_without_parameters_follow_the_block_around_them(small):
    on = modes(small, "head + top:1")
    assert on >= {"blocks.2.drop", "blocks.2.bn", "head_drop", "blocks"}
    assert not on & {"stem.2", "pos_drop", "blocks.0.drop", "blocks.1.drop", "blocks.1.bn"}
    assert "pos_drop" in modes(small, "bottom:1")


def test_all_trains_everything(small):
    model, _ = small
    assert modes(small, "all") == {name for name, _ in model.named_modules()}


def test_a_group_that_trains_in_part_trains(small):
    model, _ = small
    assert modes(small, "head + param:bias") == {name for name, _ in model.named_modules()}


def test_a_frozen_batch_norm_stays_frozen_in_a_group_that_trains(small):
    assert "blocks.1.drop" in modes(small, "path:blocks.1.conv")
    assert "blocks.1.bn" not in modes(small, "path:blocks.1.conv")
    assert "blocks.1.bn" in modes(small, "path:blocks.1.bn.bias")


def test_frozen_batch_norms_may_go_on_updating(small):
    on = modes(small, "head", BATCH)
    assert on >= {"stem.1", "blocks.0.bn", "blocks.2.bn"}
    assert not on & {"pos_drop", "blocks.0.drop", "stem.0"}


def test_trainable_batch_norms_may_keep_their_statistics(small):
    model, _ = small
    norms = {"stem.1", *(f"blocks.{i}.bn" for i in range(3))}
    assert modes(small, "all", STILL) == {name for name, _ in model.named_modules()} - norms
    # what is frozen follows the other half of the policy
    swapped = BatchNormSpec(frozen=BatchNormMode.batch, trainable=BatchNormMode.eval)
    assert modes(small, "head + top:1", swapped) & norms == norms - {"blocks.2.bn"}
    assert modes(small, "head + top:1", STILL) & norms == set()


def test_frozen_layers_may_keep_their_dropout(small):
    model, _ = small
    norms = {"stem.1", *(f"blocks.{i}.bn" for i in range(3))}
    on = modes(small, "head", EVAL, FrozenMode.train)
    assert on == {name for name, _ in model.named_modules()} - norms
    assert modes(small, "head", BATCH, FrozenMode.train) == on | norms
    assert modes(small, "top:1", EVAL, FrozenMode.train) == on | {"blocks.2.bn"}


def test_assert_modes_takes_the_mode_of_frozen_layers(small):
    model, groups = small
    trainable = select("head", groups, model)
    model.train()
    assert_modes(model, groups, trainable, STILL, FrozenMode.train)
    assert training(model) == modes(small, "head", STILL, FrozenMode.train)


def test_statistics_that_stay_do_not_hold_their_weights(timm_model):
    """bn.trainable=eval: scale and shift learn, buffers stay, and the running statistics normalize."""
    model, groups = timm_model("test_resnet")
    trainable = select("all", groups, model)
    apply_phase(model, trainable)
    parameters, buffers = snapshot(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for images, targets in batches():
        model.train()
        assert_modes(model, groups, trainable, STILL)
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert not torch.equal(model.bn1.weight, parameters["bn1.weight"])


def test_a_batch_norm_without_parameters_follows_its_group():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)), nn.Linear(2, 2))
    groups = (
        DepthGroup(0, "stem", ("0.0.weight", "0.0.bias")),
        DepthGroup(1, "head", ("1.weight", "1.bias"), is_head=True),
    )
    for bn, expression, expected in (
        (EVAL, "head", False),
        (EVAL, "all", True),
        (EVAL, "body", True),
        (BATCH, "head", True),
    ):
        assert module_modes(model, groups, select(expression, groups), bn)["0.1"] is expected


def test_tied_modules_have_an_owner():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(nn.Sequential(shared, nn.Dropout()), nn.Sequential(nn.Linear(2, 2), shared, nn.Dropout()))
    groups = (
        DepthGroup(0, "stem", ("0.0.weight", "0.0.bias")),
        DepthGroup(1, "head", ("1.0.weight", "1.0.bias"), is_head=True),
    )
    on = module_modes(model, groups, select("head", groups), EVAL)
    assert on["1.2"]
    assert not on["0.1"]
    assert not on["0.0"]


def test_assert_modes_undoes_train_and_is_repeatable(small):
    model, groups = small
    trainable = select("head + top:1", groups, model)
    for _ in range(2):
        model.train()
        assert_modes(model, groups, trainable, EVAL)
        assert training(model) == modes(small, "head + top:1")
    model.eval()
    assert_modes(model, groups, select("all", groups, model), EVAL)
    assert training(model) == modes(small, "all")


@pytest.mark.parametrize(
    ("name", "frozen", "live"),
    [
        ("test_resnet", ["bn1", "layer2.0.bn1", "layer2.0.drop_path"], ["layer4.0.bn1", "", "global_pool"]),
        ("test_vit", ["pos_drop", "blocks.3.drop_path1", "blocks.3.attn"], ["blocks.5.drop_path1", "head_drop"]),
        (
            "test_convnext",
            ["stages.2.blocks.3.drop_path", "stages.3.downsample"],
            ["stages.3.blocks.1.drop_path", "head.drop"],
        ),
        ("test_efficientnet", ["bn1", "blocks.2.0.bn1"], ["bn2", ""]),
    ],
)
def test_timm_models_with_the_top_thawed(timm_model, name, frozen, live):
    model, groups = timm_model(name, drop_path_rate=0.2, drop_rate=0.2)
    on = module_modes(model, groups, select("head + top:2", groups, model), EVAL)
    assert not any(on[module] for module in frozen)
    assert all(on[module] for module in live)


def batches(count=2):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.randn(4, 3, 64, 64, generator=generator), torch.randint(3, (4,), generator=generator)


def sized(name):
    """What makes the model take the small pictures of ``batches``."""
    return {"img_size": 64} if name == "test_vit" else {}


def snapshot(model):
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    return parameters, {name: value.clone() for name, value in model.named_buffers()}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("name", MODELS)
def test_what_changed_is_what_was_declared(timm_model, name, optimizer):
    """By value, through freezing, thawing and freezing again, with weight decay, momentum and dropout on."""
    torch.manual_seed(0)
    model, groups = timm_model(name, drop_rate=0.1, drop_path_rate=0.1, **sized(name))
    with torch.no_grad():  # zero-initialized residual scales would hold gradients back
        for value in model.parameters():
            value.add_(0.02 * torch.randn_like(value))
    make = {
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1),
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    }[optimizer]()
    parameter_of = {name: id(value) for name, value in model.named_parameters()}
    for expression in ("all", *SELECTORS):
        trainable = select(expression, groups, model)
        apply_phase(model, trainable)
        parameters, buffers = snapshot(model)
        for images, targets in batches():
            model.train()
            assert_modes(model, groups, trainable, EVAL)
            nn.functional.cross_entropy(model(images), targets).backward()
            make.step()
            make.zero_grad()
        changed = {k for k, value in model.named_parameters() if not torch.equal(value, parameters[k])}
        assert changed == trainable, f"{expression}: {sorted(changed ^ trainable)[:5]}"

        learning = {parameter_of[k] for k in trainable}
        modules = dict(model.named_modules())
        for k, value in model.named_buffers():
            own = [id(p) for p in modules[k.rpartition(".")[0]].parameters(recurse=False)]
            moved = not torch.equal(value, buffers[k])
            assert moved == ("running" in k or "num_batches" in k) * any(i in learning for i in own), (expression, k)


def test_frozen_statistics_move_when_told_to(timm_model):
    model, groups = timm_model("test_resnet")
    trainable = select("head", groups, model)
    apply_phase(model, trainable)
    model.train()
    assert_modes(model, groups, trainable, BATCH)
    before = model.bn1.running_mean.clone()
    model(next(batches())[0])
    assert not torch.equal(model.bn1.running_mean, before)


def test_no_backward_below_the_frost_line(timm_model):
    model, groups = timm_model("test_vit", **sized("test_vit"))
    apply_phase(model, select("head + top:1", groups, model))
    seen = []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda module, args, output, i=i: seen.append((i, output.requires_grad)))
    model(next(batches())[0])
    assert seen == [(0, False), (1, False), (2, False), (3, False), (4, False), (5, True)]
