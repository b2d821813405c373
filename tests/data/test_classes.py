from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from frostline.data.classes import class_order, encode_labels, known_classes
from frostline.errors import ConfigError, DataError

ODD = ["True", "1_000", "007", "1e5", "NA", "null", "~", '"quoted"', "a b", "a, b", "a=b", "é", "日本"]


def place(index: int) -> str:
    return f"row {index + 1}"


def encoded(values: Any, known: Any = None) -> tuple[tuple[str, ...], list[int]]:
    classes, labels = encode_labels(values, place=place, known=known)
    assert labels.dtype == np.int64
    return classes, labels.tolist()


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10", "2", "1", "2"], ("1", "2", "10")),
        (["10", "2", "-1", "0"], ("-1", "0", "2", "10")),
        (["10", "2", "a"], ("10", "2", "a")),
        (["10", "2", "01"], ("01", "10", "2")),  # 01 and 1 are two names
        (["10", "2", "1_0"], ("10", "1_0", "2")),
        (["10", "2", "٣"], ("10", "2", "٣")),
        ([], ()),
    ],
)
def test_names_are_in_the_order_of_strings_or_of_numbers(names: list[str], order: tuple[str, ...]) -> None:
    assert class_order(iter(names)) == order


def test_text_is_taken_letter_by_letter() -> None:
    classes, labels = encoded(ODD)
    assert classes == tuple(sorted(ODD))
    assert [classes[label] for label in labels] == ODD
    assert encoded([" a", "a"])[0] == (" a", "a")


@pytest.mark.parametrize(
    "values",
    [
        [2, 10, 1, 2],
        ["2", "10", "1", "2"],
        np.array([2, 10, 1, 2], dtype=np.uint8),
        pa.array(["2", "10", "1", "2"]).dictionary_encode(),
        pa.array(["2", "10", "1", "2"], pa.large_string()),
        pa.chunked_array([pa.array(["2"]), pa.array(["10", "1"]), pa.array(["2"])]),
        pa.chunked_array([pa.array(["2"]).dictionary_encode(), pa.array(["10", "1", "2"]).dictionary_encode()]),
    ],
    ids=str,
)
def test_each_form_of_a_column_gives_the_same(values: Any) -> None:
    assert encoded(values) == (("1", "2", "10"), [1, 2, 0, 1])


def test_truth_values_are_named_as_in_a_csv_file_of_them() -> None:
    assert encoded([True, False]) == (("False", "True"), [1, 0])


def test_composed_and_decomposed_letters_are_one_class() -> None:
    assert encoded(["e\u0301", "\u00e9", "a"]) == (("a", "\u00e9"), [1, 1, 0])
    assert encoded(["e\u0301", "a"], ["a", "\u00e9"]) == (("a", "\u00e9"), [1, 0])
    assert encoded(["\u00e9", "a"], ["a", "e\u0301"]) == (("a", "\u00e9"), [1, 0])


def test_the_order_of_a_list_is_kept_and_what_does_not_occur_stays() -> None:
    assert encoded(["a", "c"], ["c", "b", "a"]) == (("c", "b", "a"), [2, 0])


@pytest.mark.parametrize("values", [[0, 1, 1], ["0", "1", "1"]])
def test_integers_are_positions_in_a_list_of_names(values: Any) -> None:
    assert encoded(values, ["dog", "cat"]) == (("dog", "cat"), [0, 1, 1])


@pytest.mark.parametrize("values", [[2, 1, 10], ["2", "1", "10"]])
def test_integers_are_names_where_the_list_has_them(values: Any) -> None:
    assert encoded(values, [10, 1, "2"]) == (("10", "1", "2"), [2, 1, 0])
    with pytest.raises(DataError, match="label '0' of row 2 is none of the 2 classes"):
        encoded([1, 0], ["1", "2"])


def test_no_rows_have_no_classes() -> None:
    assert encoded([]) == ((), [])
    assert encoded(pa.chunked_array([], pa.string()), ["a"]) == (("a",), [])


@pytest.mark.parametrize(
    ("values", "known", "problem", "mend"),
    [
        (["a", "", "b", ""], None, "label of row 2 is empty, and 1 more", "Fill it in"),
        (["a", " "], None, "label of row 2 is empty", "Fill it in"),
        (["a", None], ["a"], "label of row 2 is empty", "Fill it in"),
        ([None, None], None, "label of row 1 is empty, and 1 more", "Fill it in"),
        ([1.0, None], None, "label of row 2 is empty", "Fill it in"),
        (["cat", "dgo", "cow", "dgo"], ["cat", "dog"], "'dgo' of row 2 is none of the 2 classes, and 2 more", "'dog'"),
        (["zebra"], [f"c{index:03d}" for index in range(999)], "'zebra' of row 1", "c019. Mend"),
        (["c998x"], [f"c{index:03d}" for index in range(999)], "'c998x' of row 1", "Did you mean 'c998'"),
        ([0, 2], ["cat", "dog"], "'2' of row 2 is none", "positions 0 to 1"),
        ([0, -1], ["cat", "dog"], "'-1' of row 2 is none", "positions 0 to 1"),
        ([0.5], None, "of type double", "text, such as class names, or integers"),
        ([b"a"], None, "of type binary", "text"),
        (["a", 1], None, "several kinds", "text"),
    ],
    ids=str,
)
def test_what_is_no_label_is_named(values: Any, known: Any, problem: str, mend: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        encoded(values, known)
    assert mend in str(caught.value.mend)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("known", "problem"),
    [
        ([True, "a"], "holds True, which is no class name"),
        ([None, "a"], "holds None"),
        ([1.5], "holds 1.5"),
        (["a", ""], "an empty name"),
        (["a", "b", "a"], "'a' twice"),
        (["1", 1], "'1' twice"),
        (["e\u0301", "\u00e9"], "twice"),
        ([], "is empty"),
    ],
    ids=str,
)
def test_what_is_no_list_of_classes_is_named(known: list[object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        known_classes(known)


def test_a_million_labels_do_not_take_longer_than_a_loop_over_them() -> None:
    names = [f"class {index % 1000}" for index in range(1_000_000)]
    column = pa.array(names)
    start = time.perf_counter()
    seen: dict[str, int] = {}
    for name in names:
        seen.setdefault(name, len(seen))
        str(name).strip()
    loop = time.perf_counter() - start
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        encode_labels(column, place=place)
        taken.append(time.perf_counter() - start)
    assert min(taken) < loop
