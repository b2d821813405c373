"""``frostline serve run=RUN``: answer requests for a prediction with a finished model."""

from __future__ import annotations

import threading

import torch
from omegaconf import DictConfig
from torch import Tensor

from frostline import signals
from frostline.data.decoding import decode_picture
from frostline.errors import ConfigError
from frostline.exporting import PictureClassifier
from frostline.runs.cards import architecture
from frostline.runs.exported_input import as_input
from frostline.runs.folder import RunFolder
from frostline.runs.predict import device_of
from frostline.runs.saved import load_saved
from frostline.runs.scoring import temperature_of

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(config: DictConfig) -> None:
    """Listen until a signal comes.

    Raises:
        ConfigError: there is no such run, a limit is out of its range, or a package is missing.
        StorageError: the address cannot be bound to.
    """
    try:
        from frostline.serving import Limits, ServedModel, listen, make_app
    except ImportError as error:
        mend = "Install them with the extra: pip install 'frostline[serve]'"
        raise ConfigError(f"serve needs packages that are not installed ({error.name})", mend=mend) from error
    _check(config)
    folder = RunFolder.existing(config.run)
    saved = load_saved(folder, trust=config.trust, config_dirs=config.config_dirs)
    device = device_of(config.device)
    temperature = temperature_of(folder)
    model = PictureClassifier(saved.model, saved.preprocessing, temperature).to(device)
    prepare = as_input(saved.preprocessing)
    _run = threading.Lock()

    def classify(pictures: Tensor) -> Tensor:
        with _run, torch.inference_mode():
            probabilities: Tensor = model(pictures.to(device))[1]
        return probabilities.cpu()

    def decode(content: bytes, name: str) -> Tensor:
        return prepare(decode_picture(content, name, config.pixel_limit))

    # the first call of a batch plans it; a request should not wait for that
    classify(torch.zeros(1, *saved.preprocessing.size, dtype=torch.uint8))
    app = make_app(
        ServedModel(
            f"{architecture(folder)} ({folder.path.name})",
            saved.labels,
            decode,
            classify,
            {"temperature": temperature, "input_size": list(saved.preprocessing.size), "device": str(device)},
        ),
        Limits(config.body, config.pictures, config.seconds, config.queue, config.batch_size, config.wait),
    )
    if config.host not in _LOOPBACK:
        print(f"note: host={config.host} lets other machines ask; there is no password", flush=True)
    # the server has its own way to end: what was begun is answered
    signals.STOP.restore()
    listen(app, config.host, config.port, connections=config.connections, grace=config.seconds)


def _check(config: DictConfig) -> None:
    least = {"body": 1, "pictures": 1, "queue": 1, "batch_size": 1, "connections": 1, "pixel_limit": 1, "port": 0}
    for name, smallest in least.items():
        if config[name] < smallest:
            raise ConfigError(f"{name} is {config[name]}.", mend=f"Give a whole number of at least {smallest}.")
    if config.seconds <= 0 or config.wait < 0:
        raise ConfigError(f"seconds is {config.seconds} and wait is {config.wait}.", mend="Give times above 0.")
    if config.port > 65535:
        raise ConfigError(f"port is {config.port}.", mend="Give a number up to 65535.")
    if config.pictures > config.queue:
        problem = f"pictures={config.pictures} may be in a request, but queue={config.queue} may wait"
        raise ConfigError(problem, mend="Raise queue.")
