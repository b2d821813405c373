"""A run on its way through its schedule: the position, what is counted for the triggers, and the transitions."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frostline.freezing.counters import GradientCounter, PlateauCounter, crosses
from frostline.freezing.phase import Phase, Stage
from frostline.freezing.schedule import FreezeSchedule, Position, position_state


@dataclass(frozen=True)
class Decision:
    """What the triggers ask for at the next step.

    Attributes:
        ends_phase: go on to the next phase.
        stages: or go on by so many stages of the walk.
        reason: which trigger, and why, for the record.
    """

    ends_phase: bool = False
    stages: int = 0
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ends_phase or self.stages > 0


@dataclass(frozen=True)
class Transition:
    """A change of what learns.

    Attributes:
        step: the first optimizer step after it.
        position: where the run is now.
        enters_phase: whether a phase begins, and not only a stage of one.
        thawed: the depth groups that begin to learn.
        frozen: the depth groups that stop learning.
        reason: what brought it about.
    """

    step: int
    position: Position
    enters_phase: bool
    thawed: tuple[str, ...]
    frozen: tuple[str, ...]
    reason: str


class Progress:
    """Where a run is in its freeze schedule; knows neither a Trainer nor a model.

    Ask ``advance`` before each optimizer step, tell ``observe`` of each validation and, where ``watches_gradients``,
    ``observe_gradients`` of each step. What the triggers decide waits in ``decision`` for the next ``advance``, so that
    in a distributed run all ranks can be given the first rank's.

    Args:
        schedule: of the run.

    Attributes:
        position: where the run is.
        decision: what a trigger has asked for.
    """

    def __init__(self, schedule: FreezeSchedule) -> None:
        self.schedule = schedule
        self.position = schedule.start
        self.decision = Decision()
        self._phase_counter = PlateauCounter()
        self._stage_counter = PlateauCounter()
        self._gradients = GradientCounter()

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self.schedule.phase_of(self.position)

    @property
    def stage(self) -> Stage:
        """What learns now."""
        return self.schedule.stage_of(self.position)

    @property
    def in_last_phase(self) -> bool:
        """Whether no phase follows."""
        return self.position.phase + 1 == len(self.schedule.phases)

    @property
    def has_arrived(self) -> bool:
        """Whether nothing is left to thaw: the last phase, and in a walk that adds or goes on alone its last stage."""
        is_last = self.position.stage + 1 == len(self.phase.stages)
        return self.in_last_phase and (is_last or self.phase.only_drops)

    @property
    def is_over(self) -> bool:
        """Whether a metric has ended the last phase, and with it the run."""
        return self.decision.ends_phase and self.in_last_phase

    @property
    def watches_gradients(self) -> bool:
        """Whether the current walk is moved by gradient norms."""
        return self.phase.settle is not None and self.position.stage + 1 < len(self.phase.stages)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Count a validation; a metric that a trigger watches and that is not there does not count."""
        phase = self.phase
        reason = ""
        if phase.plateau is not None and phase.plateau.metric in metrics:
            fired = self._phase_counter.fires(phase.plateau, metrics[phase.plateau.metric])
            reason = f"plateau of {phase.plateau.metric} at {self._phase_counter}" if fired else ""
        if phase.threshold is not None and phase.threshold.metric in metrics:
            value = metrics[phase.threshold.metric]
            reason = f"{phase.threshold.metric}={value:.6g}" if crosses(phase.threshold, value) else reason
        if reason:
            self.decision = Decision(ends_phase=True, reason=reason)
            return
        watched = phase.stage_plateau
        is_last = self.position.stage + 1 == len(phase.stages)
        if watched is not None and not is_last and watched.metric in metrics:
            fired = self._stage_counter.fires(watched, metrics[watched.metric])
            if fired and not self.decision:  # what the gradients ask for is a stage at least
                self.decision = Decision(stages=1, reason=f"plateau of {watched.metric} at {self._stage_counter}")

    def observe_gradients(self, norms: Mapping[str, float]) -> bool:
        """Count the gradient norm of each depth group that learns, at a step; whether an interval has ended with it."""
        settle = self.phase.settle
        if settle is None:
            return False
        self._gradients.add(norms)
        ended = self._gradients.steps >= settle.every
        if not ended:
            return False
        dropped = self._stages_settled()
        if dropped and not self.decision:
            self.decision = Decision(stages=dropped, reason=f"gradients of {dropped} stages have settled")
        return True

    def _stages_settled(self) -> int:
        """How many stages may drop: those whose depth groups have all settled."""
        phase, now = self.phase, self.position.stage
        assert phase.settle is not None
        order = [self._dropped_by(stage) for stage in range(now, len(phase.stages) - 1)]
        settled = self._gradients.settled(phase.settle, [name for names in order for name in names])
        count = 0
        while count < len(order) and settled >= len(order[count]):
            settled -= len(order[count])
            count += 1
        return count

    def _dropped_by(self, stage: int) -> list[str]:
        """The depth groups that stop learning after a stage, in the order of the walk."""
        before, after = self.phase.stages[stage], self.phase.stages[stage + 1]
        dropped = before.trainable - after.trainable
        return [group.name for group in self.schedule.groups if not dropped.isdisjoint(group.parameters)]

    def _decided(self, decision: Decision, step: int) -> Position | None:
        if decision.ends_phase:
            return self.schedule.next_phase(self.position, step)
        if not decision.stages or step >= self.schedule.phase_end(self.position):  # a stage lasts a step at least
            return None
        return self.schedule.next_stage(self.position, step, decision.stages)

    def advance(self, step: int) -> Transition | None:
        """Go on to the position of optimizer step ``step``; the transition, where there is one."""
        schedule, before = self.schedule, self.position
        decision, self.decision = self.decision, Decision()
        after, reason = self._decided(decision, step), decision.reason
        if after is None:
            after, reason = schedule.after(before, step), ""
        if after is None:
            return None
        self.position = after
        enters_phase = after.phase != before.phase
        reason = reason or f"after {step - (before.phase_start if enters_phase else before.stage_start)} steps"
        if enters_phase:
            self._phase_counter, self._gradients = PlateauCounter(), GradientCounter()
        self._stage_counter = PlateauCounter()
        thawed = tuple(name for name in after.thawed if name not in before.thawed)
        frozen = tuple(name for name in before.thawed if name not in after.thawed)
        self._gradients.forget(frozen)
        return Transition(step, after, enters_phase, thawed, frozen, reason)

    def upcoming(self, step: int) -> Position:
        """The position that ``advance`` will have gone on to before optimizer step ``step``; nothing is changed."""
        ahead = copy.copy(self)
        ahead._gradients = copy.deepcopy(self._gradients)
        while ahead.advance(step) is not None:
            pass
        return ahead.position

    def state_dict(self) -> dict[str, Any]:
        """The position, and what the triggers have counted and decided, as plain types."""
        return {
            "position": position_state(self.position),
            "decision": {
                "ends_phase": self.decision.ends_phase,
                "stages": self.decision.stages,
                "reason": self.decision.reason,
            },
            "phase_counter": self._phase_counter.state_dict(),
            "stage_counter": self._stage_counter.state_dict(),
            "gradients": self._gradients.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""
        self.position = Position(**state["position"])
        self.decision = Decision(**state["decision"])
        self._phase_counter = PlateauCounter(**state["phase_counter"])
        self._stage_counter = PlateauCounter(**state["stage_counter"])
        self._gradients = GradientCounter(**state["gradients"])
