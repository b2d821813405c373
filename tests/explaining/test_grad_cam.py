"""What a model looked at: models that were taught to tell a patch by its color look at that patch, wherever it is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from frostline.explaining import NoMapError, find_seam, heat_maps
from frostline.explaining.grad_cam import Heat

SIDE, PATCH = 64, 16
CELLS = SIDE // PATCH
# of red, green, blue and white patches on gray noise
COLORS = 2.5 * torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]) - 0.5
SHOWN = 32
SWIN = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2, "img_size": SIDE, "patch_size": 8}


def cnn() -> nn.Module:
    """A module that is not timm's."""
    layers = [nn.Conv2d(3, 16, 5, 4, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, len(COLORS)))


def timm_model(name: str, **settings: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=len(COLORS), **settings)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "module": cnn,
    "resnet": timm_model("test_resnet", output_stride=16),
    "class token": timm_model("deit_tiny_patch16_224", img_size=SIDE, depth=3, embed_dim=48),
    "mean of tokens": timm_model("test_vit", img_size=SIDE, global_pool="avg", class_token=False),
    "channels last": timm_model("swin_tiny_patch4_window7_224", **SWIN),
}


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Noise with a patch whose color is the class: pictures, classes, and the cell of each patch."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    classes = torch.arange(count) % len(COLORS)
    cells = torch.randint(0, CELLS, (count, 2), generator=generator).tolist()
    for image, label, (row, column) in zip(images, classes.tolist(), cells, strict=True):
        rows, columns = slice(row * PATCH, (row + 1) * PATCH), slice(column * PATCH, (column + 1) * PATCH)
        image[:, rows, columns] = COLORS[label][:, None, None]
    return images, classes, [(row, column) for row, column in cells]


def taught(make: Callable[[], nn.Module], steps: int) -> nn.Module:
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for step in range(steps):
        images, classes, _ = pictures(SHOWN, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), classes).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval().requires_grad_(False)


def brightest(heat: Heat) -> tuple[int, int]:
    """The cell of the picture in which a map is brightest."""
    spread = nn.functional.adaptive_avg_pool2d(torch.from_numpy(heat)[None, None], CELLS)
    row, column = np.unravel_index(int(spread.argmax()), (CELLS, CELLS))
    return int(row), int(column)


@pytest.mark.parametrize("name", MODELS)
def test_the_map_is_brightest_where_the_patch_is_that_decides(name: str) -> None:
    model = taught(MODELS[name], 40 if name == "resnet" else 80)
    images, classes, cells = pictures(SHOWN, 1000)
    assert (model(images).argmax(1) == classes).float().mean() > 0.9, "it has not learned the task"
    maps = heat_maps(model, find_seam(model, images[:1]), images, classes.tolist())
    made = [(heat, cell) for heat, cell in zip(maps, cells, strict=True) if heat is not None]
    assert all(heat.max() == pytest.approx(1) and heat.min() >= 0 for heat, _ in made)
    # by chance 2 of 32; attention spreads what it sees over tokens, so that not all are
    assert sum(brightest(heat) == cell for heat, cell in made) >= 10
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_the_model_gives_the_same_answer_before_through_and_after_the_seam(name: str) -> None:
    torch.manual_seed(1)
    model, images = MODELS[name]().eval(), torch.randn(2, 3, SIDE, SIDE)
    before = model(images)
    seam = find_seam(model, images)
    with seam.within(model) as logits:
        assert torch.allclose(logits(images), before, atol=1e-5)
    assert torch.equal(model(images), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_seam_lies_where_position_is_last_known() -> None:
    images = torch.randn(1, 3, SIDE, SIDE)
    layouts = {name: find_seam(make().eval(), images) for name, make in MODELS.items()}
    assert layouts["class token"].name == "what comes into its last block"
    assert (layouts["class token"].layout.prefix, layouts["mean of tokens"].layout.prefix) == (1, 0)
    assert layouts["channels last"].layout.channels_last
    assert layouts["module"].name == "what 5 gives"


class Tokens(nn.Module):
    """Turns a picture into tokens in a way that nobody knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Conv2d(3, 8, 16, 16), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.mix(self.embed(images).flatten(2).transpose(1, 2)).mean(1))


class Twice(nn.Module):
    """Its answer does not go through the features that it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 2, 8, 8), nn.Linear(2, 2)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.layer(images)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features.mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images)) + images.mean((1, 2, 3))[:, None] + 1


@pytest.mark.parametrize(
    ("model", "side", "part"),
    [
        (Tokens(), SIDE, "tokens that is not timm's"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2)), SIDE, "no layer"),
        (Twice(), SIDE, "does not rest"),
        (timm_model("test_efficientnet")(), 32, "a single cell"),
    ],
    ids=["tokens", "flat", "beside", "small"],
)
def test_where_no_map_can_be_made_the_reason_is_said(model: nn.Module, side: int, part: str) -> None:
    with pytest.raises(NoMapError, match=part):
        find_seam(model.eval(), torch.randn(1, 3, side, side))


def test_a_picture_in_which_nothing_speaks_for_the_class_has_no_map() -> None:
    model = cnn().eval()
    with torch.no_grad():
        model[-1].weight.zero_()  # type: ignore[operator, union-attr]  # the last layer is linear
    images = torch.randn(2, 3, SIDE, SIDE)
    assert heat_maps(model, find_seam(model, images), images, [0, 1]) == [None, None]
