"""The same pictures in six forms make the same run: the order of training is a function of what the pictures are."""

from __future__ import annotations

from pathlib import Path

import pytest
from forms import FORMS, PicturesToWrite, made_pictures, overrides

import frostline


@pytest.fixture(scope="session")
def by_folder(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> dict[bool, frostline.Run]:
    """A run on the pictures in folders, with and without official splits."""
    return {
        official: trained("folder", tmp_path_factory.mktemp("folder"), tiny, official) for official in (True, False)
    }


def chosen(official: bool) -> PicturesToWrite:
    return made_pictures() if official else made_pictures().undivided()


def trained(form: str, folder: Path, tiny: list[str], official: bool) -> frostline.Run:
    more = [] if official else ["data.test_fraction=0.2", "data.labels_per_class=12"]
    line = [*tiny, *overrides(form, folder / "set", chosen(official), seed=len(form)), f"output={folder}", *more]
    return frostline.train([*line, "data.workers=0", "optimizer.lr=3e-3"])


@pytest.mark.slow
@pytest.mark.parametrize("official", [True, False], ids=["official", "derived"])
@pytest.mark.parametrize("form", [form for form in FORMS if form != "folder"])
def test_same_test_metrics(
    form: str,
    official: bool,
    by_folder: dict[bool, frostline.Run],
    tmp_path: Path,
    tiny: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    expected = by_folder[official].metrics
    found = trained(form, tmp_path, tiny, official).metrics
    assert found.keys() == expected.keys()
    scores = [name for name in expected if name.startswith(("test/", "val/"))]
    assert "test/loss" in scores
    for name in scores:
        # means whose terms come in another order
        tolerance = 1e-6 if any(part in name for part in ("loss", "nll", "brier", "ece")) else 0.0
        assert found[name] == pytest.approx(expected[name], rel=tolerance, abs=tolerance), name


@pytest.mark.slow
def test_another_seed_is_another_run(by_folder: dict[bool, frostline.Run], tmp_path: Path, tiny: list[str]) -> None:
    other = trained("folder", tmp_path, [*tiny, "seed=1"], True)
    assert other.metrics["test/loss"] != pytest.approx(by_folder[True].metrics["test/loss"], abs=1e-6)
