from __future__ import annotations

import csv
import dataclasses
import json
import multiprocessing
import os
import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image

from frostline.data import FolderData, ImageSplit, named_files
from frostline.data.arrays import binary_array
from frostline.data.table import TableData
from frostline.errors import ConfigError, DataError

Rows = list[dict[str, Any]]
FORMATS = [".csv", ".tsv", ".parquet", ".jsonl"]


def write(path: Path, rows: Rows) -> Path:
    """Writes a table as pyarrow, or json, writes it."""
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}
    if path.suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.table(columns), path)
    else:
        options = pyarrow.csv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
        pyarrow.csv.write_csv(pa.table(columns), path, options)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six pictures, ``a/0.png`` to ``b/2.png``."""
    for number, name in enumerate(["a/0", "a/1", "a/2", "b/0", "b/1", "b/2"]):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4 + number, 4), (40 * number, 0, 0)).save(path)
    return tmp_path


def rows(**more: Sequence[Any]) -> Rows:
    """A row for each of the six pictures; ``more`` holds other columns, or other values."""
    columns = {"path": [f"{name}/{n}.png" for name in "ab" for n in range(3)], "label": list("aaabbb"), **more}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def loaded(table: Path, **settings: Any) -> TableData:
    data = TableData(str(table), **{"val_fraction": 0.0, **settings})
    data.load()
    return data


def refused(table: Path, **settings: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        loaded(table, **settings)
    assert caught.value.exit_code == 3
    return caught.value


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def names(data: TableData | FolderData, split: str = "train") -> list[str]:
    pictures = data.splits[split]
    return [pictures.name(index) for index in range(len(pictures))]


def labels(data: TableData, split: str = "train") -> list[str]:
    return [data.classes[label] for label in data.splits[split].labels]


@pytest.mark.parametrize("suffix", [*FORMATS, ".ndjson"])
def test_each_format_gives_paths_labels_splits_and_groups(root: Path, suffix: str) -> None:
    table = rows(split=["train", "VAL", "train", "train", "test", "Validation"], group=["p2", "p1", "p3"] * 2)
    data = loaded(write(root / f"all{suffix}", table))
    assert data.classes == ("a", "b")
    assert list(data.splits) == ["train", "val", "test"]
    assert names(data) == ["a/0.png", "a/2.png", "b/0.png"]
    assert labels(data) == ["a", "a", "b"]
    assert names(data, "val") == ["a/1.png", "b/2.png"]
    assert names(data, "test") == ["b/1.png"]
    assert data.splits["train"].groups.tolist() == [1, 2, 1]
    assert data.splits["test"].groups.tolist() == [0]
    assert data.splits["test"].image(0).size == (8, 4)
    assert data.splits["test"].path(0) == root / "b/1.png"
    assert data.notes[0] == "2 groups have pictures in more than one split, as the table says."


def test_other_columns_are_taken_by_name(root: Path) -> None:
    table = [{"file": row["path"], "kind": row["label"], "label": 7, "part": "train", "who": 3} for row in rows()]
    path = write(root / "t.parquet", table)
    data = loaded(path, image_column="file", label_column="kind", split_column="part", group_column="who")
    assert labels(data) == list("aaabbb")
    assert data.splits["train"].groups.tolist() == [0] * 6


def test_an_empty_name_takes_no_column(root: Path) -> None:
    table = write(root / "t.csv", rows(split=["train"] * 5 + ["nonsense"], group=[""] * 6))
    data = loaded(table, split_column="", group_column="")
    assert len(data.splits["train"]) == 6
    assert data.splits["train"].groups is None


def test_without_splits_they_are_derived(root: Path) -> None:
    data = loaded(write(root / "t.csv", rows()), val_fraction=0.3)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 4, "val": 2}


def test_a_table_names_what_a_folder_of_the_same_pictures_does(tmp_path: Path) -> None:
    paths = []
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            paths += [f"{split}/{label}/{number}.png" for number in range(2)]
    for number, name in enumerate(paths):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / name)
    folder = FolderData(str(tmp_path), val_fraction=0.0)
    folder.load()
    written = [str(tmp_path / paths[0]), f"./{paths[1]}", f"train//./x/../{paths[2][6:]}", *paths[3:]]
    table = [
        {"path": p, "label": p.split("/")[-2], "split": n.split("/")[0]} for p, n in zip(written, paths, strict=True)
    ]
    data = loaded(write(tmp_path / "t.csv", table))
    assert {split: names(data, split) for split in data.splits} == {s: names(folder, s) for s in folder.splits}
    assert data.fingerprint() == folder.fingerprint()


def test_relative_paths_start_from_the_root(root: Path, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    table = write(tmp_path / "tables/t.csv", rows())
    assert "'a/0.png' of row 1 (line 2)" in refused(table).problem
    assert names(loaded(table, root=str(root)))[0] == "a/0.png"
    above = write(tmp_path / "tables/above.csv", rows(path=[f"../{row['path']}" for row in rows()]))
    assert names(loaded(above))[0] == "../a/0.png"
    assert loaded(above).splits["train"].image(0).size == (4, 4)
    away = write(tmp_path / "tables/away.csv", rows(path=[str(root / row["path"]) for row in rows()]))
    assert names(loaded(away))[0] == str(root / "a/0.png")
    assert names(loaded(away, root=str(root)))[0] == "a/0.png"


def test_a_linked_root_is_the_root_under_both_of_its_names(root: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(root, target_is_directory=True)
    for first in (link, root):
        table = write(root / "t.csv", rows(path=[str(first / row["path"]) for row in rows()]))
        assert names(loaded(table, root=str(link)))[0] == "a/0.png"


def test_a_table_that_moved_with_its_pictures_is_found_in_the_root(root: Path) -> None:
    write(root / "t.csv", rows())
    data = loaded(root / "gone" / "t.csv", root=str(root))
    assert names(data)[0] == "a/0.png"


def test_text_is_not_interpreted(root: Path) -> None:
    odd = ["1_000", "True", "007", "NA", "null", " 1e5"]
    written = [*odd[:5], '" 1e5"']
    table = "path,label\n" + "".join(f"{row['path']},{name}\n" for row, name in zip(rows(), written, strict=True))
    assert labels(loaded(text(root / "t.csv", table))) == odd
    for suffix in FORMATS:
        assert labels(loaded(write(root / f"t{suffix}", rows(label=odd)))) == odd


@pytest.mark.parametrize("value", ["2020-01-01", "12:30:00", "2020-01-01T00:00:00Z"])
def test_json_text_that_looks_like_a_date_stays_text(root: Path, value: str) -> None:
    late = [{"path": row["path"]} for row in rows()[:1]] + rows(label=[value] * 6)[1:]
    assert labels(loaded(write(root / "t.jsonl", rows(label=[value] * 3 + ["b"] * 3)))) == [value] * 3 + ["b"] * 3
    assert "label of row 1 (line 1)" in refused(write(root / "t.jsonl", late)).problem


@pytest.mark.parametrize("suffix", FORMATS)
def test_integers_are_names_or_positions_in_a_list(root: Path, suffix: str) -> None:
    numbers = [10, 2, 1, 10, 2, 1]
    table = write(root / f"t{suffix}", rows(label=numbers))
    data = loaded(table)
    assert data.classes == ("1", "2", "10")
    assert labels(data) == [str(number) for number in numbers]
    positions = write(root / f"p{suffix}", rows(label=[0, 1, 1, 0, 0, 1]))
    assert labels(loaded(positions, classes=["dog", "cat"])) == ["dog", "cat", "cat", "dog", "dog", "cat"]
    problem = refused(write(root / f"p{suffix}", rows(label=[0, 1, 2, 0, 0, 1])), classes=["dog", "cat"]).problem
    assert "'2' of row 3" in problem


def test_categories_of_pandas_are_text(root: Path) -> None:
    found = pa.Table.from_pylist(rows(split=["train"] * 6, group=["p"] * 6))
    table = pa.table({name: found[name].dictionary_encode() for name in found.column_names})
    pyarrow.parquet.write_table(table, root / "t.parquet")
    assert labels(loaded(root / "t.parquet")) == list("aaabbb")


def test_the_order_of_classes_can_be_given(root: Path) -> None:
    assert loaded(write(root / "t.csv", rows()), classes=["b", "a"]).class_counts("train") == [3, 3]
    assert loaded(root / "t.csv", classes=["b", "a"]).classes == ("b", "a")
    with pytest.raises(ConfigError, match="'a' twice"):
        loaded(root / "t.csv", classes=["a", "a"])


def test_what_a_file_is_does_not_depend_on_its_name(root: Path) -> None:
    (root / "a/0.png").rename(root / "a/0.bin")
    assert (
        loaded(write(root / "t.csv", rows(path=["a/0.bin"] + [r["path"] for r in rows()[1:]]))).splits["train"].image(0)
    )


def test_limits_reach_the_decoder(root: Path) -> None:
    with pytest.raises(DataError, match="limit of 3"):
        loaded(write(root / "t.csv", rows()), pixel_limit=3).splits["train"].image(0)


def test_rows_that_name_a_picture_again_are_kept_and_noted_once(root: Path) -> None:
    table = [*rows(), rows()[0], {"path": "a/./0.png", "label": "a"}]
    data = loaded(write(root / "t.csv", table))
    assert len(data.splits["train"]) == 8
    assert data.notes[0] == (
        "2 rows name pictures that an earlier row names, and are kept: such as row 7 of t.csv, which repeats row 1."
    )


def changed(row: int, **values: Any) -> Rows:
    table = rows(split=["train"] * 6)
    table[row].update(values)
    return table


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("table", "settings", "problem", "mend"),
    [
        (changed(3, path="b/9.png"), {}, "names 1 picture that cannot be found: 'b/9.png' of row 4", "start from"),
        (changed(3, path="b\\0.png"), {}, "cannot be found", "forward slashes"),
        (changed(3, path="s3://b/0.png"), {}, "cannot be found", "download"),
        (changed(3, path="a"), {}, "'a' of row 4", "start from"),
        (changed(3, path="a\0.png"), {}, "cannot be found", "start from"),
        (changed(3, path=""), {}, "path of row 4", "Fill it in"),
        (changed(3, label=""), {}, "label of row 4", "Fill it in"),
        (changed(3, label="c"), {"classes": ["a", "b"]}, "label 'c' of row 4", "Classes: a, b"),
        (changed(3, label="B", split="val"), {}, "label 'B' of row 4", "Classes of train: a, b"),
        (changed(3, split=""), {}, "no split for row 4", "data.split_column=''"),
        (changed(3, split="tarin"), {}, "'tarin' is no split: row 4", "'train'"),
        (rows(split=["val"] * 6), {}, "no row for train", "Mark"),
        ([*changed(3), *changed(0, path="./a/1.png", split="test")[:1]], {}, "'a/1.png' is in two splits", "Remove"),
        ([*changed(3), *changed(0, path="a//1.png", label="b")[:1]], {}, "'a/1.png' has two labels", "Remove"),
        (rows(group=["p"] * 5 + [""]), {}, "no group for row 6", "data.group_column=''"),
        (rows(), {"image_column": "pth"}, "no column 'pth'", "'path'? Its columns are: 'path', 'label'"),
        (rows(), {"label_column": "kind"}, "no column 'kind'", "Set data.label_column"),
        (rows(), {"split_column": "split"}, "no column 'split'", "Set data.split_column"),
        (rows(), {"image_column": ""}, "no column ''", "Set data.image_column"),
        (rows(label=["a"] * 6), {}, "a single class", "at least two"),
        (rows(), {"classes": ["a", "b", "c"]}, "class 'c' has no training pictures", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_used_is_named(
    root: Path, suffix: str, table: Rows, settings: dict[str, Any], problem: str, mend: str
) -> None:
    error = refused(write(root / f"t{suffix}", table), **settings)
    assert problem in error.problem
    assert mend in str(error.mend)


def test_rows_of_csv_and_json_have_their_lines(root: Path) -> None:
    content = 'path,label,text\n\na/0.png,a,"two\nlines"\n\nb/0.png,,x\n'
    assert "row 2 (line 6)" in refused(text(root / "t.csv", content)).problem
    content = '{"path": "a/0.png", "label": "a"}\n\n{"path": "b/0.png", "label": ""}\n'
    assert "row 2 (line 3)" in refused(text(root / "t.jsonl", content)).problem
    write(root / "t.parquet", changed(3, label=""))
    assert "label of row 4 of" in refused(root / "t.parquet").problem


def test_several_missing_files_are_counted(root: Path) -> None:
    problem = refused(write(root / "t.csv", rows(path=[f"c/{number}.png" for number in range(6)]))).problem
    assert "6 pictures that cannot be found: 'c/0.png' of row 1 (line 2), 'c/1.png' of row 2" in problem
    assert problem.endswith(", ....")


@pytest.mark.parametrize("count", [5, 100])
def test_a_missing_file_is_found_among_few_and_many(tmp_path: Path, count: int) -> None:
    """Few files are asked for one by one, many by listing their folder."""
    for number in range(count):
        Image.new("L", (2, 2)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").unlink()
    (tmp_path / "2.png").mkdir()
    (tmp_path / "3.png").unlink()
    (tmp_path / "3.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "4.png").unlink()
    (tmp_path / "4.png").symlink_to(tmp_path / "0.png")
    table = [{"path": f"{number}.png", "label": str(number % 2)} for number in range(count)]
    problem = refused(write(tmp_path / "t.csv", table)).problem
    assert "3 pictures that cannot be found: '1.png' of row 2 (line 3), '2.png' of row 3 (line 4), '3.png'" in problem


def test_a_folder_that_cannot_be_listed_may_hold_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        Image.new("L", (2, 2)).save(tmp_path / f"{number}.png")
    table = [{"path": f"{number}.png", "label": str(number % 2)} for number in range(40)]

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    assert len(loaded(write(tmp_path / "t.csv", table)).splits["train"]) == 40
    table[7]["path"] = "7.jpg"
    assert "'7.jpg' of row 8" in refused(write(tmp_path / "t.csv", table)).problem


def test_a_file_system_may_have_other_names_for_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where letters are composed otherwise: the listing lacks the name, and the file is there."""
    for number in range(40):
        Image.new("L", (2, 2)).save(tmp_path / f"{number}.png")
    table = write(tmp_path / "t.csv", [{"path": f"{number}.png", "label": str(number % 2)} for number in range(40)])
    monkeypatch.setattr(named_files, "_files_in", lambda folder: binary_array([b"other"]))
    assert len(loaded(table).splits["train"]) == 40


