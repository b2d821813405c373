from __future__ import annotations

import re

import pytest
import timm
import torch
from torch import nn

from frostline.errors import ConfigError
from frostline.freezing import KNOWN_FORMS, select
from frostline.types import DepthGroup

STEM = {"scale", "stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"}
HEAD = {"head.weight", "head.bias"}


def block(i: int) -> set[str]:
    return {f"blocks.{i}.{layer}.{kind}" for layer in ("conv", "bn") for kind in ("weight", "bias")}


BODY = STEM | block(0) | block(1) | block(2)
CONVS = [f"blocks.{i}.conv" for i in range(3)]
NORMS = {f"{m}.{k}" for m in ("stem.1", *(f"blocks.{i}.bn" for i in range(3))) for k in ("weight", "bias")}


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("all", BODY | HEAD),
        ("head", HEAD),
        ("body", BODY),
        ("top:1", block(2)),
        ("top:2", block(1) | block(2)),
        ("top:4", BODY),
        ("bottom:1", STEM),
        ("bottom:2", STEM | block(0)),
        ("path:blocks.1", block(1)),
        ("path:blocks.0..1", block(0) | block(1)),
        ("path:blocks.0..2.bn", {f"blocks.{i}.bn.{kind}" for i in range(3) for kind in ("weight", "bias")}),
        ("path:head.bias", {"head.bias"}),
        ("path:blocks.2..2", block(2)),
        ("type:norm", NORMS),
        ("param:bias", {name for name in BODY | HEAD if name.endswith("bias")}),
        ("head + top:1", HEAD | block(2)),
        ("all - bottom:1", (BODY | HEAD) - STEM),
        ("all - body + bottom:1", HEAD | STEM),
        ("all + bottom:1 - body", HEAD),
        ("  head   +  top:1 ", HEAD | block(2)),
        # five groups with the head: they stand at 0, 0.25, 0.5, 0.75 and 1
        ("depth:0..1", BODY | HEAD),
        ("depth:0..0.5", STEM | block(0) | block(1)),
        ("depth:0.5..1", block(1) | block(2) | HEAD),
        ("depth:0.75..0.75", block(2)),
        ("depth:0.51..0.99", block(2)),
        ("depth:1..1", HEAD),
        ("all - depth:0..0.3", block(1) | block(2) | HEAD),
        ("type:conv", {f"{m}.{k}" for m in ("stem.0", *CONVS) for k in ("weight", "bias")}),
        ("type:linear", HEAD),
        ("type:Block", block(0) | block(1) | block(2)),
        ("type:BatchNorm2d", NORMS),
        ("param:weight", {name for name in BODY | HEAD if name.endswith("weight")}),
        ("param:scale", {"scale"}),
        ("type:norm@top:2", {f"blocks.{i}.bn.{k}" for i in (1, 2) for k in ("weight", "bias")}),
        ("type:norm @ top:1", {"blocks.2.bn.weight", "blocks.2.bn.bias"}),
        ("type:norm@top:2@param:bias", {"blocks.1.bn.bias", "blocks.2.bn.bias"}),
        ("head + type:norm@bottom:1 - param:bias@head", {"head.weight", "stem.1.weight", "stem.1.bias"}),
        (r"re:blocks\.[02]\.bn\..*", {f"blocks.{i}.bn.{k}" for i in (0, 2) for k in ("weight", "bias")}),
        ("re:.*bias", {name for name in BODY | HEAD if name.endswith("bias")}),
        ("re:scale|head.(weight|bias)", {"scale"} | HEAD),
        (" re:head.* ", HEAD),
    ],
)
def test_selects(small, expression, names):
    model, groups = small
    assert select(expression, groups, model) == names


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("heads", "'heads'.*Did you mean 'head'\\?.*Known: all, head, body, top:N"),
        ("tpo:2", "'tpo:2'.*Did you mean 'top:N'"),
        ("blocks.1", "'blocks.1'.*Did you mean 'path:blocks.1'"),
        ("", "Unknown selector ''.*Known"),
        ("head:1", "Unknown selector 'head:1'.*Known"),
        ("top", "Unknown selector 'top'.*top:N"),
        ("tpye:norm", "'tpye:norm'.*Did you mean 'type:norm'"),
        ("depths:0..1", "'depths:0..1'.*Did you mean 'depth:A..B'"),
        ("stages:1", "'stages:1'.*Did you mean 'stage:N'"),
        ("new:1", "'new:1'.*Did you mean 'new'"),
        ("depth:0.5", "'depth:0.5'.*depth:A..B.*0 <= A <= B <= 1"),
        ("depth:x..1", "'depth:x..1' holds no range.*depth:0.5..1"),
        ("depth:0..1..2", "'depth:0..1..2' holds no range"),
        ("depth:0.8..0.2", "'depth:0.8..0.2' holds no range"),
        ("depth:0.5..1.5", "'depth:0.5..1.5' holds no range"),
        ("depth:-0.5..1", "'depth:-0.5..1' holds no range"),
        ("depth:nan..1", "'depth:nan..1' holds no range"),
        ("depth:", "'depth:' holds no range"),
        (
            "depth:0.6..0.7",
            "'depth:0.6..0.7' matches nothing.*between 0.6 and 0.7.*blocks.2 at 0.75, blocks.1 at 0.5",
        ),
        ("stage:1", "'stage:1'.*the model has no stages.*top:N.*depth:A..B.*path:NAME.*stem, blocks.0"),
        ("new", "'new' cannot be used here.*not known"),
        ("head + new", "'new' cannot be used here"),
        ("type:attention", "no module of a class 'attention'.*Known: BatchNorm2d, Block, Conv2d, Linear"),
        ("type:block", "'type:block'.*Did you mean 'Block'\\?"),
        ("type:BatchNorm", "'type:BatchNorm'.*Did you mean 'BatchNorm2d'"),
        ("type:norms", "'type:norms'.*Did you mean 'norm'"),
        ("type:ReLU", "'type:ReLU'.*no module of a class 'ReLU' has parameters"),
        ("type:SmallNet", "'type:SmallNet' matches nothing"),
        ("type:", "'type:' matches nothing.*Known: BatchNorm2d"),
        ("param:wieght", "'param:wieght'.*Did you mean 'weight'"),
        ("param:gamma", "'param:gamma'.*Its parameters are called: bias, scale, weight"),
        ("param:stem.0.weight", "'param:stem.0.weight' matches nothing"),
        ("param:w.ight", "'param:w.ight' matches nothing"),
        ("param:", "'param:' matches nothing"),
        ("re:blocks[", "'re:blocks\\[' is no regular expression: unterminated character set at position 6"),
        ("re:a{99999999999999999999}", "is no regular expression.*repetition"),
        ("re:bias", "'re:bias' matches no parameter's whole name.*stem.0.bias.*'\\.\\*' at either end"),
        ("re:", "'re:' matches no parameter's whole name.*Parameters: scale, stem.0.weight"),
        ("re:block.0.conv.wieght", "Names like it: blocks.0.conv.weight"),
        ("re:head.* + top:1", "'re:head.\\* \\+ top:1' matches no parameter's whole name"),
        ("top:1 + re:head.*", "'re:head.\\*' cannot be part of another.*alone"),
        ("head@re:head.*", "'re:head.\\*' cannot be part of another"),
        ("type:norm@head", "'type:norm@head' matches nothing: 'type:norm' and 'head' have no.*is in stem, blocks.0"),
        (
            "type:norm@top:2@bottom:1",
            "'type:norm@top:2' and 'bottom:1' have no parameter in common.*'bottom:1' is in stem",
        ),
        ("type:norm@", "'type:norm@' cannot be read: '@' stands between two terms"),
        ("@head", "'@head' cannot be read"),
        ("@", "'@' cannot be read"),
        ("type:norm@tpo:2", "Unknown selector 'tpo:2'.*top:N"),
        ("type:norm@top:9", "'top:9' matches nothing.*1 to 4"),
        ("path:blocks.1 -head", "'path:blocks.1 -head' cannot be read"),
        ("- head", "'- head' cannot be read"),
        ("top:-1", "'top:-1'.*from 1 to 4"),
        ("head+top:2", "'head\\+top:2' cannot be read.*space on each side"),
        ("head +top:2", "'head \\+top:2' cannot be read"),
        ("head + ", "cannot be read"),
        ("all -body", "cannot be read"),
        ("top:0", "'top:0'.*from 1 to 4.*stem, blocks.0, blocks.1, blocks.2"),
        ("bottom:5", "'bottom:5'.*from 1 to 4"),
        ("top:x", "'top:x'.*whole number"),
        ("path:block.1", "no parameter or module 'block.1'.*Did you mean 'blocks.1'"),
        ("path:blocks.7", "'blocks.7'.*'blocks' has 0..2"),
        ("path:blocks.1..5", "'path:blocks.1..5'.*'blocks.3'.*'blocks' has 0..2"),
        ("path:blocks.2..1", "no range that can be read"),
        ("path:blocks..1", "no range that can be read"),
        ("path:block", "Did you mean 'blocks'"),
        ("path:xyzzy", "Known: blocks, head, scale, stem"),
        ("head - all", "'head - all' leaves no parameter"),
    ],
)
def test_refuses_what_matches_nothing_and_says_what_would(small, expression, says):
    model, groups = small
    with pytest.raises(ConfigError) as caught:
        select(expression, groups, model)
    assert re.search(says, str(caught.value), re.DOTALL), str(caught.value)


