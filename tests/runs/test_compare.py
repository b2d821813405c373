"""Finished runs as a table: which rows there are, what is said of them, and that scipy says the same."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from finished_runs import finished_run
from PIL import Image
from scipy import stats

from frostline.config import compose, load_config
from frostline.errors import ConfigError
from frostline.runs import compare as command
from frostline.runs.compare import compare, larger_is_better
from frostline.runs.compare_runs import find_runs
from frostline.runs.compare_tables import ComparisonTable, as_latex, as_markdown, latex_text
from frostline.runs.folder import RunFolder, write_json
from frostline.runs.identity import recorded_splits
from frostline.runs.ledger import look
from frostline.specs import Mode

PICTURES = 200


def wrong(*at: int, count: int = PICTURES) -> list[bool]:
    """All right but for the pictures that are named."""
    return [index not in at for index in range(count)]


def wrong_at(share: float, seed: int) -> list[bool]:
    return (np.random.default_rng(seed).random(PICTURES) >= share).tolist()


def compared(runs: object, *overrides: str, output: Path | None = None) -> ComparisonTable:
    config = compose("compare", ["runs=x", "resamples=500", *overrides])
    config.runs = [str(run) for run in runs] if isinstance(runs, list) else str(runs)
    config.output = None if output is None else str(output)
    return compare(config)


def rows_in(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def grid(root: Path, **shares: float) -> list[Path]:
    """Five seeds of each schedule, that labels this share wrong."""
    return [
        finished_run(
            root / f"{freeze}-{seed}",
            f"freeze={freeze}",
            f"seed={seed}",
            right=wrong_at(share, 10 * int(1000 * share) + seed),
        )
        for freeze, share in shares.items()
        for seed in range(5)
    ]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three schedules and five seeds, with a job that failed and one that was killed."""
    root = tmp_path_factory.mktemp("outputs") / "train" / "sweep"
    runs = grid(root, linear_probe=0.4, full=0.1, lp_ft=0.11)
    for number, run in enumerate(runs):
        record = {"number": number, "overrides": [run.name], "folder": str(run), "exit_code": 0}
        write_json(root / f".job-{number:05d}.json", {**record, "before": False, "message": ""})
    record = {"number": 15, "overrides": ["freeze=gradual", "seed=0"], "folder": str(root), "exit_code": 4}
    write_json(root / ".job-00015.json", {**record, "before": False, "message": "the loss is nan"})
    killed = root / "killed"
    killed.mkdir()
    shutil.copy(runs[0] / "config.yaml", killed)
    return root


@pytest.fixture(scope="module")
def table(sweep: Path) -> ComparisonTable:
    return compared(sweep)


@pytest.mark.slow
def test_scipy_says_the_same_of_a_sweep(sweep: Path, table: ComparisonTable) -> None:
    assert table.columns == ["freeze"]
    written = rows_in(sweep / "compare" / "test_accuracy.csv")
    assert [row["freeze"] for row in written] == ["linear_probe", "full", "lp_ft"]
    values = {
        row["freeze"]: [
            json.loads((sweep / f"{row['freeze']}-{seed}" / "metrics.json").read_text())["test/accuracy"]
            for seed in range(5)
        ]
        for row in written
    }
    for row in written:
        own = values[row["freeze"]]
        low, high = stats.t.interval(0.95, 4, loc=np.mean(own), scale=stats.sem(own))
        figures = [float(row[key]) for key in ("mean", "std", "low", "high")]
        assert figures == pytest.approx([np.mean(own), np.std(own, ddof=1), low, high])
        assert row["n"] == "5"
    for one in rows_in(sweep / "compare" / "test_accuracy_tests.csv"):
        first, second = values[one["first"]], values[one["second"]]
        assert float(one["p_over_runs"]) == pytest.approx(stats.ttest_rel(first, second).pvalue)
        assert float(one["difference"]) == pytest.approx(np.mean(first) - np.mean(second))
        assert float(one["p"]) == max(float(one["p_over_runs"]), float(one["p_over_pictures"]))
        assert one["shared_runs"] == "5"


