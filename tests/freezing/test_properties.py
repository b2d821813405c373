"""Any schedule: going on from a checkpoint is going on, and what is declared is what happens."""

from __future__ import annotations

import json
import math
import random
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import nn

from frostline.errors import ConfigError
from frostline.freezing import FreezeSchedule, Position, Progress, Validation, apply_phase, select
from frostline.optim import LearningRates, parameter_groups
from frostline.specs import (
    BatchNormAffine,
    BatchNormSpec,
    Curve,
    EachSpec,
    FreezeSpec,
    LrScaleSpec,
    LrSpec,
    Mode,
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
from frostline.types import DepthGroup

BASE = 1e-2
DETERMINISTIC = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow],
)


def make_net() -> tuple[nn.Module, tuple[DepthGroup, ...]]:
    """Six depth groups: five of a linear layer and a batch norm, and a head."""
    blocks = [(f"block{i}", nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))) for i in range(5)]
    model = nn.Sequential(OrderedDict([*blocks, ("head", nn.Linear(1, 1))]))
    groups = [
        DepthGroup(i, path, tuple(f"{path}.{name}" for name, _ in child.named_parameters()), is_head=path == "head")
        for i, (path, child) in enumerate(model.named_children())
    ]
    return model, tuple(groups)


MODEL, GROUPS = make_net()
NAMES = {id(parameter): name for name, parameter in MODEL.named_parameters()}
SELECTORS = (
    "all",
    "head",
    "body",
    "top:2",
    "head + top:1",
    "all - bottom:1",
    "bottom:3 + head",
    "depth:0.4..1",
    "head + type:norm",
    "param:bias",
    "path:block1",
    "all - type:norm@top:2",
    r"re:block[024]\..*|head.*",
)


@dataclass
class Case:
    """A run that can be gone through: its schedule, and the seed of what it will measure."""

    spec: FreezeSpec
    lr: LrSpec
    steps_per_epoch: int
    total_steps: int
    validation: Validation
    seed: int
    caps: list[int | None]

    def schedule(self) -> FreezeSchedule:
        return FreezeSchedule(
            self.spec,
            self.lr,
            GROUPS,
            MODEL,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.total_steps,
            validation=self.validation,
        )

    def metrics(self, step: int) -> dict[str, float]:
        """What a validation after ``step`` finds; some values are NaN, some metrics are missing."""
        draw = random.Random(f"{self.seed} metrics {step}")
        values = {
            name: draw.choice([0.25, 0.5, 0.5, 0.75, draw.random(), math.nan]) for name in self.validation.metrics
        }
        return {name: value for name, value in values.items() if draw.random() < 0.95}

    def norms(self, step: int, learning: tuple[str, ...]) -> dict[str, float]:
        """The gradient norms of a step; some are not finite, some 0."""
        draw = random.Random(f"{self.seed} norms {step}")
        return {name: draw.choice([draw.random(), draw.random(), 1.0, 0.0, math.inf, math.nan]) for name in learning}


# --- drawing a schedule that has a meaning ----------------------------------------------------------------------------


@st.composite
def warmups(draw: st.DrawFn, steps: int) -> WarmupSpec | None:
    """One that is not longer than a phase of ``steps``."""
    unit = draw(st.sampled_from([None, None, "none", "steps", "fraction"]))
    if unit == "steps":
        return WarmupSpec(steps=draw(st.integers(0, steps)))
    if unit == "fraction":
        return WarmupSpec(fraction=draw(st.sampled_from([0.0, 0.1, 0.3, 1.0])))
    return WarmupSpec() if unit else None


plateaus = st.builds(
    PlateauSpec,
    patience=st.sampled_from([2, 1, 3]),
    min_delta=st.sampled_from([0.0, 0.1]),
    metric=st.sampled_from(["val/accuracy", "val/loss"]),
    mode=st.sampled_from([Mode.max, "min"]),
)
thresholds = st.sampled_from([ThresholdSpec(above=0.75), ThresholdSpec("val/loss", below=0.25)])
rates = st.sampled_from([None, *Curve])


