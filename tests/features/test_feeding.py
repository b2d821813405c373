"""The frozen body: known by what it is, and looked at again where it was written to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from passing import pass_limits
from PIL import Image

from frostline.data import Augmentation
from frostline.data.folder import FolderData
from frostline.errors import ConfigError
from frostline.features import CachedPhases, FeatureStore, FrozenBody, Place, Verdict, feeding, find_boundary
from frostline.freezing import Position
from frostline.specs import CacheMode
from frostline.types import Preprocessing


@pytest.fixture
def body() -> FrozenBody:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5, drop_rate=0.5).train()
    return FrozenBody(model, find_boundary(model), model.forward)


def test_its_hash_is_computed_again_only_where_a_tensor_was_written_to(
    body: FrozenBody, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    original = feeding.body_hash
    monkeypatch.setattr(feeding, "body_hash", lambda *given: counted.append("") or original(*given))
    first = body.hash()
    with torch.no_grad():
        body.model.fc.weight.add_(1)
    assert body.hash() == first
    assert len(counted) == 1
    with torch.no_grad():
        next(body.model.parameters()).add_(0)
    assert body.hash() == first
    assert len(counted) == 2
    next(buffer for name, buffer in body.model.named_buffers() if name.endswith("running_mean")).add_(1)
    assert body.hash() != first


def test_it_runs_in_eval_and_leaves_modes_and_statistics_alone(body: FrozenBody) -> None:
    images = torch.randn(3, 3, 32, 32)
    before = {name: buffer.clone() for name, buffer in body.model.named_buffers()}
    features = body(images)
    assert torch.equal(features, body(images))
    assert features.shape == (3, body.model.num_features)
    assert body.model.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in body.model.named_buffers())
    with torch.inference_mode(), torch.inference_mode(False):
        assert not body(images).is_inference()


def test_a_picture_that_can_be_read_by_now_has_its_features(
    body: FrozenBody, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_limits(monkeypatch)
    generator = np.random.default_rng(0)
    for name, side in (("a/0", 32), ("a/1", 96), ("b/0", 32), ("b/1", 32)):
        path = tmp_path / "set" / "train" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(path)

    def looked_up(pixel_limit: int, said: list[str]) -> tuple[torch.Tensor, list[int]]:
        data = FolderData(
            root=str(tmp_path / "set"),
            batch_size=3,
            workers=0,
            val_fraction=0,
            test_fraction=0,
            pixel_limit=pixel_limit,
        )
        data.prepare(Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3), Augmentation(), seed=0)
        place = Place(body.boundary)
        verdict = Verdict("probe", CacheMode.auto, views=1, epochs=2, place=place)
        store = FeatureStore(tmp_path / "store", 1 << 20)
        feed = CachedPhases([verdict], [body], data, store, said.append)("train", train=True, epoch=0)
        assert feed.features is not None
        table = feed.features(0)
        return table.rows(np.arange(4)), list(table.faults)

    said: list[str] = []
    rows, faults = looked_up(64 * 64, said)
    assert faults == [1]
    assert rows.isnan().any(dim=1).tolist() == [False, True, False, False]
    # its content is the same, and so is what the features are known by
    mended, faults = looked_up(1000 * 1000, said)
    assert faults == []
    assert mended.isfinite().all()
    assert torch.equal(mended[[0, 2, 3]], rows[[0, 2, 3]])
    again, _ = looked_up(1000 * 1000, said)
    assert torch.equal(again, mended)
    assert [line.rpartition(": ")[2].partition(" ")[0] for line in said] == ["computed", "computed", "found"]


class Two:
    """As where another process cannot do what this one can, or where there is one that can."""

    several = True

    def __init__(self, says: bool) -> None:
        self.says, self.asked = says, 0

    def agree(self, place: str) -> bool:
        self.asked += 1
        return self.says

    def shared(self, key: str, compute: Callable[[], Any], find: Callable[[], Any]) -> Any:
        compute()
        return find()


class Still:
    """Before the first step."""

    def current(self) -> Position:
        return Position()

    def upcoming(self) -> Position:
        return Position()

    def is_stopping(self) -> bool:
        return False


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("mode", [CacheMode.auto, CacheMode.require])
def test_several_processes_cache_a_phase_or_none_of_them_does(
    says: bool, mode: CacheMode, body: FrozenBody, tmp_path: Path
) -> None:
    data, peers, said = pictures_of(tmp_path), Two(says), []
    phases = cached(data, body, tmp_path / "store", said.append, peers, mode)
    with phases.following(Still()):
        if mode is CacheMode.require and not says:
            with pytest.raises(ConfigError, match="another process of the run cannot"):
                phases("train", train=True, epoch=0)
            return
        feeds = [phases("train", train=True, epoch=epoch) for epoch in range(3)]
    assert [feed.features is not None for feed in feeds] == [says] * 3
    # once for a phase
    assert peers.asked == 1
    if not says:
        assert said == ["phase probe is not cached: another process of the run cannot"]


def test_what_the_store_cannot_keep_several_processes_do_without(body: FrozenBody, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("in its place")
    said: list[str] = []
    phases = cached(pictures_of(tmp_path), body, tmp_path / "store", said.append, Two(True), CacheMode.auto)
    with phases.following(Still()):
        assert phases("train", train=True, epoch=0).features is None
    assert len(said) == 1
    assert said[0].startswith("phase probe is not cached: several processes share its features. ")
    assert str(tmp_path / "store") in said[0]
    # where there is one, its memory will do
    alone = cached(pictures_of(tmp_path), body, tmp_path / "store", said.append, None, CacheMode.auto)
    with alone.following(Still()):
        assert alone("train", train=True, epoch=0).features is not None


def test_what_only_some_have_in_store_several_processes_do_without(body: FrozenBody, tmp_path: Path) -> None:
    """Where it does not pay: a single process takes what it finds."""
    first = cached(pictures_of(tmp_path), body, tmp_path / "store", list[str]().append, None, CacheMode.auto)
    with first.following(Still()):
        assert first("train", train=True, epoch=0).features is not None
    for peers, finds in ((None, True), (Two(True), False)):
        again = cached(pictures_of(tmp_path), body, tmp_path / "store", list[str]().append, peers, CacheMode.auto, 1)
        with again.following(Still()):
            assert (again("train", train=True, epoch=0).features is not None) == finds


def test_a_picture_that_can_be_read_by_now_is_mended_for_several_processes(
    body: FrozenBody, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_limits(monkeypatch)
    pictures_of(tmp_path)
    Image.new("RGB", (96, 96)).save(tmp_path / "set" / "train" / "a" / "1.png")
    for pixel_limit, missing in ((64 * 64, 1), (1000 * 1000, 0)):
        data = pictures_of(tmp_path, pixel_limit, anew=False)
        phases = cached(data, body, tmp_path / "store", list[str]().append, Two(True), CacheMode.require)
        with phases.following(Still()):
            features = phases("train", train=True, epoch=0).features
        assert features is not None
        assert len(features(0).faults) == missing


def cached(
    data: FolderData,
    body: FrozenBody,
    store: Path,
    say: Callable[[str], None],
    peers: Two | None,
    mode: CacheMode,
    epochs: int = 3,
) -> CachedPhases:
    verdict = Verdict("probe", mode, views=1, epochs=epochs, place=Place(body.boundary))
    return CachedPhases([verdict], [body], data, FeatureStore(store, 1 << 20), say, peers)


def pictures_of(folder: Path, pixel_limit: int = 64 * 64, *, anew: bool = True) -> FolderData:
    generator = np.random.default_rng(0)
    for name in ("a/0", "a/1", "b/0", "b/1") if anew else ():
        path = folder / "set" / "train" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    data = FolderData(
        root=str(folder / "set"), batch_size=3, workers=0, val_fraction=0, test_fraction=0, pixel_limit=pixel_limit
    )
    data.prepare(Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3), Augmentation(), seed=0)
    return data
