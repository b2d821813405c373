"""What a frozen backbone makes of the pictures of a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import DataLoader

from frostline import signals
from frostline.data.loading import PictureDataset, collate
from frostline.data.splits import ImageSplit
from frostline.data.transforms import evaluation_transform
from frostline.forking import fork_context
from frostline.types import Preprocessing

Vectors = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Features:
    """The features of some pictures of one split.

    Attributes:
        vectors: ``[N, D]`` float32, finite.
        positions: ``[N]`` int64, rising: where each picture is in its split; those that could not be read are missing.
    """

    vectors: Vectors
    positions: Positions


def features(
    model: nn.Module,
    splits: Mapping[str, ImageSplit],
    preprocessing: Preprocessing,
    *,
    readable: Mapping[str, npt.NDArray[np.bool_]],
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Features]:
    """The features of every readable picture, by split.

    The pictures are read again: the scan before it takes one at a time, whole, and a network takes many, small.

    Args:
        model: takes ``[B, C, H, W]`` and gives ``[B, D]``, such as a timm model with ``num_classes=0``.
        splits: the pictures.
        preprocessing: of the model; pictures go through its evaluation transform.
        readable: ``[N]`` bool for each split: others are not opened.
        batch_size: pictures at a time.
        workers: processes that decode.
        device: where the model runs.
        progress: called after each batch with the number of pictures that are done, of how many.
    """
    chosen = {name: np.flatnonzero(readable[name]) for name in splits}
    total = sum(len(positions) for positions in chosen.values())
    # on a CPU a convolution of this layout takes half the time
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    found, done = {}, 0
    for name, split in splits.items():
        so_far = done

        def report(count: int, before: int = so_far) -> None:
            if progress is not None:
                progress(before + count, total)

        dataset = PictureDataset(split, evaluation_transform(preprocessing))
        found[name] = _of_split(model, dataset, chosen[name], batch_size, workers, torch.device(device), report)
        done += len(chosen[name])
    return found


def _leave_signals_to_main(worker: int) -> None:
    # Ctrl-C goes to the whole group, and a process that ended by it would be reported as a fault
    if signals.STOP.installed:
        signals.leave_to_main()


def _of_split(
    model: nn.Module,
    dataset: PictureDataset,
    positions: Positions,
    batch_size: int,
    workers: int,
    device: torch.device,
    report: Callable[[int], None],
) -> Features:
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=positions.tolist(),
        num_workers=workers,
        collate_fn=collate,
        generator=torch.Generator(),
        multiprocessing_context=fork_context(workers),
        worker_init_fn=_leave_signals_to_main,
    )
    vectors: list[Vectors] = []
    kept: list[Positions] = []
    done = 0
    with torch.inference_mode():
        # a batch of pictures that vanished since the scan is empty
        for batch, unreadable in loader:
            if batch is not None:
                vectors.append(
                    model(batch.images.to(device, memory_format=torch.channels_last)).float().flatten(1).cpu().numpy()
                )
                kept.append(batch.indices.numpy())
            done += len(unreadable) + (0 if batch is None else len(batch.indices))
            report(done)
    if not vectors:
        return Features(np.zeros((0, 0), np.float32), np.zeros(0, np.int64))
    stacked, order = np.concatenate(vectors), np.concatenate(kept)
    finite = np.isfinite(stacked).all(axis=1)
    return Features(stacked[finite], order[finite])
