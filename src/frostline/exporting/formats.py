"""A model as a file of each format, and the file run as its users would."""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from frostline.errors import ConfigError, FrostlineError
from frostline.exporting.graph import INPUT, OUTPUTS, Facts, PictureClassifier

Run = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``[B, C, H, W]`` uint8 to ``[B, K]`` float32 logits and probabilities, on the CPU."""


class ExportError(FrostlineError):
    """A model cannot be written in a format, or what was written is not that model."""


class Format(ABC):
    """One way to write a model down.

    Attributes:
        name: as ``format=`` takes it.
        file: what it is written to.
        packages: what it needs beside Frostline's core, by import name.
    """

    name: str
    file: str
    packages: tuple[str, ...] = ()

    def require(self) -> None:
        """Raise where what it needs is not installed.

        Raises:
            ConfigError: naming the extra.
        """
        for package in self.packages:
            require_package(package, f"format={self.name}")

    @abstractmethod
    def write(self, model: PictureClassifier, facts: Facts, folder: Path) -> None:
        """Write ``file`` into an existing folder.

        Raises:
            ExportError: the model cannot be written so.
        """

    @abstractmethod
    def load(self, folder: Path) -> Run:
        """What is in the folder, ready to run on the CPU."""


class Onnx(Format):
    """ONNX, checked and run with ONNX Runtime."""

    name, file = "onnx", "model.onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")

    def write(self, model: PictureClassifier, facts: Facts, folder: Path) -> None:
        """See `Format.write`."""
        with faults_named(self.name), torch.no_grad():
            program = torch.onnx.export(
                _captured(model, facts),
                (),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        program.model.metadata_props.update(facts.metadata())
        program.save(str(folder / self.file), external_data=False)

    def load(self, folder: Path) -> Run:
        """See `Format.load`."""
        return onnx_session(folder / self.file)


class OpenVino(Format):
    """OpenVINO's own pair of files, made of an ONNX file."""

    name, file = "openvino", "model.xml"
    packages = ("openvino", *Onnx.packages)

    def write(self, model: PictureClassifier, facts: Facts, folder: Path) -> None:
        """See `Format.write`."""
        Onnx().write(model, facts, folder)
        self.convert(folder / Onnx.file, facts, folder)
        (folder / Onnx.file).unlink()

    def convert(self, onnx: Path, facts: Facts, folder: Path) -> None:
        """Write ``file`` and ``model.bin`` of an ONNX file."""
        import openvino

        with faults_named(self.name):
            # its converter for other formats reports its use to a server; this does not
            network = openvino.Core().read_model(onnx)
            for key, value in facts.metadata().items():
                network.set_rt_info(value, ["frostline", key])
            openvino.save_model(network, folder / self.file, compress_to_fp16=False)

    def load(self, folder: Path) -> Run:
        """See `Format.load`."""
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(str(folder / self.file), "CPU", settings)

        def run(pictures: Tensor) -> tuple[Tensor, Tensor]:
            found = compiled({INPUT: pictures.numpy()})
            logits, probabilities = (torch.from_numpy(found[name].copy()) for name in OUTPUTS)
            return logits, probabilities

        return run


class TorchExport(Format):
    """``torch.export``: a program that torch runs without the code of the model."""

    name, file = "torch_export", "model.pt2"

    def write(self, model: PictureClassifier, facts: Facts, folder: Path) -> None:
        """See `Format.write`."""
        with faults_named(self.name):
            extra = dict(facts.metadata())
            torch.export.save(_captured(model, facts), folder / self.file, extra_files=extra)

    def load(self, folder: Path) -> Run:
        """See `Format.load`."""
        module = torch.export.load(folder / self.file).module()

        def run(pictures: Tensor) -> tuple[Tensor, Tensor]:
            with torch.inference_mode():
                logits, probabilities = module(pictures)
            return logits, probabilities

        return run


FORMATS: Mapping[str, type[Format]] = {kind.name: kind for kind in (Onnx, OpenVino, TorchExport)}


def onnx_session(path: Path) -> Run:
    """An ONNX file of this module, run by ONNX Runtime on as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(pictures: Tensor) -> tuple[Tensor, Tensor]:
        logits, probabilities = session.run(list(OUTPUTS), {INPUT: pictures.numpy()})
        return torch.from_numpy(logits), torch.from_numpy(probabilities)

    return run


def eager(model: PictureClassifier) -> Run:
    """The model itself, to compare with."""

    def run(pictures: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            logits, probabilities = model(pictures)
        return logits, probabilities

    return run


def require_package(package: str, wanted_by: str) -> None:
    """Raise where a package of the extra ``export`` is not installed.

    Raises:
        ConfigError: naming the extra.
    """
    if package == "openvino":
        # it reports its import to a server, unless this is missing
        sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
    try:
        importlib.import_module(package)
    except ImportError as error:
        mend = "Install it with the extra: pip install 'frostline[export]'"
        raise ConfigError(f"{wanted_by} needs the package {package}", mend=mend) from error


def _captured(model: PictureClassifier, facts: Facts) -> torch.export.ExportedProgram:
    """The graph for any number of pictures."""
    example = torch.zeros(2, *facts.preprocessing.size, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(model, (example,), dynamic_shapes={INPUT: {0: batch}})


@contextmanager
def faults_named(name: str) -> Iterator[None]:
    """Turn what a converter raises into one message that names the format."""
    try:
        yield
    except FrostlineError:
        raise
    except Exception as error:  # a converter may fail in any way
        lines: list[Any] = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise ExportError(f"The model cannot be written as {name}: {reason}", mend="Try another format.") from error
