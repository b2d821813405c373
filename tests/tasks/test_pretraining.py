from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import timm
import torch

from frostline.backbones import depth_groups
from frostline.freezing import FreezeSchedule
from frostline.specs import FreezeSpec, LrSpec, PhaseSpec
from frostline.tasks import Corruption, PretrainingTask
from frostline.types import Preprocessing

PREPROCESSING = Preprocessing(size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 0.5))


def make_task(decode: Any = "pooled", corruption: Corruption | None = None, **kwargs: Any) -> PretrainingTask:
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=0, output_stride=8)
    spec = FreezeSpec(phases={"pretrain": PhaseSpec(train="all")})
    schedule = FreezeSchedule(spec, LrSpec(), depth_groups(model), model, steps_per_epoch=5, total_steps=10)
    return PretrainingTask(
        model,
        preprocessing=PREPROCESSING,
        schedule=schedule,
        optimizer=partial(torch.optim.AdamW, lr=3e-3),
        base_lr=3e-3,
        weight_decay=0.05,
        seed=0,
        corruption=corruption or Corruption(mask_ratio=0.25),
        decode=decode,
        **kwargs,
    )


def bars(count: int, seed: int = 0) -> torch.Tensor:
    """``[count, 3, 32, 32]``: a bright row or column in each."""
    generator = torch.Generator().manual_seed(seed)
    images = -torch.ones(count, 3, 32, 32)
    for image, place in zip(images, torch.randint(0, 28, (count,), generator=generator).tolist(), strict=True):
        (image if place % 2 else image.transpose(1, 2))[:, place : place + 4] = 1
    return images


@pytest.mark.parametrize("decode", ["pooled", "map"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_it_learns_to_restore(decode: Any, channels_last: bool) -> None:
    task = make_task(decode, channels_last=channels_last).train()
    optimizer = task.configure_optimizers()
    losses = []
    for step in range(30):
        loss = task.restoration_loss(bars(16, step), torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_the_optimizer_holds_every_parameter_once() -> None:
    task = make_task()
    groups = task.configure_optimizers().param_groups
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in task.parameters())
    assert groups[-1]["name"] == "decoder"
    assert {group["weight_decay"] for group in groups} == {0.0, 0.05}


def test_the_target_is_the_clean_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that knows the clean picture has no loss, however the input was spoilt."""
    task = make_task(corruption=Corruption(mask_ratio=0.5, noise=1.0, rotation=30, shift=0.2))
    images = bars(4)
    seen = []
    clean = task.autoencoder.decoder.reduced(images)
    monkeypatch.setattr(task.autoencoder, "forward", lambda spoilt: (seen.append(spoilt), clean)[1])
    assert task.restoration_loss(images, torch.Generator().manual_seed(0)).item() == 0
    assert not torch.allclose(seen[0], images)


def test_the_map_is_judged_where_it_is_hidden_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task("map", Corruption(mask_ratio=0.5, mask_patch=8))
    images = bars(4)
    hidden = task.corruption.hidden(images, torch.Generator().manual_seed(0))
    monkeypatch.setattr(task.autoencoder, "forward", lambda spoilt: torch.where(hidden, images, images + 9))
    assert task.restoration_loss(images, torch.Generator().manual_seed(0)).item() == 0
    monkeypatch.setattr(task.autoencoder, "forward", lambda spoilt: torch.where(hidden, images + 2, images))
    assert task.restoration_loss(images, torch.Generator().manual_seed(0)).item() == pytest.approx(4)


def test_what_comes_in_from_outside_is_black() -> None:
    assert torch.equal(make_task().black, torch.tensor([-2.0, -1.0, -1.0]))
