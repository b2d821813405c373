"""A phase of a run, resolved to optimizer steps and parameter names."""

from __future__ import annotations

from dataclasses import dataclass

from frostline.specs import Curve


@dataclass(frozen=True)
class PhaseLr:
    """The learning rate of a phase, with nothing left to look up.

    Attributes:
        scale: the phase's factor on the base.
        curve: the shape after warm-up.
        warmup: optimizer steps of linear rise; 0 for none, at most the phase's length.
        floor: where ``linear`` and ``cosine`` end, as a share of the peak.
        milestones: for ``step``: shares of the phase's length after which ``gamma`` is applied.
        gamma: for ``step``.
    """

    scale: float = 1.0
    curve: Curve = Curve.constant
    warmup: int = 0
    floor: float = 0.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1


@dataclass(frozen=True)
class Phase:
    """A span of training with one absolute set of trainable parameters.

    Attributes:
        name: its key in ``freeze.phases``.
        trainable: names of the parameters that learn, as in ``model.named_parameters()``; all others are frozen.
        start: the first optimizer step of the phase, counted from the start of the run.
        end: the step after its last.
        lr: the learning rate's curve.
        frost_line: the depth below which nothing is trainable, so that no backward pass reaches it.
    """

    name: str
    trainable: frozenset[str]
    start: int
    end: int
    lr: PhaseLr
    frost_line: int

    @property
    def steps(self) -> int:
        """The phase's length in optimizer steps."""
        return self.end - self.start