def test_a_model_without_norms_or_biases_says_what_it_has():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    groups = (DepthGroup(0, "stem", ("0.weight",)), DepthGroup(1, "head", ("1.weight",), is_head=True))
    with pytest.raises(ConfigError, match=r"no normalization layer.*\n.*Linear"):
        select("type:norm", groups, model)
    with pytest.raises(ConfigError, match=r"'param:bias' matches nothing.*\n.*called: weight"):
        select("param:bias", groups, model)
    with pytest.raises(ConfigError, match=r"'type:conv' matches nothing: no convolution.*\n.*Linear"):
        select("type:conv", groups, model)


@pytest.mark.parametrize("expression", ["type:norm", "type:Block", "stage:0"])
def test_some_terms_need_the_model(small, expression):
    _, groups = small
    with pytest.raises(ValueError, match=f"'{expression}' needs the model"):
        select(expression, groups)


def test_a_part_of_a_name_is_no_path(small):
    """``path:blocks.1`` must not take blocks.10 along."""
    groups = (DepthGroup(0, "a", ("blocks.1.w", "blocks.10.w")), DepthGroup(1, "head", ("h.w",), is_head=True))
    assert select("path:blocks.1", groups) == {"blocks.1.w"}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_timm_norms_are_found(timm_model, name):
    """Against a definition by shape: in these models exactly the norms have a weight of one dimension."""
    model, groups = timm_model(name)
    modules = dict(model.named_modules())
    expected = {
        parameter
        for parameter, value in model.named_parameters()
        if value.ndim == 1
        and isinstance(getattr(modules[parameter.rpartition(".")[0]], "weight", None), torch.Tensor)
        and modules[parameter.rpartition(".")[0]].weight.ndim == 1
    }
    assert len(expected) > 10
    assert select("type:norm", groups, model) == expected


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_timm_kinds_are_told_apart(timm_model, name):
    """By shape: convolutions have kernels of four dimensions, linear layers of two."""
    model, groups = timm_model(name)
    owners = {
        parameter.rpartition(".")[0]: value.ndim for parameter, value in model.named_parameters() if value.ndim > 1
    }
    for kind, ndim in (("conv", 4), ("linear", 2)):
        expected = {p for p, _ in model.named_parameters() if owners.get(p.rpartition(".")[0]) == ndim}
        assert expected
        assert select(f"type:{kind}", groups, model) == expected


