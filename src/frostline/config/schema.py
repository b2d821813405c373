"""The closed nodes in Hydra's ConfigStore, the resolvers, and where ``conf/`` lies."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from frostline import specs

COMMANDS = {
    "train": "fine-tune, select the best checkpoint, score the test split once, write the run folder",
    "inspect": "the same config, looked at and not trained: data, depth, phases, learning rates, cost, the thaw plot",
    "audit": "what is wrong with a data set: unreadable, doubled, blank or mislabelled pictures, drift; writes a page",
    "evaluate": "score a split of a finished run again",
    "predict": "label pictures with a finished run: a folder, a list, a table or shards, any number of them",
    "compare": "finished runs over their seeds and folds: means, intervals, tests, tables for a paper, a plot",
    "soup": "average the weights of finished runs, or of the start and the end of one, by validation",
    "report": "a finished run or a sweep as one page: scores, what is confused, what the model looked at, provenance",
    "export": "a finished model as ONNX, OpenVINO, torch.export or a timm folder, shown to be that model",
    "serve": "answer requests for a prediction over HTTP, with a page to try it",
    "probe": "many heads at once on a frozen backbone that runs once; the best by validation, tested once",
    "pretrain": "pre-train a backbone on unlabelled pictures",
}


def conf_folder() -> Path:
    """``conf/`` of the checkout, or ``frostline/conf`` of an installed wheel."""
    package = Path(str(importlib.resources.files("frostline")))
    packaged = package / "conf"
    return packaged if packaged.is_dir() else package.parents[1] / "conf"


def weights_folder(name: str) -> str:
    """The folder of weights that Frostline ships under ``name``; what ``${frostline.weights:NAME}`` becomes."""
    return str(Path(str(importlib.resources.files("frostline"))) / "weights" / name)


def register() -> None:
    """Make the closed nodes and the resolvers known to Hydra; calling it again changes nothing."""
    store = ConfigStore.instance()
    register_resolvers()
    if "train_schema.yaml" in store.repo:
        return
    freeze = OmegaConf.structured(specs.FreezeSpec)
    # so that `freeze.phases.full={...}` adds a phase without Hydra's `+`
    OmegaConf.set_struct(freeze.phases, False)
    store.store(group="freeze", name="schema", node=freeze)
    backbone = OmegaConf.structured(specs.BackboneSpec)
    OmegaConf.set_struct(backbone.kwargs, False)
    store.store(group="backbone", name="schema", node=backbone)
    store.store(group="lr", name="schema", node=specs.LrSpec)
    store.store(group="speed", name="schema", node=specs.SpeedSpec)
    store.store(name="pretrain_schema", node=specs.PretrainSpec)
    store.store(name="probe_schema", node=specs.ProbeSpec)
    store.store(name="audit_schema", node=specs.AuditSpec)
    store.store(name="evaluate_schema", node=specs.EvaluateSpec)
    store.store(name="export_schema", node=specs.ExportSpec)
    store.store(name="serve_schema", node=specs.ServeSpec)
    store.store(name="predict_schema", node=specs.PredictSpec)
    store.store(name="compare_schema", node=specs.CompareSpec)
    store.store(name="soup_schema", node=specs.SoupSpec)
    store.store(name="report_schema", node=specs.ReportSpec)
    # the last: it says that all are there
    store.store(name="train_schema", node=specs.TrainSpec)


def register_resolvers() -> None:
    """Make the resolvers alone known, which a config that is read needs; calling it again changes nothing."""
    OmegaConf.register_new_resolver("frostline.weights", weights_folder, replace=True)
