"""From the phases of a config to those of a run: what each trains, and what is refused before training."""

from __future__ import annotations

import re

import pytest
import torch

from frostline.errors import ConfigError
from frostline.freezing import FreezeSchedule, Validation, Warmup
from frostline.freezing.phase import Pace, Plateau, Settle, Threshold
from frostline.specs import (
    BatchNormAffine,
    BatchNormMode,
    BatchNormSpec,
    EachSpec,
    FreezeSpec,
    LrSpec,
    Mode,
    OptimizerState,
    PhaseLrSpec,
    PhaseSpec,
    PlateauSpec,
    SettleSpec,
    StartFrom,
    ThresholdSpec,
    UntilSpec,
    WalkMode,
    WalkOrder,
    WalkSpec,
    WarmupSpec,
)

BOTH = Validation(("val/accuracy", "val/loss"), "val/accuracy", larger_is_better=True)
NOTHING = Validation(every=0)
DROP = {"order": WalkOrder.bottom_up, "mode": WalkMode.drop}
HEAD = {"head.weight", "head.bias"}
NORMS = {f"{m}.{k}" for m in ("stem.1", *(f"blocks.{i}.bn" for i in range(3))) for k in ("weight", "bias")}


def walk(until=None, train=None, **options):
    return PhaseSpec(train, walk=WalkSpec(**options), until=until)


def sets(schedule):
    return [stage.trainable for phase in schedule.phases for stage in phase.stages]


# --- what a phase becomes ---------------------------------------------------------------------------------------------


def test_every_field_arrives(make_schedule):
    bn = BatchNormSpec(frozen=BatchNormMode.batch, trainable=BatchNormMode.eval)
    first, second = make_schedule(
        validation=BOTH,
        a=PhaseSpec(
            "head",
            until=UntilSpec(
                epochs=3,
                plateau=PlateauSpec(4, 0.1, "val/loss", Mode.min),
                threshold=ThresholdSpec("val/loss", below=0.2),
            ),
            bn=bn,
        ),
        b=PhaseSpec(
            "all",
            walk=WalkSpec(
                **DROP,
                hold=0.25,
                each=EachSpec(steps=4, plateau=PlateauSpec(2), settle=SettleSpec(30.0)),
            ),
            start=StartFrom.best,
            optimizer=OptimizerState.reset,
            rewarm=WarmupSpec(epochs=0.5),
        ),
    ).phases
    assert (first.plateau, first.threshold) == (Plateau("val/loss", False, 4, 0.1), Threshold("val/loss", 0.2, True))
    assert (first.bn, second.bn) == (bn, BatchNormSpec())
    assert (first.pace, first.starts_from_best, first.resets_optimizer, first.rewarm) == (None, False, False, Warmup())
    assert (second.pace, second.stage_plateau) == (Pace(steps=4, hold=0.25), Plateau("val/accuracy", True, 2))
    assert (second.settle, second.rewarm, second.anneal) == (Settle(30.0, 10), Warmup(steps=5), False)
    assert (second.starts_from_best, second.resets_optimizer) == (True, True)


def test_plain_strings_stand_for_the_enums(make_schedule):
    """A phase that is added on the command line may hold them."""
    first, second = make_schedule(
        a=PhaseSpec("head", until=UntilSpec(epochs=1), start="last", optimizer="keep"),
        b=PhaseSpec("all", start="best", optimizer="reset", bn=BatchNormSpec("batch", "batch", "freeze")),
    ).phases
    assert (first.starts_from_best, first.resets_optimizer) == (False, False)
    assert (second.starts_from_best, second.resets_optimizer) == (True, True)
    assert second.trainable.isdisjoint(NORMS)


