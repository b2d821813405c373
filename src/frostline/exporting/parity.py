"""Whether an exported model is the model: both are run on the same pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frostline.exporting.formats import ExportError, Run

LOGITS = 1e-4
"""How far a logit may be from that of the model, relative to the largest one where that is above 1."""


@dataclass(frozen=True)
class Parity:
    """How two ways to run a model differ on some pictures.

    Attributes:
        pictures: N.
        difference: the largest of a logit.
        scale: the largest magnitude of a logit of the model.
        changed: positions of the pictures that get another label.
    """

    pictures: int
    difference: float
    scale: float
    changed: tuple[int, ...]

    @property
    def agreement(self) -> float:
        """The share of pictures with the same label."""
        return 1 - len(self.changed) / self.pictures

    @property
    def holds(self) -> bool:
        """Whether they are the same model, but for rounding."""
        return not self.changed and self.difference <= LOGITS * max(1.0, self.scale)


def compare(model: Run, other: Run, batches: Sequence[Tensor]) -> Parity:
    """Run both on batches of pictures.

    Args:
        model: what the other one should be.
        other: what was exported.
        batches: each ``[B, C, H, W]`` uint8; of more than one size, so that the number of pictures is seen to be free.
    """
    wanted, found = (torch.cat([run(batch)[0] for batch in batches]) for run in (model, other))
    if wanted.shape != found.shape:
        raise ExportError(f"The exported model gives logits of shape {tuple(found.shape)}, not {tuple(wanted.shape)}.")
    # a number that is none is no small difference
    difference = (wanted - found).abs().nan_to_num(nan=torch.inf)
    labels, others = wanted.argmax(dim=1), found.argmax(dim=1)
    near = wanted.gather(1, labels[:, None]) - wanted.gather(1, others[:, None])
    # two classes that are equal but for rounding have no order
    changed = (labels != others) & (near[:, 0] > 2 * LOGITS * max(1.0, float(wanted.abs().max())))
    return Parity(
        len(wanted), float(difference.max()), float(wanted.abs().max()), tuple(changed.nonzero()[:, 0].tolist())
    )


def require_parity(parity: Parity, name: str) -> None:
    """Raise where an export without quantisation is not the model.

    Raises:
        ExportError: with the difference.
    """
    if parity.holds:
        return
    raise ExportError(
        f"format={name} was refused: on {parity.pictures} pictures its logits differ by up to {parity.difference:.2g} "
        f"(allowed: {LOGITS * max(1.0, parity.scale):.2g}), and {len(parity.changed)} get another label.",
        mend="Nothing was kept of it. Try another format.",
    )


def require_agreement(parity: Parity, least: float, name: str) -> None:
    """Raise where a model in 8 bits gives too many pictures another label.

    Raises:
        ExportError: with the share.
    """
    if parity.agreement >= least:
        return
    raise ExportError(
        f"format={name} in int8 was refused: it gives {len(parity.changed)} of {parity.pictures} pictures another "
        f"label ({parity.agreement:.1%} agree).",
        mend=f"Export without int8, or accept it: agreement={int(parity.agreement * 100) / 100}",
    )
