"""An ONNX model in 8 bits: weights per channel, activations by what they are on some training pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from frostline.exporting.formats import faults_named
from frostline.exporting.graph import INPUT

PACKAGES = ("onnx", "onnxruntime")


def quantize(source: Path, target: Path, batches: Sequence[Tensor]) -> None:
    """Write ``source`` with int8 weights and activations (static quantisation in QDQ form, by ONNX Runtime).

    Args:
        source: an ONNX file.
        target: where the other goes.
        batches: ``[B, C, H, W]`` uint8 training pictures, on which the range of each activation is measured.

    Raises:
        ExportError: it cannot be quantised.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self._left: Iterator[Tensor] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._left, None)
            return None if batch is None else {INPUT: batch.numpy()}

    prepared = target.with_suffix(".prepared.onnx")
    silenced = logging.getLogger()
    level = silenced.level
    try:
        silenced.setLevel(logging.ERROR)  # it advises to do what was done
        with faults_named("onnx in int8"):
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(target),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            )
    finally:
        silenced.setLevel(level)
        prepared.unlink(missing_ok=True)