@pytest.mark.parametrize(
    ("each", "hold", "pace"),
    [
        (None, 0.0, Pace(fraction=0.2)),
        (EachSpec(), 0.0, Pace(fraction=0.2)),
        (EachSpec(epochs=1), 0.0, Pace(steps=10)),
        (EachSpec(epochs=1, steps=7), 0.0, Pace(steps=7)),
        (EachSpec(fraction=0.05), 0.0, Pace(fraction=0.05)),
        (EachSpec(fraction=0.05, steps=4), 0.1, Pace(steps=4, hold=0.1)),
        (EachSpec(fraction=0.05, steps=6), 0.1, Pace(steps=6, hold=0.1)),
        (EachSpec(plateau=PlateauSpec()), 0.0, None),
    ],
)
def test_the_pace_of_a_walk(make_schedule, each, hold, pace):
    (phase,) = make_schedule(a=walk(each=each, hold=hold)).phases
    assert phase.pace == pace


def test_stages_know_their_groups_and_frost_line(make_schedule):
    (phase,) = make_schedule(a=walk(train="type:norm", order=WalkOrder.bottom_up, keep="head")).phases
    assert [stage.groups for stage in phase.stages] == [
        ("stem", "head"),
        ("stem", "blocks.0", "head"),
        ("stem", "blocks.0", "blocks.1", "head"),
        ("stem", "blocks.0", "blocks.1", "blocks.2", "head"),
    ]
    assert phase.stages[0].trainable == {"stem.1.weight", "stem.1.bias"} | HEAD
    assert [stage.frost_line for stage in phase.stages] == [0, 0, 0, 0]
    down = make_schedule(a=walk(train="body")).phases[0]
    assert [stage.frost_line for stage in down.stages] == [3, 2, 1, 0]


def test_scale_and_shift_of_batch_norms_have_a_policy_of_their_own(make_schedule, small):
    everything = {name for name, _ in small[0].named_parameters()}

    def trained(train, affine):
        return sets(make_schedule(a=PhaseSpec(train), bn=BatchNormSpec(affine=affine)))[0]

    assert trained("head", BatchNormAffine.train) == HEAD | NORMS
    assert trained("head + top:1", BatchNormAffine.freeze) == HEAD | {"blocks.2.conv.weight", "blocks.2.conv.bias"}
    assert trained("all", BatchNormAffine.freeze) == everything - NORMS
    assert trained("head + type:norm", BatchNormAffine.follow) == HEAD | NORMS


def test_a_phase_s_own_batch_norm_policy_goes_before_the_schedule_s(make_schedule):
    schedule = make_schedule(
        bn=BatchNormSpec(affine=BatchNormAffine.train),
        a=PhaseSpec("head", until=UntilSpec(steps=5)),
        b=PhaseSpec("head", bn=BatchNormSpec()),
    )
    assert sets(schedule) == [HEAD | NORMS, HEAD]


def test_only_what_may_learn_does(make_schedule):
    allowed = frozenset(HEAD | {"blocks.2.conv.weight", "scale"})
    schedule = make_schedule(allowed=allowed, a=PhaseSpec("head + top:2", until=UntilSpec(steps=5)), b=PhaseSpec("all"))
    assert sets(schedule) == [HEAD | {"blocks.2.conv.weight"}, allowed]
    assert schedule.phases[0].stages[0].groups == ("blocks.2", "head")
    with pytest.raises(ConfigError, match=r"freeze\.phases\.a trains nothing"):
        make_schedule(allowed=allowed, a=PhaseSpec("path:blocks.1"))


def test_a_step_of_a_walk_over_what_may_not_learn_is_none(make_schedule):
    conv = {"blocks.2.conv.weight", "blocks.2.conv.bias"}
    (phase,) = make_schedule(
        bn=BatchNormSpec(affine=BatchNormAffine.freeze),
        a=walk(train="head + path:blocks.2 + type:norm", mode=WalkMode.solo),
    ).phases
    assert [stage.trainable for stage in phase.stages] == [HEAD, conv]
    assert phase.pace == Pace(fraction=0.5)
    (phase,) = make_schedule(allowed=frozenset(HEAD | conv), a=walk()).phases
    assert [stage.trainable for stage in phase.stages] == [HEAD, HEAD | conv]


