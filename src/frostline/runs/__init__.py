"""One module per command: builds the parts and says the order of events."""

# modules, each imported where it is needed: most of them import torch
__all__ = [
    "api",
    "evaluate",
    "folder",
    "inspect",
    "predict",
    "pretrain",
    "probe",
    "soup",
    "starting",
    "sweep",
    "train",
    "worker",
]
