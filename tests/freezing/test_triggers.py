"""Triggers: how they are resolved, and what they count."""

from __future__ import annotations

import json
import math

import pytest

from frostline.errors import ConfigError
from frostline.freezing import Validation
from frostline.freezing.counters import GradientCounter, PlateauCounter, crosses, percentile
from frostline.freezing.phase import Plateau, Settle, Threshold
from frostline.freezing.triggers import resolve_plateau, resolve_settle, resolve_threshold
from frostline.specs import Mode, PlateauSpec, SettleSpec, ThresholdSpec

VALIDATION = Validation(("val/accuracy", "val/loss"), "val/accuracy", larger_is_better=True)
BY_LOSS = Validation(("val/accuracy", "val/loss"), "val/loss", larger_is_better=False)
NOTHING = Validation(every=0)
KEY = "freeze.phases.a.until.plateau"
NAN = math.nan


# --- plateau ----------------------------------------------------------------------------------------------------------


def test_a_plateau_watches_the_monitor_in_its_direction():
    assert resolve_plateau(PlateauSpec(4, 0.1), KEY, VALIDATION) == Plateau("val/accuracy", True, 4, 0.1)
    assert resolve_plateau(PlateauSpec(), KEY, BY_LOSS) == Plateau("val/loss", False, 3, 0.0)
    assert resolve_plateau(PlateauSpec(metric="val/loss"), KEY, BY_LOSS) == Plateau("val/loss", False, 3, 0.0)
    assert resolve_plateau(None, KEY, NOTHING) is None


@pytest.mark.parametrize("mode", [Mode.min, "min"])
def test_a_plateau_of_another_metric_states_its_direction(mode):
    assert resolve_plateau(PlateauSpec(metric="val/loss", mode=mode), KEY, VALIDATION).larger_is_better is False
    assert resolve_plateau(PlateauSpec(mode=mode), KEY, VALIDATION).larger_is_better is False


@pytest.mark.parametrize(
    ("spec", "validation", "says"),
    [
        (PlateauSpec(metric="val/acuracy"), VALIDATION, r"\.metric=val/acuracy is no metric.*\n.*'val/accuracy'"),
        (PlateauSpec(metric="lr"), VALIDATION, r"\.metric=lr is no metric.*\n.*val/accuracy, val/loss"),
        (PlateauSpec(metric="val/loss"), VALIDATION, r"\.metric=val/loss is not the monitor.*\n.*\.mode=max or .*min"),
        (PlateauSpec(0), VALIDATION, r"\.patience is 0"),
        (PlateauSpec(min_delta=-0.1), VALIDATION, r"\.min_delta is -0\.1"),
        (PlateauSpec(), NOTHING, r" watches a validation metric, but this run validates nothing"),
    ],
)
def test_refuses_a_plateau(spec, validation, says):
    with pytest.raises(ConfigError, match=KEY.replace(".", r"\.") + says):
        resolve_plateau(spec, KEY, validation)


def fires(plateau, values):
    counter = PlateauCounter()
    found = []
    for value in values:
        found.append(counter.fires(plateau, value))
        # what is counted survives a checkpoint
        counter = PlateauCounter(**json.loads(json.dumps(counter.state_dict())))
    return [i for i, fired in enumerate(found) if fired]


@pytest.mark.parametrize(
    ("larger", "patience", "min_delta", "values", "expected"),
    [
        # the first value is the best so far
        (True, 1, 0.0, [0.5], []),
        (True, 1, 0.0, [0.5, 0.6, 0.6], [2]),
        (True, 2, 0.0, [0.5, 0.4, 0.5, 0.6], [2]),
        (True, 2, 0.0, [0.5, 0.4, 0.6, 0.5, 0.5], [4]),
        # an improvement is counted from the best, not from the value before
        (True, 2, 0.0, [0.5, 0.3, 0.4], [2]),
        (False, 1, 0.0, [0.5, 0.4, 0.45], [2]),
        (False, 2, 0.0, [0.5, 0.4, 0.3, 0.2], []),
        # it is more than min_delta, not as much
        (True, 1, 0.25, [0.5, 0.75], [1]),
        (True, 1, 0.25, [0.5, 0.76], []),
        (False, 1, 0.25, [0.5, 0.25], [1]),
        (False, 1, 0.25, [0.5, 0.24], []),
        # small steps that each are too small do not add up to a new best until they do
        (True, 2, 0.25, [0.0, 0.125, 0.375, 0.5, 0.625], [4]),
        # NaN is no improvement and never the best
        (True, 2, 0.0, [NAN, NAN], [1]),
        (False, 2, 0.0, [NAN, 0.5, NAN, 0.6], [3]),
        (True, 1, 0.0, [0.5, NAN], [1]),
        (False, 2, 0.0, [0.5, NAN, 0.4, NAN, NAN], [4]),
        # an infinite loss is the worst, and any number after it improves
        (False, 1, 0.0, [math.inf, 9.0], []),
    ],
)
def test_a_plateau_fires(larger, patience, min_delta, values, expected):
    assert fires(Plateau("m", larger, patience, min_delta), values) == expected


# --- threshold --------------------------------------------------------------------------------------------------------


