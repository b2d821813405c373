"""What ``frostline`` and ``frostline COMMAND --help`` print."""

from __future__ import annotations

from hydra._internal.hydra import Hydra

from frostline.config import COMMANDS, QUOTING, group_options

GROUPS = {
    "data": "the labelled pictures and their splits",
    "backbone": "a timm model and its weights: backbone.name=resnet50, backbone.weights=pretrained|none|FILE|RUN; "
    "or any nn.Module: backbone=module backbone.module._target_=torchvision.models.resnet18 backbone.head=fc",
    "freeze": "which layers learn, when, and how fast",
    "adapter": "low-rank matrices that learn in place of the body's weights (LoRA)",
    "optimizer": "the update rule; optimizer.lr is the only base learning rate",
    "lr": "the learning-rate curve and its warm-up",
    "augment": "what training pictures go through",
    "loss": "what is minimised",
    "regularizer": "what keeps weights near those that were loaded (L2-SP)",
    "metrics": "what is measured",
    "trainer": "where it runs and for how long: trainer.max_epochs=30",
    "callbacks": "early stopping, checkpoints, averaged weights",
    "logger": "where metrics are written",
    "speed": "channels_last, torch.compile, gradient checkpointing; how frozen features are computed: "
    "speed.engine=auto|bf16|plain",
    "pretraining": "what a pre-training without labels learns from",
    "experiment": "a named set of all of these",
    "hydra": "Hydra's own settings, launchers and sweepers",
}

EXAMPLES = {
    "train": [
        "frostline train",
        "frostline train data=folder data.root=pictures backbone=timm backbone.name=resnet50 freeze=linear_probe",
        "frostline train -m freeze=linear_probe,full optimizer.lr=1e-3,1e-4 seed=0,1",
        "frostline train trainer.max_epochs=1 trainer.limit_train_batches=2",
        "frostline train run=outputs/train/RUN resume=true",
    ],
    "inspect": ["frostline inspect freeze=gradual data=folder data.root=pictures"],
    "audit": [
        "frostline audit data=folder data.root=pictures backbone=timm backbone.name=resnet50",
        "frostline audit data=folder data.root=pictures audit.labels=false audit.exclude=bad.txt",
        "frostline train data=folder data.root=pictures data.exclude=bad.txt",
    ],
    "probe": [
        "frostline probe 'probe.lr=[1e-4,1e-3,1e-2]' 'probe.weight_decay=[0,1e-2]' 'probe.seeds=[0,1,2]'",
        "frostline probe data=folder data.root=pictures backbone=timm backbone.name=vit_small_patch16_224 "
        "'probe.features=[last,last4,pooled,class_token]'",
        "frostline probe augment=light probe.views=4 'probe.references=[]'",
    ],
    "evaluate": ["frostline evaluate run=outputs/train/RUN split=val"],
    "predict": [
        "frostline predict run=outputs/train/RUN images=new_pictures output=labels.csv",
        "frostline predict run=outputs/train/RUN images=new.csv image_column=file 'keep_columns=[id]' on_error=skip",
        "frostline predict run=outputs/train/RUN images='\"new-{000..127}.tar\"' top_k=5 output=labels.parquet",
    ],
    "compare": [
        "frostline compare runs=outputs/train/SWEEP",
        "frostline compare runs='[outputs/train/RUN,outputs/train/RUN]' metric=val/macro_f1",
        "frostline compare runs='outputs/train/*-sweep-*' by='[freeze,optimizer.lr]' against=all",
    ],
    "soup": [
        "frostline soup runs=outputs/train/SWEEP",
        "frostline soup runs='[outputs/train/RUN,outputs/train/RUN]' soup.kind=uniform test=false",
        "frostline soup runs=outputs/train/RUN soup.kind=wise 'soup.alphas=[0,0.25,0.5,0.75,1]'",
    ],
    "report": [
        "frostline report run=outputs/train/RUN",
        "frostline report run=outputs/train/RUN root=FOLDER_OF_THE_PICTURES_NOW",
        "frostline report run=outputs/train/SWEEP axis=optimizer.lr",
    ],
    "export": [
        "frostline export run=outputs/train/RUN format='[onnx,openvino]' int8=true",
        "frostline export run=outputs/train/RUN format=timm push=ORG/NAME",
    ],
    "serve": [
        "frostline serve run=outputs/train/RUN port=8000",
        "curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/predict",
    ],
    "pretrain": [
        "frostline pretrain",
        "frostline pretrain data=pictures data.root=FOLDER backbone=timm backbone.name=resnet18 data.size=96",
        "frostline train backbone.name=local-dir:outputs/pretrain/RUN/model",
    ],
}

OPTIONS = """\
Options
  -m, --multirun       run one job for each combination of the lists in the overrides
  -c, --cfg job        print the composed config (hydra, all: Hydra's part of it) and stop
      --resolve        ... with its references replaced by their values
  -p, --package KEY    ... only this part of it
  -cd, --config-dir D  a folder of your own configs, laid out as conf/ is; may be repeated
  -h, --help           this text"""


def overview() -> str:
    """The commands, one a line."""
    lines = [f"  {name:<12}{purpose}" for name, purpose in COMMANDS.items()]
    lines.append(f"  {'completion':<12}completion of commands and overrides: completion install=bash|zsh|fish")
    return (
        "Frostline fine-tunes pretrained vision backbones under a freeze schedule.\n\n"
        "Usage: frostline COMMAND [KEY=VALUE ...]\n\n" + "\n".join(lines) + "\n\n"
        "frostline COMMAND --help shows what a command takes."
    )


def command_help(hydra: Hydra, command: str) -> str:
    """Groups with their options, examples, and how values are quoted."""
    used = _groups_of(hydra, command)
    groups = []
    for name in used:
        options = ", ".join(option for option in group_options(hydra, name) if option != "schema")
        purpose = GROUPS.get(name, "your own")
        groups.append(f"  {name:<12}{purpose}\n  {'':<12}{options}")
    examples = "\n".join(f"  {line}" for line in EXAMPLES[command])
    parts = [
        f"frostline {command}: {COMMANDS[command]}",
        f"Usage: frostline {command} [OPTIONS] [KEY=VALUE ...]",
        OPTIONS,
        "Config groups: GROUP=OPTION chooses a file, GROUP.KEY=VALUE changes a value in it\n" + "\n".join(groups)
        if groups
        else "",
        f"Examples\n{examples}",
        f"Quoting\n  {QUOTING}\n  Lists are lists: 'key=[a,b]'. `frostline {command} --cfg job` prints every key.",
    ]
    return "\n\n".join(part for part in parts if part)


def _groups_of(hydra: Hydra, command: str) -> list[str]:
    from hydra.types import RunMode

    chosen = hydra.compose_config(command, [], run_mode=RunMode.RUN).hydra.runtime.choices
    names = [str(name) for name in chosen if not str(name).startswith("hydra")]
    known = [name for name in GROUPS if name in names]
    return [*known, *(name for name in names if name not in GROUPS and "@" not in name)]
