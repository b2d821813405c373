from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from frostline.freezing import cost as cost_module
from frostline.freezing.cost import Cost, Estimator, dragging, relative
from frostline.types import DepthGroup

SIZE = (3, 64, 64)


def names(model: nn.Module) -> frozenset[str]:
    return frozenset(name for name, _ in model.named_parameters())


def estimate(model: nn.Module, trainable: frozenset[str], size: tuple[int, int, int], batch: int = 2) -> Cost | None:
    return Estimator(model, size, batch=batch).of(trainable)


def network(name: str) -> nn.Module:
    return timm.create_model(name, num_classes=10)


class Plain(nn.Module):
    """Two convolutions, the second by depth, and a linear head: all of it can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=True)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.deep(self.stem(x)).mean((2, 3)))


STEM, DEEP, HEAD = (2 * 6 * 6 * 8 * 3 * 9, 2 * 6 * 6 * 8 * 9, 2 * 8 * 5)
PICTURE, MAP, POOLED = (4 * 3 * 6 * 6, 4 * 8 * 6 * 6, 4 * 8)


@pytest.mark.parametrize(
    ("trainable", "backward", "kept"),
    [
        (set(), 0, 0),
        ({"head.weight", "head.bias"}, HEAD, POOLED),
        ({"head.bias"}, 0, 0),
        ({"deep.weight"}, DEEP + HEAD, MAP),
        ({"deep.weight", "head.weight"}, DEEP + 2 * HEAD, MAP + POOLED),
        # a convolution keeps its input even where the gradient of its weight is not asked for
        ({"stem.bias"}, DEEP + HEAD, PICTURE + MAP),
        ({"stem.weight"}, STEM + DEEP + HEAD, PICTURE + MAP),
        ({"stem.weight", "stem.bias", "deep.weight", "head.weight", "head.bias"},
         STEM + 2 * DEEP + 2 * HEAD, PICTURE + MAP + POOLED),
    ],
)  # fmt: skip
@pytest.mark.parametrize("batch", [1, 2])
def test_counts_as_by_hand(trainable, backward, kept, batch):
    found = estimate(Plain(), frozenset(trainable), (3, 6, 6), batch=batch)
    assert found == Cost(STEM + DEEP + HEAD, backward, kept)


def test_a_transposed_convolution_counts_as_by_hand():
    model = nn.Sequential(nn.ConvTranspose2d(3, 8, 2, stride=2, bias=False), nn.Flatten())
    each = 2 * 6 * 6 * 3 * 8 * 4
    assert estimate(model, frozenset({"0.weight"}), (3, 6, 6)) == Cost(each, each, PICTURE)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_the_bias_of_the_stem_costs_what_all_does_without_the_gradients_of_weights(name):
    model = network(name)
    cost = Estimator(model, SIZE)
    full, early = cost.of(names(model)), cost.of(frozenset({next(iter(dict(model.named_parameters())))}))
    assert full is not None
    assert early is not None
    stem = full.forward_flops * 2 - full.backward_flops
    assert 0 < stem < 0.3 * full.forward_flops
    assert early.backward_flops == pytest.approx(full.backward_flops - full.forward_flops + stem, rel=1e-2)
    assert relative(early, full) > 0.6


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet"])
def test_a_head_alone_costs_next_to_nothing_behind_the_forward_pass(name):
    model = network(name)
    cost = Estimator(model, SIZE)
    head = frozenset(n for n, p in model.named_parameters() if any(p is q for q in model.get_classifier().parameters()))
    full, probe = cost.of(names(model)), cost.of(head)
    assert full is not None
    assert probe is not None
    assert probe.backward_flops == 2 * 10 * model.num_features
    assert probe.forward_flops == full.forward_flops
    assert probe.activation_bytes < 0.05 * full.activation_bytes
    assert 0.3 < relative(probe, full) < 0.4
    assert relative(full, full) == 1.0


def kept_by_a_real_run(model: nn.Module, pictures: Tensor) -> int:
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(pictures)
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("line", [0, 0.5])
def test_activations_are_those_that_a_real_run_keeps(name, line):
    model = network(name).train()
    listed = [name for name, _ in model.named_parameters()]
    trainable = frozenset(listed[int(line * len(listed)) :])
    found = estimate(model, trainable, SIZE)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name in trainable)
    assert found is not None
    assert found.activation_bytes == pytest.approx(kept_by_a_real_run(model, torch.randn(2, *SIZE)) / 2, rel=0.02)


class Attention(nn.Module):
    def __init__(self, mask: bool = False) -> None:
        super().__init__()
        self.project = nn.Linear(1, 4)
        self.mask = nn.Parameter(torch.zeros(1, 1, 1024, 1024)) if mask else None

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.project(x.flatten(2).transpose(1, 2)).unsqueeze(1)
        return F.scaled_dot_product_attention(tokens, tokens, tokens, attn_mask=self.mask).mean((1, 2))


def test_attention_keeps_none_of_its_weights_and_computes_them_again():
    found = estimate(Attention(), frozenset({"project.weight"}), (1, 32, 32))
    product = 2 * 1024 * 1024 * 4
    linear = 2 * 1024 * 4
    # queries, keys and values are one tensor here; the row sums of the weights are kept beside the output
    assert found == Cost(2 * product + linear, 5 * product + linear, 4 * 1024 * (1 + 4 + 4 + 1))


def test_attention_whose_mask_learns_is_no_single_kernel():
    found = estimate(Attention(mask=True), frozenset({"mask"}), (1, 32, 32))
    assert found is not None
    assert found.activation_bytes > 4 * 1024 * 1024 / 2


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_gradient_checkpointing_keeps_less_and_computes_more(name):
    model = network(name)
    before = estimate(model, names(model), SIZE)
    model.set_grad_checkpointing(True)
    after = estimate(model, names(model), SIZE)
    assert before is not None
    assert after is not None
    assert after.activation_bytes < 0.8 * before.activation_bytes
    assert after.backward_flops > 1.2 * before.backward_flops


def test_neither_the_model_nor_chance_is_touched():
    model = network("test_efficientnet").eval()
    model.conv_stem.weight.requires_grad_(False)
    before = copy.deepcopy(model)
    state = torch.get_rng_state()
    assert estimate(model, names(model), SIZE) is not None
    assert torch.equal(torch.get_rng_state(), state)
    for (name, mine), (_, its) in zip(model.state_dict().items(), before.state_dict().items(), strict=True):
        assert mine.device.type == "cpu", name
        assert torch.equal(mine, its), name
    for mine, its in zip(model.parameters(), before.parameters(), strict=True):
        assert (mine.requires_grad, mine.grad) == (its.requires_grad, None)
    assert not any(module.training for module in model.modules())


def test_a_model_on_the_meta_device_and_stray_tensors_do():
    class Stray(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.means = [torch.ones(1, 3, 1, 1)]
            self.tied = self.head

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - self.means[0] + torch.rand(()))

    for model in (Stray(), Stray().to("meta")):
        found = estimate(model, frozenset({"head.weight"}), (3, 6, 6))
        assert found == Cost(STEM + DEEP + HEAD, HEAD, POOLED)


def test_a_model_that_looks_at_values_has_no_cost():
    class Looks(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * x.sum().item()

    assert estimate(Looks(), frozenset({"head.weight"}), (3, 6, 6)) is None


def test_a_parameter_that_the_model_lacks_is_no_matter_of_estimates():
    with pytest.raises(ValueError, match=r"no parameter 'haed\.weight'"):
        estimate(Plain(), frozenset({"haed.weight"}), (3, 6, 6))


def test_several_sets_share_one_copy_and_each_is_measured_once(monkeypatch):
    made = []
    monkeypatch.setattr(cost_module, "_on_meta", lambda model: made.append(1) or copy.deepcopy(model).to("meta"))
    cost = Estimator(Plain(), (3, 6, 6))
    first = cost.of(frozenset({"stem.bias"}))
    assert cost.of(frozenset({"head.bias"})) == Cost(STEM + DEEP + HEAD, 0, 0)
    assert cost.of(frozenset({"stem.bias"})) is first
    assert made == [1]


def test_each_stage_of_a_short_walk_is_measured():
    cost = Estimator(Plain(), (3, 6, 6))
    stages = [frozenset({"head.weight"}), frozenset({"stem.weight"})]
    assert cost.along(stages) == [cost.of(stage) for stage in stages]
    assert cost.along(stages[:1]) == [cost.of(stages[0])]
    assert not any(found.estimated for found in cost.along(stages))


def test_of_a_long_walk_the_ends_are_measured_and_what_lies_between_is_marked():
    model = network("test_resnet")
    listed = [name for name, _ in model.named_parameters()][::-1]
    stages = [frozenset(listed[:count]) for count in range(2, len(listed) + 1, 2)]
    every, some = Estimator(model, SIZE), Estimator(model, SIZE)
    assert len(stages) > 10
    exact, near = every.along(stages, most=len(stages)), some.along(stages)
    assert len(some._known) == 5
    assert (near[0], near[-1]) == (exact[0], exact[-1])
    assert sum(not cost.estimated for cost in near) == 5
    places = [place for place, cost in enumerate(near) if not cost.estimated]
    for place, cost in enumerate(near):
        left, right = max(p for p in places if p <= place), min(p for p in places if p >= place)
        share = (place - left) / max(right - left, 1)
        line = exact[left].backward_flops * (1 - share) + exact[right].backward_flops * share
        assert cost.backward_flops == pytest.approx(line, abs=1)


def test_a_walk_of_a_model_without_a_cost_has_none():
    class Looks(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * x.sum().item()

    assert Estimator(Looks(), (3, 6, 6)).along([frozenset({"head.weight"})]) is None


def transformer(blocks: int = 12) -> tuple[DepthGroup, ...]:
    inside = [(f"blocks.{i}.weight", f"blocks.{i}.bias", f"blocks.{i}.norm.weight") for i in range(blocks)]
    held = [("pos_embed", "cls_token", "patch.weight", "patch.bias"), *inside, ("head.weight", "head.bias")]
    return tuple(DepthGroup(i, str(i), group, is_head=i == blocks + 1) for i, group in enumerate(held))


def sizes(groups: tuple[DepthGroup, ...]) -> dict[str, int]:
    known = {"pos_embed": 200, "cls_token": 1, "patch.weight": 800, "head.weight": 10}
    everything = [name for group in groups for name in group.parameters]
    return {name: known.get(name, 2000 if name.endswith("weight") and "norm" not in name else 1) for name in everything}


BIASES = {name for group in transformer() for name in group.parameters if name.endswith("bias")}
DEEP_HALF = {name for group in transformer()[7:] for name in group.parameters}


@pytest.mark.parametrize(
    ("trainable", "found"),
    [
        ({"head.weight", "head.bias", "pos_embed"}, ("pos_embed",)),
        ({"head.weight", "cls_token", "pos_embed"}, ("pos_embed", "cls_token")),
        ({"head.bias", "patch.bias", "blocks.0.bias"}, ("patch.bias", "blocks.0.bias")),
        ({"cls_token", *DEEP_HALF}, ("cls_token",)),
        ({"blocks.1.bias", *DEEP_HALF}, ("blocks.1.bias",)),
        # nothing early learns, or all that learns is early
        ({"head.weight"}, ()),
        (DEEP_HALF, ()),
        ({"pos_embed"}, ()),
        (set(), ()),
        # a little everywhere, and what is near
        (BIASES, ()),
        (BIASES - {"blocks.3.bias", "blocks.4.bias"}, ()),
        ({"blocks.4.bias", *DEEP_HALF}, ()),
        # a stem that is trained whole is meant
        ({"pos_embed", "cls_token", "patch.weight", "patch.bias", "head.weight"}, ()),
        ({"patch.bias", "blocks.0.weight", "blocks.0.bias", "blocks.0.norm.weight", "head.weight"}, ()),
        # much, if early
        ({"patch.weight", "pos_embed", "blocks.0.weight", "blocks.1.weight", "head.weight"}, ()),
    ],
)
def test_dragging(trainable, found):
    groups = transformer()
    assert dragging(groups, frozenset(trainable), sizes(groups)) == found


def test_a_depth_group_of_one_stray_tensor_drags_and_a_network_of_two_groups_does_not():
    held = (("rope",), *((f"a{i}.weight", f"a{i}.bias") for i in range(4)), ("head",))
    groups = tuple(DepthGroup(i, str(i), group) for i, group in enumerate(held))
    elements = {name: 1 if name == "rope" else 100 for group in held for name in group}
    assert dragging(groups, frozenset({"rope", "head"}), elements) == ("rope",)
    assert dragging(groups[:1] + groups[-1:], frozenset({"rope", "head"}), elements) == ()


def test_a_stem_that_trains_all_that_an_adapter_lets_learn_is_meant():
    groups = transformer()
    allowed = frozenset({"patch.bias", "pos_embed", "head.weight", "head.bias"})
    assert dragging(groups, allowed, sizes(groups)) == ("pos_embed", "patch.bias")
    assert dragging(groups, allowed, sizes(groups), allowed) == ()
    assert dragging(groups, allowed - {"pos_embed"}, sizes(groups), allowed) == ("patch.bias",)
