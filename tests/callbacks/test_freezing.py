from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from small_runs import MODELS, SmallRun, Tensors, Watching, changed, following, named, of_groups, small_run, tensors
from timm.optim import Lamb

from frostline.callbacks import Checkpointing, ExponentialMovingAverage
from frostline.callbacks.freezing import gradient_norms, load_into
from frostline.checkpoints import read_checkpoint
from frostline.errors import NumericsError
from frostline.freezing import Decision
from frostline.specs import (
    Curve,
    EachSpec,
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

NAN = float("nan")
NAME = next(iter(MODELS))


def until(**ends: Any) -> UntilSpec:
    return UntilSpec(**ends)


# --- where transitions stand ------------------------------------------------------------------------------------------


class CountBackward(Callback):
    """How often a gradient has come to each parameter since the last optimizer step, when the next is taken."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.steps: list[tuple[str, dict[str, int]]] = []

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        for name, parameter in pl_module.model.named_parameters():
            if parameter.requires_grad:
                self.counts[name] = self.counts.get(name, 0) + 1

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        held = {name for name, parameter in pl_module.model.named_parameters() if parameter.grad is not None}
        assert held == {*self.counts}
        self.steps.append((following(trainer).phase.name, self.counts))
        self.counts = {}


def test_no_window_of_accumulated_gradients_is_torn(tmp_path: Path) -> None:
    # 8 batches an epoch, three to a step, so that the third step has two; the phases end within epochs
    count = CountBackward()
    phases = {"head": PhaseSpec("head", until=until(steps=1)), "all": PhaseSpec("all", until=until(steps=3))}
    run = small_run(
        NAME, tmp_path, count, epochs=2, steps_per_epoch=3, accumulate=3, short=1, **phases, top=PhaseSpec("top:1")
    )
    assert run.fit().global_step == 6
    groups = run.backbone.groups
    names = {"head": of_groups(groups[-1:]), "all": of_groups(groups), "top": of_groups(groups[-2:-1])}
    assert [phase for phase, _ in count.steps] == ["head", "all", "all", "all", "top", "top"]
    for (phase, counts), window in zip(count.steps, [3, 3, 2, 3, 3, 2], strict=True):
        assert counts == dict.fromkeys(names[phase], window)


def test_rates_and_the_clock_of_the_phase_are_logged_for_each_step(tmp_path: Path) -> None:
    logged: list[dict[str, float]] = []

    class Read(DummyLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            if "lr" in metrics:
                assert step == len(logged)
                logged.append(metrics)

    class Listen(Callback):
        def setup(self, trainer: Trainer, *_: Any, **__: Any) -> None:
            trainer.loggers = [Read()]

    phases = {"head": PhaseSpec("head", until=until(steps=1)), "all": PhaseSpec("all")}
    run = small_run(NAME, tmp_path, Listen(), epochs=1, steps_per_epoch=3, **phases)
    run.fit()
    names = [group.name for group in run.backbone.groups]
    assert [line["lr/head"] for line in logged] == pytest.approx([0.05] * 3)
    for name in names[:-1]:
        assert [line[f"lr/{name}"] for line in logged] == pytest.approx([0.0, 0.05, 0.05])
    assert [line["lr"] for line in logged] == pytest.approx([0.05] * 3)
    assert [line["freeze/phase"] for line in logged] == [0, 1, 1]
    assert [line["freeze/clock"] for line in logged] == [0, 0, 1]


def test_all_ranks_obey_the_decision_of_the_first(tmp_path: Path) -> None:
    run = small_run(NAME, tmp_path, head=PhaseSpec("head", until=until(epochs=1)), all=PhaseSpec("all"))
    sent: list[object] = []

    def broadcast(decision: object) -> object:
        sent.append(decision)
        return (True, 0, "what the first has seen")

    trainer: Any = SimpleNamespace(world_size=2, strategy=SimpleNamespace(broadcast=broadcast))
    run.follow._obey_first_rank(trainer)
    assert sent == [(False, 0, "")]
    assert run.follow.progress.decision == Decision(True, 0, "what the first has seen")


# --- the optimizer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", list(OptimizerState))
def test_a_phase_keeps_or_resets_the_state_of_the_optimizer(state: OptimizerState, tmp_path: Path) -> None:
    held: dict[int, set[str]] = {}

    def look(trainer: Trainer, task: Any, follow: Any) -> None:
        names = {id(parameter): name for name, parameter in task.model.named_parameters()}
        held[trainer.global_step] = {names[id(parameter)] for parameter in trainer.optimizers[0].state}

    phases = {"head": PhaseSpec("head", until=until(epochs=1)), "top": PhaseSpec("head + top:1", optimizer=state)}
    run = small_run(NAME, tmp_path, Watching(look), epochs=2, optimizer="adamw", **phases)
    run.fit()
    head, top = of_groups(run.backbone.groups[-1:]), of_groups(run.backbone.groups[-2:])
    assert held == {0: set(), 1: head, 2: head if state is OptimizerState.keep else set(), 3: top}


def lamb_counts(run: SmallRun, trainer: Trainer) -> dict[str, float]:
    groups = run.backbone.groups
    of = {groups[-1].name: "head", groups[-2].name: "top"}
    found = {of.get(group["group"], "rest"): float(group["step"]) for group in trainer.optimizers[0].param_groups}
    return {place: found[place] for place in ("head", "top", "rest")}


def test_lamb_counts_the_steps_of_a_group_from_when_it_thaws(tmp_path: Path) -> None:
    """It counts by parameter group, frozen ones too; the bias correction of what thaws would be that of an old one."""
    phases = {"head": PhaseSpec("head", until=until(epochs=2)), "top": PhaseSpec("head + top:1", until=until(epochs=1))}
    run = small_run(NAME, tmp_path, optimizer=Lamb, epochs=4, **phases, all=PhaseSpec("all"))
    assert lamb_counts(run, run.fit()) == {"head": 8, "top": 4, "rest": 2}
    reset = {"all": PhaseSpec("all", optimizer=OptimizerState.reset)}
    run = small_run(NAME, tmp_path, optimizer=Lamb, epochs=4, **phases, **reset)
    assert lamb_counts(run, run.fit()) == {"head": 2, "top": 2, "rest": 2}


def test_the_first_step_of_what_thaws_is_that_of_a_fresh_lamb(tmp_path: Path) -> None:
    """By value: after a probe that learns next to nothing, what thaws moves as in a run without the probe."""
    still = PhaseSpec("head", until=until(epochs=1), lr=PhaseLrSpec(scale=1e-30))
    moved: list[Tensors] = []
    for probe in ({}, {"probe": still}):
        # one step an epoch, so that both see the same pictures
        run = small_run(
            "test_vit",
            tmp_path,
            optimizer=Lamb,
            epochs=1 + len(probe),
            steps_per_epoch=1,
            **probe,
            top=PhaseSpec("top:1"),
        )
        for module in run.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        before = tensors(run.model)
        run.fit()
        top = of_groups(run.backbone.groups[-2:-1])
        moved.append({name: tensor - before[name] for name, tensor in tensors(run.model).items() if name in top})
    assert any(tensor.any() for tensor in moved[0].values())
    assert not changed(*moved)


# --- weights that a phase starts from ---------------------------------------------------------------------------------


class KeepChecked(Callback):
    """The model and its average as the second phase begins."""

    def __init__(self, average: ExponentialMovingAverage | None) -> None:
        self.average = average
        self.model: Tensors = {}
        self.averaged: Tensors = {}
        self.before: Tensors = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if following(trainer).phase.name == "head":
            self.before = tensors(pl_module.model)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if following(trainer).phase.name == "all" and not self.model:
            self.model = tensors(pl_module.model)
            if self.average is not None:
                self.averaged = tensors(self.average._average_model.module.model)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_phase_starts_from_the_best_of_the_phase_before(
    averaged: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    average = ExponentialMovingAverage(decay=0.6) if averaged else None
    keep = KeepChecked(average)
    saving = Checkpointing(str(tmp_path / "checkpoints"), "val/score", keep_latest=3)
    watch = [average, keep] if average else [keep]
    # batch norms count in the probe too, so that there is a buffer to restore; the best of the phase is epoch 2
    phases = {"head": PhaseSpec("all - bottom:1", until=until(epochs=3)), "all": PhaseSpec("all", start=StartFrom.best)}
    run = small_run(NAME, tmp_path, *watch, before=[saving], epochs=4, scores=[0.1, 0.9, 0.5, 0.2], **phases)
    run.fit()
    assert "parameters learn, from step-00000004.ckpt with 0.9000" in capsys.readouterr().out
    content = read_checkpoint(tmp_path / "checkpoints" / "step-00000004.ckpt")
    saved = {name.removeprefix("model."): value for name, value in content["state_dict"].items()}
    assert {name for name, value in keep.model.items() if not value.equal(saved.get(name, value))} == set()
    assert changed(keep.model, keep.before)
    if averaged:
        current = {name.removeprefix("model."): value for name, value in content["current_model_state"].items()}
        assert any(not value.equal(current[name]) for name, value in keep.model.items() if name in current)
        assert not changed(keep.averaged, keep.model)


def test_the_best_of_an_earlier_phase_does_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saving = Checkpointing(str(tmp_path / "checkpoints"), "val/score", keep_latest=1)
    phases = {
        "head": PhaseSpec("head", until=until(epochs=1)),
        "top": PhaseSpec("head + top:1", until=until(epochs=3)),
        "all": PhaseSpec("all", start=StartFrom.best),
    }
    scores = [0.9, 0.3, 0.4, 0.2, 0.1]
    run = small_run(NAME, tmp_path, before=[saving], epochs=5, scores=scores, steps_per_epoch=1, **phases)
    run.fit()
    assert "parameters learn, from step-00000003.ckpt with 0.4000" in capsys.readouterr().out
    # the best of all is still what the run selects, and what no phase needs any more is gone
    assert saving.best_path == tmp_path / "checkpoints" / "step-00000001.ckpt"
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.ckpt"))
    assert kept == ["step-00000001.ckpt", "step-00000005.ckpt"]


def test_a_phase_without_a_finite_score_leaves_nothing_to_start_from(tmp_path: Path) -> None:
    saving = Checkpointing(str(tmp_path / "checkpoints"), "val/score")
    phases = {"head": PhaseSpec("head", until=until(epochs=1)), "all": PhaseSpec("all", start=StartFrom.best)}
    run = small_run(NAME, tmp_path, before=[saving], scores=[NAN], **phases)
    with pytest.raises(NumericsError, match="phase 'all' starts from the best weights of the phase before"):
        run.fit()


def test_weights_are_put_into_the_tensors_that_are_there() -> None:
    model = torch.nn.BatchNorm1d(2)
    held = dict(named(model))
    state = {"m.weight": torch.tensor([3.0, 4.0]), "m.num_batches_tracked": torch.tensor(7), "weight": torch.zeros(2)}
    load_into(model, state, "m.")
    assert model.weight.tolist() == [3.0, 4.0]
    assert int(model.num_batches_tracked) == 7
    assert all(tensor is held[name] for name, tensor in named(model))
    assert model.weight.requires_grad


# --- triggers ---------------------------------------------------------------------------------------------------------


def phase_of_epochs(run: SmallRun) -> list[str]:
    """The phase of each epoch's first batch, of a run with one step an epoch."""
    found: list[str] = []
    run.watch = [*run.watch, Watching(lambda trainer, task, follow: found.append(follow.phase.name))]
    run.fit()
    return found


def test_a_plateau_ends_a_phase_before_its_cap(tmp_path: Path) -> None:
    end = until(epochs=6, plateau=PlateauSpec(patience=2))
    scores = [0.5, 0.6, 0.6, 0.6, 0.1]
    run = small_run(
        NAME,
        tmp_path,
        epochs=7,
        steps_per_epoch=1,
        scores=scores,
        head=PhaseSpec("head", until=end),
        all=PhaseSpec("all"),
    )
    assert phase_of_epochs(run) == ["head"] * 4 + ["all"] * 3


def test_a_threshold_ends_a_phase_before_its_cap(tmp_path: Path) -> None:
    end = until(epochs=4, threshold=ThresholdSpec(above=0.8))
    run = small_run(
        NAME,
        tmp_path,
        epochs=5,
        steps_per_epoch=1,
        scores=[0.5, 0.8, 0.1],
        head=PhaseSpec("head", until=end),
        all=PhaseSpec("all"),
    )
    assert phase_of_epochs(run) == ["head"] * 2 + ["all"] * 3


def test_a_plateau_of_the_last_phase_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = PhaseSpec("all", until=until(plateau=PlateauSpec(patience=1)))
    phases = {"head": PhaseSpec("head", until=until(epochs=2)), "all": last}
    # what the phase before has counted is forgotten
    run = small_run(NAME, tmp_path, epochs=9, steps_per_epoch=1, scores=[0.9, 0.1, 0.2, 0.3, 0.3], **phases)
    trainer = run.fit()
    assert (trainer.global_step, trainer.should_stop) == (5, True)
    assert "all: ends the run, plateau of val/score at 0.3" in capsys.readouterr().out


class KeepNorms(Callback):
    """The gradient norm of each depth group at each step, as numpy has it."""

    def __init__(self) -> None:
        self.norms: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        parameters, found = dict(pl_module.model.named_parameters()), {}
        for group in pl_module.groups:
            held = [parameters[name].grad for name in group.parameters]
            if any(gradient is not None for gradient in held):
                flat = [gradient.double().numpy().ravel() for gradient in held if gradient is not None]
                found[group.name] = float(np.linalg.norm(np.concatenate(flat)))
        self.norms.append(found)


def test_gradients_that_have_settled_move_a_walk(tmp_path: Path) -> None:
    every, share, steps = 2, 60.0, 16
    keep, places = KeepNorms(), []
    walk = WalkSpec(
        order=WalkOrder.bottom_up, mode=WalkMode.drop, each=EachSpec(settle=SettleSpec(percentile=share, every=every))
    )
    run = small_run(
        NAME,
        tmp_path,
        keep,
        Watching(lambda trainer, task, follow: places.append(follow.progress.position.stage)),
        epochs=4,
        steps_per_epoch=4,
        walk=PhaseSpec("all", walk=walk),
    )
    run.fit()
    names = [group.name for group in run.backbone.groups]
    expected, stage, before = [], 0, {}
    for step in range(steps):
        expected.append(stage)
        if (step + 1) % every or stage == len(names) - 1:
            continue
        window = keep.norms[step + 1 - every : step + 1]
        means = {name: float(np.mean([norms[name] for norms in window])) for name in names[stage:]}
        change = {name: abs(mean - before[name]) / before[name] for name, mean in means.items() if name in before}
        before = means
        if change:
            limit = np.percentile([*change.values()], share)
            while stage < len(names) - 1 and change[names[stage]] <= limit:
                stage += 1
    assert places == expected
    # it does move, and not at once
    assert len({*places}) > 1


def test_gradient_norms_are_of_all_that_a_group_learns(tmp_path: Path) -> None:
    run = small_run(NAME, tmp_path, top=PhaseSpec("head + top:1"))
    model, groups = run.model, run.backbone.groups
    assert gradient_norms(model, groups) == {}
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    found = gradient_norms(model, groups)
    parameters = dict(model.named_parameters())
    assert list(found) == [group.name for group in groups[-2:]]
    for group in groups[-2:]:
        squares = sum(float(parameters[name].grad.double().square().sum()) for name in group.parameters)
        assert found[group.name] == pytest.approx(squares**0.5, rel=1e-5)


# --- the learning rate that the optimizer has -------------------------------------------------------------------------


class KeepRates(Callback):
    """The learning rate of every group of the optimizer, just before each of its steps."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.rates: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.steps.append(trainer.global_step)
        self.rates.append({group["name"]: float(group["lr"]) for group in optimizer.param_groups})


def linear(scale: float = 1.0, warmup: int = 0) -> PhaseLrSpec:
    return PhaseLrSpec(scale, Curve.linear, WarmupSpec(steps=warmup))


def test_every_group_of_the_optimizer_has_the_rate_of_its_step(tmp_path: Path) -> None:
    keep = KeepRates()
    phases = {
        "probe": PhaseSpec("head", until=until(steps=2), lr=linear(warmup=1)),
        "thaw": PhaseSpec(
            walk=WalkSpec(each=EachSpec(steps=2)), until=until(steps=6), lr=linear(0.5, 2), rewarm=WarmupSpec(steps=1)
        ),
        "full": PhaseSpec("all - bottom:1", lr=linear()),
    }
    # three steps an epoch, of two batches and the last of one, so that phases and stages begin within epochs
    length = {"epochs": 4, "steps_per_epoch": 3, "accumulate": 2, "short": 1}
    run = small_run(NAME, tmp_path, keep, bins=2, freeze={"lr_decay": 0.5}, **length, **phases)
    run.fit()
    stem, body, head = (group.name for group in run.backbone.groups)
    # a base of 0.05, halved in the walk, and by depth once for the body and twice for the stem; a line for each phase
    # that starts at its peak, behind warm-ups of 1, 2 and 0 steps; in the walk, half of that where a group just thaws
    expected = {
        head: [0.025, 0.05, *(0.025 / 3, 0.05 / 3, 0.025, 0.01875, 0.0125, 0.00625), *(0.05, 0.0375, 0.025, 0.0125)],
        body: [0.0, 0.0, *(0.0, 0.0, 0.00625, 0.009375, 0.00625, 0.003125), *(0.025, 0.01875, 0.0125, 0.00625)],
        stem: [0.0, 0.0, *(0.0, 0.0, 0.0, 0.0, 0.0015625, 0.0015625), *(0.0, 0.0, 0.0, 0.0)],
    }
    assert keep.steps == [*range(12)]
    assert {name for rates in keep.rates for name in rates} == {n + end for n in expected for end in ("", "/no_decay")}
    for name, rates in expected.items():
        for end in ("", "/no_decay"):
            assert [found[name + end] for found in keep.rates] == pytest.approx(rates, rel=1e-12, abs=0.0), name + end
