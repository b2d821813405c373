from __future__ import annotations

import pytest

from frostline.freezing import describe
from frostline.specs import Curve, LrScaleSpec, LrSpec, PhaseLrSpec, PhaseSpec, UntilSpec, WarmupSpec


@pytest.fixture
def description(make_schedule):
    return describe(
        make_schedule(
            LrSpec(curve=Curve.linear),
            lr_decay=0.5,
            lr_scale=LrScaleSpec(head=2.0, body=0.1),
            probe=PhaseSpec("head", UntilSpec(epochs=2)),
            norms=PhaseSpec("head + type:norm", UntilSpec(steps=5)),
            full=PhaseSpec("all - bottom:1", lr=PhaseLrSpec(scale=0.1, warmup=WarmupSpec(steps=4))),
        )
    )


def test_depth_table(description):
    rows = description.groups
    assert [row.name for row in rows] == ["stem", "blocks.0", "blocks.1", "blocks.2", "head"]
    assert [row.depth for row in rows] == [0, 1, 2, 3, 4]
    assert rows[0].first_parameter == "scale"
    # scale 4, convolution 3 * 4 * 9 + 4, batch norm 4 + 4; block: 4 * 4 * 9 + 4 + 8; head: 4 * 2 + 2
    assert [row.parameters for row in rows] == [124, 156, 156, 156, 10]
    assert [row.lr_factor for row in rows] == pytest.approx([0.1 / 16, 0.1 / 8, 0.1 / 4, 0.1 / 2, 2.0])
    assert [row.phases for row in rows] == [(), ("full",), ("full",), ("full",), ("probe", "norms", "full")]
    assert [row.partly for row in rows] == [("norms",)] * 4 + [()]


def test_phase_table(description):
    probe, norms, full = description.phases
    assert (probe.start, probe.end, norms.start, norms.end, full.start, full.end) == (0, 20, 20, 25, 25, 100)
    assert (probe.parameters, norms.parameters, full.parameters) == (10, 10 + 4 * 8, 602 - 124)
    assert probe.share == pytest.approx(10 / 602)
    assert (probe.frost_line, probe.frost_line_name) == (4, "head")
    assert (norms.frost_line, norms.frost_line_name) == (0, "stem")
    assert (full.frost_line, full.frost_line_name) == (1, "blocks.0")
    assert (full.lr_scale, full.curve, full.warmup) == (0.1, "linear", 4)