def test_a_convolution_of_mixed_kernels_is_one():
    model, groups = on_meta("tf_efficientnet_cc_b0_4e")
    mixed = {f"{path}.weight" for path, module in model.named_modules() if type(module).__name__ == "CondConv2d"}
    assert mixed
    assert mixed <= select("type:conv", groups, model)


def test_kinds_partition_a_model_of_plain_layers(timm_model):
    model, groups = timm_model("test_resnet")
    kinds = [select(f"type:{kind}", groups, model) for kind in ("norm", "conv", "linear")]
    assert frozenset.union(*kinds) == select("all", groups, model)
    assert sum(map(len, kinds)) == len(list(model.parameters()))


def test_a_class_selects_all_below_its_modules(timm_model):
    model, groups = timm_model("test_vit")
    mlp = {name for name, _ in model.named_parameters() if ".mlp." in name}
    assert mlp
    assert select("type:Mlp", groups, model) == mlp
    assert select("type:Mlp@path:blocks.4..5", groups, model) == {
        n for n in mlp if n.startswith(("blocks.4", "blocks.5"))
    }
    with pytest.raises(ConfigError, match=r"'type:attention'.*\n.*Did you mean 'Attention'"):
        select("type:attention", groups, model)


def test_a_bias_with_a_prefix_is_a_bias_and_a_table_is_none():
    layer = nn.MultiheadAttention(4, 2)
    layer.relative_position_bias_table = nn.Parameter(torch.zeros(3))
    groups = (DepthGroup(0, "stem", tuple(name for name, _ in layer.named_parameters())),)
    assert select("param:bias", groups, layer) == {"in_proj_bias", "out_proj.bias"}
    assert select("param:in_proj_bias", groups, layer) == {"in_proj_bias"}