@st.composite
def untils(draw: st.DrawFn, steps: int, steps_per_epoch: int, total: int, metric: bool) -> UntilSpec:
    """The end of a phase of ``steps``, in one unit or several, and maybe by a metric."""
    until = UntilSpec()
    units = ["steps", "fraction"] + ["epochs"] * (steps % steps_per_epoch == 0)
    unit = draw(st.sampled_from(units))
    setattr(until, unit, {"steps": steps, "fraction": steps / total, "epochs": steps // steps_per_epoch}[unit])
    if unit == "epochs" and draw(st.booleans()):
        until.steps = steps + draw(st.integers(0, 3))
    elif unit == "steps" and draw(st.booleans()):
        # of no effect beside steps
        until.fraction = draw(st.sampled_from([0.01, 1.0]))
    ends = draw(st.sampled_from(["plateau", "threshold", "both", "none"])) if metric else "none"
    until.plateau = draw(plateaus) if ends in ("plateau", "both") else None
    until.threshold = draw(thresholds) if ends in ("threshold", "both") else None
    return until


def fits(each: EachSpec, hold: float, count: int, steps: int, steps_per_epoch: int) -> bool:
    """Whether each stage of a walk begins, and after the one before: as DESIGN says it, not as the engine does."""
    if each == EachSpec():
        share = (1 - hold) / (count - 1) if hold and count > 1 else 1 / count
        shares = [(hold or share) + (k - 1) * share for k in range(1, count)]
        begins = [0, *(round(share * steps) for share in shares)]
    else:
        clocks = [each.steps, each.epochs and each.epochs * steps_per_epoch]
        known = [clock for clock in clocks if clock is not None]
        known = known or ([each.fraction * steps] if each.fraction else [])
        if not known:
            return True
        begins = [0, *(round(hold * steps + k * min(known)) for k in range(1, count))]
        # rounding may go either way by one
        return all(b - a > 1 or count == 1 for a, b in pairwise(begins)) and begins[-1] < steps - 1
    return all(b > a for a, b in pairwise(begins)) and begins[-1] < steps


@st.composite
def walks(draw: st.DrawFn, train: str, steps: int, steps_per_epoch: int, moves: list[str]) -> WalkSpec | None:
    """A walk that fits into a phase of ``steps``; None where the one that came up does not."""
    how = draw(st.sampled_from(moves))
    mode = WalkMode.drop if how in ("settle", "anneal") else draw(st.sampled_from(list(WalkMode)))
    each = EachSpec()
    for unit in draw(st.sets(st.sampled_from(["epochs", "steps", "fraction"]), max_size=2)):
        setattr(each, unit, draw({"fraction": st.sampled_from([0.1, 0.2])}.get(unit, st.integers(1, 4))))
    if how == "settle":
        each.settle = SettleSpec(draw(st.sampled_from([25.0, 50.0, 100.0])), draw(st.sampled_from([None, 1, 2, 3])))
    if how == "plateau" or (how == "settle" and "plateau" in moves and draw(st.booleans())):
        each.plateau = draw(plateaus)
    walk = WalkSpec(
        order=draw(st.sampled_from(list(WalkOrder))),
        by=draw(st.integers(1, 3)),
        mode=mode,
        each=each if each != EachSpec() else draw(st.sampled_from([None, each])),
        hold=draw(st.sampled_from([0.0, 0.25, 0.5])) if how in ("clock", "anneal") else 0.0,
        keep=draw(st.sampled_from([None, None, "head", "param:bias"])),
        anneal=how == "anneal",
    )
    walked = select(train, GROUPS, MODEL) - (select(walk.keep, GROUPS, MODEL) if walk.keep else frozenset())
    count = -(-sum(not walked.isdisjoint(group.parameters) for group in GROUPS) // walk.by)
    return walk if count and fits(each, walk.hold, count, steps, steps_per_epoch) else None


@st.composite
def cases(draw: st.DrawFn, triggers: bool = True) -> Case:
    """A list of phases with the run that they are for; without ``triggers`` the clock alone moves it."""
    steps_per_epoch, epochs = draw(st.integers(2, 4)), draw(st.integers(6, 12))
    total = steps_per_epoch * epochs
    every = draw(st.sampled_from([1, 1, 1, 2, 0])) if triggers else 1
    watches = triggers and every > 0
    moves = ["clock", "anneal", *(["settle"] * triggers), *(["plateau"] * watches)]
    count = draw(st.sampled_from([1, 2, 3, 3, 4]))
    phases: dict[str, PhaseSpec] = {}
    caps: list[int | None] = []
    start, uncertain, settled_length = 0, False, 0
    for i in range(count):
        is_last = i + 1 == count
        steps = total - start if is_last else draw(st.integers(total // (2 * count), total // count))
        until = draw(untils(steps, steps_per_epoch, total, metric=watches))
        if is_last and (uncertain or draw(st.booleans())):
            until = UntilSpec(plateau=until.plateau, threshold=until.threshold)
        train = draw(st.sampled_from(SELECTORS))
        walk = draw(walks(train, steps, steps_per_epoch, moves)) if draw(st.sampled_from([True, True, False])) else None
        # long enough to hold a validation wherever it begins
        has_best = every > 0 and settled_length >= every * steps_per_epoch
        stated = (until.epochs, until.steps, until.fraction) != (None, None, None)
        phases[f"p{i}"] = PhaseSpec(
            train=None if walk and train == "all" else train,
            walk=walk,
            until=until if until != UntilSpec() else draw(st.sampled_from([None, until])),
            start=StartFrom.best if has_best and draw(st.booleans()) else StartFrom.last,
            lr=PhaseLrSpec(draw(st.sampled_from([1.0, 0.1])), draw(rates), draw(warmups(steps))),
            rewarm=draw(warmups(steps)),
            bn=draw(st.sampled_from([None, None, BatchNormSpec(affine=BatchNormAffine.train)])),
        )
        ends_by_metric = until.plateau is not None or until.threshold is not None
        settled_length = 0 if ends_by_metric else steps
        uncertain = uncertain or ends_by_metric
        caps.append(steps if stated else None)
        start += steps
    spec = FreezeSpec(
        phases=phases,
        lr_decay=draw(st.sampled_from([1.0, 0.5])),
        lr_scale=LrScaleSpec(draw(st.sampled_from([1.0, 2.0])), draw(st.sampled_from([1.0, 0.25]))),
    )
    lr = LrSpec(draw(st.sampled_from(list(Curve))), WarmupSpec(fraction=draw(st.sampled_from([None, 0.2]))))
    return Case(spec, lr, steps_per_epoch, total, Validation(every=every), draw(st.integers(0, 10**6)), caps)


# --- going through it -------------------------------------------------------------------------------------------------


@dataclass
class Trace:
    """What happened at each step."""

    positions: list[Position] = field(default_factory=list)
    transitions: list[object] = field(default_factory=list)
    rates: list[tuple[float, ...]] = field(default_factory=list)
    learning: list[frozenset[str]] = field(default_factory=list)
    groups: list[dict[str, object]] = field(default_factory=list, compare=False)


class Run:
    """A run as the callback goes through it, that can be saved and gone on with in another process."""

    def __init__(self, case: Case, schedule: FreezeSchedule) -> None:
        self.case, self.schedule, self.progress, self.trace = case, schedule, Progress(schedule), Trace()
        groups = parameter_groups(MODEL, GROUPS, case.spec, weight_decay=0.1)
        self.optimizer = torch.optim.SGD(groups, lr=BASE)
        self.trace.groups += self.optimizer.param_groups
        self.step = 0

    def enter(self) -> None:
        apply_phase(MODEL, self.progress.stage.trainable)

    def move(self) -> None:
        """Go on in another process: nothing is left but the checkpoint, and what was recorded."""
        saved = json.dumps(self.progress.state_dict())
        self.progress = Progress(self.schedule)
        self.progress.load_state_dict(json.loads(saved))
        MODEL.requires_grad_(True)
        for group in self.optimizer.param_groups:
            group["lr"] = math.nan
        self.enter()

    def before(self) -> None:
        """What comes before an optimizer step."""
        while (transition := self.progress.advance(self.step)) is not None:
            self.trace.transitions.append(transition)
            self.enter()
        LearningRates(self.schedule).set(self.optimizer, BASE, self.progress.position, self.step)
        self.trace.positions.append(self.progress.position)
        self.trace.rates.append(tuple(group["lr"] for group in self.optimizer.param_groups))
        self.trace.learning.append(frozenset(name for name, p in MODEL.named_parameters() if p.requires_grad))

    def after(self) -> None:
        """What comes with it."""
        if self.progress.watches_gradients:
            self.progress.observe_gradients(self.case.norms(self.step, self.progress.stage.groups))
        self.step += 1

    def validate(self) -> bool:
        """Validate where it is time to; whether that ends the run."""
        interval = self.case.validation.every * self.case.steps_per_epoch
        if interval and self.step % interval == 0:
            self.progress.observe(self.case.metrics(self.step))
        return self.progress.is_over or self.step == self.case.total_steps


def gone_through(case: Case, schedule: FreezeSchedule, moves: set[tuple[int, str]] | None = frozenset()) -> Trace:
    """The trace of a run that moves to another process at ``moves``, after the named part of a step; None: always."""
    run = Run(case, schedule)
    run.enter()

    def after(part: str) -> None:
        if moves is None or (run.step, part) in moves:
            run.move()

    while True:
        after("validation")
        run.before()
        after("transition")
        run.after()
        after("step")
        if run.validate():
            return run.trace


def resolved(case: Case, tally: Counter[str]) -> FreezeSchedule:
    """Its schedule; what is refused, by a rounding that ``fits`` does not follow, is left out and counted."""
    tally["drawn"] += 1
    try:
        return case.schedule()
    except ConfigError:
        tally["refused"] += 1
        reject()


# --- what must hold ---------------------------------------------------------------------------------------------------


def check_declared(case: Case, schedule: FreezeSchedule, trace: Trace) -> None:
    """What learns is what the stage and the phase declare, in order, and no phase outlasts its cap."""
    for step, (position, learning) in enumerate(zip(trace.positions, trace.learning, strict=True)):
        stage = schedule.stage_of(position)
        assert learning == stage.trainable <= schedule.phase_of(position).trainable
        assert tuple(position.thawed) == stage.groups
        assert stage.groups == tuple(group.name for group in GROUPS if not learning.isdisjoint(group.parameters))
        assert 0 <= position.phase_start <= position.stage_start <= step
        assert all(since <= step for since in position.thawed.values())
        cap = case.caps[position.phase]
        assert cap is None or step < position.phase_start + cap
        assert step < schedule.phase_end(position) <= case.total_steps
    for before, after in pairwise(trace.positions):
        assert (after.phase, after.stage) >= (before.phase, before.stage)
        assert (after.phase == before.phase) == (after.phase_start == before.phase_start)
        assert (after.stage_start == before.stage_start) == ((after.phase, after.stage) == (before.phase, before.stage))
        assert all(after.thawed[name] == before.thawed[name] for name in after.thawed.keys() & before.thawed.keys())
    last = trace.positions[-1]
    assert last.phase == len(schedule.phases) - 1
    # a run that is shorter than planned was ended by a metric
    assert len(trace.positions) == case.total_steps or schedule.phase_of(last).ends_by_metric


def check_rates(case: Case, schedule: FreezeSchedule, trace: Trace) -> None:
    """A rate is 0 where nothing learns, and above 0 where something does, unless it is annealed or at a curve's end."""
    held = [frozenset(NAMES[id(p)] for p in group["params"]) for group in trace.groups]
    for position, learning, found in zip(trace.positions, trace.learning, trace.rates, strict=True):
        anneals = schedule.phase_of(position).anneal
        for names, rate in zip(held, found, strict=True):
            assert rate == 0 if names.isdisjoint(learning) else rate > 0 or (anneals and rate == 0)
            assert rate <= BASE * 2


def check_plan(case: Case, schedule: FreezeSchedule) -> None:
    """The planned positions cover the run, one after the other, and each lasts a step at least."""
    plan = schedule.plan()
    assert plan[0] == schedule.start
    starts = [position.stage_start for position in plan]
    assert starts[0] == plan[0].phase_start == 0
    assert starts == sorted(set(starts))
    assert schedule.phase_end(plan[-1]) == case.total_steps
    for before, after in pairwise(plan):
        assert (after.phase, after.stage) in {(before.phase, before.stage + 1), (before.phase + 1, 0)}
        assert after.phase == before.phase or after.phase_start == schedule.phase_end(before)
    for i, cap in enumerate(case.caps):
        first = next(position for position in plan if position.phase == i)
        assert cap is None or schedule.length_at(first) == cap


def test_any_schedule():
    """Saved at any step and gone on with, it is the same run; and what is declared is what happens."""
    tally: Counter[str] = Counter()

    @DETERMINISTIC
    @given(cases(), st.floats(0, 1, exclude_max=True), st.sampled_from(["validation", "transition", "step"]))
    def check(case: Case, share: float, part: str) -> None:
        schedule = resolved(case, tally)
        straight = gone_through(case, schedule)
        check_plan(case, schedule)
        check_declared(case, schedule, straight)
        check_rates(case, schedule, straight)
        assert gone_through(case, schedule, {(int(share * len(straight.positions)), part)}) == straight
        assert gone_through(case, schedule, None) == straight
        tally.update(transition.reason.split()[0].partition("=")[0] for transition in straight.transitions)
        tally["ended by a metric"] += len(straight.positions) < case.total_steps

    check()
    assert tally["refused"] < tally["drawn"] / 10, tally
    # every kind of transition has come up; how often depends on the version of Python
    for kind in ("after", "plateau", "gradients", "val/accuracy", "val/loss", "ended by a metric"):
        assert tally[kind] >= 1, tally


def test_without_a_trigger_a_run_goes_by_its_plan():
    tally: Counter[str] = Counter()

    @settings(DETERMINISTIC, max_examples=60)
    @given(cases(triggers=False))
    def check(case: Case) -> None:
        schedule = resolved(case, tally)
        run = Progress(schedule)
        for step in range(case.total_steps):
            while run.advance(step) is not None:
                tally["transitions"] += 1
            assert run.position == schedule.position_at(step)
        assert run.has_arrived

    check()
    assert tally["refused"] < tally["drawn"] / 10, tally
    assert tally["transitions"] > 100


def test_what_the_property_would_catch(monkeypatch):
    """A control: a checkpoint that forgets what was counted gives another run."""
    until = UntilSpec(epochs=6, plateau=PlateauSpec(patience=3, metric="val/accuracy", mode=Mode.max, min_delta=9.0))
    spec = FreezeSpec(phases={"a": PhaseSpec("head", until=until), "b": PhaseSpec("all")})
    case = Case(spec, LrSpec(), 2, 16, Validation(), 0, [12, None])
    schedule = case.schedule()

    class Forgetful(Progress):
        def state_dict(self) -> dict[str, object]:
            return {**super().state_dict(), "phase_counter": {"best": None, "waited": 0}}

    straight = gone_through(case, schedule)
    assert gone_through(case, schedule, None) == straight
    monkeypatch.setitem(globals(), "Progress", Forgetful)
    assert gone_through(case, schedule, None) != straight
