"""`frostline soup`, from finished runs to a run folder that every other command takes."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import timm
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import frostline
from frostline.averaging import layers_with, mean_of
from frostline.backbones import load_timm_folder
from frostline.config import absolute_paths, load_config, save_config
from frostline.data import evaluation_transform, open_picture
from frostline.errors import ConfigError, DataError, FrostlineError
from frostline.runs import soup as souping
from frostline.runs.compare import compare
from frostline.runs.compare_runs import find_runs
from frostline.runs.evaluate import evaluate
from frostline.runs.export import export
from frostline.runs.folder import RunFolder, read_json, write_json
from frostline.runs.predict import predict
from frostline.runs.report import report
from frostline.runs.soup_files import config_of
from frostline.runs.soup_parts import build_soup, check_soup, start_of
from frostline.runs.soup_runs import chooser_of, read_ingredients

Tensors = dict[str, Tensor]
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
RATES = ("1e-2", "3e-3", "1e-3")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("soups")


@pytest.fixture(scope="module")
def start(output: Path) -> Path:
    """A file of the weights that the runs begin with."""
    torch.manual_seed(0)
    file = output / "start.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def place(pictures: Path, output: Path, start: Path, tiny: list[str]) -> list[str]:
    own = [f'backbone.weights="{start}"', "data=folder", f'data.root="{pictures}"', f'output="{output}"', "test=false"]
    return [*tiny, *own, "logger=csv", "augment=none"]


@pytest.fixture(scope="module")
def runs(place: list[str]) -> list[Path]:
    """Three runs that differ in learning rate and seed."""
    return [frostline.train([*place, f"optimizer.lr={rate}", f"seed={seed}"]).path for seed, rate in enumerate(RATES)]


def config_for(named: Sequence[Path] | Path, *overrides: str) -> DictConfig:
    paths = [named] if isinstance(named, Path) else named
    listed = ",".join(f'"{path}"' for path in paths)
    config = frostline.compose([f"runs=[{listed}]", "trainer=cpu", *overrides], command="soup")
    absolute_paths(config)
    return config


def made(output: Path, named: Sequence[Path] | Path, *overrides: str) -> RunFolder:
    """Make a soup in its own output folder; its folder."""
    souping.soup(config_for(named, f'output="{output}"', *overrides))
    return RunFolder(max((output / "soup").iterdir(), key=lambda path: path.stat().st_mtime_ns))


def tensors(run: Path) -> Tensors:
    return dict(load_file(run / "model" / "model.safetensors"))


def mean(models: Sequence[Tensors]) -> Tensors:
    """Independent of the product: whole files, stacked."""
    return {
        name: torch.stack([model[name].double() for model in models]).mean(dim=0).to(first.dtype)
        if first.is_floating_point()
        else first
        for name, first in models[0].items()
    }


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pictures_of(pictures: Path, split: str, run: Path) -> tuple[Tensor, Tensor]:
    """Input ``[N, C, H, W]`` and labels ``[N]`` of a split, as evaluation sees them."""
    saved = load_timm_folder(run / "model")
    transform = evaluation_transform(saved.preprocessing)
    files = sorted((pictures / split).glob("*/*.jpg"))
    images = torch.stack([transform(open_picture(file)) for file in files])
    return images, torch.tensor([saved.labels.index(file.parent.name) for file in files])


def scores_on(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    with torch.no_grad():
        logits = model.eval()(images)
    right = (logits.argmax(dim=1) == labels).float().mean()
    return {"val/accuracy": float(right), "val/loss": float(nn.functional.cross_entropy(logits, labels))}


@pytest.fixture(scope="module")
def uniform(runs: list[Path], output: Path) -> RunFolder:
    """The mean of all, with the statistics of its batch norms computed anew on all training pictures at once."""
    return made(output / "uniform", runs, "soup.kind=uniform", "batch_size=30")


def test_the_uniform_soup_is_the_mean_of_the_files(uniform: RunFolder, runs: list[Path]) -> None:
    wanted = mean([tensors(run) for run in runs])
    own = tensors(uniform.path)
    assert own.keys() == wanted.keys()
    for name in own.keys() - {name for name in own if name.endswith(STATISTICS)}:
        # a mean in another order may round otherwise, in float64
        assert torch.allclose(own[name], wanted[name], rtol=1e-6, atol=0), name


def test_its_statistics_are_those_that_torch_computes(uniform: RunFolder, runs: list[Path], pictures: Path) -> None:
    model = load_timm_folder(runs[0] / "model").model
    model.load_state_dict(mean([tensors(run) for run in runs]))
    images, _ = pictures_of(pictures, "train", runs[0])
    update_bn([images], model)
    own = tensors(uniform.path)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(own[name].float(), tensor.float(), rtol=1e-4, atol=1e-6), name
    assert read_json(uniform.provenance)["soup"]["renewed"] == list(layers_with(model))
    val = pictures_of(pictures, "val", runs[0])
    assert uniform.read_metrics()["val/loss"] == pytest.approx(scores_on(model, *val)["val/loss"], rel=1e-4)


def test_the_greedy_soup_is_that_of_a_loop_over_the_files(
    runs: list[Path], output: Path, pictures: Path, tmp_path: Path
) -> None:
    spoiled = copied(runs[1], tmp_path / "spoiled", lambda own: {**own, "fc.weight": -5 * own["fc.weight"]})
    runs = [*runs, spoiled]
    model = load_timm_folder(runs[0] / "model").model
    val = pictures_of(pictures, "val", runs[0])

    def score(chosen: list[Path]) -> float:
        model.load_state_dict(mean([tensors(run) for run in chosen]))
        return scores_on(model, *val)["val/accuracy"]

    found = made(output / "loop", runs, "soup.update_bn=false", "test=false")
    assert not (output / "loop" / "test_looks.jsonl").exists()
    assert not [name for name in found.read_metrics() if name.startswith("test/")]
    table = rows(found.path / "soup.csv")
    order = [Path(row["run"]) for row in table]
    assert sorted(order, key=lambda run: -score([run])) == order
    kept, best = [order[0]], score([order[0]])
    for run in order[1:]:
        if (tried := score([*kept, run])) >= best:
            kept, best = [*kept, run], tried
    assert [row["kept"] for row in table] == [str(int(run in kept)) for run in order]
    metrics = found.read_metrics()
    assert metrics["val/accuracy"] == pytest.approx(best)
    assert float(table[-1]["soup val/accuracy"]) == metrics["val/accuracy"]
    assert metrics["soup/runs"] == 4
    assert metrics["soup/kept"] == len(kept)
    assert 1 < len(kept) < len(runs)
    for row in table:
        assert float(row["val/accuracy"]) == pytest.approx(score([Path(row["run"])]))


@pytest.fixture(scope="module")
def soup(runs: list[Path], output: Path) -> RunFolder:
    """A greedy soup as it is by default."""
    return made(output / "greedy", runs, "metric=val/loss")


def test_a_greedy_soup_is_never_worse_than_its_best_run_in_whatever_order_they_are_named(
    soup: RunFolder, runs: list[Path], output: Path
) -> None:
    table = rows(soup.path / "soup.csv")
    assert soup.read_metrics()["val/loss"] <= min(float(row["val/loss"]) for row in table)
    other = made(output / "turned", runs[::-1], "metric=val/loss", "test=false")
    assert rows(other.path / "soup.csv") == table
    assert (other.model / "model.safetensors").read_bytes() == (soup.model / "model.safetensors").read_bytes()


def test_the_folder_says_what_the_soup_is_made_of(soup: RunFolder, runs: list[Path], output: Path) -> None:
    record = read_json(soup.provenance)
    assert record["command"] == "soup"
    assert record["data"] == read_json(runs[0] / "provenance.json")["data"]
    assert record["weights"]["sha256"] == read_json(runs[0] / "provenance.json")["weights"]["sha256"]
    assert {one["run"] for one in record["soup"]["runs"]} == set(map(str, runs))
    assert sum(one["kept"] for one in record["soup"]["runs"]) == soup.read_metrics()["soup/kept"]
    config = load_config(soup.config)
    assert (config.soup.kind, config.soup.of[:6], config.optimizer.lr) == ("greedy", "3 runs", None)
    assert Path(config.folder) == soup.path
    card = (soup.model / "README.md").read_text(encoding="utf-8")
    assert "greedy soup of" in card
    assert "base learning rate" not in card
    for split in ("val", "test"):
        found = read_json(soup.evaluation(split))
        assert found["scores"]["accuracy"]["low"] <= soup.read_metrics()[f"{split}/accuracy"]
        assert soup.predictions(split).is_file()
    assert read_json(soup.calibration)["fitted_on"] == "val"
    lines = (output / "greedy" / "test_looks.jsonl").read_text().splitlines()
    assert [json.loads(line)["command"] for line in lines] == ["soup"]
    assert json.loads(lines[0])["run"] == f"soup/{soup.path.name}"
    assert read_json(soup.evaluation("test"))["looks"]["count"] == 1


def test_the_other_commands_take_it_as_a_run(
    soup: RunFolder, runs: list[Path], pictures: Path, place: list[str], tmp_path: Path
) -> None:
    metrics, before = soup.read_metrics(), pyarrow.parquet.read_table(soup.predictions("test"))
    for split in ("val", "test"):
        scores = evaluate(
            frostline.compose([f'run="{soup.path}"', f"split={split}", "trainer=cpu"], command="evaluate")
        )
        for name in ("accuracy", "loss", "auroc", "macro_f1"):
            assert scores[f"{split}/{name}"] == pytest.approx(metrics[f"{split}/{name}"], rel=1e-4), name
    assert pyarrow.parquet.read_table(soup.predictions("test"))["prediction"].equals(before["prediction"])
    table = tmp_path / "p.csv"
    overrides = [f'run="{soup.path}"', f'images="{pictures / "test"}"', f'output="{table}"', "device=cpu"]
    predict(frostline.compose(overrides, command="predict"))
    assert len(rows(table)) == 21
    export(frostline.compose([f'run="{soup.path}"', "format=timm", f'output="{tmp_path}/e"'], command="export"))
    plain = timm.create_model(f"local-dir:{tmp_path}/e/timm", pretrained=True)
    assert all(torch.equal(tensor, tensors(soup.path)[name]) for name, tensor in plain.state_dict().items())
    page = report(frostline.compose([f'run="{soup.path}"', f'output="{tmp_path}/r.html"'], command="report"))
    text = page.read_text(encoding="utf-8")
    assert "test split scored" in text
    assert "taken for what" in text
    assert f"{metrics['test/accuracy']:.1%}".replace("%", " %") in text
    listed = ",".join(f'"{path}"' for path in [*runs, soup.path])
    own = [f"runs=[{listed}]", "metric=val/accuracy", "resamples=200", f'output="{tmp_path}/c"']
    compared = compare(frostline.compose(own, command="compare"))
    assert compared.columns == ["optimizer.lr", "soup.kind", "soup.of"]
    cells = {row.setting[:2] for row in compared.rows}
    assert cells == {("0.01", "-"), ("0.003", "-"), ("0.001", "-"), ("null", "greedy")}
    on = [*place, f'output="{tmp_path}"', f'backbone.weights="{soup.path}"', "trainer.max_epochs=1", "optimizer.lr=0"]
    later = frostline.train([*on, "freeze=linear_probe"])
    assert later.metrics["val/loss"] == pytest.approx(metrics["val/loss"], rel=1e-4)


def is_head(name: str) -> bool:
    return name.startswith("fc.")


def test_wise_goes_from_the_start_of_the_run_to_its_end(runs: list[Path], start: Path, output: Path) -> None:
    found = made(output / "wise", runs[0], "soup.kind=wise", "soup.alphas=[1,0,0.5]", "metric=val/loss")
    table = rows(found.path / "wise.csv")
    assert [row["alpha"] for row in table] == ["0.0", "0.5", "1.0"]
    own = RunFolder(runs[0]).read_metrics()
    for name in ("val/accuracy", "val/loss"):
        assert float(table[-1][name]) == pytest.approx(own[name], rel=1e-5)
    (selected,) = [row for row in table if row["selected"] == "1"]
    assert float(selected["val/loss"]) == min(float(row["val/loss"]) for row in table)
    assert found.read_metrics()["val/loss"] == pytest.approx(float(selected["val/loss"]), rel=1e-6)
    assert found.read_metrics()["soup/alpha"] == float(selected["alpha"])
    assert (found.path / "wise.png").is_file()
    assert "WiSE-FT" in (found.model / "README.md").read_text(encoding="utf-8")
    assert load_config(found.config).optimizer.lr == 0.01


@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_at_each_share_the_backbone_is_mixed_and_the_head_is_the_end_s(
    alpha: float, runs: list[Path], start: Path, output: Path
) -> None:
    plain = [] if alpha == 0 else ["soup.update_bn=false"]
    own = [f"soup.alphas=[{alpha}]", "test=false", *plain]
    found = tensors(made(output / f"alpha_{alpha}", runs[0], "soup.kind=wise", *own).path)
    first, last = load_file(start), tensors(runs[0])
    assert any(is_head(name) for name in found)
    for name, tensor in found.items():
        if is_head(name) or not tensor.is_floating_point():
            wanted = first[name] if alpha == 0 and not is_head(name) else last[name]
        else:
            wanted = ((1 - alpha) * first[name].double() + alpha * last[name].double()).to(tensor.dtype)
        assert torch.equal(tensor, wanted), name


def test_frozen_batch_norms_keep_their_statistics(runs: list[Path], start: Path, tmp_path: Path) -> None:
    # as a run leaves them that has trained its head alone
    probe = copied(runs[0], tmp_path / "probe", lambda own: {**load_file(start), "fc.bias": own["fc.bias"]})
    for path, renewed in ((probe, False), (runs[0], True)):
        config = config_for(path, "soup.kind=wise")
        (run,), chooser = read_ingredients(find_runs([str(path)]), check_soup(config))
        parts = build_soup(config, check_soup(config), [run], chooser, start_of(run))
        assert bool(parts.renewed) == renewed


def test_all_statistics_are_computed_anew_where_asked_on_as_many_pictures_as_asked(runs: list[Path]) -> None:
    config = config_for(runs[:2], "soup.update_bn=true", "soup.bn_pictures=9", "batch_size=8")
    spec = check_soup(config)
    ingredients, chooser = read_ingredients(find_runs([str(run) for run in runs[:2]]), spec)
    parts = build_soup(config, spec, ingredients, chooser, None)
    assert parts.renewed == layers_with(parts.saved.model)
    parts.score(mean_of([one.weights for one in ingredients]), mixed=True)
    # the ninth picture is a batch of its own, and is left out
    assert {int(tensor) for name, tensor in parts.weights().items() if name.endswith("num_batches_tracked")} == {1}
    parts.score(mean_of([ingredients[0].weights]), mixed=False)
    assert all(torch.equal(tensor, parts.weights()[name]) for name, tensor in load_file(ingredients[0].weights).items())


def with_another_bias(own: Tensors) -> Tensors:
    return {**own, "fc.bias": own["fc.bias"] + 1}


def copied(run: Path, to: Path, change: Callable[[Tensors], Tensors] = with_another_bias) -> Path:
    """A copy of a run with other weights, since one with the same is left out."""
    shutil.copytree(run, to)
    save_file(change(tensors(run)), to / "model" / "model.safetensors")
    return to


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    record = read_json(path)
    edit(record)
    write_json(path, record)


def _set(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def edit(record: dict[str, Any]) -> None:
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = to

    return edit


FAULTS: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
    ("model/config.json", _set("architecture", to="test_resnet2"), "test_resnet2"),
    ("model/config.json", _set("model_args", to={"width": 3}), "the architecture of .* is test_resnet"),
    ("model/config.json", _set("label_names", to=["red=1", "gréen", "blue, deep"]), "the labels of"),
    ("model/config.json", _set("pretrained_cfg", "mean", to=[0.1, 0.2, 0.3]), "the input's mean of"),
    ("model/config.json", _set("pretrained_cfg", "std", to=[0.1, 0.2, 0.3]), "the input's std of"),
    (
        "model/config.json",
        _set("pretrained_cfg", "input_size", to=[3, 64, 64]),
        r"the input's size of .* \(3, 64, 64\)",
    ),
    ("provenance.json", _set("weights", "sha256", to="0" * 64), "the start of .* is 000000000000"),
    ("provenance.json", _set("weights", "sha256", to=None), "no hash of them"),
    ("provenance.json", _set("weights", to={"source": "none", "sha256": None}), "random weights"),
    ("provenance.json", _set("data", "splits", "val", "fingerprint", to="0"), "other pictures or labels in val: what"),
    ("provenance.json", _set("data", "splits", "train", "fingerprint", to="0"), "other pictures or labels in train"),
    ("provenance.json", _set("data", "splits", to={}), "does not say what was in its train and val"),
    ("provenance.json", _set("command", to="pretrain"), "is a run of `pretrain`"),
    ("provenance.json", _set("command", to=None), "is no run that says what it is of"),
]


@pytest.mark.parametrize(("file", "edit", "said"), FAULTS, ids=[said for _, _, said in FAULTS])
def test_runs_without_a_meaningful_mean_are_refused(
    file: str, edit: Callable[[dict[str, Any]], None], said: str, runs: list[Path], tmp_path: Path
) -> None:
    other = copied(runs[1], tmp_path / "other")
    change(other / file, edit)
    with pytest.raises(FrostlineError, match=said):
        souping.soup(config_for([runs[0], other], f'output="{tmp_path}/soups"'))
    assert not (tmp_path / "soups").exists()


def test_another_number_of_features_is_seen_in_the_tensors(runs: list[Path], tmp_path: Path) -> None:
    other = copied(runs[1], tmp_path / "other", lambda own: {**own, "fc.weight": torch.zeros(3, 7)})
    with pytest.raises(ConfigError, match=r"have other tensors: fc\.weight"):
        souping.soup(config_for([runs[0], other]))


def test_what_is_unfinished_or_doubled_is_left_out_and_said(runs: list[Path], tmp_path: Path) -> None:
    unfinished, twin = copied(runs[1], tmp_path / "unfinished"), tmp_path / "twin"
    (unfinished / "metrics.json").unlink()
    shutil.copytree(runs[0], twin)
    with pytest.raises(ConfigError, match=r"names one finished run.*takes two") as caught:
        souping.soup(config_for([runs[0], unfinished, twin]))
    assert "unfinished: did not finish" in str(caught.value)
    assert "twin: has the same weights as" in str(caught.value)
    found = find_runs([str(path) for path in [*runs, unfinished, twin]])
    spec = check_soup(config_for(runs))
    kept, _ = read_ingredients(found, spec)
    assert {run.folder.path for run in kept} == set(runs)
    assert len(found.left_out) == 2


def test_the_metric_is_of_validation_and_known(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chosen on validation alone"):
        souping.soup(config_for(runs, "metric=test/accuracy"))
    with pytest.raises(ConfigError, match=r"metric=val/accurate.*no such metric"):
        souping.soup(config_for(runs, "metric=val/accurate", "mode=max"))
    other = copied(runs[1], tmp_path / "other")
    config = load_config(other / "config.yaml")
    config.monitor = {"metric": "val/loss", "mode": "min"}
    save_config(config, other / "config.yaml")
    (one,), known = read_ingredients(find_runs([str(other)]), check_soup(config_for(other, "soup.kind=wise")))
    assert (known.metric, known.larger) == ("val/loss", False)
    asked = check_soup(config_for(other, "metric=val/auroc", "soup.kind=wise"))
    assert chooser_of([one], asked).larger
    with pytest.raises(ConfigError, match="mode=max or mode=min"):
        chooser_of([one], check_soup(config_for(other, "metric=val/mine")))
    with pytest.raises(ConfigError, match=r"several metrics: val/accuracy \(max\), val/loss \(min\)"):
        souping.soup(config_for([runs[0], other]))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("soup.alphas=[0,1.1]", "shares from 0 to 1"),
        ("soup.alphas=[]", "shares from 0 to 1"),
        ("soup.update_bn=sometimes", "update_bn=sometimes"),
        ("soup.bn_pictures=1", "bn_pictures=1"),
        ("trainer.devices=2", "on one device"),
    ],
)
def test_settings_out_of_range_are_refused(override: str, said: str, runs: list[Path]) -> None:
    with pytest.raises(ConfigError, match=said):
        souping.soup(config_for(runs, override))


def test_a_way_needs_one_run_and_the_weights_that_it_began_with(runs: list[Path], start: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="runs= names 3"):
        souping.soup(config_for(runs, "soup.kind=wise"))
    run = copied(runs[0], tmp_path / "run")
    config = load_config(run / "config.yaml")
    config.backbone.weights = str(tmp_path / "moved.safetensors")
    save_config(config, run / "config.yaml")
    with pytest.raises(ConfigError, match=r"which cannot be loaded now: .*moved\.safetensors"):
        souping.soup(config_for(run, "soup.kind=wise"))
    other = load_file(start)
    other["bn1.weight"] = other["bn1.weight"] + 1
    save_file(other, tmp_path / "moved.safetensors")
    with pytest.raises(ConfigError, match="holds other weights now"):
        souping.soup(config_for(run, "soup.kind=wise"))


def test_pictures_that_have_changed_and_configs_that_are_not_trusted_are_refused(
    runs: list[Path], pictures: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    (moved / "val" / "gréen" / "0.jpg").unlink()
    with pytest.raises(DataError, match="split=val: the pictures or labels"):
        souping.soup(config_for(runs, f'root="{moved}"'))
    other = [copied(run, tmp_path / run.name) for run in runs[:2]]
    for run in other:
        config = load_config(run / "config.yaml")
        config.data = {"_target_": "pathlib.Path.mkdir", "self": str(tmp_path / "made")}
        save_config(config, run / "config.yaml")
    with pytest.raises(ConfigError, match=r"pathlib\.Path\.mkdir is not one of"):
        souping.soup(config_for(other))
    assert not (tmp_path / "made").exists()


def test_what_runs_differ_in_is_no_setting_of_their_mean(runs: list[Path], place: list[str], tmp_path: Path) -> None:
    other = copied(runs[1], tmp_path / "other")
    config = load_config(other / "config.yaml")
    config.optimizer = {"_target_": "torch.optim.SGD", "lr": 0.1}
    config.lr.curve = "linear"
    save_config(config, other / "config.yaml")
    spec = check_soup(config_for([runs[0], other]))
    kept, _ = read_ingredients(find_runs([str(runs[0]), str(other)]), spec)
    own = config_of(kept, spec, RunFolder(tmp_path / "soup"))
    assert "optimizer" not in own
    assert own.lr.curve is None
    assert own.data == kept[0].config.data
    assert own.freeze == kept[0].config.freeze
