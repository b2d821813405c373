"""What the stages of a walk train, and when each of them ends."""

from __future__ import annotations

import pytest

from frostline.freezing.phase import Pace, Phase, PhaseLr, Plateau, Stage
from frostline.freezing.walk import walk_stages
from frostline.specs import WalkMode, WalkOrder, WalkSpec
from frostline.types import DepthGroup

# two parameters in each of four groups of the body, and a head
GROUPS = tuple(DepthGroup(i, name, (f"{name}.w", f"{name}.b"), is_head=name == "h") for i, name in enumerate("0123h"))
ALL = frozenset(name for group in GROUPS for name in group.parameters)
DOWN, UP = WalkOrder.top_down, WalkOrder.bottom_up
ADD, SOLO, DROP = WalkMode.add, WalkMode.solo, WalkMode.drop


def stages(order, mode, by=1, selected=ALL, kept=frozenset()):
    """Each stage as a string of the groups of which both parameters learn."""
    found = walk_stages(WalkSpec(order, by, mode), selected, kept, GROUPS)
    return ["".join(group.name for group in GROUPS if trained.issuperset(group.parameters)) for trained in found]


@pytest.mark.parametrize(
    ("order", "mode", "by", "expected"),
    [
        (DOWN, ADD, 1, ["h", "3h", "23h", "123h", "0123h"]),
        (UP, ADD, 1, ["0", "01", "012", "0123", "0123h"]),
        (DOWN, SOLO, 1, ["h", "3", "2", "1", "0"]),
        (UP, SOLO, 1, ["0", "1", "2", "3", "h"]),
        (DOWN, DROP, 1, ["0123h", "0123", "012", "01", "0"]),
        (UP, DROP, 1, ["0123h", "123h", "23h", "3h", "h"]),
        (DOWN, ADD, 2, ["3h", "123h", "0123h"]),
        (UP, SOLO, 2, ["01", "23", "h"]),
        (UP, DROP, 2, ["0123h", "23h", "h"]),
        (DOWN, DROP, 3, ["0123h", "01"]),
        (DOWN, ADD, 5, ["0123h"]),
        (UP, SOLO, 99, ["0123h"]),
    ],
)
def test_stages(order, mode, by, expected):
    assert stages(order, mode, by) == expected


def test_plain_strings_stand_for_the_enums():
    """A phase that is added on the command line may hold them."""
    assert stages("bottom_up", "drop", 4) == ["0123h", "h"]


def test_a_walk_goes_through_what_is_selected_alone():
    selected = frozenset({"0.b", "2.w", "2.b", "h.w"})
    found = walk_stages(WalkSpec(DOWN, 1, ADD), selected, frozenset(), GROUPS)
    assert found == ({"h.w"}, {"h.w", "2.w", "2.b"}, selected)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(ADD, ["0h", "01h", "012h", "0123h"]), (SOLO, ["0h", "1h", "2h", "3h"]), (DROP, ["0123h", "123h", "23h", "3h"])],
)
def test_what_is_kept_learns_in_every_stage(mode, expected):
    head = frozenset(GROUPS[-1].parameters)
    assert stages(UP, mode, selected=ALL - head, kept=head) == expected


def test_nothing_to_walk_through_has_no_stages():
    assert walk_stages(WalkSpec(), frozenset(), frozenset({"h.w"}), GROUPS) == ()


# --- when a stage ends ------------------------------------------------------------------------------------------------


def phase(pace, count=4, plateau=None, **more):
    """Groups drop from the stem up."""
    held = [Stage(frozenset(f"{name}.w" for name in names), tuple(names), 0) for names in ("0123", "123", "23", "3")]
    return Phase("p", tuple(held[:count]), None, PhaseLr(), pace=pace, stage_plateau=plateau, **more)


@pytest.mark.parametrize(
    ("pace", "length", "expected"),
    [
        (Pace(steps=7), 100, [0, 7, 14, 21]),
        (Pace(fraction=0.25), 100, [0, 25, 50, 75]),
        (Pace(fraction=0.25), 10, [0, 2, 5, 8]),
        (Pace(fraction=0.125, hold=0.5), 80, [0, 50, 60, 70]),
        (Pace(steps=5, hold=0.1), 80, [0, 13, 18, 23]),
    ],
)
def test_pace(pace, length, expected):
    assert [pace.reached(stage, length) for stage in range(4)] == expected


def test_the_clock_ends_a_stage_and_the_last_lasts_to_the_end():
    p = phase(Pace(steps=7))
    assert p.moves_by_clock
    assert [p.stage_end(stage, 10, 10 + 7 * stage, 50) for stage in range(4)] == [17, 24, 31, 60]


def test_a_cap_counts_from_the_stage_s_own_start_where_a_metric_may_move_it():
    p = phase(Pace(steps=7, hold=0.1), plateau=Plateau("val/loss", False, 1))
    assert not p.moves_by_clock
    assert p.stage_end(0, 10, 10, 50) == 10 + 7 + 5
    assert p.stage_end(1, 10, 13, 50) == 13 + 7
    assert p.stage_end(3, 10, 13, 50) == 60


def test_without_a_pace_only_the_last_stage_has_an_end():
    p = phase(None, plateau=Plateau("val/loss", False, 1))
    assert [p.stage_end(stage, 0, 0, 50) for stage in range(4)] == [None, None, None, 50]


def test_the_step_of_a_drop_is_known_by_the_clock():
    p = phase(Pace(steps=7))
    assert [p.drop_step(name, 10, 50) for name in "0123"] == [17, 24, 31, None]
    assert phase(Pace(steps=7), plateau=Plateau("val/loss", False, 1)).drop_step("0", 10, 50) is None
    # a group that does not learn at first has nothing to drop
    assert p.drop_step("head", 10, 50) is None


def test_what_a_phase_trains_is_what_its_stages_train():
    p = phase(Pace(steps=7), count=2)
    assert p.trainable == {"0.w", "1.w", "2.w", "3.w"}
    assert p.frost_line == 0