def test_the_best_is_marked_and_what_chance_explains_is_tied(table: ComparisonTable) -> None:
    assert [table.verdict(number) for number in range(3)] == ["worse", "best", "tied"]
    text = as_markdown(table)
    assert re.search(r"\| full \| \*\*0\.\d{4}\*\* \|", text)
    assert re.search(r"\| lp_ft \| 0\.\d{4} † \|", text)
    assert "Student's t over 5 runs" in text
    assert "paired t over runs and paired bootstrap over pictures" in text
    assert "Holm-corrected for 2 comparisons" in text


def test_what_did_not_finish_is_named(table: ComparisonTable, sweep: Path) -> None:
    notes = [note for note in table.notes if note.startswith("left out")]
    assert any("job 15 (freeze=gradual seed=0): failed: the loss is nan" in note for note in notes)
    assert any(str(sweep / "killed") in note and "did not finish" in note for note in notes)
    assert len(notes) == 2


def test_the_files_lie_in_the_sweep(table: ComparisonTable, sweep: Path) -> None:
    folder = sweep / "compare"
    assert {path.name for path in folder.iterdir()} == {
        *(f"test_accuracy.{suffix}" for suffix in ("csv", "md", "tex", "png", "svg")),
        *("test_accuracy_runs.csv", "test_accuracy_tests.csv"),
    }
    with Image.open(folder / "test_accuracy.png") as picture:
        assert picture.width > 1000
    assert len(rows_in(folder / "test_accuracy_runs.csv")) == 15
    assert (folder / "test_accuracy.md").read_text(encoding="utf-8") == as_markdown(table)


