from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from frostline.errors import ConfigError
from frostline.features import ForwardEngine
from frostline.probing.choices import Extractor, FastExtractor, flat
from frostline.specs import Engine, FeatureChoice

ALL = list(FeatureChoice)
SIZE = (3, 32, 32)


def pictures(count: int = 5) -> Tensor:
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(1))


def vit(**changed: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=6, img_size=32, patch_size=8, depth=6, embed_dim=24, num_heads=2, **changed
    )


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by a number of pictures for each that come to the stem of a ViT."""
    seen: list[int] = []
    embed = timm.layers.PatchEmbed.forward

    def counted(self: nn.Module, images: Tensor) -> Any:
        seen.append(len(images))
        return embed(self, images)  # type: ignore[arg-type]

    monkeypatch.setattr(timm.layers.PatchEmbed, "forward", counted)
    return seen


@pytest.mark.parametrize("registers", [0, 2])
def test_all_choices_come_from_one_run_of_a_transformer(registers: int, forwards: list[int]) -> None:
    model = vit(reg_tokens=registers).train()
    found = Extractor(model)(pictures(), ALL)
    assert forwards == [5]
    assert all(module.training for module in model.modules())
    model.eval()
    with torch.no_grad():
        outputs, x = [], model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(pictures()))))
        for block in model.blocks:
            x = block(x)
            outputs.append(x)
        tokens = model.norm(x)
        assert torch.equal(found[FeatureChoice.last], model.forward_head(tokens, pre_logits=True))
        torch.testing.assert_close(found[FeatureChoice.class_token], tokens[:, 0])
        torch.testing.assert_close(found[FeatureChoice.pooled], tokens[:, 1 + registers :].mean(1))
        last4 = torch.cat([model.norm(one)[:, 0] for one in outputs[-4:]], dim=1)
        torch.testing.assert_close(found[FeatureChoice.last4], last4)
        # what is called last makes the logits of the model
        torch.testing.assert_close(model.head(found[FeatureChoice.last]), model(pictures()))


def test_a_convolutional_network_gives_means_of_its_maps() -> None:
    model = timm.create_model("test_resnet", num_classes=6).eval()
    choices = [FeatureChoice.last, FeatureChoice.last4, FeatureChoice.pooled]
    found = Extractor(model, channels_last=True)(pictures(), choices)
    with torch.no_grad():
        maps = model.forward_intermediates(pictures(), intermediates_only=True)[-4:]
        final = model.forward_features(pictures()).mean((2, 3))
    torch.testing.assert_close(found[FeatureChoice.last4], torch.cat([one.mean((2, 3)) for one in maps], 1))
    torch.testing.assert_close(found[FeatureChoice.pooled], final)
    torch.testing.assert_close(found[FeatureChoice.last], final)
    assert list(found) == choices


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "mobilenetv3_small_050"])
def test_what_a_network_offers_does_not_depend_on_what_else_is_asked_for(name: str) -> None:
    extractor = Extractor(timm.create_model(name, num_classes=6))
    choices = [FeatureChoice.last, FeatureChoice.last4, FeatureChoice.pooled]
    widths = extractor.check(choices, SIZE)
    together = extractor(pictures(), choices)
    for choice in choices:
        (alone,) = extractor(pictures(), [choice]).values()
        assert alone.shape == (5, widths[choice])
        torch.testing.assert_close(alone, together[choice])


def test_a_swin_is_averaged_over_its_map_and_not_over_its_channels() -> None:
    arguments = {"img_size": 64, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 2}
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=6, **arguments).eval()
    images = torch.randn(2, 3, 64, 64)
    pooled = Extractor(model)(images, [FeatureChoice.pooled])[FeatureChoice.pooled]
    with torch.no_grad():
        torch.testing.assert_close(pooled, model.forward_head(model.forward_features(images), pre_logits=True))


@pytest.mark.parametrize(
    ("model", "choice", "said"),
    [
        (lambda: timm.create_model("test_resnet", num_classes=6), "class_token", "ResNet has no class token"),
        (lambda: timm.create_model("levit_128s", num_classes=6), "last4", "fewer than 4"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 6)), "pooled", "not divided"),
    ],
)
def test_what_is_not_offered_is_refused_with_what_is(model: Any, choice: str, said: str) -> None:
    made = model()
    extractor = Extractor(made, head="1" if isinstance(made, nn.Sequential) else None)
    size = (3, 224, 224) if type(made).__name__.startswith("Levit") else SIZE
    with pytest.raises(ConfigError, match=said) as caught:
        extractor.check([FeatureChoice[choice]], size)
    assert "This backbone offers" in str(caught.value)
    assert choice not in str(caught.value.mend)


def test_a_model_whose_head_looks_at_more_than_its_features_offers_no_other_choice() -> None:
    class Odd(type(vit())):  # type: ignore[misc]  # the class is known when it runs
        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.forward_head(self.forward_features(images), pre_logits=True) + 1.0)

    model = vit()
    model.__class__ = Odd
    with pytest.raises(ConfigError, match="do not make up the model"):
        Extractor(model).check([FeatureChoice.class_token], SIZE)


@pytest.mark.parametrize("way", [Engine.plain, Engine.channels_last, Engine.fused])
@pytest.mark.parametrize("name", ["vit", "test_resnet", "test_vit", "test_efficientnet"])
def test_an_engine_gives_what_the_extractor_gives(name: str, way: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit() if name == "vit" else timm.create_model(name, num_classes=6)
    monkeypatch.setattr("frostline.features.engine.chunk_size", lambda images: 4)
    extractor, said = Extractor(model), list[str]()
    fast = FastExtractor(extractor, way, said.append)
    choices = [one for one in ALL if one is not FeatureChoice.class_token or "vit" in name]
    images, chosen = pictures(11), set()
    call = ForwardEngine.__call__

    def watched(self: ForwardEngine, images: Tensor) -> Tensor:
        found = call(self, images)
        chosen.add(self.chosen)
        return found

    monkeypatch.setattr(ForwardEngine, "__call__", watched)
    for wanted in (choices, [FeatureChoice.last], choices[::-1], [FeatureChoice.pooled]):
        expected = extractor(images, wanted)
        fast.expect(1000, 1000)
        for _ in range(2):
            found = fast(images, wanted)
            assert list(found) == list(wanted)
            for choice, features in found.items():
                torch.testing.assert_close(flat(features), expected[choice], rtol=1e-4, atol=1e-5)
    # what a trace would hold fast is not traced
    assert chosen == ({"plain"} if "vit" in name and way is Engine.fused else {way.value}), said


def test_what_heads_learn_on_is_flat_and_what_the_store_has_is_as_the_classifier_takes_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.pool = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Sequential(nn.Conv2d(4, 2, 1), nn.Flatten())

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.fc(self.pool(self.stem(images)))
            return logits

    extractor = Extractor(Net(), head="fc")
    assert extractor.check([FeatureChoice.last], SIZE) == {FeatureChoice.last: 4}
    fast = FastExtractor(extractor, Engine.auto)(pictures(), [FeatureChoice.last])[FeatureChoice.last]
    assert fast.shape == (5, 4, 1, 1)
    assert torch.equal(flat(fast), extractor(pictures(), [FeatureChoice.last])[FeatureChoice.last])


def test_a_way_is_compared_choice_by_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference that is nothing beside the numbers of one choice is all of another."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward_features(self, images: Tensor) -> Tensor:
            return 1e6 * self.stem(images)

        def forward_head(self, features: Tensor) -> Tensor:
            logits: Tensor = self.fc(1e-6 * features.mean(dim=(2, 3)))
            return logits

        def forward(self, images: Tensor) -> Tensor:
            return self.forward_head(self.forward_features(images))

    extractor, said = Extractor(Net(), head="fc"), list[str]()
    fast, part = FastExtractor(extractor, Engine.channels_last, said.append), extractor.part
    off = [0.0]

    def with_an_error(choices: Sequence[FeatureChoice]) -> nn.Module:
        made = part(choices)
        forward = made.forward
        monkeypatch.setattr(made, "forward", lambda images: forward(images) + off[0])
        return made

    monkeypatch.setattr(extractor, "part", with_an_error)
    fast.expect(1000, 1000)
    wanted = [FeatureChoice.last, FeatureChoice.pooled]
    off[0] = 0.1
    found = fast(pictures(), wanted)
    assert "its features differ by" in said[0]
    for choice, features in extractor(pictures(), wanted).items():
        torch.testing.assert_close(found[choice], features, rtol=1e-5, atol=1e-5)


def test_what_training_would_change_is_found() -> None:
    class Net(nn.Module):
        def __init__(self, chance: float) -> None:
            super().__init__()
            self.stem, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
            self.chance = chance

        def forward(self, images: Tensor) -> Tensor:
            maps = self.norm(self.stem(images)).mean(dim=(2, 3))
            logits: Tensor = self.fc(nn.functional.dropout(maps, self.chance, self.training))
            return logits

    for chance, same in ((0.0, True), (0.5, False)):
        extractor = Extractor(Net(chance), head="fc")
        extractor.check([FeatureChoice.last], SIZE)
        assert extractor.is_same_in_training is same
        assert extractor.model.training
        assert int(extractor.model.norm.num_batches_tracked) == 0


def test_what_is_another_beside_other_choices_is_refused() -> None:
    model = timm.create_model("test_resnet", num_classes=6)
    nn.init.zeros_(model.get_classifier().weight)  # so that the logits say nothing
    forward = model.forward_head
    model.forward_head = lambda features, **named: forward(2 * features, **named)
    model.forward = lambda images: forward(model.forward_features(images))
    extractor = Extractor(model)
    assert extractor.check([FeatureChoice.last], SIZE)
    with pytest.raises(ConfigError, match=r"probe.features=\[last\]"):
        extractor.check([FeatureChoice.last, FeatureChoice.pooled], SIZE)