@pytest.mark.parametrize(
    ("name", "content", "problem", "mend"),
    [
        ("t.csv", "", "is empty", "first line names the columns"),
        ("t.csv", "path,label\n", "has no rows", "in each row"),
        ("t.csv", "path,label,label\na/0.png,a,b\n", "several columns 'label'", "Rename"),
        ("t.csv", "path,label\na/0.png,a\n\na/1.png\n", "malformed: line 4 has 1 values, and the first line 2", ""),
        ("t.csv", 'path,label\n"a/0.png,a\nb/0.png,b\n', "line 2: a quotation mark is not closed", ""),
        ("t.csv", 'path,label\na/0.png,"a\n' + "b/0.png,b\n" * 20_000, "line 2: a quotation mark is not closed", ""),
        ("t.csv", "path,label\na/0.png,a\nb/0.png,\xe9\n".encode("latin-1"), "no UTF-8 (line 3)", "Save it as UTF-8"),
        ("t.csv", "path,label\n".encode("utf-16"), "no UTF-8 (line 1)", "Save it as UTF-8"),
        ("t.csv", "path;label\na/0.png;a\n", "a single one, 'path;label'", "by ',', not by ';'"),
        ("t.tsv", "path,label\na/0.png,a\n", "a single one, 'path,label'", "by '\\t', not by ','"),
        ("t.jsonl", "", "is empty", "an object"),
        ("t.jsonl", '{"path": "a/0.png", "label": "a"}\n{"path": "b\n', "malformed: line 2: ", ""),
        ("t.jsonl", '{"path": "a/0.png", "label": "a"}\n["b"]\n', "line 2: it is no object", ""),
        ("t.jsonl", '[{"path": "a/0.png", "label": "a"}]\n', "line 1: it is no object", ""),
        ("t.jsonl", '{"path": "a/0.png", "label": "a", "label": "b"}\n', "line 1: 'label' occurs twice", ""),
        ("t.jsonl", '{"path": "a/0.png", "label": "a"} {"path": "b/0.png", "label": "b"}\n', "line 1: Extra data", ""),
        ("t.jsonl", b'{"path": "a/0.png", "label": "\xff"}\n', "line 1: 'utf-8' codec", ""),
        ("t.jsonl", '{"path": "a/0.png", "label": "a"}\n' + "[" * 100_000 + "\n", "malformed: line 2", ""),
        ("t.jsonl", '{"path": 1, "label": "a"}\n', "column 'path' of", "must hold text"),
        ("t.jsonl", '{"path": "a/0.png", "label": "a"}\n{"path": 2, "label": "a"}\n', "is 2 in row 2 (line 2)", "text"),
        ("t.jsonl", '{"path": "\\ud800", "label": "a"}\n', "half a character in row 1", "text"),
        ("t.jsonl", '{"path": "a/0.png", "label": "a"}\n{"path": "b/0.png", "label": 1}\n', "of several kinds", "text"),
        ("t.jsonl", '{"path": "a/0.png", "label": ["a"]}\n', "The labels are of type list", "text"),
        ("t.parquet", b"PAR1 and no more", "malformed", ""),
        ("t.parquet", b"", "malformed", ""),
        ("t.xlsx", b"PK", "of no known format", ".csv, .tsv, .parquet"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_file_that_is_no_table_is_named(root: Path, name: str, content: str | bytes, problem: str, mend: str) -> None:
    error = refused(text(root / name, content))
    assert problem in error.problem
    assert str(root / name) in error.problem or "column 'path'" in error.problem or "row" in error.problem
    assert mend in str(error.mend)


def test_odd_but_good_csv_is_read(root: Path) -> None:
    table = text(root / "t.csv", b'\xef\xbb\xbfpath,label\r\na/0.png,5" disk\r\n"b/0.png","a ""b"", c"\r\n')
    assert labels(loaded(table)) == ['5" disk', 'a "b", c']


def test_odd_but_good_json_is_read(root: Path) -> None:
    lines = ['{"label": "a", "path": "a/0.png"}', "", '{"path": "b/0.png", "label": "b", "more": {"x": [1, "y"]}}']
    assert labels(loaded(text(root / "t.jsonl", "\ufeff" + "\r\n".join(lines)))) == ["a", "b"]
    mixed = ['{"path": "a/0.png", "label": "a", "more": 1}', '{"path": "b/0.png", "label": "b", "more": "x"}']
    assert labels(loaded(text(root / "t.jsonl", "\n".join(mixed)))) == ["a", "b"]


def test_parquet_that_is_not_what_it_says_is_malformed(root: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")])
    pyarrow.parquet.write_table(pa.table({"path": ["a/0.png"], "label": bad}), root / "t.parquet")
    assert "malformed" in refused(root / "t.parquet").problem


def test_parquet_with_pictures_inside_says_who_reads_it(root: Path) -> None:
    write(root / "t.parquet", [{"image": {"bytes": b"x", "path": "a"}, "label": "a"}])
    error = refused(root / "t.parquet", image_column="image")
    assert "column 'image'" in error.problem
    assert "data=hf" in str(error.mend)


def test_a_table_that_is_not_there_is_named_with_those_that_are(root: Path) -> None:
    write(root / "labels.csv", rows())
    assert "'labels.csv'" in str(refused(root / "label.csv").mend)
    assert "There is no folder" in str(refused(root / "none" / "label.csv").mend)
    assert "is no file" in refused(root / "a").problem


def test_groups_are_numbered_by_name_and_not_by_row(root: Path) -> None:
    groups = ["z", "x", "y", "x", "z", "y"]
    first = loaded(write(root / "t.csv", rows(group=groups)))
    assert first.splits["train"].groups.tolist() == [2, 0, 1, 0, 2, 1]
    second = loaded(write(root / "u.csv", rows(group=groups)[::-1]))
    assert second.splits["train"].groups.tolist() == [1, 2, 0, 1, 0, 2]
    large = loaded(write(root / "t.jsonl", rows(group=[2**70, 1, 2, 1, 2, 2**70])))
    assert len(set(large.splits["train"].groups.tolist())) == 3


def test_a_group_stays_together(root: Path) -> None:
    data = loaded(write(root / "t.csv", rows(group=list("ppqrrs"))), val_fraction=0.34)
    taken = [set(data.splits[split].groups.tolist()) for split in ("train", "val")]
    assert taken[0].isdisjoint(taken[1])


def _unshared() -> int:
    """The bytes that this process holds alone."""
    sizes = re.findall(r"^Private_\w+: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), flags=re.MULTILINE)
    return 1024 * sum(map(int, sizes))


def _read_all(pictures: Any, results: multiprocessing.Queue[int]) -> None:
    """What a forked process comes to hold alone by reading all names and labels."""
    before = _unshared()
    for index in range(len(pictures)):
        assert pictures.name(index)
        assert pictures.labels[index] >= 0
    results.put(_unshared() - before)


class Listed:
    """What is to be avoided: names and labels as Python objects, whose counts of references a reader writes."""

    def __init__(self, pictures: ImageSplit) -> None:
        self.names = [pictures.name(index) for index in range(len(pictures))]
        self.labels = pictures.labels.tolist()

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]


def _taken_by_a_worker(pictures: Any) -> int:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[int] = context.Queue()
    worker = context.Process(target=_read_all, args=(pictures, results))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
        worker.start()
    grown = results.get(timeout=60)
    worker.join()
    return grown


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux's account of memory")
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_many_rows_load_fast_and_are_shared_with_workers(root: Path, suffix: str) -> None:
    """Against what the same machine takes to parse the rows of the CSV file one by one, and for Python lists."""
    count = 200_000
    pairs = [(f"{name}/{n}.png", name) for name in "ab" for n in range(3)]
    table = [{"path": p, "label": name, "split": "train"} for p, name in (pairs * (count // 6 + 1))[:count]]
    path = write(root / f"t{suffix}", table)
    loaded(path)  # imports what it needs
    start = time.process_time()
    data = loaded(path)
    taken = time.process_time() - start
    write(root / "t.csv", table)
    start = time.process_time()
    with (root / "t.csv").open(newline="") as file:
        assert sum(os.path.exists(root / row["path"]) for row in csv.DictReader(file)) == count
    assert taken < time.process_time() - start
    pictures = data.splits["train"]
    assert len(pictures) == count
    assert _taken_by_a_worker(pictures) < 3 * 2**20
    assert _taken_by_a_worker(Listed(pictures)) > 6 * 2**20  # else the measure would see nothing


def test_config_names_every_argument_with_its_default() -> None:
    from omegaconf import OmegaConf

    node: Any = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[2] / "conf" / "data" / "table.yaml"))
    own = {field.name for field in dataclasses.fields(TableData)} - {f.name for f in dataclasses.fields(FolderData)}
    assert set(node) == {"defaults", "_target_", "root", "classes", *own}
    assert node["_target_"] == "frostline.data.TableData"
    defaults = TableData("t.csv")
    assert {name: node[name] for name in own - {"table"}} == {n: getattr(defaults, n) for n in own - {"table"}}
    assert node["root"] is defaults.root is None