def test_latex_is_a_booktabs_table_with_as_many_cells_in_each_line(table: ComparisonTable) -> None:
    text = as_latex(table)
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    (letters,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert {len(line.split(" & ")) for line in lines} == {len(letters)}
    assert len(lines) == 4
    assert r"linear\_probe" in body
    assert re.search(r"full & \\textbf\{0\.\d{4}\}", body)
    assert re.search(r"lp\\_ft & 0\.\d{4}\$\^\{\\dagger\}\$", body)
    assert "95 \\%" in text
    for pair in ("table", "tabular"):
        assert text.count(rf"\begin{{{pair}}}") == text.count(rf"\end{{{pair}}}") == 1
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert latex_text("a_b & 50% #1 {x} ~^\\ $") == (
        r"a\_b \& 50\% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \$"
    )


def test_single_runs_have_the_interval_of_their_pictures_and_mcnemar(tmp_path: Path) -> None:
    runs = [
        finished_run(tmp_path / "full", "freeze=full", right=wrong(*range(10))),
        finished_run(tmp_path / "probe", "freeze=linear_probe", right=wrong(*range(8, 30))),
    ]
    table = compared(runs, output=tmp_path / "out")
    best, other = table.rows
    assert best.method == "bootstrap over pictures"
    assert best.interval == pytest.approx((0.95 - 1.96 * 0.0154, 0.95 + 1.96 * 0.0154), abs=0.006)
    (one,) = table.comparisons
    assert one.over_pictures == "McNemar exact"
    assert one.p_pictures == pytest.approx(stats.binomtest(20, 28).pvalue)
    assert one.p_runs is None
    assert table.verdict(1) == "worse"
    assert other.deviation is None
    assert any("Single runs" in line for line in table.caption)


def test_a_perfect_single_run_is_not_sure(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", right=wrong())
    table = compared(run, output=tmp_path / "out")
    assert table.rows[0].interval == pytest.approx((0.025 ** (1 / PICTURES), 1.0))
    assert table.columns == []
    assert table.comparisons == []
    assert "exact binomial" in as_markdown(table)


def test_runs_that_do_not_differ_are_not_sure_either(tmp_path: Path) -> None:
    runs = [finished_run(tmp_path / f"{seed}", f"seed={seed}", right=wrong(*range(10))) for seed in range(3)]
    (row,) = compared(runs, output=tmp_path / "out").rows
    assert row.deviation == 0
    assert row.method == "bootstrap over pictures, where the runs do not differ"
    assert row.interval == pytest.approx((0.95 - 1.96 * 0.0154, 0.95 + 1.96 * 0.0154), abs=0.006)


def test_folds_of_other_sizes_that_are_all_right_are_not_sure(tmp_path: Path) -> None:
    sizes = (30, 30, 29)
    runs = [
        finished_run(
            tmp_path / f"{fold}-{seed}",
            *("data.folds=3", f"data.fold={fold}", f"seed={seed}"),
            right=[True] * size,
            pictures=f"fold{fold}-",
        )
        for fold, size in enumerate(sizes)
        for seed in range(2)
    ]
    (row,) = compared(runs, output=tmp_path / "out").rows
    assert row.interval == pytest.approx((0.025 ** (1 / sum(sizes)), 1.0))


def test_a_row_that_leads_over_the_shared_runs_is_not_called_worse(tmp_path: Path) -> None:
    """The seeds that only one row has are the good ones, so that its mean is higher though it loses seed by seed."""
    values = {"full": [0.90, 0.902, 0.90, 0.99, 0.992], "lp_ft": [0.92, 0.922, 0.921]}
    runs = [
        finished_run(tmp_path / f"{freeze}{seed}", f"freeze={freeze}", f"seed={seed}", scores={"test/accuracy": value})
        for freeze, some in values.items()
        for seed, value in enumerate(some)
    ]
    table = compared(runs, output=tmp_path / "out")
    difference, p = table.against_best(1) or (0.0, None)
    assert difference > 0
    assert p is not None
    assert p < 0.001
    assert [table.verdict(number) for number in range(2)] == ["best", "unclear"]
    assert "lp_ft is ahead over the runs that it shares with the best row" in " ".join(table.notes)


def test_it_is_said_how_often_the_test_split_was_scored(tmp_path: Path) -> None:
    runs = [finished_run(tmp_path / f"{seed}", f"seed={seed}", right=wrong(seed)) for seed in range(3)]
    split = recorded_splits(RunFolder(runs[0]))["test"]
    for run in runs:
        look(RunFolder(run), split, pictures=PICTURES, command="train", output=str(tmp_path))
    look(RunFolder(runs[0]), "f" * 64, pictures=9, command="evaluate", output=str(tmp_path))
    table = compared(runs, output=tmp_path / "out")
    assert any("the test split has been scored 3 times" in note for note in table.notes)
    assert "scored 3 times" in as_markdown(table)
    lines = (tmp_path / "test_looks.jsonl").read_text().splitlines()
    assert len(lines) == 4  # a comparison is no look


def test_latex_takes_no_cell_for_its_own_and_signs_are_those_of_mathematics(tmp_path: Path) -> None:
    runs = [
        finished_run(
            tmp_path / f"{beta}-{seed}",
            *(f"+optimizer.betas=[0.9,{beta}]", f"seed={seed}"),
            scores={"test/accuracy": 0.5 + 0.1 * seed},
        )
        for beta in (0.9, 0.99)
        for seed in range(2)
    ]
    text = as_latex(compared(runs, output=tmp_path / "out"))
    assert "\\midrule\n{}[0.9, 0.9] & " in text
    assert "\\\\\n{}[0.9, 0.99] & " in text
    assert " & $-0.0853$ to 1.1853 & " in text


@pytest.mark.slow
def test_folds_are_no_independent_samples(tmp_path: Path) -> None:
    """Five folds of 40 pictures, two seeds each: five values, corrected for the training pictures that they share."""
    runs = [
        finished_run(
            tmp_path / f"{freeze}-{fold}-{seed}",
            *(f"freeze={freeze}", "data.folds=5", f"data.fold={fold}", f"seed={seed}"),
            right=wrong(*range(base + (3 * fold + seed) % 5), count=40),
            pictures=f"fold{fold}-",
            trained=160,
        )
        for freeze, base, seeds in (("full", 2, 2), ("linear_probe", 12, 1))
        for fold in range(5)
        for seed in range(seeds)
    ]
    table = compared(runs, output=tmp_path / "out")
    row = table.rows[0]
    values = np.array(row.values).reshape(5, 2).mean(axis=1)
    reach = stats.t.ppf(0.975, 4) * np.sqrt((1 / 5 + 40 / 160) * values.var(ddof=1))
    assert len(row.runs) == 10
    assert row.interval == pytest.approx((values.mean() - reach, values.mean() + reach))
    assert any("Nadeau and Bengio 2003" in line for line in table.caption)
    assert "data.fold" in table.caption[0]
    assert table.comparisons[0].over_pictures == "paired bootstrap"
    assert table.verdict(1) == "worse"


@pytest.mark.slow
def test_names_come_from_the_content_where_nothing_was_typed(tmp_path: Path) -> None:
    settings = (["freeze=lp_ft"], ["freeze=lp_ft", "freeze.phases.probe.until.fraction=0.3"], [], ["optimizer.lr=0.01"])
    runs = [
        finished_run(tmp_path / str(number), *overrides, right=wrong(number), typed=False)
        for number, overrides in enumerate(settings)
    ]
    table = compared(runs, output=tmp_path / "out")
    assert table.columns == ["freeze", "freeze.phases.probe.until.fraction", "optimizer.lr"]
    assert [row.setting[0] for row in table.rows] == ["lp_ft", "lp_ft", "full", "full"]
    assert [row.setting[2] for row in table.rows] == ["0.001", "0.001", "0.001", "0.01"]
    assert table.rows[0].setting[1] != table.rows[1].setting[1] == "0.3"


def test_schedules_of_ones_own_are_called_by_their_phases(tmp_path: Path) -> None:
    added = "freeze.phases.late={train: all, until: {epochs: 1}}"
    runs = [
        finished_run(tmp_path / "a", "freeze=linear_probe", right=wrong(0)),
        finished_run(tmp_path / "b", "freeze=linear_probe", added, right=wrong(1), typed=False),
    ]
    table = compared(runs, output=tmp_path / "out")
    assert [row.setting for row in table.rows] == [("linear_probe",), ("probe > late",)]


def test_equal_configs_are_one_row_whatever_was_typed(tmp_path: Path) -> None:
    runs = [
        finished_run(tmp_path / "a", "freeze=full", "seed=0", right=wrong(0)),
        finished_run(tmp_path / "b", "seed=1", "data.workers=2", "logger=csv", right=wrong(1), typed=False),
        finished_run(tmp_path / "c", "freeze=full", "freeze=full", "seed=2", right=wrong(2)),
    ]
    table = compared(runs, output=tmp_path / "out")
    assert [len(row.runs) for row in table.rows] == [3]


def test_a_run_that_was_made_again_counts_once(tmp_path: Path) -> None:
    runs = [finished_run(tmp_path / name, "seed=0", right=wrong(number)) for number, name in enumerate("ab")]
    table = compared([*runs, *runs], output=tmp_path / "out")
    assert [len(row.runs) for row in table.rows] == [1]
    assert sum("made again" in note for note in table.notes) == 1


@pytest.mark.slow
def test_by_chooses_the_columns_and_says_what_it_takes_together(tmp_path: Path) -> None:
    runs = [
        finished_run(tmp_path / f"{freeze}{rate}", f"freeze={freeze}", f"optimizer.lr={rate}", right=wrong(*range(at)))
        for at, (freeze, rate) in enumerate([("full", 0.1), ("full", 0.2), ("lp_ft", 0.1), ("lp_ft", 0.2)])
    ]
    whole = compared(runs, output=tmp_path / "out")
    assert whole.columns == ["freeze", "optimizer.lr"]
    assert not any("takes runs together" in note for note in whole.notes)
    pooled = compared(runs, "by=[freeze]", output=tmp_path / "out")
    assert [row.setting for row in pooled.rows] == [("full",), ("lp_ft",)]
    assert any("takes runs together" in note for note in pooled.notes)
    assert pooled.comparisons[0].units == 2, "paired at the same rate"
    both = compared(runs, "by=[optimizer.lr,freeze,monitor.metric]", output=tmp_path / "out")
    assert both.rows[0].setting == ("0.1", "full", "val/accuracy")
    with pytest.raises(ConfigError, match=r"freze(.|\n)*'freeze'"):
        compared(runs, "by=[freze]", output=tmp_path / "out")


def test_all_pairs_are_tested_on_request(sweep: Path, tmp_path: Path) -> None:
    table = compared(sweep, "against=all", output=tmp_path)
    assert len(table.comparisons) == 3
    assert [table.verdict(number) for number in range(3)] == ["worse", "best", "tied"]
    assert "all pairs" in " ".join(table.caption)
    raw = sorted(one.p for one in table.comparisons if one.p is not None)
    held = sorted(one.adjusted for one in table.comparisons if one.adjusted is not None)
    assert held[0] == pytest.approx(min(1, 3 * raw[0]))


def test_other_data_under_the_same_config_is_a_row_of_its_own(tmp_path: Path) -> None:
    runs = [
        finished_run(tmp_path / f"{data}{seed}", f"seed={seed}", right=wrong(seed), data=data)
        for data in ("old", "new")
        for seed in range(2)
    ]
    table = compared(runs, output=tmp_path / "out")
    assert table.columns == ["pictures"]
    assert [row.setting for row in table.rows] == [("A",), ("B",)]
    assert table.comparisons == [], "scored on other pictures"
    assert any("not the same in all runs" in note for note in table.notes)
    assert any("scored on other pictures" in note for note in table.notes)


def test_two_data_sets_are_not_tested_against_each_other(tmp_path: Path) -> None:
    runs = [
        finished_run(tmp_path / f"{name}{at}", f"data={name}", *more, f"seed={at}", right=wrong(at), pictures=name)
        for name, more in (("digits", []), ("folder", ["data.root=x"]))
        for at in range(2)
    ]
    table = compared(runs, output=tmp_path / "out")
    assert "data" in table.columns
    assert table.comparisons == []
    assert any("scored on other pictures" in note for note in table.notes)


def test_without_shared_seeds_the_test_is_unpaired(tmp_path: Path) -> None:
    runs = [
        finished_run(tmp_path / f"{freeze}{seed}", f"freeze={freeze}", f"seed={seed}", right=wrong(*range(at + seed)))
        for freeze, at, seeds in (("full", 1, (0, 1, 2)), ("lp_ft", 30, (3, 4, 5)))
        for seed in seeds
    ]
    (one,) = compared(runs, output=tmp_path / "out").comparisons
    assert one.units == 0
    assert one.over_runs == "Welch's t"
    values = [[1 - (at + seed) / PICTURES for seed in seeds] for at, seeds in ((1, (0, 1, 2)), (30, (3, 4, 5)))]
    assert one.p_runs == pytest.approx(stats.ttest_ind(*values, equal_var=False).pvalue, rel=1e-4)
    assert one.over_pictures == "paired bootstrap"


def test_runs_that_differ_by_the_same_amount_are_told_apart_by_pictures_alone(tmp_path: Path) -> None:
    runs = [
        finished_run(tmp_path / f"{freeze}{seed}", f"freeze={freeze}", f"seed={seed}", right=wrong(*range(at)))
        for freeze, at in (("full", 4), ("lp_ft", 40))
        for seed in range(3)
    ]
    table = compared(runs, output=tmp_path / "out")
    assert table.comparisons[0].p_runs is None
    assert table.verdict(1) == "worse"
    assert any("the pictures alone decide" in line for line in table.caption)


def test_predictions_that_are_not_those_of_the_score_are_not_used(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", right=wrong(1), scores={"test/auroc": 0.9})
    write_json(run / "metrics.json", {"test/accuracy": 0.7, "test/auroc": 0.9})
    for metric in ("test/accuracy", "test/auroc"):
        row = compared(run, f"metric={metric}", output=tmp_path / "out").rows[0]
        assert row.interval is None
        assert row.method.startswith("none")


@pytest.mark.parametrize("metric", ["test/macro_f1", "test/loss"])
def test_other_metrics_are_resampled_too(metric: str, tmp_path: Path) -> None:
    runs = [
        finished_run(tmp_path / "a", "freeze=full", right=wrong(*range(5))),
        finished_run(tmp_path / "b", "freeze=lp_ft", right=wrong(*range(60))),
    ]
    table = compared(runs, f"metric={metric}", output=tmp_path / "out")
    assert [table.verdict(number) for number in range(2)] == ["best", "worse"]
    low, high = table.rows[0].interval or (0, 0)
    assert low < table.rows[0].mean < high
    assert table.comparisons[0].over_pictures == "paired bootstrap"


def test_a_published_result_stands_beside_with_its_source(tmp_path: Path) -> None:
    source = "Kumar & al. 2022, 50%"
    runs = [
        finished_run(tmp_path / f"a{seed}", f"seed={seed}", f"paper={{value: 0.9, source: '{source}'}}", right=wrong(0))
        for seed in range(2)
    ]
    runs.append(finished_run(tmp_path / "b", "freeze=lp_ft", right=wrong(0, 1)))
    table = compared(runs, output=tmp_path / "out")
    assert table.columns == ["freeze"], "a published result is no setting"
    assert "| 0.9000 [a] | +0.0950 |" in as_markdown(table)
    assert f"[a] {source}" in as_markdown(table)
    assert r"0.9000$^{a}$ & $+0.0950$" in as_latex(table)
    assert r"[a] Kumar \& al. 2022, 50\%" in as_latex(table)
    assert [row["paper"] for row in rows_in(tmp_path / "out" / "test_accuracy.csv")] == ["0.9", ""]
    other = compared(runs, "metric=test/macro_f1", output=tmp_path / "out")
    assert other.sources == [], "it is a value of another metric"


@pytest.mark.parametrize(
    ("paper", "part"),
    [("{value: 91.2, source: X}", "0.912"), ("{value: 0.9}", "paper.source"), ("{source: X}", "paper.value")],
)
def test_a_published_result_is_checked(paper: str, part: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(part)):
        compose("train", [f"paper={paper}"])


def test_which_way_is_better() -> None:
    assert [larger_is_better(name, None) for name in ("test/accuracy", "val/loss", "seconds")] == [True, False, False]
    assert [larger_is_better(name, None) for name in ("test/top5_accuracy", "images_per_second")] == [True, True]
    assert larger_is_better("val/mine", Mode.min) is False
    calibrated = ("test/ece_calibrated", "test/brier_calibrated", "test/nll_calibrated")
    assert [larger_is_better(name, None) for name in calibrated] == [False] * 3
    # of training less held out: the larger, the more the model only knows its training pictures
    assert [larger_is_better(name, None) for name in ("gap/accuracy", "gap/nll")] == [False, True]
    with pytest.raises(ConfigError, match="mode=max or mode=min"):
        larger_is_better("val/mine", None)


def test_patterns_lists_and_moved_sweeps_name_the_same_runs(sweep: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / sweep.name
    shutil.copytree(sweep, moved)
    for path in moved.glob(".job-*.json"):
        path.write_text(path.read_text().replace(str(sweep), "/gone/sweep"))
    listed = [str(path) for path in sorted(sweep.glob("*-[0-4]"))]
    for named in (f"{sweep}/*-?", listed, [str(sweep), str(sweep)], str(sweep)):
        assert {str(folder.path) for folder in find_runs(named).folders} == set(listed)
    assert [len(row.runs) for row in compared(moved).rows] == [5, 5, 5]
    assert (moved / "compare" / "test_accuracy.md").is_file()


def test_runs_of_several_places_get_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [finished_run(tmp_path / name, f"freeze={name}", right=wrong(0)) for name in ("full", "lp_ft")]
    monkeypatch.chdir(tmp_path)
    compared(runs)
    last = capsys.readouterr().out.splitlines()[-1]
    folder = Path(last.removeprefix("compare: "))
    assert folder.parent == tmp_path / "outputs" / "compare"
    assert (folder / "test_accuracy.svg").is_file()


@pytest.mark.slow
def test_what_cannot_be_compared_says_why(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a run nor a sweep"):
        compared(tmp_path)
    with pytest.raises(ConfigError, match="no run and no sweep"):
        compared(f"{tmp_path}/*")
    with pytest.raises(ConfigError, match="which runs"):
        compared([])
    with pytest.raises(ConfigError, match=r"did not finish"):
        compared(sweep / "killed")
    with pytest.raises(ConfigError, match="'test/accuracy'"):
        compared(sweep, "metric=test/acuracy", "mode=max")
    untested = finished_run(tmp_path / "val", scores={"val/accuracy": 0.5})
    with pytest.raises(ConfigError, match="metric=val/accuracy"):
        compared(untested)
    with pytest.raises(ConfigError, match="100 resamples"):
        compared(sweep, "resamples=3")


def test_what_a_strangers_config_says_does_not_reach_the_terminal(tmp_path: Path) -> None:
    runs = [finished_run(tmp_path / name, right=wrong(0)) for name in "ab"]
    text = (runs[0] / "config.yaml").read_text()
    (runs[0] / "config.yaml").write_text(text.replace("class_weights: none", 'class_weights: "\\e[2Jx${oc.env:HOME}"'))
    table = compared(runs, output=tmp_path / "out")
    assert [row.setting for row in table.rows] == [("\ufffd[2Jx${oc.env:HOME}",), ("none",)]


def test_the_same_runs_give_the_same_table(sweep: Path, table: ComparisonTable, tmp_path: Path) -> None:
    compared(sweep, output=tmp_path)
    for name in ("test_accuracy.csv", "test_accuracy.md", "test_accuracy.tex", "test_accuracy.svg"):
        assert (tmp_path / name).read_bytes() == (sweep / "compare" / name).read_bytes(), name
    assert command.compare is compare


@pytest.mark.slow
def test_a_sweep_of_three_schedules_and_its_table(tmp_path: Path) -> None:
    """What a person types: means and intervals of the files are recomputed from the runs' own files."""
    own = ["backbone.name=test_resnet", "backbone.weights=none", "trainer=cpu", "trainer.max_epochs=2", "logger=csv"]
    line = [sys.executable, "-m", "frostline.cli"]
    trained: Any = subprocess.run(
        [*line, "train", "-m", "freeze=linear_probe,full,lp_ft", "seed=0,1", "test=true", *own],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert trained.returncode == 0, trained.stderr
    sweep = Path(trained.stdout.strip().splitlines()[-1].removeprefix("sweep: "))
    done = subprocess.run(
        [*line, "compare", f"runs={sweep}"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    by_freeze: dict[str, list[float]] = {"linear_probe": [], "full": [], "lp_ft": []}
    for run in sorted(path.parent for path in sweep.glob("*/metrics.json")):
        (name,) = (item.split("=")[1] for item in json.loads((run / "identity.json").read_text())["overrides"][:1])
        written = pyarrow.parquet.read_table(run / "predictions" / "test.parquet").to_pydict()
        accuracy = np.mean([label == said for label, said in zip(written["label"], written["prediction"], strict=True)])
        assert json.loads((run / "metrics.json").read_text())["test/accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert load_config(run / "config.yaml").paper.value is None
        by_freeze[name].append(float(accuracy))
    text = (sweep / "compare" / "test_accuracy.md").read_text(encoding="utf-8")
    latex = (sweep / "compare" / "test_accuracy.tex").read_text(encoding="utf-8")
    assert any(np.ptp(values) > 1e-9 for values in by_freeze.values())
    for name, values in by_freeze.items():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert f"{np.mean(values):.4f}" in row
        if np.ptp(values) < 1e-9:
            continue
        low, high = stats.t.interval(0.95, 1, loc=np.mean(values), scale=stats.sem(values))
        assert f"{low:.4f} to {high:.4f}" in row
        # a sign stands between the dollars of mathematics
        assert f"{low:.4f} to {high:.4f}" in latex.replace("$", "")