def test_tied_parameters_are_found_by_each_of_their_layers():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[2].weight = model[1].weight
    groups = (DepthGroup(0, "stem", ("0.weight",)), DepthGroup(1, "head", ("1.weight",), is_head=True))
    assert select("type:linear", groups, model) == {"1.weight"}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_depth_is_a_share_of_all_groups(timm_model, name):
    model, groups = timm_model(name)
    last = len(groups) - 1
    for first, end in ((0, 0.5), (0.5, 1), (0.25, 0.75), (0, 0), (1, 1)):
        expected = {p for i, group in enumerate(groups) if first * last <= i <= end * last for p in group.parameters}
        assert select(f"depth:{first}..{end}", groups, model) == expected
    assert select("depth:0..0.5", groups) | select("depth:0.5..1", groups) == select("all", groups)
    assert select("head", groups) < select("depth:0.5..1", groups)
    assert select("bottom:1", groups) <= select("depth:0..0.5", groups)


def test_depth_of_a_head_alone():
    groups = (DepthGroup(0, "head", ("w",), is_head=True),)
    assert select("depth:0.5..1", groups) == {"w"}
    with pytest.raises(ConfigError, match=r"between 0 and 0\.5\.\n.*head at 1"):
        select("depth:0..0.5", groups)


def test_new_is_what_was_not_loaded(small):
    model, groups = small
    new = frozenset({"head.weight", "head.bias", "scale", "fc.weight"})
    assert select("new", groups, model, new=new) == HEAD | {"scale"}
    assert select("new - head", groups, new=new) == {"scale"}
    assert select("new@body", groups, new=new) == {"scale"}
    assert select("all - new", groups, new=new) == BODY - {"scale"}
    for loaded in (frozenset(), frozenset({"fc.weight"})):
        with pytest.raises(ConfigError, match="every parameter was loaded"):
            select("new", groups, model, new=loaded)


RESNET = [rf"layer{i}\." for i in (1, 2, 3, 4)]
FOUR = [rf"stages\.{i}\." for i in range(4)]
STAGES = {
    "test_resnet": RESNET,
    "test_convnext": FOUR,
    "test_efficientnet": [rf"blocks\.{i}\." for i in range(5)],
    "test_nfnet": [*FOUR[:3], r"stages\.3\.|final_conv\."],  # whose last stage ends behind a convolution
    "resnet18": RESNET,
    "legacy_senet154": RESNET,  # its stem is layer0
    "inception_v3": [  # its stem ends with one convolution and its norm
        r"Conv2d_(3b|4a)",
        *(rf"Mixed_{i}" for i in (5, 6, 7)),
    ],
    "swin_tiny_patch4_window7_224": [rf"layers\.{i}\." for i in range(4)],
    "mobilenetv2_035": [rf"blocks\.{i}\." for i in ("0", "1", "2", "[34]", "[56]")],
    "mobilenetv3_small_100": [rf"blocks\.{i}\." for i in ("0", "1", "[23]", "[45]")],
    "ghostnet_100": [rf"blocks\.{i}\." for i in ("[01]", "[23]", "[45]", "[67]")],  # with a norm behind the stem
    "regnety_002": [rf"s{i}\." for i in (1, 2, 3, 4)],
    "caformer_s18": FOUR,
    "hiera_tiny_224": [rf"blocks\.{i}\." for i in ("0", "[12]", "[3-9]", "1[01]")],
    "hieradet_small": [rf"blocks\.{i}\." for i in ("0", "[12]", "([3-9]|1[0-3])", "1[45]")],
    "densenet121": [
        r"features\.denseblock1\.",
        *(rf"features\.(transition{i - 1}|denseblock{i})\." for i in (2, 3)),
        r"features\.(transition3|denseblock4|norm5)\.",
    ],
    "vgg11": [rf"features\.({i})\." for i in ("0", "3", "6|8", "11|13", "16|18")],
    "xception41": [rf"blocks\.({i})\." for i in ("0", "1", "2", "[3-9]|1[01]", "12")],  # activations end its stages
    "legacy_xception": [rf"({i})\." for i in ("block1", "block2", "block([3-9]|1[01])", "block12|(conv|bn)[34]")],
    "tresnet_m": [rf"body\.layer{i}\." for i in (1, 2, 3, 4)],
    # their feature_info names modules that do not exist
    "hrnet_w18_small": [r"layer1\.", *(rf"(transition{i - 1}|stage{i})\." for i in (2, 3, 4))],
    "mvitv2_tiny": FOUR,
}