def test_what_is_new_may_be_selected(make_schedule):
    new = frozenset({"head.weight", "blocks.1.bn.bias"})
    assert sets(make_schedule(new=new, a=PhaseSpec("new"))) == [new]
    with pytest.raises(ConfigError, match=r"freeze\.phases\.a\.train: .*'new'"):
        make_schedule(a=PhaseSpec("new"))


def test_a_model_on_the_meta_device_resolves(small):
    model, groups = small
    spec = FreezeSpec(phases={"a": walk(UntilSpec(fraction=0.5)), "b": PhaseSpec("type:norm@top:2")})
    here = FreezeSchedule(spec, LrSpec(), groups, model, steps_per_epoch=10, total_steps=100)
    there = FreezeSchedule(spec, LrSpec(), groups, model.to(torch.device("meta")), steps_per_epoch=10, total_steps=100)
    assert there.phases == here.phases


# --- what is refused --------------------------------------------------------------------------------------------------

FREEZE = BatchNormSpec(affine=BatchNormAffine.freeze)
FULL = PhaseSpec("all")
CAP = UntilSpec(epochs=3)
FAULTS = {
    "nothing to train": ({"a": PhaseSpec()}, r"freeze\.phases\.a\.train is missing.*'head' or 'all'"),
    "an empty selector": ({"a": PhaseSpec("")}, r"freeze\.phases\.a\.train: Unknown selector ''"),
    "an empty selector of a walk": ({"a": walk(train="")}, r"freeze\.phases\.a\.train: Unknown selector ''"),
    # BUG there too: `if phase.walk.keep`
    "an empty selector of what is kept": ({"a": walk(keep="")}, r"freeze\.phases\.a\.walk\.keep: Unknown selector ''"),
    "no such path": (
        {"a": PhaseSpec("head + path:block.2")},
        r"freeze\.phases\.a\.train: .*'path:block\.2' matches nothing.*'blocks\.2'",
    ),
    "no such depth": ({"a": PhaseSpec("top:5")}, r"freeze\.phases\.a\.train: .*'top:5' matches nothing.*blocks\.2"),
    "nothing left": ({"a": PhaseSpec("head - all")}, r"freeze\.phases\.a\.train: .*leaves no parameter"),
    "a pattern": (
        {"a": PhaseSpec("re:blocks.(")},
        r"freeze\.phases\.a\.train: The selector 're:blocks\.\(' is no regular expression",
    ),
    "a pattern of a walk": ({"a": walk(train="re:*")}, r"freeze\.phases\.a\.train: .*'re:\*' is no regular expression"),
    "a pattern that matches nothing": ({"a": PhaseSpec("re:blok.*")}, r"freeze\.phases\.a\.train: .*matches no param"),
    "what a walk keeps": ({"a": walk(keep="haed")}, r"freeze\.phases\.a\.walk\.keep: .*'haed'.*Did you mean 'head'"),
    "a walk that keeps all": (
        {"a": walk(train="head", keep="all")},
        r"freeze\.phases\.a\.walk\.keep='all' keeps all of freeze\.phases\.a\.train.*Leave out freeze\.phases\.a\.walk",
    ),
    "an unknown metric": (
        {"a": PhaseSpec("all", until=UntilSpec(plateau=PlateauSpec(metric="val/acc")))},
        r"freeze\.phases\.a\.until\.plateau\.metric=val/acc is no metric.*Did you mean 'val/accuracy'",
    ),
    "an unknown metric of a threshold": (
        {"a": PhaseSpec("all", until=UntilSpec(threshold=ThresholdSpec("val/los", below=1)))},
        r"freeze\.phases\.a\.until\.threshold\.metric=val/los is no metric.*Did you mean 'val/loss'",
    ),
    "an unknown metric of a walk": (
        {"a": walk(each=EachSpec(plateau=PlateauSpec(metric="val/lss")))},
        r"freeze\.phases\.a\.walk\.each\.plateau\.metric=val/lss is no metric.*Did you mean 'val/loss'",
    ),
    "an unknown direction": (
        {"a": PhaseSpec("all", until=UntilSpec(plateau=PlateauSpec(metric="val/loss")))},
        r"freeze\.phases\.a\.until\.plateau\.metric=val/loss is not the monitor.*\.mode=max or .*plateau\.mode=min",
    ),
    "no patience": (
        {"a": PhaseSpec("all", until=UntilSpec(plateau=PlateauSpec(0)))},
        r"freeze\.phases\.a\.until\.plateau\.patience is 0",
    ),
    "a threshold without a side": (
        {"a": PhaseSpec("all", until=UntilSpec(threshold=ThresholdSpec()))},
        r"freeze\.phases\.a\.until\.threshold states neither",
    ),
    "a threshold with both": (
        {"a": PhaseSpec("all", until=UntilSpec(threshold=ThresholdSpec(above=1, below=0)))},
        r"freeze\.phases\.a\.until\.threshold states 'above' and 'below'",
    ),
    "by nothing": ({"a": walk(by=0)}, r"freeze\.phases\.a\.walk\.by is 0"),
    "negative hold": ({"a": walk(hold=-0.1)}, r"freeze\.phases\.a\.walk\.hold is -0\.1"),
    "all hold": ({"a": walk(hold=1.0)}, r"freeze\.phases\.a\.walk\.hold is 1\.0"),
    "no epochs each": ({"a": walk(each=EachSpec(epochs=0))}, r"freeze\.phases\.a\.walk\.each\.epochs is 0"),
    "no steps each": ({"a": walk(each=EachSpec(steps=-2))}, r"freeze\.phases\.a\.walk\.each\.steps is -2"),
    "no share each": ({"a": walk(each=EachSpec(fraction=0.0))}, r"freeze\.phases\.a\.walk\.each\.fraction is 0\.0"),
    "a whole share each": (
        {"a": walk(each=EachSpec(fraction=1.0))},
        r"freeze\.phases\.a\.walk\.each\.fraction is 1\.0",
    ),
    "settle that drops nothing": (
        {"a": walk(each=EachSpec(settle=SettleSpec()))},
        r"freeze\.phases\.a\.walk\.each\.settle drops depth groups.*freeze\.phases\.a\.walk\.mode=drop",
    ),
    "settle alone": (
        {"a": walk(mode=WalkMode.solo, each=EachSpec(settle=SettleSpec()))},
        r"freeze\.phases\.a\.walk\.each\.settle drops depth groups",
    ),
    "percentile": (
        {"a": walk(**DROP, each=EachSpec(settle=SettleSpec(percentile=101)))},
        r"freeze\.phases\.a\.walk\.each\.settle\.percentile is 101",
    ),
    "an interval of nothing": (
        {"a": walk(**DROP, each=EachSpec(settle=SettleSpec(every=0)))},
        r"freeze\.phases\.a\.walk\.each\.settle\.every is 0",
    ),
    "anneal what does not drop": (
        {"a": walk(anneal=True)},
        r"freeze\.phases\.a\.walk\.anneal is for groups that drop.*walk\.mode=drop, or .*\.walk\.anneal=false",
    ),
    "anneal by gradients": (
        {"a": walk(**DROP, anneal=True, each=EachSpec(settle=SettleSpec()))},
        r"freeze\.phases\.a\.walk\.anneal needs to know when a group drops",
    ),
    "anneal by a metric": (
        {"a": walk(**DROP, anneal=True, each=EachSpec(plateau=PlateauSpec(), epochs=1))},
        r"freeze\.phases\.a\.walk\.anneal needs to know when a group drops.*freeze\.phases\.a\.walk\.each\.epochs",
    ),
    "a walk that does not fit": (
        {"a": walk(each=EachSpec(epochs=3, steps=25))},
        r"freeze\.phases\.a\.walk has 5 stages of 25 optimizer steps, but phase 'a' has 100.*\.walk\.by",
    ),
    "a walk by shares that does not fit": (
        {"a": walk(each=EachSpec(fraction=0.25))},
        r"freeze\.phases\.a\.walk has 5 stages of 0\.25 of the phase",
    ),
    "a walk that holds too long": (
        {"a": walk(each=EachSpec(steps=20), hold=0.25)},
        r"freeze\.phases\.a\.walk has 5 stages of 20 optimizer steps",
    ),
    "more stages than steps": (
        {"a": walk(until=UntilSpec(steps=4)), "b": FULL},
        r"freeze\.phases\.a\.walk has 5 stages of 0\.2 of the phase, but phase 'a' has 4 optimizer steps",
    ),
    "a capped walk that does not fit": (
        {"a": walk(until=CAP, each=EachSpec(epochs=1, plateau=PlateauSpec())), "b": FULL},
        r"freeze\.phases\.a\.walk has 5 stages of 10 optimizer steps, but phase 'a' has 30",
    ),
    "the best of nothing": (
        {"a": PhaseSpec("all", start=StartFrom.best)},
        r"freeze\.phases\.a\.start=best: there is no phase before the first.*freeze\.phases\.a\.start=last",
    ),
    "the best without a validation": (
        {"a": PhaseSpec("head", until=UntilSpec(steps=9)), "b": PhaseSpec("all", start=StartFrom.best)},
        r"freeze\.phases\.b\.start=best: there is no validation in phase 'a', from step 0 to 9.*phase 'a'",
    ),
    "the best between two validations": (
        {
            "a": PhaseSpec("head", until=UntilSpec(steps=10)),
            "b": PhaseSpec("body", until=UntilSpec(steps=9)),
            "c": PhaseSpec("all", start=StartFrom.best),
        },
        r"freeze\.phases\.c\.start=best: there is no validation in phase 'b', from step 10 to 19",
    ),
    "the best of a phase that a metric may move off its validation": (
        {
            "a": PhaseSpec("head", until=UntilSpec(steps=17, plateau=PlateauSpec(1))),
            "b": PhaseSpec("body", until=UntilSpec(steps=5)),
            "c": PhaseSpec("all", start=StartFrom.best),
        },
        r"freeze\.phases\.c\.start=best",
    ),
    "rewarm that is too long": (
        {"a": PhaseSpec("all", rewarm=WarmupSpec(steps=101))},
        r"freeze\.phases\.a\.rewarm\.steps=101 is 101 optimizer steps, but phase 'a' has 100",
    ),
    "rewarm stated twice": (
        {"a": PhaseSpec("all", rewarm=WarmupSpec(steps=1, epochs=1.0))},
        r"freeze\.phases\.a\.rewarm states steps and epochs",
    ),
    "batch norms that leave nothing": (
        {"a": PhaseSpec("type:norm")},
        r"freeze\.phases\.a trains nothing.*freeze\.bn\.affine=freeze",
    ),
    "batch norms that leave a walk nothing": (
        {"a": walk(train="type:norm", mode=WalkMode.solo)},
        r"freeze\.phases\.a trains nothing.*freeze\.bn\.affine=freeze",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_refuses(make_schedule, case):
    phases, says = FAULTS[case]
    with pytest.raises(ConfigError) as caught:
        make_schedule(validation=BOTH, bn=FREEZE if case.startswith("batch norms") else None, **phases)
    assert re.search(says, str(caught.value), re.DOTALL), str(caught.value)
    assert "faults in" not in str(caught.value)
    assert caught.value.mend


@pytest.mark.parametrize(
    ("phase", "key"),
    [
        (PhaseSpec("all", until=UntilSpec(plateau=PlateauSpec())), "until.plateau"),
        (PhaseSpec("all", until=UntilSpec(threshold=ThresholdSpec(above=1))), "until.threshold"),
        (walk(each=EachSpec(plateau=PlateauSpec())), "walk.each.plateau"),
    ],
)
def test_a_metric_needs_a_validation(make_schedule, phase, key):
    with pytest.raises(ConfigError, match=rf"freeze\.phases\.a\.{key} watches .* validates nothing.*\n.*Leave out"):
        make_schedule(a=phase, validation=NOTHING)


def test_the_best_needs_a_validation(make_schedule):
    phases = {"a": PhaseSpec("head", until=UntilSpec(epochs=2)), "b": PhaseSpec("all", start=StartFrom.best)}
    assert make_schedule(**phases).phases[1].starts_from_best
    for validation in (NOTHING, Validation(every=3)):
        with pytest.raises(ConfigError, match=r"freeze\.phases\.b\.start=best: there is no validation in phase 'a'"):
            make_schedule(**phases, validation=validation)


def test_the_best_may_come_from_a_validation_at_the_very_end_of_a_phase(make_schedule):
    schedule = make_schedule(
        a=PhaseSpec("head", until=UntilSpec(steps=15)),
        b=PhaseSpec("body", until=UntilSpec(steps=5)),
        c=PhaseSpec("all", start=StartFrom.best),
    )
    assert schedule.phases[2].starts_from_best


def test_a_phase_that_a_metric_moves_may_hold_a_validation_wherever_it_begins(make_schedule):
    """Phase ``b`` is from 17 to 22 or, where the metric does not fire, from 27 to 32."""
    schedule = make_schedule(
        a=PhaseSpec("head", until=UntilSpec(steps=20, plateau=PlateauSpec(1))),
        between=PhaseSpec("all", until=UntilSpec(steps=7)),
        b=PhaseSpec("body", until=UntilSpec(steps=5)),
        c=PhaseSpec("all", start=StartFrom.best),
    )
    assert schedule.phases[3].starts_from_best


def test_a_walk_names_all_its_faults(make_schedule):
    each = EachSpec(epochs=0, steps=0, fraction=2.0, settle=SettleSpec())
    with pytest.raises(ConfigError) as caught:
        make_schedule(a=walk(by=-1, hold=3.0, anneal=True, each=each))
    text = str(caught.value)
    for key in ("by", "hold", "each.epochs", "each.steps", "each.fraction", "each.settle"):
        assert f"freeze.phases.a.walk.{key} " in text, key
    assert "walk.anneal is for" in text
    assert "walk.anneal needs" in text


def test_all_faults_of_all_phases_are_told_at_once(make_schedule):
    with pytest.raises(ConfigError) as caught:
        make_schedule(
            validation=BOTH,
            a=PhaseSpec(
                "haed",
                until=UntilSpec(plateau=PlateauSpec(metric="val/los"), threshold=ThresholdSpec()),
                start=StartFrom.best,
                lr=PhaseLrSpec(scale=0.0),
                rewarm=WarmupSpec(steps=-1),
            ),
            b=walk(by=0, each=EachSpec(plateau=PlateauSpec(0))),
            c=PhaseSpec("all", until=UntilSpec(plateau=PlateauSpec(0)), lr=PhaseLrSpec(scale=-1.0)),
        )
    text = str(caught.value)
    missing = [
        key
        for key in (
            "a.train:",
            "a.until has no cap",
            "a.until.plateau.metric=val/los",
            "a.until.threshold states",
            "a.start=best",
            "a.lr.scale is",
            "a.rewarm.steps is",
            "b.until is missing",
            "b.walk.by is",
            "b.walk.each.plateau.patience is",
            "c.until.plateau.patience is",
            "c.lr.scale is",
        )
        if text.count(f"freeze.phases.{key}") != 1
    ]
    assert not missing, text
    assert text.startswith("12 faults")
