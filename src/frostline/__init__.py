"""Fine-tune pretrained vision backbones under a freeze schedule.

    from frostline import compose, load, train

    run = train(compose(["freeze=linear_probe", "seed=1"]))
    print(run.metrics["test/accuracy"], run.path)
    print(load(run.path).predict(["cat.jpg"]))

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frostline.runs.api import Prediction, Run, compose, load, resume, train

__all__ = ["Prediction", "Run", "compose", "load", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'frostline' has no attribute '{name}'")
    from frostline.runs import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted(__all__)
