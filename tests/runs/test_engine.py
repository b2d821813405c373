"""The forward engine in a run: chosen by ``speed.engine``, the same scores, and entries of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from frostline.config import compose
from frostline.features import ForwardEngine
from frostline.runs.folder import RunFolder
from frostline.runs.starting import prepare
from frostline.runs.worker import work


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_run_takes_the_way_that_is_named(
    tiny: list[str], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[str, int]] = []
    call = ForwardEngine.__call__

    def watched(self: ForwardEngine, images):  # type: ignore[no-untyped-def]
        features = call(self, images)
        taken.append((self.chosen, self.pictures))
        return features

    monkeypatch.setattr(ForwardEngine, "__call__", watched)

    def run(*more: str) -> RunFolder:
        overrides = [
            *[*tiny, "data=folder", f'data.root="{pictures}"', f'output="{tmp_path / "out"}"', "logger=csv"],
            *["freeze=linear_probe", "augment=none", "data.workers=0", "trainer.max_epochs=3", *more],
        ]
        folder = prepare(compose("train", overrides), overrides)
        assert work("train", folder.path) == 0
        return folder

    scores = []
    for way in ("plain", "fused"):
        taken.clear()
        scores.append(run(f"speed.engine={way}").read_metrics())
        assert {name for name, _ in taken} == {way}
        # what is to come, when each split begins
        assert {count for _, count in taken} == {30 + 15 + 21, 15 + 21, 21}
        assert "computed" in capsys.readouterr().out
    assert scores[0]["val/loss"] == pytest.approx(scores[1]["val/loss"], abs=1e-5)
    without = run("freeze.phases.probe.cache.mode=off").read_metrics()
    assert without.keys() == scores[1].keys()
    for name in without.keys() - {"seconds", "images_per_second"}:
        assert scores[1][name] == pytest.approx(without[name], abs=1e-4), name
    taken.clear()
    run("speed.engine=fused")
    assert taken == []
    assert "found" in capsys.readouterr().out