def test_a_threshold_has_one_side():
    key = "freeze.phases.a.until.threshold"
    assert resolve_threshold(ThresholdSpec(above=0.0), key, VALIDATION) == Threshold("val/accuracy", 0.0)
    assert resolve_threshold(ThresholdSpec("val/loss", below=0.5), key, VALIDATION) == Threshold("val/loss", 0.5, True)
    assert resolve_threshold(None, key, NOTHING) is None
    for spec, validation, says in (
        (ThresholdSpec(), VALIDATION, r"states neither 'above' nor 'below'.*\n.*threshold\.above=0\.9"),
        (ThresholdSpec(above=0.0, below=0.0), VALIDATION, "states 'above' and 'below'"),
        (ThresholdSpec("val/los", below=1.0), VALIDATION, r"\.metric=val/los is no metric of this run.*\n.*'val/loss'"),
        (ThresholdSpec(above=0.9), NOTHING, "watches a validation metric, but this run validates nothing"),
    ):
        with pytest.raises(ConfigError, match=r"freeze\.phases\.a\.until\.threshold ?" + says):
            resolve_threshold(spec, key, validation)


def test_a_threshold_is_crossed_where_it_is_reached():
    above, below = Threshold("m", 0.5), Threshold("m", 0.5, below=True)
    assert [crosses(above, value) for value in (0.4, 0.5, 0.6, NAN)] == [False, True, True, False]
    assert [crosses(below, value) for value in (0.4, 0.5, 0.6, NAN)] == [True, True, False, False]


# --- settled gradients ------------------------------------------------------------------------------------------------


def test_settling_is_resolved():
    key = "freeze.phases.a.walk.each.settle"
    assert resolve_settle(SettleSpec(), key, 7) == Settle(50.0, 7)
    assert resolve_settle(SettleSpec(25, 3), key, 7) == Settle(25, 3)
    assert resolve_settle(None, key, 7) is None
    for spec, says in (
        (SettleSpec(-1), r"\.percentile is -1"),
        (SettleSpec(100.5), r"\.percentile is 100\.5"),
        (SettleSpec(every=0), r"\.every is 0"),
    ):
        with pytest.raises(ConfigError, match=key.replace(".", r"\.") + says):
            resolve_settle(spec, key, 7)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3.0], 50, 3.0),
        ([1.0, 3.0], 0, 1.0),
        ([1.0, 3.0], 50, 2.0),
        ([1.0, 3.0], 100, 3.0),
        ([1.0, 2.0, 10.0], 50, 2.0),
        ([1.0, 2.0, 10.0], 75, 6.0),
        ([0.0, 1.0, 2.0, 3.0, 4.0], 30, 1.2),
    ],
)
def test_percentile(values, share, expected):
    assert percentile(values, share) == pytest.approx(expected)


def settled(settle, order, *steps):
    """How many of ``order`` have settled after each of ``steps``."""
    counter, found = GradientCounter(), []
    for norms in steps:
        counter.add(norms)
        found.append(counter.settled(settle, order))
        counter = GradientCounter(**json.loads(json.dumps(counter.state_dict())))
    return found


def test_a_worked_example():
    """Intervals of two steps.

    Means of the first: a 2, b 4, c 10, h 8; of the second: a 2.1, b 5, c 9, h 4. Changes: a 0.05, b 0.25, c 0.1,
    h 0.5; their median 0.175. Of a, b, c only a has settled with all before it: c has, but b before it has not.
    """
    steps = (
        {"a": 1.0, "b": 4.0, "c": 10.0, "h": 16.0},
        {"a": 3.0, "b": 4.0, "c": 10.0, "h": 0.0},
        {"a": 2.0, "b": 6.0, "c": 9.0, "h": 4.0},
        {"a": 2.2, "b": 4.0, "c": 9.0, "h": 4.0},
    )
    assert settled(Settle(50, 2), "abc", *steps) == [0, 0, 0, 1]
    assert settled(Settle(50, 2), "cba", *steps) == [0, 0, 0, 1]
    assert settled(Settle(50, 2), "bca", *steps) == [0, 0, 0, 0]
    # at the 70th percentile, 0.1 over 0.25, b settles and with it c
    assert settled(Settle(70, 2), "abc", *steps) == [0, 0, 0, 3]
    assert settled(Settle(0, 2), "abc", *steps) == [0, 0, 0, 1]
    assert settled(Settle(100, 2), "abch", *steps) == [0, 0, 0, 4]


def test_each_interval_is_held_against_the_one_before():
    steps = [{"a": a, "h": h} for a, h in ((1, 1), (4, 2), (4, 4))]
    # changes: a 3, h 1, median 2; then a 0, h 1, median 0.5
    assert settled(Settle(50, 1), "a", *steps) == [0, 0, 1]


def test_a_group_that_has_dropped_is_no_longer_counted():
    steps = [{"a": 1.0, "b": 1.0, "h": 1.0}, {"a": 1.0, "b": 2.0, "h": 4.0}, {"b": 2.2, "h": 5.2}]
    # changes: a 0, b 1, h 3: median 1, so that a and b have settled; then b 0.1, h 0.3: median 0.2
    assert settled(Settle(50, 1), "ab", *steps[:2]) == [0, 2]
    assert settled(Settle(40, 1), "ab", *steps[:2]) == [0, 1]
    assert settled(Settle(40, 1), "b", *steps) == [0, 0, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_counts_as_none(bad):
    counter = GradientCounter()
    for norms in ({"a": 2.0}, {"a": bad}):
        counter.add(norms)
    assert counter.sums == {"a": 2.0}
    assert counter.steps == 2


def test_a_group_without_gradients_before_has_no_change_and_has_not_settled():
    steps = [{"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": 0.0, "b": 1.0}]
    assert settled(Settle(100, 1), "ab", *steps) == [0, 0, 0]
    assert settled(Settle(100, 1), "b", *steps) == [0, 0, 1]