def on_meta(name):
    """A timm model without memory for its weights, its body in one depth group: some have no matcher."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=3)
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    names = {
        which: tuple(n for n, p in model.named_parameters() if (id(p) in head) is which) for which in (False, True)
    }
    return model, (DepthGroup(0, "stem", names[False]), DepthGroup(1, "head", names[True], is_head=True))


@pytest.mark.parametrize("name", STAGES)
def test_stages_of_timm_models(name):
    model, groups = on_meta(name)
    names = {parameter for parameter, _ in model.named_parameters()}
    for i, pattern in enumerate(STAGES[name]):
        expected = {parameter for parameter in names if re.match(pattern, parameter)}
        assert select(f"stage:{i}", groups, model) == expected
    count = len(STAGES[name])
    with pytest.raises(
        ConfigError, match=rf"'stage:{count}'.*0 to {count - 1}\.\n  The model has {count} stages: 0 from"
    ):
        select(f"stage:{count}", groups, model)


@pytest.mark.parametrize(
    "name", ["test_vit", "convmixer_768_32", "eva02_tiny_patch14_224", "mixer_s32_224", "crossvit_9_240"]
)
def test_blocks_of_one_resolution_are_no_stages(name):
    model, groups = on_meta(name)
    with pytest.raises(ConfigError, match=r"'stage:0'.*the model has no stages"):
        select("stage:0", groups, model)


@pytest.mark.parametrize("argument", ["-1", "x", "1.0", "", "0..1", "4"])
def test_a_stage_is_a_whole_number(argument):
    model, groups = on_meta("test_resnet")
    with pytest.raises(
        ConfigError, match=rf"'stage:{re.escape(argument)}'.*0 to 3\.\n.*0 from 'layer1\.0\.conv1\.weight'"
    ):
        select(f"stage:{argument}", groups, model)


class Layered(nn.Module):
    """Modules under the names given, each two linear layers in a container."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


def grouped(model):
    return (DepthGroup(0, "stem", tuple(name for name, _ in model.named_parameters())),)


def test_stages_of_a_model_that_is_not_of_timm():
    model = Layered("conv1", "layer1", "layer2", "fc")
    assert select("stage:1", grouped(model), model) == {f"layer2.{i}.{k}" for i in (0, 1) for k in ("weight", "bias")}
    nested = nn.Module()
    nested.stem = nn.Linear(2, 2)
    nested.layers = nn.ModuleList(nn.Sequential(nn.Linear(2, 2, bias=False)) for _ in range(2))
    assert select("stage:0", grouped(nested), nested) == {"layers.0.0.weight"}
    nested.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    with pytest.raises(ConfigError, match="has no stages"):
        select("stage:0", grouped(nested), nested)


def test_stages_in_another_order_than_that_of_registration_are_none():
    model = Layered("a", "b", "c")
    for order, known in (("abc", True), ("acb", False)):
        model.feature_info = [{"module": name, "reduction": 2**i} for i, name in enumerate(order)]
        if known:
            assert len(select("stage:2", grouped(model), model)) == 4
            continue
        with pytest.raises(ConfigError, match="has no stages"):
            select("stage:2", grouped(model), model)


def test_a_tied_parameter_shifts_no_stage():
    model = Layered("layer1", "layer2", "layer3", "layer4")
    model.layer2[0].weight = model.layer1[0].weight
    assert select("stage:2", grouped(model), model) == {f"layer3.{i}.{k}" for i in (0, 1) for k in ("weight", "bias")}
    assert select("stage:1", grouped(model), model) == {"layer2.0.bias", "layer2.1.weight", "layer2.1.bias"}


def test_a_stage_holds_nothing_of_the_head():
    model = Layered("layer1", "layer2")
    body = tuple(name for name, _ in model.named_parameters() if name != "layer2.1.weight")
    groups = (DepthGroup(0, "stem", body), DepthGroup(1, "head", ("layer2.1.weight",), is_head=True))
    assert "layer2.1.weight" not in select("stage:1", groups, model)


def test_every_known_form_is_understood(timm_model):
    model, groups = timm_model("test_resnet")
    spelt = {
        "N": "1",
        "A..B": "0..1",
        "NAME.A..B": "layer1.0..0",
        "PATTERN": ".*",
        "CLASS": "Conv2d",
        "path:NAME": "path:layer1",
        "param:NAME": "param:weight",
        "TERM@TERM": "type:norm@top:1",
    }
    for form in KNOWN_FORMS:
        kind, colon, argument = form.partition(":")
        expression = spelt.get(form) or f"{kind}{colon}{spelt.get(argument, argument)}"
        assert select(expression, groups, model, new=frozenset({"fc.weight"})), expression
