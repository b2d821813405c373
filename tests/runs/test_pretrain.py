from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import frostline
from frostline.backbones import create_backbone, load_timm_folder
from frostline.config import load_config, weights_folder
from frostline.data import Augmentation, DigitsData
from frostline.data.digits import ArraySplit
from frostline.errors import ConfigError
from frostline.runs.folder import RunFolder
from frostline.runs.pretrain import pretrain
from frostline.runs.starting import prepare
from frostline.runs.worker import quiet_frameworks
from frostline.specs import BackboneSpec
from frostline.types import Preprocessing

WEIGHTS = Path(weights_folder("digits_efficientnet"))


def run(output: Path, *overrides: str) -> RunFolder:
    small = ["trainer=cpu", "trainer.max_epochs=3", "data.fraction=0.25", f"output={output}", "logger=csv"]
    config = frostline.compose([*small, *overrides], command="pretrain")
    quiet_frameworks()
    folder = prepare(config, [])
    pretrain(load_config(folder.config))
    return folder


def read_names(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the digits that are decoded from now on."""
    seen: set[str] = set()
    image = ArraySplit.image

    def noted(self: ArraySplit, index: int) -> object:
        seen.add(self.name(index))
        return image(self, index)

    monkeypatch.setattr(ArraySplit, "image", noted)
    return seen


def losses(folder: RunFolder) -> list[float]:
    with (folder.path / "metrics.csv").open(encoding="utf-8") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.slow
def test_it_reads_training_pictures_alone_and_leaves_a_folder_that_train_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = read_names(monkeypatch)
    folder = run(tmp_path / "pre training")
    data = DigitsData(fraction=0.25)
    data.load()
    assert seen == {data.splits["train"].name(index) for index in range(len(data.splits["train"]))}
    fallen = losses(folder)
    assert len(fallen) == 3
    assert fallen[2] < fallen[1] < fallen[0]
    assert folder.finished
    assert folder.provenance.is_file()
    assert capsys.readouterr().out.splitlines()[-1] == f"run: {folder.path}"

    code = (
        "import sys, timm, torch\n"
        "model = timm.create_model('local-dir:' + sys.argv[1], pretrained=True)\n"
        "assert 'frostline' not in sys.modules and model.num_classes == 0\n"
        "assert model.pretrained_cfg['tag'] == 'pretrain'\n"
        "print(tuple(model.forward_features(torch.zeros(1, 3, 32, 32)).shape))\n"
    )
    line = [sys.executable, "-P", "-c", code, str(folder.model)]
    plain = subprocess.run(line, capture_output=True, text=True, check=False)
    assert plain.stdout.strip() == "(1, 256, 8, 8)", plain.stderr

    own = [f"backbone.name='local-dir:{folder.model}'", f"output={tmp_path}", "trainer=cpu", "trainer.max_epochs=1"]
    tuned = frostline.train(["backbone=timm", *own, "data.labels_per_class=7", "freeze=linear_probe"])
    made, kept = load_timm_folder(folder.model).model.state_dict(), tuned.model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in made.items())


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    states = [
        load_timm_folder(run(tmp_path, "trainer.max_epochs=1", f"seed={seed}").model).model.state_dict()
        for seed in (3, 3, 4)
    ]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    assert not all(torch.equal(states[0][name], value) for name, value in states[2].items())


def test_a_masked_auto_encoder_of_another_family(tmp_path: Path) -> None:
    folder = run(
        tmp_path,
        "pretraining=masked",
        "pretraining.corruption.mask_patch=4",
        "backbone=timm",
        "backbone.name=test_vit",
        "backbone.weights=none",
        "backbone.kwargs={patch_size: 4, depth: 2}",
        "trainer.max_epochs=2",
    )
    assert losses(folder)[-1] < losses(folder)[0]
    assert load_timm_folder(folder.model).preprocessing.size == (3, 32, 32)


def test_a_number_out_of_range_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pretraining.corruption.mask_ratio is 1.5"):
        run(tmp_path, "pretraining.corruption.mask_ratio=1.5")


@pytest.mark.parametrize(
    "key", ["pretraining.mask_ratio=0.5", "pretraining.corruption.blur=1", "monitor.metric=val/loss"]
)
def test_a_key_that_is_not_there_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError):
        run(tmp_path, key)


def pooled(spec: BackboneSpec, splits: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pooled features and labels of whole splits of the digits."""
    torch.manual_seed(0)
    backbone = create_backbone(spec, num_classes=0, size=32)
    data = DigitsData()
    data.load()
    data.prepare(backbone.preprocessing, Augmentation(), seed=0)
    model = backbone.model.eval()
    found = []
    for split in splits:
        with torch.no_grad():
            parts = [(model(batch.images), batch.targets) for batch in data.loader(split)]
        features, labels = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        found.append((features, labels))
    return found


def probe(spec: BackboneSpec, labels_per_class: int) -> float:
    """Validation accuracy of a linear probe on a few labels, over three choices of them."""
    (features, labels), (val_features, val_labels) = pooled(spec, ["train", "val"])
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    scores = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(labels))
        chosen = np.concatenate([order[labels[order] == label][:labels_per_class] for label in range(10)])
        head = LogisticRegression(C=0.1, max_iter=500).fit((features[chosen] - mean) / deviation, labels[chosen])
        scores.append(head.score((val_features - mean) / deviation, val_labels))
    return float(np.mean(scores))


def test_the_shipped_weights_are_small_and_whole() -> None:
    assert sorted(path.name for path in WEIGHTS.iterdir()) == ["config.json", "model.safetensors"]
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 1_500_000
    shipped = load_timm_folder(WEIGHTS)
    assert isinstance(shipped.preprocessing, Preprocessing)
    assert shipped.preprocessing.size == (3, 32, 32)
    assert not shipped.report.missing
    assert not shipped.report.unexpected
    features = torch.as_tensor(shipped.model.forward_features(torch.zeros(1, 3, 32, 32)))
    assert features.shape[2:] == (8, 8)


def test_the_shipped_weights_beat_random_ones_where_labels_are_few() -> None:
    shipped = probe(BackboneSpec(name=f"local-dir:{WEIGHTS}"), 2)
    random = probe(BackboneSpec(name="test_efficientnet", weights="none", kwargs={"output_stride": 4}), 2)
    assert shipped > 0.75
    assert shipped > random + 0.10
